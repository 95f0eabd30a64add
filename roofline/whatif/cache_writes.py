"""What a pass adds to the cache, told apart from what it copies of it.

Example: ``[(added.op, added.bytes) for added in added_to_cache(graph)]``
"""

from dataclasses import dataclass

from roofline.graph.op import Bytes, Kind, OpGraph


@dataclass(frozen=True)
class Added:
    """New bytes that one operation puts into the cache."""

    op: int
    tensor: int
    bytes: Bytes


def added_to_cache(graph: OpGraph) -> list[Added]:
    """All of a pass, in order: of a cache that is rewritten to append to it, the new part; clearing adds nothing."""
    found = []
    for i, op in enumerate(graph.ops):
        copied = sum(a.bytes for a in op.reads if graph.tensors[a.tensor].role == "kv") if op.kind is Kind.COPY else 0
        for a in op.writes if op.reads else ():
            if graph.tensors[a.tensor].role == "kv" and a.bytes > copied:
                found.append(Added(i, a.tensor, a.bytes - copied))
    return found
