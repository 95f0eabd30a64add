"""How much memory a pass needs: weights, KV cache and activations, and the largest workload that fits.

Memory at an operation is the sum of the storages that are held during it; views are part of their storage. A tensor
is held as Python held it in the traced pass (`Tensor.held`); where that is not known (a fused graph, a what-if), an
activation is held from its first write to its last access, and the cache throughout. Memory that an operator allocates
and frees inside itself counts only if the trace wrote it down as a tensor; fragmentation, the context of the device and
its libraries' workspaces are left out.

In a folded graph a weight or cache tensor counts as often as the least repeated operation that touches it (a weight
that nothing touches: that runs in the nearest module around it). Memory is that of the last repetition: the other
layers' caches have grown already, their activations are gone. Folding loses the connections of layers, so take the
footprint of the whole graph where it is at hand. All is linear in the sizes of the tensors: `Liveness` also serves
sizes that are polynomials in batch and context, as arrays of their coefficients.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from roofline.graph.op import Op, OpGraph, Tensor
from roofline.record import Record

Floats = NDArray[np.float64]


class Footprint(Record):
    """Memory of one pass, in bytes. ``weights + kv_cache + activations >= peak``: they need not peak together."""

    weights: float = Field(ge=0)
    """All parameters and buffers of the whole model, tied ones once, those that the pass does not use too."""
    kv_cache: float = Field(ge=0)
    """Size of the cache after the pass."""
    activations: float = Field(ge=0)
    """Most that is held at one time beyond the weights and the cache, with an old cache beside its longer copy."""
    peak: float = Field(ge=0)
    """Most that is held at one time in all."""


def footprint(graph: OpGraph) -> Footprint:
    """The memory of one pass of `graph`."""
    live, sizes = Liveness.of(graph), storage_bytes(graph)
    listed, cache = float(live.weights @ sizes), float(live.cache @ sizes)
    weights = listed if graph.weight_bytes is None else float(graph.weight_bytes)
    return Footprint(
        weights=weights,
        kv_cache=cache,
        activations=float(live.activations(sizes).max(initial=0)),
        peak=float(live.held(sizes).max(initial=listed + cache)) + weights - listed,
    )


def storage_bytes(graph: OpGraph) -> Floats:
    """Size of each tensor in the device's memory: shape (tensors,)."""
    return np.array([tensor.storage_bytes * (1 - tensor.on_host) for tensor in graph.tensors], dtype=float)


