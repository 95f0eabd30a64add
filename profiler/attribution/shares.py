"""Shares the time of a pass among the events of the device, so that Σ shares + idle time = the length of the window.

Events that overlap share each instant equally. An event that cannot be true (it does not last, or runs into the next
one of its stream) gets no share.

Example: ``shares(np.array([0.0, 1.0]), np.array([2.0, 3.0]))`` is 1.5 s for each
"""

from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from profiler.attribution.timeline import DeviceEvent, Launch

EDGE_S = 1e-5
"""Seconds by which work from outside a window may seem to reach into it: CUPTI's clocks disagree by microseconds, and
the window of a synchronised host begins and ends at least as far away from the work before and after."""


OVERRUN_S = 1e-6
"""Seconds by which a kernel may seem to reach into the next of its stream: some GPUs step the timer that stamps both
once a microsecond (PTX ISA, %globaltimer: its update frequency is the implementation's)."""


PROGRAMMATIC = ("cudaLaunchKernelEx", "cuLaunchKernelEx")
"""Calls that may launch a kernel before the one ahead in its stream has ended (CUDA C++ Programming Guide,
"Programmatic Dependent Launch"): it is a launch attribute, which these calls alone take."""


Floats = NDArray[np.float64]


def shares(starts_s: Floats, ends_s: Floats) -> Floats:
    """Each interval's share of the busy time: ∫ 1/n(t) dt over it, n(t) intervals running at t.

    Args: starts and ends in seconds, shape (events,), any order. Raises ValueError if one ends before it starts.
    """
    starts, ends = _checked(starts_s, ends_s)
    if not len(starts):
        return np.zeros(0)
    times = np.unique(np.concatenate([starts, ends]))
    change = np.bincount(np.searchsorted(times, starts), minlength=len(times))
    change = change - np.bincount(np.searchsorted(times, ends), minlength=len(times))
    running = np.cumsum(change)[:-1]
    lengths = np.diff(times)
    portions = np.divide(lengths, running, out=np.zeros_like(lengths), where=running > 0)
    elapsed: Floats = np.concatenate([[0.0], np.cumsum(portions)])
    share: Floats = elapsed[np.searchsorted(times, ends)] - elapsed[np.searchsorted(times, starts)]
    return share


@dataclass(frozen=True, slots=True)
class Idle:
    """Time within a window in which nothing ran."""

    before_s: Floats
    """Idle that each event ended, shape (events,); 0 where another event still ran or began at the same instant."""
    tail_s: float
    """Idle from the last end to the end of the window."""


def idle(starts_s: Floats, ends_s: Floats, window: tuple[float, float]) -> Idle:
    """Idle time before each interval and after the last one, within `window`; intervals lie inside it.

    Of intervals that begin together, the first given one ends the idle time.
    """
    starts, ends = _checked(starts_s, ends_s)
    before = np.zeros(len(starts))
    if not len(starts):
        return Idle(before, window[1] - window[0])
    if starts.min() < window[0] or ends.max() > window[1]:
        raise ValueError("intervals must lie within the window; clip them first")
    order = np.argsort(starts, kind="stable")
    reached = np.maximum.accumulate(np.concatenate([[window[0]], ends[order]]))
    before[order] = np.maximum(0.0, starts[order] - reached[:-1])
    return Idle(before, float(window[1] - reached[-1]))


def _checked(starts_s: Floats, ends_s: Floats) -> tuple[Floats, Floats]:
    starts, ends = np.asarray(starts_s, np.float64), np.asarray(ends_s, np.float64)
    if starts.shape != ends.shape or starts.ndim != 1:
        raise ValueError(f"starts and ends must be of one shape (events,), not {starts.shape} and {ends.shape}")
    if np.any(ends < starts):
        raise ValueError("an interval ends before it starts")
    return starts, ends


@dataclass(frozen=True, slots=True)
class OpDevice:
    """The device's busy time, idle time and kernels of one operation."""

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
class Attribution:
    """Device time of one pass, shared among operations."""

    ops: tuple[OpDevice, ...]
    unattributed: tuple[Unattributed, ...]
    tail_gap_s: float
    end_s: float
    """End of the window, or of the last event where that is later."""
    impossible: tuple[tuple[DeviceEvent, str], ...]
    """Events that have no share because they cannot be true, and why."""


