"""Makes the samples of one cell from profiled sessions: which operations each pass ran, and what each took.

On a CPU an operation's host span is its time. On CUDA it is the time of the kernels that were launched within that
span, and the profiler sees more than any trace does: work on host tensors, and constants that `torch.tensor` copies
from the host below the dispatcher (one without elements, as an empty cache makes, copies nothing). Such operators may
run beside the traced ones: the former are host time, the latter's copies are kept as unattributed, with their names.

A pass that ran other operations raises `SequenceMismatch`; one whose device events are not complete
`InvalidMeasurement`.

Example: ``[sample(timeline, window, names, by_kernels=True) for window in passes(timeline.host)[1:]]``
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from profiler.attribution.kernels import DeviceJoin, OpSpan, check, join
from profiler.attribution.operations import (
    COMPILED,
    Executed,
    ExecutedOp,
    SequenceMismatch,
    differences,
    executed,
    in_place_or_not,
    only_ran,
    passes,
    sequence,
)
from profiler.attribution.timeline import HostEvent, Timeline
from profiler.record.measurement import WarmUp, Window
from profiler.record.run import Closure, InvalidMeasurement, KernelTimes, OpTimes
from roofline.graph.op import Kind, OpGraph

if TYPE_CHECKING:
    from profiler.attribution.replayed import Reference

FROM_HOST = "Memcpy HtoD"
"""Prefix of kineto's names of copies from the host to the device (CuptiStrings.cpp)."""

Key = tuple[str, str]
"""Module path and operator."""


@dataclass(frozen=True, slots=True)
class PassTimes:
    """Raw samples of one cell, in seconds."""

    wall_s: tuple[float, ...]
    profiled_wall_s: tuple[float, ...]
    ops: tuple[OpTimes, ...]
    tail_gap_s: tuple[float, ...]
    unattributed_s: tuple[float, ...]
    closure: Closure
    backends: tuple[str, ...]
    """Attention backends that ran."""
    unattributed: tuple[str, ...]
    """Names of the device work that belongs to no operation."""
    kernels: tuple[KernelTimes, ...] = ()
    """Times of a compiled pass, which has none of operations."""
    warm_up: WarmUp | None = None
    stop_reason: str = ""
    windows: tuple[Window, ...] = ()
    """One for each round of passes."""
    reference: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """Seconds of each reference probe: before, between and after the plain and the profiled passes of each round."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One profiled pass: times of each operation, and what is left over."""

    device_s: list[float]
    gap_s: list[float]
    tail_s: float
    unattributed_s: float
    unattributed: tuple[str, ...]
    kernels: tuple[tuple[str, ...], ...]
    idle_s: float
    """Time of the pass in which no operation and no stranger ran."""
    launches: int = 0
    launched: int = 0
    """Kernels that ran."""
    memory_operations: int = 0
    nested: tuple[int, ...] = ()
    """Events that the profiler recorded within each operation on a CPU, the operation's own not counted."""
    between: tuple[int, ...] = ()
    """Events in the gap before each operation, up to the operation's own start."""

    @property
    def events(self) -> int:
        """Recorded in the whole pass, 0 on a GPU, whose kernels the host's events do not lengthen."""
        return sum(self.nested) + sum(self.between)

    def without(self, event_cost_s: float) -> "Sample":
        """The sample less what recording its events took, so many seconds each; no time falls below 0."""
        if not self.events or event_cost_s == 0:
            return self
        device_s, gap_s = (
            [max(0.0, taken - event_cost_s * count) for taken, count in zip(times, counts, strict=True)]
            for times, counts in ((self.device_s, self.nested), (self.gap_s, self.between))
        )
        saved_s = math.fsum(self.gap_s) - math.fsum(gap_s)
        return replace(self, device_s=device_s, gap_s=gap_s, idle_s=self.idle_s - saved_s)


def check_sequence(timeline: Timeline, graph: OpGraph, by_kernels: bool) -> tuple[str, ...]:
    """Whether the session's last pass, run with module ranges, is `graph`; the attention backends that it took."""
    window = passes(timeline.host)[-1]
    expected = sequence(graph)
    if by_kernels:
        ops, joined = _device_pass(timeline, window, expected, with_paths=True)
        strangers = [f"{e.name}, {e.reason}" for e in joined.unattributed if not e.name.startswith(FROM_HOST)]
    else:
        ran = _host_pass(timeline, window, expected, with_paths=True)
        ops, strangers = ran.ops, [f"{event.name} in no traced operation" for event in ran.strangers]
    if strangers and graph.traced_on == "meta":  # a trace on the device has seen all that a trace can see
        raise SequenceMismatch(tuple(f"device only: {name}" for name in strangers))
    pairs = zip(ops, graph.ops, strict=True)
    return tuple(sorted({op.backend or "math" for op, traced in pairs if traced.kind == Kind.ATTENTION}))


