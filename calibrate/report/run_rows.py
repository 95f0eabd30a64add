"""The content of a run's report as rows of data: layers, terms of the waterfall, and checks.

Times are seconds in total over a pass, shares are fractions of the wall time. Rows of layers add up to the busy time,
rows of the waterfall to the wall time; what is not known is None.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from calibrate.passes.pass_report import TERMS as RUNG_TERMS
from calibrate.passes.pass_report import LayerEfficiency, PassReport, Waterfall
from calibrate.passes.table import layer_kind
from calibrate.passes.verdict import INSTRUMENTED_WITHIN, LEAST_ATTRIBUTED, MOST_EXCESS, SPANS_WITHIN
from calibrate.report.document import printable
from roofline.record import Record
from roofline.units import UNKNOWN, known_sum, percent, plus_minus, ratio, seconds

MEANING = {
    "ideal": "the fused graph at datasheet peaks",
    "peak_derate": "this device reaches less than the datasheet's peaks",
    "extra_work": "work and traffic that the fused graph does not have",
    "shape_loss": "shapes that reach less than the peaks, by the calibrated laws",
    "level": "the machine was slower than while it was calibrated",
    "residual": "what the prediction does not explain",
    "idle": "time in which the device had no work",
}
"""Meaning of each term of the waterfall."""
REACHED = {
    "peak_derate": "the fused graph at achieved peaks",
    "extra_work": "the graph as executed, at achieved peaks",
    "shape_loss": "the graph as executed, by the calibrated laws",
    "level": "the same at the speed of the machine beside this pass",
    "residual": "device time: no peaks are known to split it",
}
"""Meaning of all terms from the first one to this one, where they are shown as one."""
TERMS = (*RUNG_TERMS, "idle")
"""Terms of the waterfall, in the order they add up."""
ROWS_IN_TERMINAL, SMALLEST_SHARE = 20, 0.002
"""A terminal shows so many layer kinds, each of at least this share of the wall time; it folds the others."""
BARS = 40
"""Most layer kinds in the bar chart of a page, whose table has them all."""
CLOSES_WITHIN = 1e-6
"""Relative: sums of the same doubles in another order differ by far less."""


def key_of(path: str, kind: str) -> str:
    """The id of a layer kind's row, and of its mark in every figure: a click on the one leads to the other."""
    return printable(f"{layer_kind(path)} {kind}")


def label(term: str) -> str:
    """A term of the waterfall as a reader sees it."""
    return "machine speed" if term == "level" else term.replace("_", " ")


class LayerRow(Record):
    """One layer kind, or a sum of some."""

    path: str
    """Module path as in the graph; "" is the model itself."""
    kind: str = ""
    count: float
    time_s: float
    time_s_low: float | None = None
    """Ends of a 90 % interval; None in a sum of kinds, and where they are not known."""
    time_s_high: float | None = None
    share: float | None
    """The share of the wall time."""
    ideal_s: float | None
    predicted_s: float | None
    predicted_s_low: float | None = None
    predicted_s_high: float | None = None
    efficiency: float | None
    bound: str = ""
    flops: float
    bytes: float
    median_s: float | None = None
    """Seconds of one repeated layer; None in a sum of kinds."""
    spread_s: float | None = None
    """Half the 5–95 % range over the repeated layers; None where the layer is not repeated."""
    kernels: tuple[str, ...] = ()
    waterfall: Waterfall | None = None
    """The terms of this layer kind alone; None in a sum."""

    @property
    def above_one(self) -> bool:
        return self.efficiency is not None and self.efficiency > 1

    @property
    def ideal_above_predicted(self) -> bool:
        """Whether the lower bound is above the prediction by more than what is printed of either."""
        return None not in (self.ideal_s, self.predicted_s) and (self.ideal_s or 0.0) > 1.005 * (
            self.predicted_s or 0.0
        )

    @property
    def flops_per_s(self) -> float | None:
        return self.flops / self.time_s if self.time_s > 0 else None

    @property
    def bytes_per_s(self) -> float | None:
        return self.bytes / self.time_s if self.time_s > 0 else None

    @property
    def label(self) -> str:
        return self.path or "(model)"

    @property
    def key(self) -> str:
        """Name of its row and of its mark in every figure."""
        return key_of(self.path, self.kind)


