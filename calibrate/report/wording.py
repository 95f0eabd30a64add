"""What a report says in words: headlines, meanings, closure, environment. The renderers only lay it out.

Sentences and label-value rows, made from records; no layout, no escaping.

Example: ``headline(report)`` is ``"82.1 ms wall ± 1.2 %, 78.0 ms busy; its device work could take …"``
"""

from collections.abc import Sequence

from calibrate.passes.pass_report import PassReport
from calibrate.passes.replicates import MIDDLE
from calibrate.passes.verdict import INSTRUMENTED_WITHIN, LEAST_ATTRIBUTED, MOST_EXCESS, SPANS_WITHIN
from calibrate.report import tables
from calibrate.report.units import UNKNOWN, dtype, duration, percent, plus_minus, seconds, size
from profiler.record.run import CellResult, Mode, Run
from roofline.hardware.spec import HardwareSpec
from roofline.record import Record
from roofline.workload import Workload

MEANING = {
    "ideal": "fused graph at datasheet peaks",
    "peak_derate": "achieved peaks are not the datasheet's",
    "extra_work": "work that the fused graph would not do",
    "shape_loss": "shapes that reach less than the peaks",
    "level": "machine slower than when calibrated",
    "residual": "what the prediction does not explain",
    "idle": "device without work",
}
"""One phrase for a term of the waterfall."""

REACHED = {
    "peak_derate": "fused graph at achieved peaks",
    "extra_work": "graph as executed, at achieved peaks",
    "shape_loss": "graph as executed, by calibrated laws",
    "level": "the same at the level of the machine beside the pass",
    "residual": "device time: no peaks are known to split it",
}
"""One phrase for terms joined from the first one on, by the last of them."""

WORDS = {
    "layer kind": "the operations of one kind under one module path; * stands for the index of a repeated layer",
    "×": "executions in the whole model",
    "time": "device time of one pass, all executions; the rows add up to the busy time",
    "share": "of the wall time",
    "±": "half the 90 % interval over the rounds (of a prediction, by the laws), as a share of the figure",
    "ideal, predicted": "times from peaks and traced work, as each pass says; – is not known",
    "efficiency": "ideal ÷ measured; ! marks one above 1: a wrong count, a wrong peak or a warm cache",
    "bound": "what the roofline of the executed graph waits for",
    "per repeat": "median of one repeated layer ± half the 5–95 % range over them",
}
"""Columns of the layer table."""

ABOVE_ONE = "efficiency above 1"
"""How the footnote of the mark "!" begins; a report whose own warnings have it does not get a second one."""


MODES: dict[Mode, str] = {
    "eager": "",
    "compile": ", compiled",
    "cuda-graph": ", CUDA graph",
    "compile-cuda-graph": ", compiled in a CUDA graph",
}
"""How a pass ran, behind what it did."""


class Fact(Record):
    """A label, its value as text, what is asked of it, and whether it holds (None: nothing is asked)."""

    name: str
    value: str
    asked: str = ""
    holds: bool | None = None
    implies: str = ""
    """What follows where it does not hold."""


def workload_title(workload: Workload) -> str:
    """ "decode b1 q1 ctx 512 bf16"."""
    tokens = f"b{workload.batch} q{workload.query_tokens} ctx {workload.context_tokens}"
    return f"{workload.phase} {tokens} {dtype(workload.dtype)}"


def title(report: PassReport) -> str:
    """ "llama-3.1-8b decode b1 q1 ctx 512 bf16", with how it ran where that was not eagerly."""
    return f"{report.model} {workload_title(report.workload)}{MODES[report.mode]}"


def verdict(report: PassReport) -> str | None:
    """ "inconclusive: single passes vary by ± 40%"; None for a sound pass."""
    if report.status == "done":
        return None
    return f"{report.status}: {report.reason or 'no reason was recorded'}"


