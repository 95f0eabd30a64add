"""An operation graph on a device's peaks: the time of every operation, as executed and as the fused ideal.

An operation waits for the slowest of its matrix unit, vector unit, memory and link:
``time = max(matrix_flops / P_matrix, vector_flops / P_vector, Σ_level bytes_level / bandwidth_level,
link_bytes / bandwidth_link + messages · latency_link)``
(Williams, Waterman, Patterson, CACM 52(4), 2009, with one compute roof for each kind of unit and the memory
levels in series; a link as in Hockney, Parallel Computing 20(3), 1994, its latency 0 where it is not known). A
collective over a link takes the fastest way that the link has (`ways`). A time that needs a peak which is not known is
NaN, never a guess; `missing_peaks` says which.

`price` prices the executed graph (rung T2); `price_fused` the ideal one at the datasheet's (T0) or the measured peaks
(T1): a group's time is shared among its members in proportion to their own rooflines at the same peaks.

Transfers that `Overlaps` describes (prefetched weights and cache, keys and values sent on) run while the operations of
their layer do. What a layer needs comes while the one before it runs, what it made goes while the next one runs
(FlexGen, arXiv 2303.06865, section 4.1; Splitwise, arXiv 2311.18677, section 4.2). In a row of layers that are alike,
that is ``max(operations, transfers in, transfers out)`` a layer: what the operations do not hide is waited for, and the
wait is shared by the transfers as they take time. All that crosses a link in a layer counts, both directions apart.
At the ends of the row the first layer's transfer in, or the last one's out, is taken as hidden too.
"""

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from roofline.caches import CacheState, Touches, level_bytes
from roofline.fusion.fuse import Group, Members, fuse, kernel_ops
from roofline.graph.op import Kind, Op, OpGraph, layer_key
from roofline.hardware.spec import Link, Peaks

Floats = NDArray[np.float64]
Index = NDArray[np.int64]

UNKNOWN = ""
"""The bound of an operation whose time is not known."""


@dataclass(frozen=True, eq=False)
class Priced:
    """Times of a list of operations, in its order."""

    time_s: Floats
    """Shape (operations,): seconds of one execution; NaN where a needed peak is not known."""
    bound: tuple[str, ...]
    """Bound of each operation: "matrix", "vector", the memory level with most of its time, its link, or `UNKNOWN`."""


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
    groups, weights = price_groups(prepared, peaks, state), price(prepared, peaks, state).time_s
    time_s, bound = np.zeros(len(weights)), [""] * len(weights)
    for group, total, waits_for in zip(prepared.groups, groups.time_s.tolist(), groups.bound, strict=True):
        time_s[list(group.ops)] = shares(weights[list(group.ops)].tolist(), total)
        for i in group.ops:
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
    """Seconds for a unit of work on given peaks; NaN where the peak is not known."""

    matrix_s: Floats
    """Seconds of a FLOP of each operation, shape (operations,), as all but `level_s`."""
    vector_s: Floats
    level_s: Floats
    """Seconds of a byte of each level, shape (levels,)."""
    link_s: Floats
    """A byte of `Op.link_bytes` over the operation's link, each way: shape (ways, operations)."""
    message_s: Floats
    """The same for one of `Op.messages`."""

    @classmethod
    def of(cls, ops: Sequence[Op], peaks: Peaks) -> "Rates":
        links = [peaks.links.get(op.link) if op.link else None for op in ops]
        each = [ways(op, link) for op, link in zip(ops, links, strict=True)]
        most = max(map(len, each), default=1)
        shares = np.array([[*own, *own[:1] * (most - len(own))] for own in each]).reshape(len(ops), most, 2)
        bytes_s = _inverse(
            [link.bytes_per_s(_ranks(op)) if link else None for op, link in zip(ops, links, strict=True)]
        )
        latency_s = np.array([link.latency_s.value if link and link.latency_s else 0.0 for link in links])
        return cls(
            matrix_s=_inverse([matrix_peak(peaks, op.dtype) for op in ops]),
            vector_s=_inverse([vector_peak(peaks, op.dtype) for op in ops]),
            level_s=_inverse([level.bandwidth.value for level in peaks.levels]),
            link_s=shares[:, :, 0].T * bytes_s,
            message_s=shares[:, :, 1].T * latency_s,
        )

    @property
    def have_choice(self) -> NDArray[np.bool_]:
        """Return which operations have more than one way over their link: shape (operations,)."""
        differ = (self.link_s != self.link_s[0]) | (self.message_s != self.message_s[0])
        return np.asarray((differ & ~np.isnan(self.link_s)).any(axis=0))


