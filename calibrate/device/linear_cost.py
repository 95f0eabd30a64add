"""A fixed cost and a rate from times over sizes, T = a + V / b, for launches, transfers, collectives and graph nodes.

Times span decades and their noise grows with them, so residuals are differences of logarithms. Disturbed samples are
only ever slow, so a loss that merely bounds their pull (soft L1) is biased: at 3 % noise and 5 % outliers its 90 %
intervals hold 70–80 % of the time. It is the convex start; from it the fit goes on under the Cauchy loss, which ignores
far samples, at the scale of the start's residuals (there the intervals hold 90 %). Where a device breaks the line (a
protocol that switches, a buffer that overflows), the worst relative error over the sizes says how far it is off.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import OptimizeResult, least_squares
from scipy.stats import norm, t

CONFIDENCE = 0.9
"""Coverage of the intervals."""
FEWEST = 3
"""Least number of distinct sizes: two always lie on a line."""
SOFT = 0.05
"""Relative error from which the loss of the start grows linearly."""
TUNING = 2.385
"""Scale of the Cauchy loss in deviations of the noise: 95 % as efficient as least squares where the noise is normal
(Holland and Welsch, Communications in Statistics A6, 1977)."""
QUIETEST = 1e-3
"""Least relative noise, the resolution of a clock."""
TINY = float(np.finfo(np.float64).tiny)
"""Least seconds under a logarithm, where size 0 meets latency 0."""

Floats = NDArray[np.float64]
Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class LinearCost:
    """The line T = latency + size / bandwidth with its uncertainty."""

    latency_s: float
    """Seconds at size 0; 0 where the sizes do not show one."""
    bandwidth_bytes_per_s: float
    """Bytes (or nodes) a second beyond it; inf where the time does not grow with the size."""
    latency_interval: Interval
    """90 % interval in seconds."""
    bandwidth_interval: Interval
    """90 % interval in bytes a second."""
    worst_relative_error: float
    """Largest |fitted ÷ median time − 1| over the sizes; far above the noise, the line is the wrong law."""

    def time_s(self, size: float) -> float:
        return self.latency_s + size / self.bandwidth_bytes_per_s


def fit(sizes: Sequence[float], times_s: Sequence[float]) -> LinearCost:
    """The line with the least relative errors, a ≥ 0 and b > 0. `sizes` in bytes (or nodes) may repeat and be 0;
    `times_s` as many in seconds. Raises ValueError for fewer than `FEWEST` distinct sizes and for times that are not
    positive."""
    v, times = _checked(sizes, times_s)
    first, last = (float(np.median(times[v == end])) for end in (v.min(), v.max()))
    # Both parameters are in units of about the largest they can be, so that the solver sees numbers of about one.
    latency_unit, slope_unit = first, float((times[v > 0] / v[v > 0]).max())
    design = np.stack([np.full(len(v), latency_unit), v * slope_unit], axis=1)  # seconds
    logs = np.log(times)
    start = np.array([0.5, max(last - first, 0.1 * last) / v.max() / slope_unit])
    x = _solve(design, logs, start, "soft_l1", SOFT)
    scale = TUNING * _noise(_residuals(x, design, logs))
    x = _solve(design, logs, x, "cauchy", scale)
    a, slope = x[0] * latency_unit, x[1] * slope_unit
    units = np.array([latency_unit, slope_unit])
    half_a, half_slope = _half_widths(_residuals(x, design, logs), _jacobian(x, design, logs), scale) * units
    return LinearCost(
        latency_s=float(a),
        bandwidth_bytes_per_s=_inverse(slope),
        latency_interval=(max(0.0, float(a - half_a)), float(a + half_a)),
        bandwidth_interval=(_inverse(slope + half_slope), _inverse(slope - half_slope)),
        worst_relative_error=max(abs((a + slope * size) / np.median(times[v == size]) - 1) for size in np.unique(v)),
    )


def _residuals(x: Floats, design: Floats, logs: Floats) -> Floats:
    return np.log(np.maximum(design @ x, TINY)) - logs


def _jacobian(x: Floats, design: Floats, logs: Floats) -> Floats:
    return design / np.maximum(design @ x, TINY)[:, None]


def _solve(design: Floats, logs: Floats, start: Floats, loss: str, scale: float) -> Floats:
    tolerances = {"xtol": 1e-10, "ftol": 1e-10, "gtol": 1e-10}
    bounds = (0, np.inf)
    result: OptimizeResult = least_squares(
        _residuals, start, _jacobian, bounds, loss=loss, f_scale=scale, args=(design, logs), **tolerances
    )
    return np.asarray(result.x)


def _noise(residuals: Floats) -> float:
    """Standard deviation of normal residuals with this median size after a fit of two parameters."""
    n = len(residuals)
    return max(QUIETEST, float(np.median(np.abs(residuals)) / norm.ppf(0.75)) * math.sqrt(n / (n - 2)))


def _half_widths(residuals: Floats, jacobian: Floats, scale: float) -> Floats:
    """Half of the asymptotic 90 % interval of each parameter of an M-estimate. Covariance Σψ² / (n − p) / mean(ψ')²
    (JᵀJ)⁻¹ (Huber and Ronchetti, Robust Statistics, section 7.6), with the Cauchy loss's ψ = r / (1 + (r/c)²) and ψ' =
    (1 − (r/c)²) / (1 + (r/c)²)²."""
    n, p = jacobian.shape
    bent = 1 + (residuals / scale) ** 2
    variance = ((residuals / bent) ** 2).sum() / (n - p) / np.mean((2 - bent) / bent**2) ** 2
    spreads: Floats = np.sqrt(variance * np.diag(np.linalg.pinv(jacobian.T @ jacobian)))
    return spreads * t.ppf((1 + CONFIDENCE) / 2, n - p)


def _inverse(slope: float) -> float:
    return 1 / float(slope) if slope > 0 else math.inf


def _checked(sizes: Sequence[float], times_s: Sequence[float]) -> tuple[Floats, Floats]:
    if len(sizes) != len(times_s):
        raise ValueError(f"a time for each size: {len(sizes)} sizes, {len(times_s)} times")
    v, times = np.asarray(sizes, dtype=np.float64), np.asarray(times_s, dtype=np.float64)
    if not (np.isfinite(v).all() and (v >= 0).all()):
        raise ValueError("sizes are finite and not negative")
    if not (np.isfinite(times).all() and (times > 0).all()):
        raise ValueError("times are finite and positive; leave out the samples that failed")
    if len(np.unique(v)) < FEWEST:
        raise ValueError(f"a line with an error needs {FEWEST} distinct sizes, not {len(np.unique(v))}; measure more")
    return v, times
