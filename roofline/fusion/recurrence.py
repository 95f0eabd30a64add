"""Finding recurrences that were executed in pieces, so that the ideal graph runs each as one kernel.

A recurrent layer (a state-space model, linear attention, the delta rule, a short convolution) keeps a state of fixed
size in the cache. One kernel can read that state, the new tokens and its small weights once, and write the results and
the new state once, whatever lies between: the loop over tokens or chunks, the decays, the gates, the norms. So one
decode step moves twice the state, and a prefill moves no state but the last (selective scan: arXiv 2312.00752 section
3.3.2; SSD: arXiv 2405.21060 section 6; gated delta rule: arXiv 2412.06464 section 3.3).

A recurrence has all operations around one state, in its module, that are joined by what they read and write, up to the
products with weights on both sides. Those from which a way leads out of it and back are left out.

Its FLOPs are those executed. Where these go through the tokens by chunks, as a state allows that decays by one number a
head or key (in Mamba each element of the state decays by itself), they are those of the form in chunks, which is all
products. Every product with the state takes 2 FLOPs an element of it for each token: one brings the token in, one reads
it out, and the delta rule has a third, which predicts the value from the key. Within a chunk of C tokens each result
takes C FLOPs more (C multiply-adds, half of them masked), twice for the delta rule, which also solves a triangle.
Products of queries and keys are shared by all heads of a key and are left out: it is a bound.
"""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import heappop, heappush

from roofline.dtypes import element_bits
from roofline.graph.dataflow import Dataflow
from roofline.graph.op import ANCHORS, PRODUCTS, Kind, Op, OpGraph, holds_tokens

CHUNK = 64
"""Tokens of a chunk: that of flash-linear-attention's kernels, and the default of `torch_chunk_gated_delta_rule`."""

MOST_PARTS = 8
"""Parts in which a layer may keep its state, each with a loop of its own: Zamba has two."""


@dataclass(frozen=True)
class Recurrence:
    """One recurrence of the ideal graph."""

    members: tuple[int, ...]
    """Indices of the executed operations it replaces, in order."""
    matrix_flops: float
    vector_flops: float


def find_recurrences(links: "Links", others: Iterable[int]) -> list[Recurrence]:
    """Every recurrence of the graph, none sharing an operation with another, or with `others`."""
    graph, flow = links.graph, links.flow
    touching: dict[tuple[str, str], set[int]] = defaultdict(set)  # by module and state
    for tensor in graph.tensors:
        if tensor.role == "kv" and not holds_tokens(tensor):
            for i in (*flow.writers[tensor.id], *flow.readers[tensor.id]):
                touching[graph.ops[i].path, tensor.name or str(tensor.id)].add(i)
    seeds = []
    for (path, name), ops in touching.items():
        made = {access.tensor for i in ops for access in graph.ops[i].writes}
        readers = {r for tensor in made for r in flow.readers[tensor] if r > min(ops)}
        windows = {r for r in readers if graph.ops[r].kind is Kind.CONV and _is_inside(graph.ops[r], path)}
        seeds.append((bool(windows), path, name, ops | windows))
    taken = set(others)
    recurrences: list[Recurrence] = []
    for _, path, _, seed in sorted(seeds, key=lambda s: s[:3]):  # scans first: what is before a scan is part of it
        if seed & taken or not any(graph.ops[i].writes for i in seed):
            continue
        members = _around(links, path, seed, taken)
        kinds = {graph.ops[i].kind for i in members if not _is_weighted(graph, graph.ops[i])}
        if kinds <= {Kind.COPY} or kinds & {Kind.SOFTMAX, Kind.ATTENTION}:  # an append, or attention over a cache
            continue
        taken.update(members)
        recurrences.append(_Cost(graph, flow, members).recurrence())
    while recurrences and len(order(links, recurrences)) < len(graph.ops):  # two of them that wait for each other
        recurrences.pop()
    return recurrences