def impossible(events: Sequence[DeviceEvent], launched: Mapping[int | None, Launch] | None = None) -> dict[int, str]:
    """Positions of the events that cannot be true, and why: they do not last, or run into the next of their stream.

    Kernels of a stream run one after another, but a programmatic launch may begin, and not end, before the kernel ahead
    of it has ended. `launched` gives the launch of each correlation; without it, any kernel may be such a launch.
    """
    faults: dict[int, str] = {}
    streams: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, event in enumerate(events):
        if not event.end_s > event.start_s:
            faults[i] = f"lasts {(event.end_s - event.start_s) * 1e6:g} µs"
        else:
            streams[event.device, event.stream].append(i)
    for positions in streams.values():
        positions.sort(key=lambda i: events[i].start_s)
        for i, j in pairwise(positions):
            over_s = events[i].end_s - events[j].start_s
            launch = None if launched is None else launched.get(events[j].correlation)
            is_programmatic = launched is None or (launch is not None and launch.name.startswith(PROGRAMMATIC))
            if is_programmatic:
                over_s = min(over_s, events[i].end_s - events[j].end_s)
            if over_s > OVERRUN_S:
                faults[i] = f"runs {over_s * 1e6:.1f} µs into the next of its stream, {events[j].name}"
    return faults


def late(events: Sequence[DeviceEvent], window: tuple[float, float], inside: Container[int | None]) -> dict[int, str]:
    """Positions of events launched and begun in a window that end after it, and by how much; it waits for its work."""
    return {
        i: f"ends {(event.end_s - window[1]) * 1e6:.1f} µs after the pass, which waits for it"
        for i, event in enumerate(events)
        if event.correlation in inside and event.start_s < window[1] and event.end_s > window[1] + EDGE_S
    }


def late_s(events: Sequence[DeviceEvent], window: tuple[float, float], inside: Container[int | None]) -> float:
    """Seconds by which work launched in a window ends after it, 0 or more."""
    return max((0.0, *(e.end_s - window[1] for e in events if e.correlation in inside)))


def attribute(
    events: Sequence[DeviceEvent],
    owners: Sequence[tuple[int | None, str]],
    indices: Sequence[int],
    window: tuple[float, float],
    inside: Container[int | None],
    faults: Mapping[int, str],
) -> Attribution:
    """Share the window's time among the events, and give each event's share and gap to its owner.

    Args: the position of each event's operation, or None and why; the index of the operation at each position; the
    correlations launched in the window, whose events count to their ends, as others do to that of the window; the
    positions of `impossible` events and why they are, which get no share.
    """
    sound = np.array([i for i in range(len(events)) if i not in faults], dtype=np.intp)
    counted = [events[i] for i in sound]
    ends = np.array([e.end_s if e.correlation in inside else min(e.end_s, window[1]) for e in counted])
    ends = np.maximum(ends, window[0])
    starts = np.clip(np.array([e.start_s for e in counted]), window[0], ends)
    end_s = max(window[1], float(ends.max(initial=window[1])))
    gaps = idle(starts, ends, (window[0], end_s))
    device_s, before_s = np.zeros(len(events)), np.zeros(len(events))
    device_s[sound], before_s[sound] = shares(starts, ends), gaps.before_s
    per_op: dict[int, list[int]] = defaultdict(list)
    unattributed: list[Unattributed] = []
    for i, (event, (position, reason)) in enumerate(zip(events, owners, strict=True)):
        if position is None:
            unattributed.append(Unattributed(event.name, float(device_s[i]), float(before_s[i]), reason))
        else:
            per_op[position].append(i)
    ops = tuple(
        OpDevice(
            index,
            float(device_s[per_op[i]].sum()),
            float(before_s[per_op[i]].sum()),
            tuple(events[k].name for k in per_op[i]),
        )
        for i, index in enumerate(indices)
    )
    named = tuple((events[i], why) for i, why in sorted(faults.items()))
    return Attribution(ops, tuple(unattributed), gaps.tail_s, end_s, named)
