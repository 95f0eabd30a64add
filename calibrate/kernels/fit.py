"""Constants of a law from measured kernels: robust, on the logarithm of time, with intervals.

Minimises Σ ρ((log predicted − log measured) / σ) + Σ ((constant − prior) / spread)², constants on their own scale
(logarithm unless they say otherwise) and within their bounds; ρ is the soft absolute error, so that single bad rows
pull no more than they weigh. A constant that the data cannot determine stays at its prior by that second sum and is
marked: its interval is no narrower than the prior's.

The loss has several minima: where a law lacks something, another constant can take its place (a bandwidth far below the
datasheet's for work that is not counted). So a fit starts from the priors and from points around them, goes a few steps
from each, goes on from the best of these to the end, and says what makes the answer doubtful: a constant at its bound,
main memory far below its datasheet, another minimum about as good that means something else (`Fitted.doubts`).

Example: ``fit(law, observations, facts).values["bandwidth"]``
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.optimize import OptimizeResult, least_squares

from calibrate.kernels.observations import Observations
from roofline.laws.fitted import Z90
from roofline.laws.law import Constant, Facts, Floats, Law, Values

NOISE = 0.05
"""Relative error of a good law, over which residuals count as large: σ of the loss."""
STARTS = 8
"""Points that a fit starts from: the priors, and points drawn from them."""
FIRST_STEPS = 4
"""Evaluations of the gradient, at most, after which starts are compared: most have found their valley by then."""
FINISHED = 3
"""Starts that go on to the end: the best."""
AS_GOOD = 3.0
"""Difference of two minima in the loss, a negative logarithm of probability, below which neither is much the better:
odds of 20 to 1."""
SLOW_MEMORY = 0.6
"""Part of the datasheet's bandwidth: streams of all devices that we know of reach 0.75 to 0.95 of it."""
MEMORY = ("memory", "bandwidth")
"""Names of constants that are main memory's bandwidth; where the prior itself is lower, they are of something else."""
NATURAL = (0.0, 1.0)
"""Bounds of a constant without a unit that are answers: no part of something, all of it."""
AT_BOUND = 0.01
"""Part of the range between its bounds within which a constant is at one."""
DONE = 1e-5
"""Relative change of loss and constants at which a fit ends: far within its intervals."""
DETERMINED = 0.5
"""A constant is determined where data narrow its prior's spread to this part or less."""
STEP = 1.5e-8
"""Step of a difference, on a constant's own scale: the root of a float's precision."""
TRIED = 0.1
"""Spreads from the priors at which pricing in one go is compared with pricing one by one."""


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
    doubts: tuple[str, ...] = ()
    """What makes the constants doubtful, a sentence each."""


def fit(law: Law, observations: Observations, facts: Facts, seed: int = 0, start: Values | None = None) -> Fitted:
    """Fit a law; deterministic for a seed. Raises ValueError where there are no rows.

    From `start` alone, where it is given: constants near which the best is known to be.
    """
    if len(observations) == 0:
        raise ValueError(f"no rows to fit {law.name} to")
    constants = law.constants(facts, observations.dtype)
    priors = np.array([_inner(c, c.prior) for c in constants])
    spreads = np.array([c.spread for c in constants])
    lows, highs = (
        np.array([_inner(c, v) for c, v in zip(constants, ends, strict=True)]) for ends in _bounds(constants)
    )
    logs = np.log(observations.time_s)

    priced = _pricing(law, observations, facts, constants, priors, spreads)

    def residuals(inner: Floats) -> Floats:
        return rows_of(inner[None])[0]

    def rows_of(places: Floats) -> Floats:
        """Residuals at several places at once: shape (places, rows and constants)."""
        off = (np.log(priced(places)) - logs) / NOISE
        soft = np.sign(off) * np.sqrt(2 * (np.sqrt(1 + off**2) - 1))
        return np.concatenate([soft, (places - priors) / spreads], axis=1)

    def slopes(inner: Floats) -> Floats:
        """Forward differences, away from a bound."""
        steps = STEP * np.maximum(1.0, np.abs(inner))
        steps = np.where(inner + steps > highs, -steps, steps)
        rows = rows_of(np.concatenate([inner[None], inner + np.diag(steps)]))
        return np.asarray(((rows[1:] - rows[0]) / steps[:, None]).T)

    margin = 1e-6 * (highs - lows)

    def searched(place: Floats, steps: int | None = None) -> OptimizeResult:
        return least_squares(
            residuals,
            np.clip(place, lows + margin, highs - margin),
            jac=slopes,
            bounds=(lows, highs),
            x_scale=spreads,
            ftol=DONE,
            xtol=DONE,
            max_nfev=steps,
        )

    if start is not None:
        minima = [searched(np.array([_inner(c, start[c.name]) for c in constants]))]
    else:
        drawn = priors + spreads * np.random.default_rng(seed).normal(size=(STARTS - 1, len(priors)))
        first = sorted((searched(place, FIRST_STEPS) for place in (priors, *drawn)), key=lambda result: result.cost)
        minima = sorted((searched(result.x) for result in first[:FINISHED]), key=lambda result: result.cost)
    best = minima[0]
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
        doubts=tuple(_doubts(constants, facts, best, minima[1:], deviations)),
    )


