"""An operation graph on a device's peaks: the time of every operation, as executed and as the fused ideal.

An operation waits for the slowest of its matrix unit, vector unit, memory and link:
``time = max(matrix_flops / P_matrix, vector_flops / P_vector, Σ_level bytes_level / bandwidth_level,
link_bytes / bandwidth_link + messages · latency_link)``
(Williams, Waterman, Patterson, CACM 52(4), 2009, with one compute roof for each kind of unit and the memory
levels in series; a link as in Hockney, Parallel Computing 20(3), 1994, its latency 0 where it is not known). A time
that needs a peak which is not known is NaN, never a guess; `missing_peaks` says which.

`price` is the rung T2 (or the executed graph at any peaks); `price_fused` is T0 and T1, for the datasheet's and the
measured peaks: a group's time is shared among its members in proportion to their own rooflines at the same peaks.

Transfers that `Overlaps` describes (prefetched weights and cache, keys and values sent on) run while the operations of
their layer do. What a layer needs comes while the one before it runs, what it made goes while the next one runs
(FlexGen, arXiv 2303.06865, section 4.1; Splitwise, arXiv 2311.18677, section 4.2). In a row of layers that are alike,
that is ``max(operations, transfers in, transfers out)`` a layer: what the operations do not hide is waited for, and the
wait is shared by the transfers as they take time. All that crosses a link in a layer counts, both directions apart.
At the ends of the row the first layer's transfer in, or the last one's out, is taken as hidden too.

Example: ``(price(graph, spec.measured).time_s * [op.count for op in graph.ops]).sum()`` → predicted busy seconds.
"""

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from roofline.caches import CacheState, Touches, level_bytes
from roofline.fusion.compiled import Members, kernel_ops
from roofline.fusion.fuse import Group, fuse
from roofline.graph.op import OpGraph, layer_key
from roofline.hardware.spec import Peaks

Floats = NDArray[np.float64]
Index = NDArray[np.int64]

UNKNOWN = ""
"""The bound of an operation whose time is not known."""


class Work(Protocol):
    """What the roofs need of an operation or a fused group, besides its bytes by level."""

    @property
    def matrix_flops(self) -> float: ...
    @property
    def vector_flops(self) -> float: ...
    @property
    def dtype(self) -> str: ...
    @property
    def link(self) -> str | None: ...
    @property
    def link_bytes(self) -> float: ...
    @property
    def messages(self) -> float: ...
    @property
    def path(self) -> str: ...
    @property
    def beside(self) -> str | None: ...
    @property
    def count(self) -> float: ...


@dataclass(frozen=True, eq=False)
class Priced:
    """Times of a list of operations, in its order."""

    time_s: Floats
    """Shape (operations,): seconds of one execution; NaN where a needed peak is not known."""
    bound: tuple[str, ...]
    """What each waits for: "matrix", "vector", the memory level that takes most of its time, its link, or `UNKNOWN`."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A graph with what pricing needs of it, so that several peaks share the work."""

    graph: OpGraph

    @cached_property
    def touches(self) -> Touches:
        return Touches.of(self.graph.ops, self.graph.tensors)

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        return fuse(self.graph)

    @cached_property
    def group_touches(self) -> Touches:
        return Touches.of(self.groups, self.graph.tensors)


def price(graph: OpGraph | Prepared, peaks: Peaks, state: CacheState = "in situ") -> Priced:
    """The executed graph at `peaks`: shape (operations,), seconds of one execution."""
    prepared = _prepared(graph)
    return roofline(prepared.graph.ops, level_bytes(prepared.touches, peaks, state), peaks)


def price_groups(graph: OpGraph | Prepared, peaks: Peaks, state: CacheState = "in situ") -> Priced:
    """The fused graph at `peaks`: shape (groups,), in the order of `fuse`."""
    prepared = _prepared(graph)
    return roofline(prepared.groups, level_bytes(prepared.group_touches, peaks, state), peaks)


def price_fused(graph: OpGraph | Prepared, peaks: Peaks, state: CacheState = "in situ") -> Priced:
    """The fused graph at `peaks`, shared among the executed operations: shape (operations,).

    The bound of an operation is that of its group.
    """
    prepared = _prepared(graph)
    groups = price_groups(prepared, peaks, state)
    weights = price(prepared, peaks, state).time_s
    time_s = np.zeros(len(weights))
    bound = [""] * len(weights)
    for group, total, waits_for in zip(prepared.groups, groups.time_s.tolist(), groups.bound, strict=True):
        members = list(group.ops)
        time_s[members] = shares(weights[members].tolist(), total)
        for i in members:
            bound[i] = waits_for
    return Priced(time_s=time_s, bound=tuple(bound))


