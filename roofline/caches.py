"""Which memory level serves which bytes: a warm cache is not main memory, and a model is neither warm nor cold.

`Touches` follows every operand of a sequence of steps (operations, or the groups of a fused graph) through an LRU
stack once; `level_bytes` then splits the traffic over the levels of any device in one of three states:
- "cold": everything comes from main memory;
- "warm": a step all of whose operands fit in a level together is served by the smallest such level;
- "in situ": by reuse distance, the distinct bytes touched since these bytes were last touched (Mattson et al.,
  IBM Systems Journal 9(2), 1970). A read is served by the smallest level that holds distance + own bytes; a write
  goes to the level where its next reader finds it, or to main memory if it is overwritten or never read.

Passes repeat: the sequence is run twice and the second one counts. An access of b bytes touches the first b of its
tensor. Steps with a count above 1 stand for layers that are not in the sequence; their weights and KV add to the reuse
distance of every weight and KV operand across the end of such a run of steps, but not to that of activations, which the
next layer reuses at once. Sizes may be arrays of shape (workloads,), for many workloads of one graph at once.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from roofline.graph.op import Access, Bytes, Op, Tensor, sizes_by_tensor
from roofline.hardware.spec import Peaks

CacheState = Literal["cold", "warm", "in situ"]

Amount = Bytes | NDArray[np.float64]
"""Bytes of one workload, or of many: shape (workloads,)."""


@dataclass(frozen=True, eq=False)
class Touches:
    """The pieces of traffic of a sequence of steps, independent of any device, as arrays of shape (pieces,).

    The arrays of bytes have a further dimension where many workloads are followed.
    """

    step: NDArray[np.int64]
    bytes: NDArray[np.float64]
    reach_bytes: NDArray[np.float64]
    """Capacity that serves the piece: reuse distance + own bytes; inf for what is never read again."""
    footprint_bytes: NDArray[np.float64]
    """Shape (steps,): distinct bytes that one step touches."""
    traffic_bytes: NDArray[np.float64]
    """Shape (steps,): bytes read plus bytes written."""

    @classmethod
    def of(cls, steps: Sequence[Op], tensors: Sequence[Tensor]) -> "Touches":
        """Follow the operands of `steps`, in order; `tensors` are numbered from 0."""
        rows = [*_Stack(tensors, steps).second_pass()]
        wide = np.broadcast_shapes((), *(np.shape(row[1]) for row in rows))
        footprint, traffic = np.zeros((2, len(steps), *wide))
        for i, step in enumerate(steps):
            read, written = sizes_by_tensor(step.reads), sizes_by_tensor(step.writes)
            for t in {**read, **written}:
                footprint[i] += least(tensors[t].storage_bytes, most(read.get(t, 0), written.get(t, 0)))
        index = np.array([row[0] for row in rows], dtype=np.int64)
        amount, reach = (
            np.array([np.broadcast_to(row[k], wide) for row in rows] if wide else [row[k] for row in rows], dtype=float)
            for k in (1, 2)
        )
        amount, reach = amount.reshape(-1, *wide), reach.reshape(-1, *wide)
        np.add.at(traffic, index, amount)
        return cls(index, amount, reach, footprint, traffic)


def level_bytes(touches: Touches, peaks: Peaks, state: CacheState) -> NDArray[np.float64]:
    """Bytes of one execution of each step that each level of `peaks` serves.

    Shape (steps, levels), or (workloads, steps, levels).
    """
    capacities = [level.capacity_bytes for level in peaks.levels]
    levels = np.arange(len(capacities))

    def on_levels(amount: NDArray[np.float64], reach_bytes: NDArray[np.float64]) -> NDArray[np.float64]:
        serving = np.minimum(np.searchsorted(capacities, reach_bytes), levels[-1])
        return amount[..., None] * (serving[..., None] == levels)

    if state == "cold":
        served = touches.traffic_bytes[..., None] * (levels == levels[-1])
    elif state == "warm":
        served = on_levels(touches.traffic_bytes, touches.footprint_bytes)
    elif state == "in situ":
        served = np.zeros((*touches.traffic_bytes.shape, len(levels)))
        np.add.at(served, touches.step, on_levels(touches.bytes, touches.reach_bytes))
    else:
        raise ValueError(f"cache state {state!r} is none of: cold, warm, in situ")
    return np.moveaxis(served, 0, -2)


def least(one: Amount, other: Amount) -> Any:
    """The smaller amount, element by element where either is an array."""
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return np.minimum(one, other)
    return min(one, other)


def most(one: Amount, other: Amount) -> Any:
    """The larger amount, element by element where either is an array."""
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return np.maximum(one, other)
    return max(one, other)


def _some(condition: Any) -> bool:
    """Return whether the condition holds for any workload."""
    return bool(condition.any()) if isinstance(condition, np.ndarray) else bool(condition)


@dataclass(slots=True)
class _Segment:
    """A stretch of a tensor that was last touched at one time."""

    end: Amount
    """First byte after it; it starts where the segment before it ends."""
    position: int
    """Time of the touch, in accesses."""
    hidden_bytes: Amount
    """Bytes of layers that are not in the sequence, touched up to then."""
    writer: int | None
    """Step that wrote it, if nothing has read it since."""


class _Stack:
    """An LRU stack: distances are sums over a Fenwick tree of the bytes whose latest touch is at each time."""

    def __init__(self, tensors: Sequence[Tensor], steps: Sequence[Op]) -> None:
        self._steps = steps
        self._storage = [tensor.storage_bytes for tensor in tensors]
        self._long_lived = [tensor.role != "activation" for tensor in tensors]
        self._segments: list[list[_Segment]] = [[] for _ in tensors]
        self._tree: list[Any] = [0] * (2 * sum(len(s.reads) + len(s.writes) for s in steps) + 1)
        self._now = 0
        self._resident: Any = 0
        self._hidden: Any = 0.0
        self._hidden_after = _hidden_bytes(steps, self._long_lived)

    def second_pass(self) -> Iterator[tuple[int, Amount, Amount]]:
        """(step, bytes, reach in bytes) of each piece of traffic."""
        for _ in self._pass():
            pass
        unread: list[Any] = [sum(access.bytes for access in step.writes) for step in self._steps]
        for step, amount, reach, is_write in self._pass():
            if is_write:
                unread[step] = unread[step] - amount
            yield step, amount, reach
        yield from ((step, amount, np.inf) for step, amount in enumerate(unread) if _some(amount > 0))

    def _pass(self) -> Iterator[tuple[int, Amount, Amount, bool]]:
        for i, step in enumerate(self._steps):
            for tensor, size, again in self._merged(step.reads):
                for amount, reach, writer in self._touch(tensor, size, None):
                    yield i, amount, reach, False
                    if writer is not None:
                        yield writer, amount, reach, True
                if _some(again > 0):
                    yield i, again, again, False
            for tensor, size, _ in self._merged(step.writes):
                self._touch(tensor, size, i)
            self._hidden = self._hidden + self._hidden_after[i]

    def _merged(self, accesses: Sequence[Access]) -> Iterator[tuple[int, Any, Any]]:
        """Views of one tensor as one access: (tensor, distinct bytes, bytes beyond the tensor, so seen twice)."""
        for tensor, size in sizes_by_tensor(accesses).items():
            distinct = least(size, self._storage[tensor])
            if _some(distinct > 0):
                yield tensor, distinct, size - distinct

    def _touch(self, tensor: int, size: Any, writer: int | None) -> list[tuple[Any, Any, int | None]]:
        """Move the first bytes of a tensor to the top. Returns their former pieces: bytes, reach, unread writer."""
        self._now += 1
        pieces: list[tuple[Any, Any, int | None]] = []
        kept: list[_Segment] = []
        moved: list[tuple[int, Any]] = []
        start: Any = 0
        for segment in self._segments[tensor]:
            piece = most(least(segment.end, size) - start, 0)
            if _some(piece > 0):
                distance = self._resident - self._touched_until(segment.position)
                if self._long_lived[tensor]:
                    distance = distance + (self._hidden - segment.hidden_bytes)
                pieces.append((piece, distance + piece, segment.writer))
                moved.append((segment.position, piece))
            if _some(segment.end > size):
                kept.append(segment)
            start = most(start, segment.end)
        for position, piece in moved:
            self._add(position, -piece)
        self._add(self._now, size)
        self._segments[tensor] = [_Segment(size, self._now, self._hidden, writer), *kept]
        return pieces

    def _add(self, position: int, amount: Any) -> None:
        self._resident = self._resident + amount
        tree, size = self._tree, len(self._tree)
        while position < size:
            tree[position] = tree[position] + amount
            position += position & -position

    def _touched_until(self, position: int) -> Any:
        tree = self._tree
        total: Any = 0
        while position:
            total = total + tree[position]
            position &= position - 1
        return total


def _hidden_bytes(steps: Sequence[Op], long_lived: Sequence[bool]) -> list[Any]:
    """After each run of steps with one count, weight and KV bytes of the further layers that the run stands for."""
    out: list[Any] = [0.0] * len(steps)
    for count, run in groupby(range(len(steps)), key=lambda i: steps[i].count):
        largest: dict[int, Any] = {}
        last = 0
        for last in run:
            for access in (*steps[last].reads, *steps[last].writes):
                if long_lived[access.tensor]:
                    largest[access.tensor] = most(largest.get(access.tensor, 0), access.bytes)
        out[last] = most(0.0, count - 1) * sum(largest.values())
    return out


def bytes_since_last_run(
    ops: Sequence[Op], code: Sequence[Hashable], counted: Callable[[Op], bool] = lambda op: True
) -> NDArray[np.float64]:
    """Bytes that `counted` operations touch between each operation and the one before it that ran the same `code`.

    They evict code and tables from the caches: a norm runs longer in a model whose layers are larger than the
    last-level cache. Passes repeat, and the second one counts. Neighbours with the same count above 1 are a block of
    layers that repeats; its operations have the mean over the repetitions.
    """
    touched = [float(counted(op) and sum(access.bytes for access in (*op.reads, *op.writes))) for op in ops]
    since = np.zeros(len(ops))
    last: dict[Hashable, float] = {}
    now = 0.0
    for _ in range(2):  # passes
        for count, block in groupby(range(len(ops)), lambda i: ops[i].count):
            rows = list(block)
            since[rows] = 0.0
            size = sum(touched[i] for i in rows)
            for weight in (1.0,) if count == 1 else (1 / count, 1 - 1 / count):  # the first repetition, all others
                for i in rows:
                    since[i] += weight * (now - last.get(code[i], now))
                    now += touched[i]
                    last[code[i]] = now
            if count > 1:  # on to the last repetition
                now += (count - 2) * size
                for key in {code[i] for i in rows}:
                    last[key] += (count - 2) * size
    return since
