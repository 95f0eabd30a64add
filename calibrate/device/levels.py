"""Which levels of the memory hierarchy a device shows, and how much each holds: from bandwidths, not from statements.

`ladder` takes bandwidths on working sets that stand for each stated cache. A level's bandwidth is the best of the
kernels on it. The last-level cache may be shared with others, of whom a virtual machine does not tell: its capacity is
twice the largest working set at which its bandwidth still shows. A level that is not distinctly faster than the next
one is merged into it, so no level is slower than a larger one.

`plateaus` and `knees` take a whole working-set curve. A capacity read from a data sheet is not what a kernel gets of it
(shared slices, other tenants, hashed sets), so the levels are read off the curve: bandwidth against working set is flat
while a level holds all of it, falls over an octave or two, and is flat again. The curve, in logarithms, is cut into
plateaus (a constant), slopes (a line) and lone points such that the squared residuals over the noise plus a price for
every piece are least: optimal segmentation by dynamic programming (Bellman 1961; Jackson et al., IEEE Signal Processing
Letters 12, 2005) of a Potts functional whose price is that of the Bayesian information criterion, ln n for each
constant fitted and each place cut. The noise is estimated from second differences, which neither plateaus nor slopes
move.

Contract: slopes and lone points are no levels; plateaus less than `DISTINCT` apart are one level (a lone bad point in
a level does not cut it); a level seen over less than an octave, or at fewer than three sizes, is absent. A curve that
falls all along has no plateau. Noise of 5 % a size is well within reach at four sizes an octave.

Example: ``knees(sizes, plateaus(sizes, rates))`` for a cache of 32 MiB is ``(3.3e7,)``, give or take a step of sizes.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from profiler.record.measurement import DISTINCT, Capacity

OCTAVES = 2.0
"""Octaves of working set within which one level gives way to the next."""
STEEPEST_LEVEL = math.log(DISTINCT) / OCTAVES
"""Slope of log rate an octave from which a line is a transition: two distinct levels over the widest one. Flatter
lines are levels with a tilt."""
FEWEST = 3
"""Sizes of a plateau."""
NOISE_FLOOR = 0.005
"""Least noise of a log rate: a plateau is never flatter than this, however well a size repeats."""
BEND = float(norm.ppf(0.75)) * math.sqrt(6)
"""Median of the absolute second difference y₋ − 2 y + y₊ of normal noise, in its deviations."""
WITHIN = 1.5
"""Noises from a plateau's level within which a neighbouring size is still on it. A size on it is missed in 13 % of the
cases, one whose rate has fallen by twice as much is taken for one on it in 7 %."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Reached:
    """The bandwidth of a kernel on a working set."""

    kernel: str
    working_set_bytes: int
    bytes_per_s: float


@dataclass(frozen=True, slots=True)
class MeasuredLevel:
    """One level with the best kernel on it."""

    name: str
    capacity_bytes: int
    """What this process gets of it, at most what the system says."""
    stated_bytes: int
    best: Reached


def ladder(
    main: MeasuredLevel, caches: Mapping[Capacity, Sequence[Reached]]
) -> tuple[tuple[MeasuredLevel, ...], dict[str, str]]:
    """Main memory and, outwards from it, each cache (given from the smallest) that is distinctly faster.

    Also the reason of each level that was merged into the next, or has no figure at all.
    """
    kept = [main]
    reasons: dict[str, str] = {}
    for cache in reversed(list(caches)):
        if not caches[cache]:
            reasons[cache.name] = "no kernel has a result on it"
            continue
        outer = kept[0]
        level = shown(cache, caches[cache], outer.best.bytes_per_s)
        if level is None:
            reached = max(kernel.bytes_per_s for kernel in caches[cache])
            how = "slower than" if reached < outer.best.bytes_per_s else f"not {DISTINCT - 1:.0%} above"
            reasons[cache.name] = (
                f"merged into {outer.name}: {reached / 1e9:.1f} GB/s is {how} {outer.best.bytes_per_s / 1e9:.1f} GB/s"
            )
        else:
            kept.insert(0, level)
    return tuple(kept), reasons


def shown(cache: Capacity, kernels: Sequence[Reached], outer_bytes_per_s: float) -> MeasuredLevel | None:
    """The largest working set that is about as fast as the fastest; None if none is distinct from the next level."""
    by_size: dict[int, Reached] = {}
    for kernel in kernels:
        best = by_size.get(kernel.working_set_bytes)
        if best is None or kernel.bytes_per_s > best.bytes_per_s:
            by_size[kernel.working_set_bytes] = kernel
    fastest = max(best.bytes_per_s for best in by_size.values())
    if fastest < DISTINCT * outer_bytes_per_s:
        return None
    least = max(fastest / DISTINCT, DISTINCT * outer_bytes_per_s)
    chosen = max((best for best in by_size.values() if best.bytes_per_s >= least), key=lambda b: b.working_set_bytes)
    return MeasuredLevel(cache.name, min(cache.bytes, 2 * chosen.working_set_bytes), cache.bytes, chosen)


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


def knees(sizes: Sequence[int], levels: Sequence[Plateau]) -> tuple[float, ...]:
    """Capacities in bytes: between the last size on a plateau and the next size, where a slower plateau follows.

    The fall begins there, however many octaves it takes. Steps up (small calls that are mostly overhead) are none.
    """
    falls = [a for a, b in itertools.pairwise(levels) if a.rate > b.rate]
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
    """Each plateau extended to the furthest size of the gaps beside it that is as high: a slope or a lone point has no
    reason to stop where it begins, and takes sizes of the plateau along when they are noisy."""
    reach = WITHIN * noise(logs)
    levels = [float(np.median(logs[i : j + 1])) for i, j in spans]
    wider: list[tuple[int, int]] = []
    for k, (level, (i, j)) in enumerate(zip(levels, spans, strict=True)):
        begin = wider[-1][1] + 1 if wider else 0
        end = spans[k + 1][0] if k + 1 < len(spans) else len(logs)
        alike = np.flatnonzero(np.abs(logs[begin:end] - level) <= reach) + begin
        wider.append((min(i, *alike), max(j, *alike)) if len(alike) else (i, j))
    return wider
