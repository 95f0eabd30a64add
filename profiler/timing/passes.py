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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import nn
from torch._C._profiler import _RecordFunctionFast

from profiler.attribution.spans import PASS, passes
from profiler.attribution.timeline import Timeline, read_timeline
from profiler.models.annotate import PREFIX, entered
from profiler.models.inputs import PassInputs
from profiler.record.conditions import Window
from profiler.record.errors import InvalidMeasurement
from profiler.timing.samples import DeviceKind, PassTimes, Sample, check_sequence, collect, sample
from profiler.timing.session import SETTLING_LAUNCHES, recorded
from profiler.timing.stopping import Reason, Rules, Stopping
from profiler.timing.warmup import warm_up
from profiler.timing.watch import Watch
from roofline.op import OpGraph

PASSES = 3
"""Timed passes in a row, with and without the profiler in turn; one untimed pass goes before each row."""
ROUNDS = (3, 12)
"""Fewest and most rounds; between them the plain passes' precision and the time budget decide."""
WARM_UP_PART = 0.1
"""Of the time budget, the most for passes before the first sample."""
RULES = Rules(min_samples=ROUNDS[0] * PASSES, max_samples=ROUNDS[1] * PASSES, relative_width=0.01, noise_tolerance=0.0)
"""When the plain passes end: at a median known to 1 %, the size of a regression that is looked for."""

T = TypeVar("T")
Step = Callable[[str, float], None]
"""Told what begins, and how much of the cell is done by then, from 0 to 1."""


def measure(
    model: nn.Module,
    inputs: PassInputs,
    graph: OpGraph,
    *,
    device: torch.device,
    budget_s: float,
    step: Step = lambda text, part: None,
    watch: Watch | None = None,
) -> PassTimes:
    """Samples of one pass of `model` for each operation of `graph`, within about `budget_s` seconds.

    Raises: SequenceMismatch if the device runs other operations than `graph`; InvalidMeasurement if the samples
    cannot be trusted; torch's own errors, out of memory among them.
    """
    return rounds(Runner(model, inputs, device), graph, budget_s=budget_s, step=step, watch=watch)


class Repeatable(Protocol):
    """What each pass starts from: `profiler.models.inputs.PassInputs`, or nothing."""

    def kwargs(self) -> dict[str, Any]:
        """Of one call of the model."""

    def restore(self) -> None:
        """Undo what a pass did."""


class Runner:
    """One forward pass, again and again, from the same state."""

    def __init__(self, model: nn.Module, inputs: Repeatable, device: torch.device) -> None:
        self.model, self.inputs, self.device = model, inputs, device
        self.kind: DeviceKind = "cuda" if device.type == "cuda" else "cpu"
        self.settling = SETTLING_LAUNCHES

    def synchronize(self) -> None:
        if self.kind == "cuda":
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
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            walls = self.record(path, count, modules=modules)
            return read_timeline(path), walls

    def record(self, path: Path, count: int, *, modules: bool = False) -> list[float]:
        """Profile `count` passes into a file that `read_timeline` reads; their wall times."""
        walls = []
        ranges = entered(self.model, lambda path: _RecordFunctionFast(PREFIX + path)) if modules else nullcontext()
        with ranges, recorded(path, self.device, self.settling):
            for _ in range(count):
                kwargs = self.inputs.kwargs()
                self.synchronize()
                start = time.perf_counter()
                with _RecordFunctionFast(PASS):
                    self.model(**kwargs)
                    self.synchronize()
                walls.append(time.perf_counter() - start)
                self.inputs.restore()
        return walls


def rounds(
    runner: Runner,
    graph: OpGraph,
    *,
    budget_s: float,
    step: Step = lambda text, part: None,
    watch: Watch | None = None,
) -> PassTimes:
    """What `measure` does, on a runner."""
    with torch.no_grad(), _no_garbage_collection():
        step("warm-up", 0.1)
        if not runner.finite():
            raise InvalidMeasurement("the logits are not finite: the pass computes something else than the model does")
        warmed, _ = warm_up(runner.once, PassClock(), min_s=0.0, max_s=WARM_UP_PART * budget_s)
        step("operations", 0.15)
        backends = _twice(lambda: check_sequence(runner.session(2, modules=True)[0], graph, runner.kind))
        wall: list[float] = []
        profiled: list[float] = []
        ratios: list[float] = []
        samples: list[Sample] = []
        windows: list[Window] = []
        names = [op.name for op in graph.ops]
        stopping = Stopping(RULES.within(budget_s))
        why: Reason | None = None
        begin = time.monotonic()
        while why is None or len(ratios) < ROUNDS[0]:
            spent = max((time.monotonic() - begin) / budget_s, len(ratios) / ROUNDS[1])
            step(f"round {len(ratios) + 1}", 0.2 + 0.8 * min(1.0, spent))
            if watch is not None:
                watch.begin()
            runner.once()
            plain = [runner.once() for _ in range(PASSES)]
            taken, walls = _twice(lambda: _profiled(runner, names))
            if watch is not None:
                windows.append(watch.end(2 * PASSES))
            samples += taken
            wall += plain
            profiled += walls
            ratios.append(statistics.median(walls) / statistics.median(plain))
            elapsed_s = time.monotonic() - begin
            reasons = [stopping.add(s, timed_s=math.fsum(wall), elapsed_s=elapsed_s) for s in plain]
            why = next((reason for reason in reasons if reason), None)
    found = collect(samples, wall, profiled, ratios, backends)
    return replace(found, warm_up=warmed, stop_reason=why, windows=tuple(windows))


class PassClock:
    """The clock of a call that tells its own time: a pass, which is timed without putting its inputs back."""

    name = "wall of a pass"
    replays = False

    def now(self) -> float:
        return time.monotonic()

    def time(self, call: Callable[[], object], repeats: int) -> float:
        return math.fsum(float(call()) for _ in range(repeats))  # type: ignore[arg-type]


def _profiled(runner: Runner, names: Sequence[str]) -> tuple[list[Sample], list[float]]:
    """One session's samples and wall times."""
    timeline, walls = runner.session(PASSES + 1)
    windows = passes(timeline.host)
    return [sample(timeline, window, names, runner.kind) for window in windows[1:]], walls[1:]


def _twice(take: Callable[[], T]) -> T:
    """A session's result; taken once more where the profiler lost events."""
    try:
        return take()
    except InvalidMeasurement:
        return take()


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