def headline(report: PassReport) -> str:
    """How fast it is and, of a sound pass, how fast its device work could be, in a line."""
    wall = with_half(report.wall_s, report.wall_s_low, report.wall_s_high, "wall")
    now = f"{wall}, {with_half(report.busy_s, report.busy_s_low, report.busy_s_high, 'busy')}"
    if report.status != "done":
        return now
    if report.ideal_peaks is None:
        return f"{now}; how fast it could be is unknown: no peaks of this device are known"
    ideal_s = tables.ideal_total_s(report)
    if ideal_s is None:
        return f"{now}; how fast it could be is unknown: the {report.ideal_peaks} peaks lack one it needs"
    if ideal_s > report.busy_s:
        there = f"{seconds(ideal_s)} at {report.ideal_peaks} peaks"
        return f"{now}; its device work would take {there}, above the measured time: the peaks are too low"
    ratio = f" ({report.busy_s / ideal_s:.2f}× less)" if ideal_s > 0 else ""
    return f"{now}; its device work could take {seconds(ideal_s)} at {report.ideal_peaks} peaks{ratio}"


def with_half(value: float, low: float | None, high: float | None, what: str) -> str:
    """ "82.1 ms wall ± 1.2 %"; without "±" where the interval is not known."""
    half = plus_minus(low, high, value)
    return f"{seconds(value)} {what}" + ("" if half == UNKNOWN else f" ± {half}")


def half_wall(report: PassReport) -> str:
    """Half the wall's interval, in seconds."""
    return seconds(tables.half_width(report.wall_s_low, report.wall_s_high))


def predicted(report: PassReport) -> str:
    """What was predicted, with its signed error."""
    if report.prediction is None:
        return "predicted: – (no peaks of this device are known)"
    how = {"executed": "graph as executed at achieved peaks, not calibrated", "calibrated": "calibrated laws"}
    ends = report.predicted_busy_s_low, report.predicted_busy_s_high
    busy = _against(report.predicted_busy_s, ends, report.busy_s)
    ends = report.predicted_wall_s_low, report.predicted_wall_s_high
    wall = _against(report.predicted_wall_s, ends, report.wall_s)
    return f"predicted ({how.get(report.prediction, report.prediction)}): {busy} busy, {wall} wall"


def level(report: PassReport) -> tuple[str, ...]:
    """How slow the machine was beside the pass, against the calibration; nothing where that is not known."""
    if not report.level:
        return ()
    each = [f"{probe} {one.ratio:.2f}× ({one.low:.2f}–{one.high:.2f})" for probe, one in report.level.items()]
    busy, wall = seconds(report.predicted_busy_calibrated_s), seconds(report.predicted_wall_calibrated_s)
    ratios = f"level of the machine, time of a probe ÷ that in the calibration: {', '.join(each)}"
    return (f"{ratios}; predicted at the calibration's: {busy} busy, {wall} wall",)


def compared(report: PassReport) -> str:
    """What measured and predicted figures are, so that it is seen that they are alike."""
    measured = f"the {MIDDLE} of the passes"
    if report.rounds is not None and report.passes is not None:
        each = report.passes[0] // report.rounds
        measured = f"the {MIDDLE} of {_some(report.rounds, 'round')}, each the mean of {_some(each, 'pass', 'passes')}"
    if report.rounds == 1:
        measured += ", without an interval"
    how = {
        "calibrated": "laws fitted to kernels whose visits were summarised in the same way, at the machine's level "
        + ("of this run" if report.level else "of the calibration"),
        "executed": "rooflines at peaks, which are of the fastest tenth of their samples",
    }
    return f"compared: measured, {measured}; predicted, {how.get(report.prediction or '', UNKNOWN)}"


def ideal_uses(report: PassReport, spec: HardwareSpec) -> str:
    """What `ideal` stands for in this pass."""
    if report.ideal_peaks is None:
        return "ideal: – (no peaks of this device are known)"
    if report.ideal_peaks == "datasheet":
        return "ideal: the fused graph at datasheet peaks"
    why = "no datasheet describes this device" if spec.datasheet is None else "the datasheet lacks a peak it needs"
    return f"ideal: the fused graph at {report.ideal_peaks} peaks: {why}"


