"""What several what-ifs check or look up before they change a graph.

Example: ``executed(graph, "tensor_parallel")`` raises ValueError on ``fused(graph)``.
"""

from dataclasses import dataclass

from roofline.graph.op import Bytes, Kind, OpGraph


def executed(graph: OpGraph, what: str) -> OpGraph:
    """The graph, if each of its operations is one. Raises: ValueError for a fused graph."""
    if any(op.also for op in graph.ops):
        raise ValueError(f"{what} works on the graph as executed; apply it first, then fuse the result")
    return graph


def checked_share(name: str, value: float) -> float:
    """Raises: ValueError unless it is from 0 to 1."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}; use a share from 0 to 1")
    return value


def checked_ranks(what: str, ranks: int) -> int:
    """Raises: ValueError unless it is a whole number of at least 1."""
    if isinstance(ranks, bool) or not isinstance(ranks, int) or ranks < 1:
        raise ValueError(f"{what} is {ranks}; use a whole number of devices, 1 or more")
    return ranks


@dataclass(frozen=True)
class CacheWrite:
    """New bytes that one operation puts into the cache."""

    op: int
    tensor: int
    bytes: Bytes


def cache_writes(graph: OpGraph) -> list[CacheWrite]:
    """What a pass adds to the cache, in order; of a cache that is rewritten to append to it, the new part alone.

    Clearing a cache adds nothing.
    """
    writes = []
    for i, op in enumerate(graph.ops):
        copied = sum(a.bytes for a in op.reads if graph.tensors[a.tensor].role == "kv") if op.kind is Kind.COPY else 0
        for a in op.writes if op.reads else ():
            if graph.tensors[a.tensor].role == "kv" and a.bytes > copied:
                writes.append(CacheWrite(i, a.tensor, a.bytes - copied))
    return writes