def ways(op: Op, link: Link | None) -> list[tuple[float, float]]:
    """The ways of an operation over its link, as shares of `Op.link_bytes` and of `Op.messages`, which are a ring's.

    Where all n devices reach each other, S bytes are summed in two steps with the bytes of a ring, or in one step in
    which each device sends all of its bytes to each other one, (n − 1)·S (Thakur, Rabenseifner, Gropp, IJHPCA 19(1),
    2005, section 4.5). Switches that add up take S from each device and send the S ÷ n that it asked for, which it then
    sends to all: (n + 1) ÷ n·S in two steps (NCCL's NVLS, src/graph/tuning.cc). All other collectives take one step.
    """
    if link is None or not link.direct or op.kind is not Kind.COLLECTIVE or not op.messages:
        return [(1.0, 1.0)]
    step = 1 / op.messages
    if not op.name.endswith("all_reduce"):
        return [(1.0, step)]
    ranks = _ranks(op)
    summed = [((ranks + 1) / (2 * (ranks - 1)), 2 * step)] if link.reduces else []
    return [(1.0, 2 * step), (ranks / 2, step), *summed]


def _ranks(op: Op) -> int:
    return op.dims.get("ranks", 2)


def roofs(
    rates: Rates, matrix_flops: Floats, vector_flops: Floats, level_bytes: Floats, link_bytes: Floats, messages: Floats
) -> tuple[Floats, ...]:
    """Seconds at each of the four roofs: matrix, vector, memory, link; the time is their maximum (but: `Overlaps`).

    Args: shapes (…, operations), and (…, operations, levels) for `level_bytes`. Any work without a peak is NaN.
    """

    def seconds(amount: Floats, per_unit: Floats) -> Floats:  # 0 without work whatever the peak
        return np.where(amount > 0, amount * per_unit, 0.0)

    return (
        seconds(matrix_flops, rates.matrix_s),
        seconds(vector_flops, rates.vector_s),
        level_bytes @ rates.level_s,
        np.minimum.reduce([
            seconds(link_bytes, link_s) + messages * message_s
            for link_s, message_s in zip(rates.link_s, rates.message_s, strict=True)
        ]),
    )  # fmt: skip


def op_roofs(ops: Sequence[Op], rates: Rates, level_bytes: Floats) -> tuple[Floats, ...]:
    """The roofs of operations with one workload's sizes."""
    names = ("matrix_flops", "vector_flops", "link_bytes", "messages")
    matrix_flops, vector_flops, link_bytes, messages = (_column(ops, name) for name in names)
    return roofs(rates, matrix_flops, vector_flops, level_bytes, link_bytes, messages)