def meaning(row: tables.TermRow) -> str:
    """One phrase for a row of the waterfall."""
    if len(row.terms) > 1 and row.terms[0] == "ideal":
        return REACHED[row.terms[-1]]
    if row.terms == ("shape_loss", "level", "residual"):
        return "slower than the roofline of what ran"
    if row.terms == ("level", "residual"):
        return "what the laws do not explain, and how slow the machine was"
    return "; ".join(MEANING[term] for term in row.terms)


def closure(report: PassReport, device_kind: str) -> tuple[Fact, ...]:
    """How much of what the profiler saw is accounted for, beside what is asked.

    A ratio of times of different passes holds unless its whole interval (90 %; of busy ÷ wall 99 %) lies outside.
    """
    seen = report.closure
    spans_close = abs(seen.spans_plus_gaps - 1) <= SPANS_WITHIN
    busy = report.busy_s / report.wall_s if report.wall_s > 0 else None
    ratio = _or_value(seen.instrumented_ratio, report.instrumented_ratio_low, report.instrumented_ratio_high)
    excess = _or_value((busy or 0.0) - 1, report.excess_low, report.excess_high)
    excess = 1 + excess[0], 1 + excess[1]
    facts = [
        Fact(
            name="attributed ÷ all device time",
            value=percent(seen.attributed),
            asked=f"at least {100 * LEAST_ATTRIBUTED[report.mode]:g} %",
            holds=seen.attributed >= LEAST_ATTRIBUTED[report.mode],
        ),
        Fact(
            name="spans + gaps ÷ profiled wall",
            value=percent(seen.spans_plus_gaps),
            asked=f"100 % ± {100 * SPANS_WITHIN:g} %",
            holds=spans_close,
        ),
        Fact(
            name="profiled ÷ unprofiled wall",
            value=_points(seen.instrumented_ratio, *ratio),
            asked=f"100 % ± {100 * INSTRUMENTED_WITHIN:g} %",
            holds=ratio[0] <= 1 + INSTRUMENTED_WITHIN and ratio[1] >= 1 - INSTRUMENTED_WITHIN,
            implies=_instrumentation(*ratio),
        ),
        Fact(
            name="busy ÷ wall",
            value=_points(busy, *excess),
            asked=f"at most {100 * (1 + MOST_EXCESS):g} %",
            holds=None if busy is None else excess[0] <= 1 + MOST_EXCESS,
        ),
    ]
    if device_kind != "cpu":
        same = "all kernels seen" if seen.kernels == seen.launches else "kernels and launches differ: events dropped"
        facts.append(
            Fact(
                name="kernels / launches / memory operations",
                value=f"{seen.kernels} / {seen.launches} / {seen.memory_operations}",
                asked="kernels = launches > 0" if seen.launches == 0 else same,
                holds=seen.kernels == seen.launches > 0,
            )
        )
    return tuple(facts)


def closes(report: PassReport, device_kind: str) -> bool:
    """Whether every fact of the closure holds and every sum is met."""
    return not tables.unclosed(report) and all(fact.holds is not False for fact in closure(report, device_kind))


def warnings(report: PassReport) -> tuple[str, ...]:
    """What an expert must know before using the figures of a pass; the most serious first."""
    said = []
    said += [f"does not close: {sentence}" for sentence in tables.unclosed(report)]
    said += [f"! {words}" if words.startswith(ABOVE_ONE) else words for words in report.warnings]
    marked = tables.above_one(report)
    if marked and not any(words.startswith(ABOVE_ONE) for words in report.warnings):
        worst = max(marked, key=lambda row: row.efficiency or 0)
        said.append(
            f"! {ABOVE_ONE} in {len(marked)} of {len(report.layers)} layer kinds (most: {worst.label} "
            f"{worst.kind}, {percent(worst.efficiency)}): a wrong count, a wrong peak or a warm cache"
        )
    return tuple(said)


def notes(report: PassReport) -> tuple[str, ...]:
    """How the figures are to be read; nothing alarming."""
    said = []
    if report.scaled_from_layers is not None:
        part, whole = report.scaled_from_layers
        said.append(f"measured {part} of {whole} repeated layers; times are scaled up to {whole}")
    said.append(
        f"wall noise ± {percent(report.noise)} (half the 5–95 % range of single passes): "
        f"± {seconds(report.noise * report.wall_s)}"
    )
    if report.peak_memory_bytes is not None:
        said.append(f"peak memory {size(report.peak_memory_bytes)}")
    return tuple(said)


