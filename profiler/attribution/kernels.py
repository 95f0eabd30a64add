"""Attributes what the device did during one pass to operations.

Rule: device event → correlation id → launch → the operation whose host span encloses the launch's start on the same
thread. Where kineto keeps no record of the launch, or knows its thread under another number, the event's external id
names the host event that launched it, and that event's start is taken. Several kernels to one operation are normal.
What fits no operation is kept with its name and its reason, never dropped: Σ operations + unattributed + gaps + tail =
wall, since `shares` and `idle` split each instant.

`check` names what is missing or cannot be true: such a pass is not to be used.

Synchronise the device before and after the window. CUDA graphs are refused: one launch stands for many kernels, which
`profiler.attribution.replayed` gives to operations by their order.

Example: ``done = join(timeline, (t0, t1), spans); problems = check(done)``
"""

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from profiler.attribution.shares import EDGE_S, OpDevice, Unattributed, attribute, impossible, late, late_s
from profiler.attribution.timeline import BrokenEvent, DeviceEvent, HostEvent, Launch, Timeline

CLOCK_SKEW_S = 1e-4
"""Disagreement between host and device clocks that is not an error: above CUPTI's microseconds, and far below the
hours by which records with a corrupted clock are off (pytorch issue 192021)."""


@dataclass(frozen=True, slots=True)
class OpSpan:
    """Host span of an executed operation; spans of one thread do not overlap."""

    index: int
    """Position of the operation in its graph."""
    start_s: float
    end_s: float
    tid: int


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
