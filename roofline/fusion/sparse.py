"""Attention over the keys that an index chooses, at the work of the chosen ones (DeepSeek-V3.2, arXiv 2512.02556).

An index scores every cached token for each query with a few narrow heads of its own, and attention takes place over the
`topk` best. `transformers` writes the choice into a mask and attends over all keys; a kernel gathers the chosen ones.

A choice is the `topk` from which the mask of an attention follows by copies and element-wise work. Of the attention,
the pairs and the vector work are those of min(visible, chosen) keys a query, as in a window of so many tokens. It reads
the numbers of the chosen keys instead of the mask, and of keys and values in the cache as many as one query chooses:
the floor where a pass has several queries, which may all choose the same. A choice among blocks of tokens chooses all
tokens of a block. A choice among compressed entries, which stand for several tokens each beside a window of single ones
(DeepSeek-V4), leaves the window as it is.

The index itself scores all keys that a query may see: every key in its cache is read once. Its products, with what lies
between them and the choice, are one kernel that stores no scores and knows the mask. Where its operands were widened
before the product, it multiplies what they were widened from: the products are the same, and are added up in float32.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from roofline.dtypes import BITS, element_bits
from roofline.graph.dataflow import Accesses, Dataflow
from roofline.graph.op import PRODUCTS, AttentionModule, Kind, Op, OpGraph, attention_pairs, holds_tokens, is_compressed


class Choice(NamedTuple):
    """The keys that one attention is told to see."""

    op: int
    """The `topk`."""
    masks: frozenset[int]
    """Tensors by which the attention reads the choice."""
    numbers: int
    """Tensor with the numbers of the chosen keys, in the narrowest type."""
    block: int
    """Tokens that one number stands for."""


@dataclass(frozen=True)
class Index:
    """The scores of one choice, and the choice, as one kernel of the ideal graph."""

    members: tuple[int, ...]
    """Indices of the executed operations it replaces, in order."""
    matrix_flops: float
    vector_flops: float
    masks: frozenset[int]
    """Tensors that say which keys a query may see."""
    dtype: str
    """Type of its products."""


@dataclass(frozen=True)
class Chosen:
    """Keys that an attention reads and works on instead of all."""

    tokens: int
    """Most keys that a query sees."""
    pairs: int
    """Pairs of a query and a key that it sees, of one head."""
    share: float
    """Pairs ÷ those without the choice."""
    kept: float
    """Share of the cached tokens that is read, or of the compressed entries where it chooses among those."""
    of_entries: bool = False

    def reads(self, graph: OpGraph, tensor: int) -> bool:
        """Return whether it reads the chosen part of a tensor alone."""
        cached = graph.tensors[tensor]
        return self.kept < 1 and (is_compressed(cached) if self.of_entries else holds_tokens(cached))


def has_choices(graph: OpGraph) -> bool:
    """Return whether anything is chosen in the pass: experts by a router, or keys by an index."""
    return any("chosen" in op.dims for op in graph.ops)


def entries_of(graph: OpGraph, flow: Dataflow, index: int, keys: int) -> int:
    """Return how many of an operation's `keys` are compressed entries, which lie behind those of single tokens."""
    for access in graph.ops[index].reads:
        producer = flow.producer(index, access.tensor)
        while producer is not None and graph.ops[producer].kind is Kind.COPY:
            parts = graph.ops[producer].reads
            if few := sum(a.bytes for a in parts if is_compressed(graph.tensors[a.tensor])):
                return round(keys * few / sum(a.bytes for a in parts))
            producer = flow.producer(producer, parts[0].tensor) if len(parts) == 1 else None
    return 0


def entry_pairs(graph: OpGraph, entries: int, causal: bool, most: int | None = None) -> int:
    """Return the pairs of a query and a compressed entry of tokens that it may see, `most` of them a query."""
    query, context = graph.workload.query_tokens, graph.workload.context_tokens
    tokens = context + query
    window = round(most * tokens / entries) if most is not None and most < entries else None
    pairs = attention_pairs(query, context, True, window) if causal else query * (window or tokens)
    return round(pairs * entries / tokens)


