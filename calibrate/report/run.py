"""The report of a run: the device and, for each pass, where its time goes, its layers and whether its sums close."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from calibrate.passes.pass_report import FusedKernel, PassReport
from calibrate.passes.replicates import MIDDLE
from calibrate.report import document
from calibrate.report import run_rows as rows
from calibrate.report.document import Cell, Column, Document, Facts, Figure, Lines, Part, Section, Text, figure, table
from calibrate.report.peaks import peak_parts
from calibrate.report.run_rows import LayerRow, TermRow, meaning
from calibrate.report.scenarios import scenario_sections
from calibrate.report.titles import cell_title, title
from calibrate.scenarios.scenario import Answer
from profiler.record.run import CellResult, Run
from roofline import units
from roofline.hardware.spec import HardwareSpec
from roofline.units import UNKNOWN, magnitude, number, percent, plus_minus, ratio, seconds, size

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
MOST_KERNELS = 20
"""Compiled kernels that a terminal shows at most."""


def run_document(
    reports: Sequence[PassReport],
    run: Run,
    spec: HardwareSpec,
    failed: Sequence[CellResult] = (),
    answers: Sequence[Answer] = (),
) -> Document:
    """The report of a whole run; with `answers` of scenarios, a terminal has these and no passes one by one."""
    warned = (Text(note, "warning") for note in run.environment.notes)
    file = Text(f"Device file: {spec.name}", "faint", views=document.FILES)
    one_by_one = document.FILES if answers else document.EVERYWHERE
    passes = [replace(_pass(i, report, run, spec), views=one_by_one) for i, report in enumerate(reports)]
    scenarios = scenario_sections(answers)
    absent = f"{_count(len(failed), 'pass', 'passes')} gave no result; the reasons stand under “No result”"
    parts: list[Part] = [
        Text("" if reports else "No pass has been measured in this run."),
        Text(absent if failed else "", "warning"),
        *(replace(section, views=document.FILES) for section in scenarios),
        replace(_summary(reports, run), views=document.FILES),
        Section("Device", (Facts(environment(run)), *warned, Section("Peaks", (file, *peak_parts(spec))))),
        *passes,
        Section("No result", (table(_FAILED, failed),)),
        Section("Words", (Facts(tuple(WORDS.items()) if reports else (), "faint"),), views=one_by_one),
        replace(_summary(reports, run), views=document.TERMINAL if len(reports) > 1 else frozenset()),
        *(replace(section, views=document.TERMINAL) for section in scenarios),
    ]
    return Document(f"{run.environment.device}: {run.name}", parts)


def verdict(report: PassReport) -> str:
    """ "inconclusive: single passes vary by ± 40 %"; "" for a sound pass."""
    return "" if report.status == "done" else f"{report.status}: {report.reason or 'no reason was recorded'}"


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


def _repeat(row: LayerRow) -> Cell:
    if row.median_s is None:
        return Cell("")
    spread = "" if row.spread_s is None or not row.median_s else f" ± {percent(row.spread_s / row.median_s)}"
    return Cell(seconds(row.median_s) + spread, row.median_s)


def _half(low: float | None, high: float | None, of: float | None) -> Cell:
    return Cell(plus_minus(low, high, of or 0.0), rows.half_width(low, high))


def _error(predicted_s: float | None, measured_s: float | None) -> Cell:
    """Predicted less measured time, as a share of the measured one."""
    if predicted_s is None or not measured_s:
        return Cell(UNKNOWN)
    error = predicted_s / measured_s - 1
    return Cell(percent(error, signed=True), error)


LAYER_COLUMNS: tuple[Column[LayerRow], ...] = (
    Column("layer kind", lambda row: row.label, code=True),
    Column("kind", lambda row: row.kind, words=True, drop=4),
    Column("×", lambda row: figure(row.count, number), drop=11),
    Column("time", lambda row: figure(row.time_s), strong=True, drop=1),
    Column("±", lambda row: _half(row.time_s_low, row.time_s_high, row.time_s), drop=6),
    Column("share", lambda row: Cell(percent(row.share), row.share, fill=row.share if row.kind else None), drop=15),
    Column("ideal", lambda row: replace(figure(row.ideal_s), bad=row.ideal_above_predicted), drop=7),
    Column("predicted", lambda row: figure(row.predicted_s), drop=2),
    Column("predicted ±", lambda row: _half(row.predicted_s_low, row.predicted_s_high, row.predicted_s), drop=12),
    Column("error", lambda row: _error(row.predicted_s, row.time_s), drop=3),
    Column("efficiency", lambda row: Cell(rows.efficiency(row), row.efficiency, bad=row.above_one), drop=5),
    Column("bound", lambda row: row.bound, words=True, drop=14),
    Column("FLOP/s", lambda row: figure(row.flops_per_s, magnitude), drop=10),
    Column("bytes/s", lambda row: figure(row.bytes_per_s, magnitude), drop=9),
    Column("per repeat", _repeat, drop=13),
    Column("kernels", lambda row: ", ".join(row.kernels), wraps=True, optional=True, views=document.FILES),
)

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


def _summary(reports: Sequence[PassReport], run: Run) -> Section:
    """All passes in a table: first in a file, last on a terminal, where the top has scrolled away."""

    def every_check(report: PassReport) -> Cell:
        closes = rows.closes(report, run.environment.device_kind)
        return Cell(_HOLDS[closes], bad=not closes)

    columns: tuple[Column[tuple[int, PassReport]], ...] = (
        Column("pass", lambda i: Cell(title(i[1]), target=f"pass-{i[0]}"), wraps=True),
        Column("status", lambda i: Cell(i[1].status, bad=i[1].status != "done", hover=verdict(i[1])), words=True),
        Column("wall", lambda i: figure(i[1].wall_s), strong=True),
        Column("±", lambda i: _half(i[1].wall_s_low, i[1].wall_s_high, i[1].wall_s), drop=5),
        Column("busy", lambda i: figure(i[1].busy_s), drop=4),
        Column("ideal", lambda i: figure(rows.ideal_total_s(i[1])), drop=3),
        Column("at peaks", lambda i: i[1].ideal_peaks or UNKNOWN, words=True, drop=7),
        Column("predicted busy", lambda i: figure(i[1].predicted_busy_s), drop=6),
        Column("predicted wall", lambda i: figure(i[1].predicted_wall_s), drop=2),
        Column("error", lambda i: _error(i[1].predicted_wall_s, i[1].wall_s), drop=1),
        Column("every check", lambda i: every_check(i[1]), words=True, drop=8),
    )
    return Section("Passes", (table(columns, enumerate(reports)),))


def _pass(i: int, report: PassReport, run: Run, spec: HardwareSpec) -> Section:
    how = (ideal_uses(report, spec), predicted(report), *level(report), compared(report))
    checks = rows.closure(report, run.environment.device_kind)
    implied = (Text(f"{check.name}: {check.implies}", "warning") for check in checks if check.implies)
    all_rows, busy = rows.layer_rows(report), rows.busy_row(report)
    layers = document.brief(LAYER_COLUMNS, rows.fold(all_rows, report.wall_s), all_rows, busy)
    differences = f"{_count(len(report.differences), 'difference')} between the planned graph and what the device ran"
    inactive = f"{_count(len(report.inactive), 'parameter')} that this phase does not read"
    waterfall = Figure(f"waterfall-{i}", partial(_draw, "waterfall_chart", report))
    where: tuple[Part, ...] = (waterfall, _waterfall(report), table(_CHECKS, checks), *implied)
    lost = sum(row.flops <= 0 or row.bytes <= 0 or row.time_s <= 0 for row in all_rows)
    absent = f"; {lost} without FLOPs or bytes (copies, say) have no place on it" if lost else ""
    point = f"A point is a layer kind, its area its share of the wall, a red rim an efficiency above 1{absent}."
    roofline = Figure(f"roofline-{i}", partial(_draw, "roofline_chart", report, spec), point)
    shown = f"The {rows.BARS} slowest of {len(all_rows)} layer kinds. " if len(all_rows) > rows.BARS else ""
    beside = f"{shown}Beside a bar: its efficiency, ideal ÷ measured."
    bars = Figure(f"layers-{i}", partial(_draw, "layer_chart", report), beside)
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
        _compiled(report),
        Section("Where the time of each layer kind goes", (_layer_terms(report),), folded=True, views=document.FILES),
        Lines(report.differences, differences, "faint"),
        Lines(report.inactive, inactive, "faint"),
    )
    return Section(title(report), parts, name=f"pass-{i}")


def _draw(chart: str, *of: object) -> Any:
    from calibrate.report import pass_plots  # plotly takes long to import, and only pages draw

    return getattr(pass_plots, chart)(*of)


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


def _layer_terms(report: PassReport) -> document.Table:
    labels, lines = rows.layer_terms(report)
    columns: list[Column[Any]] = [
        Column("layer kind", lambda line: line[0], code=True),
        Column("kind", lambda line: line[1], words=True),
    ]
    columns += [
        Column(label, lambda line, i=i: Cell(seconds(line[2][i], signed=True), line[2][i]))  # type: ignore[misc]
        for i, label in enumerate(labels)
    ]
    return table(columns, lines)


def _compiled(report: PassReport) -> Section:
    """The kernels of a compiled pass: which modules each came from, and what it took."""
    columns: tuple[Column[FusedKernel], ...] = (
        Column("kernel", lambda kernel: kernel.name, code=True),
        Column("from", lambda kernel: rows.fold_modules(kernel.modules), code=True),
        Column("×", lambda kernel: figure(kernel.count, number), drop=2),
        Column("time", lambda kernel: figure(kernel.measured_s), strong=True),
        Column("share", lambda kernel: figure(ratio(kernel.measured_s, report.wall_s), percent), drop=1),
        Column("roofline", lambda kernel: figure(kernel.predicted_s), drop=3),
    )
    few = [
        kernel for kernel in report.kernels[:MOST_KERNELS] if kernel.measured_s >= rows.SMALLEST_SHARE * report.wall_s
    ]
    return Section("Compiled kernels", document.brief(columns, few, report.kernels))


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
