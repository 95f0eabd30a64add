"""The ideal graph of an executed graph: its operations and traffic if everything that can be fused were.

Each executed operation goes to exactly one group, greedily in order of execution. Anchors (`ANCHORS`) start a group;
any other operation joins the latest of the groups it depends on, or starts one. Such an anchorless group moves into the
one group with an anchor that alone uses it (a cast, a mask), or before a later one that it does not depend on (1 + the
gain of a norm behind a matmul). Before that, dense experts are made to run only the tokens that choose them
(`experts`), avoidable copies are taken out (`dataflow`); attention in pieces, or behind expanded latents, is one
operation (`attention`), so is an index that chooses keys (`sparse`), and so is a recurrence (`recurrence`). Operations
join only across equal counts: a group has one count.

The groups, in order, are a valid schedule. Proof: groups are numbered as they are made, and each operation is put
in a group whose number is at least that of every group it depends on (reads after writes, writes after reads and
writes): an anchor's is new, so the highest; another's is the maximum of those groups, or new. The operations of a fused
attention are placed when its last one comes, in a new group; none but its last is read by outsiders, and none of their
operands is changed in between. An anchorless group is moved into a newer group only if that is its only successor, and
into an older one only if that is no older than any group it depends on.

A group reads each tensor from outside once. It writes what is read outside it, the cache, and what nobody reads:
an output of the model, unless it is a by-product beside another result that is read (the mean of a norm).
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from roofline.fusion.absorb_mla import Attention
from roofline.fusion.attention import find_attention, is_closed
from roofline.fusion.experts import routed
from roofline.fusion.recurrence import Links, Recurrence, find_recurrences, order
from roofline.fusion.sparse import Chosen, Index, find_index
from roofline.graph.dataflow import Accesses, Dataflow, Sizes, ideal_accesses
from roofline.graph.edit import access, changed, rebuilt, whole
from roofline.graph.op import ANCHORS, Access, Kind, Op, OpGraph, Tensor, holds_tokens, sizes_by_tensor


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
            if holds_tokens(tensor) and a.tensor not in rests:
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
        for i in kernel.members:
            reads[i] = {tensor: size for tensor, size in reads[i].items() if tensor not in kernel.masks}
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
        for ops in _Grouping(graph, flow, merged).groups(order(links, recurrences))
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


def _of_chosen(graph: OpGraph, sizes: Sizes, chosen: Chosen) -> Sizes:
    """What an attention reads of each tensor where it reads the chosen keys and values of the cache alone."""
    return {
        tensor: size * chosen.kept if chosen.kept < 1 and holds_tokens(graph.tensors[tensor]) else size
        for tensor, size in sizes.items()
    }


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


Merged = Attention | Index | Recurrence
"""Operations that one kernel replaces."""


class _Grouping:
    """Assigns operations to numbered groups, one operation after another."""

    def __init__(self, graph: OpGraph, flow: Dataflow, merged: dict[int, Merged]) -> None:
        self._graph, self._flow, self._merged = graph, flow, merged
        self._deferred = {i for kernel in merged.values() for i in kernel.members[:-1]}
        self._scans = {i for i, kernel in merged.items() if isinstance(kernel, Recurrence)}
        self._members: list[list[int]] = []
        self._group_of: dict[int, int] = {}
        self._last_write = [-1] * len(graph.tensors)
        self._last_touch = [-1] * len(graph.tensors)

    def groups(self, order: Iterable[int]) -> list[list[int]]:
        for i in order:
            op = self._graph.ops[i]
            if i in self._deferred:
                continue
            if i in self._merged or op.kind in ANCHORS:
                self._place(list(self._merged[i].members) if i in self._merged else [i], None)
                continue
            latest = self._latest_dependency(i)
            while latest is not None and self._moves_back(latest, i):
                latest = self._latest_dependency(i)
            joins = latest is not None and self._count(latest) == op.count
            self._place([i], latest if joins else None)
        return [sorted(ops) for ops in self._members if ops]

    def _latest_dependency(self, op: int) -> int | None:
        """Highest group that the operation reads from, or must not overtake."""
        executed = self._graph.ops[op]
        groups = [self._last_write[a.tensor] for a in executed.reads]
        groups += [self._last_touch[a.tensor] for a in executed.writes]
        return max((group for group in groups if group >= 0), default=None)

    def _count(self, group: int) -> float:
        return self._graph.ops[self._members[group][0]].count

    def _place(self, ops: list[int], group: int | None) -> None:
        if group is None:
            group = len(self._members)
            self._members.append([])
        self._move(ops, group)
        if self._has_anchor(group):
            self._take_in_loose_groups(group, ops)

    def _move(self, ops: list[int], group: int) -> None:
        self._members[group] += ops
        for i in ops:
            self._group_of[i] = group
            for accesses, writes in ((self._graph.ops[i].reads, False), (self._graph.ops[i].writes, True)):
                for tensor in (touched.tensor for touched in accesses):
                    self._last_touch[tensor] = max(self._last_touch[tensor], group)
                    if writes:
                        self._last_write[tensor] = max(self._last_write[tensor], group)

    def _has_anchor(self, group: int) -> bool:
        return any(self._graph.ops[i].kind in ANCHORS or i in self._scans for i in self._members[group])

    def _moves_back(self, loose: int, op: int) -> bool:
        """Move an anchorless group that only `op` uses into the older group with an anchor that `op` also needs.

        So `op`, and what follows it, can join that anchor. Returns whether there is such a group.
        """
        if not self._only_feeds(loose, {op}, self._graph.ops[op].count):
            return False
        inside = self._members[loose]
        target = max(self._dependencies(op) - {loose}, default=-1)
        own = {group for i in inside for group in self._dependencies(i)} - {loose}
        if target < max(own, default=-1) or target < 0 or self._count(target) != self._count(loose):
            return False
        if not self._has_anchor(target):
            return False
        self._members[loose] = []
        self._members[target] += inside
        self._group_of |= dict.fromkeys(inside, target)
        for tensor in {a.tensor for i in inside for a in (*self._graph.ops[i].reads, *self._graph.ops[i].writes)}:
            writers = [self._group_of[i] for i in self._flow.writers[tensor] if i in self._group_of]
            readers = [self._group_of[i] for i in self._flow.readers[tensor] if i in self._group_of]
            self._last_write[tensor] = max(writers, default=-1)
            self._last_touch[tensor] = max((*writers, *readers), default=-1)
        return True

    def _dependencies(self, op: int) -> set[int]:
        """Groups of the placed operations that come before `op` and that it must not overtake."""
        executed = self._graph.ops[op]
        before = {w for a in (*executed.reads, *executed.writes) for w in self._flow.writers[a.tensor]}
        before |= {r for a in executed.writes for r in self._flow.readers[a.tensor]}
        return {self._group_of[i] for i in before if i < op and i in self._group_of}

    def _take_in_loose_groups(self, group: int, ops: Iterable[int]) -> None:
        """Move in the anchorless groups that feed nothing but this one, starting from what `ops` of it read."""
        todo = list(ops)
        while todo:
            for read in self._graph.ops[todo.pop()].reads:
                loose = self._last_write[read.tensor]
                if loose in (-1, group) or not self._only_feeds(loose, self._members[group], self._count(group)):
                    continue
                moved, self._members[loose] = self._members[loose], []
                self._move(moved, group)
                todo += moved

    def _only_feeds(self, loose: int, users: Iterable[int], count: float) -> bool:
        """Whether a group has no anchor and no successor, of any dependency, but `users`, which have that count."""
        ops = self._members[loose]
        if not ops or self._count(loose) != count or self._has_anchor(loose):
            return False
        inside = {*ops, *users}
        for i in ops:
            op = self._graph.ops[i]
            readers = {r for a in op.writes for r in self._flow.readers[a.tensor] if r > i}
            if not readers or not readers <= inside:
                return False
            if any(w > i and w not in inside for a in (*op.reads, *op.writes) for w in self._flow.writers[a.tensor]):
                return False
        return True


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
    if attention is not None and attention.window and attention.keys > attention.window:
        described["window"] = (attention.window, attention.keys)
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
