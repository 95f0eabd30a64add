"""What a pass adds to the cache, told apart from what it copies of it.

Example: ``[(added.op, added.bytes) for added in added_to_cache(graph)]``
"""

from collections.abc import Hashable
from dataclasses import dataclass

from roofline.layers import layer_of
from roofline.op import Bytes, Kind, OpGraph


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


def layer_key(path: str) -> Hashable:
    """The same for all modules of one repeated layer; a module outside of all is a layer of its own."""
    place = layer_of(path)
    return (place.prefix, place.layer) if place else path
