"""Predictions of a pass by calibrated laws, at the level of the machine beside it, with 90 % intervals.

The interval of a total takes all operations of one law to be off together, since they share its constants, and the laws
and the levels of the probes to be off independently: widths add up within a law and within a probe, and the squares of
those sums add up between them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from profiler.record.run import Mode
from roofline.graph.op import OpGraph
from roofline.hardware.spec import HardwareSpec, Peaks
from roofline.host import host_gap_interval, host_gap_s, least_gap_s, pass_wall_s
from roofline.laws.fitted import PROBES, LevelRatio
from roofline.price_by_law import LawPrices, combined, level_factors, ratio_of

Array = NDArray[np.float64]
Ends = tuple[float, float]

NOTED = 0.02
"""Share of a pass's predicted time that laws may leave out, or predict beyond their sizes, without a note."""
HOST = np.array([probe == "host" for probe in PROBES], dtype=float)
"""Shares of the probes in an operation whose time follows the host's probe alone."""


class IssuedKernels(Protocol):
    """The kernels that the host issues in a compiled pass: a `calibrate.passes.table.KernelTable`."""

    @property
    def members(self) -> tuple[tuple[int, ...], ...]: ...
    @property
    def count(self) -> Array: ...
    @property
    def predicted_s(self) -> Array: ...


@dataclass(frozen=True, eq=False)
class Predicted:
    """Times of one execution of each operation, shape (operations,), in seconds at the calibration's level."""

    time_s: Array
    low_s: Array
    """Ends of the law's interval; NaN where no law has one."""
    high_s: Array
    law: NDArray[np.int_]
    """Number of the law that priced each operation; −1 without a law."""
    shares: Array
    """Shape (operations, probes), as `roofline.price_by_law.waits` returns it."""
    levels: Mapping[str, LevelRatio]
    """Levels of the pass by probe; a probe that is absent is at the calibration's level."""

    @classmethod
    def of(cls, time_s: Array, laws: LawPrices | None, shares: Array, levels: Mapping[str, LevelRatio]) -> "Predicted":
        """Predictions of a graph's operations; times without `laws` have no intervals."""
        if laws is None:
            nothing = np.full(len(time_s), np.nan)
            return cls(time_s, nothing, nothing, np.full(len(time_s), -1), shares, levels)
        return cls(time_s, laws.low_s, laws.high_s, laws.law, shares, levels)

    @property
    def factors(self) -> Array:
        """Time at the level of the pass ÷ time at the calibration's."""
        return level_factors(self.shares, self.levels)

    @property
    def at_level_s(self) -> Array:
        return self.time_s * self.factors

    def ends(self, count: Array, rows: Any = slice(None)) -> Ends | None:
        """Interval of the total of operations, `count` times each, at the pass's level; None where laws price too
        little of it."""
        times = (self.at_level_s * count)[rows]
        total, by_law = float(times.sum()), self.law[rows] >= 0
        if not total > 0 or float(times[~by_law].sum()) > NOTED * total:
            return None
        below, above = (
            np.where(by_law, np.abs(end_s - self.time_s)[rows] * (count * self.factors)[rows], 0.0)
            for end_s in (self.low_s, self.high_s)
        )
        halves = [
            np.hypot(combined(self.law[rows], widths), probes)
            for widths, probes in zip((below, above), self._level_halves(count, rows), strict=True)
        ]
        return max(total - float(halves[0]), 0.0), total + float(halves[1])

    def level_ends(self, count: Array) -> Ends:
        """Interval of the signed seconds that the level of the pass adds to the total of all operations."""
        added = float(((self.at_level_s - self.time_s) * count).sum())
        below, above = self._level_halves(count, slice(None))
        return added - below, added + above

    def _level_halves(self, count: Array, rows: Any) -> Ends:
        """Distances of the ends of the total of some operations due to the uncertainty of the probes' ratios."""
        waited = (self.time_s * count)[rows] @ self.shares[rows]
        below, above = (
            [
                seconds * abs(getattr(self.levels[probe], end) - self.levels[probe].ratio)
                for probe, seconds in zip(PROBES, waited.tolist(), strict=True)
                if probe in self.levels
            ]
            for end in ("low", "high")
        )
        return math.hypot(*below), math.hypot(*above)

    def beside(self, gap_s: Array, ends: tuple[Array, Array]) -> "Predicted":
        """The operations and as many gaps of the host, which are priced by a law of their own."""
        number = np.full(len(gap_s), self.law.max(initial=-1) + 1)
        return replace(
            self,
            time_s=np.concatenate([self.time_s, gap_s]),
            low_s=np.concatenate([self.low_s, ends[0]]),
            high_s=np.concatenate([self.high_s, ends[1]]),
            law=np.concatenate([self.law, number]),
            shares=np.concatenate([self.shares, np.tile(HOST, (len(gap_s), 1))]),
        )


