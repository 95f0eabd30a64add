"""Finding attention that was executed in pieces, so that the ideal graph can run each as one kernel.

- Unfused: in one module, a matmul of two activations (q·kT), a softmax behind it, and a second such matmul (p·v)
  become one attention that never stores its query × KV intermediates (FlashAttention, arXiv 2205.14135). Its FLOPs
  are those of the unmasked pairs, where the module says that it is causal or windowed.
- Latent (MLA): the expansion of cached latents to keys and values of every head is absorbed into query and output
  where that needs fewer FLOPs (`absorb_mla`).
- Sparse: attention over all keys, with a mask that an index made, becomes one over the chosen keys (`sparse`).
- Shared scores: attentions with the same queries and keys become one with all their values side by side, so that the
  scores are computed once (differential attention, arXiv 2410.05258, where sdpa runs once for each half of the values).
"""

from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import replace

from roofline.fusion.absorb_mla import Attention, absorbed
from roofline.fusion.sparse import Choice, choice_of, chosen, entries_of, entry_pairs, has_choices
from roofline.graph.dataflow import Accesses, Dataflow
from roofline.graph.op import ANCHORS, Access, AttentionModule, Kind, Op, OpGraph, attention_pairs


def find_attention(graph: OpGraph, flow: Dataflow, accesses: Accesses, over_chosen: bool = False) -> list[Attention]:
    """Every attention of the graph, none sharing an operation with another.

    Args: `over_chosen` says whether keys that an index does not choose are left out; else its mask is an operand.
    """
    may_choose = has_choices(graph)
    modules = {module.path: module for module in graph.attention_modules}
    attentions: list[Attention] = []
    taken: set[int] = set()
    for i, op in enumerate(graph.ops):
        attention = None
        if op.kind is Kind.SOFTMAX:
            attention = _unfused(graph, flow, accesses, i, modules.get(op.path))
        elif op.kind is Kind.ATTENTION:
            attention = _fused(graph, flow, accesses, i, modules.get(op.path))
        if attention is None or taken & set(attention.members):
            continue
        choice = may_choose and choice_of(graph, flow, attention.members, attention.keys, attention.entries)
        if choice:
            attention = _of_chosen(graph, attention, choice, modules.get(op.path), over_chosen)
        over_latents = absorbed(graph, flow, accesses, attention)
        if over_latents is not None and not is_closed(graph, flow, over_latents.members):
            over_latents = None
        if over_latents is not None and (over_latents.lead or 0) > 0:
            attention = over_latents
        else:
            attention = _with_copies(graph, flow, attention)
            attention = replace(attention, lead=over_latents.lead if over_latents is not None else None)
        taken |= set(attention.members)
        attentions.append(attention)
    return _with_shared_scores(graph, flow, attentions)


def _with_shared_scores(graph: OpGraph, flow: Dataflow, attentions: Sequence[Attention]) -> list[Attention]:
    """The attentions, of which those with the same queries, keys and masks are one over all their values."""
    by_scores: dict[tuple[object, ...], list[Attention]] = {}
    for attention in attentions:
        first = next(i for i in attention.members if graph.ops[i].kind in ANCHORS)
        operands = [_whole_source(graph, flow, first, access) for access in graph.ops[first].reads[:2]]
        is_known = len(operands) == 2 and None not in operands and attention.head_dim + attention.value_dim > 0
        scores = (*operands, attention.masks) if is_known else attention.members
        by_scores.setdefault((graph.ops[first].path, scores), []).append(attention)
    made = []
    for group in by_scores.values():
        members = tuple(sorted({i for attention in group for i in attention.members}))
        if len(group) == 1 or not is_closed(graph, flow, members, {attention.members[-1] for attention in group}):
            made += group
            continue
        one = group[0]
        shared = one.matrix_flops * one.head_dim / (one.head_dim + one.value_dim)
        made.append(
            replace(
                one,
                members=members,
                matrix_flops=sum(attention.matrix_flops for attention in group) - (len(group) - 1) * shared,
                vector_flops=max(attention.vector_flops for attention in group),
                value_dim=sum(attention.value_dim for attention in group),
            )
        )
    return made


def _whole_source(graph: OpGraph, flow: Dataflow, index: int, access: Access) -> int | None:
    """Return the tensor that an operation reads, through copies of it; None where it reads a part."""
    while access.bytes == graph.tensors[access.tensor].storage_bytes:
        producer = flow.producer(index, access.tensor)
        if producer is None or graph.ops[producer].kind is not Kind.COPY or len(graph.ops[producer].reads) != 1:
            return access.tensor
        index, access = producer, graph.ops[producer].reads[0]
    return None


