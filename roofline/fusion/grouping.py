"""How the operations of a graph are grouped into the kernels of its ideal graph.

Each executed operation goes to exactly one group, greedily in order of execution. Anchors (`ANCHORS`) start a group;
any other operation joins the latest of the groups it depends on, or starts one. Such an anchorless group moves into the
one group with an anchor that alone uses it (a cast, a mask), or before a later one that it does not depend on (1 + the
gain of a norm behind a matmul). Operations join only across equal counts: a group has one count.

The groups, in order, are a valid schedule. Proof: groups are numbered as they are made, and each operation is put
in a group whose number is at least that of every group it depends on (reads after writes, writes after reads and
writes): an anchor's is new, so the highest; another's is the maximum of those groups, or new. The operations of a fused
attention are placed when its last one comes, in a new group; none but its last is read by outsiders before its
place, and none of their
operands is changed in between. An anchorless group is moved into a newer group only if that is its only successor, and
into an older one only if that is no older than any group it depends on.
"""

from collections.abc import Iterable

from roofline.fusion.absorb_mla import Attention
from roofline.fusion.recurrence import Recurrence
from roofline.fusion.sparse import Index
from roofline.graph.dataflow import Dataflow
from roofline.graph.op import ANCHORS, OpGraph

Merged = Attention | Index | Recurrence
"""Operations that one kernel replaces."""


class Grouping:
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
        """Return whether a group has no anchor and no successor but `users`, which have that count."""
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
