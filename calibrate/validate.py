"""How far predictions are from kernels that the fit did not see: scores, by region, beside the noise of repeats.

A prediction p of a measured time t is off by |p − t| / t. The mean of that over kernels counts each kernel alike; the
time-weighted error Σ|p − t| / Σt counts seconds alike; the bias says whether predictions are long or short on average.

Example: ``scores(predicted_s, measured_s).mape``; nothing in here is ever given rows that were fitted to
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibrate.observations import Observations
from roofline.dtypes import BITS

Floats = NDArray[np.float64]
Interval = tuple[Floats, Floats]

TERCILES = ("small", "medium", "large")
"""Thirds of the kernels by measured time."""
DECODING = "decode"
"""Region of the kernels that a decode step of a large model waits for, which a mean over all kernels may hide."""
FEW_ROWS = 64.0
"""Rows, at most, of a product in it: sequences of a batch."""
LONG_KEYS = 4096.0
"""Keys, at least, of attention in it: from there reading the cache outweighs what a call costs once."""


@dataclass(frozen=True)
class Scores:
    """Of some kernels; fractions, not per cent."""

    rows: int
    mape: float
    """Mean of |p − t| / t."""
    median: float
    p90: float
    time_weighted: float
    """Σ|p − t| / Σt."""
    bias: float
    """Mean of (p − t) / t: above 0 predictions are long."""
    coverage: float | None
    """Share of measured times within the prediction's 90 % interval; None where there is no interval."""


def scores(predicted_s: Floats, measured_s: Floats, interval: Interval | None = None) -> Scores:
    """Raises ValueError: no rows, lengths that differ, or a prediction that is not finite."""
    if len(measured_s) == 0 or len(predicted_s) != len(measured_s):
        raise ValueError(f"{len(predicted_s)} predictions for {len(measured_s)} measured kernels; one each, please")
    if not bool(np.isfinite(predicted_s).all()):
        raise ValueError(f"{int((~np.isfinite(predicted_s)).sum())} predictions are not finite")
    off = (predicted_s - measured_s) / measured_s
    within = None
    if interval is not None:
        within = float(((interval[0] <= measured_s) & (measured_s <= interval[1])).mean())
    return Scores(
        rows=len(measured_s),
        mape=float(np.abs(off).mean()),
        median=float(np.median(np.abs(off))),
        p90=float(np.quantile(np.abs(off), 0.9)),
        time_weighted=float(np.abs(predicted_s - measured_s).sum() / measured_s.sum()),
        bias=float(off.mean()),
        coverage=within,
    )


def by_region(
    predicted_s: Floats, measured_s: Floats, regions: Mapping[str, NDArray[np.bool_]], interval: Interval | None = None
) -> dict[str, Scores]:
    """Scores of each region (boolean by row) that has rows; regions may overlap."""
    return {
        name: scores(predicted_s[rows], measured_s[rows], (interval[0][rows], interval[1][rows]) if interval else None)
        for name, rows in regions.items()
        if rows.any()
    }


def regions_of(observations: Observations, cache_bytes: float = np.inf) -> dict[str, NDArray[np.bool_]]:
    """Thirds by time; attention also by window and width of the cache; what a decode step of a large model is made of.

    `cache_bytes`: of the device's last-level cache; weights of at least that size cannot stay in it.
    """
    low, high = np.quantile(observations.time_s, (1 / 3, 2 / 3))
    bounds = ((0.0, low), (low, high), (high, np.inf))
    found = {
        name: (observations.time_s > least) & (observations.time_s <= most)
        for name, (least, most) in zip(TERCILES, bounds, strict=True)
    }
    if {"window", "kv_bytes"} <= set(observations.dims):
        windowed, narrow = observations.dims["window"] > 0, observations.dims["kv_bytes"] < 2
        found |= {
            "no window": ~windowed & ~narrow,
            "windowed": windowed & ~narrow,
            "narrow cache": narrow,
        }
    if (decoding := _decoding(observations, cache_bytes)) is not None:
        found[DECODING] = decoding
    return found


def _decoding(observations: Observations, cache_bytes: float) -> NDArray[np.bool_] | None:
    """Products of few rows with large weights, attention of one row to many keys; None for kernels of other kinds."""
    dims = observations.dims
    if {"m", "n", "k"} <= set(dims):
        weight_bytes = BITS.get(observations.dtype, 16) / 8 * dims["n"] * dims["k"]
        return (dims["m"] <= FEW_ROWS) & (weight_bytes >= cache_bytes)
    if observations.kind.endswith("decode_attention"):
        return np.asarray(dims["kv"] >= LONG_KEYS)
    return None


def repeat_noise(observations: Observations) -> float | None:
    """Mean of |t − centre| / centre over kernels of one shape measured several times, centre their median.

    No prediction from a shape can be nearer than that. None where nothing is repeated.
    """
    if not observations.dims:
        return None
    shapes = np.stack([observations.dims[name] for name in sorted(observations.dims)], axis=1)
    _, index, counts = np.unique(shapes, axis=0, return_inverse=True, return_counts=True)
    index = index.reshape(-1)
    off = []
    for shape in np.flatnonzero(counts > 1):
        times = observations.time_s[index == shape]
        off.append(np.abs(times / np.median(times) - 1))
    return float(np.concatenate(off).mean()) if off else None
