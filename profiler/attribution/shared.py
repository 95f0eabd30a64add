"""The device time of one window, given to the operations that its events belong to.

Each instant is shared among the events that run in it, so Σ operations + unattributed + gaps + tail = window.

Example: ``give(events, owners, indices=range(3), window=(t0, t1), inside={7}).ops[0].device_s``
"""

from collections import defaultdict
from collections.abc import Container, Sequence
from dataclasses import dataclass

import numpy as np

from profiler.attribution.overlap import idle, shares
from profiler.attribution.timeline import DeviceEvent


@dataclass(frozen=True, slots=True)
class OpDevice:
    """What the device did for one operation."""

    index: int
    device_s: float
    """Each instant shared equally among the events that run in it."""
    gap_s: float
    """Device idle directly before the operation's kernels: before its first one, and between them."""
    kernels: tuple[str, ...]
    """Kernels, copies and memsets, in the order they ran; empty for an operation without device work."""


@dataclass(frozen=True, slots=True)
class Unattributed:
    """Device work that belongs to no operation."""

    name: str
    device_s: float
    gap_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class Given:
    """Device time given to operations."""

    ops: tuple[OpDevice, ...]
    unattributed: tuple[Unattributed, ...]
    tail_gap_s: float
    end_s: float
    """Of the window, or of the last event where that is later."""


def give(
    events: Sequence[DeviceEvent],
    owners: Sequence[tuple[int | None, str]],
    indices: Sequence[int],
    window: tuple[float, float],
    inside: Container[int | None],
) -> Given:
    """Share the window's time among the events, and give each event's share and gap to its owner.

    Args: the position of each event's operation, or None and why; the index of the operation at each position; the
    correlations launched in the window, whose events count to their ends, as others do to that of the window.
    """
    ends = np.array([e.end_s if e.correlation in inside else min(e.end_s, window[1]) for e in events])
    ends = np.maximum(ends, window[0])
    starts = np.clip(np.array([e.start_s for e in events]), window[0], ends)
    end_s = max(window[1], float(ends.max(initial=window[1])))
    device_s = shares(starts, ends)
    gaps = idle(starts, ends, (window[0], end_s))
    per_op: dict[int, list[int]] = defaultdict(list)
    unattributed: list[Unattributed] = []
    for i, (event, (position, reason)) in enumerate(zip(events, owners, strict=True)):
        if position is None:
            unattributed.append(Unattributed(event.name, float(device_s[i]), float(gaps.before_s[i]), reason))
        else:
            per_op[position].append(i)
    ops = tuple(
        OpDevice(
            index,
            float(device_s[per_op[i]].sum()),
            float(gaps.before_s[per_op[i]].sum()),
            tuple(events[k].name for k in per_op[i]),
        )
        for i, index in enumerate(indices)
    )
    return Given(ops, tuple(unattributed), gaps.tail_s, end_s)
