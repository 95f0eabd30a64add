"""Finding what expands cached latents to keys and values (MLA), with what what-ifs have put around it.

As traced it is one product of the cache with a weight. `low_rank` makes two of it, `lora` adds branches of two each,
and quantised activations run an operation before a product. All of them are linear in the latents, but for rounding.

Example: ``find_expansion(graph, flow, accesses, members).branches`` → ((56,), (57, 58)): a product, and an adapter
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from roofline.dataflow import Accesses, Dataflow
from roofline.op import Kind, Op, OpGraph
from roofline.whatif.linear import LORA_ADD, QUANTISE

PRODUCTS = frozenset({Kind.MATMUL, Kind.GROUPED_MATMUL})


@dataclass(frozen=True)
class Expansion:
    """Operations, by index, that only make the keys and values of one attention."""

    copies: frozenset[int]
    """Copies in the attention's module."""
    members: frozenset[int]
    """All others."""
    branches: tuple[tuple[int, ...], ...]
    """Of each branch, the sum of which is expanded, its operations from the latents on."""


def find_expansion(graph: OpGraph, flow: Dataflow, accesses: Accesses, attention: Iterable[int]) -> Expansion | None:
    """What expands latents for the operations of an attention; None where nothing does, or others use it too."""
    return _Walk(graph, flow, accesses, frozenset(attention)).expansion()


class _Walk:
    """From an attention back to the cache."""

    def __init__(self, graph: OpGraph, flow: Dataflow, accesses: Accesses, attention: frozenset[int]) -> None:
        self._graph = graph
        self._flow = flow
        self._accesses = accesses
        self._attention = attention
        self._path = graph.ops[max(attention)].path
        self._known: dict[int, bool] = {}

    def expansion(self) -> Expansion | None:
        found = self._found()
        while leaking := {i for i in found if not self._users(i) <= self._attention | found}:
            found -= leaking
        copies = {i for i in found if self._is_copy(self._graph.ops[i])}
        members = found - copies
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
        return Expansion(frozenset(copies), frozenset(members), branches) if used <= found else None

    def _found(self) -> set[int]:
        found: set[int] = set()
        todo = list(self._attention)
        while todo:
            i = todo.pop()
            for access in self._graph.ops[i].reads:
                for producer in self._flow.writers[access.tensor]:
                    if producer >= i or producer in self._attention | found:
                        continue
                    if self._is_copy(self._graph.ops[producer]) or self._comes_from_cache(producer):
                        found.add(producer)
                        todo.append(producer)
        return found

    def _comes_from_cache(self, index: int) -> bool:
        """Whether an operation, and all before it up to the cache, is one that can be absorbed."""
        if index not in self._known:
            given = self._given(index)
            linear = self._is_linear(self._graph.ops[index])
            self._known[index] = linear and bool(given) and all(self._is_latent(index, tensor) for tensor in given)
        return self._known[index]

    def _is_latent(self, index: int, tensor: int) -> bool:
        if self._graph.tensors[tensor].role == "kv":
            return True
        writers = [writer for writer in self._flow.writers[tensor] if writer < index]
        return bool(writers) and all(self._comes_from_cache(writer) for writer in writers)

    def _branches(self, index: int | None) -> Iterator[tuple[int, ...]]:
        """Of what an operation makes, each branch as the operations from the latents on."""
        if index is None:
            return
        op = self._graph.ops[index]
        own = () if self._is_copy(op) or op.name == LORA_ADD else (index,)
        for tensor in self._given(index):
            if self._graph.tensors[tensor].role == "kv":
                yield own
            else:
                yield from ((*before, *own) for before in self._branches(self._flow.producer(index, tensor)))

    def _given(self, index: int) -> list[int]:
        """What an ideal operation reads besides weights."""
        return [t for t in self._accesses.reads[index] if self._graph.tensors[t].role != "weight"]

    def _is_linear(self, op: Op) -> bool:
        if op.kind in PRODUCTS:
            return any(self._graph.tensors[access.tensor].role == "weight" for access in op.reads)
        return self._is_copy(op) or (op.name in (QUANTISE, LORA_ADD) and self._stays_out_of_cache(op))

    def _is_copy(self, op: Op) -> bool:
        return op.kind is Kind.COPY and op.path == self._path and self._stays_out_of_cache(op)

    def _stays_out_of_cache(self, op: Op) -> bool:
        return all(self._graph.tensors[access.tensor].role != "kv" for access in op.writes)

    def _users(self, index: int) -> set[int]:
        written = self._graph.ops[index].writes
        return {reader for access in written for reader in self._flow.readers[access.tensor] if reader > index}
