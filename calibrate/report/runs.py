"""The document of any stored run, and of several side by side.

A run of another kind is a function and a row of `CONTENTS`. Example: ``report_document([find_run("last", results)])``
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from calibrate.device.figures import characteristics, with_datasheet
from calibrate.passes.pass_report import PassReport
from calibrate.passes.reports import load_measured, load_spec
from calibrate.regression.compare import compare
from calibrate.regression.sources import SOURCES, moved, side_of
from calibrate.report.comparison import comparison_document
from calibrate.report.device import device_document
from calibrate.report.document import Cell, Column, Document, Figure, Part, Section, Table, Text, chart, figure, table
from calibrate.report.kernels import kernels_document
from calibrate.report.residuals import with_calibration
from calibrate.report.run import run_document
from calibrate.report.run_tables import half
from calibrate.report.suite import suite_document
from calibrate.report.suite_rows import suite_rows
from calibrate.report.titles import title
from calibrate.scenarios.registry import answers
from profiler.record.folder import RunFolder
from profiler.record.measurement import Measurement
from profiler.record.run import RequestError
from roofline.hardware.load import find_device
from roofline.hardware.spec import HardwareSpec, spec_kind


@dataclass(frozen=True, eq=False)
class Reported:
    """One run with its document and the reports of its passes."""

    folder: RunFolder
    document: Document
    passes: Sequence[PassReport] = ()

    @property
    def name(self) -> str:
        return self.folder.path.name


def report_document(folders: Sequence[RunFolder]) -> Document:
    """The document of one run, or of several side by side. Raises RequestError for a run with nothing to show."""
    found: list[Reported] = []
    for folder in folders:
        folder.require_whole()
        found.append(CONTENTS[folder.content](folder, sum(len(one.passes) for one in found)))
    if len(found) == 1:
        return found[0].document
    runs = Section("Runs", (table(_RUNS, enumerate(found)),))
    parts: list[Part] = [_verdict(found), runs, *_beside(found)]
    parts += [part for other in found[1:] if (part := _compared(found[0], other)) is not None]
    parts += [
        Section(f"{one.name}: {one.document.title}", renamed(one.document.parts, f"run-{i}-"), name=f"run-{i}")
        for i, one in enumerate(found)
    ]
    return Document(f"{len(found)} runs: {', '.join(one.name for one in found)}", parts)


def unfinished_spec(folder: RunFolder, measurements: Sequence[Measurement]) -> HardwareSpec:
    """The figures that an unfinished run of `hardware` has so far, without fits and peaks."""
    machine = folder.run.environment
    device = find_device(machine.device) or HardwareSpec(name=machine.device, kind=spec_kind(machine.device_kind))
    threads = machine.threads if machine.device_kind == "cpu" else None
    figures = with_datasheet(characteristics(list(measurements), threads), device.datasheet)
    return device.model_copy(update={"characteristics": figures, "uuid": machine.device_uuid})


def _passes(folder: RunFolder, first: int) -> Reported:
    spec = load_spec(folder)
    reports, measured, failed = load_measured(folder, spec)
    if not reports:
        again = f"measure again with: python -m profiler run --resume {folder.path}"
        if failed:
            why = " ".join((failed[0].reason or "no reason was recorded").split())
            raise RequestError(f"no pass of {folder.path} gave a result ({why:.200}); {again}")
        raise RequestError(f"{folder.path} holds no samples yet; {again}")
    answered = answers(folder, reports, failed, spec) if folder.run.scenarios else ()
    document = run_document(reports, folder.run, spec, failed, measured, first, answered)
    return Reported(folder, with_calibration(document, folder, spec), reports)


def _hardware(folder: RunFolder, first: int) -> Reported:
    from profiler.record.hardware_table import read_measurements  # Arrow takes long to load

    measurements = read_measurements(folder.path)
    if not any(measurement.samples for measurement in measurements):
        raise RequestError(f"{folder.path} holds no samples; measure the device again: python -m profiler hardware")
    spec = folder.read_spec() or unfinished_spec(folder, measurements)
    return Reported(folder, with_calibration(device_document(spec, measurements, folder.run), folder, spec))


def _suite(folder: RunFolder, first: int) -> Reported:
    from profiler.record.suite_table import read_suite_results

    results, spec = read_suite_results(folder.path), folder.read_spec()
    if not results:
        raise RequestError(f"{folder.path} holds no samples; measure again: python -m profiler kernels")
    rows = suite_rows(results, spec, str(folder.run.options["device"]))
    return Reported(folder, suite_document(folder.run, rows, spec))


def _kernels(folder: RunFolder, first: int) -> Reported:
    from profiler.record.kernel_table import read_kernels

    kernels, spec = read_kernels(folder.path), folder.read_spec()
    if not len(kernels):
        raise RequestError(f"{folder.path} holds no kernels; import its table again: python -m profiler import --help")
    document = kernels_document(folder, kernels)
    return Reported(folder, document if spec is None else with_calibration(document, folder, spec))


CONTENTS: dict[str, Callable[[RunFolder, int], Reported]] = {
    "passes": _passes,
    "hardware": _hardware,
    "suite": _suite,
    "kernels": _kernels,
}
"""Content of a run's folder -> its document; the number is that of its first pass in the page."""


