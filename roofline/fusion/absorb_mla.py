"""Latent attention (MLA, arXiv 2405.04434 section 2.1) without expanding the cached latents to keys and values.

The product that expands latents of width r to keys (nope) and values of every head is absorbed: each query is
multiplied by it before attention and each output after it, and attention runs on one shared head of width r + rope
(values: r). Taken only where that needs fewer FLOPs, as in decode; it always moves fewer bytes.

What expands the latents is, as traced, one product of the cache with a weight. `low_rank` makes two of it, `lora` adds
branches of two each, and quantised activations run an operation before a product. All of them are linear in the
latents, but for rounding, and are absorbed together:
- Quantised inputs: the stored weights are multiplied in the type of the attention; their scales are applied to the
  weights or to partial sums, whichever is less. An expansion in a narrower type counts as less work, in proportion to
  the bits, so that absorbing it costs no time where peaks are in that proportion.
- Low rank: through both factors, through their product made in place, or through the second alone, behind the first as
  it was executed, so that attention runs on the rank's width; whichever is least.
- Adapters: each through its factors, or its product, for the sequences that chose it, and added to query and output.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

from roofline.dtypes import element_bits
from roofline.fusion.sparse import Choice, Chosen
from roofline.graph.dataflow import Accesses, Dataflow
from roofline.graph.linear import LORA_ADD, QUANTISE, linear_of, turned_back_flops
from roofline.graph.op import PRODUCTS, Kind, Op, OpGraph


@dataclass(frozen=True)
class Attention:
    """One attention of the ideal graph."""

    members: tuple[int, ...]
    """Indices of the executed operations it replaces, in order."""
    matrix_flops: float
    vector_flops: float
    masks: frozenset[int]
    """Tensors that only carry the mask, which a kernel that knows it is causal or windowed does not read."""
    heads: int
    """Number of heads over the whole batch."""
    query: int
    head_dim: int
    value_dim: int
    keys: int
    """Tokens whose keys each query may meet, as they lie in memory."""
    window: int | None
    """Tokens that a later query can still see, where the module says so; None is all."""
    entries: int = 0
    """Those of the keys that stand for several tokens each; no window hides them."""
    choice: Choice | None = None
    """The index that chooses its keys."""
    chosen: Chosen | None = None
    """Return what it does with the chosen keys alone."""
    lead: float | None = None
    """Matrix FLOPs that absorbing saves, below 0 where expanding saves them; None where there is no such choice."""

    @property
    def kept(self) -> float:
        """Share of the cached tokens that it reads."""
        return self.chosen.kept if self.chosen is not None else 1.0


def absorbed(graph: OpGraph, flow: Dataflow, accesses: Accesses, attention: Attention) -> Attention | None:
    """The cheapest attention over latents, which need not be cheaper than to expand them; None where there are none."""
    expansion = _Walk(graph, flow, accesses, frozenset(attention.members)).expansion()
    if expansion is None or not attention.heads or attention.heads % graph.workload.batch:
        return None
    branches = [_Branch.of(graph, branch) for branch in expansion.branches]
    ends = {(branch.widths[0], branch.widths[-1]) for branch in branches}
    expanded, heads = branches[0].widths[-1], attention.heads // graph.workload.batch
    nope = expanded // heads - attention.value_dim
    if len(ends) != 1 or expanded % heads or nope <= 0 or attention.head_dim < nope:
        return None
    dtype = graph.ops[attention.members[-1]].dtype
    bits = element_bits(dtype)
    expanding = [graph.ops[i] for i in expansion.members]
    executed = attention.matrix_flops + sum(
        op.matrix_flops if op.dtype == dtype else op.matrix_flops * element_bits(op.dtype) / bits for op in expanding
    )
    matrix, vector = min(_ways(graph, branches, attention, nope))
    vector += attention.kept * sum(graph.ops[i].vector_flops for i in expansion.copies)
    members = tuple(sorted({*attention.members, *expansion.copies, *expansion.members}))
    return replace(
        attention,
        members=members,
        matrix_flops=matrix,
        vector_flops=attention.vector_flops + vector,
        lead=executed - matrix,
    )


@dataclass(frozen=True)
class _Branch:
    """Products of which each takes what the one before it makes."""

    ops: tuple[int, ...]
    """All operations from the latents on, also those that quantise."""
    products: tuple[int, ...]
    widths: tuple[int, ...]
    """Width of the latents, and of what each product makes."""

    @classmethod
    def of(cls, graph: OpGraph, ops: tuple[int, ...]) -> "_Branch":
        products = tuple(i for i in ops if graph.ops[i].kind in PRODUCTS)
        dims = [graph.ops[i].dims for i in products]
        return cls(ops, products, (dims[0].get("k", 0), *(sizes.get("n", 0) for sizes in dims)))


def _ways(graph: OpGraph, branches: Sequence[_Branch], sizes: Attention, nope: int) -> Iterator[tuple[float, float]]:
    """Matrix FLOPs of attention and absorbed operations, and vector FLOPs of the latter, for each way to attend."""
    latent, made = branches[0].widths[0], nope + sizes.value_dim
    queries, rope = sizes.heads * sizes.query, sizes.head_dim - nope
    each_width = sizes.matrix_flops / (sizes.head_dim + sizes.value_dim)  # FLOPs of all pairs

    def scaled(products: Iterable[int]) -> float:
        return sum(_scaling(graph, i, graph.workload.batch * sizes.query) for i in products)

    turned = sizes.kept * max(turned_back_flops(graph, graph.ops[i]) for branch in branches for i in branch.ops)
    added = (len(branches) - 1) * queries * (latent + sizes.value_dim)
    matrix = each_width * (2 * latent + rope)
    matrix += sum(_projections(graph, branch, 0, queries, made) for branch in branches)
    yield matrix, turned + added + sum(scaled(branch.products) for branch in branches)
    if len(branches) > 1:
        return
    (branch,) = branches
    for first in range(1, len(branch.products)):  # so many are executed as they are
        until = branch.ops.index(branch.products[first - 1]) + 1
        narrow = branch.widths[first]
        matrix = each_width * (2 * narrow + rope) + _projections(graph, branch, first, queries, made)
        matrix += sum(graph.ops[i].matrix_flops for i in branch.ops[:until])
        vector = sum(graph.ops[i].vector_flops for i in branch.ops[:until])
        yield matrix, vector + scaled(branch.products[first:])


def _projections(graph: OpGraph, branch: _Branch, first: int, queries: int, made: int) -> float:
    """Matrix FLOPs to bring queries into the width before product `first`, and outputs out of it."""
    widths = branch.widths[first:]
    through = 2 * queries * (widths[-2] * made + sum(2 * a * b for a, b in pairwise(widths[:-1])))
    op = graph.ops[branch.products[-1]]
    weights = [a for a in op.reads if graph.tensors[a.tensor].role == "weight"]
    copies = max(op.dims.get("groups", 1) * a.bytes / graph.tensors[a.tensor].storage_bytes for a in weights)
    merging = copies * sum(2 * widths[0] * a * b for a, b in pairwise(widths[1:]))  # adapters chosen, else one matrix
    return min(through, 2 * queries * widths[0] * made + merging)


def _scaling(graph: OpGraph, index: int, rows: int) -> float:
    """Vector FLOPs of the scales of a product's weights, and its bias, for so many rows."""
    op = graph.ops[index]
    linear = linear_of(graph, index)
    if linear is None:
        return 0.0
    stored = linear.dequantise_flops
    sums = (op.vector_flops - turned_back_flops(graph, op) - stored) * rows / linear.rows
    per_weight = len(linear.sides) * linear.elements * linear.share
    return stored + (min(sums, per_weight) if per_weight else sums)