def price_kernels(graph: OpGraph, members: Members, peaks: Peaks, state: CacheState = "in situ") -> Priced:
    """A compiler's kernels at `peaks`: shape (kernels,), seconds of one call."""
    ops = kernel_ops(graph, members)
    return roofline(ops, level_bytes(Touches.of(ops, graph.tensors), peaks, state), peaks)


def share(graph: OpGraph, members: Members, kernel_s: Sequence[float] | Floats, peaks: Peaks | None) -> Floats:
    """Times of kernels shared among the operations: shape (operations,), 0 where no kernel runs one.

    In proportion to the members' own rooflines; to their bytes where a peak that one of them needs is not known.
    """
    moved = [float(traffic.total) for traffic in graph.traffic]
    own = price(graph, peaks).time_s.tolist() if peaks is not None else [math.nan] * len(graph.ops)
    time_s = np.zeros(len(graph.ops))
    for ops, total in zip(members, kernel_s, strict=True):
        weights = [own[i] for i in ops]
        if any(math.isnan(weight) for weight in weights):
            weights = [moved[i] for i in ops]
        time_s[list(ops)] += shares(weights, float(total))
    return time_s


def shares(weights: Sequence[float], total: float) -> list[float]:
    """`total` in proportion to the weights, equally if all are 0; NaN for all if any weight is not known."""
    whole = sum(weights)
    return [total * weight / whole if whole != 0 else total / len(weights) for weight in weights]


def _prepared(graph: OpGraph | Prepared) -> Prepared:
    return graph if isinstance(graph, Prepared) else Prepared(graph)


@dataclass(frozen=True, eq=False)
class Rates:
    """Seconds that each operation needs for a unit of its work on given peaks; NaN where the peak is not known."""

    matrix_s: Floats
    """Shape (operations,): a FLOP."""
    vector_s: Floats
    """Shape (operations,): a FLOP."""
    level_s: Floats
    """Shape (levels,): a byte."""
    link_s: Floats
    """Shape (operations,): a byte."""
    message_s: Floats
    """Shape (operations,): a message."""

    @classmethod
    def of(cls, work: Sequence[Work], peaks: Peaks) -> "Rates":
        links = [peaks.links.get(w.link) if w.link else None for w in work]
        return cls(
            matrix_s=_inverse([matrix_peak(peaks, w.dtype) for w in work]),
            vector_s=_inverse([vector_peak(peaks, w.dtype) for w in work]),
            level_s=_inverse([level.bandwidth.value for level in peaks.levels]),
            link_s=_inverse([link.bandwidth.value if link else None for link in links]),
            message_s=np.array([link.latency_s.value if link and link.latency_s else 0.0 for link in links]),
        )


def roofs(
    rates: Rates, matrix_flops: Floats, vector_flops: Floats, level_bytes: Floats, link_bytes: Floats, messages: Floats
) -> tuple[Floats, ...]:
    """Seconds at each of the four roofs: matrix, vector, memory, link; the time is their maximum (but: `Overlaps`).

    Args: shapes (…, operations), and (…, operations, levels) for `level_bytes`. Any work without a peak is NaN.
    """
    return (
        _seconds(matrix_flops, rates.matrix_s),
        _seconds(vector_flops, rates.vector_s),
        level_bytes @ rates.level_s,
        _seconds(link_bytes, rates.link_s) + messages * rates.message_s,
    )


def roofline(work: Sequence[Work], level_bytes: Floats, peaks: Peaks) -> Priced:
    """Price every item of `work`; `level_bytes` has shape (items, levels), in bytes, levels as in `peaks`."""
    if level_bytes.shape != (len(work), len(peaks.levels)):
        raise ValueError(f"level_bytes is {level_bytes.shape}, needed {(len(work), len(peaks.levels))}")
    rates = Rates.of(work, peaks)
    each = roofs(
        rates,
        _column([w.matrix_flops for w in work]),
        _column([w.vector_flops for w in work]),
        level_bytes,
        _column([w.link_bytes for w in work]),
        _column([w.messages for w in work]),
    )
    time_s = Overlaps.of(work).time_s(each, _column([w.count for w in work]))
    hidden = np.array([w.beside is not None for w in work], dtype=bool)
    waits = time_s > np.maximum.reduce(each[:-1])
    roof_s = np.stack((*each[:-1], np.where(hidden, np.where(waits, time_s, 0.0), each[-1])), axis=-1)
    level_s = level_bytes * rates.level_s
    # an operation with no work at all is said to wait for main memory
    level = np.where(level_s.sum(axis=-1) > 0, level_s.argmax(axis=-1), len(peaks.levels) - 1)
    slowest = np.where(time_s == 0, 2, np.where(np.isnan(roof_s), -np.inf, roof_s).argmax(axis=-1))
    names = [lv.name for lv in peaks.levels]
    bound = tuple(
        UNKNOWN if np.isnan(time) else ("matrix", "vector", names[at], w.link or "")[roof]
        for w, time, roof, at in zip(work, time_s.tolist(), slowest.tolist(), level.tolist(), strict=True)
    )
    return Priced(time_s=time_s, bound=bound)