def renamed(parts: Sequence[Part], prefix: str) -> tuple[Part, ...]:
    """The parts with names that no other run of the page has."""
    return tuple(map(partial(_renamed, prefix=prefix), parts))


def _renamed(part: Part, prefix: str) -> Part:
    if isinstance(part, Section):
        return replace(part, name=part.name and prefix + part.name, parts=renamed(part.parts, prefix))
    if isinstance(part, Figure):
        return replace(part, name=prefix + part.name)
    if isinstance(part, Table):
        rows = [[replace(cell, target=cell.target and prefix + cell.target) for cell in row] for row in part.rows]
        return replace(part, rows=rows)
    return part


_RUNS: tuple[Column[tuple[int, Reported]], ...] = (
    Column("run", lambda of: Cell(of[1].name, target=f"run-{of[0]}"), words=True),
    Column("device", lambda of: of[1].folder.run.environment.device, words=True),
    Column("holds", lambda of: of[1].folder.content, words=True),
    Column("started", lambda of: of[1].folder.run.started[:16].replace("T", " "), words=True),
    Column("verdicts", lambda of: ", ".join(_verdicts(of[1])), words=True, optional=True),
    Column("versions", lambda of: ", ".join(f"{k} {v}" for k, v in of[1].folder.run.environment.versions.items()),
           wraps=True),
)  # fmt: skip


def _verdicts(one: Reported) -> list[str]:
    counts: dict[str, int] = {}
    for report in one.passes:
        counts[report.status] = counts.get(report.status, 0) + 1
    return [f"{count} {status}" for status, count in counts.items()]


def _verdict(found: Sequence[Reported]) -> Text:
    doubtful = sum(report.status != "done" for one in found for report in one.passes)
    passes = sum(len(one.passes) for one in found)
    devices = len({one.folder.run.environment.device for one in found})
    sound = "; all passes are sound" if passes else ""
    if doubtful:
        sound = f"; {doubtful} of {passes} passes cannot be relied on"
    words = f"{len(found)} runs on {devices} device{'s' if devices > 1 else ''}{sound}"
    return Text(words, "bad" if doubtful else "strong")


@dataclass(frozen=True)
class _Beside:
    """One pass in one run."""

    run: str
    report: PassReport
    first: PassReport
    """The same pass in the first run that has it."""
    target: str


def _beside(found: Sequence[Reported]) -> tuple[Section, ...]:
    """The passes of all runs under one another, each with its ratio to the first run that has it."""
    first: dict[str, PassReport] = {}
    rows: list[_Beside] = []
    number = 0
    for i, one in enumerate(found):
        for report in one.passes:
            rows.append(_Beside(one.name, report, first.setdefault(title(report), report), f"run-{i}-pass-{number}"))
            number += 1
    rows.sort(key=lambda row: list(first).index(title(row.report)))
    columns: tuple[Column[_Beside], ...] = (
        Column("pass", lambda row: Cell(title(row.report), target=row.target), words=True),
        Column("run", lambda row: row.run, words=True),
        Column("status", lambda row: Cell(row.report.status, bad=row.report.status != "done"), words=True),
        Column("wall", lambda row: figure(row.report.wall_s), strong=True),
        Column("±", lambda row: half(row.report.wall_s_low, row.report.wall_s_high, row.report.wall_s)),
        Column("ratio", lambda row: figure(row.report.wall_s / row.first.wall_s, lambda value: f"{value:.3f}×")),
        Column("busy", lambda row: figure(row.report.busy_s)),
        Column("ideal", lambda row: figure(row.report.rungs.ideal or row.report.rungs.achieved)),
        Column("predicted wall", lambda row: figure(row.report.predicted_wall_s)),
    )
    passes = [(one.name, one.folder.run.started, title(report), report) for one in found for report in one.passes]
    pictures = tuple(Figure(name, chart(f"comparison_plots.{name}", passes)) for name in ("walls", "over_time"))
    return (Section("Side by side", (*pictures, table(columns, rows))),) if rows else ()


def _compared(base: Reported, new: Reported) -> Section | None:
    """Show what got slower from the first run to another; None where they share nothing."""
    if base.folder.content != new.folder.content or base.folder.content not in SOURCES:
        return None
    before, after = side_of([base.folder]), side_of([new.folder])
    try:
        result = compare(before.side, after.side, allow=True)
    except RequestError:  # they share no row
        return None
    document = comparison_document(result, moved(before.passes, after.passes))
    return Section(document.title, renamed(document.parts, f"{new.name}-"))
