"""When did a kernel change, over the nights of one device, and by what.

1. What all rows of a night share is the machine's, and is removed from each of them.
2. Change points propose: the best partition of whole series (`change_points`), and for the last nights, which no change
   point can tell yet, the middle of up to three of them against those before.
3. A proposal is a change where it is larger than the tolerance, and lasts: `PERSISTS` nights, or a gate between the two
   versions confirms it. Noise of 1 % a night proposes wrongly now and then, so that only those are certain.

Each change names what else changed between its two sides, and one of four causes: code, method, hardware, noise.
Example: ``changes(nights, series, common(np.array(list(series.values()))), tolerance=0.01)``
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from calibrate.regression.compare import Comparison, Key
from calibrate.regression.statistics import Array

Cause = Literal["code", "method", "hardware", "noise"]
Gated = Literal["confirmed", "refuted", "undecided"]

LEAST_TOGETHER = 5
"""Rows from which on their common movement is the machine's: of fewer, one that changes would move the middle."""
LEAST_NIGHTS = 6
"""Nights from which on a series has a noise that can be told from a change."""
PERSISTS = 3
"""Nights that a change has to last before it counts without a gate."""
PENALTY = 3.0
"""Times variance × log(nights) that a change point has to explain; 2 is the least that is consistent (Yao 1988)."""
TAIL = 1.4
"""Standard errors of the last nights' middle that make a proposal: a gate decides, so that misses count more."""
FAR = 3.0
"""Standard deviations beyond which a night is held to that distance before a mean is taken (Huber's rule)."""
HARDWARE = ("device", "device unit", "driver", "clock policy", "threads", "hostname")
METHOD = ("method version", "roofcal")
CLOCKS = {"SM clock": "sm_clock_hz", "memory clock": "memory_clock_hz", "CPU clock": "cpu_clock_hz"}
"""Clocks that were observed while a run measured -> the field of a window. They differ from night to night."""
CLOCK_MOVED = 0.02
"""Relative difference of two clocks from which one has changed, as in the labels of a measurement."""


@dataclass(frozen=True)
class Night:
    """One run: when, and with what it measured."""

    name: str
    started: str
    """UTC, ISO 8601."""
    made_of: Mapping[str, str] = field(default_factory=dict)
    """Conditions and versions: device, driver, torch, commit, …"""


@dataclass(frozen=True)
class Change:
    """A step of one row, or of all rows together (an empty key)."""

    key: Key
    at: int
    """Index of the first night after it."""
    ratio: float
    """After ÷ before; above 1 is slower."""
    nights: tuple[int, int]
    """Nights on either side that this rests on."""
    cause: Cause
    what: tuple[str, ...]
    """Other things that changed between its sides: "torch 2.11.0 → 2.13.0"."""
    lasts: bool
    """Whether it has lasted `PERSISTS` nights; a younger one waits for a gate or for more nights."""
    gradual: bool = False
    """Whether it is a slow drift over the whole series, of which no step is large enough to be seen."""
    gated: Gated | None = None
    """Verdict of a gate between the versions of its two sides; None where there was none."""

    @property
    def name(self) -> str:
        return " ".join(value for _, value in self.key if value) or "all rows together"


def versions_of(change: Change, nights: Sequence[Night]) -> tuple[str, str] | None:
    """The commits on either side of a step; None where the runs state none that git knows, or the same one."""
    before, after = (nights[at].made_of.get("commit", "") for at in (change.at - 1, change.at))
    known = before and after and not before.endswith("-dirty") and not after.endswith("-dirty")
    return (before, after) if known and before != after and not change.gradual else None


