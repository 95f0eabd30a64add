"""The accesses of an executed graph without the copies that an ideal implementation can avoid.

Three kinds of copies disappear here, before anything is fused:
- a cache rewritten to append to it (read old keys, write old and new ones), or rolled to make room for new ones,
  writes the new ones only; a new cache is not cleared first;
- pure data movement whose result only feeds anchors (repeated key heads, casts of a weight, contiguous copies of
  the cache) is read through to its source, where that is smaller, or as large and in memory anyway;
- so is a gather of rows: the users of the rows (an expert's product, the bias of each token's expert) read the source
  and the row numbers.
"""

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property

from roofline.graph.op import ANCHORS, Bytes, Kind, OpGraph, sizes_by_tensor

Sizes = dict[int, Bytes]
"""Bytes by tensor."""
GATHERS = frozenset({"aten::index", "aten::index_select"})
"""Operators that only pick rows of their first operand, by the numbers in their others."""


class Dataflow:
    """Who writes and who reads each tensor of a graph, by index of the operation, in order."""

    def __init__(self, graph: OpGraph) -> None:
        self.graph = graph
        self.writers: list[list[int]] = [[] for _ in graph.tensors]
        self.readers: list[list[int]] = [[] for _ in graph.tensors]
        for i, op in enumerate(graph.ops):
            for tensor in {access.tensor for access in op.reads}:
                self.readers[tensor].append(i)
            for tensor in {access.tensor for access in op.writes}:
                self.writers[tensor].append(i)

    def producer(self, op: int, tensor: int) -> int | None:
        """The last operation before `op` that writes the tensor; None where it was there before the pass."""
        writers = self.writers[tensor]
        before = bisect_right(writers, op - 1)
        return writers[before - 1] if before else None

    def written_between(self, tensor: int, after: int, before: int) -> bool:
        """Return whether an operation strictly between two others writes the tensor."""
        writers = self.writers[tensor]
        return bisect_right(writers, before - 1) > bisect_right(writers, after)

    @cached_property
    def in_memory(self) -> list[bool]:
        """Tensors that exist in memory whatever is fused: weights, the cache, inputs of the pass."""
        return [t.role != "activation" or not self.writers[t.id] for t in self.graph.tensors]


@dataclass(frozen=True)
class Accesses:
    """Bytes that each operation reads and writes, by tensor."""

    reads: tuple[Sizes, ...]
    writes: tuple[Sizes, ...]


def ideal_accesses(graph: OpGraph, flow: Dataflow) -> Accesses:
    """The accesses of every operation once appended caches and avoidable copies are taken out."""
    reads, writes = [sizes_by_tensor(op.reads) for op in graph.ops], [sizes_by_tensor(op.writes) for op in graph.ops]
    for i, op in enumerate(graph.ops):
        if op.kind is Kind.COPY:
            _append(graph, reads[i], writes[i])
            _roll(flow, reads, writes, i)
    for i in range(len(graph.ops)):  # sources first, so that chains of copies are read through to their start
        source = _movement_source(flow, reads, writes, i)
        if source is None:
            continue
        (target,) = writes[i]
        consumers = flow.readers[target]
        if all(_reads_through(flow, source, i, consumer, target, reads) for consumer in consumers):
            for consumer in consumers:
                size = reads[consumer].pop(target)
                for tensor, moved in reads[i].items():
                    amount = reads[consumer].get(tensor, 0) + min(size, moved)
                    reads[consumer][tensor] = min(amount, graph.tensors[tensor].storage_bytes)
            reads[i], writes[i] = {}, {}
    return Accesses(tuple(reads), tuple(writes))


def _append(graph: OpGraph, reads: Sizes, writes: Sizes) -> None:
    """The old part of a rewritten cache is neither read nor written, nor is a new cache cleared."""
    cached, rewritten = ([t for t in sizes if graph.tensors[t].role == "kv"] for sizes in (reads, writes))
    if not reads and len(rewritten) == len(writes):
        writes.clear()
        return
    new_bytes = sum(size for t, size in reads.items() if graph.tensors[t].role == "activation")
    if cached and new_bytes and len(rewritten) == len(writes) == 1:
        for tensor in cached:
            del reads[tensor]
        writes[rewritten[0]] = min(writes[rewritten[0]], new_bytes)


def _roll(flow: Dataflow, reads: list[Sizes], writes: list[Sizes], op: int) -> None:
    """A window that is copied out, changed in part, and copied back writes only the change."""
    if len(reads[op]) != 1 or len(writes[op]) != 1:
        return
    (rolled,), (cache,) = reads[op], writes[op]
    first, *changes = flow.writers[rolled] or [op]
    copied_out = flow.graph.ops[first].kind is Kind.COPY and first < op and [*reads[first]] == [cache]
    others = {*flow.writers[rolled], *flow.readers[rolled]} - {first, op, *changes}
    if flow.graph.tensors[cache].role != "kv" or not copied_out or others or max(changes, default=0) > op:
        return
    changed = sum(writes[i].get(rolled, 0) for i in changes)
    if changed < writes[op][cache]:
        reads[first], writes[first] = {}, {}
        reads[op], writes[op] = {rolled: changed}, {cache: changed}


def _movement_source(flow: Dataflow, reads: list[Sizes], writes: list[Sizes], op: int) -> int | None:
    """The tensor that an operation only moves to another place; None if it does anything else."""
    executed = flow.graph.ops[op]
    moves = executed.kind is Kind.COPY and not executed.matrix_flops and not executed.vector_flops
    gathers = executed.name in GATHERS and executed.reads[0].tensor in reads[op]
    if not moves or len(writes[op]) != 1 or not (len(reads[op]) == 1 or gathers):
        return None
    source, (target,) = executed.reads[0].tensor if gathers else next(iter(reads[op])), writes[op]
    if flow.graph.tensors[target].role != "activation" or flow.writers[target] != [op] or not flow.readers[target]:
        return None
    smaller = reads[op][source] < writes[op][target]
    as_large = reads[op][source] == writes[op][target] and flow.in_memory[source]
    return source if smaller or as_large else None


def _reads_through(flow: Dataflow, source: int, copy: int, consumer: int, target: int, reads: list[Sizes]) -> bool:
    """Return whether a consumer of the copy can read the source instead: an anchor or a further copy, source unchanged.

    Rows of what is in memory anyway can be picked by any consumer.
    """
    op = flow.graph.ops[consumer]
    picks = flow.graph.ops[copy].name in GATHERS and flow.in_memory[source]
    reader = op.kind in ANCHORS or (op.kind is Kind.COPY and len(reads[consumer]) == 1) or picks
    unchanged = not any(flow.written_between(tensor, copy, consumer + 1) for tensor in reads[copy])
    gains = reads[consumer].get(target, 0) >= reads[copy][source]
    return reader and unchanged and gains and op.count == flow.graph.ops[copy].count