class Links:
    """The operations that each one depends on, and those that depend on it."""

    def __init__(self, graph: OpGraph, flow: Dataflow) -> None:
        self.graph, self.flow = graph, flow
        self._before: dict[int, set[int]] = {}
        self._after: dict[int, set[int]] = {}

    def before(self, index: int) -> set[int]:
        """Earlier operations that it reads from, or must not overtake."""
        if index not in self._before:
            op = self.graph.ops[index]
            made = (self.flow.producer(index, access.tensor) for access in op.reads)
            earlier = {i for i in made if i is not None}
            for access in op.writes:
                for touching in (self.flow.writers[access.tensor], self.flow.readers[access.tensor]):
                    earlier.update(touching[: bisect_left(touching, index)])
            self._before[index] = earlier
        return self._before[index]

    def after(self, index: int) -> set[int]:
        """Later operations that read what it writes, or that must not overtake it."""
        if index not in self._after:
            op = self.graph.ops[index]
            later: set[int] = set()
            for access in op.writes:
                for touching in (self.flow.writers[access.tensor], self.flow.readers[access.tensor]):
                    later.update(touching[bisect_left(touching, index + 1) :])
            for access in op.reads:
                writers = self.flow.writers[access.tensor]
                later.update(writers[bisect_left(writers, index + 1) :])
            self._after[index] = later
        return self._after[index]


def _is_inside(op: Op, path: str) -> bool:
    return f"{op.path}.".startswith(f"{path}.") or not path


def _is_border(graph: OpGraph, op: Op) -> bool:
    """Return whether an operation is a kernel beside any recurrence: one with a weight, or what crosses a link."""
    if op.kind not in ANCHORS or op.kind is Kind.OTHER:
        return False
    return op.kind not in (*PRODUCTS, Kind.CONV) or graph.has_weight(op)


def _is_weighted(graph: OpGraph, op: Op) -> bool:
    """Return whether an operation is a product with a weight, which may write to the cache."""
    return op.kind in PRODUCTS and graph.has_weight(op)


def _around(links: Links, path: str, seed: set[int], taken: set[int]) -> tuple[int, ...]:
    """The operations of a recurrence in order; empty where the ones that touch its state cannot run together."""
    ops = links.graph.ops
    count = {ops[i].count for i in seed}
    if len(count) != 1:
        return ()
    inside, todo = set(seed), list(seed)
    while todo:
        i = todo.pop()
        for other in (*links.before(i), *links.after(i)):
            op = ops[other]
            if other in inside or other in taken or op.count not in count or not _is_inside(op, path):
                continue
            if not _is_border(links.graph, op):
                inside.add(other)
                todo.append(other)
    first, last = min(inside), max(inside)
    follows: set[int] = set()  # of the seed
    leaves: set[int] = set()  # not inside, and of what follows the seed
    for i in range(first, last + 1):
        before = links.before(i)
        if i in seed or before & follows:
            follows.add(i)
            if before & leaves:
                inside.discard(i)
            if i not in inside:
                leaves.add(i)
    returns: set[int] = set()  # not inside, and before something that is
    for i in range(last, first - 1, -1):
        after = links.after(i)
        if after & returns:
            inside.discard(i)
        if i not in inside and (after & returns or after & inside):
            returns.add(i)
    return _joined(links, seed, inside) if seed <= inside else ()


def _joined(links: Links, seed: set[int], inside: set[int]) -> tuple[int, ...]:
    """Those inside that are still joined to the seed by others inside."""
    joined, todo = set(seed), list(seed)
    while todo:
        i = todo.pop()
        near = {other for other in (*links.before(i), *links.after(i)) if other in inside} - joined
        joined |= near
        todo += near
    return tuple(sorted(joined))


def order(links: Links, recurrences: Sequence[Recurrence]) -> list[int]:
    """The operations in an order that can run, in which the members of each recurrence follow one another.

    Fewer than all where recurrences wait for each other.
    """
    ops = len(links.graph.ops)
    if not recurrences:
        return list(range(ops))
    members_of = {recurrence.members[-1]: recurrence.members for recurrence in recurrences}
    place = {i: members[-1] for members in members_of.values() for i in members}
    nodes = [i for i in range(ops) if place.get(i, i) == i]
    waits: dict[int, set[int]] = {}
    leads: dict[int, list[int]] = defaultdict(list)
    for node in nodes:
        before = {place.get(other, other) for i in members_of.get(node, (node,)) for other in links.before(i)}
        waits[node] = before - {node}
        for other in waits[node]:
            leads[other].append(node)
    ready = [node for node in nodes if not waits[node]]
    ordered: list[int] = []
    while ready:  # the earliest that can run
        node = heappop(ready)
        ordered += members_of.get(node, (node,))
        for other in leads[node]:
            waits[other].discard(node)
            if not waits[other]:
                heappush(ready, other)
    return ordered


