"""Prices thousands of workloads at once: a parametric graph at a device's peaks, by array arithmetic.

With several memory levels each workload's own reuse distances decide (`in_situ`): tens of microseconds a workload
instead of one.

Example: ``price_sweep(graph, Sweep.of(workloads), spec.datasheet).time_s`` → seconds of a pass, shape (workloads,)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from roofline.caches import Touches, level_bytes
from roofline.graph.memory import Liveness
from roofline.graph.op import Role, Traffic
from roofline.hardware.spec import Peaks
from roofline.price import Overlaps, Rates, roofs
from roofline.sweep.family import Piece
from roofline.sweep.polynomial import CLASSES, Amounts, ParametricGraph, Sweep, places
from roofline.workload import Workload

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Swept:
    """Totals of one pass of each workload; arrays of shape (workloads,)."""

    time_s: Floats
    """NaN where a peak that is needed is not known."""
    count: Floats
    """Operations."""
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


def price_sweep(graph: ParametricGraph, sweep: Sweep, peaks: Peaks) -> Swept:
    """Totals of every workload of `sweep`, which the graph must describe."""
    basis = graph.basis(sweep)
    summed = Summed.of(graph, peaks)
    found = graph.columns.amounts(basis, summed.others)
    count = found.count
    if len(peaks.levels) == 1:
        time_s = summed.time_s(basis) + _total(_each_time_s(graph, summed.others, found, peaks), count)
    else:
        everything = graph.amounts(sweep)
        found_roofs = roofs(
            Rates.of(graph.template.ops, peaks),
            everything.matrix_flops,
            everything.vector_flops,
            in_situ(graph, sweep, peaks),
            everything.link_bytes,
            everything.messages,
        )
        each = Overlaps.of(graph.template.ops).time_s(found_roofs, everything.count)
        time_s = _total(each, everything.count)
    amounts = {"matrix_flops": found.matrix_flops, "vector_flops": found.vector_flops, "link_bytes": found.link_bytes}
    totals = {name: _total(amount, count) for name, amount in (amounts | found.traffic).items()}
    totals["count"] = count.sum(axis=1)
    return Swept(time_s=time_s, **{name: basis @ summed.totals[name] + amount for name, amount in totals.items()})


def _each_time_s(graph: ParametricGraph, ops: NDArray[np.int64], found: Amounts, peaks: Peaks) -> Floats:
    """Seconds of one execution of some operations, shape (workloads, operations)."""
    here = [graph.template.ops[i] for i in ops]
    rates = Rates.of(here, peaks)
    moved = sum(found.traffic.values(), np.zeros(()))
    each = roofs(rates, found.matrix_flops, found.vector_flops, moved[..., None], found.link_bytes, found.messages)
    return Overlaps.of(here).time_s(each, found.count)


def _total(each: Floats, count: Floats) -> Floats:
    return np.einsum("ij,ij->i", each, count)


@dataclass(frozen=True, eq=False)
class Summed:
    """Operations whose amounts and roofs are polynomials, summed before any workload is looked at.

    An operation one of whose roofs is, coefficient by coefficient, no lower than the others is a polynomial itself,
    as monomials are never negative; such operations are one. Of the others equal ones are one.
    """

    others: NDArray[np.int64]
    """Places of the operations that are left: without such polynomials, or without a peak that they need, or in a
    layer with transfers beside all of its operations."""
    totals: dict[str, Floats]
    """Coefficients of each total of `Swept` but the time, shape (monomials,)."""
    one_roof: Floats
    """Seconds of all operations with one roof, shape (monomials,)."""
    several: tuple[Floats, ...]
    """Seconds of operations with as many roofs, each shape (roofs, monomials, operations)."""

    @classmethod
    def of(cls, graph: ParametricGraph, peaks: Peaks) -> "Summed":
        columns, shape = graph.columns, (len(graph.monomials), len(graph.template.ops))
        constant = graph.monomials.index((0, 0, 0, 0)) if (0, 0, 0, 0) in graph.monomials else None
        work = {name: columns.table.get(name, np.zeros(shape)) for name in (*_TOTALS, "messages", "count")}
        seconds = _roof_polynomials(graph, work, peaks)
        varies = np.delete(work["count"], [] if constant is None else [constant], axis=0).any(axis=0)
        special = np.isin(np.arange(shape[1]), list(columns.no_polynomial))
        left = varies | np.isnan(seconds).any(axis=(0, 1)) | special | Overlaps.of(graph.template.ops).members(shape[1])
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


_TOTALS = ("matrix_flops", "vector_flops", "link_bytes", *CLASSES)


def _roof_polynomials(graph: ParametricGraph, work: Mapping[str, Floats], peaks: Peaks) -> Floats:
    """Seconds of one execution at each roof, shape (roofs, monomials, operations); NaN without a needed peak."""
    rates = Rates.of(graph.template.ops, peaks)
    moved = sum((work[name] for name in CLASSES), np.zeros(()))

    def seconds(amount: Floats, each_s: Floats | float) -> Floats:
        return np.where(amount == 0, 0.0, amount * each_s)

    return np.stack([
        seconds(work["matrix_flops"], rates.matrix_s),
        seconds(work["vector_flops"], rates.vector_s),
        seconds(moved, float(rates.level_s[-1])),
        seconds(work["link_bytes"], rates.link_s) + work["messages"] * rates.message_s,
    ])  # fmt: skip


def _highest(polynomials: Floats) -> Floats:
    """Of the roofs of one operation, shape (roofs, monomials), those that can be the highest; at least one."""
    kept: list[Floats] = []
    for roof in polynomials:
        if not any((other >= roof).all() for other in kept):
            kept = [other for other in kept if not (roof >= other).all()] + [roof]
    return np.array(kept)


def price_pieces(pieces: Sequence[Piece], workloads: Sequence[Workload], peaks: Peaks) -> Swept:
    """Totals of every workload, each by the piece that serves it."""
    whole = Sweep.of(workloads)
    out = {field.name: np.full(len(workloads), np.nan) for field in fields(Swept)}
    for piece in pieces:
        part = price_sweep(piece.graph, whole.take(piece.index), peaks)
        for name, values in out.items():
            values[piece.index] = getattr(part, name)
    return Swept(**out)


def memory_sweep(graph: ParametricGraph, sweep: Sweep) -> Memory:
    """Memory of every workload of `sweep`: `footprint` with polynomials for sizes."""
    live = Liveness.of(graph.template)
    sizes = graph.storage
    listed = sweep_values(graph, sweep, (live.weights @ sizes)[None])[:, 0]
    weights = listed if graph.template.weight_bytes is None else np.full(len(sweep), float(graph.template.weight_bytes))
    cache = sweep_values(graph, sweep, (live.cache @ sizes)[None])[:, 0]
    activations = sweep_values(graph, sweep, np.unique(live.activations(sizes), axis=0)).max(axis=1, initial=0)
    held = sweep_values(graph, sweep, np.unique(live.held(sizes), axis=0)).max(axis=1, initial=0)
    return Memory(weights, cache, activations, np.maximum(held, listed + cache) + weights - listed)


def memory_pieces(pieces: Sequence[Piece], workloads: Sequence[Workload]) -> Memory:
    """Memory of every workload, each by the piece that serves it."""
    whole = Sweep.of(workloads)
    out = {field.name: np.full(len(workloads), np.nan) for field in fields(Memory)}
    for piece in pieces:
        part = memory_sweep(piece.graph, whole.take(piece.index))
        for name, values in out.items():
            values[piece.index] = getattr(part, name)
    return Memory(**out)


def sweep_values(graph: ParametricGraph, sweep: Sweep, polynomials: Floats) -> Floats:
    """Polynomials of a graph, shape (n, monomials), at every workload: shape (workloads, n)."""
    return graph.basis(sweep) @ polynomials.T


AT_ONCE = 256
"""Workloads that are followed together: more need more memory and are no faster."""


@dataclass(frozen=True, slots=True)
class _Access:
    tensor: int
    bytes: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Step:
    reads: tuple[_Access, ...]
    writes: tuple[_Access, ...]
    count: float


@dataclass(frozen=True, slots=True)
class _Tensor:
    storage_bytes: NDArray[np.float64]
    role: Role


def in_situ(graph: ParametricGraph, sweep: Sweep, peaks: Peaks) -> NDArray[np.float64]:
    """Bytes of one execution of each operation that each level serves: shape (workloads, operations, levels)."""
    blocks = [
        _followed(graph, sweep.take(index), peaks)
        for start in range(0, len(sweep), AT_ONCE)
        for index in _blocks(graph, sweep, np.arange(start, min(start + AT_ONCE, len(sweep))))
    ]
    return np.concatenate(blocks) if blocks else np.zeros((0, len(graph.template.ops), len(peaks.levels)))


def _blocks(graph: ParametricGraph, sweep: Sweep, index: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Workloads that can be followed together: all, if loops are as long in each."""
    sizes = graph.sizes(sweep.take(index))
    counts = sizes[:, [place.first for place in places(graph.template)]]
    return [index] if (counts == counts[0]).all() else [index[i : i + 1] for i in range(len(index))]


def _followed(graph: ParametricGraph, sweep: Sweep, peaks: Peaks) -> NDArray[np.float64]:
    values = graph.sizes(sweep)
    tensors = [_Tensor(values[:, i], tensor.role) for i, tensor in enumerate(graph.template.tensors)]
    steps = [
        _Step(
            reads=tuple(_Access(a.tensor, values[:, place.reads + i]) for i, a in enumerate(op.reads)),
            writes=tuple(_Access(a.tensor, values[:, place.writes + i]) for i, a in enumerate(op.writes)),
            count=float(values[0, place.first]),
        )
        for op, place in zip(graph.template.ops, places(graph.template), strict=True)
    ]
    return level_bytes(Touches.of(steps, tensors), peaks, "in situ")