class _Expansion(NamedTuple):
    """Operations, by index, that only make the keys and values of one attention."""

    copies: frozenset[int]
    """Copies in the attention's module."""
    members: frozenset[int]
    """The other operations that only make the keys and values."""
    branches: tuple[tuple[int, ...], ...]
    """Operations of each branch from the latents on; the sum of the branches is what is expanded."""


class _Walk:
    """The way from an attention back to the cache."""

    def __init__(self, graph: OpGraph, flow: Dataflow, accesses: Accesses, attention: frozenset[int]) -> None:
        self._graph, self._flow, self._accesses, self._attention = graph, flow, accesses, attention
        self._path = graph.ops[max(attention)].path
        self._known: dict[int, bool] = {}

    def expansion(self) -> _Expansion | None:
        before = self._before()
        while leaking := {i for i in before if not self._users(i) <= self._attention | before}:
            before -= leaking
        copies = {i for i in before if self._is_copy(self._graph.ops[i])}
        members = before - copies
        makers = {
            producer
            for i in self._attention | copies
            for access in self._graph.ops[i].reads
            if (producer := self._flow.producer(i, access.tensor)) in members
        }
        if len(makers) != 1:
            return None
        branches = tuple(self._branches(makers.pop()))
        used = {i for branch in branches for i in branch}
        return _Expansion(frozenset(copies), frozenset(members), branches) if used <= before else None

    def _before(self) -> set[int]:
        before: set[int] = set()
        todo = list(self._attention)
        while todo:
            i = todo.pop()
            for access in self._graph.ops[i].reads:
                for producer in self._flow.writers[access.tensor]:
                    if producer >= i or producer in self._attention | before:
                        continue
                    if self._is_copy(self._graph.ops[producer]) or self._comes_from_cache(producer):
                        before.add(producer)
                        todo.append(producer)
        return before

    def _comes_from_cache(self, index: int) -> bool:
        """Return whether an operation, and all before it up to the cache, is one that can be absorbed."""
        if index not in self._known:
            sources = self._sources(index)
            linear = self._is_linear(self._graph.ops[index]) and bool(sources)
            self._known[index] = linear and all(self._is_latent(index, tensor) for tensor in sources)
        return self._known[index]

    def _is_latent(self, index: int, tensor: int) -> bool:
        if self._graph.tensors[tensor].role == "kv":
            return True
        writers = [writer for writer in self._flow.writers[tensor] if writer < index]
        return bool(writers) and all(self._comes_from_cache(writer) for writer in writers)

    def _branches(self, index: int | None) -> Iterator[tuple[int, ...]]:
        """Branches whose sum an operation makes, each as the operations from the latents on."""
        if index is None:
            return
        op = self._graph.ops[index]
        own = () if self._is_copy(op) or op.name == LORA_ADD else (index,)
        for tensor in self._sources(index):
            if self._graph.tensors[tensor].role == "kv":
                yield own
            else:
                yield from ((*before, *own) for before in self._branches(self._flow.producer(index, tensor)))

    def _sources(self, index: int) -> list[int]:
        """Tensors that an ideal operation reads besides weights."""
        return [t for t in self._accesses.reads[index] if self._graph.tensors[t].role != "weight"]

    def _is_linear(self, op: Op) -> bool:
        if op.kind in PRODUCTS:
            return self._graph.has_weight(op)
        return self._is_copy(op) or (op.name in (QUANTISE, LORA_ADD) and self._stays_out_of_cache(op))

    def _is_copy(self, op: Op) -> bool:
        return op.kind is Kind.COPY and op.path == self._path and self._stays_out_of_cache(op)

    def _stays_out_of_cache(self, op: Op) -> bool:
        return all(self._graph.tensors[access.tensor].role != "kv" for access in op.writes)

    def _users(self, index: int) -> set[int]:
        written = self._graph.ops[index].writes
        return {reader for access in written for reader in self._flow.readers[access.tensor] if reader > index}
