"""The declared state of the caches: how it is brought about, and whether the bytes that were touched confirm it.

Operands take turns, so that each is used again only after others have filled the cache. What counts is what was really
touched: a graph that holds fewer calls than there are operands uses only those (flashinfer's graph mode was warm for
that reason, and 36 % off).

Example: ``turns = Rotation([case.make() for _ in range(copies(size, cache, limit_bytes=1 << 30))])``
"""

import math
from collections.abc import Sequence
from typing import Generic, TypeVar

from profiler.record.measurement import CacheSource, CacheState, State

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
        self._turns = 0

    def __len__(self) -> int:
        return len(self._operands)

    def next(self) -> T:
        self._turns += 1
        return self.current

    def restart(self) -> None:
        """Begin with the first operand again, and count from there."""
        self._turns = 0

    @property
    def current(self) -> T:
        """The operand that was used last."""
        return self._operands[(self._turns - 1) % len(self._operands)]

    @property
    def distinct(self) -> int:
        """Operands that have really been used."""
        return min(self._turns, len(self._operands))


def copies(operand_bytes: int, cache_bytes: int, *, limit_bytes: int) -> int:
    """Return how many copies of an operand make each use cold, at least 2 unless a single one exceeds `PAST` caches.

    They are as many as fit where `limit_bytes` does not hold all; `state_of` then says that they are not cold. Raises
    ValueError where not even one fits.
    """
    if operand_bytes <= 0:
        raise ValueError(f"an operand has at least one byte, not {operand_bytes}")
    if operand_bytes > limit_bytes:
        raise ValueError(
            f"an operand of {operand_bytes} bytes is more than the {limit_bytes} bytes allowed: measure smaller "
            "operands or allow more memory"
        )
    flushes_itself = operand_bytes >= PAST * cache_bytes
    count = 1 if flushes_itself else math.ceil(PAST * cache_bytes / operand_bytes) + 1
    return min(count, limit_bytes // operand_bytes)


def state_of(
    declared: State, distinct: int, operand_bytes: int, cache_bytes: int | None, cache_source: CacheSource = "stated"
) -> CacheState:
    """The state that `distinct` operands of so many bytes, used in turn, leave a cache of `cache_bytes` in.

    A single operand that is streamed has its own bytes between two uses of its first one.
    """
    between = operand_bytes * max(1, distinct - 1)
    holds: bool | None = declared == "in place" or None
    if not holds and cache_bytes is not None:
        holds = between >= PAST * cache_bytes if declared == "cold" else distinct * operand_bytes <= cache_bytes
    return CacheState(
        declared=declared,
        operand_bytes=operand_bytes,
        between_bytes=between,
        cache_bytes=cache_bytes,
        cache_source=cache_source,
        holds=holds,
    )
