"""`show`: one run on the terminal, or as JSON; it needs neither the device nor torch."""

from pathlib import Path
from typing import Annotated

import typer

from profiler.cli.measured import measured_spec
from profiler.cli.output import console, print_json
from profiler.record.errors import RequestError
from profiler.record.index import find_run, is_characterisation, is_table
from profiler.record.measurement import Measurement
from profiler.record.store import RunFolder
from roofline.hardware import HardwareSpec, find_device

EXAMPLE = "Example:  python -m profiler show last"


def show(
    run: Annotated[str, typer.Argument(help="A run's folder, the end of its name, or 'last'.")],
    hardware: Annotated[
        Path | None, typer.Option(help="Price the run's passes with this spec.json, calibrated later, not its own.")
    ] = None,
    results: Annotated[Path, typer.Option(help="Folder that holds the runs.")] = Path("results"),
    as_json: Annotated[bool, typer.Option("--json", help="Only JSON on stdout.")] = False,
) -> None:
    """A run as `run`, `hardware` or `import` printed it: layers and waterfalls, the device's figures, kernels."""
    folder = find_run(run, results)
    if hardware is not None and (is_table(folder) or is_characterisation(folder)):
        raise RequestError(f"--hardware prices passes, and {folder.path} has none; leave it out")
    if is_table(folder):
        _show_kernels(folder, as_json)
    elif is_characterisation(folder):
        _show_hardware(folder, as_json)
    else:
        _show_passes(folder, hardware, as_json)


def _show_passes(folder: RunFolder, hardware: Path | None, as_json: bool) -> None:
    from calibrate.report.run import run_document
    from calibrate.report.terminal import render
    from calibrate.reports import document, load, load_spec

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
    from profiler.record.kernels import read

    folder.require_whole()
    kernels = read(folder.path)
    if as_json:
        print_json(kernels_json(folder, kernels))
    else:
        render(kernels_document(folder, kernels), console())


def _show_hardware(folder: RunFolder, as_json: bool) -> None:
    from calibrate.report.device import device_document
    from calibrate.report.json import device_json
    from calibrate.report.terminal import render
    from profiler.record.hardware import read_measurements

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
    from profiler.microbench.figures import characteristics, with_datasheet

    machine = folder.run.environment
    device = find_device(machine.device) or HardwareSpec(name=machine.device, kind=machine.device_kind)
    threads = machine.threads if machine.device_kind == "cpu" else None
    figures = with_datasheet(characteristics(measurements, threads), device.datasheet)
    return device.model_copy(update={"characteristics": figures, "uuid": machine.device_uuid})