class TermRow(Record):
    """One term of the waterfall, or several that an unknown rung joins."""

    terms: tuple[str, ...]
    time_s: float | None
    """Signed; None where the term is not known and nothing joins it."""
    start_s: float
    """Sum of the terms before it: where its bar begins."""
    share: float | None
    """The share of the wall time, signed."""
    half_s: float | None = None
    """Half its 90 % interval."""

    @property
    def label(self) -> str:
        names = [label(term) for term in self.terms]
        return " + ".join(names) if len(names) < 3 else f"{names[0]} … {names[-1]}"


@dataclass(frozen=True)
class Check:
    """A ratio that a sound pass keeps within bounds, as text, with the bounds and whether it keeps them."""

    name: str
    value: str
    required: str
    holds: bool | None
    """Whether it keeps them; None where too little was measured to tell."""
    implies: str = ""
    """The conclusion to draw where it does not hold."""


def layer_rows(report: PassReport) -> tuple[LayerRow, ...]:
    """Every layer kind, the slowest first."""
    rows = (_layer_row(layer, report.wall_s) for layer in report.layers)
    return tuple(sorted(rows, key=lambda row: -row.time_s))


def _layer_row(layer: LayerEfficiency, wall_s: float) -> LayerRow:
    same = {name: value for name, value in layer if name in LayerRow.model_fields}
    different = {
        "time_s": layer.measured_s,
        "time_s_low": layer.measured_s_low,
        "time_s_high": layer.measured_s_high,
        "share": ratio(layer.measured_s, wall_s),
        "bound": layer.bound or UNKNOWN,
        "flops": layer.matrix_flops + layer.vector_flops,
        "spread_s": layer.spread_s if "*" in layer.path.split(".") else None,
    }
    return LayerRow(**same | different)


def total_row(rows: Sequence[LayerRow], wall_s: float, label: str) -> LayerRow:
    """The sum of some rows; a figure that one of them does not know is not known of the sum."""
    sums = {name: sum(getattr(row, name) for row in rows) for name in ("count", "time_s", "flops", "bytes")}
    known = {name: known_sum(getattr(row, name) for row in rows) for name in ("ideal_s", "predicted_s")}
    shares = {"share": ratio(sums["time_s"], wall_s), "efficiency": ratio(known["ideal_s"], sums["time_s"])}
    return LayerRow(path=label, **sums, **known, **shares)


def fold(
    rows: Sequence[LayerRow], wall_s: float, keep: int = ROWS_IN_TERMINAL, smallest: float = SMALLEST_SHARE
) -> tuple[LayerRow, ...]:
    """The `keep` slowest rows of at least the `smallest` share, and one row "N others" that holds the rest's sums."""
    shown = [row for row in rows[:keep] if row.time_s >= smallest * wall_s]
    rest = rows[len(shown) :]
    if len(rest) < 2:  # a row that stands for one other row saves nothing
        return tuple(rows)
    return (*shown, total_row(rest, wall_s, f"{len(rest)} others"))


def waterfall_rows(waterfall: Waterfall, total_s: float) -> tuple[TermRow, ...]:
    """The terms in order; those that an unknown rung joins are one row. They add up to `total_s` if the sum closes."""
    joined = {names.split("+")[0]: (tuple(names.split("+")), value) for names, value in waterfall.merged.items()}
    covered = {term for names, _ in joined.values() for term in names}
    if unknown := covered - set(TERMS):
        raise ValueError(f"the waterfall joins {sorted(unknown)}, which are not terms; terms are {', '.join(TERMS)}")
    rows = []
    start_s = 0.0
    for term in TERMS:
        if term in covered and term not in joined:
            continue
        terms, value = joined.get(term, ((term,), getattr(waterfall, term)))
        rows.append(TermRow(terms=terms, time_s=value, start_s=start_s, share=ratio(value, total_s)))
        start_s += value or 0.0
    return tuple(rows)


