"""`list` and `show`: the runs under a results folder, and one of them on the terminal or as JSON.

They need neither the device nor torch.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from profiler.cli import output
from profiler.cli.options import AsJson, Results, measured_spec
from profiler.record.folder import RunFolder, RunSummary, find_run, list_runs
from profiler.record.measurement import Measurement
from profiler.record.run import RequestError
from roofline.hardware.load import find_device
from roofline.hardware.spec import HardwareSpec, spec_kind

LIST_EXAMPLE = "Example:  python -m profiler list --results results"
SHOW_EXAMPLE = "Example:  python -m profiler show last"


def list_(results: Results = Path("results"), as_json: AsJson = False) -> None:
    """List the runs under a results folder, the oldest first."""
    runs = list_runs(results)
    if as_json:
        output.print_json({"results": str(results), "runs": [run.model_dump(mode="json") for run in runs]})
    elif runs:
        for line in _lines(runs):
            print(line)
    else:
        print(f"no runs under {results}; make one with: python -m profiler run")


def _lines(runs: list[RunSummary]) -> Iterator[str]:
    """Columns of even width that never wrap, so that a name can be copied, or cut out by other programs."""
    rows = [("run", "state", "cells", "models")]
    for run in runs:
        name = f"{run.path.parent.name}/{run.path.name}"
        cells = "–" if run.state == "unreadable" or run.kind != "passes" else str(run.cells)
        rows.append((name, run.state, cells, run.why or _what(run)))
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, state, cells, models in rows:
        yield f"{name:{wide[0]}}  {state:{wide[1]}}  {cells:>{wide[2]}}  {models}"


def _what(run: RunSummary) -> str:
    """The last column: the models of a run, or what else it holds."""
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
    run: Annotated[str, Argument(metavar="RUN", help="A run's folder, the end of its name, or 'last'.")],
    hardware: Annotated[
        str | None, Option(help="Predict with these figures instead of the run's own: a spec.json, a run, or 'last'.")
    ] = None,
    results: Results = Path("results"),
    as_json: AsJson = False,
) -> None:
    """Print a run again: its passes, figures or kernels."""
    folder = find_run(run, results)
    content = folder.content
    if hardware is not None and content != "passes":
        raise RequestError(f"--hardware predicts passes, and {folder.path} has none; leave it out")
    if content == "kernels":
        show_kernels(folder, as_json)
    elif content == "hardware":
        _show_hardware(folder, as_json)
    else:
        _show_passes(folder, hardware, results, as_json)


def _show_passes(folder: RunFolder, hardware: str | None, results: Path, as_json: bool) -> None:
    from calibrate.passes.reports import document, load, load_spec
    from calibrate.report.run import run_document

    spec = load_spec(folder) if hardware is None else measured_spec(hardware, folder.run.environment, results)
    reports, failed = load(folder, spec)
    output.show(
        as_json, lambda: document(folder, reports, failed), lambda: run_document(reports, folder.run, spec, failed)
    )


def show_kernels(folder: RunFolder, as_json: bool, kept: Path | None = None) -> None:
    """Print a run's table of kernels, and where it is `kept`."""
    from calibrate.report.json import kernels_json
    from calibrate.report.kernels import kernels_document
    from profiler.record.kernel_table import read_kernels

    folder.require_whole()
    kernels = read_kernels(folder.path)
    output.show(as_json, lambda: kernels_json(folder, kernels), lambda: kernels_document(folder, kernels), kept)


def _show_hardware(folder: RunFolder, as_json: bool) -> None:
    from calibrate.report.device import device_document
    from calibrate.report.json import device_json
    from profiler.record.hardware_table import read_measurements

    folder.require_whole()
    measurements = read_measurements(folder.path)
    kept = folder.read_spec()
    spec = kept or _unfinished_spec(folder, measurements)
    path = folder.path / "spec.json" if kept else None
    output.show(
        as_json,
        lambda: device_json(path, spec, measurements, folder.run),
        lambda: device_document(spec, measurements, folder.run),
    )


def _unfinished_spec(folder: RunFolder, measurements: list[Measurement]) -> HardwareSpec:
    """The figures that an unfinished run of `hardware` has so far, without fits and peaks."""
    from calibrate.device.figures import characteristics, with_datasheet

    machine = folder.run.environment
    device = find_device(machine.device) or HardwareSpec(name=machine.device, kind=spec_kind(machine.device_kind))
    threads = machine.threads if machine.device_kind == "cpu" else None
    figures = with_datasheet(characteristics(measurements, threads), device.datasheet)
    return device.model_copy(update={"characteristics": figures, "uuid": machine.device_uuid})
