"""Times every operation of a forward pass in place, and the pass itself undisturbed.

Rounds alternate between passes without a profiler, which give the wall time, and passes under it, which give the
times of the operations. Module ranges cost as much as operators do, so only one pass has them: it fixes which
module runs which operation, and every timed pass must then run that same sequence.

Contract: the result holds raw samples, in seconds; a pass whose sequence differs raises `SequenceMismatch`;
a device that dropped kernel events, or wrote numbers that are not finite, raises `InvalidMeasurement`.

Example: ``measure(model, inputs, graph, device=torch.device("cpu"), budget_s=10)``
"""

import gc
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch._C._profiler import _RecordFunctionFast
from torch.profiler import ProfilerActivity, profile

from profiler.attribution.align import SequenceMismatch, differences, sequence
from profiler.attribution.kernels import OpSpan, check, join
from profiler.attribution.spans import PASS, Executed, executed, passes
from profiler.attribution.timeline import HostEvent, Timeline, read_timeline
from profiler.models.annotate import PREFIX, entered
from profiler.models.inputs import PassInputs
from profiler.record.errors import InvalidMeasurement
from profiler.record.run import Closure, OpTimes
from roofline.op import Kind, OpGraph

PASSES = 3
"""Timed passes in a row, with and without the profiler in turn; one untimed pass goes before each row."""
ROUNDS = (3, 12)
"""Fewest and most rounds; between them the time budget decides."""

Step = Callable[[str, float], None]
"""Told what begins, and how much of the cell is done by then, from 0 to 1."""


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


@dataclass(frozen=True, slots=True)
class _Sample:
    """One profiled pass: times of each operation, and what is left over."""

    device_s: list[float]
    gap_s: list[float]
    tail_s: float
    unattributed_s: float
    unattributed: tuple[str, ...]
    kernels: tuple[tuple[str, ...], ...]
    counts: tuple[int, int, int]
    """Launches, kernels, memory operations."""
    idle_s: float
    """Time of the pass in which no operation and no stranger ran."""


def measure(
    model: nn.Module,
    inputs: PassInputs,
    graph: OpGraph,
    *,
    device: torch.device,
    budget_s: float,
    step: Step = lambda text, part: None,
) -> PassTimes:
    """Samples of one pass of `model` for each operation of `graph`, within about `budget_s` seconds.

    Raises: SequenceMismatch if the device runs other operations than `graph`; InvalidMeasurement if the samples
    cannot be trusted; torch's own errors, out of memory among them.
    """
    runner = _Runner(model, inputs, device)
    with torch.no_grad(), _no_garbage_collection():
        step("warm-up", 0.1)
        if not runner.finite():
            raise InvalidMeasurement("the logits are not finite: the pass computes something else than the model does")
        runner.once()
        step("operations", 0.15)
        backends = _check_sequence(runner, graph)
        wall: list[float] = []
        profiled: list[float] = []
        ratios: list[float] = []
        samples: list[_Sample] = []
        names = [op.name for op in graph.ops]
        begin = time.monotonic()
        while len(ratios) < ROUNDS[0] or (len(ratios) < ROUNDS[1] and time.monotonic() - begin < budget_s):
            spent = max((time.monotonic() - begin) / budget_s, len(ratios) / ROUNDS[1])
            step(f"round {len(ratios) + 1}", 0.2 + 0.8 * min(1.0, spent))
            runner.once()
            plain = [runner.once() for _ in range(PASSES)]
            taken, walls = _profiled(runner, names)
            samples += taken
            wall += plain
            profiled += walls[1:]
            ratios.append(statistics.median(walls[1:]) / statistics.median(plain))
    return _collect(samples, wall, profiled, ratios, backends)


class _Runner:
    """One forward pass, again and again, from the same state."""

    def __init__(self, model: nn.Module, inputs: PassInputs, device: torch.device) -> None:
        self.model, self.inputs, self.device = model, inputs, device

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def finite(self) -> bool:
        """Run once and look at the logits."""
        logits = self.model(**self.inputs.kwargs()).logits
        self.inputs.restore()
        return bool(torch.isfinite(logits).all())

    def once(self) -> float:
        """Wall time of one pass in seconds, host and device."""
        kwargs = self.inputs.kwargs()
        self.synchronize()
        start = time.perf_counter()
        self.model(**kwargs)
        self.synchronize()
        end = time.perf_counter()
        self.inputs.restore()
        return end - start

    def session(self, count: int, *, modules: bool = False) -> tuple[Timeline, list[float]]:
        """Profile `count` passes; their timeline and wall times. The first is for the profiler to settle."""
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.device.type == "cuda" else [])]
        walls = []
        ranges = entered(self.model, lambda path: _RecordFunctionFast(PREFIX + path)) if modules else nullcontext()
        with ranges, profile(activities=activities) as session:
            for _ in range(count):
                kwargs = self.inputs.kwargs()
                self.synchronize()
                start = time.perf_counter()
                with _RecordFunctionFast(PASS):
                    self.model(**kwargs)
                    self.synchronize()
                walls.append(time.perf_counter() - start)
                self.inputs.restore()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            session.export_chrome_trace(str(path))
            return read_timeline(path), walls