def pass_terms(report: PassReport) -> tuple[TermRow, ...]:
    """The terms of a pass with half their intervals."""
    rows = []
    for row in waterfall_rows(report.waterfall, report.wall_s):
        low, high = (ends.get("+".join(row.terms)) for ends in (report.waterfall_low, report.waterfall_high))
        rows.append(row.model_copy(update={"half_s": half_width(low, high)}))
    return tuple(rows)


def layer_terms(report: PassReport) -> tuple[tuple[str, ...], tuple[tuple[str, str, tuple[float | None, ...]], ...]]:
    """Labels of the pass's terms, and (layer kind, kind, seconds of each term), the slowest layer kind first.

    A layer may know a rung that the pass does not: its terms are summed into the pass's. One that knows less has its
    joined term in the last column it reaches, and None before it. So every row keeps its sum.
    """
    columns = waterfall_rows(report.waterfall, report.wall_s)
    rows = []
    for row in layer_rows(report):
        values: list[float | None] = [None] * len(columns)
        for term in waterfall_rows(row.waterfall, row.time_s) if row.waterfall else ():
            i = next(i for i, column in enumerate(columns) if term.terms[-1] in column.terms)
            if term.time_s is not None:
                values[i] = (values[i] or 0.0) + term.time_s
        rows.append((row.label, row.kind, tuple(values)))
    return tuple(column.label for column in columns), tuple(rows)


def busy_row(report: PassReport) -> LayerRow:
    """The sum of all layer kinds, its prediction and ideal being the pass's own."""
    ideal_s = ideal_total_s(report)
    return total_row(layer_rows(report), report.wall_s, "busy").model_copy(
        update={
            "ideal_s": ideal_s,
            "time_s_low": report.busy_s_low,
            "time_s_high": report.busy_s_high,
            "predicted_s": report.predicted_busy_s,
            "predicted_s_low": report.predicted_busy_s_low,
            "predicted_s_high": report.predicted_busy_s_high,
            "efficiency": ratio(ideal_s, report.busy_s),
        }
    )


def fold_modules(modules: Sequence[str]) -> str:
    """Paths of one kernel in a line, each without the beginning that it shares with the one before.

    ``fold_modules(["layers.*.mlp.up", "layers.*.mlp.act", "layers.*"]) == "layers.*.mlp.up + …act + layers.*"``
    """
    words: list[str] = []
    before: list[str] = []
    for module in modules:
        parts = (module or "(model)").split(".")
        same = next((i for i, pair in enumerate(zip(before, parts, strict=False)) if pair[0] != pair[1]), 0)
        words.append(("…" if same else "") + ".".join(parts[same:]))
        before = parts
    return " + ".join(words)


def ideal_total_s(report: PassReport) -> float | None:
    """The pass at the peaks that `ideal` uses, in seconds."""
    return {"datasheet": report.rungs.ideal, "achieved": report.rungs.achieved}.get(report.ideal_peaks or "")


def unclosed(report: PassReport) -> tuple[str, ...]:
    """Sentences on sums that do not add up; empty in a sound report."""
    terms = waterfall_rows(report.waterfall, report.wall_s)
    sums = (
        ("the layers' times", sum(layer.measured_s for layer in report.layers), "the busy time", report.busy_s),
        ("the waterfall's terms", sum(row.time_s or 0.0 for row in terms), "the wall time", report.wall_s),
    )
    return tuple(
        f"{what} add up to {seconds(total)}, not to {name} of {seconds(expected)}"
        for what, total, name, expected in sums
        if abs(total - expected) > CLOSES_WITHIN * abs(report.wall_s)
    )


def above_one(report: PassReport) -> tuple[LayerRow, ...]:
    """Layer kinds that ran faster than their ideal: the count, the peak or the cache state is wrong."""
    return tuple(row for row in layer_rows(report) if row.above_one)


