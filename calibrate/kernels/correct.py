"""A calibrated law: fitted, corrected where that helps, with intervals; for any law.

`train` reads the latencies of the points that the design chose and no others, for the intervals too. These come from
folds of whole groups: constants and correction are found without a group, and the errors on it, in deviations of that
correction, say how wide an interval is. Few groups say little of the next one, so what they say is drawn to what the
correction assumes anyhow: errors of a Student's t. An interval widens where the correction knows nothing.

Example: ``model = train(Matmul(), observations, facts, points=200, seed=0)``, then ``model.time_s({"m": …})`` and
``low, high = model.interval({"m": …})``
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from calibrate.correction import DEGREES, learn
from calibrate.design import design
from calibrate.fit import Fitted, fit
from calibrate.observations import Observations
from roofline.laws.bounds import Bounds
from roofline.laws.corrected import Corrected
from roofline.laws.law import Dims, Facts, Floats, Law, Values
from roofline.laws.sensitivity import responses
from roofline.laws.work import work

FOLDS = 5
"""Of groups, for intervals and for whether a correction helps."""
COVERED = 0.9
"""Part of kernels not seen that an interval covers."""
ASSUMED_WIDTH = float(stdtrit(DEGREES, (1 + COVERED) / 2))
"""Half an interval, in deviations, if errors are as the correction assumes: 2.13."""
ASSUMED_GROUPS = 6.0
"""Groups that this assumption weighs as much as. On most splits of the public tables held-out groups ask for 1.4 to
2.6 deviations (up to 4.6 where one is unlike all that were seen), while what 4 to 6 seen groups show is anything from
1.9 to 4.6 and no guide to it; chosen there among 3, 6 and 12, between which coverage hardly differs."""
WATCHED = 4
"""Constants whose responses the correction is given; each costs a prediction one more pricing by the law. Chosen on
three splits of the public tables, where with four errors are 4 % of themselves lower than with sizes alone, with all
5 %."""
FEWEST = 12
"""Points for which a correction is tried at all."""
SMALLEST_SCALE = 1e-6
"""Deviation, at least, of the logarithm of a measured time."""


@dataclass(frozen=True, eq=False)
class Model:
    """Predicts one kind of kernel in one dtype on one device."""

    corrected: Corrected
    facts: Facts
    fitted: Fitted
    points: Observations
    """What it was fitted to."""
    errors: Floats
    """Shape (points,): log measured ÷ predicted of each point, by models that had not seen its group."""

    def time_s(self, dims: Dims) -> Floats:
        """Seconds of each kernel."""
        return self.corrected.time_s(dims, self.facts)

    def interval(self, dims: Dims) -> tuple[Floats, Floats]:
        """Seconds between which `COVERED` of kernels like each lie."""
        return self.corrected.interval(dims, self.facts)

    @property
    def unseen_error(self) -> float:
        """Mean of |predicted ÷ measured − 1| of each point, by models that had not seen its group."""
        return float(np.abs(np.exp(-self.errors) - 1).mean())

    @property
    def ranges(self) -> Mapping[str, tuple[float, float]]:
        """Least and largest of each size among the points."""
        return self.corrected.domain


@dataclass(frozen=True, eq=False)
class _Unseen:
    """Of each point, by models without its group; all of shape (points,), on the logarithm of time."""

    bare: Floats
    """Errors of the law alone."""
    errors: Floats
    """With the correction."""
    deviations: Floats
    """Of the correction."""


def train(law: Law, observations: Observations, facts: Facts, points: int, seed: int = 0) -> Model:
    """Choose points from shapes, then fit to their latencies; deterministic for a seed."""
    rows = design(law, observations.dims, facts, observations.dtype, points, seed, observations.group)
    return train_on(law, observations.take(rows), facts, seed)


def train_on(law: Law, seen: Observations, facts: Facts, seed: int = 0, folds: int = FOLDS) -> Model:
    """Fit to all rows that are given; deterministic for a seed. Raises ValueError where there are none."""
    fitted = fit(law, seen, facts, seed)
    unseen = _unseen(law, seen, facts, fitted, seed, folds)
    if len(seen) < FEWEST or _harmful(unseen, seen.group):
        alone = max(fitted.scale, SMALLEST_SCALE)
        width = alone * _width(np.abs(unseen.bare) / alone, seen.group)
        return Model(_bare(law, seen, facts, fitted.values, width), facts, fitted, seen, unseen.bare)
    corrected = _corrected(law, seen, facts, fitted.values, seed)
    width = _width(np.abs(unseen.errors) / unseen.deviations, seen.group)
    return Model(replace(corrected, width=width), facts, fitted, seen, unseen.errors)


def _bare(law: Law, seen: Observations, facts: Facts, values: Values, width: float) -> Corrected:
    """The law within its bounds, without a correction."""
    domain = {d: (float(np.min(seen.dims[d])), float(np.max(seen.dims[d]))) for d in law.dims if d in seen.dims}
    law_s = law.time_s(seen.dims, facts, seen.dtype, values)
    try:
        bounds = Bounds.of(work(law.kind, seen.dims, seen.dtype), facts, seen.dtype, seen.time_s, law_s)
    except ValueError:
        bounds = None  # of a law whose work is not known, such as a host's time
    return Corrected(law, seen.dtype, values, width, domain=domain, bounds=bounds)


def _corrected(law: Law, seen: Observations, facts: Facts, values: Values, seed: int) -> Corrected:
    """With intervals as they are assumed; watches the constants that tell kernels apart most."""
    _, response = responses(law, seen.dims, facts, seen.dtype, values)
    apart = np.argsort(-response.std(axis=0), kind="stable")[:WATCHED]
    names = [constant.name for constant in law.constants(facts, seen.dtype)]
    watched = tuple(names[place] for place in np.sort(apart))
    bare = replace(_bare(law, seen, facts, values, ASSUMED_WIDTH), watched=watched)
    log_time, places = bare.places(seen.dims, facts)
    return replace(bare, process=learn(places, np.log(seen.time_s) - log_time, seen.group, seed))


def _unseen(law: Law, seen: Observations, facts: Facts, fitted: Fitted, seed: int, folds: int) -> _Unseen:
    """A correction is left out where there are too few rows for one."""
    found = _Unseen(np.zeros(len(seen)), np.zeros(len(seen)), np.ones(len(seen)))
    fold_of = _folds(seen.group, seed) % folds
    for fold in np.unique(fold_of):
        out = fold_of == fold
        rest, left = seen.take(out if out.all() else ~out), seen.take(out)  # of a single row there is no rest
        values = fit(law, rest, facts, seed, start=fitted.values).values
        found.bare[out] = np.log(left.time_s) - np.log(law.time_s(left.dims, facts, seen.dtype, values))
        if len(seen) < FEWEST:
            continue
        corrected = _corrected(law, rest, facts, values, seed)
        middle, found.deviations[out], _ = corrected.spread(left.dims, facts)
        found.errors[out] = np.log(left.time_s) - middle
    return found


def _folds(group: NDArray[np.str_], seed: int) -> NDArray[np.int_]:
    """Number of each row's group in a random order, of which folds are made; rows of a group share one.

    Of a single group, rows are drawn: nothing else can be held out.
    """
    names, index = np.unique(group, return_inverse=True)
    if len(names) == 1:
        index = np.arange(len(group))
    order = np.random.default_rng(seed).permutation(int(index.max()) + 1)
    return order[index]


def _harmful(unseen: _Unseen, group: NDArray[np.str_]) -> bool:
    """Whether the correction makes groups that it has not seen worse, by more than their standard error."""
    worse = np.abs(unseen.errors) - np.abs(unseen.bare)
    _, index, counts = np.unique(group, return_inverse=True, return_counts=True)
    shares = np.bincount(index, worse) / len(group)
    if len(counts) == 1:
        return bool(shares.sum() > 0)
    spread = shares - counts / len(group) * shares.sum()
    error = np.sqrt((spread**2).sum() * len(counts) / (len(counts) - 1))
    return bool(shares.sum() > error)


def _width(ratios: Floats, group: NDArray[np.str_]) -> float:
    """Half an interval in deviations: between what groups not seen show and what is assumed, by how many they are."""
    _, counts = np.unique(group, return_counts=True)
    groups = len(group) ** 2 / (counts**2).sum()
    shown = max(_quantile(ratios), np.finfo(float).tiny)
    weighed = groups * np.log(shown) + ASSUMED_GROUPS * np.log(ASSUMED_WIDTH)
    return float(np.exp(weighed / (groups + ASSUMED_GROUPS)))


def _quantile(ratios: Floats) -> float:
    """Of `COVERED`, with one more point than there are at infinity (split conformal; Vovk et al., 2005)."""
    level = min(1.0, COVERED * (1 + 1 / len(ratios)))
    return float(np.quantile(ratios, level))