def choice_of(graph: OpGraph, flow: Dataflow, members: Sequence[int], keys: int, entries: int) -> Choice | None:
    """The choice of which the masks of an attention over `keys` are made, of which `entries` stand for several tokens;
    None where it sees all keys."""
    found: dict[int, Choice] = {}
    for i in members:
        for access in graph.ops[i].reads:
            producer = flow.producer(i, access.tensor)
            if producer is None or producer in members or graph.tensors[access.tensor].role != "activation":
                continue
            way = _way_to_choice(graph, flow, producer)
            if way is not None and (block := _block(graph, way, keys, entries)):
                before = found.get(way[0])
                masks = before.masks if before else frozenset()
                found[way[0]] = Choice(way[0], masks | {access.tensor}, _numbers(graph, way), block)
    return found.popitem()[1] if len(found) == 1 else None


def _way_to_choice(graph: OpGraph, flow: Dataflow, index: int) -> tuple[int, ...] | None:
    """Operations from a choice to what `index` makes, over copies and element-wise work, of which one scatters."""
    before: dict[int, int | None] = {index: None}
    todo = [index]
    while todo:
        i = todo.pop()
        op = graph.ops[i]
        if "chosen" in op.dims:
            way = [i]
            while (following := before[way[-1]]) is not None:
                way.append(following)
            return tuple(way) if any("scatter" in graph.ops[w].name for w in way) else None
        if op.kind not in (Kind.COPY, Kind.POINTWISE):
            continue
        for access in op.reads:
            producer = flow.producer(i, access.tensor)
            if producer is not None and producer not in before:
                before[producer] = i
                todo.append(producer)
    return None


def _block(graph: OpGraph, way: Sequence[int], keys: int, entries: int) -> int:
    """Tokens that each of what is chosen from stands for; 0 where it is no choice of keys."""
    choice = graph.ops[way[0]]
    of, elements = choice.dims["of"], choice.dims["elements"]
    numbers = elements // of * choice.dims["chosen"]  # as many are chosen
    if of in (keys, entries):
        return 1
    for op, before in itertools.product((graph.ops[i] for i in way), (elements, numbers)):
        block, rest = divmod(op.dims.get("elements", 0), before)
        if block > 1 and not rest and abs(of * block - keys) < block:
            return block
    return 0


def _numbers(graph: OpGraph, way: Sequence[int]) -> int:
    """The numbers of what is chosen, in the narrowest of the types in which they are kept before they are scattered."""
    chosen = graph.ops[way[0]]
    numbers = chosen.writes[-1]  # behind the values
    for i in way[1:]:
        op = graph.ops[i]
        if op.kind is not Kind.COPY or "scatter" in op.name or len(op.writes) != 1:
            break
        numbers = min(numbers, op.writes[0], key=lambda a: a.bytes)
    return numbers.tensor


def chosen(graph: OpGraph, choice: Choice, keys: int, entries: int, module: AttentionModule | None) -> Chosen:
    """Return what an attention over `keys` does with a choice; where all are chosen, that is all it did before."""
    query, context = graph.workload.query_tokens, graph.workload.context_tokens
    causal, window = (module.causal, module.window) if module is not None else (False, None)
    most = graph.ops[choice.op].dims["chosen"] * choice.block
    if entries:
        single, most = attention_pairs(query, context, causal, window), min(most, entries)
        pairs = single + entry_pairs(graph, entries, causal, most)
        share = pairs / (single + entry_pairs(graph, entries, causal))
        return Chosen(min(keys - entries, window or keys) + most, pairs, share, most / entries, of_entries=True)
    blocks = graph.ops[choice.op].dims["of"] * choice.block
    tokens = min(keys, most + max(0, keys - blocks))  # with those that fill no block yet
    before = max(0, min(context, keys - query))
    every = attention_pairs(query, before, causal, None)
    pairs = attention_pairs(query, before, causal, tokens) if causal else query * tokens
    return Chosen(tokens, pairs, min(1.0, pairs / every), tokens / keys)


