"""A complete law from measured kernels: fitted constants, a correction of its residuals, and prediction intervals.

The residuals, log measured − log predicted, are partly noise and partly structure (a library's heuristics). `learn`
finds the structure: scale, lengths and noise of a process at their maximum a posteriori (Rasmussen, Williams, "Gaussian
Processes for Machine Learning", 2006, ch. 5). Points that it cannot explain weigh less (a Student's t by reweighting).
Intervals come from folds of whole groups: the errors on a group that constants and correction have not seen, in
deviations of that correction, give the width, drawn towards that of a Student's t where groups are few.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize
from scipy.special import stdtrit

from calibrate.kernels.fit import Fitted, Observations, fit
from roofline.laws.fitted import Correction, Estimate, Extent, FittedLaw
from roofline.laws.kinds import work_of
from roofline.laws.law import Facts, Floats, Law
from roofline.laws.residuals import Residuals, matern_of, responses
from roofline.laws.work import Bounds

PRIOR_SCALE, PRIOR_NOISE, PRIOR_APART, PRIOR_LENGTH = 0.06, 0.04, 0.01, 4.0
"""Priors of the residuals' scale, of noise, of groups (relative), and of a length (in doublings of a size)."""
PRIOR_SPREAD = 0.4
"""Standard deviation of the logarithm of each prior. Some 200 points say little about a dozen lengths, which follow
their noise under a wide prior: on the public tables' products 0.25 does as well, and 0.7 is worse by 1.5 % of the
error."""
FARTHEST = 5.0
"""Largest distance from the prior in spreads: beyond, a covariance is no longer one in floating point."""
TUNED_ON = 300
"""Most points on which scale, lengths and noise are found; all points are used afterwards."""
SEARCH_STEPS = 25
DEGREES = 4.0
"""Degrees of freedom of the noise's t distribution."""
REWEIGHTINGS = 3

FOLDS = 5
"""Folds of groups, for intervals and for whether a correction helps."""
COVERED = 0.9
"""Share of unseen kernels that an interval covers."""
ASSUMED_WIDTH = float(stdtrit(DEGREES, (1 + COVERED) / 2))
"""Half an interval in deviations, if errors are as the correction assumes: 2.13."""
ASSUMED_GROUPS = 6.0
"""Number of groups that this assumption counts as. On most splits of the public tables held-out groups need 1.4 to 2.6
deviations (up to 4.6 where one is unlike all that were seen), while 4 to 6 seen groups show anything from 1.9 to 4.6;
chosen there among 3, 6 and 12, between which coverage hardly differs."""
WATCHED = 4
"""Number of constants whose responses the correction uses; each costs a prediction one more pricing by the law. On
three splits of the public tables errors with four are 4 % lower than with sizes alone, with all 5 %."""
FEWEST = 12
"""Least points for which a correction is tried."""
SMALLEST_SCALE = 1e-6
"""Least deviation of the logarithm of a measured time."""


def train_on(law: Law, seen: Observations, facts: Facts, seed: int = 0, folds: int = FOLDS) -> FittedLaw:
    """Fit to all rows in the arithmetic of `seen.dtype`; deterministic for a seed. Raises ValueError without rows."""
    fitted = fit(law, seen, facts, seed)
    bare = _bare(law, seen, facts, fitted)
    alone, errors, deviations = _unseen(law, seen, facts, fitted, seed, folds)
    if len(seen) < FEWEST or _harmful(alone, errors, seen.group):
        scale = max(fitted.scale, SMALLEST_SCALE)
        width, errors = scale * _width(np.abs(alone) / scale, seen.group), alone
    else:
        bare = _corrected(bare, law, seen, facts, seed)
        width = _width(np.abs(errors) / deviations, seen.group)
    return bare.model_copy(update={"width": width, "unseen": float(np.abs(np.exp(-errors) - 1).mean())})