def largest(fits: Callable[[int], float], capacity_bytes: float, limit: int) -> int:
    """The largest n of 1 … `limit` for which ``fits(n)`` bytes, which must not fall with n, are within the capacity.

    0 if not even 1 does. `fits` is called about 2·log2(n) times. Raises: ValueError if `limit` is below 1.
    """
    if limit < 1:
        raise ValueError(f"limit is {limit}: nothing to try; use 1 or more")
    bad = 1
    while bad <= limit and fits(bad) <= capacity_bytes:
        bad *= 2
    tried = range(bad // 2 + 1, min(bad, limit + 1))
    return bad // 2 + bisect_left(tried, True, key=lambda n: fits(n) > capacity_bytes)


@dataclass(frozen=True, eq=False)
class Liveness:
    """Which tensors are in memory at which operation, apart from how large they are."""

    operations: int
    weights: Floats
    """Shape (tensors,): how often each counts as a weight."""
    cache: Floats
    """Shape (tensors,): how often each counts in the cache after the pass."""
    spans: tuple["Span", ...]

    @classmethod
    def of(cls, graph: OpGraph) -> "Liveness":
        """Follow each tensor of `graph` through its operations."""
        touched = _touches(graph)
        repeats = [_repeats(graph, tensor, touched[tensor.id]) for tensor in graph.tensors]
        weights, cache = np.zeros(len(graph.tensors)), np.zeros(len(graph.tensors))
        end = len(graph.ops)
        spans = [*_cache_spans(graph, touched, repeats)]
        for tensor in graph.tensors:
            if tensor.role == "weight":
                weights[tensor.id] = repeats[tensor.id]
                spans.append(Span(tensor.id, 0, end, repeats[tensor.id], False))
            elif tensor.role == "activation":
                spans.append(Span(tensor.id, *_lifetime(tensor, touched[tensor.id], end), 1, True))
        for kept in set(_survivors(graph.tensors, touched, end).values()):
            cache[kept] = repeats[kept]
        return cls(end, weights, cache, tuple(span for span in spans if span.start < span.stop and span.times))

    def held(self, sizes: ArrayLike) -> Floats:
        """Bytes in memory during each operation: shape (operations, …) for `sizes` of shape (tensors, …)."""
        return self._sum(self.spans, sizes)

    def activations(self, sizes: ArrayLike) -> Floats:
        """Bytes beyond the weights and the cache, as `held`; of a cache that is being copied the old one counts."""
        return self._sum([span for span in self.spans if span.beyond], sizes)

    def _sum(self, spans: Sequence["Span"], sizes: ArrayLike) -> Floats:
        all_sizes = np.asarray(sizes, dtype=float)
        tensor, start, stop = (
            np.array([getattr(span, name) for span in spans], dtype=int) for name in ("tensor", "start", "stop")
        )
        times = np.array([span.times for span in spans]).reshape(-1, *[1] * (all_sizes.ndim - 1))
        change = np.zeros((self.operations + 1, *all_sizes.shape[1:]))
        np.add.at(change, start, all_sizes[tensor] * times)
        np.subtract.at(change, stop, all_sizes[tensor] * times)
        return np.cumsum(change, axis=0)[: self.operations]


@dataclass(frozen=True)
class Span:
    """A tensor is in memory, so many times, from operation `start` until before operation `stop`."""

    tensor: int
    start: int
    stop: int
    times: float
    beyond: bool
    """Whether the tensor is neither a weight nor the cache, but comes on top of them."""


class _Touch(NamedTuple):
    op: int
    writes: bool


def _touches(graph: OpGraph) -> list[list[_Touch]]:
    """The operations that access each tensor, in order; a read comes before a write of the same operation."""
    touched: list[list[_Touch]] = [[] for _ in graph.tensors]
    for i, op in enumerate(graph.ops):
        for writes, accesses in ((False, op.reads), (True, op.writes)):
            for access in accesses:
                touched[access.tensor].append(_Touch(i, writes))
    return touched


def _lifetime(tensor: Tensor, touched: Sequence[_Touch], end: int) -> tuple[int, int]:
    """First operation during which it is in memory, and the next one during which it is not: equal where none is."""
    if tensor.held is not None:
        return max(0, tensor.held[0]), min(end, tensor.held[1] + 1)
    if not touched:
        return 0, 0
    return touched[0].op if touched[0].writes else 0, touched[-1].op + 1


def _cache_spans(graph: OpGraph, touched: Sequence[Sequence[_Touch]], repeats: Sequence[float]) -> Iterator[Span]:
    """The tensors of the cache: one copy of each as it lives, and those of the layers that it stands for.

    A replaced tensor is the cache until its successor is made, and comes on top of it from then on.
    """
    end, runs = len(graph.ops), _runs(graph.ops)
    survivor = _survivors(graph.tensors, touched, end)
    copied = {kept for i, kept in survivor.items() if i != kept and touched[i]}
    for i, kept in survivor.items():
        start, stop = _lifetime(graph.tensors[i], touched[i], end)
        folded, _ = next((runs[t.op] for t in touched[i] if graph.ops[t.op].count == repeats[i]), (start, stop))
        others = repeats[i] - 1
        if i == kept:
            if graph.tensors[i].held is None and i not in copied:
                start = 0  # appended to in place
            yield Span(i, start, end, 1, False)
            yield Span(i, min(start, folded), end, others, False)
        else:
            renewed, _ = _lifetime(graph.tensors[kept], touched[kept], end)
            yield Span(i, start, min(stop, renewed), 1, False)
            yield Span(i, max(start, renewed), stop, 1, True)
            yield Span(i, start, min(stop, folded), others, False)


def _survivors(tensors: Iterable[Tensor], touched: Sequence[Sequence[_Touch]], end: int) -> dict[int, int]:
    """The successor of each cache tensor after the pass: the tensor of its name that is made last."""
    named: dict[str | int, list[tuple[bool, int, int]]] = {}
    for tensor in tensors:
        if tensor.role == "kv":
            written = max((touch.op for touch in touched[tensor.id] if touch.writes), default=-1)
            kept = tensor.held is not None and tensor.held[1] >= end
            named.setdefault(tensor.name or tensor.id, []).append((kept, written, tensor.id))
    return {i: max(same)[2] for same in named.values() for _, _, i in same}


def _repeats(graph: OpGraph, tensor: Tensor, touched: Sequence[_Touch]) -> float:
    """Return how many tensors of the whole model one of a folded graph stands for: never less than itself."""
    if touched:
        return max(1, min(graph.ops[touch.op].count for touch in touched))
    module = tensor.name if tensor.role == "weight" else None
    while module:
        module = module.rpartition(".")[0]
        around = [op.count for op in graph.ops if module and f"{op.path}.".startswith(f"{module}.")]
        if around:
            return max(1, min(around))
    return 1


def _runs(ops: Sequence[Op]) -> list[tuple[int, int]]:
    """The stretch of equal counts around each operation: its first operation, and the one after its last."""
    runs: list[tuple[int, int]] = []
    for _, same in groupby(ops, key=lambda op: op.count):
        length = len(list(same))
        runs += [(len(runs), len(runs) + length)] * length
    return runs