def find_index(flow: Dataflow, accesses: Accesses, choice: int, causal: bool) -> Index | None:
    """The kernel of a choice; None where its scores come from elsewhere, or others read them too."""
    graph = flow.graph
    place = graph.ops[choice].path
    way, scores, todo = {choice}, set[int](), [choice]
    while todo:
        i = todo.pop()
        for access in graph.ops[i].reads:
            producer = flow.producer(i, access.tensor)
            if producer is None or producer in way or not f"{graph.ops[producer].path}.".startswith(f"{place}."):
                continue
            op = graph.ops[producer]
            if op.kind in PRODUCTS and graph.has_weight(op):
                continue
            if op.kind in (*PRODUCTS, Kind.POINTWISE, Kind.COPY, Kind.REDUCTION, Kind.SOFTMAX):
                way.add(producer)
                todo.append(producer)
                if op.kind in PRODUCTS:
                    scores.add(producer)
    if not scores:
        return None
    derived: set[int] = set()
    for i in sorted(way):
        made = {flow.producer(i, a.tensor) for a in graph.ops[i].reads}
        if i in scores or made & derived:
            derived.add(i)
    if choice not in derived:
        return None
    derived |= _copies(graph, flow, derived, place)
    members = tuple(sorted(derived))
    rows = graph.ops[choice].dims["of"]
    masks = frozenset(
        tensor
        for i in members
        if graph.ops[i].kind not in PRODUCTS
        for tensor, size in accesses.reads[i].items()
        if graph.tensors[tensor].role == "activation" and flow.producer(i, tensor) not in derived and size >= rows
    )
    query, context = graph.workload.query_tokens, graph.workload.context_tokens
    share = attention_pairs(query, context, causal, None) / (query * (context + query))
    ops = [graph.ops[i] for i in members]
    first = max((graph.ops[i] for i in scores), key=lambda op: op.matrix_flops)
    return Index(
        members,
        matrix_flops=share * sum(op.matrix_flops for op in ops),
        vector_flops=share * sum(op.vector_flops for op in ops),
        masks=masks,
        dtype=_narrow(graph, flow, members, first),
    )


def _copies(graph: OpGraph, flow: Dataflow, members: set[int], place: str) -> set[int]:
    """Copies of the cache that only the members read, as its keys in a wider type."""
    copies: set[int] = set()
    for i in members:
        for access in graph.ops[i].reads:
            producer = flow.producer(i, access.tensor)
            if producer is None or producer in members or graph.ops[producer].kind is not Kind.COPY:
                continue
            op = graph.ops[producer]
            cached = any(holds_tokens(graph.tensors[a.tensor]) for a in op.reads)
            keeps = any(graph.tensors[a.tensor].role == "kv" for a in op.writes)
            readers = {r for a in op.writes for r in flow.readers[a.tensor] if r > producer}
            if cached and not keeps and readers <= members and op.path == place:
                copies.add(producer)
    return copies


def _narrow(graph: OpGraph, flow: Dataflow, members: Sequence[int], product: Op) -> str:
    """The widest type from which operands of a product were widened; its own where one was not."""
    index = next(i for i in members if graph.ops[i] is product)
    return max((_source_type(flow, index, a.tensor, product.dtype) for a in product.reads), key=element_bits)


def _source_type(flow: Dataflow, index: int, tensor: int, dtype: str) -> str:
    """The narrowest type in which what an operation reads was kept, through copies."""
    while (producer := flow.producer(index, tensor)) is not None:
        op = flow.graph.ops[producer]
        if op.kind is not Kind.COPY or not op.reads or op.dtype not in BITS:
            break
        dtype = min(dtype, op.dtype, key=element_bits)
        index, tensor = producer, op.reads[0].tensor
    return dtype