def how_timed(report: PassReport) -> str:
    """Clock, cache state and passes behind the figures."""
    passes = f"{report.passes[0]} unprofiled, {report.passes[1]} profiled" if report.passes else UNKNOWN
    return f"clock: {report.clock or UNKNOWN}; caches: {report.cache_state or UNKNOWN}; passes: {passes}"


def what_ran(report: PassReport) -> str:
    """The implementations that really ran."""
    return "ran: " + (", ".join(f"{what} {how}" for what, how in report.ran.items()) or UNKNOWN)


def some(names: Sequence[str], most: int = 3) -> str:
    """The first few, and how many more."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def environment(run: Run) -> tuple[Fact, ...]:
    """The machine and its software."""
    found = run.environment
    rows = {
        "run": f"{run.name}, {run.started}" + ("" if run.finished else " (not finished)"),
        "device": f"{found.device} ({found.device_kind}), {size(found.memory_bytes)}",
        **({"unit": found.device_uuid or UNKNOWN} if not found.is_host else {}),
        "host": f"{found.hostname}, {found.cores} cores, {found.threads} threads, {found.os}",
        "versions": ", ".join([f"python {found.python}", *(f"{name} {v}" for name, v in found.versions.items())]),
        "command": " ".join(run.command),
        **({"took": took(run)} if run.spent_s else {}),
    }
    return tuple(Fact(name=name, value=value) for name, value in rows.items())


def took(run: Run) -> str:
    """What each part of a run took, and what it was estimated to take."""
    parts = ", ".join(f"{part} {duration(spent)}" for part, spent in run.spent_s.items())
    estimated = f" (estimated: {duration(sum(run.estimated_s.values()))})" if run.estimated_s else ""
    return f"{duration(sum(run.spent_s.values()))}{estimated}: {parts}"


def failed_rows(failed: Sequence[CellResult]) -> tuple[tuple[str, str, str], ...]:
    """(what, status, reason) of each cell without a result."""
    return tuple(
        (
            f"{result.cell.model} {workload_title(result.cell.workload)} ({_options(result)})",
            result.status,
            " ".join((result.reason or "no reason was recorded").split()),
        )
        for result in failed
    )


def _or_value(value: float, low: float | None, high: float | None) -> tuple[float, float]:
    """The interval, or twice the value where it is not known."""
    return (value, value) if low is None or high is None else (low, high)


def _points(value: float | None, low: float, high: float) -> str:
    """ "94.4 % ± 6.1 %", both in per cent of the same whole."""
    half = "" if value is None or high <= low else f" ± {plus_minus(low, high, 1.0)}"
    return percent(value) + half


def _instrumentation(low: float, high: float) -> str:
    """What a ratio of profiled to unprofiled time means whose interval is outside its bounds."""
    if low > 1 + INSTRUMENTED_WITHIN:
        return f"operation times carry up to {percent((low + high) / 2 - 1)} of instrumentation"
    if high < 1 - INSTRUMENTED_WITHIN:
        return "the machine changed between passes"
    return ""


def _some(count: int, one: str, many: str = "") -> str:
    return f"{count} {one}" if count == 1 else f"{count} {many or one + 's'}"


def _options(result: CellResult) -> str:
    cell = result.cell
    layers = [f"{cell.layers} layers"] if cell.layers else []
    mode = [cell.mode] if cell.mode != "eager" else []
    return ", ".join([f"attention {cell.attn}", f"experts {cell.experts}", f"cache {cell.cache}", *layers, *mode])


def _against(value: float | None, ends: tuple[float | None, float | None], truth: float) -> str:
    if value is None or truth <= 0:
        return UNKNOWN
    half = plus_minus(*ends, value)
    sure = "" if half == UNKNOWN else f" ± {half}"
    return f"{seconds(value)}{sure} ({percent(value / truth - 1, signed=True)})"
