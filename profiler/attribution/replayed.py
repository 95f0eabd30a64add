"""Attributes the kernels of a replayed CUDA graph to operations, by the order of the pass that it captured.

A replay is one launch: nothing on the host says which operation a kernel belongs to. But a capture records the launches
of a plain pass, so kind, name, grid and block of every kernel, copy and memset must agree with those of the plain pass,
in the order in which they began; else `GraphMismatch` is raised. CUPTI names a memset's memory differently in a stream
and in a graph, so only the kind of memsets is compared.

Example: ``joined = join_replay(replays, window, reference(plain))``
"""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from profiler.attribution.kernels import CLOCK_SKEW_S, DeviceJoin, attribute, runs_in
from profiler.attribution.timeline import DeviceEvent, Timeline
from profiler.record.run import InvalidMeasurement

SHOWN = 60
"""Characters of a kernel's name in a message: templates fill pages."""


class GraphMismatch(InvalidMeasurement):
    """A graph ran other kernels than the plain pass."""


@dataclass(frozen=True, slots=True)
class Reference:
    """The device events of a plain pass, in order, and the operations that they belong to."""

    events: tuple[DeviceEvent, ...]
    owners: tuple[int | None, ...]
    """Position of each event's operation; None where the event belongs to none."""
    reasons: tuple[str, ...]
    """The reason why each event belongs to no operation; "" where it belongs to one."""
    indices: tuple[int, ...]
    """Index of the operation at each position."""


def reference(joined: DeviceJoin) -> Reference:
    """A plain pass as what replays are compared with. Raises InvalidMeasurement where it ran nothing."""
    if not joined.events:
        raise InvalidMeasurement("the pass ran no kernel that a CUDA graph could hold; leave --cuda-graph out")
    why = iter(joined.unattributed)
    reasons = tuple(next(why).reason if owner is None else "" for owner in joined.owners)
    return Reference(joined.events, joined.owners, reasons, tuple(op.index for op in joined.ops))


def check_same(plain: Sequence[DeviceEvent], replayed: Sequence[DeviceEvent]) -> None:
    """Raises GraphMismatch, one line, unless both ran the same kernels, copies and memsets in the same order."""
    expected, ran = [_identity(event) for event in plain], [_identity(event) for event in replayed]
    if expected == ran:
        return
    changes = [c for c in SequenceMatcher(None, expected, ran, autojunk=False).get_opcodes() if c[0] != "equal"]
    _, a, b, c, d = changes[0]
    missing, extra = [_name(event) for event in plain[a:b]], [_name(event) for event in replayed[c:d]]
    if missing and extra:
        what = f"at {a + 1} it ran {extra[0]} where the plain pass ran {missing[0]}"
        if plain[a].name == replayed[c].name:
            what += ", in another grid"
    elif missing:
        what = f"it lacks {missing[0]}, number {a + 1} of the plain pass"
    else:
        what = f"it ran {extra[0]} at {c + 1}, which the plain pass did not"
    raise GraphMismatch(
        f"the CUDA graph is not the plain pass ({len(ran)} kernels and copies, plain {len(expected)}): {what}, the "
        f"first of {len(changes)} differences; measure again, or without --cuda-graph"
    )


def join_replay(timeline: Timeline, window: tuple[float, float], plain: Reference) -> DeviceJoin:
    """Give the kernels of one replay to the operations of the plain pass.

    Args: the session; the replay on the host clock, seconds; the plain pass.
    Raises GraphMismatch, and InvalidMeasurement where the window holds no single launch of a graph. What is launched
    beside the graph, as the seeds of a random generator are before a replay, belongs to no operation.
    """
    launches = [launch for launch in timeline.launches if window[0] <= launch.start_s <= window[1]]
    graphs = [launch for launch in launches if launch.kind == "graph"]
    if len(graphs) != 1:
        raise InvalidMeasurement(f"a replay is one launch of a graph; the profiler saw {len(graphs)}")
    launch = graphs[0]
    others = {other.correlation for other in launches if other is not launch}
    # CUPTI may give a node's event another correlation than its graph's launch.
    launched = {launch.correlation, *others}
    events = [event for event in timeline.device if event.correlation in launched or runs_in(window, event)]
    is_beside = [event.correlation in others for event in events]
    check_same(plain.events, [event for event, beside in zip(events, is_beside, strict=True) if not beside])
    nodes = iter(zip(plain.owners, plain.reasons, strict=True))
    owners = [(None, "launched beside the graph") if beside else next(nodes) for beside in is_beside]
    shared = attribute(events, owners, plain.indices, window, {event.correlation for event in events})
    kernels = sum(event.kind == "kernel" for event in events)
    return DeviceJoin(
        ops=shared.ops,
        unattributed=shared.unattributed,
        tail_gap_s=shared.tail_gap_s,
        wall_s=shared.end_s - window[0],
        kernels=kernels,
        launches=kernels,
        memory_operations=len(events) - kernels,
        memory_launches=len(events) - kernels,
        skewed=tuple(event for event in events if event.start_s < launch.start_s - CLOCK_SKEW_S),
        late_s=shared.end_s - window[1],
        events=tuple(events),
        owners=tuple(owner for owner, _ in owners),
    )


def _identity(event: DeviceEvent) -> tuple[object, ...]:
    name = "" if event.kind == "memset" else event.name
    return event.kind, name, event.grid, event.block


def _name(event: DeviceEvent) -> str:
    short = event.name if len(event.name) <= SHOWN else f"{event.name[: SHOWN - 1]}…"
    return f"{short} {'×'.join(map(str, event.grid))}" if event.grid else short
