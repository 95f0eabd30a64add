"""Plateaus and knees of a working-set curve: which levels of memory a device shows, and how much each holds.

A capacity read from a data sheet is not what a kernel gets of it (shared slices, other tenants, hashed sets), so the
levels are read off the curve: bandwidth against working set is flat while a level holds all of it, falls over an octave
or two, and is flat again. The curve, in logarithms, is cut into plateaus (a constant), slopes (a line) and lone points
such that the squared residuals over the noise plus a price for every piece are least: optimal segmentation by dynamic
programming (Bellman 1961; Jackson et al., IEEE Signal Processing Letters 12, 2005) of a Potts functional whose price
is that of the Bayesian information criterion, ln n for each constant fitted and each place cut. The noise is estimated
from second differences, which neither plateaus nor slopes move.

Contract: slopes and lone points are no levels; plateaus less than `DISTINCT` apart are one level (a lone bad point in
a level does not cut it); a level seen over less than an octave, or at fewer than three sizes, is absent. A curve that
falls all along has no plateau. Noise of 5 % a size is well within reach at four sizes an octave.

Example: ``knees(sizes, plateaus(sizes, rates))`` for a cache of 32 MiB is ``(3.3e7,)``, give or take a step of sizes.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

DISTINCT = 1.15
"""Ratio of the rates of two levels, at least."""
OCTAVES = 2.0
"""Of working set within which one level gives way to the next."""
STEEPEST_LEVEL = math.log(DISTINCT) / OCTAVES
"""Slope of log rate an octave from which a line is a transition: two distinct levels over the widest one. Flatter
lines are levels with a tilt."""
FEWEST = 3
"""Sizes of a plateau."""
NOISE_FLOOR = 0.005
"""Of log rate: a plateau is never flatter than this, however well a size repeats."""
BEND = float(norm.ppf(0.75)) * math.sqrt(6)
"""Median of the absolute second difference y₋ − 2 y + y₊ of normal noise, in its deviations."""
WITHIN = 1.5
"""Noises from a plateau's level within which a neighbouring size is still on it. A size on it is missed in 13 % of the
cases, one whose rate has fallen by twice as much is taken for one on it in 7 %."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Plateau:
    """A level of memory, as far as the curve shows it."""

    first_bytes: int
    """Smallest working set on it."""
    last_bytes: int
    """Largest working set on it: the level holds at least this much."""
    rate: float
    """Median of its sizes, in the unit given."""


def plateaus(sizes: Sequence[int], rates: Sequence[float]) -> tuple[Plateau, ...]:
    """Levels of the curve, from small to large working sets; empty where nothing is flat.

    `sizes` in bytes, strictly ascending; `rates` as many, in any unit. Raises ValueError otherwise, or for a rate or
    size that is not finite and positive.
    """
    octaves, logs = _checked(sizes, rates)
    if len(sizes) < FEWEST:
        return ()
    spans = _extended(_merged(_segmented(octaves, logs), logs), logs)
    return tuple(Plateau(sizes[i], sizes[j], math.exp(np.median(logs[i : j + 1]))) for i, j in spans)


def knees(sizes: Sequence[int], found: Sequence[Plateau]) -> tuple[float, ...]:
    """Capacities in bytes: between the last size on a plateau and the next size, where a slower plateau follows.

    The fall begins there, however many octaves it takes. Steps up (small calls that are mostly overhead) are none.
    """
    falls = [a for a, b in itertools.pairwise(found) if a.rate > b.rate]
    return tuple(math.sqrt(a.last_bytes * sizes[list(sizes).index(a.last_bytes) + 1]) for a in falls)


def noise(logs: Floats) -> float:
    """Standard deviation of independent noise on a curve of few corners.

    From the median of the absolute second differences; at least `NOISE_FLOOR`. Corners at a quarter of the sizes make
    it a third too large.
    """
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
    best = np.zeros(n + 1)  # best[j]: of the first j sizes
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
    """Cost of one piece from size i to size j, (n, n), and whether it is a plateau; infinite below the diagonal."""
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
    """Neighbours less than `DISTINCT` apart joined, the closest first."""
    while len(spans) > 1:
        levels = [float(np.median(logs[i : j + 1])) for i, j in spans]
        gaps = [abs(a - b) for a, b in itertools.pairwise(levels)]
        closest = int(np.argmin(gaps))
        if gaps[closest] >= math.log(DISTINCT):
            break
        spans = [*spans[:closest], (spans[closest][0], spans[closest + 1][1]), *spans[closest + 2 :]]
    return spans


def _extended(spans: list[tuple[int, int]], logs: Floats) -> list[tuple[int, int]]:
    """Each plateau up to the furthest size of the gaps beside it that is as high: a slope or a lone point has no
    reason to stop where it begins, and takes sizes of the plateau along when they are noisy."""
    reach = WITHIN * noise(logs)
    levels = [float(np.median(logs[i : j + 1])) for i, j in spans]
    found: list[tuple[int, int]] = []
    for k, (level, (i, j)) in enumerate(zip(levels, spans, strict=True)):
        begin = found[-1][1] + 1 if found else 0
        end = spans[k + 1][0] if k + 1 < len(spans) else len(logs)
        alike = np.flatnonzero(np.abs(logs[begin:end] - level) <= reach) + begin
        found.append((min(i, *alike), max(j, *alike)) if len(alike) else (i, j))
    return found