def roofline(ops: Sequence[Op], level_bytes: Floats, peaks: Peaks) -> Priced:
    """Price every operation; `level_bytes` has shape (operations, levels), in bytes, levels as in `peaks`."""
    if level_bytes.shape != (len(ops), len(peaks.levels)):
        raise ValueError(f"level_bytes is {level_bytes.shape}, needed {(len(ops), len(peaks.levels))}")
    rates = Rates.of(ops, peaks)
    by_roof = op_roofs(ops, rates, level_bytes)
    time_s = Overlaps.of(ops).time_s(by_roof, _column(ops, "count"))
    hidden = np.array([op.beside is not None for op in ops], dtype=bool)
    waits = time_s > np.maximum.reduce(by_roof[:-1])
    roof_s = np.stack((*by_roof[:-1], np.where(hidden, np.where(waits, time_s, 0.0), by_roof[-1])), axis=-1)
    level_s = level_bytes * rates.level_s
    # an operation with no work at all is said to wait for main memory
    level = np.where(level_s.sum(axis=-1) > 0, level_s.argmax(axis=-1), len(peaks.levels) - 1)
    slowest = np.where(time_s == 0, 2, np.where(np.isnan(roof_s), -np.inf, roof_s).argmax(axis=-1))
    names = [lv.name for lv in peaks.levels]
    bound = tuple(
        UNKNOWN if np.isnan(time) else ("matrix", "vector", names[at], op.link or "")[roof]
        for op, time, roof, at in zip(ops, time_s.tolist(), slowest.tolist(), level.tolist(), strict=True)
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


def missing_peaks(ops: Sequence[Op], peaks: Peaks) -> tuple[str, ...]:
    """The peaks that `ops` need and `peaks` lacks: ("link nvlink", "matrix bfloat16", …), sorted."""
    missing = {f"matrix {op.dtype}" for op in ops if op.matrix_flops > 0 and matrix_peak(peaks, op.dtype) is None}
    missing |= {f"vector {op.dtype}" for op in ops if op.vector_flops > 0 and vector_peak(peaks, op.dtype) is None}
    for op in ops:
        link = peaks.links.get(op.link or "")
        if op.link_bytes > 0 and link is None:
            missing.add(f"link {op.link}")
        elif op.link_bytes > 0 and link is not None and link.bytes_per_s(_ranks(op)) is None:
            missing.add(f"link {op.link} among {_ranks(op)} devices")
    return tuple(sorted(missing))


def _column(ops: Sequence[Op], name: str) -> Floats:
    return np.array([getattr(op, name) for op in ops], dtype=float)


def _inverse(rates: Sequence[float | None]) -> Floats:
    return 1.0 / np.array([np.nan if rate is None else rate for rate in rates], dtype=float)


@dataclass(frozen=True, eq=False)
class _Layer:
    members: Index
    """Operations of one layer."""
    overlapping: Index
    """Members whose transfers run while the layer does."""
    crossing: tuple[Index, ...]
    """All members that cross each link and direction of these transfers."""


@dataclass(frozen=True, eq=False)
class Overlaps:
    """The layers of a graph that have transfers which overlap with all of the layer's operations."""

    layers: tuple[_Layer, ...]

    @classmethod
    def of(cls, ops: Sequence[Op]) -> "Overlaps":
        by_layer: dict[Hashable, list[int]] = defaultdict(list)
        if any(op.beside for op in ops):
            for i, op in enumerate(ops):
                by_layer[layer_key(op.path)].append(i)
        layers = []
        for members in by_layer.values():
            overlapping = [i for i in members if ops[i].beside]
            ways = dict.fromkeys((ops[i].link, ops[i].beside) for i in overlapping)
            crossing = tuple(
                np.array([i for i in members if ops[i].link == link and ops[i].beside in (None, way)])
                for link, way in ways
            )
            if overlapping:
                layers.append(_Layer(np.array(members), np.array(overlapping), crossing))
        return cls(tuple(layers))

    def members(self, operations: int) -> NDArray[np.bool_]:
        """Return which operations have a time that depends on others: shape (operations,)."""
        out = np.zeros(operations, dtype=bool)
        for layer in self.layers:
            out[layer.members] = True
        return out

    def time_s(self, roofs: Sequence[Floats], count: Floats) -> Floats:
        """Seconds of one execution of each operation, NaN where one of its roofs, or of its layer's, is not known.

        Args: shapes (…, operations): the roofs of each operation, its link's as the last, and its executions.
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
