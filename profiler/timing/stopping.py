"""The rules that stop sampling, for one of four reasons.

- "time limit": the host's time is spent. It wins over all others.
- "precise": the 90 % order-statistic interval of the median is narrow against the median. So is the interval that
  the interquartile range gives (`NOTCH`), and the medians of the two halves of the samples agree as closely: a warm-up
  or a change of clock is not averaged away. Samples that fall into two modes (`modes`) are never precise, since their
  median is either mode by luck; while they are too few to tell, nearly all must lie close together (`NEARLY_ALL`).
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
NEARLY_ALL, FARTHEST = 0.999, 3.0
"""Confidence of a second interval of the median that "precise" asks for, and its widest width in widths of the first.
Of normal noise it is twice as wide (3.29 ÷ 1.645); of two equal modes it spans both, but once in a thousand looks."""
RARER_MODE = 0.25
"""Least share of the samples in the rarer of two modes: below, the interval of the median leaves it out, and what is
rare is a disturbance."""
MODES_APART = 0.01
"""Distance of two modes, as a share of their time, below which they are one."""
VALLEY = 0.005
"""Probability of as few samples between two modes where their density had no valley there, below which it has one. Of
simulated normal, lognormal, exponential, triangular and uniform samples, 4 in 1,000 at most are taken for two modes."""
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
        low, high = _between(self._ordered, NEARLY_ALL) or (self._ordered[0], self._ordered[-1])
        if high - low > FARTHEST * widest:
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
    (Conover, Practical Nonparametric Statistics, section 3.2). Too few samples: (0, inf). Where samples fall into two
    modes, it covers both.
    """
    ordered = sorted(times_s)
    if (interval := _between(ordered, confidence)) is None:
        return 0.0, math.inf
    two = modes(ordered)
    return interval if two is None else (min(interval[0], two.low_s), max(interval[1], two.high_s))


def _between(ordered: Sequence[float], confidence: float) -> tuple[float, float] | None:
    """The order statistics of `median_interval`; None for too few samples."""
    count, k = len(ordered), 0
    while bdtr(k, count, 0.5) <= (1 - confidence) / 2:
        k += 1
    return (ordered[k - 1], ordered[-k]) if k else None


@dataclass(frozen=True, slots=True)
class Modes:
    """Two modes that samples fall into."""

    low_s: float
    """Median of the samples of the faster mode."""
    high_s: float
    low_share: float
    """Share of the samples in the faster mode."""


def modes(times_s: Sequence[float]) -> Modes | None:
    """The two modes of positive samples; None where they may as well have one.

    The samples' logarithms are split where the variance between both parts is largest (Otsu, A threshold selection
    method from gray-level histograms, 1979). Between the parts' medians a density with one mode is nowhere below the
    smaller of its values at both, and neither is its average over a window (Ibragimov 1956), so the samples within
    equal windows at the middle and at the rarer median are compared: as few in the middle by chance is a binomial tail.
    """
    logs = np.log(np.sort(np.asarray(times_s, dtype=float)))
    count = len(logs)
    if count < 2 or logs[-1] - logs[0] < MODES_APART:
        return None
    sizes = np.arange(1, count)
    sums = np.cumsum(logs)
    between = sizes * (count - sizes) * ((sums[-1] - sums[:-1]) / (count - sizes) - sums[:-1] / sizes) ** 2
    split = int(np.argmax(between)) + 1
    low, high = float(np.median(logs[:split])), float(np.median(logs[split:]))
    apart = high - low
    if apart < MODES_APART or min(split, count - split) < RARER_MODE * count:
        return None

    def near(at: float) -> int:
        return int(np.searchsorted(logs, at + apart / 4, "right") - np.searchsorted(logs, at - apart / 4, "left"))

    middle, rarer = near((low + high) / 2), min(near(low), near(high))
    if bdtr(middle, middle + rarer, 0.5) > VALLEY:
        return None
    return Modes(low_s=math.exp(low), high_s=math.exp(high), low_share=split / count)


def relative_noise(ordered_s: Sequence[float]) -> float:
    """Interquartile range over median of samples in ascending order: 1.35 standard deviations of normal noise."""
    return (quantile_of_sorted(ordered_s, 0.75) - quantile_of_sorted(ordered_s, 0.25)) / quantile_of_sorted(
        ordered_s, 0.5
    )
