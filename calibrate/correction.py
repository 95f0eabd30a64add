"""A bounded, smooth correction of a law where its residuals have shape: a Gaussian process on the logarithm of time.

What a law leaves, log measured − log predicted, is partly noise and partly structure (a library's heuristics). The
process learns the second: covariance ``scale² · exp(−½ Σ ((x − x′) / length)²)``, x a kernel's features (logarithms of
its sizes), scale, lengths and noise at their maximum a posteriori (Rasmussen, Williams, "Gaussian Processes for
Machine Learning", 2006, ch. 5). Its mean goes to zero away from the data, so the law is what remains there, and it is
never beyond `LARGEST`. Points that it cannot explain weigh less (a Student's t by reweighting).

Example: ``corrected = law_s * np.exp(Correction.of(features, residuals, seed).mean(features_of_others))``
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.optimize import minimize

Floats = NDArray[np.float64]

LARGEST = 0.3
"""Of a correction, on the logarithm of time: a law that is further off is wrong, not rough."""
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
ROWS_AT_ONCE = 20_000
"""Of predictions: bounds memory."""


@dataclass(frozen=True, eq=False)
class Correction:
    """A process that has seen residuals."""

    features: Floats
    """Shape (points, features)."""
    weights: Floats
    """Shape (points,): of each point's covariance in the mean."""
    factor: Floats
    """Lower Cholesky factor of the points' covariance, noise included."""
    scale: float
    noise: float
    lengths: Floats
    """Shape (features,)."""

    @classmethod
    def of(cls, features: Floats, residuals: Floats, seed: int = 0) -> "Correction":
        """Learn residuals (log measured − log predicted); deterministic for a seed."""
        found = _search(features, residuals, seed)
        return cls.given(features, residuals, found)

    @classmethod
    def given(
        cls, features: Floats, residuals: Floats, like: "tuple[float, float, Floats] | Correction"
    ) -> "Correction":
        """With scale, noise and lengths that are known already."""
        scale, noise, lengths = (like.scale, like.noise, like.lengths) if isinstance(like, Correction) else like
        covariance = _covariance(features, features, scale, lengths)
        variances = np.full(len(residuals), noise**2)
        for _ in range(REWEIGHTINGS):
            factor = cho_factor(covariance + np.diag(variances), lower=True)
            weights = cho_solve(factor, residuals)
            off = (residuals - covariance @ weights) / noise
            variances = noise**2 * np.maximum(1.0, (DEGREES + off**2) / (DEGREES + 1))
        factor = cho_factor(covariance + np.diag(variances), lower=True)
        lower = np.tril(factor[0])
        return cls(features, cho_solve(factor, residuals), lower, scale, noise, lengths)

    def mean(self, features: Floats) -> Floats:
        """Correction of the logarithm of time, within ± `LARGEST`; shape (rows,)."""
        parts = [
            _covariance(features[at : at + ROWS_AT_ONCE], self.features, self.scale, self.lengths) @ self.weights
            for at in range(0, len(features), ROWS_AT_ONCE)
        ]
        return LARGEST * np.tanh(np.concatenate([np.zeros(0), *parts]) / LARGEST)

    def deviation(self, features: Floats) -> Floats:
        """Standard deviation of a measured residual: noise, and what is not known so far from the points."""
        parts = []
        for at in range(0, len(features), ROWS_AT_ONCE):
            across = _covariance(features[at : at + ROWS_AT_ONCE], self.features, self.scale, self.lengths)
            known = (solve_triangular(self.factor, across.T, lower=True, check_finite=False) ** 2).sum(axis=0)
            parts.append(np.sqrt(np.maximum(self.scale**2 - known, 0.0) + self.noise**2))
        return np.concatenate([np.zeros(0), *parts])


def _covariance(one: Floats, other: Floats, scale: float, lengths: Floats) -> Floats:
    a, b = one / lengths, other / lengths
    distance = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)[None] - 2 * a @ b.T
    return np.asarray(scale**2 * np.exp(-0.5 * np.maximum(distance, 0.0)))


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
