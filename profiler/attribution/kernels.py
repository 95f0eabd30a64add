"""Attributes what the device did during one pass to operations.

Rule: device event → correlation id → launch → the operation whose host span encloses the launch's start on the same
thread. Where kineto keeps no record of the launch, or knows its thread under another number, the event's external id
names the host event that launched it, and that event's start is taken. Several kernels to one operation are normal.
What fits no operation is kept with its name and its reason, never dropped: Σ operations + unattributed + gaps + tail =
wall, since `shares` and `idle` split each instant.

A device event that cannot be true (it does not last, or runs into the next one of its stream) has no share of the time:
`check` names it, and the pass is not to be used.

Synchronise the device before and after the window. CUDA graphs are refused: one launch stands for many kernels, which
`profiler.attribution.replayed` gives to operations by their order.

Example: ``done = join(timeline, (t0, t1), spans); problems = check(done)``
"""

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from profiler.attribution.timeline import BrokenEvent, DeviceEvent, HostEvent, Launch, Timeline

CLOCK_SKEW_S = 1e-4
"""Disagreement between host and device clocks that is not an error: above CUPTI's microseconds, and far below the
hours by which records with a corrupted clock are off (pytorch issue 192021)."""
EDGE_S = 1e-5
"""Seconds by which work from outside a window may seem to reach into it: CUPTI's clocks disagree by microseconds, and
the window of a synchronised host begins and ends at least as far away from the work before and after."""
OVERRUN_S = 1e-6
"""Seconds by which a kernel may seem to reach into the next of its stream: some GPUs step the timer that stamps both
once a microsecond (PTX ISA, %globaltimer: its update frequency is the implementation's)."""
PROGRAMMATIC = ("cudaLaunchKernelEx", "cuLaunchKernelEx")
"""Calls that may launch a kernel before the one ahead in its stream has ended (CUDA C++ Programming Guide,
"Programmatic Dependent Launch"): it is a launch attribute, which these calls alone take."""


@dataclass(frozen=True, slots=True)
class OpSpan:
    """Host span of an executed operation; spans of one thread do not overlap."""

    index: int
    """Position of the operation in its graph."""
    start_s: float
    end_s: float
    tid: int


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


@dataclass(frozen=True, slots=True)
class DeviceJoin:
    """One pass on the device. Seconds; counts are of this pass."""

    ops: tuple[OpDevice, ...]
    """One for each span, in their order."""
    unattributed: tuple[Unattributed, ...]
    tail_gap_s: float
    """Idle between the last device event and the end of the window."""
    wall_s: float
    """Length of the window, or up to the last device event where that ends later."""
    kernels: int
    launches: int
    """Kernel launches in the runtime and driver APIs, and those of `unrecorded` kernels."""
    memory_operations: int
    """memcpy and memset that ran."""
    memory_launches: int
    """Counted as `launches` are."""
    late_s: float
    """Seconds that the device still worked after the window."""
    events: tuple[DeviceEvent, ...]
    """All that ran, in the order in which it began."""
    owners: tuple[int | None, ...]
    """Position of the operation that each event belongs to; None where it belongs to none."""
    unrecorded: tuple[DeviceEvent, ...] = ()
    """Device events whose launch has no record of its own; the host event that made it is known."""
    missing: tuple[Launch, ...] = ()
    """Launches of kernels and memory operations without a device event: the profiler dropped it."""
    orphans: tuple[DeviceEvent, ...] = ()
    """Device events without a launch record, of which no host event is known either."""
    outsiders: tuple[DeviceEvent, ...] = ()
    """Device events that ran in the window but were launched outside of it."""
    skewed: tuple[DeviceEvent, ...] = ()
    """Device events that claim to have begun before their launch."""
    impossible: tuple[tuple[DeviceEvent, str], ...] = ()
    """Device events whose times cannot be true, and why; they have no share of the time."""
    broken: tuple[BrokenEvent, ...] = ()
    """Events that the trace holds without usable times, names or ids, and which may be of this pass."""

    @property
    def device_s(self) -> float:
        """Busy time of the device, attributed or not."""
        return sum(op.device_s for op in self.ops) + self.unattributed_s

    @property
    def unattributed_s(self) -> float:
        return sum(event.device_s for event in self.unattributed)

    @property
    def gap_s(self) -> float:
        """All idle time but the tail."""
        return sum(op.gap_s for op in self.ops) + sum(event.gap_s for event in self.unattributed)