def _profiled(runner: _Runner, names: list[str]) -> tuple[list[_Sample], list[float]]:
    """One session's samples and wall times; taken once more where the profiler lost events."""

    def session() -> tuple[list[_Sample], list[float]]:
        timeline, walls = runner.session(PASSES + 1)
        return [_sample(timeline, window, names, runner.device) for window in passes(timeline.host)[1:]], walls

    try:
        return session()
    except InvalidMeasurement:
        return session()


def _check_sequence(runner: _Runner, graph: OpGraph) -> tuple[str, ...]:
    """Run once with module ranges; the attention backends seen. Raises SequenceMismatch."""
    timeline, _ = runner.session(2, modules=True)
    window = passes(timeline.host)[-1]
    found = _executed(timeline, window, frozenset(op.name for op in graph.ops))
    different = differences(sequence(graph), [(op.path or "", op.name) for op in found.ops])
    if graph.traced_on == "meta":  # a trace on the device has seen all there is
        different += tuple(f"device only: {event.name} in no traced operation" for event in found.strangers)
    if different:
        raise SequenceMismatch(different)
    ran = zip(found.ops, graph.ops, strict=True)
    return tuple(sorted({op.backend or "math" for op, traced in ran if traced.kind == Kind.ATTENTION}))


def _executed(timeline: Timeline, window: HostEvent, names: frozenset[str]) -> Executed:
    return executed(timeline.host, names=names, window=(window.start_s, window.end_s), tid=window.tid)


def _sample(timeline: Timeline, window: HostEvent, names: list[str], device: torch.device) -> _Sample:
    """Times of one profiled pass, whose operations must be `names` in order."""
    found = _executed(timeline, window, frozenset(names))
    if [op.name for op in found.ops] != names:
        raise SequenceMismatch(differences([("", n) for n in names], [("", op.name) for op in found.ops]))
    return _device_sample(timeline, window, found) if device.type == "cuda" else _host_sample(window, found)


def _host_sample(window: HostEvent, found: Executed) -> _Sample:
    """On a CPU an operation's span is its time, and what lies between two spans is idle."""
    previous = window.start_s
    device_s, gap_s = [], []
    for op in found.ops:
        device_s.append(op.end_s - op.start_s)
        gap_s.append(op.start_s - previous)
        previous = op.end_s
    strangers = tuple(event.name for event in found.strangers)
    time_s = math.fsum(event.end_s - event.start_s for event in found.strangers)
    kernels = tuple((op.backend,) if op.backend else () for op in found.ops)
    tail_s = window.end_s - previous
    idle_s = math.fsum(gap_s) + tail_s - time_s  # strangers lie in the gaps between operations
    return _Sample(device_s, gap_s, tail_s, time_s, strangers, kernels, (0, 0, 0), idle_s)


def _device_sample(timeline: Timeline, window: HostEvent, found: Executed) -> _Sample:
    """On a GPU a kernel belongs to the operation that launched it; idle is time in which no kernel ran."""
    spans = [OpSpan(i, op.start_s, op.end_s, op.tid) for i, op in enumerate(found.ops)]
    joined = join(timeline, (window.start_s, window.end_s), spans)
    problems = check(joined)
    if problems:
        raise InvalidMeasurement("; ".join(problems))
    return _Sample(
        [op.device_s for op in joined.ops],
        [op.gap_s for op in joined.ops],
        joined.tail_gap_s,
        joined.unattributed_s,
        tuple(f"{event.name} ({event.reason})" for event in joined.unattributed),
        tuple(op.kernels for op in joined.ops),
        (joined.launches, joined.kernels, joined.memory_operations),
        joined.tail_gap_s + joined.gap_s,
    )


def _collect(
    samples: list[_Sample], wall: list[float], profiled: list[float], ratios: list[float], backends: tuple[str, ...]
) -> PassTimes:
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
    launches, kernels, memory = samples[-1].counts
    return PassTimes(
        wall_s=tuple(wall),
        profiled_wall_s=tuple(profiled),
        ops=ops,
        tail_gap_s=tuple(s.tail_s for s in samples),
        unattributed_s=tuple(lost),
        closure=Closure(
            attributed=statistics.median(b / (b + x) for b, x in zip(busy, lost, strict=True)),
            spans_plus_gaps=statistics.median(a / w for a, w in zip(accounted, profiled, strict=True)),
            instrumented_ratio=statistics.median(ratios),
            launches=launches,
            kernels=kernels,
            memory_operations=memory,
        ),
        backends=backends,
        unattributed=tuple(sorted({name for s in samples for name in s.unattributed})),
    )


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A collection in the middle of a pass is nobody's operation."""
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
