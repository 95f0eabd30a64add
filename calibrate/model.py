"""A calibrated law: designed, fitted, corrected where that helps, with intervals; for any law.

`train` reads the latencies of the points that the design chose and no others, for choosing between corrections and for
the intervals too. Both come from folds of whole groups: constants and correction are found without a group, and their
errors on it say how strong a correction to keep and how wide an interval is. An interval widens where the correction
knows nothing; outside the range of the points `inside` is false.

Example: ``model = train(Matmul(), observations, facts, points=200, seed=0)``, then ``model.time_s({"m": …})`` and
``low, high = model.interval({"m": …})``
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibrate.correction import Correction
from calibrate.design import design
from calibrate.fit import Fitted, fit
from calibrate.observations import Observations
from roofline.laws.features import features
from roofline.laws.law import Dims, Facts, Floats, Law

FOLDS = 5
"""Of groups, for the strength of the correction and for intervals."""
STRENGTHS = (0.0, 0.5, 1.0)
"""Of the correction, among which the folds choose; 0 is the law alone."""
COVERED = 0.9
"""Part of kernels not seen that an interval covers."""
FEWEST = 12
"""Points for which a correction is tried at all."""
WIDEST = 1.0
"""Half an interval, at most, on the logarithm of time."""


@dataclass(frozen=True, eq=False)
class Model:
    """Predicts one kind of kernel in one dtype on one device."""

    law: Law
    facts: Facts
    dtype: str
    fitted: Fitted
    correction: Correction | None
    strength: float
    """Of the correction: one of `STRENGTHS`."""
    width: float
    """Half an interval, in deviations of the correction, or on the logarithm of time where there is none."""
    ranges: Mapping[str, tuple[float, float]]
    """Least and largest of each size among the points."""
    errors: Floats
    """Shape (points,): log measured ÷ predicted of each point, by models that had not seen its group."""

    def time_s(self, dims: Dims) -> Floats:
        """Seconds of each kernel."""
        return self._corrected(dims, self._places(dims))

    def interval(self, dims: Dims) -> tuple[Floats, Floats]:
        """Seconds between which `COVERED` of kernels like each lie."""
        places = self._places(dims)
        half = np.full(len(places), self.width)
        if self.correction is not None:
            half = half * self.correction.deviation(places)
        half = np.minimum(half, WIDEST)
        time_s = self._corrected(dims, places)
        return time_s * np.exp(-half), time_s * np.exp(half)

    def inside(self, dims: Dims) -> NDArray[np.bool_]:
        """Whether every size lies within the range of the points."""
        within = [
            (np.asarray(dims[d]) >= low) & (np.asarray(dims[d]) <= high) for d, (low, high) in self.ranges.items()
        ]
        return np.asarray(np.logical_and.reduce(within))

    def _places(self, dims: Dims) -> Floats:
        return features({d: np.atleast_1d(dims[d]) for d in self.law.dims if d in dims}, self.law.dims)

    def _corrected(self, dims: Dims, places: Floats) -> Floats:
        time_s = np.atleast_1d(self.law.time_s(dims, self.facts, self.dtype, self.fitted.values))
        if self.correction is None or self.strength == 0:
            return time_s
        return time_s * np.exp(self.strength * self.correction.mean(places))


def train(law: Law, observations: Observations, facts: Facts, points: int, seed: int = 0) -> Model:
    """Choose points from shapes, then fit to their latencies; deterministic for a seed."""
    rows = design(law, observations.dims, facts, observations.dtype, points, seed, observations.group)
    return train_on(law, observations.take(rows), facts, seed)


def train_on(law: Law, seen: Observations, facts: Facts, seed: int = 0) -> Model:
    """Fit to all rows that are given. Raises ValueError where there are none."""
    fitted = fit(law, seen, facts, seed)
    places = features(seen.dims, law.dims)
    logs = np.log(seen.time_s)
    residuals = logs - np.log(law.time_s(seen.dims, facts, seen.dtype, fitted.values))
    correction = Correction.of(places, residuals, seed) if len(seen) >= FEWEST else None
    bare, shifts, deviations = _unseen(law, seen, facts, fitted, correction, seed)
    losses = [float(np.abs(bare - strength * shifts).mean()) for strength in STRENGTHS]
    strength = STRENGTHS[int(np.argmin(losses))] if correction is not None else 0.0
    errors = bare - strength * shifts
    return Model(
        law=law,
        facts=facts,
        dtype=seen.dtype,
        fitted=fitted,
        correction=correction,
        strength=strength,
        width=_quantile(np.abs(errors) / deviations),
        ranges={d: (float(np.min(seen.dims[d])), float(np.max(seen.dims[d]))) for d in law.dims if d in seen.dims},
        errors=errors,
    )


def _unseen(
    law: Law, seen: Observations, facts: Facts, fitted: Fitted, correction: Correction | None, seed: int
) -> tuple[Floats, Floats, Floats]:
    """Of each point, by models without its group: residual of the law, the correction's mean and deviation."""
    residuals, shifts, deviations = np.zeros(len(seen)), np.zeros(len(seen)), np.ones(len(seen))
    fold_of = _folds(seen.group, seed)
    places = features(seen.dims, law.dims)
    for fold in np.unique(fold_of):
        out = fold_of == fold
        rest, left = seen.take(~out), seen.take(out)
        if len(rest) == 0:
            rest = left  # one group: nothing can be held out, and the interval is that of the fit
        values = fit(law, rest, facts, seed, start=fitted.values).values
        residuals[out] = np.log(left.time_s) - np.log(law.time_s(left.dims, facts, seen.dtype, values))
        if correction is not None and len(rest) > 1:
            inner = np.log(rest.time_s) - np.log(law.time_s(rest.dims, facts, seen.dtype, values))
            known = Correction.of(features(rest.dims, law.dims), inner, seed)
            shifts[out], deviations[out] = known.mean(places[out]), known.deviation(places[out])
    return residuals, shifts, deviations


def _folds(group: NDArray[np.str_], seed: int) -> NDArray[np.int_]:
    """Fold of each row; rows of a group share one."""
    names, index = np.unique(group, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(names))
    return order[index] % FOLDS


def _quantile(ratios: Floats) -> float:
    """Of `COVERED`, with one more point than there are at infinity (split conformal; Vovk et al., 2005)."""
    level = min(1.0, COVERED * (1 + 1 / len(ratios)))
    return float(np.quantile(ratios, level))
