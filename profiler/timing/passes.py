"""Times every operation of a forward pass in place, and the pass itself undisturbed.

Rounds alternate between passes without a profiler, which give the wall time, and passes under it, which give the
times of the operations. The runner says how passes run: eagerly, compiled, or replayed from a CUDA graph.

Contract: the result holds raw samples, in seconds; a pass whose sequence differs raises `SequenceMismatch`;
a device that dropped kernel events, or wrote numbers that are not finite, raises `InvalidMeasurement`.

Example: ``rounds(Runner(model, inputs, torch.device("cpu")), graph, budget_s=10)``
"""

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

import torch

from profiler.devices.watch import Watch
from profiler.record.conditions import Window
from profiler.record.errors import InvalidMeasurement
from profiler.record.measurement import WarmUp
from profiler.timing.reference import ReferenceProbes
from profiler.timing.runner import Runner
from profiler.timing.samples import PassTimes, Sample, collect
from profiler.timing.session import event_cost_s
from profiler.timing.stopping import Reason, Rules, Stopping
from profiler.timing.warmup import warm_up
from roofline.op import OpGraph

PASSES = 3
"""Most timed passes in a row, with and without the profiler in turn; one untimed pass goes before each row."""
LONG_S = 0.5
"""A pass of this length needs no untimed pass before it: what changes between plain and profiled passes is over within
some milliseconds."""
ROUNDS = (3, 12)
"""Fewest and most rounds; between them the plain passes' precision and the time budget decide."""
WARM_UP_PART = 0.1
"""Of the time budget, the most for passes before the first sample."""
RULES = Rules(min_samples=ROUNDS[0] * PASSES, max_samples=ROUNDS[1] * PASSES, relative_width=0.01, noise_tolerance=0.0)
"""When the plain passes end: at a median known to 1 %, the size of a regression that is looked for."""

T = TypeVar("T")
Step = Callable[[str, float], None]
"""Told what begins, and how much of the cell is done by then, from 0 to 1."""


def rounds(
    runner: Runner,
    graph: OpGraph,
    *,
    budget_s: float,
    step: Step = lambda text, part: None,
    watch: Watch | None = None,
    probes: ReferenceProbes | None = None,
) -> PassTimes:
    """Samples of one pass for each operation of `graph`, within about `budget_s` seconds.

    A pass of which three rounds of `PASSES` do not fit the budget has fewer of them in a round, at least one.
    `probes`: timed before and after each round.

    Raises: SequenceMismatch if the device runs other operations than `graph`; InvalidMeasurement if the samples
    cannot be trusted; torch's own errors, out of memory among them.
    """
    with torch.no_grad(), _no_garbage_collection():
        step("warm-up", 0.1)
        began = time.monotonic()
        if not runner.finite():
            raise InvalidMeasurement("the logits are not finite: the pass computes something else than the model does")
        once_s = time.monotonic() - began
        warmed = WarmUp(calls=1, seconds=once_s, steady=False)
        if once_s < max(LONG_S, WARM_UP_PART * budget_s):  # a longer pass is its own warm-up
            warmed, once_s = warm_up(runner.once, PassClock(), min_s=0.0, max_s=WARM_UP_PART * budget_s, fewest=1)
        in_a_row = max(1, min(PASSES, int(budget_s / (2 * ROUNDS[0] * once_s))))
        runner.settles = once_s < LONG_S
        step("operations", 0.15)
        backends = _twice(lambda: runner.check(graph))
        wall: list[float] = []
        profiled: list[float] = []
        ratios: list[float] = []
        samples: list[Sample] = []
        windows: list[Window] = []
        costs: list[float] = []
        reference: dict[str, list[float]] = {}
        rules = replace(RULES, min_samples=ROUNDS[0] * in_a_row, max_samples=ROUNDS[1] * in_a_row)
        stopping = Stopping(rules.within(budget_s))
        why: Reason | None = None
        begin = time.monotonic()
        while why is None or len(ratios) < ROUNDS[0]:
            spent = max((time.monotonic() - begin) / budget_s, len(ratios) / ROUNDS[1])
            step(f"round {len(ratios) + 1}", 0.2 + 0.8 * min(1.0, spent))
            if watch is not None:
                watch.begin()
            for name, seconds in (probes.time() if probes is not None else {}).items():
                reference.setdefault(name, []).append(seconds)
            if runner.settles:
                runner.once()
            plain = [runner.once() for _ in range(in_a_row)]
            taken, walls = _twice(lambda: runner.profiled(in_a_row))
            for name, seconds in (probes.time() if probes is not None else {}).items():
                reference[name].append(seconds)
            if not runner.by_kernels:
                costs.append(event_cost_s())
            if watch is not None:
                windows.append(watch.end(2 * in_a_row))
            samples += taken
            wall += plain
            profiled += walls
            ratios.append(statistics.median(walls) / statistics.median(plain))
            elapsed_s = time.monotonic() - begin
            reasons = [stopping.add(s, timed_s=math.fsum(wall), elapsed_s=elapsed_s) for s in plain]
            why = next((reason for reason in reasons if reason), None)
    event_s = statistics.median(costs) if costs else 0.0
    found = runner.described(collect(samples, wall, profiled, ratios, backends, event_s))
    levels = {name: tuple(seconds) for name, seconds in reference.items()}
    return replace(found, warm_up=warmed, stop_reason=why, windows=tuple(windows), reference=levels)


class PassClock:
    """The clock of a call that tells its own time: a pass, which is timed without putting its inputs back."""

    name = "wall of a pass"
    replays = False

    def now(self) -> float:
        return time.monotonic()

    def time(self, call: Callable[[], object], repeats: int) -> float:
        return math.fsum(float(call()) for _ in range(repeats))  # type: ignore[arg-type]


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
