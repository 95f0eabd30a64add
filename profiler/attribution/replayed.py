"""Attributes kernels that no host event links to an operation: those of a replayed CUDA graph, and those of a compiler.

A capture records the launches of a plain pass, so kind, name, grid and block of every kernel, copy and memset must
agree with those of the plain pass, in the order in which they began; else `GraphMismatch` is raised (CUPTI names a
memset's memory differently in a graph, so only its kind is compared). A compiler keeps the module path and the eager
operators of each call that it fuses; aligned with the traced graph they give a call's operations. A call without any
stands for those of its module that no kernel has, a kernel without any for the non-anchors of its modules or of the
next module around. A product or attention belongs to its library's kernel alone, whatever copies and masks a compiler
counts with it.

Example: ``joined = join_replay(replays, window, reference(plain))``
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from profiler.attribution.kernels import CLOCK_SKEW_S, DeviceJoin, runs_in
from profiler.attribution.operations import in_place_or_not
from profiler.attribution.shares import attribute, impossible, late, late_s
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
    # Branches of a graph run side by side, whatever stream CUPTI names: only kernels of a single stream cannot overlap.
    is_serial = len({event.stream for event in plain.events}) == 1
    faults = {i: why for i, why in impossible(events).items() if is_serial or not events[i].end_s > events[i].start_s}
    inside = {event.correlation for event in events}
    faults |= late(events, window, inside)
    shared = attribute(events, owners, plain.indices, window, inside, faults)
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
        impossible=shared.impossible,
        broken=timeline.broken_in(window),
        late_s=late_s(events, window, inside),
        events=tuple(events),
        owners=tuple(owner for owner, _ in owners),
    )


def _identity(event: DeviceEvent) -> tuple[object, ...]:
    name = "" if event.kind == "memset" else event.name
    return event.kind, name, event.grid, event.block


def _name(event: DeviceEvent) -> str:
    short = event.name if len(event.name) <= SHOWN else f"{event.name[: SHOWN - 1]}…"
    return f"{short} {'×'.join(map(str, event.grid))}" if event.grid else short


LIBRARY = re.compile(r"^(?:extern_kernels|torch\.ops)\.(?:(\w+)\.)?(\w+)(?:\.\w+)?$")
"""Names by which inductor calls operators of libraries: extern_kernels.mm, torch.ops.aten._grouped_mm.default."""


@dataclass(frozen=True, slots=True)
class Source:
    """One call in the model's source, as the compiler traced it."""

    path: str | None
    """Path of its module; None where that is no module of the model."""
    names: tuple[str, ...] = ()
    """Operators that it makes in eager mode, in order, without views: "aten::mm"."""


@dataclass(frozen=True, slots=True)
class CompiledKernel:
    """One call of a kernel."""

    name: str
    """Name of its host event in the profiler."""
    sources: tuple[int, ...]
    """Positions in the sources of its graph."""
    is_library: bool = False
    """Whether it is an operator of a library, not code that the compiler wrote."""


@dataclass(frozen=True, slots=True)
class CompiledGraph:
    """A part of the model that was compiled as one: all of it, unless the compiler had to break it."""

    sources: tuple[Source, ...]
    """Calls in the order of the model's source."""
    kernels: tuple[CompiledKernel, ...]
    """Kernels in the order in which they are called."""


def library_operator(kernel: str) -> str | None:
    """The operator that a kernel calls, as the profiler names it; None for a kernel that the compiler wrote.

    ``library_operator("extern_kernels.mm") == "aten::mm"``
    """
    match = LIBRARY.match(kernel)
    if match is None:
        return None
    name = "addmm" if match[2] == "bias_addmm" else match[2]  # inductor's own, torch/_inductor/kernel/mm.py
    return f"{match[1] or 'aten'}::{name}"


def members(
    called: Sequence[CompiledGraph], traced: Sequence[tuple[str, str]], anchors: Collection[int]
) -> list[tuple[int, ...]]:
    """Operations of each kernel call, in order, as positions in `traced`; empty where no module is known for it.

    Args: the compiled graphs as one pass calls them; (module path, operator) of each traced operation; which of them
    are anchors.
    """
    own = _aligned(called, traced)
    by_path: dict[str, list[int]] = {}
    for i, (path, _) in enumerate(traced):
        by_path.setdefault(path, []).append(i)
    kernels = [(graph, sources, kernel) for graph, sources in zip(called, own, strict=True) for kernel in graph.kernels]
    of_kernels = [{op for source in kernel.sources for op in sources[source]} for _, sources, kernel in kernels]
    by_library = {
        op for ops, (_, _, kernel) in zip(of_kernels, kernels, strict=True) if kernel.is_library for op in ops
    }
    done_elsewhere = by_library.intersection(anchors)
    left = set(range(len(traced))) - set(anchors) - set().union(*of_kernels)
    for ops, (graph, sources, kernel) in zip(of_kernels, kernels, strict=True):
        if not kernel.is_library:
            ops -= done_elsewhere
        paths = [(graph.sources[source].path, not sources[source]) for source in kernel.sources]
        for path in (path for path, is_bare in paths if is_bare and path is not None):
            ops |= left.intersection(by_path.get(path, ()))
            left -= ops
        if not ops:
            ops |= {op for path, _ in paths if path is not None for op in _of_module(path, by_path, anchors)}
    return [tuple(sorted(ops)) for ops in of_kernels]


def _aligned(called: Sequence[CompiledGraph], traced: Sequence[tuple[str, str]]) -> list[list[list[int]]]:
    """The operations that each source of each graph makes."""
    own: list[list[list[int]]] = [[[] for _ in graph.sources] for graph in called]
    calls = [
        ((source.path or "", in_place_or_not(name)), own[g][s])
        for g, graph in enumerate(called)
        for s, source in enumerate(graph.sources)
        if source.path is not None
        for name in source.names
    ]
    matcher = SequenceMatcher(None, [key for key, _ in calls], traced, autojunk=False)
    for block in matcher.get_matching_blocks():
        for k in range(block.size):
            calls[block.a + k][1].append(block.b + k)
    return own


def _of_module(path: str, by_path: Mapping[str, list[int]], anchors: Collection[int]) -> list[int]:
    """Operations of a module that are no anchors, else all of them, else those of the module around it."""
    while path not in by_path and path:
        path = path.rpartition(".")[0]
    ops = by_path.get(path, [])
    return [op for op in ops if op not in anchors] or ops