def gated(change: Change, comparisons: Sequence[Comparison], tolerance: float) -> Change:
    """The change with what a gate between its versions found.

    A row belongs to the gate's kernel whose name it has, the longest where there are several, or to the only one; all
    rows together have the median ratio of the gate's kernels. It is confirmed by a kernel that is slower or faster, as
    it is, and refuted by one whose interval lies within the tolerance or on the other side.
    """
    if not change.key:
        ratios = [row.ratio for row in comparisons if row.ratio is not None and row.verdict != "ambiguous"]
        size = math.log(float(np.median(ratios))) if ratios else 0.0
        as_found = size * math.log(change.ratio) > 0 and abs(size) > math.log1p(tolerance)
        return replace(change, gated="undecided" if not ratios else "confirmed" if as_found else "refuted")
    name = f" {_words(change.name)} "
    alike = [row for row in comparisons if f" {_words(row.name)} " in name]
    row = max(alike, key=lambda row: len(row.name)) if alike else comparisons[0] if len(comparisons) == 1 else None
    if row is None or row.verdict not in ("slower", "faster", "same"):
        return replace(change, gated="undecided")
    return replace(
        change, gated="confirmed" if row.verdict == ("slower" if change.ratio > 1 else "faster") else "refuted"
    )


def _words(name: str) -> str:
    return " ".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def changes(nights: Sequence[Night], series: Mapping[Key, Array], shared: Array, tolerance: float) -> list[Change]:
    """The changes of rows and of the machine, the machine's first, then the largest first.

    `series` holds log times of shape (nights,), NaN where a night lacks the row; `shared` is `common` of all rows.
    """
    found = _of_series((), shared, nights, tolerance)
    last = len(nights) - 1
    off = float(shared[-1] - np.median(shared[-LEAST_NIGHTS:-1]))
    if abs(off) > math.log1p(tolerance) and not any(last - change.at < PERSISTS for change in found):
        # Of a row, one night far off is an outlier; of all rows together it is a bad night of the machine.
        found.append(
            Change((), last, math.exp(off), (last, 1), *_cause((), off, nights[last - 1], nights[last]), False)
        )
    for key, logs in series.items():
        found += _of_series(key, logs - shared, nights, tolerance)
    return sorted(found, key=lambda change: (change.key != (), -abs(math.log(change.ratio))))


def common(logs: Array) -> Array:
    """Movement that rows of shape (rows, nights) share, shape (nights,), around 0; 0 where there are too few rows."""
    gaps = np.isnan(logs)
    rows, known = ~gaps.all(axis=1), ~gaps.all(axis=0)
    shared = np.zeros(logs.shape[1])
    if np.count_nonzero(rows) < LEAST_TOGETHER:
        return shared
    if gaps.any():
        logs = logs[rows][:, known]
        off = logs - np.nanmedian(logs, axis=1, keepdims=True)
        shared[known] = np.nanmedian(off, axis=0)
    else:  # several times as fast
        shared[:] = np.median(logs - np.median(logs, axis=1, keepdims=True), axis=0)
    return shared


def spread_of(series: Array) -> float:
    """Standard deviation of a night's noise, from the differences of neighbours, which steps and drifts do not move:
    1.4826 × their median absolute value ÷ √2."""
    return 1.4826 * float(np.median(np.abs(np.diff(series)))) / math.sqrt(2) if len(series) > 1 else 0.0


def change_points(values: Array, penalty: float, least: int) -> list[int]:
    """Starts of all segments but the first that make the squares about the segments' means, and a penalty for each
    change, the smallest; segments have at least `least` values.

    Optimal partitioning (Jackson et al., IEEE Signal Processing Letters 12(2), 2005): exact, in O(n²). To import
    `ruptures`, whose ``KernelCPD(kernel="linear")`` seeks the same, takes longer than this for thousands of values.
    """
    count = len(values)
    total = np.concatenate(([0.0], np.cumsum(values - values.mean())))
    inverse = 1.0 / np.arange(count, 0, -1)
    best, start = np.full(count + 1, np.inf), np.zeros(count + 1, dtype=int)
    best[0] = -penalty
    for end in range(least, count + 1):
        first = end - least + 1  # the sum of all squares is that of every partition, and left out
        costs = best[:first] - (total[end] - total[:first]) ** 2 * inverse[count - end :][:first]
        start[end] = np.argmin(costs)
        best[end] = costs[start[end]] + penalty
    points = []
    at = start[count]
    while at > 0:
        points.append(int(at))
        at = start[at]
    return points[::-1]


