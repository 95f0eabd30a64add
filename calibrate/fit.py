"""Constants of a law from measured kernels: robust, on the logarithm of time, with intervals.

Minimises Σ ρ((log predicted − log measured) / σ) + Σ ((constant − prior) / spread)², constants on their own scale
(logarithm unless they say otherwise) and within their bounds; ρ is the soft absolute error, so that single bad rows
pull no more than they weigh. A constant that the data cannot determine stays at its prior by that second sum and is
marked: its interval is no narrower than the prior's.

Example: ``fit(law, observations, facts).values["bandwidth"]``
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from calibrate.observations import Observations
from roofline.laws.law import Constant, Facts, Law, Values

Floats = NDArray[np.float64]

NOISE = 0.05
"""Relative error of a good law, over which residuals count as large: σ of the loss."""
STARTS = 4
"""Fits from the priors and from points around them; the best is kept."""
DONE = 1e-5
"""Relative change of loss and constants at which a fit ends: far within its intervals."""
DETERMINED = 0.5
"""A constant is determined where data narrow its prior's spread to this part or less."""
Z90 = 1.6449
"""Normal quantile of a 90 % interval."""


@dataclass(frozen=True)
class Fitted:
    """Constants of one law for one dtype of a device."""

    values: Mapping[str, float]
    low: Mapping[str, float]
    high: Mapping[str, float]
    """90 % interval of each, from the curvature of the loss."""
    undetermined: tuple[str, ...]
    """Constants that the data do not tell from their priors."""
    scale: float
    """Robust standard deviation of log measured ÷ predicted on the fitted rows; never shown as accuracy."""
    points: int


def fit(law: Law, observations: Observations, facts: Facts, seed: int = 0, start: Values | None = None) -> Fitted:
    """Fit a law; deterministic for a seed. Raises ValueError where there are no rows.

    From `start` alone, where it is given: constants near which the best is known to be.
    """
    if len(observations) == 0:
        raise ValueError(f"no rows to fit {law.kind} to")
    constants = law.constants(facts, observations.dtype)
    priors = np.array([_inner(c, c.prior) for c in constants])
    spreads = np.array([c.spread for c in constants])
    lows, highs = (
        np.array([_inner(c, v) for c, v in zip(constants, ends, strict=True)]) for ends in _bounds(constants)
    )
    logs = np.log(observations.time_s)

    def residuals(inner: Floats) -> Floats:
        predicted = law.time_s(observations.dims, facts, observations.dtype, _outer(constants, inner))
        off = (np.log(predicted) - logs) / NOISE
        soft = np.sign(off) * np.sqrt(2 * (np.sqrt(1 + off**2) - 1))
        return np.concatenate([soft, (inner - priors) / spreads])

    generator = np.random.default_rng(seed)
    starts = [priors, *(priors + spreads * generator.normal(size=len(priors)) for _ in range(STARTS - 1))]
    if start is not None:
        starts = [np.array([_inner(c, start[c.name]) for c in constants])]
    margin = 1e-6 * (highs - lows)
    found = [
        least_squares(
            residuals,
            np.clip(start, lows + margin, highs - margin),
            bounds=(lows, highs),
            x_scale=spreads,
            ftol=DONE,
            xtol=DONE,
        )
        for start in starts
    ]
    best = min(found, key=lambda one: one.cost)
    off = residuals(best.x)[: len(logs)]
    covariance = np.linalg.pinv(best.jac.T @ best.jac)
    deviations = np.sqrt(np.diag(covariance))
    ends = _ends(constants, best.x, Z90 * deviations)
    predicted = law.time_s(observations.dims, facts, observations.dtype, _outer(constants, best.x))
    relative = np.log(predicted) - logs
    return Fitted(
        values=_outer(constants, best.x),
        low={c.name: low for c, (low, _) in zip(constants, ends, strict=True)},
        high={c.name: high for c, (_, high) in zip(constants, ends, strict=True)},
        undetermined=tuple(
            c.name for c, d in zip(constants, deviations, strict=True) if d > DETERMINED * c.spread or off.size == 0
        ),
        scale=float(1.4826 * np.median(np.abs(relative - np.median(relative)))),
        points=len(observations),
    )


def _inner(constant: Constant, value: float) -> float:
    return float(np.log(value)) if constant.logarithmic else value


def _outer(constants: tuple[Constant, ...], inner: Floats) -> dict[str, float]:
    return {c.name: float(np.exp(x)) if c.logarithmic else float(x) for c, x in zip(constants, inner, strict=True)}


def _bounds(constants: tuple[Constant, ...]) -> tuple[list[float], list[float]]:
    return [c.low for c in constants], [c.high for c in constants]


def _ends(constants: tuple[Constant, ...], inner: Floats, half: Floats) -> list[tuple[float, float]]:
    low, high = _outer(constants, inner - half), _outer(constants, inner + half)
    return [(max(c.low, low[c.name]), min(c.high, high[c.name])) for c in constants]
