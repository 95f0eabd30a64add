"""Samples of one call's time until a stop rule holds, with the conditions they were taken under.

Warm-up to a steady state first; then samples of at least `min_sample_s` each, until `Rules` end it: the median is
known well enough, the noise has stabilised, or a limit is reached. Every sample is kept. The time limit counts the
warm-up, so a budget holds.

Example: ``sample(lambda: torch.mm(a, b, out=c), clock_for(a.device), rules=Rules(max_time_s=0.5)).median_s``
"""

import math
import statistics
from dataclasses import dataclass

from profiler.devices.watch import Watch
from profiler.record.conditions import Window
from profiler.record.measurement import WarmUp, quantile_of
from profiler.timing.clock import Call, Clock
from profiler.timing.stopping import Reason, Rules, Stopping
from profiler.timing.warmup import warm_up

WARM_UP_PART = 0.25
"""Most of the time limit that warm-up may take."""
WINDOW_S = 0.25
"""Seconds of samples between two readings of the conditions: NVML's own figures are averages of 0.1 to 1 s."""


@dataclass(frozen=True, slots=True)
class Samples:
    """Times of one call, in the order they were taken."""

    times_s: tuple[float, ...]
    """Seconds a call, mean of `repeats` calls in a row."""
    repeats: int
    stop_reason: Reason
    clock: str
    warm_up: WarmUp
    windows: tuple[Window, ...] = ()

    @property
    def median_s(self) -> float:
        return statistics.median(self.times_s)

    def quantile_s(self, q: float) -> float:
        """Linearly interpolated quantile, 0 ≤ q ≤ 1."""
        return quantile_of(self.times_s, q)


def sample(
    call: Call,
    clock: Clock,
    *,
    rules: Rules | None = None,
    min_sample_s: float = 0.0,
    multiple: int = 1,
    warm_up_s: float = 0.0,
    watch: Watch | None = None,
) -> Samples:
    """Time `call` on `clock` until `rules` end it.

    `multiple`: repeats within a sample are a multiple of it where they are more than one, so that each sample goes
    round all operands in turn. Raises ArithmeticError where the clock gives no positive time.
    """
    rules = rules or Rules()
    began = clock.now()
    warmed, once_s = warm_up(call, clock, min_s=warm_up_s, max_s=max(warm_up_s, WARM_UP_PART * rules.max_time_s))
    repeats = _repeats(call, clock, once_s, min_sample_s, multiple)
    stopping = Stopping(rules)
    times: list[float] = []
    timed_s = 0.0
    windows: list[Window] = []
    open_since, first = clock.now(), 0
    if watch is not None:
        watch.begin()
    while True:
        taken = clock.time(call, repeats)
        if not (math.isfinite(taken) and taken > 0):
            raise ArithmeticError(f"the clock ({clock.name}) gave {taken} s for {repeats} calls; measure more at once")
        times.append(taken / repeats)
        timed_s += taken
        now = clock.now()
        reason = stopping.add(taken / repeats, timed_s=timed_s, elapsed_s=now - began)
        if watch is not None and (reason or now - open_since >= WINDOW_S):
            windows.append(watch.end(len(times) - first))
            open_since, first = clock.now(), len(times)
            if reason is None:
                watch.begin()
        if reason:
            return Samples(tuple(times), repeats, reason, clock.name, warmed, tuple(windows))


def _repeats(call: Call, clock: Clock, once_s: float, min_sample_s: float, multiple: int) -> int:
    if once_s >= min_sample_s:
        return multiple if clock.replays else 1
    repeats = math.ceil(min_sample_s / max(once_s, 1e-9))
    # A single call overstates the time of one in a row: count again.
    repeats = math.ceil(min_sample_s * repeats / max(clock.time(call, repeats), 1e-9))
    return multiple * math.ceil(max(1, repeats) / multiple)
