"""`list` and `show`: the runs under a results folder, and one of them; `models` and `devices`: what has a name here.

They need neither the device nor torch.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from calibrate.report.document import printable
from profiler.cli import output
from profiler.cli.options import AsJson, Csv, Results, measured_spec
from profiler.cli.suite_report import show_suites
from profiler.record.files import require_separate
from profiler.record.folder import RunFolder, RunSummary, find_run, list_runs
from profiler.record.run import RequestError
from roofline.hardware.load import device_names, load_device
from roofline.units import UNKNOWN, magnitude

LIST_EXAMPLE = "Example:  python -m profiler list --results results"
MODELS_EXAMPLE = "Example:  python -m profiler models"
DEVICES_EXAMPLE = "Example:  python -m profiler devices --json"
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
        output.say(f"no runs under {results}; make one with: python -m profiler run")


def _lines(runs: list[RunSummary]) -> Iterator[str]:
    """Columns of even width that never wrap, so that a name can be copied, or cut out by other programs."""
    rows = [("run", "state", "verdict", "cells", "models")]
    for run in runs:
        name = f"{run.path.parent.name}/{run.path.name}"
        cells = "–" if run.state == "unreadable" or run.kind != "passes" else str(run.cells)
        rows.append((printable(name), run.state, _verdict(run), cells, printable(run.why or _what(run))))
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, state, verdict, cells, models in rows:
        yield f"{name:{wide[0]}}  {state:{wide[1]}}  {verdict:{wide[2]}}  {cells:>{wide[3]}}  {models}"


WORST_FIRST = ("invalid", "failed", "inconclusive")
"""Verdicts of passes that cannot be relied on."""


def _verdict(run: RunSummary) -> str:
    """The worst verdict of a run's cells with their number, "done" where all can be relied on, "–" where none is noted:
    `show` judges the passes of older runs."""
    worst = next((verdict for verdict in WORST_FIRST if run.verdicts.get(verdict)), None)
    if worst is None:
        return "done" if run.verdicts else UNKNOWN
    return f"{run.verdicts[worst]} {worst}"


def _columns(rows: list[tuple[str, ...]]) -> Iterator[str]:
    """Lines of columns of even width, the first one to the left, numbers to the right."""
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = (f"{cell:>{width}}" for cell, width in zip(others, wide[1:], strict=True))
        yield f"{first:{wide[0]}}  {'  '.join(cells)}".rstrip()


def models(as_json: AsJson = False) -> None:
    """List the models of the catalogue.

    They need no download to be priced.
    """
    from profiler.models.catalogue import catalogue

    known = catalogue()
    if as_json:
        entries = [{"name": name, "repo": entry.repo, "parameters": entry.parameters} for name, entry in known.items()]
        output.print_json({"models": entries})
        return
    rows = [(name, f"{entry.parameters / 1e9:.2f} G", entry.repo) for name, entry in known.items()]
    for line in _columns([("model", "parameters", "repository"), *rows]):
        print(line)


def devices(as_json: AsJson = False) -> None:
    """List the devices whose datasheets are known.

    Each has its rate of 16-bit matrix products, its memory and its bandwidth.
    """
    rows: list[tuple[str, ...]] = []
    entries: list[dict[str, object]] = []
    for name in device_names():
        sheet = load_device(name).datasheet
        if sheet is None:
            continue
        memory, rates = sheet.levels[-1], {dtype: figure.value for dtype, figure in sheet.matrix.items()}
        half = rates.get("bfloat16") or rates.get("float16")
        bytes_per_s = memory.bandwidth.value
        entries.append(
            {
                "name": name,
                "matrix_flops_per_s": rates,
                "memory_bytes": memory.capacity_bytes,
                "memory_bytes_per_s": bytes_per_s,
            }
        )
        rows.append((name, magnitude(half), f"{memory.capacity_bytes / 1e9:.0f} GB", f"{bytes_per_s / 1e9:,.0f} GB/s"))
    if as_json:
        output.print_json({"devices": entries})
        return
    for line in _columns([("device", "16-bit FLOP/s", "memory", "bandwidth"), *rows]):
        print(line)


def _what(run: RunSummary) -> str:
    """The last column: the models of a run, or what else it holds."""
    if run.kind == "kernels":
        kinds: dict[str, int] = {}
        for what, rows in run.kernels.items():
            kind = what.partition(" ")[0]
            kinds[kind] = kinds.get(kind, 0) + rows
        return "kernels: " + ", ".join(f"{rows} {kind}" for kind, rows in kinds.items())
    if run.kind == "suite":
        return f"serving kernels, {run.measurements} result{'' if run.measurements == 1 else 's'}"
    if run.kind == "hardware":
        return f"hardware, {run.measurements} measurement{'' if run.measurements == 1 else 's'}"
    return ", ".join(run.models)


def show(
    run: Annotated[str, Argument(metavar="RUN", help="A run's folder, the end of its name, or 'last'.")],
    hardware: Annotated[
        str | None, Option(help="Predict with these figures instead of the run's own: a spec.json, a run, or 'last'.")
    ] = None,
    results: Results = Path("results"),
    csv: Csv = None,
    as_json: AsJson = False,
) -> None:
    """Print a run again: its passes, figures or kernels."""
    folder = find_run(run, results)
    require_separate({"--csv": csv}, [path for path in folder.path.rglob("*") if path.is_file()])
    content = folder.content
    if hardware is not None and content != "passes":
        raise RequestError(f"--hardware predicts passes, and {folder.path} has none; leave it out")
    if content == "kernels":
        show_kernels(folder, as_json, csv=csv)
    elif content == "hardware":
        _show_hardware(folder, as_json, csv)
    elif content == "suite":
        show_suites([folder], as_json, csv)
    else:
        _show_passes(folder, hardware, results, as_json, csv)


def _show_passes(folder: RunFolder, hardware: str | None, results: Path, as_json: bool, csv: Path | None) -> None:
    from calibrate.passes.reports import document, load, load_spec
    from calibrate.report.run import run_document
    from profiler.cli.run import answers_of

    spec = load_spec(folder) if hardware is None else measured_spec(hardware, folder.run.environment, results)
    reports, failed = load(folder, spec)
    if csv is not None:
        from calibrate.report.run_csv import write_passes

        write_passes(csv, reports, failed)
    answered, told = answers_of(folder, reports, failed, spec)
    output.show(
        as_json,
        lambda: document(folder, reports, failed) | told,
        lambda: run_document(reports, folder.run, spec, failed, answers=answered),
    )


def show_kernels(folder: RunFolder, as_json: bool, kept: Path | None = None, csv: Path | None = None) -> None:
    """Print a run's table of kernels, and where it is `kept`; write it as CSV too."""
    from calibrate.report.json import kernels_json
    from calibrate.report.kernels import kernels_document
    from profiler.record.kernel_table import read_kernels

    folder.require_whole()
    kernels = read_kernels(folder.path)
    if csv is not None:
        from calibrate.report.run_csv import write_kernels

        write_kernels(csv, kernels)
    output.show(as_json, lambda: kernels_json(folder, kernels), lambda: kernels_document(folder, kernels), kept)


def _show_hardware(folder: RunFolder, as_json: bool, csv: Path | None) -> None:
    from calibrate.report.device import device_document
    from calibrate.report.json import device_json
    from calibrate.report.runs import unfinished_spec
    from profiler.record.hardware_table import read_measurements

    folder.require_whole()
    measurements = read_measurements(folder.path)
    kept = folder.read_spec()
    spec = kept or unfinished_spec(folder, measurements)
    figures = device_json(folder.path / "spec.json" if kept else None, spec, measurements, folder.run)
    if csv is not None:
        from calibrate.report.run_csv import write_figures

        write_figures(csv, figures["figures"])
    output.show(
        as_json,
        lambda: figures,
        lambda: device_document(spec, measurements, folder.run),
    )
