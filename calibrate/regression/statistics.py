"""Differences of two sides from replicates of fresh processes: log ratio, interval, moderated variance, error rates.

A replicate is the time of a kernel in one process: samples of one process share its memory layout, clocks and caches,
so that they say nothing about the next. Times are compared by their logarithms, and a log ratio above 0 is slower.

- One process in a hundred is far off, so that means are trimmed by a fifth at either end, with Yuen's errors
  (Biometrika 61(1), 1974).
- Ten pairs leave five degrees of freedom. Kernels of a suite are alike in their noise, so their variances are shrunk
  towards a common one as far as they agree (Smyth, Stat. Appl. Genet. Mol. Biol. 3(1), 2004, sections 3 and 6.2).

Example::

    moderated(paired(np.log(new_s / base_s))).p_slower()    # new_s, base_s: shape (kernels, pairs)
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import digamma, polygamma, stdtr, stdtrit

Array = NDArray[np.float64]

TRIM = 0.2
"""Share of the replicates that is left out at either end, the usual one (Wilcox, Introduction to Robust Estimation)."""
LEAST_ROWS = 10
"""Kernels from which on a suite says how large their noise is; a prior from fewer would itself be noise."""
LEAST_SHARE = 1e-5
"""Variances below this share of the median are raised to it, as in limma's fitFDist: their logarithms count."""


@dataclass(frozen=True, slots=True)
class Estimates:
    """Log ratios new ÷ base of several kernels; all arrays have the shape (kernels,)."""

    value: Array
    error: Array
    """Standard errors; infinite where a side has one replicate."""
    freedom: Array
    """Degrees of freedom of the errors; infinite for a known one."""
    size: Array
    """Replicates after trimming that a variance belongs to: (variance ÷ size) ** 0.5 is the error."""

    def half(self, covered: float) -> Array:
        """Half the width of the interval that covers the log ratio with this probability."""
        return np.where(np.isfinite(self.error), self.error * stdtrit(self._freedom, (1 + covered) / 2), np.inf)

    def p_slower(self, least: float = 0.0) -> Array:
        """One-sided p of the hypothesis that the log ratio is at most `least`; 1 where there is no interval."""
        return self._p(self.value - least)

    def p_faster(self, least: float = 0.0) -> Array:
        """One-sided p of the hypothesis that the log ratio is at least −`least`."""
        return self._p(-self.value - least)

    def p_different(self) -> Array:
        """Two-sided p of the hypothesis that both sides are alike."""
        return np.minimum(2 * self._p(np.abs(self.value)), 1.0)

    def _p(self, distance: Array) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.where(self.error > 0, distance / self.error, np.where(distance > 0, np.inf, -np.inf))
        return np.where(np.isfinite(self.error), stdtr(self._freedom, -t), 1.0)

    @property
    def _freedom(self) -> Array:
        """scipy's stdtr needs a finite number; beyond 10⁹ Student's distribution is the normal one."""
        return np.minimum(self.freedom, 1e9)


def paired(log_ratios: Array) -> Estimates:
    """Trimmed means of paired log ratios, shape (kernels, pairs), one pair in its own neighbourhood of time."""
    mean, variance, size = _trimmed(np.asarray(log_ratios, dtype=float))
    return Estimates(mean, np.sqrt(variance / size), np.full(len(mean), max(size - 1.0, 1.0)), np.full(len(mean), size))


def unpaired(base: Array, new: Array) -> Estimates:
    """The difference of trimmed means of log times, shapes (kernels, replicates of a side), as Yuen and Welch have it.

    The same as ``scipy.stats.ttest_ind(new, base, equal_var=False, trim=TRIM)``, for all kernels at once.
    """
    (m0, v0, n0), (m1, v1, n1) = _trimmed(np.asarray(base, dtype=float)), _trimmed(np.asarray(new, dtype=float))
    e0, e1 = v0 / n0, v1 / n1
    squared = e0 + e1
    size = 1 / (1 / n0 + 1 / n1)
    if min(n0, n1) < 2:
        return Estimates(m1 - m0, np.sqrt(squared), np.ones(len(m0)), np.full(len(m0), size))
    with np.errstate(invalid="ignore", divide="ignore"):
        freedom = squared**2 / (e0**2 / (n0 - 1) + e1**2 / (n1 - 1))
    freedom = np.where(np.isfinite(freedom), freedom, n0 + n1 - 2)
    return Estimates(m1 - m0, np.sqrt(squared), freedom, np.full(len(m0), size))


