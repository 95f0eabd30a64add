"""The levels of a device's memory that a curve of bandwidth over working set shows: its plateaus and knees.

The curve is flat while a level holds all of the working set. In logarithms, it is cut into plateaus (a constant),
slopes (a line) and lone points such that the squared residuals over the noise plus a price for every piece are least:
optimal segmentation by dynamic programming (Bellman 1961; Jackson et al., IEEE Signal Processing Letters 12, 2005) of a
Potts functional with the price of the Bayesian information criterion, ln n for each fitted constant and each cut.
Plateaus less than `DISTINCT` apart are one level; a level over less than an octave or at fewer than three sizes is not
seen.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from profiler.record.measurement import DISTINCT

OCTAVES = 2.0
"""Octaves of working set within which one level gives way to the next."""
STEEPEST_LEVEL = math.log(DISTINCT) / OCTAVES
"""Slope of log rate an octave above which a line leads from one level to the next (two distinct levels)."""
FEWEST = 3
"""Least number of sizes of a plateau."""
NOISE_FLOOR = 0.005
"""Least noise of a log rate, however well a size repeats."""
BEND = float(norm.ppf(0.75)) * math.sqrt(6)
"""Median of the absolute second difference y₋ − 2 y + y₊ of normal noise, in its deviations."""
WITHIN = 1.5
"""Deviations of the noise from a plateau's level within which a neighbouring size is on it: 13 % of the sizes on it are
missed, and 7 % of those whose rate has fallen by twice as much are taken for one on it."""
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Plateau:
    """A level of memory as the curve shows it."""

    first_bytes: int
    """Smallest working set on the plateau."""
    last_bytes: int
    """Largest working set on the plateau: the level holds at least this much."""
    rate: float
    """Median rate of the plateau's sizes, in the given unit."""


def plateaus(sizes: Sequence[int], rates: Sequence[float]) -> tuple[Plateau, ...]:
    """Levels of the curve, from small to large working sets; empty where nothing is flat. `sizes` in bytes, strictly
    ascending; `rates` as many, in any unit. Raises ValueError otherwise, or for a rate or size that is not positive and
    finite."""
    octaves, logs = _checked(sizes, rates)
    if len(sizes) < FEWEST:
        return ()
    spans = _extended(_merged(_segmented(octaves, logs), logs), logs)
    return tuple(Plateau(sizes[i], sizes[j], math.exp(np.median(logs[i : j + 1]))) for i, j in spans)


def knees(sizes: Sequence[int], levels: Sequence[Plateau]) -> tuple[float, ...]:
    """Capacities in bytes: between the last size on a plateau and the next size, where a slower plateau follows. Steps
    up (small calls that are mostly overhead) are no capacities."""
    falls = [a for a, b in itertools.pairwise(levels) if a.rate > b.rate]
    return tuple(math.sqrt(a.last_bytes * sizes[list(sizes).index(a.last_bytes) + 1]) for a in falls)


def noise(logs: Floats) -> float:
    """Standard deviation of independent noise on a curve of few corners, at least `NOISE_FLOOR`. It comes from the
    median of the absolute second differences; corners at a quarter of the sizes make it a third too large."""
    bends = np.abs(np.diff(logs, 2))
    return max(NOISE_FLOOR, float(np.median(bends)) / BEND)


def _checked(sizes: Sequence[int], rates: Sequence[float]) -> tuple[Floats, Floats]:
    if len(sizes) != len(rates):
        raise ValueError(f"a rate for each size: {len(sizes)} sizes, {len(rates)} rates")
    both = np.asarray([sizes, rates], dtype=np.float64)
    if not (np.isfinite(both).all() and (both > 0).all()):
        raise ValueError("sizes and rates are finite and positive; leave out the sizes that failed")
    if (np.diff(both[0]) <= 0).any():
        raise ValueError("sizes ascend, each once; sort them and join their samples")
    return np.log2(both[0]), np.log(both[1])


def _segmented(octaves: Floats, logs: Floats) -> list[tuple[int, int]]:
    """(first, last) index of each plateau of the cheapest segmentation."""
    cost, is_flat = _piece_costs(octaves, logs)
    n = len(logs)
    best = np.zeros(n + 1)  # best[j]: cost of the first j sizes
    begins = np.zeros(n + 1, dtype=int)
    for j in range(1, n + 1):
        through = best[:j] + cost[:j, j - 1]
        begins[j] = int(through.argmin())
        best[j] = through[begins[j]]
    flat = []
    j = n
    while j > 0:
        i = int(begins[j])
        if is_flat[i, j - 1]:
            flat.append((i, j - 1))
        j = i
    return flat[::-1]


def _piece_costs(octaves: Floats, logs: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """Cost of a piece from size i to size j, (n, n), and whether it is a plateau; infinite below the diagonal."""
    x, y = octaves - octaves.mean(), logs - logs.mean()
    n = len(x)
    first, last = np.indices((n, n))
    count = np.maximum(last - first + 1, 1)

    def within(values: Floats) -> Floats:
        sums = np.concatenate([[0.0], np.cumsum(values)])
        return sums[last + 1] - sums[first]

    sx, sy = within(x), within(y)
    sxx = within(x * x) - sx**2 / count
    sxy = within(x * y) - sx * sy / count
    syy = np.maximum(within(y * y) - sy**2 / count, 0)
    slope = np.divide(sxy, sxx, out=np.zeros((n, n)), where=last > first)
    variance, price = noise(logs) ** 2, math.log(n)
    flat = np.where((count >= FEWEST) & (x[last] - x[first] >= 1 - 1e-9), syy / variance + 2 * price, np.inf)
    line = np.maximum(syy - slope * sxy, 0) / variance + 3 * price
    line = np.where((last > first) & (np.abs(slope) >= STEEPEST_LEVEL), line, np.inf)
    line = np.where(last == first, 2 * price, line)  # a lone point: its level and its place
    cost = np.where(last >= first, np.minimum(flat, line), np.inf)
    return cost, (last > first) & (flat <= line)


def _merged(spans: list[tuple[int, int]], logs: Floats) -> list[tuple[int, int]]:
    """The spans with neighbours less than `DISTINCT` apart joined, the closest first."""
    while len(spans) > 1:
        levels = [float(np.median(logs[i : j + 1])) for i, j in spans]
        gaps = [abs(a - b) for a, b in itertools.pairwise(levels)]
        closest = int(np.argmin(gaps))
        if gaps[closest] >= math.log(DISTINCT):
            break
        spans = [*spans[:closest], (spans[closest][0], spans[closest + 1][1]), *spans[closest + 2 :]]
    return spans


def _extended(spans: list[tuple[int, int]], logs: Floats) -> list[tuple[int, int]]:
    """Each plateau extended over the gaps beside it to the furthest size that is as high: slopes take noisy sizes
    along."""
    reach = WITHIN * noise(logs)
    levels = [float(np.median(logs[i : j + 1])) for i, j in spans]
    wider: list[tuple[int, int]] = []
    for k, (level, (i, j)) in enumerate(zip(levels, spans, strict=True)):
        begin = wider[-1][1] + 1 if wider else 0
        end = spans[k + 1][0] if k + 1 < len(spans) else len(logs)
        alike = np.flatnonzero(np.abs(logs[begin:end] - level) <= reach) + begin
        wider.append((min(i, *alike), max(j, *alike)) if len(alike) else (i, j))
    return wider