def _pricing(
    law: Law,
    observations: Observations,
    facts: Facts,
    constants: tuple[Constant, ...],
    priors: Floats,
    spreads: Floats,
) -> Callable[[Floats], Floats]:
    """Seconds of every row at several places of the constants, shape (places, rows); in one pricing by the law where
    its arithmetic takes a column of values for each constant, as found out once."""

    def one_by_one(places: Floats) -> Floats:
        times = (law.time_s(observations.dims, facts, observations.dtype, _outer(constants, place)) for place in places)
        return np.stack([np.broadcast_to(time_s, len(observations)) for time_s in times])

    def together(places: Floats) -> Floats:
        columns = {
            c.name: (np.exp(x) if c.logarithmic else x)[:, None] for c, x in zip(constants, places.T, strict=True)
        }
        return np.asarray(law.time_s(observations.dims, facts, observations.dtype, columns))

    tried = priors + TRIED * spreads * np.stack([np.linspace(-1, 1, len(priors)) * turn for turn in (0, 1, -1)])
    expected = one_by_one(tried)
    try:
        at_once = together(tried)
    except (ValueError, TypeError, IndexError):
        return one_by_one
    same = at_once.shape == expected.shape and np.allclose(at_once, expected, rtol=1e-12)
    return together if same else one_by_one


def _doubts(
    constants: tuple[Constant, ...],
    facts: Facts,
    best: OptimizeResult,
    others: list[OptimizeResult],
    deviations: Floats,
) -> Iterator[str]:
    """One sentence each; of constants that the data determine, since others are their priors whatever they are."""
    values = _outer(constants, best.x)
    determined = [c for c, d in zip(constants, deviations, strict=True) if d <= DETERMINED * c.spread]
    for c in determined:
        value, low, high = (_inner(c, each) for each in (values[c.name], c.low, c.high))
        for name, bound, inner in (("lower", c.low, low), ("upper", c.high, high)):
            natural = c.unit == "1" and bound in NATURAL
            if not natural and abs(value - inner) < AT_BOUND * (high - low):
                yield f"{c.name} is at its {name} bound, {_shown(bound, c)}"
    slow = SLOW_MEMORY * facts.bandwidth_bytes_per_s
    for c in constants:
        if c.name.split(".")[-1] in MEMORY and c.prior >= slow and values[c.name] < slow:
            part = values[c.name] / facts.bandwidth_bytes_per_s
            yield f"{c.name} is {part:.2f} of the datasheet's bandwidth; at least {SLOW_MEMORY} is usual"
    for other in others:
        if other.cost - best.cost > AS_GOOD:
            continue
        for c, here, there in zip(constants, best.x, other.x, strict=True):
            if c in determined and abs(here - there) > c.spread:
                elsewhere = _outer((c,), np.array([there]))[c.name]
                yield f"{c.name} is {_shown(values[c.name], c)} or, about as likely, {_shown(elsewhere, c)}"
        break


def _shown(value: float, constant: Constant) -> str:
    return f"{value:.3g}" if constant.unit == "1" else f"{value:.3g} {constant.unit}"


def _inner(constant: Constant, value: float) -> float:
    return float(np.log(value)) if constant.logarithmic else value


def _outer(constants: tuple[Constant, ...], inner: Floats) -> dict[str, float]:
    return {c.name: float(np.exp(x)) if c.logarithmic else float(x) for c, x in zip(constants, inner, strict=True)}


def _bounds(constants: tuple[Constant, ...]) -> tuple[list[float], list[float]]:
    return [c.low for c in constants], [c.high for c in constants]


def _ends(constants: tuple[Constant, ...], inner: Floats, half: Floats) -> list[tuple[float, float]]:
    low, high = _outer(constants, inner - half), _outer(constants, inner + half)
    return [(max(c.low, low[c.name]), min(c.high, high[c.name])) for c in constants]
