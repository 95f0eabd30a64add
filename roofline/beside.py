"""Transfers that go on beside all operations of their layer: prefetched weights and cache, keys and values sent on.

What a layer needs comes while the one before it runs, what it made goes while the next one runs (FlexGen, arXiv
2303.06865, section 4.1; Splitwise, arXiv 2311.18677, section 4.2). In a row of layers that are alike, that is
``max(operations, transfers in, transfers out)`` a layer: what the operations do not hide is waited for, and the wait
is shared by the transfers as they take time. Of a link all that crosses it in a layer counts, both directions apart.
Nothing is said of the ends of the row: the first layer's transfer in, or the last one's out, is taken as hidden too.

Example: ``Beside.of(graph.ops).time_s((matrix_s, vector_s, memory_s, link_s), count)`` → seconds of each operation
"""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from roofline.layers import layer_key

Floats = NDArray[np.float64]
Index = NDArray[np.int64]


class Placed(Protocol):
    """What is needed to know of an operation."""

    @property
    def path(self) -> str: ...
    @property
    def link(self) -> str | None: ...
    @property
    def beside(self) -> str | None: ...


@dataclass(frozen=True, eq=False)
class _Layer:
    members: Index
    """Operations of one layer."""
    apart: Index
    """Of these, those whose transfers go on beside all of them."""
    crossing: tuple[Index, ...]
    """For each link and direction that those use, all of the layer that cross it."""


@dataclass(frozen=True, eq=False)
class Beside:
    """The layers of a graph that have such transfers."""

    layers: tuple[_Layer, ...]

    @classmethod
    def of(cls, ops: Sequence[Placed]) -> "Beside":
        found: dict[Hashable, list[int]] = defaultdict(list)
        if any(op.beside for op in ops):
            for i, op in enumerate(ops):
                found[layer_key(op.path)].append(i)
        return cls(tuple(_layer(ops, members) for members in found.values() if any(ops[i].beside for i in members)))

    def members(self, operations: int) -> NDArray[np.bool_]:
        """Which operations have a time that depends on others: shape (operations,)."""
        out = np.zeros(operations, dtype=bool)
        for layer in self.layers:
            out[layer.members] = True
        return out

    def time_s(self, roofs: Sequence[Floats], count: Floats) -> Floats:
        """Seconds of one execution of each operation, NaN where one of its roofs, or of its layer's, is not known.

        Args: the roofs of each operation, that of its link as the last, and its executions; shapes (…, operations).
        """
        time_s = np.maximum.reduce(roofs)  # NaN wins
        for layer in self.layers:
            time_s[..., layer.apart] = np.maximum.reduce([roof[..., layer.apart] for roof in roofs[:-1]])
        for layer in self.layers:
            crossing_s = roofs[-1] * count
            runs_s = (time_s[..., layer.members] * count[..., layer.members]).sum(axis=-1)
            needed_s = np.maximum.reduce([crossing_s[..., same].sum(axis=-1) for same in layer.crossing])
            wait_s = np.maximum(needed_s - runs_s, 0.0)
            whole_s = crossing_s[..., layer.apart].sum(axis=-1)
            share = np.divide(wait_s, whole_s, out=np.zeros_like(wait_s), where=whole_s != 0)
            time_s[..., layer.apart] += share[..., None] * roofs[-1][..., layer.apart]
        return time_s


def _layer(ops: Sequence[Placed], members: list[int]) -> _Layer:
    apart = [i for i in members if ops[i].beside]
    ways = dict.fromkeys((ops[i].link, ops[i].beside) for i in apart)
    crossing = tuple(
        np.array([i for i in members if ops[i].link == link and ops[i].beside in (None, way)]) for link, way in ways
    )
    return _Layer(np.array(members), np.array(apart), crossing)