def single(base: Array, new: Array, spread: float) -> Estimates:
    """Differences where a side has one replicate, by a known `spread`: the standard deviation of a log time from
    process to process, as an earlier self-test found it."""
    log0, log1 = np.asarray(base, dtype=float), np.asarray(new, dtype=float)
    size = 1 / (1 / log0.shape[1] + 1 / log1.shape[1])
    count = len(log0)
    value = np.median(log1, axis=1) - np.median(log0, axis=1)
    return Estimates(value, np.full(count, spread / math.sqrt(size)), np.full(count, math.inf), np.full(count, size))


def joined(parts: Sequence[Estimates]) -> Estimates:
    """All kernels of several estimates, in order."""
    return Estimates(*(np.concatenate([getattr(part, name) for part in parts]) for name in Estimates.__slots__))


def moderated(estimates: Estimates) -> Estimates:
    """The same values with errors whose variances are shrunk towards the suite's; unchanged for a small suite."""
    known = np.isfinite(estimates.error) & np.isfinite(estimates.freedom)
    if np.count_nonzero(known) < LEAST_ROWS:
        return estimates
    variance = np.where(known, estimates.error**2 * estimates.size, 1.0)
    common, strength = _prior(variance[known], estimates.freedom[known])
    freedom = np.where(known, estimates.freedom, 1.0)
    if math.isinf(strength):
        shrunk, total = np.full(len(variance), common), np.full(len(variance), math.inf)
    else:
        shrunk = (strength * common + freedom * variance) / (strength + freedom)
        total = np.minimum(strength + freedom, freedom[known].sum())
    return Estimates(
        estimates.value,
        np.where(known, np.sqrt(shrunk / estimates.size), estimates.error),
        np.where(known, total, estimates.freedom),
        estimates.size,
    )


def _trimmed(values: Array) -> tuple[Array, Array, float]:
    """Trimmed mean, variance ("winsorized", divided so that variance ÷ size is the mean's), and size after trimming."""
    count = values.shape[1]
    cut = int(TRIM * count)
    size = count - 2 * cut
    ordered = np.sort(values, axis=1)
    mean = ordered[:, cut : count - cut].mean(axis=1)
    if count < 2:
        return mean, np.full(len(values), math.inf), float(size)
    held = np.clip(ordered, ordered[:, cut : cut + 1], ordered[:, count - cut - 1 : count - cut])
    squares = ((held - held.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
    return mean, squares / (size - 1), float(size)


def _prior(variance: Array, freedom: Array) -> tuple[float, float]:
    """The variance that kernels have in common, and how many degrees of freedom it is worth (infinite: all alike)."""
    middle = float(np.median(variance))
    if middle == 0:
        return 0.0, math.inf
    logs = np.log(np.maximum(variance, LEAST_SHARE * middle)) - digamma(freedom / 2) + np.log(freedom / 2)
    excess = float(np.var(logs, ddof=1) - polygamma(1, freedom / 2).mean())
    if excess <= 0:
        return math.exp(float(logs.mean())), math.inf
    strength = 2 * _solve(lambda x: float(polygamma(1, x)), lambda x: float(polygamma(2, x)), excess)
    return math.exp(float(logs.mean()) + float(digamma(strength / 2)) - math.log(strength / 2)), strength


def _solve(function: Callable[[float], float], slope: Callable[[float], float], wanted: float) -> float:
    """The argument at which trigamma has this value: Newton's method on its reciprocal, which is convex (limma)."""
    x = 0.5 + 1 / wanted
    for _ in range(50):
        step = function(x) * (1 - function(x) / wanted) / slope(x)
        x += step
        if -step / x < 1e-8:
            break
    return x
