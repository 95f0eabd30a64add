"""Checks that several what-ifs share: they follow single operations, so they come before fusing.

Example: ``executed(graph, "tensor_parallel")`` raises ValueError on ``fused(graph)``.
"""

from roofline.graph.op import OpGraph


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