@dataclass(frozen=True, slots=True)
class Wall:
    """Predicted wall time of a pass in seconds; None where it is unknown."""

    at_level_s: float | None = None
    calibrated_s: float | None = None
    """Wall time at the level of the calibration; None without calibrated laws."""
    ends: Ends | None = None
    """Interval of `at_level_s`."""


def predicted_wall(
    graph: OpGraph, count: Array, spec: HardwareSpec, predicted: Predicted, mode: Mode, compiled: IssuedKernels | None
) -> Wall:
    """Wall time by calibrated laws: the host model over the predicted device times. The host issues a CUDA graph in one
    launch, for which the device does not wait, so its wall is the device's time; of a compiled pass it issues
    kernels."""
    if spec.measured is None or spec.kind == "other":
        return Wall()
    if mode.endswith("cuda-graph"):
        at_pass_s, calibrated_s = (float((time * count).sum()) for time in (predicted.at_level_s, predicted.time_s))
        return Wall(at_pass_s, calibrated_s, predicted.ends(count))
    host = ratio_of(predicted.levels, "host")
    times_s, level_s, gap_s = predicted.time_s, predicted.at_level_s, host_gap_s(graph, spec)
    issued = count
    if compiled is not None:
        issued, gap_s, times_s = compiled.count, least_gap_s(spec, len(compiled.count)), compiled.predicted_s
        level_s = times_s * np.array([float(predicted.factors[list(ops)].mean()) for ops in compiled.members])

    def wall(time_s: Array, ratio: float) -> float | None:
        peaks = _host_at(spec.measured, ratio) if spec.measured else None
        gaps = None if gap_s is None else gap_s * ratio
        return None if peaks is None else pass_wall_s(time_s, issued, spec, peaks, gaps, with_laws=True)

    wall_s = wall(level_s, host)
    ends = None
    if wall_s is not None and compiled is None:
        gap_ends = host_gap_interval(graph, spec)
        if not spec.has_queue and gap_s is not None and gap_ends is not None:
            ends = predicted.beside(gap_s, gap_ends).ends(np.concatenate([count, count]))
        elif (busy := predicted.ends(count)) is not None:
            whole = float((level_s * count).sum())
            low, high = (wall(level_s * end / whole, host) for end in busy)
            ends = None if low is None or high is None else (low, high)
    return Wall(wall_s, wall(times_s, 1.0), ends)


def executed_wall(count: Array, spec: HardwareSpec, time_s: Array, mode: Mode, compiled: IssuedKernels | None) -> Wall:
    """Wall time by rooflines at achieved peaks, as `predicted_wall` but without an interval."""
    if spec.measured is None or spec.kind == "other":
        return Wall()
    if mode.endswith("cuda-graph"):
        total = float((time_s * count).sum())
        return Wall(None if np.isnan(total) else total)
    if compiled is not None:
        time_s, count = compiled.predicted_s, compiled.count
    return Wall(pass_wall_s(time_s, count, spec, spec.measured, None, with_laws=False))


def _host_at(peaks: Peaks, ratio: float) -> Peaks:
    """The peaks with the host's time for an operation multiplied by `ratio`."""
    if peaks.host_s_per_op is None or ratio == 1:
        return peaks
    figure = peaks.host_s_per_op
    return peaks.model_copy(update={"host_s_per_op": figure.model_copy(update={"value": figure.value * ratio})})
