"""The report of a run: the device and, for each pass, where its time goes, its layers and whether its sums close."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from calibrate.passes.pass_report import PassReport
from calibrate.passes.replicates import MIDDLE
from calibrate.passes.reports import MeasuredPass
from calibrate.report import document
from calibrate.report import run_rows as rows
from calibrate.report.depth import depth_sections
from calibrate.report.document import (
    Cell,
    Column,
    Document,
    Facts,
    Figure,
    Lines,
    Part,
    Section,
    Text,
    chart,
    figure,
    table,
)
from calibrate.report.run_rows import TermRow, meaning
from calibrate.report.run_tables import compiled_kernels, error, half, layer_tables, layer_terms, peak_parts
from calibrate.report.titles import cell_title, title
from profiler.record.run import CellResult, Run
from roofline import units
from roofline.hardware.spec import HardwareSpec
from roofline.units import UNKNOWN, dtype, percent, plus_minus, seconds, size

if TYPE_CHECKING:
    from calibrate.scenarios.scenario import Answer

WORDS = {
    "pass": "b: sequences, q: new tokens of each, ctx: cached tokens of each",
    "layer kind": "the operations of one kind under one module path; * stands for the index of a repeated layer",
    "×": "executions in the whole model",
    "time": "device time of one pass, all executions; the rows add up to the busy time",
    "wall": "time of a pass without the profiler",
    "busy": "time in which the device had work",
    "share": "part of the wall time",
    "±": "half the 90 % interval over the rounds (of a prediction, by the laws): in the waterfall a time, else a share",
    "ideal": "time of the fused graph at the best peaks that are known",
    "predicted": "time of the graph as executed, by calibrated laws or, without them, at achieved peaks",
    "efficiency": "ideal ÷ measured; ! marks one above 1: a wrong count, a wrong peak or a warm cache",
    "bound": "what the roofline of the executed graph waits for: matrix or vector units, a level of memory",
    "per repeat": "median of one repeated layer ± half the 5–95 % range over them",
    "datasheet, achieved": "the vendor's peak, and the peak measured on this device; spec.json names their sources",
    **{rows.label(term): rows.MEANING[term] for term in rows.TERMS if term != "ideal"},
}

ABOVE_ONE = "efficiency above 1"
"""Begins the footnote of the mark "!"; a report whose own warnings have it does not get a second one."""


def run_document(
    reports: Sequence[PassReport],
    run: Run,
    spec: HardwareSpec,
    failed: Sequence[CellResult] = (),
    measured: Sequence[MeasuredPass] = (),
    first: int = 0,
    answers: "Sequence[Answer]" = (),
) -> Document:
    """The report of a whole run; with `answers` of scenarios, a terminal has these and no passes one by one.

    `measured`: the operations of each report, for the figures of a page. `first`: number of the first pass in its page.
    """
    warned = (Text(note, "warning") for note in run.environment.notes)
    file = Text(f"Device file: {spec.name}", "faint", views=document.FILES)
    of: Sequence[MeasuredPass | None] = measured or [None] * len(reports)
    one_by_one = document.FILES if answers else document.EVERYWHERE
    passes = [replace(_pass(first + i, report, run, spec, of[i]), views=one_by_one) for i, report in enumerate(reports)]
    scenarios: Sequence[Section] = ()
    if answers:
        from calibrate.report.scenarios import scenario_sections

        scenarios = scenario_sections(answers)
    absent = f"{_count(len(failed), 'pass', 'passes')} gave no result; the reasons stand under “No result”"
    parts: list[Part] = [
        Text("" if reports else "No pass has been measured in this run."),
        Text(absent if failed else "", "warning"),
        Text(soundness(reports), "strong" if all(r.status == "done" for r in reports) else "bad", document.FILES),
        Text(about(reports, run), views=document.FILES),
        *(replace(section, views=document.FILES) for section in scenarios),
        replace(_summary(reports, run, first), views=document.FILES),
        Section("Device", (Facts(environment(run)), *warned, Section("Peaks", (file, *peak_parts(spec))))),
        *passes,
        Section("No result", (table(_FAILED, failed),)),
        Section("Words", (Facts(tuple(WORDS.items()) if reports else (), "faint"),), views=one_by_one),
        replace(_summary(reports, run, first), views=document.TERMINAL if len(reports) > 1 else frozenset()),
        *(replace(section, views=document.TERMINAL) for section in scenarios),
    ]
    return Document(f"{run.environment.device}: {run.name}", parts)


def verdict(report: PassReport) -> str:
    """ "inconclusive: single passes vary by ± 40 %"; "" for a sound pass."""
    return "" if report.status == "done" else f"{report.status}: {report.reason or 'no reason was recorded'}"


def soundness(reports: Sequence[PassReport]) -> str:
    """The verdict on all passes, in a sentence; "" without passes."""
    if not reports:
        return ""
    doubtful = [report for report in reports if report.status != "done"]
    if not doubtful:
        return "The only pass is sound" if len(reports) == 1 else f"All {len(reports)} passes are sound"
    kinds = ", ".join(f"{sum(r.status == s for r in doubtful)} {s}" for s in sorted({r.status for r in doubtful}))
    return f"{len(doubtful)} of {_count(len(reports), 'pass', 'passes')} cannot be relied on: {kinds}"


def about(reports: Sequence[PassReport], run: Run) -> str:
    """Say what was measured on what, and when, in a sentence."""
    machine = run.environment
    models = ", ".join(dict.fromkeys(report.model for report in reports))
    dtypes = ", ".join(dict.fromkeys(dtype(report.workload.dtype) for report in reports))
    host = f", {_count(machine.threads, 'thread')}" if machine.is_host and machine.threads else ""
    torch = f", torch {machine.versions['torch']}" if "torch" in machine.versions else ""
    what = f"{models} in {dtypes}" if reports else "Nothing"
    return f"{what} measured on {machine.device}{host}{torch}, {run.started[:10]}"


def headline(report: PassReport) -> str:
    """Times of the pass and, where it is sound, the time that its device work could take, in a line."""
    wall = _with_half(report.wall_s, report.wall_s_low, report.wall_s_high, "wall")
    now = f"{wall}, {_with_half(report.busy_s, report.busy_s_low, report.busy_s_high, 'busy')}"
    if report.status != "done":
        return now
    ideal_s, unknown = rows.ideal_total_s(report), f"{now}; how fast it could be is unknown:"
    if report.ideal_peaks is None:
        return f"{unknown} no peaks of this device are known"
    if ideal_s is None:
        return f"{unknown} the {report.ideal_peaks} peaks lack one it needs"
    if ideal_s > report.busy_s:
        there = f"{seconds(ideal_s)} at {report.ideal_peaks} peaks"
        return f"{now}; its device work would take {there}, above the measured time: the peaks are too low"
    less = f" ({report.busy_s / ideal_s:.2f}× less)" if ideal_s > 0 else ""
    return f"{now}; its device work could take {seconds(ideal_s)} at {report.ideal_peaks} peaks{less}"


def ideal_uses(report: PassReport, spec: HardwareSpec) -> str:
    """The meaning of `ideal` in this pass."""
    if report.ideal_peaks is None:
        return "ideal: – (no peaks of this device are known)"
    if report.ideal_peaks == "datasheet":
        return "ideal: the fused graph at datasheet peaks"
    why = "no datasheet describes this device" if spec.datasheet is None else "the datasheet lacks a peak it needs"
    return f"ideal: the fused graph at {report.ideal_peaks} peaks: {why}"


def predicted(report: PassReport) -> str:
    """The predicted times, each with its signed error."""
    if report.prediction is None:
        return "predicted: – (no peaks of this device are known)"
    calibrated = f"calibrated laws at the machine's speed of {'this run' if report.level else 'the calibration'}"
    how = {"executed": "the graph as executed at achieved peaks, not calibrated", "calibrated": calibrated}
    ends = report.predicted_busy_s_low, report.predicted_busy_s_high
    busy = _against(report.predicted_busy_s, ends, report.busy_s)
    ends = report.predicted_wall_s_low, report.predicted_wall_s_high
    wall = _against(report.predicted_wall_s, ends, report.wall_s)
    return f"predicted from {how.get(report.prediction, report.prediction)}: busy {busy}, wall {wall}"


def level(report: PassReport) -> tuple[str, ...]:
    """Lines on the machine beside the pass against its calibration; nothing where that is not known."""
    if not report.level:
        return ()
    probes = [f"{probe} {ratio.ratio:.2f}× ({ratio.low:.2f}–{ratio.high:.2f})" for probe, ratio in report.level.items()]
    measured = f"reference probes: time beside this pass ÷ time during calibration: {', '.join(probes)}"
    calibrated = report.predicted_busy_calibrated_s, report.predicted_wall_calibrated_s
    if calibrated == (report.predicted_busy_s, report.predicted_wall_s):
        return (measured,)
    busy, wall = map(seconds, calibrated)
    return measured, f"at the machine's speed of the calibration the prediction is {busy} busy, {wall} wall"


def compared(report: PassReport) -> str:
    """The statistics behind measured and predicted figures, which are alike."""
    measured = f"the {MIDDLE} of the passes"
    if report.rounds is not None and report.passes is not None:
        passes = _count(report.passes[0] // report.rounds, "pass", "passes")
        measured = f"the {MIDDLE} of {_count(report.rounds, 'round')}, each the mean of {passes}"
    if report.rounds == 1:
        measured += ", without an interval"
    how = {
        "calibrated": "the laws are fitted to kernels summarised in the same way",
        "executed": "achieved peaks are those of the fastest tenth of their samples",
    }
    return "; ".join(filter(None, (f"measured times are {measured}", how.get(report.prediction or ""))))


def warnings(report: PassReport) -> tuple[str, ...]:
    """Sentences to know before using the figures of a pass; the most serious first."""
    sentences = [f"the report does not close: {sentence}" for sentence in rows.unclosed(report)]
    sentences += [f"! {words}" if words.startswith(ABOVE_ONE) else words for words in report.warnings]
    marked = rows.above_one(report)
    if marked and not any(words.startswith(ABOVE_ONE) for words in report.warnings):
        worst = max(marked, key=lambda row: row.efficiency or 0)
        sentences.append(
            f"! {ABOVE_ONE} in {len(marked)} of {len(report.layers)} layer kinds (most: {worst.label} "
            f"{worst.kind}, {percent(worst.efficiency)}): a wrong count, a wrong peak or a warm cache"
        )
    if above := [row for row in rows.layer_rows(report) if row.ideal_above_predicted]:
        worst = max(above, key=lambda row: (row.ideal_s or 0.0) - (row.predicted_s or 0.0))
        sentences.append(
            f"the ideal time is above the predicted one in {len(above)} of {len(report.layers)} layer kinds (most: "
            f"{worst.label} {worst.kind}): kernels in caches beat the {report.ideal_peaks} peaks, or a law is off there"
        )
    return tuple(sentences)


def notes(report: PassReport) -> tuple[str, ...]:
    """Sentences on how the figures were taken; nothing alarming."""
    passes = f"{report.passes[0]} unprofiled, {report.passes[1]} profiled" if report.passes else UNKNOWN
    sentences = [f"device times: {report.clock or UNKNOWN}; caches: {report.cache_state or UNKNOWN}; passes: {passes}"]
    if report.scaled_from_layers is not None:
        part, whole = report.scaled_from_layers
        sentences.append(f"measured {part} of {whole} repeated layers; times are scaled up to {whole}")
    half = f"± {percent(report.noise)} (± {seconds(report.noise * report.wall_s)})"
    sentences.append(f"single passes vary by {half}: half the 5–95 % range of their wall times")
    if report.peak_memory_bytes is not None:
        sentences.append(f"peak memory {size(report.peak_memory_bytes)}")
    ran = ", ".join(f"{part} {implementation}" for part, implementation in report.ran.items())
    sentences.append(f"implementations that ran: {ran or UNKNOWN}")
    return tuple(sentences)


def environment(run: Run) -> tuple[tuple[str, str], ...]:
    """The machine and its software."""
    machine = run.environment
    cuda = machine.device_kind != "cpu"
    spent = ", ".join(f"{part} {units.duration(spent_s)}" for part, spent_s in run.spent_s.items())
    estimated = f" (estimated: {units.duration(sum(run.estimated_s.values()))})" if run.estimated_s else ""
    facts = {
        "started": run.started + ("" if run.finished else " (not finished)"),
        "device": f"{machine.device} ({machine.device_kind}), {size(machine.memory_bytes)}",
        "UUID": (machine.device_uuid or UNKNOWN) if cuda else "",
        "host": f"{machine.hostname}, {machine.cores} cores, {machine.threads} threads, {machine.os}",
        "versions": ", ".join([f"python {machine.python}", *(f"{name} {v}" for name, v in machine.versions.items())]),
        "command": " ".join(run.command),
        "took": f"{units.duration(sum(run.spent_s.values()))}{estimated}: {spent}" if spent else "",
    }
    return tuple((name, words) for name, words in facts.items() if words)


_FAILED: tuple[Column[CellResult], ...] = (
    Column("pass", lambda result: cell_title(result.cell), wraps=True),
    Column("status", lambda result: Cell(result.status, bad=True), words=True),
    Column("reason", lambda result: result.reason or "no reason was recorded", wraps=True),
)

_HOLDS: dict[bool | None, str] = {None: UNKNOWN, True: "holds", False: "DOES NOT HOLD"}

_CHECKS: tuple[Column[rows.Check], ...] = (
    Column("check", lambda check: check.name, words=True),
    Column("measured", lambda check: check.value),
    Column("", lambda check: Cell(_HOLDS[check.holds], bad=check.holds is False), words=True),
    Column("required", lambda check: check.required, words=True, drop=1),
)


def _summary(reports: Sequence[PassReport], run: Run, first: int) -> Section:
    """All passes in a table: first in a file, last on a terminal, where the top has scrolled away."""

    def every_check(report: PassReport) -> Cell:
        closes = rows.closes(report, run.environment.device_kind)
        return Cell(_HOLDS[closes], bad=not closes)

    columns: tuple[Column[tuple[int, PassReport]], ...] = (
        Column("pass", lambda i: Cell(title(i[1]), target=f"pass-{i[0]}"), wraps=True),
        Column("status", lambda i: Cell(i[1].status, bad=i[1].status != "done", hover=verdict(i[1])), words=True),
        Column("wall", lambda i: figure(i[1].wall_s), strong=True),
        Column("±", lambda i: half(i[1].wall_s_low, i[1].wall_s_high, i[1].wall_s), drop=5),
        Column("busy", lambda i: figure(i[1].busy_s), drop=4),
        Column("ideal", lambda i: figure(rows.ideal_total_s(i[1])), drop=3),
        Column("at peaks", lambda i: i[1].ideal_peaks or UNKNOWN, words=True, drop=7),
        Column("predicted busy", lambda i: figure(i[1].predicted_busy_s), drop=6),
        Column("predicted wall", lambda i: figure(i[1].predicted_wall_s), drop=2),
        Column("error", lambda i: error(i[1].predicted_wall_s, i[1].wall_s), drop=1),
        Column("every check", lambda i: every_check(i[1]), words=True, drop=8),
    )
    return Section("Passes", (table(columns, enumerate(reports, first)),))


def _pass(i: int, report: PassReport, run: Run, spec: HardwareSpec, measured: MeasuredPass | None) -> Section:
    how = (ideal_uses(report, spec), predicted(report), *level(report), compared(report))
    checks = rows.closure(report, run.environment.device_kind)
    implied = (Text(f"{check.name}: {check.implies}", "warning") for check in checks if check.implies)
    all_rows = rows.layer_rows(report)
    layers = layer_tables(report, measured)
    differences = f"{_count(len(report.differences), 'difference')} between the planned graph and what the device ran"
    inactive = f"{_count(len(report.inactive), 'parameter')} that this phase does not read"
    waterfall = Figure(f"waterfall-{i}", chart("pass_plots.waterfall_chart", report))
    where: tuple[Part, ...] = (waterfall, _waterfall(report), table(_CHECKS, checks), *implied)
    lost = sum(row.flops <= 0 or row.bytes <= 0 or row.time_s <= 0 for row in all_rows)
    absent = f"; {lost} without FLOPs or bytes (copies, say) have no place on it" if lost else ""
    point = f"A point is a layer kind, its area its share of the wall, a red rim an efficiency above 1{absent}."
    roofline = Figure(f"roofline-{i}", chart("pass_plots.roofline_chart", report, spec), point)
    shown = f"The {rows.BARS} slowest of {len(all_rows)} layer kinds. " if len(all_rows) > rows.BARS else ""
    beside = f"{shown}Beside a bar: its efficiency, ideal ÷ measured."
    bars = Figure(f"layers-{i}", chart("pass_plots.layer_chart", report), beside)
    parts: tuple[Part, ...] = (
        Text(verdict(report), "bad"),
        Text(headline(report), "strong"),
        *(Text(sentence, "warning") for sentence in warnings(report)),
        Text(uncounted(report.uncounted, report.uncounted_share), "warning"),
        Lines(how),
        Lines(notes(report), tone="faint"),
        Section("Where the wall time goes", where, pair=True),
        Section("Roofline", (roofline,)),
        Section("Layer kinds", (bars, *layers)),
        *(depth_sections(i, measured, spec) if measured else ()),
        compiled_kernels(report),
        Section("Where the time of each layer kind goes", (layer_terms(report),), folded=True, views=document.FILES),
        Lines(report.differences, differences, "faint"),
        Lines(report.inactive, inactive, "faint"),
    )
    return Section(title(report), parts, name=f"pass-{i}")


def uncounted(names: Sequence[str], share: float) -> str:
    """ "uncounted: foo, 3 % of the bytes moved: ..."; "" where every operator has a FLOP count."""
    if not names:
        return ""
    few = ", ".join(map(document.printable, names[:8])) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return f"uncounted: {few} ({percent(share)} of the bytes moved); FLOPs not known, priced by bytes alone"


def _waterfall(report: PassReport) -> document.Table:
    terms = rows.pass_terms(report)
    half_s = rows.half_width(report.wall_s_low, report.wall_s_high)
    wall = TermRow(terms=("wall",), time_s=report.wall_s, start_s=0.0, share=1.0, half_s=half_s)
    ends = [row.start_s + (row.time_s or 0.0) for row in terms]
    low, high = min([0.0, *ends]), max([report.wall_s, *ends])

    def bar(row: TermRow) -> Cell:
        start, end = row.start_s, row.start_s + (row.time_s or 0.0)
        return Cell("", span=((start - low) / (high - low), (end - low) / (high - low)) if high > low else None)

    columns: tuple[Column[TermRow], ...] = (
        Column("waterfall", lambda row: row.label, words=True),
        Column("time", lambda row: Cell(seconds(row.time_s, signed=row is not wall), row.time_s), strong=True),
        Column("±", lambda row: Cell(seconds(row.half_s) if row.half_s is not None else "", row.half_s), optional=True),
        Column("of wall", lambda row: Cell(percent(row.share, signed=row is not wall), row.share)),
        Column("", bar, bar=True),
        Column("what it is", meaning, wraps=True, views=document.FILES),
    )
    return table(columns, terms, wall)


def _with_half(value: float, low: float | None, high: float | None, what: str = "") -> str:
    """ "82.1 ms wall ± 1.2 %"; without "±" where the interval is not known."""
    half = plus_minus(low, high, value)
    return " ".join(filter(None, (seconds(value), what, "" if half == UNKNOWN else f"± {half}")))


def _count(count: int, one: str, many: str = "") -> str:
    return f"{count} {one}" if count == 1 else f"{count} {many or one + 's'}"


def _against(value: float | None, ends: tuple[float | None, float | None], truth: float) -> str:
    if value is None or truth <= 0:
        return UNKNOWN
    return f"{_with_half(value, *ends)} (error {percent(value / truth - 1, signed=True)})"