def matrix_peak(peaks: Peaks, dtype: str) -> float | None:
    """FLOP/s of matrix work with inputs of `dtype`; None if not known."""
    figure = peaks.matrix.get(dtype)
    return figure.value if figure else None


def vector_peak(peaks: Peaks, dtype: str) -> float | None:
    """FLOP/s of vector work in `dtype`, or in float32 where `dtype` has no figure of its own; None if not known."""
    figure = peaks.vector.get(dtype) or peaks.vector.get("float32")
    return figure.value if figure else None


def missing_peaks(work: Sequence[Work], peaks: Peaks) -> tuple[str, ...]:
    """The peaks that `work` needs and `peaks` lacks: ("link nvlink", "matrix bfloat16", …), sorted."""
    missing = {f"matrix {w.dtype}" for w in work if w.matrix_flops > 0 and matrix_peak(peaks, w.dtype) is None}
    missing |= {f"vector {w.dtype}" for w in work if w.vector_flops > 0 and vector_peak(peaks, w.dtype) is None}
    missing |= {f"link {w.link}" for w in work if w.link_bytes > 0 and (w.link or "") not in peaks.links}
    return tuple(sorted(missing))


def _column(values: Sequence[float]) -> Floats:
    return np.array(values, dtype=float)


def _inverse(rates: Sequence[float | None]) -> Floats:
    return 1.0 / np.array([np.nan if rate is None else rate for rate in rates], dtype=float)


def _seconds(amount: Floats, per_unit: Floats) -> Floats:
    """amount × seconds each; 0 without work whatever the peak, NaN for work without a peak."""
    return np.where(amount > 0, amount * per_unit, 0.0)


@dataclass(frozen=True, eq=False)
class _Layer:
    members: Index
    """Operations of one layer."""
    overlapping: Index
    """Those of them whose transfers run while the layer does."""
    crossing: tuple[Index, ...]
    """For each link and direction that those use, all of the layer that cross it."""


@dataclass(frozen=True, eq=False)
class Overlaps:
    """The layers of a graph that have transfers which overlap with all of the layer's operations."""

    layers: tuple[_Layer, ...]

    @classmethod
    def of(cls, ops: Sequence[Work]) -> "Overlaps":
        by_layer: dict[Hashable, list[int]] = defaultdict(list)
        if any(op.beside for op in ops):
            for i, op in enumerate(ops):
                by_layer[layer_key(op.path)].append(i)
        return cls(tuple(_layer(ops, members) for members in by_layer.values() if any(ops[i].beside for i in members)))

    def members(self, operations: int) -> NDArray[np.bool_]:
        """Which operations have a time that depends on others: shape (operations,)."""
        out = np.zeros(operations, dtype=bool)
        for layer in self.layers:
            out[layer.members] = True
        return out

    def time_s(self, roofs: Sequence[Floats], count: Floats) -> Floats:
        """Seconds of one execution of each operation, NaN where one of its roofs, or of its layer's, is not known.

        Args: the roofs of each operation, that of its link as the last, and its executions; shapes (…, operations).
        """
        time_s = np.maximum.reduce(roofs)  # NaN wins
        for layer in self.layers:
            time_s[..., layer.overlapping] = np.maximum.reduce([roof[..., layer.overlapping] for roof in roofs[:-1]])
        for layer in self.layers:
            crossing_s = roofs[-1] * count
            runs_s = (time_s[..., layer.members] * count[..., layer.members]).sum(axis=-1)
            needed_s = np.maximum.reduce([crossing_s[..., same].sum(axis=-1) for same in layer.crossing])
            wait_s = np.maximum(needed_s - runs_s, 0.0)
            whole_s = crossing_s[..., layer.overlapping].sum(axis=-1)
            part = np.divide(wait_s, whole_s, out=np.zeros_like(wait_s), where=whole_s != 0)
            time_s[..., layer.overlapping] += part[..., None] * roofs[-1][..., layer.overlapping]
        return time_s


def _layer(ops: Sequence[Work], members: list[int]) -> _Layer:
    overlapping = [i for i in members if ops[i].beside]
    ways = dict.fromkeys((ops[i].link, ops[i].beside) for i in overlapping)
    crossing = tuple(
        np.array([i for i in members if ops[i].link == link and ops[i].beside in (None, way)]) for link, way in ways
    )
    return _Layer(np.array(members), np.array(overlapping), crossing)