def proposals(series: Array, tolerance: float) -> list[int]:
    """Indices at which a series without gaps may have changed: change points, and the start of the last nights."""
    sigma = spread_of(series)
    if sigma == 0:
        return [int(i) + 1 for i in np.flatnonzero(np.abs(np.diff(series)) > math.log1p(tolerance))]
    held = _held(series, sigma)
    points = change_points(held, PENALTY * sigma**2 * math.log(len(held)), PERSISTS)
    last = points[-1] if points else 0
    for count in range(1, PERSISTS + 1):
        start = len(held) - count
        if start - last < PERSISTS:
            break
        size = abs(float(held[start:].mean() - held[last:start].mean()))
        if size > max(TAIL * sigma * math.sqrt(1 / count + 1 / (start - last)), 0.8 * math.log1p(tolerance)):
            points.append(start)
            break
    return points


def _held(series: Array, sigma: float) -> Array:
    """The series with single nights far from their five neighbours held at `FAR` standard deviations."""
    padded = np.pad(series, 2, mode="reflect")
    middle = np.median(np.lib.stride_tricks.sliding_window_view(padded, 5), axis=1)
    return np.clip(series, middle - FAR * sigma, middle + FAR * sigma)


def _of_series(key: Key, series: Array, nights: Sequence[Night], tolerance: float) -> list[Change]:
    present = np.flatnonzero(~np.isnan(series))
    values = series[present]
    if len(values) < LEAST_NIGHTS or not np.ptp(values):
        return []
    sigma, limit = spread_of(values), math.log1p(tolerance)
    held = _held(values, sigma) if sigma else values
    points = proposals(values, tolerance)
    edges = [0, *points, len(values)]
    found = []
    for before, point, after in zip(edges, edges[1:], edges[2:], strict=False):
        size = float(np.mean(held[point:after]) - np.mean(held[before:point]))
        if abs(size) <= 0.8 * limit and (after < len(values) or abs(size) <= limit):
            continue
        cause, what = _cause(key, size, nights[present[point - 1]], nights[present[point]])
        counts = point - before, after - point
        found.append(Change(key, int(present[point]), math.exp(size), counts, cause, what, min(counts) >= PERSISTS))
    width = max(len(values) // 5, PERSISTS)
    drift = float(np.median(values[-width:]) - np.median(values[:width]))
    certain = 4 * sigma * math.sqrt(2 / width) * math.sqrt(math.pi / 2)
    if not any(change.lasts for change in found) and len(values) >= 4 * PERSISTS and abs(drift) > max(limit, certain):
        cause, what = _cause(key, drift, nights[present[0]], nights[present[-1]])
        sides = (width, width)
        found.append(Change(key, int(present[-width]), math.exp(drift), sides, cause, what, True, gradual=True))
    return found


def _cause(key: Key, size: float, before: Night, after: Night) -> tuple[Cause, tuple[str, ...]]:
    """The cause of a change of the log time by `size` between two nights, and what changed between them.

    A clock that moved is the cause where it explains at least half of the size; else it is only named.
    """
    names = sorted(before.made_of.keys() | after.made_of.keys())
    old, now = before.made_of, after.made_of
    slowed = {name: _slowed(old[name], now[name]) for name in CLOCKS if name in old and name in now}
    changed = {name: f"{name} {old.get(name, 'none')} → {now.get(name, 'none')}" for name in names
               if old.get(name) != now.get(name) and abs(slowed.get(name, 1.0)) > CLOCK_MOVED}  # fmt: skip
    what = tuple(changed.values())
    if any(name in changed for name in METHOD):
        return "method", what
    if any(name in changed for name in HARDWARE):
        return "hardware", what
    if any(name in changed and by / size >= 0.5 for name, by in slowed.items()):
        return "hardware", what
    if any(name not in CLOCKS for name in changed):
        return "code", what
    return ("noise" if key else "hardware"), what


def _slowed(before: str, after: str) -> float:
    """Log ratio of two clocks, "1980 MHz", positive where the later one is slower."""
    return math.log(float(before.split()[0]) / float(after.split()[0]))
