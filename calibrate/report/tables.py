"""What a report shows, as rows of data: every renderer prints these and computes nothing of its own.

Input is a `PassReport`; times are seconds in total over a pass, rates FLOP/s and bytes/s, shares fractions of the
wall time. Null stays None. Rows of layers add up to the busy time, rows of the waterfall to the wall time.

Example: ``sum(row.time_s for row in layer_rows(report))`` is ``report.busy_s``.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from calibrate.passes.pass_report import TERMS as RUNG_TERMS
from calibrate.passes.pass_report import LayerEfficiency, PassReport, Waterfall
from calibrate.report.units import UNKNOWN, magnitude, number, percent, plus_minus, seconds
from roofline.record import Record

TERMS = (*RUNG_TERMS, "idle")
"""Terms of the waterfall, in the order they add up."""

ROWS_IN_TERMINAL = 20
"""More layer kinds than a screen holds are folded there."""

SMALLEST_SHARE = 0.002
"""Share of the wall time below which a layer kind is folded in the terminal."""

CLOSES_WITHIN = 1e-6
"""Relative: sums of the same doubles in another order differ by far less."""


class LayerRow(Record):
    """One layer kind, or a sum of some."""

    path: str
    """Module path as in the graph; "" is the model itself."""
    kind: str
    count: float
    time_s: float
    time_s_low: float | None = None
    """Ends of a 90 % interval; None in a sum of kinds, and where they are not known."""
    time_s_high: float | None = None
    share: float | None
    """Of the wall time."""
    ideal_s: float | None
    predicted_s: float | None
    predicted_s_low: float | None = None
    predicted_s_high: float | None = None
    efficiency: float | None
    bound: str
    flops: float
    bytes: float
    median_s: float | None
    """Of one repeated layer; None in a sum of kinds."""
    spread_s: float | None
    """Half the 5–95 % range over the repeated layers; None where the layer is not repeated."""
    kernels: tuple[str, ...] = ()
    waterfall: Waterfall | None = None
    """Of this layer kind alone; None in a sum."""

    @property
    def above_one(self) -> bool:
        return self.efficiency is not None and self.efficiency > 1

    @property
    def flops_per_s(self) -> float | None:
        return self.flops / self.time_s if self.time_s > 0 else None

    @property
    def bytes_per_s(self) -> float | None:
        return self.bytes / self.time_s if self.time_s > 0 else None

    @property
    def label(self) -> str:
        return self.path or "(model)"


class TermRow(Record):
    """One term of the waterfall, or several that an unknown rung joins."""

    terms: tuple[str, ...]
    time_s: float | None
    """Signed; None where the term is not known and nothing joins it."""
    start_s: float
    """Sum of the terms before it: where its bar begins."""
    share: float | None
    """Of the wall time, signed."""
    half_s: float | None = None
    """Half its 90 % interval."""

    @property
    def label(self) -> str:
        names = [term.replace("_", " ") for term in self.terms]
        return " + ".join(names) if len(names) < 3 else f"{names[0]} … {names[-1]}"


@dataclass(frozen=True)
class Column:
    """A column of the layer table."""

    key: str
    header: str
    cell: Callable[[LayerRow], str]
    """The text that is shown."""
    value: Callable[[LayerRow], float | str | None]
    """What a reader sorts by."""
    text: bool = False
    """Left-aligned words, not figures."""


def layer_rows(report: PassReport) -> tuple[LayerRow, ...]:
    """Every layer kind, the slowest first."""
    return tuple(
        _layer_row(layer, report.wall_s) for layer in sorted(report.layers, key=lambda layer: -layer.measured_s)
    )


def total_row(rows: Iterable[LayerRow], wall_s: float, label: str) -> LayerRow:
    """The sum of some rows; a figure that one of them does not know is not known of the sum."""
    rows = tuple(rows)
    time_s = sum(row.time_s for row in rows)
    ideal_s = _sum(row.ideal_s for row in rows)
    return LayerRow(
        path=label,
        kind="",
        count=sum(row.count for row in rows),
        time_s=time_s,
        share=_ratio(time_s, wall_s),
        ideal_s=ideal_s,
        predicted_s=_sum(row.predicted_s for row in rows),
        efficiency=_ratio(ideal_s, time_s),
        bound="",
        flops=sum(row.flops for row in rows),
        bytes=sum(row.bytes for row in rows),
        median_s=None,
        spread_s=None,
    )


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
        rows.append(TermRow(terms=terms, time_s=value, start_s=start_s, share=_ratio(value, total_s)))
        start_s += value or 0.0
    return tuple(rows)


def pass_terms(report: PassReport) -> tuple[TermRow, ...]:
    """The terms of a pass with half their intervals."""
    halves = {
        name: (report.waterfall_high[name] - low) / 2
        for name, low in report.waterfall_low.items()
        if name in report.waterfall_high
    }
    rows = waterfall_rows(report.waterfall, report.wall_s)
    return tuple(row.model_copy(update={"half_s": halves.get("+".join(row.terms))}) for row in rows)


def layer_terms(
    report: PassReport,
) -> tuple[tuple[str, ...], tuple[tuple[str, str, tuple[float | None, ...]], ...]]:
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
            "efficiency": _ratio(ideal_s, report.busy_s),
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
    """What should add up and does not; empty in a sound report."""
    terms = waterfall_rows(report.waterfall, report.wall_s)
    sums = (
        ("the layers' times", sum(layer.measured_s for layer in report.layers), "the busy time", report.busy_s),
        ("the waterfall's terms", _end(terms), "the wall time", report.wall_s),
    )
    return tuple(
        f"{what} add up to {seconds(found)}, not to {name} of {seconds(expected)}"
        for what, found, name, expected in sums
        if abs(found - expected) > CLOSES_WITHIN * abs(report.wall_s)
    )


def above_one(report: PassReport) -> tuple[LayerRow, ...]:
    """Layer kinds that ran faster than their ideal: the count, the peak or the cache state is wrong."""
    return tuple(row for row in layer_rows(report) if row.above_one)


def _layer_row(layer: LayerEfficiency, wall_s: float) -> LayerRow:
    return LayerRow(
        path=layer.path,
        kind=layer.kind,
        count=layer.count,
        time_s=layer.measured_s,
        time_s_low=layer.measured_s_low,
        time_s_high=layer.measured_s_high,
        predicted_s_low=layer.predicted_s_low,
        predicted_s_high=layer.predicted_s_high,
        share=_ratio(layer.measured_s, wall_s),
        ideal_s=layer.ideal_s,
        predicted_s=layer.predicted_s,
        efficiency=layer.efficiency,
        bound=layer.bound or UNKNOWN,
        flops=layer.matrix_flops + layer.vector_flops,
        bytes=layer.bytes,
        median_s=layer.median_s,
        spread_s=layer.spread_s if "*" in layer.path.split(".") else None,
        kernels=layer.kernels,
        waterfall=layer.waterfall,
    )


def _sum(values: Iterable[float | None]) -> float | None:
    known = tuple(values)
    return None if None in known else sum(value for value in known if value is not None)


def _ratio(part: float | None, whole: float) -> float | None:
    return None if part is None or whole <= 0 else part / whole


def half_width(low: float | None, high: float | None) -> float | None:
    """Half an interval; None where it is not known."""
    return None if low is None or high is None else (high - low) / 2


def _end(rows: Sequence[TermRow]) -> float:
    return rows[-1].start_s + (rows[-1].time_s or 0.0)


def _efficiency_cell(row: LayerRow) -> str:
    return percent(row.efficiency) + (" !" if row.above_one else "")


def _repeat_cell(row: LayerRow) -> str:
    if row.median_s is None:
        return ""
    spread = _ratio(row.spread_s, row.median_s)
    return seconds(row.median_s) + ("" if spread is None else f" ± {percent(spread)}")


LAYER_COLUMNS = (
    Column("path", "layer kind", lambda row: row.label, lambda row: row.path, text=True),
    Column("kind", "kind", lambda row: row.kind, lambda row: row.kind, text=True),
    Column("count", "×", lambda row: number(row.count), lambda row: row.count),
    Column("time", "time", lambda row: seconds(row.time_s), lambda row: row.time_s),
    Column(
        "sure",
        "±",
        lambda row: plus_minus(row.time_s_low, row.time_s_high, row.time_s),
        lambda row: half_width(row.time_s_low, row.time_s_high),
    ),
    Column("share", "share", lambda row: percent(row.share), lambda row: row.share),
    Column("ideal", "ideal", lambda row: seconds(row.ideal_s), lambda row: row.ideal_s),
    Column("predicted", "predicted", lambda row: seconds(row.predicted_s), lambda row: row.predicted_s),
    Column(
        "foreseen",
        "predicted ±",
        lambda row: plus_minus(row.predicted_s_low, row.predicted_s_high, row.predicted_s or 0.0),
        lambda row: half_width(row.predicted_s_low, row.predicted_s_high),
    ),
    Column("efficiency", "efficiency", _efficiency_cell, lambda row: row.efficiency),
    Column("bound", "bound", lambda row: row.bound, lambda row: row.bound, text=True),
    Column("flops", "FLOP/s", lambda row: magnitude(row.flops_per_s), lambda row: row.flops_per_s),
    Column("bytes", "bytes/s", lambda row: magnitude(row.bytes_per_s), lambda row: row.bytes_per_s),
    Column("repeat", "per repeat", _repeat_cell, lambda row: row.median_s),
)
"""The layer table, in reading order; a terminal that is too narrow leaves some out, the files show them all."""