def _of_chosen(
    graph: OpGraph, attention: Attention, choice: Choice, module: AttentionModule | None, over_chosen: bool
) -> Attention:
    """The attention whose masks an index made: over the chosen keys alone, or with these masks among its operands."""
    if not over_chosen:
        return replace(attention, masks=attention.masks - choice.masks)
    few = chosen(graph, choice, attention.keys, attention.entries, module)
    return replace(
        attention,
        matrix_flops=attention.matrix_flops * few.share,
        vector_flops=attention.vector_flops * few.share,
        masks=attention.masks | choice.masks,
        choice=choice,
        chosen=few,
    )


def _fused(graph: OpGraph, flow: Dataflow, accesses: Accesses, index: int, module: AttentionModule | None) -> Attention:
    op, reads = graph.ops[index], accesses.reads[index]
    queries, tokens = op.dims.get("query", 0), graph.workload.query_tokens
    if queries % tokens == 0:
        queries = min(queries, tokens)  # `transformers` may fold the heads of a group into the queries
    pairs = queries * op.dims.get("kv", 0)

    def is_mask(tensor: int) -> bool:
        """Return whether a tensor has numbers for each pair, and neither the module nor its children make it."""
        producer = flow.producer(index, tensor)
        made_by = graph.ops[producer].path if producer is not None else ""
        outside = graph.tensors[tensor].role == "activation" and not f"{made_by}.".startswith(f"{op.path}.")
        return bool(outside and pairs and reads[tensor] % pairs == 0)

    masks = frozenset(t for t in reads if is_mask(t)) if module else frozenset()
    return Attention(
        members=(index,),
        matrix_flops=op.matrix_flops,
        vector_flops=op.vector_flops,
        masks=masks if len(masks) < len(reads) else frozenset(),
        heads=op.dims.get("batch", 0) * op.dims.get("heads", 0),
        query=op.dims.get("query", 0),
        head_dim=op.dims.get("head_dim", 0),
        value_dim=op.dims.get("value_dim", op.dims.get("head_dim", 0)),
        keys=op.dims.get("kv", 0),
        window=module.window if module else None,
        entries=entries_of(graph, flow, index, op.dims.get("kv", 0)),
    )


def _with_copies(graph: OpGraph, flow: Dataflow, attention: Attention) -> Attention:
    """The attention with the copies of the cache that only it reads: repeated heads, or more bits than are stored."""
    path, inside = graph.ops[attention.members[-1]].path, set(attention.members)
    copies: set[int] = set()
    todo = list(attention.members)
    while todo:
        i = todo.pop()
        for access in graph.ops[i].reads:
            producer = flow.producer(i, access.tensor)
            if producer is None or producer in inside | copies:
                continue
            op = graph.ops[producer]
            readers = {r for a in op.writes for r in flow.readers[a.tensor] if r > producer}
            keeps = any(graph.tensors[a.tensor].role == "kv" for a in op.writes)
            if op.kind is Kind.COPY and op.path == path and not keeps and readers <= inside | copies:
                copies.add(producer)
                todo.append(producer)
    while outer := {i for i in copies if not _comes_from_cache(graph, flow, i, copies)}:
        copies -= outer
    members = tuple(sorted(inside | copies))
    if not copies or not is_closed(graph, flow, members):
        return attention
    vector = attention.vector_flops + attention.kept * sum(graph.ops[i].vector_flops for i in copies)
    return replace(attention, members=members, vector_flops=vector)


def _comes_from_cache(graph: OpGraph, flow: Dataflow, copy: int, copies: set[int]) -> bool:
    """Return whether a copy reads the cache, or another of the copies."""
    reads = [access.tensor for access in graph.ops[copy].reads]
    return any(graph.tensors[t].role == "kv" or flow.producer(copy, t) in copies for t in reads)


def _unfused(
    graph: OpGraph, flow: Dataflow, accesses: Accesses, softmax: int, module: AttentionModule | None
) -> Attention | None:
    """The matmul pair around a softmax with all that lies between; None where there is no such pair."""
    path = graph.ops[softmax].path

    def producers(i: int) -> list[int]:
        return [p for a in graph.ops[i].reads if (p := flow.producer(i, a.tensor)) is not None]

    def consumers(i: int) -> list[int]:
        return [reader for a in graph.ops[i].writes for reader in flow.readers[a.tensor] if reader > i]

    before, scores = _walk(graph, softmax, path, producers)
    after, outputs = _walk(graph, softmax, path, consumers)
    if len(scores) != 1 or len(outputs) != 1:
        return None
    (first,), (last,) = scores, outputs
    between = {*before, *after, softmax}
    # inputs of the softmax that do not come from the scores, such as a mask made here, stay outside
    between = {i for i in between if _derives(graph, flow, i, first, between)}
    members = sorted({first, last, *between})
    if not is_closed(graph, flow, members):
        return None
    qk, pv = graph.ops[first], graph.ops[last]
    entries = entries_of(graph, flow, first, qk.dims.get("n", 0))
    rectangle = qk.dims.get("b", 1) * qk.dims.get("m", 0) * qk.dims.get("n", 0)
    masked = _masked_scores(graph, qk, module, entries)
    inside = set(members)
    masks = {
        t
        for i in between
        for t in accesses.reads[i]
        if graph.tensors[t].role == "activation" and not inside & set(flow.writers[t])
    }
    masks = masks if module else set()

    def is_free(op: Op) -> bool:
        """Return whether it only scales the scores, which the query can carry, or adds a mask that the kernel knows."""
        reads = {access.tensor for access in op.reads}
        return op.kind is Kind.POINTWISE and ((op.name == "aten::mul" and len(reads) == 1) or bool(reads & masks))

    return Attention(
        members=tuple(members),
        matrix_flops=sum(_without(op.matrix_flops, rectangle, masked) for op in (qk, pv)),
        vector_flops=sum(
            _without_elements(op, rectangle, masked) for op in (graph.ops[i] for i in members) if not is_free(op)
        ),
        masks=frozenset(masks),
        heads=qk.dims.get("b", 0),
        query=qk.dims.get("m", 0),
        head_dim=qk.dims.get("k", 0),
        value_dim=pv.dims.get("n", 0),
        keys=qk.dims.get("n", 0),
        window=module.window if module else None,
        entries=entries,
    )