def _bare(law: Law, seen: Observations, facts: Facts, fitted: Fitted) -> FittedLaw:
    """The law within its bounds, without a correction, with intervals as they are assumed."""
    law_s = law.time_s(seen.dims, facts, seen.dtype, fitted.values)
    try:
        held = Bounds.of(work_of(law.name, seen.dims, seen.dtype), facts, seen.dtype, seen.time_s, law_s)
    except ValueError:
        held = None  # the work of these kernels is unknown, such as a host's time
    return FittedLaw(
        kind=seen.kind,
        dtype=seen.dtype,
        law=law.name,
        arithmetic=seen.dtype,
        constants=tuple(
            Estimate(
                name=constant.name,
                unit=constant.unit,
                value=fitted.values[constant.name],
                low=min(fitted.low[constant.name], fitted.values[constant.name]),
                high=max(fitted.high[constant.name], fitted.values[constant.name]),
                determined=constant.name not in fitted.undetermined,
                what=constant.what,
            )
            for constant in law.constants(facts, seen.dtype)
        ),
        domain={
            name: Extent(low=float(seen.dims[name].min()), high=float(seen.dims[name].max()))
            for name in law.dims
            if name in seen.dims
        },
        points=len(seen),
        scale=fitted.scale,
        width=ASSUMED_WIDTH,
        held=held,
        doubts=fitted.doubts,
    )


def _corrected(bare: FittedLaw, law: Law, seen: Observations, facts: Facts, seed: int) -> FittedLaw:
    """The law with a correction that watches the constants that tell kernels apart most."""
    _, response = responses(law, seen.dims, facts, seen.dtype, bare.values)
    apart = np.argsort(-response.std(axis=0), kind="stable")[:WATCHED]
    names = [constant.name for constant in bare.constants]
    watched = tuple(names[place] for place in np.sort(apart))
    log_time, places = bare.places(seen.dims, facts, watched)
    residuals = learn(places, np.log(seen.time_s) - log_time, seen.group, seed)
    return bare.model_copy(update={"correction": Correction.of(residuals, seen.dims, watched)})


def _unseen(
    law: Law, seen: Observations, facts: Facts, fitted: Fitted, seed: int, folds: int
) -> tuple[Floats, Floats, Floats]:
    """Errors of each point, on the logarithm of time, by models that have not seen its group: of the law alone, and of
    the corrected law with the correction's deviation (0 and 1 where rows are too few for a correction)."""
    alone, errors, deviations = np.zeros(len(seen)), np.zeros(len(seen)), np.ones(len(seen))
    fold_of = _folds(seen.group, seed) % folds
    for fold in np.unique(fold_of):
        out = fold_of == fold
        rest, left = seen.take(out if out.all() else ~out), seen.take(out)  # a single row leaves no rest
        refitted = fit(law, rest, facts, seed, start=fitted.values)
        alone[out] = np.log(left.time_s) - np.log(law.time_s(left.dims, facts, seen.dtype, refitted.values))
        if len(seen) < FEWEST:
            continue
        corrected = _corrected(_bare(law, rest, facts, refitted), law, rest, facts, seed)
        middle, deviations[out], _ = corrected.spread(left.dims, facts)
        errors[out] = np.log(left.time_s) - middle
    return alone, errors, deviations


def _folds(group: NDArray[np.str_], seed: int) -> NDArray[np.int_]:
    """Random number of each row's group, from which folds are made; the rows of a single group count as groups."""
    names, index = np.unique(group, return_inverse=True)
    if len(names) == 1:
        index = np.arange(len(group))
    order = np.random.default_rng(seed).permutation(int(index.max()) + 1)
    return order[index]


def _harmful(alone: Floats, errors: Floats, group: NDArray[np.str_]) -> bool:
    """True where the correction makes unseen groups worse by more than their standard error."""
    worse = np.abs(errors) - np.abs(alone)
    _, index, counts = np.unique(group, return_inverse=True, return_counts=True)
    shares = np.bincount(index, worse) / len(group)
    if len(counts) == 1:
        return bool(shares.sum() > 0)
    spread = shares - counts / len(group) * shares.sum()
    error = np.sqrt((spread**2).sum() * len(counts) / (len(counts) - 1))
    return bool(shares.sum() > error)


