"""Cold caches without a flush kernel: operands take turns, so that each returns after the cache has seen others.

Example: ``turns = Rotation(pool.chunk(4)); sample(lambda: torch.sum(turns.next()), clock)``
"""

import math
from collections.abc import Sequence
from typing import Generic, TypeVar

T = TypeVar("T")

PAST = 1.5
"""Bytes of other operands between two uses of one, in capacities of the last-level cache. An LRU cache needs 1; real
ones are hashed and not quite LRU (nvbench flushes 1, flashinfer's rotation touches 5)."""


class Rotation(Generic[T]):
    """Operands in turn, round and round."""

    def __init__(self, operands: Sequence[T]) -> None:
        if not operands:
            raise ValueError("a rotation needs at least one operand")
        self._operands = tuple(operands)
        self._turn = -1

    def __len__(self) -> int:
        return len(self._operands)

    def next(self) -> T:
        self._turn = (self._turn + 1) % len(self._operands)
        return self._operands[self._turn]


def copies(operand_bytes: int, cache_bytes: int, *, limit_bytes: int) -> int:
    """How many copies of an operand make each use of it cold, at least 2 unless one alone exceeds `PAST` caches.

    Raises ValueError where they would need more than `limit_bytes`.
    """
    if operand_bytes <= 0:
        raise ValueError(f"an operand has at least one byte, not {operand_bytes}")
    flushes_itself = operand_bytes >= PAST * cache_bytes
    count = 1 if flushes_itself else math.ceil(PAST * cache_bytes / operand_bytes) + 1
    if count * operand_bytes > limit_bytes:
        raise ValueError(
            f"{count} copies of {operand_bytes} bytes are needed to get past a cache of {cache_bytes} bytes, more than "
            f"the {limit_bytes} bytes allowed: measure larger operands or allow more memory"
        )
    return count
