"""Checks of a graph and of options, and look-ups, that several what-ifs share."""

from typing import NamedTuple

from roofline.graph.op import Bytes, Kind, OpGraph


def executed(graph: OpGraph, what: str) -> OpGraph:
    """The graph, if it is not fused. Raises: ValueError for a fused graph."""
    if any(op.also for op in graph.ops):
        raise ValueError(f"{what} works on the graph as executed; apply it first, then fuse the result")
    return graph


def checked_share(name: str, value: float) -> float:
    """The value. Raises: ValueError unless it is from 0 to 1."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}; use a share from 0 to 1")
    return value


def checked_ranks(what: str, ranks: int) -> int:
    """The number. Raises: ValueError unless it is a whole number of at least 1."""
    if isinstance(ranks, bool) or not isinstance(ranks, int) or ranks < 1:
        raise ValueError(f"{what} is {ranks}; use a whole number of devices, 1 or more")
    return ranks


class CacheWrite(NamedTuple):
    """New bytes that one operation puts into the cache."""

    op: int
    tensor: int
    bytes: Bytes


def cache_writes(graph: OpGraph) -> list[CacheWrite]:
    """The bytes that a pass adds to the cache, in order, without the old part of a cache that is rewritten.

    Clearing a cache adds nothing.
    """
    writes = []
    for i, op in enumerate(graph.ops):
        copied = sum(a.bytes for a in op.reads if graph.tensors[a.tensor].role == "kv") if op.kind is Kind.COPY else 0
        for a in op.writes if op.reads else ():
            if graph.tensors[a.tensor].role == "kv" and a.bytes > copied:
                writes.append(CacheWrite(i, a.tensor, a.bytes - copied))
    return writes


def kept_of(graph: OpGraph, write: CacheWrite, spare: int = 0) -> Bytes:
    """Bytes of a write that remain in the cache after the pass: of a layer with a window, the last tokens of it.

    Args: `spare` is how many of the window's tokens are not needed any more.
    """
    op, tokens = graph.ops[write.op], graph.workload.query_tokens
    window = next((module.window for module in graph.attention_modules if module.path == op.path), None)
    if window is None or op.kind is not Kind.COPY:  # a state of a recurrent layer, which no copy writes, remains whole
        return write.bytes
    return write.bytes * min(tokens, window - spare) / tokens


def workspaces(graph: OpGraph) -> dict[int, int]:
    """The one operation that takes the memory of each tensor that nothing touches, and gives it back."""
    touched = {a.tensor for op in graph.ops for a in (*op.reads, *op.writes)}
    untouched = (t for t in graph.tensors if t.role == "activation" and t.id not in touched)
    return {t.id: t.held[0] for t in untouched if t.held and t.held[0] == t.held[1]}
