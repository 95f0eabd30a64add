"""A smooth correction of a law where its residuals have shape: the hyperparameters of their `Process`.

What a law leaves, log measured − log predicted, is partly noise and partly structure (a library's heuristics). The
process learns the second: scale, lengths and noise at their maximum a posteriori (Rasmussen, Williams, "Gaussian
Processes for Machine Learning", 2006, ch. 5). Points that it cannot explain weigh less (a Student's t by reweighting).

Example: ``corrected = law_s * np.exp(learn(features, residuals, seed).mean(features_of_others))``
"""

from dataclasses import replace

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize

from roofline.laws.law import Floats
from roofline.laws.process import Process, covariance

PRIOR_SCALE, PRIOR_NOISE, PRIOR_LENGTH = 0.06, 0.04, 2.0
"""Of residuals, of noise (relative), and of a length (in features' units: doublings of a size)."""
PRIOR_SPREAD = 0.7
"""Of the logarithm of each."""
TUNED_ON = 300
"""Points, at most, on which scale, lengths and noise are found; all of them are used afterwards."""
SEARCH_STEPS = 25
DEGREES = 4.0
"""Of freedom of the noise's t distribution."""
REWEIGHTINGS = 3


def learn(features: Floats, residuals: Floats, seed: int = 0) -> Process:
    """From residuals (log measured − log predicted), shape (points,); deterministic for a seed."""
    scale, noise, lengths = _search(features, residuals, seed)
    variances = np.full(len(residuals), noise**2)
    process = Process(features, residuals, variances, scale, noise, lengths)
    smooth = covariance(features, features, process)
    for _ in range(REWEIGHTINGS):
        weights = cho_solve(cho_factor(smooth + np.diag(variances), lower=True), residuals)
        off = (residuals - smooth @ weights) / noise
        variances = noise**2 * np.maximum(1.0, (DEGREES + off**2) / (DEGREES + 1))
    return replace(process, variances=variances)


def _search(features: Floats, residuals: Floats, seed: int) -> tuple[float, float, Floats]:
    """Scale, noise and lengths: maximum a posteriori."""
    if len(residuals) > TUNED_ON:
        rows = np.random.default_rng(seed).choice(len(residuals), TUNED_ON, replace=False)
        features, residuals = features[rows], residuals[rows]
    size = features.shape[1]
    priors = np.log(np.concatenate([[PRIOR_SCALE, PRIOR_NOISE], np.full(size, PRIOR_LENGTH)]))
    # Differences once: the search evaluates many covariances of the same points.
    squares = (features[:, None, :] - features[None, :, :]) ** 2
    heavy = np.clip(residuals, *(np.median(residuals) + np.array([-4, 4]) * _robust(residuals)))

    def loss(inner: Floats) -> tuple[float, Floats]:
        scale, noise, lengths = np.exp(inner[0]), np.exp(inner[1]), np.exp(inner[2:])
        smooth = scale**2 * np.exp(-0.5 * squares @ lengths**-2)
        try:
            factor = cho_factor(smooth + noise**2 * np.eye(len(heavy)), lower=True)
        except np.linalg.LinAlgError:
            return 1e12, np.zeros_like(inner)
        weights = cho_solve(factor, heavy)
        away = (inner - priors) / PRIOR_SPREAD
        value = 0.5 * heavy @ weights + np.log(np.diag(factor[0])).sum() + 0.5 * (away**2).sum()
        # d value / dθ = ½ Σ (K⁻¹ − w wᵀ) ∘ dK/dθ
        slope = cho_solve(factor, np.eye(len(heavy))) - np.outer(weights, weights)
        weighted = slope * smooth
        by_length = 0.5 * np.einsum("ij,ijd->d", weighted, squares) / lengths**2
        gradient = np.concatenate([[weighted.sum(), noise**2 * np.trace(slope)], by_length])
        return float(value), gradient + away / PRIOR_SPREAD

    found = minimize(loss, priors, jac=True, method="L-BFGS-B", options={"maxiter": SEARCH_STEPS}).x
    return float(np.exp(found[0])), float(np.exp(found[1])), np.exp(found[2:])


def _robust(values: Floats) -> float:
    """Standard deviation from the median absolute deviation; at least 1e-6."""
    return max(1e-6, 1.4826 * float(np.median(np.abs(values - np.median(values)))))