def sample(
    timeline: Timeline, window: HostEvent, names: Sequence[str], by_kernels: bool, within: str | None = None
) -> Sample:
    """Times of one profiled pass without module ranges, whose operations must be `names` in order.

    With `within`, only what lies in a profiler range of that name is an operation.
    """
    if by_kernels:
        return _device_sample(_device_pass(timeline, window, _keys(names), within)[1])
    return _host_sample(timeline, window, _host_pass(timeline, window, _keys(names), within))


def called(timeline: Timeline, window: HostEvent, names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of these kernels' host events in a compiled pass, in order, as `sample` compares them."""
    return tuple(in_place_or_not(op.name) for op in _executed(timeline, window, _keys(names), COMPILED).ops)


def plain_pass(timeline: Timeline, window: HostEvent, names: Sequence[str], within: str | None = None) -> "Reference":
    """A pass on CUDA as the reference of its replays, whose operations must be `names` in order."""
    from profiler.attribution.replayed import reference

    return reference(_device_pass(timeline, window, _keys(names), within)[1])


def replay_sample(timeline: Timeline, window: HostEvent, plain: "Reference") -> Sample:
    """Times of one replay of a CUDA graph. Raises GraphMismatch where it is not the plain pass."""
    from profiler.attribution.replayed import join_replay

    joined = join_replay(timeline, (window.start_s, window.end_s), plain)
    if problems := check(joined):
        raise InvalidMeasurement("; ".join(problems))
    return _device_sample(joined)


def collect(
    samples: Sequence[Sample],
    wall_s: Sequence[float],
    profiled_wall_s: Sequence[float],
    ratios: Sequence[float],
    backends: tuple[str, ...],
    event_cost_s: float = 0.0,
) -> PassTimes:
    """All samples of a cell, less the `event_cost_s` of each event that the profiler recorded on a CPU.

    `ratios`: profiled ÷ unprofiled wall, as taken, of passes next to each other.
    """
    lengthened = [event_cost_s * sample.events for sample in samples]
    raw_wall_s = statistics.median(profiled_wall_s)
    profiled_wall_s = [wall - more for wall, more in zip(profiled_wall_s, lengthened, strict=True)]
    samples = [sample.without(event_cost_s) for sample in samples]
    busy = [math.fsum(s.device_s) for s in samples]
    lost = [s.unattributed_s for s in samples]
    accounted = [b + x + s.idle_s for b, x, s in zip(busy, lost, samples, strict=True)]
    ops = tuple(
        OpTimes(
            op=i,
            device_s=tuple(s.device_s[i] for s in samples),
            gap_s=tuple(s.gap_s[i] for s in samples),
            kernels=samples[-1].kernels[i],
        )
        for i in range(len(samples[0].device_s))
    )
    return PassTimes(
        wall_s=tuple(wall_s),
        profiled_wall_s=tuple(profiled_wall_s),
        ops=ops,
        tail_gap_s=tuple(s.tail_s for s in samples),
        unattributed_s=tuple(lost),
        closure=Closure(
            attributed=statistics.median(b / (b + x) for b, x in zip(busy, lost, strict=True)),
            spans_plus_gaps=statistics.median(a / w for a, w in zip(accounted, profiled_wall_s, strict=True)),
            instrumented_ratio=statistics.median(ratios) * statistics.median(profiled_wall_s) / raw_wall_s,
            event_cost_s=event_cost_s,
            subtracted_s=statistics.median(lengthened),
            launches=samples[-1].launches,
            kernels=samples[-1].launched,
            memory_operations=samples[-1].memory_operations,
        ),
        backends=backends,
        unattributed=tuple(sorted({name for s in samples for name in s.unattributed})),
    )


def _executed(timeline: Timeline, window: HostEvent, expected: Sequence[Key], within: str | None = None) -> Executed:
    """The operators that a pass ran. Raises InvalidMeasurement where host events of the trace cannot be true."""
    if broken := [e for e in timeline.broken_in((window.start_s, window.end_s)) if not e.on_device]:
        raise InvalidMeasurement(
            f"{len(broken)} host events of the trace cannot be read (the first: {broken[0].name}, {broken[0].reason}): "
            "profile again"
        )
    names = frozenset(name for _, name in expected)
    return executed(timeline.host, names=names, window=(window.start_s, window.end_s), tid=window.tid, within=within)


def _keys(names: Iterable[str]) -> list[Key]:
    """Operators of a session without module ranges."""
    return [("", in_place_or_not(name)) for name in names]


def _ran(op: ExecutedOp, with_paths: bool) -> Key:
    return (op.path or "") if with_paths else "", in_place_or_not(op.name)


def _host_pass(
    timeline: Timeline,
    window: HostEvent,
    expected: Sequence[Key],
    within: str | None = None,
    *,
    with_paths: bool = False,
) -> Executed:
    ran = _executed(timeline, window, expected, within)
    if different := differences(expected, [_ran(op, with_paths) for op in ran.ops]):
        raise SequenceMismatch(different)
    return ran


def _host_sample(timeline: Timeline, window: HostEvent, ran: Executed) -> Sample:
    """Return the times of a pass from its host spans; the time between two spans is idle."""
    starts = np.array([e.start_s for e in timeline.host if e.tid == window.tid and e is not window])
    begun, ended = (
        np.searchsorted(starts, [getattr(op, at) for op in ran.ops], side="right") for at in ("start_s", "end_s")
    )
    first = np.searchsorted(starts, window.start_s)
    previous = window.start_s
    device_s, gap_s = [], []
    for op in ran.ops:
        device_s.append(op.end_s - op.start_s)
        gap_s.append(op.start_s - previous)
        previous = op.end_s
    time_s = math.fsum(event.end_s - event.start_s for event in ran.strangers)
    tail_s = window.end_s - previous
    return Sample(
        device_s,
        gap_s,
        tail_s,
        unattributed_s=time_s,
        unattributed=tuple(event.name for event in ran.strangers),
        kernels=tuple((op.backend,) if op.backend else () for op in ran.ops),
        idle_s=math.fsum(gap_s) + tail_s - time_s,  # strangers lie in the gaps between operations
        nested=tuple((ended - begun).tolist()),
        between=tuple((begun - np.concatenate([[first], ended])[: len(begun)]).tolist()),
    )


def _device_pass(
    timeline: Timeline,
    window: HostEvent,
    expected: Sequence[Key],
    within: str | None = None,
    *,
    with_paths: bool = False,
) -> tuple[tuple[ExecutedOp, ...], DeviceJoin]:
    """The traced operations of a pass and what the device did for them, without what only the profiler sees."""
    ran = _executed(timeline, window, expected, within).ops
    joined = _join(timeline, window, ran)
    idle = {i for i, op in enumerate(joined.ops) if not op.kernels}
    constants = {i for i, op in enumerate(joined.ops) if all(name.startswith(FROM_HOST) for name in op.kernels)}
    kept = _without([_ran(op, with_paths) for op in ran], list(expected), idle, constants)
    ops = tuple(ran[i] for i in kept)
    return ops, joined if len(ops) == len(ran) else _join(timeline, window, ops)


def _without(keys: list[Key], expected: list[Key], idle: set[int], constants: set[int]) -> list[int]:
    """Positions of the traced operations: without all host work, without all constants, or without some of them."""
    everything = range(len(keys))
    choices: list[set[int]] = [set(), idle, constants]
    if (beside := only_ran(expected, keys)) is not None and beside <= constants:
        choices.append(beside)
    for extra in choices:
        kept = [i for i in everything if i not in extra]
        if [keys[i] for i in kept] == expected:
            return kept
    working = [key for i, key in enumerate(keys) if i not in idle]
    raise SequenceMismatch(min(differences(expected, keys), differences(expected, working), key=len))


def _join(timeline: Timeline, window: HostEvent, ops: Sequence[ExecutedOp]) -> DeviceJoin:
    """Raises InvalidMeasurement where device events are missing or wrong."""
    spans = [OpSpan(i, op.start_s, op.end_s, op.tid) for i, op in enumerate(ops)]
    try:
        joined = join(timeline, (window.start_s, window.end_s), spans)
    except ValueError as refused:
        raise InvalidMeasurement(str(refused)) from refused
    problems = check(joined)
    if not problems and not joined.kernels:
        problems = ["the profiler saw no kernel on the GPU: let no other profiler use it, and allow its counters"]
    if problems:
        raise InvalidMeasurement("; ".join(problems))
    return joined


def _device_sample(joined: DeviceJoin) -> Sample:
    """Idle is time in which no kernel ran."""
    return Sample(
        [op.device_s for op in joined.ops],
        [op.gap_s for op in joined.ops],
        joined.tail_gap_s,
        joined.unattributed_s,
        tuple(f"{event.name} ({event.reason})" for event in joined.unattributed),
        tuple(op.kernels for op in joined.ops),
        joined.tail_gap_s + joined.gap_s,
        joined.launches,
        joined.kernels,
        joined.memory_operations,
    )