@dataclass(frozen=True, eq=False)
class _Cost:
    """The FLOPs of one recurrence."""

    graph: OpGraph
    flow: Dataflow
    members: Sequence[int]

    def recurrence(self) -> Recurrence:
        ops = [self.graph.ops[i] for i in self.members]
        matrix, vector = sum(op.matrix_flops for op in ops), sum(op.vector_flops for op in ops)
        tokens = self.graph.workload.query_tokens
        if tokens > 1 and self._state and self._has_products and not self._runs_by_token:
            products = 1 + max(1, self._predictions)
            results = self._outside("writes")
            in_chunks = 2.0 * products * self._state * tokens + (products - 1) * CHUNK * results
            if in_chunks <= matrix + vector:  # the executed form may have less where there is no recurrence to see
                matrix, vector = in_chunks, min(vector, results + self._outside("reads"))
        return Recurrence(tuple(self.members), matrix, vector)

    @cached_property
    def _written(self) -> list[int]:
        """Members that write the state."""
        roles = self.graph.tensors
        return [i for i in self.members if any(roles[a.tensor].role == "kv" for a in self.graph.ops[i].writes)]

    @cached_property
    def _state(self) -> int:
        """Elements of the state, all sequences of the batch together; of several the largest."""
        return max((_elements(self.graph.ops[i]) for i in self._written), default=0)

    @property
    def _has_products(self) -> bool:
        """Return whether anything is summed over the state or the tokens: a convolution has a window instead."""
        ops = [self.graph.ops[i] for i in self.members]
        return all(op.kind is not Kind.CONV for op in ops) and any(op.kind in (*PRODUCTS, Kind.REDUCTION) for op in ops)

    @property
    def _runs_by_token(self) -> bool:
        """Return whether the state, or each head's part, takes a step for every token: no form in chunks is known."""
        state, tokens = self._state, self.graph.workload.query_tokens
        steps = Counter(
            (op.name, _elements(op))
            for op in (self.graph.ops[i] for i in self.members)
            if op.kind is Kind.POINTWISE and state <= MOST_PARTS * _elements(op) <= MOST_PARTS * state
        )
        return max(steps.values(), default=0) >= tokens

    @cached_property
    def _predictions(self) -> int:
        """Most products of one value of the state: the delta rule predicts from it and reads it out."""
        inside = set(self.members)
        todo = [i for i in self._written if _elements(self.graph.ops[i]) == self._state]
        seen = set(todo)
        most = 0
        while todo:
            i = todo.pop()
            for access in self.graph.ops[i].reads:
                producer = self.flow.producer(i, access.tensor)
                readers = self._readers(access.tensor, producer)
                most = max(most, sum(self.graph.ops[r].kind in PRODUCTS for r in readers if r in inside))
                if producer in inside and producer not in seen and self._carries(producer):
                    seen.add(producer)
                    todo.append(producer)
        return most

    def _carries(self, index: int) -> bool:
        """Return whether an operation makes a state out of a state, element by element."""
        op = self.graph.ops[index]
        return op.kind in (Kind.POINTWISE, Kind.COPY) and _elements(op) == self._state

    def _readers(self, tensor: int, producer: int | None) -> Iterator[int]:
        """Operations that read what `producer` wrote."""
        after = -1 if producer is None else producer
        writers = self.flow.writers[tensor]
        until = next((w for w in writers[bisect_left(writers, after + 1) :]), len(self.graph.ops))
        return (r for r in self.flow.readers[tensor] if after < r <= until)

    def _outside(self, which: str) -> float:
        """Elements of the activations that the recurrence reads from outside, or writes for it."""
        inside = set(self.members)
        others = self.flow.writers if which == "reads" else self.flow.readers
        moved: dict[int, float] = {}
        for i in self.members:
            op = self.graph.ops[i]
            for access in getattr(op, which):
                tensor = self.graph.tensors[access.tensor]
                if tensor.role == "activation" and not inside.issuperset(others[access.tensor]):
                    size = moved.get(access.tensor, 0) + access.bytes
                    moved[access.tensor] = min(size, tensor.storage_bytes)
        return sum(moved.values()) * 8 / element_bits(self.graph.workload.dtype)


def _elements(op: Op) -> int:
    """Elements of an operation's result."""
    dims = op.dims
    return dims["elements"] if "elements" in dims else dims.get("b", 1) * dims.get("m", 0) * dims.get("n", 0)
