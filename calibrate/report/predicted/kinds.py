"""The operations of a predicted pass folded to layer kinds: what every view of a prediction shows as its rows.

A row is what one module path does in one kind, dtype and bound; the index of a repeated layer is "*". So the row of an
operation with one bound lies on the same roof as the operations in it. Rows add up to the pass.

Example: ``sum(row.time_s for row in kind_rows(prediction.passes[0])) == prediction.passes[0].time_s``
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from calibrate.passes.table import layer_kind
from calibrate.report.units import UNKNOWN, dtype, magnitude, number, percent, seconds, size
from roofline.graph.op import Traffic
from roofline.predict.passes import OpPrediction, PassPrediction
from roofline.record import Record

CLASSES = tuple(Traffic.model_fields)

ROWS_IN_TERMINAL = 24
"""More layer kinds than a screen holds are folded there."""


class KindRow(Record):
    """One layer kind, or a sum of some; amounts are totals of the pass."""

    path: str
    """Module path, indices as "*"; "" is the model itself."""
    kind: str
    dtype: str
    """"" in a sum of several."""
    bound: str
    """"" where the time is not known, and in a sum."""
    count: float
    time_s: float | None
    share: float | None
    """Of the pass's time."""
    matrix_flops: float
    vector_flops: float
    bytes: Traffic
    link_bytes: float
    names: tuple[str, ...] = ()
    """Operators, each once."""
    also: tuple[str, ...] = ()
    """What else the kernels do, each once, indices as "*"."""

    @property
    def label(self) -> str:
        return "".join(c if c.isprintable() else "�" for c in self.path) or "(model)"

    @property
    def flops(self) -> float:
        return self.matrix_flops + self.vector_flops

    @property
    def intensity(self) -> float | None:
        """FLOP per byte of memory traffic."""
        return self.flops / self.bytes.total if self.bytes.total else None

    @property
    def flops_per_s(self) -> float | None:
        """What the roofline lets it attain."""
        return self.flops / self.time_s if self.time_s else None


@dataclass(frozen=True)
class Column:
    """A column of the table of layer kinds."""

    key: str
    header: str
    cell: Callable[[KindRow], str]
    """The text that is shown."""
    value: Callable[[KindRow], float | str | None]
    """What a reader sorts by."""
    text: bool = False
    """Left-aligned words, not figures."""


COLUMNS = (
    Column("path", "layer kind", lambda row: row.label, lambda row: row.path, text=True),
    Column("kind", "kind", lambda row: row.kind, lambda row: row.kind, text=True),
    Column("dtype", "dtype", lambda row: dtype(row.dtype), lambda row: row.dtype, text=True),
    Column("count", "×", lambda row: number(row.count), lambda row: row.count),
    Column("time", "time", lambda row: seconds(row.time_s), lambda row: row.time_s),
    Column("share", "share", lambda row: percent(row.share), lambda row: row.share),
    Column("flops", "FLOPs", lambda row: magnitude(row.flops), lambda row: row.flops),
    Column("bytes", "memory", lambda row: size(row.bytes.total), lambda row: row.bytes.total),
    Column("intensity", "FLOP/B", lambda row: magnitude(row.intensity), lambda row: row.intensity),
    Column("rate", "FLOP/s", lambda row: magnitude(row.flops_per_s), lambda row: row.flops_per_s),
    Column("link", "link", lambda row: size(row.link_bytes), lambda row: row.link_bytes),
    Column("bound", "bound", lambda row: row.bound or UNKNOWN, lambda row: row.bound, text=True),
)
"""In reading order; a terminal that is too narrow leaves some out."""

CLASS_COLUMNS = tuple(
    Column(
        name,
        name.replace("activation", "act.").replace("kv", "KV").replace("_", " "),
        lambda row, name=name: size(getattr(row.bytes, name)),  # type: ignore[misc]
        lambda row, name=name: getattr(row.bytes, name),  # type: ignore[misc]
    )
    for name in CLASSES
)
"""The memory traffic by class, for views with room."""


