"""The ideal graph of an executed graph: its operations and traffic if everything that can be fused were.

Before operations are grouped (`grouping`), dense experts are made to run only the tokens that choose them (`experts`),
avoidable copies are taken out (`dataflow`); attention in pieces, or behind expanded latents, is one operation
(`attention`), so is an index that chooses keys (`sparse`), and so is a recurrence (`recurrence`). An attention reads no
mask, since it knows which pairs are unmasked; of a mask that holds numbers learned from the tokens (relative positions)
it reads what the products behind it make.

A group reads each tensor from outside once. It writes what is read outside it, the cache, and what nobody reads:
an output of the model, unless it is a by-product beside another result that is read (the mean of a norm).
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from roofline.fusion.absorb_mla import Attention
from roofline.fusion.attention import find_attention, is_closed
from roofline.fusion.experts import routed
from roofline.fusion.grouping import Grouping, Merged
from roofline.fusion.recurrence import Links, Recurrence, find_recurrences, order
from roofline.fusion.sparse import Chosen, Index, find_index
from roofline.graph.dataflow import Accesses, Dataflow, Sizes, ideal_accesses
from roofline.graph.edit import access, changed, rebuilt, whole
from roofline.graph.op import (
    ANCHORS,
    PRODUCTS,
    Access,
    Kind,
    Op,
    OpGraph,
    Tensor,
    holds_tokens,
    is_compressed,
    sizes_by_tensor,
)


class Group(Op):
    """Operations that an ideal implementation runs as one kernel, described by its main member.

    That is its attention, else its last anchor with the most matrix work, else the member with the most vector work.
    """

    ops: tuple[int, ...]
    """Indices of the executed operations, in order."""
    window: tuple[int, int] | None = None
    """Tokens of the keys and values it reads that a later query can still see, and all of them; None: it sees all."""
    lead: float | None = None
    """`Attention.lead`."""


def fused(graph: OpGraph) -> OpGraph:
    """The ideal graph as a graph of its own: an operation a group that does anything, over tensors of unknown lifetime.

    Of keys and values in a window the cache keeps a window; the others are an activation, gone after the attention.
    """
    fields = Op.model_fields
    graph = routed(graph)
    groups = fuse(graph)
    ops = [
        Op.model_construct(**{name: getattr(group, name) for name in fields})
        for group in groups
        if group.reads or group.writes or group.matrix_flops or group.vector_flops or group.link
    ]
    tensors = [tensor if tensor.held is None else tensor.model_copy(update={"held": None}) for tensor in graph.tensors]
    rests: dict[int, Access] = {}
    for group in groups:
        window, keys = group.window or (1, 1)
        for a in group.reads if window < keys else ():
            tensor = tensors[a.tensor]
            if holds_tokens(tensor) and not is_compressed(tensor) and a.tensor not in rests:
                kept = whole(tensor.storage_bytes * window / keys)
                rests[a.tensor] = access(len(tensors), tensor.storage_bytes - kept)
                tensors[a.tensor] = tensor.model_copy(update={"storage_bytes": kept})
                tensors.append(Tensor(id=len(tensors), storage_bytes=rests[a.tensor].bytes, role="activation"))
    if rests:
        ops = [changed(op, reads=_parted(op.reads, rests), writes=_parted(op.writes, rests)) for op in ops]
    lead = min((group.lead for group in groups if group.lead is not None), key=abs, default=None)
    return rebuilt(graph, ops=tuple(ops), tensors=tuple(tensors), lead=lead)


def _parted(accesses: Iterable[Access], rests: Mapping[int, Access]) -> tuple[Access, ...]:
    """Accesses of windowed keys and values as accesses of what the cache keeps, and of the rest."""
    made: list[Access] = []
    for a in accesses:
        rest = rests.get(a.tensor)
        passing = min(a.bytes, rest.bytes) if rest else 0
        if rest and passing:
            made.append(access(rest.tensor, passing))
        made.append(access(a.tensor, a.bytes - passing))
    return tuple(made)


def fuse(graph: OpGraph) -> tuple[Group, ...]:
    """The ideal graph, in an order that can run. Every operation of `graph` is in exactly one group."""
    graph = routed(graph)
    flow = Dataflow(graph)
    accesses = ideal_accesses(graph, flow)
    attentions = find_attention(graph, flow, accesses, over_chosen=True)
    indexes = _indexes(flow, accesses, attentions)
    masked: list[Attention | Index] = [*attentions, *indexes]
    links = Links(graph, flow)
    recurrences = find_recurrences(links, {i for kernel in masked for i in kernel.members})
    kernels: list[Merged] = [*masked, *recurrences]
    merged = {kernel.members[-1]: kernel for kernel in kernels}
    reads = list(accesses.reads)
    for kernel in masked:  # it knows which pairs are unmasked, so it does not read its mask
        learned = _behind_masks(flow, kernel) if isinstance(kernel, Attention) else {}
        for i in kernel.members:
            if kernel.masks & reads[i].keys():
                reads[i] = learned | {tensor: size for tensor, size in reads[i].items() if tensor not in kernel.masks}
    for attention in attentions:
        if attention.choice is not None and attention.chosen is not None:
            for i in attention.members:
                reads[i] = _of_chosen(graph, reads[i], attention.chosen)
            numbers = attention.choice.numbers
            reads[attention.members[-1]][numbers] = graph.tensors[numbers].storage_bytes
    writes = list(accesses.writes)
    unused = _unused(flow, reads, writes)
    for i in unused:
        writes[i] = {}
    accesses = Accesses(tuple(reads), tuple(writes))
    readers: list[list[int]] = [[] for _ in graph.tensors]  # in the ideal graph
    for i, tensors in enumerate(reads):
        for tensor in tensors:
            readers[tensor].append(i)
    return tuple(
        _group(flow, accesses, readers, unused, ops, next((merged[i] for i in ops if i in merged), None))
        for ops in Grouping(graph, flow, merged).groups(order(links, recurrences))
    )


def _indexes(flow: Dataflow, accesses: Accesses, attentions: Sequence[Attention]) -> list[Index]:
    """The kernels that choose keys for the attentions; several attentions may share one."""
    modules = {module.path: module for module in flow.graph.attention_modules}
    causal: dict[int, bool] = {}
    for attention in attentions:
        if attention.choice is not None:
            module = modules.get(flow.graph.ops[attention.members[-1]].path)
            causal.setdefault(attention.choice.op, module is not None and module.causal)
    found = (find_index(flow, accesses, choice, is_causal) for choice, is_causal in causal.items())
    return [index for index in found if index is not None and is_closed(flow.graph, flow, index.members)]


def _behind_masks(flow: Dataflow, attention: Attention) -> Sizes:
    """Return the results of products with weights from which the masks of an attention follow, such as its relative
    positions; those of an index that chooses its keys are read by the index."""
    graph = flow.graph
    chosen = attention.choice.masks if attention.choice is not None else frozenset()
    todo = [(i, t) for i in attention.members for t in attention.masks - chosen]
    found: Sizes = {}
    seen: set[int] = set()
    while todo:
        producer = flow.producer(*todo.pop())
        if producer is None or producer in seen or producer in attention.members:
            continue
        seen.add(producer)
        op = graph.ops[producer]
        if op.kind in PRODUCTS and graph.has_weight(op):
            found |= sizes_by_tensor(op.writes)
        else:
            todo += [(producer, access.tensor) for access in op.reads]
    return found


def _of_chosen(graph: OpGraph, sizes: Sizes, chosen: Chosen) -> Sizes:
    """Return what an attention reads of each tensor where it reads the chosen keys and values of the cache alone."""
    return {tensor: size * chosen.kept if chosen.reads(graph, tensor) else size for tensor, size in sizes.items()}


SCALAR_BYTES = 8
"""Largest size of a number that an operation takes as a tensor."""


def _unused(flow: Dataflow, reads: Sequence[Sizes], writes: Sequence[Sizes]) -> set[int]:
    """Operations that only make what no operation of the ideal graph reads: a mask, and the positions behind it.

    What nobody reads as executed either is an output of the model, unless it is made from nothing, as a mask whose
    layers a what-if has removed. Empties the reads of those operations.
    """
    readers: list[list[int]] = [[] for _ in flow.graph.tensors]  # in the ideal graph: copies are read through
    for i, tensors in enumerate(reads):
        for tensor in tensors:
            readers[tensor].append(i)
    from_nothing: set[int] = set()
    for i, op in enumerate(flow.graph.ops):
        numbers = SCALAR_BYTES if op.kind is Kind.COPY else -1  # as what a `where` puts in a mask
        sources = [a.tensor for a in op.reads if flow.graph.tensors[a.tensor].storage_bytes > numbers]
        if all(flow.producer(i, tensor) in from_nothing for tensor in sources):
            from_nothing.add(i)
    unused: set[int] = set()
    for i in range(len(reads) - 1, -1, -1):
        made = writes[i].keys()
        if not made or any(flow.graph.tensors[t].role != "activation" for t in made):
            continue
        is_read = any(flow.readers[t] and flow.readers[t][-1] > i for t in made)
        is_output = not is_read and i not in from_nothing
        if not is_output and not any(r > i and t in reads[r] for t in made for r in readers[t]):
            unused.add(i)
            reads[i].clear()
    return unused


def _group(
    flow: Dataflow,
    accesses: Accesses,
    readers: list[list[int]],
    unused: set[int],
    ops: list[int],
    merged: Merged | None,
) -> Group:
    graph = flow.graph
    attention = merged if isinstance(merged, Attention) else None
    place = graph.ops[attention.members[-1]].path if attention is not None else None  # what it absorbs is elsewhere
    attends = {i for i in attention.members if graph.ops[i].path == place} if attention is not None else set()

    def rank(i: int) -> tuple[bool, bool, bool, float, float, int]:
        op = graph.ops[i]
        at_once = i in attends and op.kind is Kind.ATTENTION
        return at_once, i in attends, op.kind in ANCHORS, op.matrix_flops, op.vector_flops, i

    main = max(ops, key=rank)
    described = dict(graph.ops[main])
    if attention is not None and described["kind"] is not Kind.ATTENTION:
        sizes = {"query": attention.query, "head_dim": attention.head_dim, "value_dim": attention.value_dim}
        described |= {"kind": Kind.ATTENTION, "dims": {"heads": attention.heads, **sizes}}
    if sum(graph.ops[i].kind is Kind.ATTENTION for i in attends) > 1 and attention is not None:
        described["dims"] = described["dims"] | {"value_dim": attention.value_dim}
    if isinstance(merged, Recurrence):
        described |= {"kind": Kind.SCAN, "dims": {}, "dtype": graph.workload.dtype}
    if isinstance(merged, Index):
        described |= {"dtype": merged.dtype}
    if attention is not None and attention.chosen is not None and "kv" in described["dims"]:
        described["dims"] = described["dims"] | {"kv": attention.chosen.tokens, "pairs": attention.chosen.pairs}
    inside = set(merged.members) if merged is not None else set()
    rest = [i for i in ops if i not in inside and i not in unused]
    ways = {graph.ops[i].beside for i in ops if graph.ops[i].link}
    described |= {
        name: sum(getattr(graph.ops[i], name) for i in rest) + (getattr(merged, name) if merged else 0)
        for name in ("matrix_flops", "vector_flops")
    }
    described |= {name: sum(getattr(graph.ops[i], name) for i in ops) for name in ("link_bytes", "messages")}
    reads, writes = _outside_reads(flow, accesses, ops), _outside_writes(flow, accesses, readers, ops)
    if isinstance(merged, Recurrence):
        reads |= _states_read(accesses, writes, graph, ops)
    described |= {
        "reads": moved_once(graph, reads),
        "writes": moved_once(graph, writes),
        "link": next((graph.ops[i].link for i in ops if graph.ops[i].link), None),
        "beside": ways.pop() if len(ways) == 1 else None,  # None where transfers do not agree
        "also": tuple(dict.fromkeys(f"{graph.ops[i].path} {graph.ops[i].kind}" for i in ops if i != main)),
    }
    described["counted"] = all(graph.ops[i].counted for i in ops if i not in unused)
    described["lead"] = attention.lead if attention is not None else None
    tokens = attention.keys - attention.entries if attention is not None else 0
    if attention is not None and attention.window and tokens > attention.window:
        described["window"] = (attention.window, tokens)
    return Group.model_construct(**described, ops=tuple(ops))  # of validated operations


def _outside_reads(flow: Dataflow, accesses: Accesses, ops: list[int]) -> Sizes:
    """Sizes that the group reads and has not written itself before."""
    inside = set(ops)
    written: Sizes = defaultdict(int)
    reads: Sizes = defaultdict(int)
    for i in ops:
        for tensor, size in accesses.reads[i].items():
            before = flow.writers[tensor][: bisect_left(flow.writers[tensor], i)]
            if before and flow.graph.tensors[tensor].role == "activation" and inside.issuperset(before):
                continue  # all that is in it was made here
            if (missing := size - written[tensor]) > 0:
                reads[tensor] += missing
        for tensor, size in accesses.writes[i].items():
            written[tensor] += size
    return reads


def _states_read(accesses: Accesses, writes: Sizes, graph: OpGraph, ops: list[int]) -> Sizes:
    """Sizes of the states that a recurrence reads: no more than it writes back, however many members read them, and
    none that it has made itself."""
    reads: Sizes = defaultdict(int)
    made: set[int] = set()
    for i in ops:
        for tensor, size in accesses.reads[i].items():
            is_state = graph.tensors[tensor].role == "kv" and not holds_tokens(graph.tensors[tensor])
            if is_state and tensor not in made:
                reads[tensor] += size
        made |= accesses.writes[i].keys() - reads.keys()
    return {tensor: min(size, writes.get(tensor) or size) for tensor, size in reads.items()}


def _outside_writes(flow: Dataflow, accesses: Accesses, readers: list[list[int]], ops: list[int]) -> Sizes:
    """Sizes that the group writes for others: later readers, the cache, the caller of the model."""
    inside = set(ops)
    writes: Sizes = defaultdict(int)
    for i in ops:
        is_used = any(r > i for tensor in accesses.writes[i] for r in flow.readers[tensor])
        for tensor, size in accesses.writes[i].items():
            read = sum(accesses.reads[r][tensor] for r in readers[tensor] if r > i and r not in inside)
            keeps_all = flow.graph.tensors[tensor].role == "kv" or not is_used
            if needed := size if keeps_all else min(size, read):
                writes[tensor] += needed
    return writes


def moved_once(graph: OpGraph, sizes: Sizes) -> tuple[Access, ...]:
    """Accesses of these sizes: a tensor is moved once, however many members touch it."""
    return tuple(Access(tensor=t, bytes=min(size, graph.tensors[t].storage_bytes)) for t, size in sizes.items())


Members = Sequence[Sequence[int]]
"""Operations of each kernel, as indices in order."""


def kernel_ops(graph: OpGraph, members: Members) -> tuple[Op, ...]:
    """A graph as a compiler ran it: each kernel as one operation, described by its member with the most work.

    A kernel reads what its members read and have not written themselves before; it writes what the cache keeps, what
    nobody reads (an output of the model), and what a kernel reads that does not do the writing operation itself. An
    operation may be part of several kernels, which then all compute it; of these the first one writes for others.
    """
    flow = Dataflow(graph)
    doing: list[set[int]] = [set() for _ in graph.ops]
    for kernel, ops in enumerate(members):
        for i in ops:
            doing[i].add(kernel)
    kernels = []
    for kernel, ops in enumerate(members):
        main = max((graph.ops[i] for i in ops), key=lambda op: (op.kind in ANCHORS, op.matrix_flops, op.vector_flops))
        reads: Sizes = {}
        writes: Sizes = {}
        written: Sizes = {}
        for i in ops:
            for tensor, size in sizes_by_tensor(graph.ops[i].reads).items():
                if (missing := size - written.get(tensor, 0)) > 0:
                    reads[tensor] = max(reads.get(tensor, 0), missing)
            for tensor, size in sizes_by_tensor(graph.ops[i].writes).items():
                written[tensor] = written.get(tensor, 0) + size
                readers = [r for r in flow.readers[tensor] if r > i]
                is_kept = graph.tensors[tensor].role == "kv" or not readers
                if min(doing[i]) == kernel and (is_kept or any(not doing[r] <= doing[i] for r in readers)):
                    writes[tensor] = writes.get(tensor, 0) + size
        update = {name: sum(getattr(graph.ops[i], name) for i in ops) for name in ("matrix_flops", "vector_flops")}
        update["counted"] = all(graph.ops[i].counted for i in ops)
        accesses = {"reads": moved_once(graph, reads), "writes": moved_once(graph, writes)}
        kernels.append(main.model_copy(update=update | accesses))
    return tuple(kernels)