def _width(ratios: Floats, group: NDArray[np.str_]) -> float:
    """Half an interval in deviations: between that of unseen groups and the assumed one, weighed by their number. The
    quantile counts one more point than there are, at infinity (split conformal; Vovk et al., 2005)."""
    _, counts = np.unique(group, return_counts=True)
    groups = len(group) ** 2 / (counts**2).sum()
    level = min(1.0, COVERED * (1 + 1 / len(ratios)))
    shown = max(float(np.quantile(ratios, level)), np.finfo(float).tiny)
    weighed = groups * np.log(shown) + ASSUMED_GROUPS * np.log(ASSUMED_WIDTH)
    return float(np.exp(weighed / (groups + ASSUMED_GROUPS)))


def learn(features: Floats, residuals: Floats, group: NDArray[np.str_], seed: int = 0) -> Residuals:
    """A process from residuals (log measured − log predicted), shape (points,); deterministic for a seed."""
    _, number = np.unique(group, return_inverse=True)
    scale, noise, apart, lengths = _search(features, residuals, number, seed)
    variances = np.full(len(residuals), noise**2)
    process = Residuals(features, residuals, variances, number, scale, noise, apart, lengths)
    shared = process.shared()
    for _ in range(REWEIGHTINGS):
        weights = cho_solve(cho_factor(shared + np.diag(variances), lower=True), residuals)
        off = (residuals - shared @ weights) / noise
        variances = noise**2 * np.maximum(1.0, (DEGREES + off**2) / (DEGREES + 1))
    return replace(process, variances=variances)


def _search(
    features: Floats, residuals: Floats, group: NDArray[np.int_], seed: int
) -> tuple[float, float, float, Floats]:
    """Scale, noise, apart and lengths: maximum a posteriori."""
    if len(residuals) > TUNED_ON:
        rows = np.random.default_rng(seed).choice(len(residuals), TUNED_ON, replace=False)
        features, residuals, group = features[rows], residuals[rows], group[rows]
    size = features.shape[1]
    priors = np.log(np.concatenate([[PRIOR_SCALE, PRIOR_NOISE, PRIOR_APART], np.full(size, PRIOR_LENGTH)]))
    # Differences once: the search evaluates many covariances of the same points.
    squares = (features[:, None, :] - features[None, :, :]) ** 2
    together = (group[:, None] == group[None]).astype(float)
    robust = max(1e-6, 1.4826 * float(np.median(np.abs(residuals - np.median(residuals)))))
    clipped = np.clip(residuals, *(np.median(residuals) + np.array([-4, 4]) * robust))

    def loss(inner: Floats) -> tuple[float, Floats]:
        (scale, noise, apart), lengths = np.exp(inner[:3]), np.exp(inner[3:])
        matern, by_square = matern_of(squares @ lengths**-2)
        smooth = scale**2 * matern
        try:
            factor = cho_factor(smooth + apart**2 * together + noise**2 * np.eye(len(clipped)), lower=True)
        except np.linalg.LinAlgError:
            return 1e12, np.zeros_like(inner)
        weights = cho_solve(factor, clipped)
        away = (inner - priors) / PRIOR_SPREAD
        value = 0.5 * clipped @ weights + np.log(np.diag(factor[0])).sum() + 0.5 * (away**2).sum()
        # d value / dθ = ½ Σ (K⁻¹ − w wᵀ) ∘ dK/dθ
        slope = cho_solve(factor, np.eye(len(clipped))) - np.outer(weights, weights)
        by_length = -np.einsum("ij,ijd->d", slope * scale**2 * by_square, squares) / lengths**2
        by_group = apart**2 * (slope * together).sum()
        gradient = np.concatenate([[(slope * smooth).sum(), noise**2 * np.trace(slope), by_group], by_length])
        return float(value), gradient + away / PRIOR_SPREAD

    ends = [(prior - FARTHEST * PRIOR_SPREAD, prior + FARTHEST * PRIOR_SPREAD) for prior in priors]
    options = {"maxiter": SEARCH_STEPS}
    best = np.exp(minimize(loss, priors, jac=True, method="L-BFGS-B", bounds=ends, options=options).x)
    return float(best[0]), float(best[1]), float(best[2]), best[3:]