def efficiency(row: LayerRow) -> str:
    """ "87.2 %", "114 % !" above 1."""
    return percent(row.efficiency) + " !" * row.above_one


def half_width(low: float | None, high: float | None) -> float | None:
    """Half an interval; None where it is not known."""
    return None if low is None or high is None else (high - low) / 2


def closure(report: PassReport, device_kind: str) -> tuple[Check, ...]:
    """Checks that what the profiler saw is accounted for, each with its bounds.

    A ratio of times of different passes holds unless its whole interval (90 %; of busy ÷ wall 99 %) lies outside.
    """
    seen, least = report.closure, LEAST_ATTRIBUTED[report.mode]
    busy = report.busy_s / report.wall_s if report.wall_s > 0 else None
    ratio_low, ratio_high = report.instrumented_ratio_low, report.instrumented_ratio_high
    short, long = _or_value(seen.instrumented_ratio, ratio_low, ratio_high)
    low, high = _or_value((busy or 0.0) - 1, report.excess_low, report.excess_high)
    profiled = _points(seen.instrumented_ratio, short, long)
    too_long, too_short = short > 1 + INSTRUMENTED_WITHIN, long < 1 - INSTRUMENTED_WITHIN
    implies = "the machine changed between passes" if too_short else ""
    if too_long:
        excess = percent((short + long) / 2 - 1)
        implies = f"operation times carry up to {excess} of instrumentation"
    attributed, spans = seen.attributed >= least, abs(seen.spans_plus_gaps - 1) <= SPANS_WITHIN
    within = "100 % ± {:.3g} %".format
    profiled_holds, no_excess = not too_long and not too_short, None if busy is None else low <= MOST_EXCESS
    checks = [
        Check("attributed ÷ all device time", percent(seen.attributed), f"at least {100 * least:g} %", attributed),
        Check("spans + gaps ÷ profiled wall", percent(seen.spans_plus_gaps), within(100 * SPANS_WITHIN), spans),
        Check("profiled ÷ unprofiled wall", profiled, within(100 * INSTRUMENTED_WITHIN), profiled_holds, implies),
        Check("busy ÷ wall", _points(busy, low, high), f"at most {100 * (1 + MOST_EXCESS):g} %", no_excess),
    ]
    if device_kind != "cpu":
        name = "kernels / launches / memory operations"
        counts = f"{seen.kernels} / {seen.launches} / {seen.memory_operations}"
        same = "all kernels seen" if seen.kernels == seen.launches else "kernels and launches differ: events dropped"
        required = "kernels = launches > 0" if seen.launches == 0 else same
        checks.append(Check(name, counts, required, seen.kernels == seen.launches > 0))
    return tuple(checks)


def closes(report: PassReport, device_kind: str) -> bool:
    """Whether every check of the closure holds and every sum is met."""
    return not unclosed(report) and all(check.holds is not False for check in closure(report, device_kind))


def _or_value(value: float, low: float | None, high: float | None) -> tuple[float, float]:
    """The interval, or twice the value where it is not known."""
    return (value, value) if low is None or high is None else (low, high)


def _points(value: float | None, low: float, high: float) -> str:
    """ "94.4 % ± 6.1 %", both in percent of the same whole."""
    half = "" if value is None or high <= low else f" ± {plus_minus(low, high, 1.0)}"
    return percent(value) + half


def meaning(row: TermRow) -> str:
    """Meaning of a row of the waterfall."""
    joined = {
        ("wall",): "wall time of a pass without the profiler",
        ("shape_loss", "level", "residual"): "slower than the roofline of what ran",
        ("level", "residual"): "what the laws do not explain, and how slow the machine was",
    }
    if len(row.terms) > 1 and row.terms[0] == "ideal":
        return REACHED[row.terms[-1]]
    return joined.get(row.terms) or "; ".join(MEANING[term] for term in row.terms)
