"""The rules that stop sampling, for one of four reasons.

- "time limit": the host's time is spent. It wins over all others.
- "precise": the 90 % order-statistic interval of the median is narrow against the median. So is the interval that
  the interquartile range gives (`NOTCH`): the first one alone is narrow by luck where samples fall into two modes (in a
  third of the runs of two equal modes; with both, in a ninth). And the medians of the two halves of the samples agree
  as closely: a warm-up or a change of clock is not averaged away.
- "noise stable": the noise itself, interquartile range over median, no longer changes: after nvbench's stdrel criterion
  (nvbench/detail/stdrel_criterion.cxx), but of quartiles, because one stall moves a standard deviation, and over the
  latter half of the samples, because a noise that falls as 1/√n looks stable through any window of fixed length. It is
  for figures whose noise is part of the result; `noise_tolerance=0` turns it off.
- "sample limit": as many samples as are allowed.

Precision and noise are checked at counts that grow by a twentieth, so that 10⁴ samples cost what sorting them does.

Example::

    stopping = Stopping(Rules(max_time_s=2.0))
    while (why := stopping.add(taken, timed_s, clock.now() - began)) is None: ...
"""

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy.special import bdtr

from profiler.record.measurement import quantile_of_sorted

Reason = Literal["precise", "noise stable", "time limit", "sample limit"]

CONFIDENCE = 0.9
"""Confidence of the interval of the median."""
NOTCH = 3.06
"""Width of the 90 % interval of a normal sample's median, in interquartile ranges over √n: 2 × 1.645 × 1.253 ÷ 1.349
(McGill, Tukey and Larsen, Variations of box plots, 1978: notches)."""
GROWTH = 1.05
"""Growth from one count at which precision and noise are looked at to the next, at least by one sample."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The limits at which sampling stops."""

    min_samples: int = 10
    """Samples before "precise"; nvbench's minimum. Of 10 samples the interval spans the 2nd to the 9th."""
    max_samples: int = 10_000
    """Samples at which it ends in any case."""
    min_time_s: float = 0.05
    """Seconds of timed work before "precise" and "noise stable": shorter than a clock or power excursion is luck."""
    max_time_s: float = 1.0
    """Seconds on the host after which it ends in any case, warm-up included."""
    relative_width: float = 0.02
    """Widest interval of the median that is precise, as a share of the median. 0: never precise unless exact."""
    noise_samples: int = 64
    """Samples before "noise stable", and the fewest in its window."""
    noise_tolerance: float = 0.05
    """Spread of the noise within the window, as a share of its mean, below which it no longer changes. 0: never."""

    def __post_init__(self) -> None:
        if not 1 <= self.min_samples <= self.max_samples:
            raise ValueError(f"need 1 ≤ min_samples ≤ max_samples, not {self.min_samples} and {self.max_samples}")
        if not 0 <= self.min_time_s <= self.max_time_s:
            raise ValueError(f"need 0 ≤ min_time_s ≤ max_time_s, not {self.min_time_s} and {self.max_time_s}")
        if self.noise_samples < 64:
            raise ValueError(
                f"quartiles of {self.noise_samples} samples say little about noise; need noise_samples ≥ 64"
            )
        if not (self.relative_width >= 0 and self.noise_tolerance >= 0):
            raise ValueError("relative_width and noise_tolerance are shares, 0 or more")

    def within(self, seconds: float) -> "Rules":
        """The same rules with another time limit."""
        return replace(self, min_time_s=min(self.min_time_s, seconds), max_time_s=seconds)


class Stopping:
    """The rules over a growing sequence of samples; a sample costs an insertion into a sorted list."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self._times: list[float] = []
        self._ordered: list[float] = []
        self._noises: list[float] = []
        self._next_look = rules.min_samples

    def add(self, sample_s: float, timed_s: float, elapsed_s: float) -> Reason | None:
        """Reason to stop after this sample, or None.

        `sample_s` is seconds a call; `timed_s` the seconds of timed work and `elapsed_s` those on the host's clock,
        warm-up included, both in all so far. Raises ValueError for a sample that is not finite and positive.
        """
        if not (math.isfinite(sample_s) and sample_s > 0):
            raise ValueError(f"a sample is finite and positive, not {sample_s} s")
        self._times.append(sample_s)
        bisect.insort(self._ordered, sample_s)
        self._noises.append(relative_noise(self._ordered))
        count = len(self._times)
        look = count == self._next_look
        if look:
            self._next_look = max(count + 1, math.ceil(GROWTH * count))
        if elapsed_s >= self.rules.max_time_s:
            return "time limit"
        if look and timed_s >= self.rules.min_time_s:
            if self._is_precise():
                return "precise"
            if self._is_stable():
                return "noise stable"
        return "sample limit" if count >= self.rules.max_samples else None

    def _is_precise(self) -> bool:
        count, width = len(self._times), self.rules.relative_width
        if NOTCH * self._noises[-1] > width * math.sqrt(count):
            return False
        widest = width * quantile_of_sorted(self._ordered, 0.5)
        low, high = median_interval(self._ordered)
        if high - low > widest:
            return False
        first, second = self._times[: count // 2], self._times[count // 2 :]
        return bool(abs(np.median(first) - np.median(second)) <= widest)

    def _is_stable(self) -> bool:
        window = max(self.rules.noise_samples, len(self._noises) // 2)
        if len(self._noises) < window:
            return False
        recent = np.array(self._noises[-window:])
        return bool(recent.std() < self.rules.noise_tolerance * recent.mean())


def median_interval(times_s: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Interval that holds the median of independent samples with at least `confidence`, whatever their distribution.

    Order statistics k and n + 1 − k, with k the largest for which 2 P(Binomial(n, ½) < k) ≤ 1 − confidence
    (Conover, Practical Nonparametric Statistics, section 3.2). Too few samples: (0, inf).
    """
    count, k = len(times_s), 0
    while bdtr(k, count, 0.5) <= (1 - confidence) / 2:
        k += 1
    if k == 0:
        return 0.0, math.inf
    ordered = sorted(times_s)
    return ordered[k - 1], ordered[-k]


def relative_noise(ordered_s: Sequence[float]) -> float:
    """Interquartile range over median of samples in ascending order: 1.35 standard deviations of normal noise."""
    return (quantile_of_sorted(ordered_s, 0.75) - quantile_of_sorted(ordered_s, 0.25)) / quantile_of_sorted(
        ordered_s, 0.5
    )