def kind_rows(step: PassPrediction) -> tuple[KindRow, ...]:
    """Every layer kind, the slowest first; those whose time is not known lead, for they need a look."""
    groups: dict[tuple[str, str, str, str], list[OpPrediction]] = {}
    for op in step.ops:
        groups.setdefault((layer_kind(op.path), op.kind.value, op.dtype, op.bound), []).append(op)
    rows = [_row(key, ops, step.time_s) for key, ops in groups.items()]
    return tuple(sorted(rows, key=lambda row: (row.time_s is not None, -(row.time_s or 0.0))))


def shown_columns(rows: Sequence[KindRow], columns: Sequence[Column] = COLUMNS) -> tuple[Column, ...]:
    """Without what says the same in every row: a single dtype, links that nothing crosses."""
    dull = set()
    if len({row.dtype for row in rows if row.dtype}) < 2:
        dull.add("dtype")
    if not any(row.link_bytes for row in rows):
        dull.add("link")
    return tuple(column for column in columns if column.key not in dull)


def total_row(rows: Iterable[KindRow], label: str, whole_s: float | None) -> KindRow:
    """The sum of some rows; a time that one of them does not know is not known of the sum."""
    rows = tuple(rows)
    time_s = _sum(row.time_s for row in rows)
    return KindRow(
        path=label,
        kind="",
        dtype="",
        bound="",
        count=sum(row.count for row in rows),
        time_s=time_s,
        share=_share(time_s, whole_s),
        matrix_flops=sum(row.matrix_flops for row in rows),
        vector_flops=sum(row.vector_flops for row in rows),
        bytes=_traffic(row.bytes for row in rows),
        link_bytes=sum(row.link_bytes for row in rows),
    )


def fold(rows: Sequence[KindRow], whole_s: float | None, keep: int = ROWS_IN_TERMINAL) -> tuple[KindRow, ...]:
    """The first `keep` rows, and one row "N others" that holds the rest's sums."""
    rest = rows[keep:]
    if len(rest) < 2:  # a row that stands for one other row saves nothing
        return tuple(rows)
    return (*rows[:keep], total_row(rest, f"{len(rest)} others", whole_s))


def bound_shares(step: PassPrediction) -> tuple[tuple[str, float], ...]:
    """(what is waited for, share of the known time), the largest first."""
    times: dict[str, float] = {}
    for op in step.ops:
        if op.time_s:
            times[op.bound] = times.get(op.bound, 0.0) + op.time_s
    whole = sum(times.values())
    return tuple(sorted(((name, time / whole) for name, time in times.items()), key=lambda item: -item[1]))


def _row(key: tuple[str, str, str, str], ops: Sequence[OpPrediction], whole_s: float | None) -> KindRow:
    path, kind, type_, bound = key
    time_s = _sum(op.time_s for op in ops)
    return KindRow(
        path=path,
        kind=kind,
        dtype=type_,
        bound=bound,
        count=sum(op.count for op in ops),
        time_s=time_s,
        share=_share(time_s, whole_s),
        matrix_flops=sum(op.matrix_flops for op in ops),
        vector_flops=sum(op.vector_flops for op in ops),
        bytes=_traffic(op.bytes for op in ops),
        link_bytes=sum(op.link_bytes for op in ops),
        names=tuple(dict.fromkeys(op.name for op in ops)),
        also=tuple(dict.fromkeys(_member(words) for op in ops for words in op.also)),
    )


def _member(words: str) -> str:
    """ "path kind" with the index of the layer as "*"."""
    path, space, kind = words.rpartition(" ")
    return f"{layer_kind(path)}{space}{kind}"


def _traffic(parts: Iterable[Traffic]) -> Traffic:
    parts = tuple(parts)
    return Traffic(**{name: sum(getattr(part, name) for part in parts) for name in CLASSES})


def _sum(values: Iterable[float | None]) -> float | None:
    known = tuple(values)
    return None if None in known else sum(value for value in known if value is not None)


def _share(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None
