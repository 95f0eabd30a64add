"""Samples of one call's time until their median is known well enough, and the reason why sampling ended.

Warm-up first; then samples of at least `min_sample_s` each, until the 90 % interval of the median is narrow or a
limit is reached. Every sample is kept. The limits count the warm-up, so a budget holds.

Example: ``sample(lambda: torch.mm(a, b, out=c), clock_for(a.device), max_time_s=0.5).median_s``
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from profiler.timing.clock import Call, Clock

StopReason = Literal["precise", "time limit", "sample limit"]


@dataclass(frozen=True, slots=True)
class Samples:
    """Times of one call, in the order they were taken."""

    times_s: tuple[float, ...]
    """Seconds a call, mean of `repeats` calls in a row."""
    repeats: int
    stop_reason: StopReason
    clock: str

    @property
    def is_thin(self) -> bool:
        """Fewer than three samples: a middle one cannot be told from the others."""
        return len(self.times_s) < 3

    @property
    def median_s(self) -> float:
        return statistics.median(self.times_s)

    def quantile_s(self, q: float) -> float:
        """Linearly interpolated quantile, 0 ≤ q ≤ 1."""
        ordered = sorted(self.times_s)
        position = q * (len(ordered) - 1)
        low = math.floor(position)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def sample(
    call: Call,
    clock: Clock,
    *,
    min_samples: int = 5,
    max_samples: int = 1000,
    min_time_s: float = 0.05,
    max_time_s: float = 1.0,
    min_sample_s: float = 0.0,
    relative_width: float = 0.02,
) -> Samples:
    """Time `call` on `clock`.

    Ends as "precise" when the 90 % interval of the median is at most `relative_width` of it, after `min_samples` and
    `min_time_s` of timed work; as "time limit" after `max_time_s` on the host, warm-up included, with one sample at
    least; as "sample limit" after `max_samples`. Raises ArithmeticError where the clock gives no positive time.
    """
    if not 1 <= min_samples <= max_samples:
        raise ValueError(f"need 1 ≤ min_samples ≤ max_samples, not {min_samples} and {max_samples}")
    began = clock.now()
    clock.time(call, 1)  # lazy initialisation, allocation, page faults
    once = clock.time(call, 1)
    repeats = max(1, math.ceil(min_sample_s / once)) if once > 0 else 1
    if repeats > 1:
        # A single call overstates the time of one in a row: count again.
        repeats = max(1, math.ceil(min_sample_s * repeats / max(clock.time(call, repeats), 1e-9)))
    times: list[float] = []
    timed_s = 0.0
    while True:
        taken = clock.time(call, repeats)
        if not (math.isfinite(taken) and taken > 0):
            raise ArithmeticError(f"the clock ({clock.name}) gave {taken} s for {repeats} calls; measure more at once")
        times.append(taken / repeats)
        timed_s += taken
        reason: StopReason | None = None
        if clock.now() - began >= max_time_s:
            reason = "time limit"
        elif len(times) >= min_samples and timed_s >= min_time_s and is_precise(times, relative_width):
            reason = "precise"
        elif len(times) >= max_samples:
            reason = "sample limit"
        if reason:
            return Samples(tuple(times), repeats, reason, clock.name)


def is_precise(times_s: Sequence[float], relative_width: float) -> bool:
    """Whether the 90 % interval of the median is at most `relative_width` of the median."""
    low, high = median_interval(times_s)
    return high - low <= relative_width * statistics.median(times_s)


def median_interval(times_s: Sequence[float], confidence: float = 0.9) -> tuple[float, float]:
    """Interval that holds the median of independent samples with at least `confidence`, whatever their distribution.

    Order statistics k and n + 1 − k, with k the largest for which 2 P(Binomial(n, ½) < k) ≤ 1 − confidence
    (Conover, Practical Nonparametric Statistics, section 3.2). Too few samples: (0, inf).
    """
    k = _rank(len(times_s), confidence)
    if k == 0:
        return 0.0, math.inf
    ordered = sorted(times_s)
    return ordered[k - 1], ordered[-k]


@lru_cache(maxsize=4096)
def _rank(n: int, confidence: float) -> int:
    tail, k = 0.0, 0
    while k < n // 2 + 1:
        tail += math.exp(math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2))
        if 2 * tail > 1 - confidence:
            break
        k += 1
    return k
