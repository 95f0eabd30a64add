"""The ideal graph of an executed graph: what would run, and move, if everything that can be fused were.

Each executed operation goes to exactly one group, greedily in order of execution:
(a) anchors (`ANCHORS`) start a group; any other operation joins the latest of the groups it depends on, or starts a
    group if there is none. Such an anchorless group moves into the one group with an anchor that alone uses it (a
    cast, a mask), or before a later one that it does not depend on (1 + the gain of a norm behind a matmul).
(b) rewriting a cache to append to it becomes an append, (c) pure data movement in front of an anchor is read
    through to its source: `dataflow`. (d) Unfused attention and (e) expanded latents become one attention: `attention`.
Operations join only across equal counts, so that a group has one count.

The groups, in order, are a valid schedule. Proof: groups are numbered as they are made, and each operation is put
in a group whose number is at least that of every group it depends on (reads after writes, writes after reads and
writes): an anchor's is new, so the highest; another's is the maximum of those groups, or new. So every dependency
goes from a lower or equal number to a higher or equal one. The operations of a fused attention are placed when its
last one comes, in a new group; none but its last is read by outsiders, and none of what they read is changed in
between. An anchorless group is moved into a newer group only if that is its only successor, and into an older one only
if that is no older than any group it depends on.

A group reads each tensor from outside once. It writes what is read outside it, the cache, and what nobody reads:
an output of the model, unless it is a by-product beside another result that is read (the mean of a norm).

Example: ``sum(a.bytes for g in fuse(graph) for a in (*g.reads, *g.writes))`` → compulsory bytes of the pass.
"""

from collections.abc import Iterable
from typing import Literal

from roofline.fusion.attention import Attention, find_attention
from roofline.graph.dataflow import Accesses, Dataflow, Sizes, ideal_accesses
from roofline.graph.op import ANCHORS, Access, Kind, Op, OpGraph


class Group(Op):
    """Operations that an ideal implementation runs as one kernel, described by its main member.

    That is its attention, else its last anchor with the most matrix work; without an anchor, the member with the most
    vector work.
    """

    ops: tuple[int, ...]
    """Indices of the executed operations, in order."""


def fused(graph: OpGraph) -> OpGraph:
    """The ideal graph as a graph of its own: an operation a group, over the same tensors.

    Nothing is known of how long its tensors are held.
    """
    fields = Op.model_fields
    ops = tuple(Op.model_construct(**{name: getattr(group, name) for name in fields}) for group in fuse(graph))
    tensors = tuple(
        tensor if tensor.held is None else tensor.model_copy(update={"held": None}) for tensor in graph.tensors
    )
    return graph.model_copy(update={"ops": ops, "tensors": tensors})


def fuse(graph: OpGraph) -> tuple[Group, ...]:
    """The ideal graph, in an order that can run. Every operation of `graph` is in exactly one group."""
    flow = Dataflow(graph)
    accesses = ideal_accesses(graph, flow)
    attentions = {attention.members[-1]: attention for attention in find_attention(graph, flow, accesses)}
    accesses = _without_masks(accesses, attentions.values())
    members = _Grouping(graph, flow, attentions).groups()
    readers = _readers(graph, accesses)
    return tuple(
        _group(graph, flow, accesses, readers, ops, next((attentions[i] for i in ops if i in attentions), None))
        for ops in members
    )


