"""Prices thousands of workloads at once: a parametric graph at a device's peaks, by array arithmetic.

With several memory levels each workload's own reuse distances decide which level serves which bytes (`in_situ`): tens
of microseconds a workload instead of one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from roofline.caches import Touches, level_bytes
from roofline.graph.memory import Footprint, Liveness
from roofline.graph.op import Access, Op, Traffic
from roofline.hardware.spec import Peaks
from roofline.price import Floats, Overlaps, Rates, roofs
from roofline.sweep.family import Piece
from roofline.sweep.polynomial import CLASSES, Amounts, ParametricGraph, Sweep, places
from roofline.workload import Workload

AT_ONCE = 256
"""Workloads whose operands are followed together: more need more memory and are no faster."""
_TOTALS = ("matrix_flops", "vector_flops", "link_bytes", *CLASSES)


@dataclass(frozen=True, eq=False)
class Swept:
    """Totals of one pass of each workload; arrays of shape (workloads,)."""

    time_s: Floats
    """NaN where a peak that is needed is not known."""
    count: Floats
    matrix_flops: Floats
    vector_flops: Floats
    weight_read: Floats
    activation_read: Floats
    activation_write: Floats
    kv_read: Floats
    kv_write: Floats
    link_bytes: Floats

    def traffic(self, workload: int) -> Traffic:
        """Bytes by class of one workload."""
        return Traffic(**{name: float(getattr(self, name)[workload]) for name in Traffic.model_fields})


@dataclass(frozen=True, eq=False)
class Memory:
    """Bytes that a pass of each workload needs; arrays of shape (workloads,), as in `Footprint`."""

    weights: Floats
    kv_cache: Floats
    activations: Floats
    peak: Floats

    def footprint(self, workload: int) -> Footprint:
        """Memory of one workload."""
        return Footprint(**{name: float(getattr(self, name)[workload]) for name in Footprint.model_fields})


def price_pieces(pieces: Sequence[Piece], workloads: Sequence[Workload], peaks: Peaks) -> Swept:
    """Totals of every workload, each by the piece that serves it."""
    return Swept(**_by_piece(Swept, pieces, workloads, lambda graph, sweep: price_sweep(graph, sweep, peaks)))


def memory_pieces(pieces: Sequence[Piece], workloads: Sequence[Workload]) -> Memory:
    """Memory of every workload, each by the piece that serves it."""
    return Memory(**_by_piece(Memory, pieces, workloads, memory_sweep))


def _by_piece(
    record: type, pieces: Sequence[Piece], workloads: Sequence[Workload], of: Callable[[ParametricGraph, Sweep], object]
) -> dict[str, Floats]:
    """The arrays of a record in the order of the workloads; NaN for a workload that no piece serves."""
    whole = Sweep.of(workloads)
    out = {field.name: np.full(len(workloads), np.nan) for field in fields(record)}
    for piece in pieces:
        part = of(piece.graph, whole.take(piece.index))
        for name, values in out.items():
            values[piece.index] = getattr(part, name)
    return out


def price_sweep(graph: ParametricGraph, sweep: Sweep, peaks: Peaks) -> Swept:
    """Totals of every workload of `sweep`, which the graph must describe."""
    basis = graph.basis(sweep)
    summed = Summed.of(graph, peaks)
    amounts = graph.columns.amounts(basis, summed.others)
    time_s = time_sweep(graph, sweep, peaks, summed, basis, amounts)
    totals = {name: _total(amounts[name], amounts["count"]) for name in _TOTALS}
    totals["count"] = amounts["count"].sum(axis=1)
    return Swept(time_s=time_s, **{name: basis @ summed.totals[name] + amount for name, amount in totals.items()})


def time_sweep(
    graph: ParametricGraph, sweep: Sweep, peaks: Peaks, summed: "Summed", basis: Floats, amounts: Amounts
) -> Floats:
    """Seconds of every workload: shape (workloads,). `basis` is `graph.basis`, `amounts` those of `summed.others`."""
    if len(peaks.levels) > 1:
        return _pass_s(graph.template.ops, graph.amounts(sweep), in_situ(graph, sweep, peaks), peaks)
    ops = [graph.template.ops[i] for i in summed.others]
    moved = sum((amounts[name] for name in CLASSES), np.zeros(()))[..., None]
    return summed.time_s(basis) + _pass_s(ops, amounts, moved, peaks)


def _pass_s(ops: Sequence[Op], amounts: Amounts, level_bytes: Floats, peaks: Peaks) -> Floats:
    """Seconds of all executions of some operations: shape (workloads,)."""
    work = {name: amounts[name] for name in ("matrix_flops", "vector_flops", "link_bytes", "messages")}
    by_roof = roofs(Rates.of(ops, peaks), level_bytes=level_bytes, **work)
    return _total(Overlaps.of(ops).time_s(by_roof, amounts["count"]), amounts["count"])


def _total(each: Floats, count: Floats) -> Floats:
    return np.einsum("ij,ij->i", each, count)


@dataclass(frozen=True, eq=False)
class Summed:
    """Operations whose amounts and roofs are polynomials, summed before any workload is looked at.

    Where one roof of an operation is, coefficient by coefficient, no lower than the others, its time is a polynomial,
    as monomials are never negative: all such are added up. Equal ones among the others are added as well.
    """

    others: NDArray[np.int64]
    """Places of the operations that are left: without such polynomials or a peak that they need, with a choice of ways
    over a link, or in a layer with overlapping transfers."""
    totals: dict[str, Floats]
    """Coefficients of each total of `Swept` but the time, shape (monomials,)."""
    one_roof: Floats
    """Seconds of all operations with one roof, shape (monomials,)."""
    several: tuple[Floats, ...]
    """Seconds of operations with as many roofs, each shape (roofs, monomials, operations)."""

    @classmethod
    def of(cls, graph: ParametricGraph, peaks: Peaks) -> "Summed":
        columns, shape = graph.columns, (len(graph.monomials), len(graph.template.ops))
        constant = [i for i, exponents in enumerate(graph.monomials) if exponents == (0, 0, 0, 0)]
        work = {name: columns.table.get(name, np.zeros(shape)) for name in (*_TOTALS, "messages", "count")}
        rates = Rates.of(graph.template.ops, peaks)
        seconds = _roof_polynomials(rates, work)
        varies = np.delete(work["count"], constant, axis=0).any(axis=0)
        special = np.isin(np.arange(shape[1]), list(columns.no_polynomial))
        left = varies | np.isnan(seconds).any(axis=(0, 1)) | special | Overlaps.of(graph.template.ops).members(shape[1])
        left |= rates.have_choice
        here = np.flatnonzero(~left)
        count = work["count"][:, here].sum(axis=0)
        roofs_of: dict[bytes, tuple[Floats, float]] = {}
        for polynomials, times in zip(seconds[:, :, here].transpose(2, 0, 1), count.tolist(), strict=True):
            key = polynomials.tobytes()
            roofs_of[key] = polynomials, roofs_of.get(key, (polynomials, 0.0))[1] + times
        by_number: dict[int, list[Floats]] = {}
        for polynomials, times in roofs_of.values():
            highest = _highest(polynomials) * times
            by_number.setdefault(len(highest), []).append(highest)
        return cls(
            others=np.flatnonzero(left),
            totals={name: work[name][:, here] @ count for name in _TOTALS}
            | {"count": work["count"][:, here].sum(axis=1)},
            one_roof=sum((roof[0] for roof in by_number.pop(1, [])), np.zeros(shape[0])),
            several=tuple(np.stack(same, axis=-1) for same in by_number.values()),
        )

    def time_s(self, basis: Floats) -> Floats:
        """Seconds of all these operations at each workload: shape (workloads,)."""
        time_s = basis @ self.one_roof
        for polynomials in self.several:
            highest = basis @ polynomials[0]
            for polynomial in polynomials[1:]:
                np.maximum(highest, basis @ polynomial, out=highest)
            time_s += highest.sum(axis=1)
        return time_s


def _roof_polynomials(rates: Rates, work: Mapping[str, Floats]) -> Floats:
    """Seconds of one execution at each roof, shape (roofs, monomials, operations); NaN without a needed peak.

    Over a link they are those of the first way.
    """
    moved = sum((work[name] for name in CLASSES), np.zeros(()))

    def seconds(amount: Floats, unit_s: Floats | float) -> Floats:
        return np.where(amount == 0, 0.0, amount * unit_s)

    return np.stack([
        seconds(work["matrix_flops"], rates.matrix_s),
        seconds(work["vector_flops"], rates.vector_s),
        seconds(moved, float(rates.level_s[-1])),
        seconds(work["link_bytes"], rates.link_s[0]) + work["messages"] * rates.message_s[0],
    ])  # fmt: skip


def _highest(polynomials: Floats) -> Floats:
    """The roofs of one operation, shape (roofs, monomials), that can be the highest; at least one."""
    kept: list[Floats] = []
    for roof in polynomials:
        if not any((other >= roof).all() for other in kept):
            kept = [other for other in kept if not (roof >= other).all()] + [roof]
    return np.array(kept)


def memory_sweep(graph: ParametricGraph, sweep: Sweep) -> Memory:
    """Memory of every workload of `sweep`: `footprint` with polynomials for sizes."""
    live, basis, sizes = Liveness.of(graph.template), graph.basis(sweep), graph.storage
    listed, cache = ((basis @ (times @ sizes)[None].T)[:, 0] for times in (live.weights, live.cache))
    whole = graph.template.weight_bytes
    weights = listed if whole is None else np.full(len(sweep), float(whole))
    activations, held = (
        (basis @ np.unique(moments, axis=0).T).max(axis=1, initial=0)
        for moments in (live.activations(sizes), live.held(sizes))
    )
    return Memory(weights, cache, activations, np.maximum(held, listed + cache) + weights - listed)


def in_situ(graph: ParametricGraph, sweep: Sweep, peaks: Peaks) -> Floats:
    """Bytes of one execution of each operation that each level serves: shape (workloads, operations, levels).

    Loops whose length differs from workload to workload hide different numbers of bytes, so their graphs are followed
    one workload at a time.
    """
    blocks: list[Floats] = []
    for start in range(0, len(sweep), AT_ONCE):
        index = np.arange(start, min(start + AT_ONCE, len(sweep)))
        counts = graph.sizes(sweep.take(index))[:, [place.first for place in places(graph.template)]]
        together = [index] if (counts == counts[0]).all() else [index[i : i + 1] for i in range(len(index))]
        blocks += [level_bytes(_touches(graph, sweep.take(part)), peaks, "in situ") for part in together]
    return np.concatenate(blocks) if blocks else np.zeros((0, len(graph.template.ops), len(peaks.levels)))


def _touches(graph: ParametricGraph, sweep: Sweep) -> Touches:
    """The operands of the graph's operations, with arrays of shape (workloads,) for sizes."""
    values, template = graph.sizes(sweep), graph.template

    def sized(accesses: Sequence[Access], first: int) -> tuple[Access, ...]:
        return tuple(a.model_copy(update={"bytes": values[:, first + i]}) for i, a in enumerate(accesses))

    tensors = [t.model_copy(update={"storage_bytes": values[:, i]}) for i, t in enumerate(template.tensors)]
    steps = []
    for op, place in zip(template.ops, places(template), strict=True):
        operands = {"reads": sized(op.reads, place.reads), "writes": sized(op.writes, place.writes)}
        steps.append(op.model_copy(update=operands | {"count": float(values[0, place.first])}))
    return Touches.of(steps, tensors)
