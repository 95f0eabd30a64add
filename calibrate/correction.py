"""A smooth correction of a law where its residuals have shape: the hyperparameters of their `Process`.

What a law leaves, log measured − log predicted, is partly noise and partly structure (a library's heuristics). The
process learns the second: scale, lengths and noise at their maximum a posteriori (Rasmussen, Williams, "Gaussian
Processes for Machine Learning", 2006, ch. 5). Points that it cannot explain weigh less (a Student's t by reweighting).

Example: ``corrected = law_s * np.exp(learn(features, residuals, group, seed).mean(features_of_others))``
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize

from roofline.laws.law import Floats
from roofline.laws.process import Process, matern_of

PRIOR_SCALE, PRIOR_NOISE, PRIOR_APART, PRIOR_LENGTH = 0.06, 0.04, 0.01, 4.0
"""Of residuals, of noise, of groups (relative), and of a length (in features' units: doublings of a size)."""
PRIOR_SPREAD = 0.4
"""Of the logarithm of each. Some 200 points say little of a dozen lengths, and a wide prior lets each follow its noise:
on the public tables' products, 0.4 and 0.25 do alike, 0.7 is worse by 1.5 % of the error."""
FARTHEST = 5.0
"""Spreads from the prior that a search may go: beyond, a covariance is no longer one in floating point."""
TUNED_ON = 300
"""Points, at most, on which scale, lengths and noise are found; all of them are used afterwards."""
SEARCH_STEPS = 25
DEGREES = 4.0
"""Of freedom of the noise's t distribution."""
REWEIGHTINGS = 3


def learn(features: Floats, residuals: Floats, group: NDArray[np.str_], seed: int = 0) -> Process:
    """From residuals (log measured − log predicted), shape (points,); deterministic for a seed."""
    _, number = np.unique(group, return_inverse=True)
    scale, noise, apart, lengths = _search(features, residuals, number, seed)
    variances = np.full(len(residuals), noise**2)
    process = Process(features, residuals, variances, number, scale, noise, apart, lengths)
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
    heavy = np.clip(residuals, *(np.median(residuals) + np.array([-4, 4]) * _robust(residuals)))

    def loss(inner: Floats) -> tuple[float, Floats]:
        (scale, noise, apart), lengths = np.exp(inner[:3]), np.exp(inner[3:])
        matern, by_square = matern_of(squares @ lengths**-2)
        smooth = scale**2 * matern
        try:
            factor = cho_factor(smooth + apart**2 * together + noise**2 * np.eye(len(heavy)), lower=True)
        except np.linalg.LinAlgError:
            return 1e12, np.zeros_like(inner)
        weights = cho_solve(factor, heavy)
        away = (inner - priors) / PRIOR_SPREAD
        value = 0.5 * heavy @ weights + np.log(np.diag(factor[0])).sum() + 0.5 * (away**2).sum()
        # d value / dθ = ½ Σ (K⁻¹ − w wᵀ) ∘ dK/dθ
        slope = cho_solve(factor, np.eye(len(heavy))) - np.outer(weights, weights)
        by_length = -np.einsum("ij,ijd->d", slope * scale**2 * by_square, squares) / lengths**2
        by_group = apart**2 * (slope * together).sum()
        gradient = np.concatenate([[(slope * smooth).sum(), noise**2 * np.trace(slope), by_group], by_length])
        return float(value), gradient + away / PRIOR_SPREAD

    ends = [(prior - FARTHEST * PRIOR_SPREAD, prior + FARTHEST * PRIOR_SPREAD) for prior in priors]
    options = {"maxiter": SEARCH_STEPS}
    found = np.exp(minimize(loss, priors, jac=True, method="L-BFGS-B", bounds=ends, options=options).x)
    return float(found[0]), float(found[1]), float(found[2]), found[3:]


def _robust(values: Floats) -> float:
    """Standard deviation from the median absolute deviation; at least 1e-6."""
    return max(1e-6, 1.4826 * float(np.median(np.abs(values - np.median(values)))))