class _Grouping:
    """Assigns operations to numbered groups, one operation after another."""

    def __init__(self, graph: OpGraph, flow: Dataflow, attentions: dict[int, Attention]) -> None:
        self._graph = graph
        self._flow = flow
        self._attentions = attentions
        self._deferred = {i for a in attentions.values() for i in a.members[:-1]}
        self._members: list[list[int]] = []
        self._group_of: dict[int, int] = {}
        self._last_write = [-1] * len(graph.tensors)
        self._last_touch = [-1] * len(graph.tensors)

    def groups(self) -> list[list[int]]:
        for i, op in enumerate(self._graph.ops):
            if i in self._deferred:
                continue
            if i in self._attentions:
                self._place(list(self._attentions[i].members), None)
            elif op.kind in ANCHORS:
                self._place([i], None)
            else:
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
        self._members[group] += ops
        for i in ops:
            self._group_of[i] = group
            self._touch(i, group)
        if any(self._graph.ops[i].kind in ANCHORS for i in self._members[group]):
            self._take_in_loose_groups(group, ops)

    def _moves_back(self, loose: int, op: int) -> bool:
        """Move an anchorless group that only `op` uses into the older group with an anchor that `op` also needs.

        So `op`, and what follows it, can join that anchor; False, and nothing is moved, where there is none such.
        """
        if not self._only_feeds(loose, {op}, self._graph.ops[op].count):
            return False
        inside = self._members[loose]
        needed = self._dependencies(op) - {loose}
        target = max(needed, default=-1)
        own = {group for i in inside for group in self._dependencies(i)} - {loose}
        if target < max(own, default=-1) or target < 0 or self._count(target) != self._count(loose):
            return False
        if not any(self._graph.ops[i].kind in ANCHORS for i in self._members[target]):
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

    def _touch(self, op: int, group: int) -> None:
        executed = self._graph.ops[op]
        for access in executed.reads:
            self._last_touch[access.tensor] = max(self._last_touch[access.tensor], group)
        for access in executed.writes:
            self._last_touch[access.tensor] = max(self._last_touch[access.tensor], group)
            self._last_write[access.tensor] = max(self._last_write[access.tensor], group)

    def _take_in_loose_groups(self, group: int, ops: Iterable[int]) -> None:
        """Move in the anchorless groups that feed nothing but this one, starting from what `ops` of it read."""
        todo = list(ops)
        while todo:
            for access in self._graph.ops[todo.pop()].reads:
                loose = self._last_write[access.tensor]
                if loose in (-1, group) or not self._only_feeds(loose, self._members[group], self._count(group)):
                    continue
                moved = self._members[loose]
                self._members[group] += moved
                self._members[loose] = []
                for i in moved:
                    self._group_of[i] = group
                    self._touch(i, group)
                todo += moved

    def _only_feeds(self, loose: int, users: Iterable[int], count: float) -> bool:
        """Whether a group has no anchor and no successor, of any dependency, but `users`, which have that count."""
        ops = self._members[loose]
        if not ops or self._count(loose) != count:
            return False
        inside = {*ops, *users}
        for i in ops:
            op = self._graph.ops[i]
            if op.kind in ANCHORS:
                return False
            readers = {r for a in op.writes for r in self._flow.readers[a.tensor] if r > i}
            if not readers or not readers <= inside:
                return False
            if any(w > i and w not in inside for a in (*op.reads, *op.writes) for w in self._flow.writers[a.tensor]):
                return False
        return True


def _group(
    graph: OpGraph,
    flow: Dataflow,
    accesses: Accesses,
    readers: list[list[int]],
    ops: list[int],
    attention: Attention | None,
) -> Group:
    place = graph.ops[attention.members[-1]].path if attention is not None else None  # what it absorbs is elsewhere
    attends = {i for i in attention.members if graph.ops[i].path == place} if attention is not None else set()
    main = max(ops, key=lambda i: _rank(graph.ops[i], i in attends, i))
    described = dict(graph.ops[main])
    if attention is not None and described["kind"] is not Kind.ATTENTION:
        sizes = {"query": attention.query, "head_dim": attention.head_dim, "value_dim": attention.value_dim}
        described |= {"kind": Kind.ATTENTION, "dims": {"heads": attention.heads, **sizes}}
    rest = ops if attention is None else [i for i in ops if i not in attention.members]
    matrix_flops = sum(graph.ops[i].matrix_flops for i in rest)
    vector_flops = sum(graph.ops[i].vector_flops for i in rest)
    if attention:
        matrix_flops += attention.matrix_flops
        vector_flops += attention.vector_flops
    return Group.model_construct(  # of validated operations
        **described
        | {
            "ops": tuple(ops),
            "matrix_flops": matrix_flops,
            "vector_flops": vector_flops,
            "reads": moved_once(graph, _outside_reads(accesses, ops)),
            "writes": moved_once(graph, _outside_writes(graph, flow, accesses, readers, ops)),
            "link": next((graph.ops[i].link for i in ops if graph.ops[i].link), None),
            "link_bytes": sum(graph.ops[i].link_bytes for i in ops),
            "messages": sum(graph.ops[i].messages for i in ops),
            "beside": _direction([graph.ops[i] for i in ops]),
            "also": tuple(dict.fromkeys(f"{graph.ops[i].path} {graph.ops[i].kind}" for i in ops if i != main)),
        }
    )


