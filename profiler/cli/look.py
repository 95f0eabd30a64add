"""`list` and `show`: the runs under a results folder, and one of them on the terminal or as JSON.

Neither needs the device nor torch.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from profiler.cli.options import AsJson, Results, measured_spec
from profiler.cli.output import console, print_json
from profiler.record.find import RunSummary, find_run, list_runs
from profiler.record.folder import RunFolder
from profiler.record.measurement import Measurement
from profiler.record.run import RequestError
from roofline.hardware.load import find_device
from roofline.hardware.spec import HardwareSpec, spec_kind

LIST_EXAMPLE = "Example:  python -m profiler list --results results"
SHOW_EXAMPLE = "Example:  python -m profiler show last"


def list_(
    results: Results = Path("results"),
    as_json: AsJson = False,
) -> None:
    """List the runs under a results folder, the oldest first."""
    runs = list_runs(results)
    if as_json:
        print_json({"results": str(results), "runs": [run.model_dump(mode="json") for run in runs]})
    elif runs:
        for line in _lines(runs):
            print(line)
    else:
        print(f"no runs under {results}; make one with: python -m profiler run")


def _lines(runs: list[RunSummary]) -> Iterator[str]:
    """Columns of even width; never wrapped, so that a name can be copied or cut out by other programs."""
    rows = [("run", "state", "cells", "models")]
    for run in runs:
        name = f"{run.path.parent.name}/{run.path.name}"
        cells = "–" if run.state == "unreadable" or run.kind != "passes" else str(run.cells)
        rows.append((name, run.state, cells, run.why or _what(run)))
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, state, cells, models in rows:
        yield f"{name:{wide[0]}}  {state:{wide[1]}}  {cells:>{wide[2]}}  {models}"


def _what(run: RunSummary) -> str:
    """The models, or that it is a characterisation or a table."""
    if run.kind == "kernels":
        kinds: dict[str, int] = {}
        for what, rows in run.kernels.items():
            kind = what.partition(" ")[0]
            kinds[kind] = kinds.get(kind, 0) + rows
        return "kernels: " + ", ".join(f"{rows} {kind}" for kind, rows in kinds.items())
    if run.kind == "hardware":
        return f"hardware, {run.measurements} measurement{'' if run.measurements == 1 else 's'}"
    return ", ".join(run.models)


def show(
    run: Annotated[str, typer.Argument(help="A run's folder, the end of its name, or 'last'.")],
    hardware: Annotated[
        Path | None,
        typer.Option(help="Price the passes with this spec.json, as one calibrated later, not the run's own."),
    ] = None,
    results: Results = Path("results"),
    as_json: AsJson = False,
) -> None:
    """Print a run again: its passes, the device's figures, or its table of kernels."""
    folder = find_run(run, results)
    content = folder.content
    if hardware is not None and content != "passes":
        raise RequestError(f"--hardware prices passes, and {folder.path} has none; leave it out")
    if content == "kernels":
        _show_kernels(folder, as_json)
    elif content == "hardware":
        _show_hardware(folder, as_json)
    else:
        _show_passes(folder, hardware, as_json)


def _show_passes(folder: RunFolder, hardware: Path | None, as_json: bool) -> None:
    from calibrate.passes.reports import document, load, load_spec
    from calibrate.report.run import run_document
    from calibrate.report.terminal import render

    spec = load_spec(folder) if hardware is None else measured_spec(hardware, folder.run.environment)
    reports, failed = load(folder, spec)
    if as_json:
        print_json(document(folder, reports, failed))
    else:
        render(run_document(reports, folder.run, spec, failed), console())


def _show_kernels(folder: RunFolder, as_json: bool) -> None:
    from calibrate.report.json import kernels_json
    from calibrate.report.kernels import kernels_document
    from calibrate.report.terminal import render
    from profiler.record.kernel_table import read_kernels

    folder.require_whole()
    kernels = read_kernels(folder.path)
    if as_json:
        print_json(kernels_json(folder, kernels))
    else:
        render(kernels_document(folder, kernels), console())


def _show_hardware(folder: RunFolder, as_json: bool) -> None:
    from calibrate.report.device import device_document
    from calibrate.report.json import device_json
    from calibrate.report.terminal import render
    from profiler.record.hardware_table import read_measurements

    folder.require_whole()
    measurements = read_measurements(folder.path)
    kept = folder.read_spec()
    spec = kept or _so_far(folder, measurements)
    if as_json:
        print_json(device_json(folder.path / "spec.json" if kept else None, spec, measurements, folder.run))
    else:
        render(device_document(spec, measurements, folder.run), console())


def _so_far(folder: RunFolder, measurements: list[Measurement]) -> HardwareSpec:
    """The figures of a characterisation that has not come to its end; fits and peaks are made then."""
    from calibrate.device.figures import characteristics, with_datasheet

    machine = folder.run.environment
    device = find_device(machine.device) or HardwareSpec(name=machine.device, kind=spec_kind(machine.device_kind))
    threads = machine.threads if machine.device_kind == "cpu" else None
    figures = with_datasheet(characteristics(measurements, threads), device.datasheet)
    return device.model_copy(update={"characteristics": figures, "uuid": machine.device_uuid})
