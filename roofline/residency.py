"""Which memory level serves which bytes: a warm cache is not main memory, and a model is neither warm nor cold.

`Touches` follows every operand of a sequence of steps (operations, or the groups of a fused graph) through an LRU
stack once; `level_bytes` then splits the traffic over the levels of any device in one of three states:
- "cold": everything comes from main memory;
- "warm": a step all of whose operands fit in a level together is served by the smallest such level;
- "in situ": by reuse distance, the distinct bytes touched since these bytes were last touched (Mattson et al.,
  IBM Systems Journal 9(2), 1970). A read is served by the smallest level that holds distance + own bytes; a write
  goes to the level where its next reader finds it, or to main memory if it is overwritten or never read.

Passes repeat: the sequence is run twice and the second one counts. Accesses of one tensor are taken as nested: an
access of b bytes touches its first b. Steps with a count above 1 stand for layers that are not in the sequence;
their weights and KV flow through the cache too. They are added to the distance of every weight and KV operand that
is reused across the end of such a run of steps, and not to activations, which the next layer reuses at once.

Example: ``level_bytes(Touches.of(graph.ops, graph.tensors), peaks, "in situ").sum(axis=0)`` → bytes per level.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from roofline.hardware import Peaks
from roofline.op import Access, Bytes, Tensor

CacheState = Literal["cold", "warm", "in situ"]


class Step(Protocol):
    """What the stack needs of an operation or a fused group."""

    @property
    def reads(self) -> tuple[Access, ...]: ...
    @property
    def writes(self) -> tuple[Access, ...]: ...
    @property
    def count(self) -> float: ...


@dataclass(frozen=True, eq=False)
class Touches:
    """The pieces of traffic of a sequence of steps, independent of any device. Arrays over pieces, unless said."""

    step: NDArray[np.int64]
    """Index of the step."""
    bytes: NDArray[np.float64]
    reach_bytes: NDArray[np.float64]
    """Capacity that serves the piece: reuse distance + own bytes; inf for what is never read again."""
    footprint_bytes: NDArray[np.float64]
    """Shape (steps,): distinct bytes that one step touches."""
    traffic_bytes: NDArray[np.float64]
    """Shape (steps,): bytes read plus bytes written."""

    @classmethod
    def of(cls, steps: Sequence[Step], tensors: Sequence[Tensor]) -> "Touches":
        """Follow the operands of `steps`, in order. `tensors[i].id == i`."""
        rows = [*_Stack(tensors, steps).second_pass()]
        footprint = np.zeros(len(steps))
        for i, step in enumerate(steps):
            both = [_sizes(step.reads), _sizes(step.writes)]
            footprint[i] = sum(
                min(tensors[t].storage_bytes, max(sizes.get(t, 0) for sizes in both)) for t in {**both[0], **both[1]}
            )
        index = np.array([row[0] for row in rows], dtype=np.int64)
        amount = np.array([row[1] for row in rows], dtype=float)
        return cls(
            step=index,
            bytes=amount,
            reach_bytes=np.array([row[2] for row in rows], dtype=float),
            footprint_bytes=footprint,
            traffic_bytes=np.bincount(index, weights=amount, minlength=len(steps)).astype(np.float64),
        )


def level_bytes(touches: Touches, peaks: Peaks, state: CacheState) -> NDArray[np.float64]:
    """Shape (steps, levels): bytes of one execution of each step that each level of `peaks` serves."""
    steps, levels = len(touches.footprint_bytes), len(peaks.levels)
    out = np.zeros((steps, levels))
    if state == "cold":
        out[:, -1] = touches.traffic_bytes
    elif state == "warm":
        out[np.arange(steps), _serving_level(peaks, touches.footprint_bytes)] = touches.traffic_bytes
    elif state == "in situ":
        np.add.at(out, (touches.step, _serving_level(peaks, touches.reach_bytes)), touches.bytes)
    else:
        raise ValueError(f"cache state {state!r} is none of: cold, warm, in situ")
    return out


def _serving_level(peaks: Peaks, reach_bytes: NDArray[np.float64]) -> NDArray[np.int64]:
    capacities = [level.capacity_bytes for level in peaks.levels]
    return np.minimum(np.searchsorted(capacities, reach_bytes), len(capacities) - 1)


@dataclass(slots=True)
class _Segment:
    """A stretch of a tensor that was last touched at one time."""

    end: Bytes
    """First byte after it; it starts where the segment before it ends."""
    position: int
    """Time of the touch, in accesses."""
    hidden_bytes: float
    """Bytes of layers that are not in the sequence, touched up to then."""
    writer: int | None
    """Step that wrote it, if nothing has read it since."""


class _Stack:
    """An LRU stack: distances are sums over a Fenwick tree of the bytes whose latest touch is at each time."""

    def __init__(self, tensors: Sequence[Tensor], steps: Sequence[Step]) -> None:
        self._steps = steps
        self._storage = [tensor.storage_bytes for tensor in tensors]
        self._long_lived = [tensor.role != "activation" for tensor in tensors]
        self._segments: list[list[_Segment]] = [[] for _ in tensors]
        self._tree: list[Bytes] = [0] * (2 * sum(len(s.reads) + len(s.writes) for s in steps) + 1)
        self._now = 0
        self._resident: Bytes = 0
        self._hidden = 0.0
        self._hidden_after = _hidden_bytes(steps, self._long_lived)

    def second_pass(self) -> Iterator[tuple[int, float, float]]:
        """(step, bytes, reach in bytes) of each piece of traffic."""
        for _ in self._pass():
            pass
        unread = [float(sum(access.bytes for access in step.writes)) for step in self._steps]
        for step, amount, reach, is_write in self._pass():
            if is_write:
                unread[step] -= amount
            yield step, amount, reach
        yield from ((step, amount, np.inf) for step, amount in enumerate(unread) if amount > 0)

    def _pass(self) -> Iterator[tuple[int, float, float, bool]]:
        for i, step in enumerate(self._steps):
            for tensor, size, again in self._merged(step.reads):
                for amount, reach, writer in self._touch(tensor, size, None):
                    yield i, amount, reach, False
                    if writer is not None:
                        yield writer, amount, reach, True
                if again:
                    yield i, again, again, False
            for tensor, size, _ in self._merged(step.writes):
                self._touch(tensor, size, i)
            self._hidden += self._hidden_after[i]

    def _merged(self, accesses: tuple[Access, ...]) -> Iterator[tuple[int, Bytes, Bytes]]:
        """Views of one tensor as one access: (tensor, distinct bytes, bytes beyond the tensor, so seen twice)."""
        for tensor, size in _sizes(accesses).items():
            distinct = min(size, self._storage[tensor])
            if distinct:
                yield tensor, distinct, size - distinct

    def _touch(self, tensor: int, size: Bytes, writer: int | None) -> list[tuple[Bytes, float, int | None]]:
        """Move the first bytes of a tensor to the top; the pieces they were found in: bytes, reach, unread writer."""
        self._now += 1
        found: list[tuple[Bytes, float, int | None]] = []
        kept: list[_Segment] = []
        moved: list[tuple[int, Bytes]] = []
        start: Bytes = 0
        for segment in self._segments[tensor]:
            piece = min(segment.end, size) - start
            if piece > 0:
                distance = float(self._resident - self._touched_until(segment.position))
                if self._long_lived[tensor]:
                    distance += self._hidden - segment.hidden_bytes
                found.append((piece, distance + piece, segment.writer))
                moved.append((segment.position, piece))
            if segment.end > size:
                kept.append(segment)
            start = segment.end
        for position, piece in moved:
            self._add(position, -piece)
        self._add(self._now, size)
        top = _Segment(size, self._now, self._hidden, writer)
        self._segments[tensor] = [top, *kept]
        return found

    def _add(self, position: int, amount: Bytes) -> None:
        self._resident += amount
        tree, size = self._tree, len(self._tree)
        while position < size:
            tree[position] += amount
            position += position & -position

    def _touched_until(self, position: int) -> Bytes:
        tree = self._tree
        total: Bytes = 0
        while position:
            total += tree[position]
            position &= position - 1
        return total


def _sizes(accesses: tuple[Access, ...]) -> dict[int, Bytes]:
    """Bytes by tensor, views of one tensor added up."""
    sizes: dict[int, Bytes] = {}
    for access in accesses:
        sizes[access.tensor] = sizes.get(access.tensor, 0) + access.bytes
    return sizes


def _hidden_bytes(steps: Sequence[Step], long_lived: Sequence[bool]) -> list[float]:
    """After each step: weight and KV bytes of the layers that the run of steps ending there stands for, but itself."""
    out = [0.0] * len(steps)
    for count, run in groupby(range(len(steps)), key=lambda i: steps[i].count):
        most: dict[int, Bytes] = {}
        last = 0
        for last in run:
            for access in (*steps[last].reads, *steps[last].writes):
                if long_lived[access.tensor]:
                    most[access.tensor] = max(most.get(access.tensor, 0), access.bytes)
        out[last] = max(0.0, count - 1) * sum(most.values())
    return out