def _direction(ops: Iterable[Op]) -> Literal["in", "out"] | None:
    """Direction in which all transfers of a group overlap with its layer; None where they do not agree."""
    ways = {op.beside for op in ops if op.link}
    return ways.pop() if len(ways) == 1 else None


def _rank(op: Op, attends: bool, index: int) -> tuple[bool, bool, bool, float, float, int]:
    """The highest describes its group: the attention, an anchor, the most matrix work, the most vector work."""
    whole = attends and op.kind is Kind.ATTENTION
    return whole, attends, op.kind in ANCHORS, op.matrix_flops, op.vector_flops, index


def _outside_reads(accesses: Accesses, ops: list[int]) -> Sizes:
    """Sizes that the group reads and has not written itself before."""
    written: Sizes = {}
    reads: Sizes = {}
    for i in ops:
        for tensor, size in accesses.reads[i].items():
            missing = size - written.get(tensor, 0)
            if missing > 0:
                reads[tensor] = reads.get(tensor, 0) + missing
        for tensor, size in accesses.writes[i].items():
            written[tensor] = written.get(tensor, 0) + size
    return reads


def _readers(graph: OpGraph, accesses: Accesses) -> list[list[int]]:
    """By tensor, the operations that read it in the ideal graph: of what is read through, others than were executed."""
    readers: list[list[int]] = [[] for _ in graph.tensors]
    for i, reads in enumerate(accesses.reads):
        for tensor in reads:
            readers[tensor].append(i)
    return readers


def _outside_writes(
    graph: OpGraph, flow: Dataflow, accesses: Accesses, readers: list[list[int]], ops: list[int]
) -> Sizes:
    """Sizes that the group writes for others: later readers, the cache, the caller of the model."""
    inside = set(ops)
    writes: Sizes = {}
    for i in ops:
        is_used = any(r > i for tensor in accesses.writes[i] for r in flow.readers[tensor])
        for tensor, size in accesses.writes[i].items():
            read = sum(accesses.reads[r][tensor] for r in readers[tensor] if r > i and r not in inside)
            keeps_all = graph.tensors[tensor].role == "kv" or not is_used
            needed = size if keeps_all else min(size, read)
            if needed:
                writes[tensor] = writes.get(tensor, 0) + needed
    return writes


def _without_masks(accesses: Accesses, attentions: Iterable[Attention]) -> Accesses:
    """Fused attention knows which pairs are unmasked: it does not read its mask."""
    reads = list(accesses.reads)
    for attention in attentions:
        for i in attention.members:
            reads[i] = {tensor: size for tensor, size in reads[i].items() if tensor not in attention.masks}
    return Accesses(tuple(reads), accesses.writes)


def moved_once(graph: OpGraph, sizes: Sizes) -> tuple[Access, ...]:
    """A tensor is moved once, however many members touch it."""
    return tuple(
        Access(tensor=tensor, bytes=min(size, graph.tensors[tensor].storage_bytes)) for tensor, size in sizes.items()
    )