def join(timeline: Timeline, window: tuple[float, float], operations: Sequence[OpSpan]) -> DeviceJoin:
    """Attribute the device work of one pass.

    Args: the session; the pass on the host clock, seconds; the host spans of the operations that it executed.
    Raises ValueError for CUDA graphs, for work on more than one device, and for spans of a thread that overlap.
    """
    owners = _Owners(operations, timeline.host)
    in_window = [launch for launch in timeline.launches if window[0] <= launch.start_s <= window[1]]
    if graphs := sum(launch.kind == "graph" for launch in in_window):
        raise ValueError(
            f"{graphs} CUDA graph launches in the pass: one launch stands for many kernels, which cannot be given to "
            "operations; run the model without CUDA graphs"
        )
    launched: dict[int | None, Launch] = {launch.correlation: launch for launch in timeline.launches}
    inside = {launch.correlation for launch in in_window}
    events = [
        e
        for e in timeline.device
        if e.correlation in inside or runs_in(window, e, EDGE_S if e.correlation in launched else 0.0)
    ]
    if len(devices := sorted({e.device for e in events})) > 1:
        raise ValueError(f"work on devices {devices}: one device at a time; hide the others with CUDA_VISIBLE_DEVICES")

    owned = [
        owners.find(event, launched.get(event.correlation) if event.correlation is not None else None, inside, window)
        for event in events
    ]
    faults = impossible(events, launched) | late(events, window, inside)
    shared = attribute(events, owned, [span.index for span in operations], window, inside, faults)
    broken = timeline.broken_in(window)
    seen = {e.correlation for e in events} | {e.correlation for e in broken}
    without = [e for e in events if e.correlation not in launched]
    unrecorded = tuple(e for e in without if owners.called(e, window) is not None)
    kinds = Counter(launch.kind for launch in in_window)
    kinds.update("kernel" if e.kind == "kernel" else "memory" for e in unrecorded)
    return DeviceJoin(
        ops=shared.ops,
        unattributed=shared.unattributed,
        tail_gap_s=shared.tail_gap_s,
        wall_s=shared.end_s - window[0],
        kernels=sum(e.kind == "kernel" for e in events),
        launches=kinds["kernel"],
        memory_operations=sum(e.kind != "kernel" for e in events),
        memory_launches=kinds["memory"],
        unrecorded=unrecorded,
        missing=tuple(launch for launch in in_window if launch.correlation not in seen),
        orphans=tuple(e for e in without if e not in unrecorded),
        outsiders=tuple(e for e in events if e.correlation in launched and e.correlation not in inside),
        skewed=tuple(
            e for e in events
            if e.correlation is not None and e.correlation in launched
            and e.start_s < launched[e.correlation].start_s - CLOCK_SKEW_S
        ),
        impossible=shared.impossible,
        broken=broken,
        late_s=late_s(events, window, inside),
        events=tuple(events),
        owners=tuple(position for position, _ in owned),
    )  # fmt: skip


def check(done: DeviceJoin) -> list[str]:
    """Return the faults that make a pass's attribution incomplete or wrong, one line each; empty if there are none."""
    problems: list[str] = []
    for kind, word, total in (
        ("kernel", "kernel", done.launches),
        ("memory", "memcpy or memset", done.memory_launches),
    ):
        if lost := [launch for launch in done.missing if launch.kind == kind]:
            problems.append(
                f"{len(lost)} of {total} {word} launches have no event on the device: the profiler dropped events "
                f"(the first: {lost[0].name}, correlation {lost[0].correlation}); profile again"
            )
    for events, what in (
        (done.orphans, "have no launch record: their operation is unknown"),
        (done.outsiders, "were launched outside the pass and ran in it: synchronise before it"),
        (done.skewed, "begin before their launch: corrupted time stamps, profile again in a fresh process"),
    ):
        if events:
            problems.append(f"{len(events)} device events {what} (the first: {events[0].name})")
    if done.late_s > EDGE_S:
        problems.append(f"the device worked on for {done.late_s:.6f} s after the pass: synchronise before it ends")
    if done.impossible:
        event, why = done.impossible[0]
        problems.append(
            f"{len(done.impossible)} device events cannot be true and were left out (the first: {event.name} {why}): "
            "profile again"
        )
    if done.broken:
        first = done.broken[0]
        problems.append(
            f"{len(done.broken)} events of the trace cannot be read (the first: {first.name}, {first.reason}): "
            "profile again"
        )
    if not problems and done.kernels != done.launches:
        problems.append(f"{done.kernels} kernels for {done.launches} launches: some launch made several kernels")
    return problems


def runs_in(window: tuple[float, float], event: DeviceEvent, edge_s: float = EDGE_S) -> bool:
    """Whether an event runs in the window, further than `edge_s` from its ends."""
    return event.start_s < window[1] - edge_s and event.end_s > window[0] + edge_s


class _Owners:
    """Finds the operation that a launch belongs to: by sorted spans of each thread, and by the ids of host events."""

    def __init__(self, operations: Sequence[OpSpan], host: Sequence[HostEvent]) -> None:
        self._threads: dict[int, list[int]] = defaultdict(list)
        for position, span in enumerate(operations):
            self._threads[span.tid].append(position)
        self._operations = operations
        self._host = {event.external_id: event for event in host if event.external_id is not None}
        self._starts: dict[int, list[float]] = {}
        for tid, positions in self._threads.items():
            positions.sort(key=lambda p: operations[p].start_s)
            self._starts[tid] = [operations[p].start_s for p in positions]
            for a, b in pairwise(positions):
                if operations[b].start_s < operations[a].end_s:
                    raise ValueError(
                        f"host spans of operations {operations[a].index} and {operations[b].index} overlap on thread "
                        f"{tid}: give only outermost operations"
                    )

    def called(self, event: DeviceEvent, window: tuple[float, float]) -> HostEvent | None:
        """The innermost host event around the launch, if kineto knows one and it began in the window."""
        caller = self._host.get(event.external_id) if event.external_id is not None else None
        return caller if caller is not None and window[0] <= caller.start_s <= window[1] else None

    def find(
        self, event: DeviceEvent, launch: Launch | None, inside: set[int], window: tuple[float, float]
    ) -> tuple[int | None, str]:
        """Position of the operation, or None and the reason."""
        caller = self.called(event, window)
        if launch is not None and launch.correlation not in inside:
            return None, "launched outside the pass"
        if launch is not None and (launch.tid in self._threads or caller is None):
            tid, at = launch.tid, launch.start_s
        elif caller is not None:
            tid, at = caller.tid, caller.start_s
        else:
            return None, "no launch record"
        if tid not in self._threads:
            return None, f"launched by another thread ({tid})"
        i = bisect_right(self._starts[tid], at) - 1
        if i >= 0 and at <= self._operations[self._threads[tid][i]].end_s:
            return self._threads[tid][i], ""
        if caller is not None and "::" in caller.name:  # an operator, not a range of ours
            return None, f"launched by {caller.name}, which is no traced operation"
        return None, "launched by no operation"
