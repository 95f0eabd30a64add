"""Rows of a prediction's tables: its layer kinds, their sums, and titles of passes.

A layer kind is what one module path does in one kind, dtype and bound, the index of a repeated layer being "*". So the
row of an operation with one bound lies on the same roof as the operations in it. Rows add up to the pass.
"""

from collections.abc import Sequence
from typing import Any

from calibrate.passes.table import layer_kind
from calibrate.report.document import printable
from calibrate.report.titles import workload_title
from roofline.graph.op import Traffic
from roofline.predict.passes import OpPrediction, PassPrediction
from roofline.record import Record
from roofline.units import known_sum, magnitude, ratio

CLASSES = tuple(Traffic.model_fields)
SERIES = 12
"""Lines that can be told apart; of more, so many evenly chosen ones are drawn."""


class KindRow(Record):
    """One layer kind, or a sum of some; amounts are totals of the pass."""

    path: str
    """Module path, indices as "*"; "" is the model itself."""
    kind: str = ""
    dtype: str = ""
    bound: str = ""
    """"" where the time is not known; all three are "" in a sum of several kinds."""
    count: float
    time_s: float | None
    share: float | None
    """The share of the pass's time."""
    matrix_flops: float
    vector_flops: float
    bytes: Traffic
    link_bytes: float
    source: str = ""
    """Origin of its time: "roofline", "law of matmul bfloat16"; several are joined by " + "."""
    names: tuple[str, ...] = ()
    """Names of the operators, each once."""
    also: tuple[str, ...] = ()
    """Other work of the kernels, each path and kind once, indices as "*"."""

    @property
    def label(self) -> str:
        return printable(self.path) or "(model)"

    @property
    def flops(self) -> float:
        return self.matrix_flops + self.vector_flops

    @property
    def intensity(self) -> float | None:
        """FLOP per byte of memory traffic."""
        return self.flops / self.bytes.total if self.bytes.total else None

    @property
    def flops_per_s(self) -> float | None:
        """The rate that the roofline lets it attain."""
        return self.flops / self.time_s if self.time_s else None

    @property
    def on_roofline(self) -> bool:
        """Whether it has a place on a logarithmic plot."""
        return self.flops > 0 and self.bytes.total > 0 and bool(self.time_s)


def on_roofline(step: PassPrediction) -> tuple[KindRow, ...]:
    """Layer kinds with a place on a logarithmic plot."""
    return tuple(row for row in kind_rows(step) if row.on_roofline)


def phase(step: PassPrediction) -> str:
    """The phase of the workload, or "mixed"."""
    return step.workloads[0].phase if len(step.workloads) == 1 else "mixed"


def pass_title(step: PassPrediction) -> str:
    """ "decode b8 q1 ctx 2048 bf16", or the parts of a mixed batch."""
    parts = " + ".join(workload_title(workload) for workload in step.workloads)
    return parts if len(step.workloads) == 1 else f"mixed: {parts}"


def rate(tokens_per_s: float | None) -> str:
    """Tokens a second."""
    return f"{magnitude(tokens_per_s)} tokens/s"


def kind_rows(step: PassPrediction) -> tuple[KindRow, ...]:
    """Every layer kind, the slowest first; those whose time is not known lead, for they need a look."""
    groups: dict[tuple[str, str, str, str], list[OpPrediction]] = {}
    for op in step.ops:
        groups.setdefault((layer_kind(op.path), op.kind.value, op.dtype, op.bound), []).append(op)
    rows = [_row(key, ops, step.time_s) for key, ops in groups.items()]
    return tuple(sorted(rows, key=lambda row: (row.time_s is not None, -(row.time_s or 0.0))))


def total_row(rows: Sequence[KindRow], label: str, whole_s: float | None) -> KindRow:
    """The sum of some rows; a time that one of them does not know is not known of the sum."""
    return KindRow(path=label, **_sums(rows, whole_s))


def fold(rows: Sequence[KindRow], whole_s: float | None, keep: int = 24) -> tuple[KindRow, ...]:
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
    members = (words.rpartition(" ") for op in ops for words in op.also)  # "path kind"
    also = {layer_kind(member) + space + what: None for member, space, what in members}
    names = {op.name: None for op in ops}
    source = " + ".join(dict.fromkeys(op.source for op in ops))
    about = {"path": path, "kind": kind, "dtype": type_, "bound": bound, "names": tuple(names), "also": tuple(also)}
    return KindRow(**about, source=source, **_sums(ops, whole_s))


def _sums(parts: Sequence[KindRow] | Sequence[OpPrediction], whole_s: float | None) -> dict[str, Any]:
    sums = ("count", "matrix_flops", "vector_flops", "link_bytes")
    time_s = known_sum(part.time_s for part in parts)
    traffic = {name: sum(getattr(part.bytes, name) for part in parts) for name in CLASSES}
    return {name: sum(getattr(part, name) for part in parts) for name in sums} | {
        "time_s": time_s,
        "share": ratio(time_s, whole_s),
        "bytes": Traffic(**traffic),
    }