def _masked_scores(graph: OpGraph, qk: Op, module: AttentionModule | None, entries: int) -> int:
    """Scores of all heads that are executed but masked, where the module says what it masks."""
    query, executed_kv, rows = graph.workload.query_tokens, qk.dims.get("n", 0) - entries, qk.dims.get("m", 0)
    if module is None or not executed_kv or rows % query:
        return 0
    context, window = graph.workload.context_tokens, module.window
    pairs = attention_pairs(query, context, module.causal, window)
    cached = min(context, window - 1) if window else context
    if 0 <= executed_kv - query < cached:  # of the cached tokens some are dropped, and their pairs in proportion
        own = min(pairs, attention_pairs(query, 0, module.causal, window))
        pairs = round(own + (pairs - own) * (executed_kv - query) / cached)
    masked = max(0, query * executed_kv - pairs)
    if entries:
        masked += query * entries - entry_pairs(graph, entries, module.causal)
    return masked * qk.dims.get("b", 1) * (rows // query)


def _without(flops: float, elements: int, masked: int) -> float:
    """FLOPs that are spread evenly over elements, without those of the masked ones."""
    return flops - flops / elements * masked if masked else flops


def _without_elements(op: Op, scores: int, masked: int) -> float:
    """Vector FLOPs without those of masked scores, where the operation works on the scores."""
    elements = op.dims.get("elements", 0)
    return _without(op.vector_flops, elements, masked) if elements >= scores else op.vector_flops


def _walk(
    graph: OpGraph, start: int, path: str, neighbours: Callable[[int], Iterable[int]]
) -> tuple[set[int], set[int]]:
    """Operations of one module that are connected to `start`, and the activation-only matmuls where they end."""
    seen: set[int] = set()
    matmuls: set[int] = set()
    todo = [start]
    while todo:
        for other in neighbours(todo.pop()):
            op = graph.ops[other]
            if other in seen or op.path != path:
                continue
            if is_activation_product(graph, op):
                matmuls.add(other)
            elif op.kind not in ANCHORS:
                seen.add(other)
                todo.append(other)
    return seen, matmuls


def is_activation_product(graph: OpGraph, op: Op) -> bool:
    """Return whether an operation multiplies activations, or keys and values, without any weight."""
    return op.kind is Kind.MATMUL and not graph.has_weight(op)


def _derives(graph: OpGraph, flow: Dataflow, op: int, source: int, between: set[int]) -> bool:
    """Return whether an operation reads, over others of `between`, what `source` made."""
    todo, seen = [op], {op}
    while todo:
        i = todo.pop()
        for access in graph.ops[i].reads:
            producer = flow.producer(i, access.tensor)
            if producer == source:
                return True
            if producer in between and producer not in seen:
                seen.add(producer)
                todo.append(producer)
    return False


def is_closed(graph: OpGraph, flow: Dataflow, members: Sequence[int], ends: Set[int] = frozenset()) -> bool:
    """Return whether the members can run together, at the place of the last.

    Others must read results of the last only, or of `ends` after it, nobody may change their operands in between, and
    all must stand for the same number of layers.
    """
    inside, last = set(members), members[-1]
    if len({graph.ops[i].count for i in members}) != 1:
        return False
    for i in members:
        for access in graph.ops[i].writes:
            readers = {r for r in flow.readers[access.tensor] if r > i} - inside
            if readers and min(readers) < last if i in ends else readers and i != last:
                return False
        for access in (*graph.ops[i].reads, *graph.ops[i].writes):
            if any(i < writer < last and writer not in inside for writer in flow.writers[access.tensor]):
                return False
    return True
