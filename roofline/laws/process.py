"""What a law leaves, learnt: a Gaussian process over the residuals of measured kernels, and how sure it is elsewhere.

Covariance ``scale² · exp(−½ Σ ((x − x′) / length)²)``, x a kernel's `features`; each measured residual has a variance
of its own beside (Rasmussen, Williams, "Gaussian Processes for Machine Learning", 2006, ch. 2). The mean goes to zero
away from the points, so the law is what remains there, and it is never beyond `LARGEST`; the deviation goes to the
whole scale there. `calibrate.correction` finds scale, lengths and variances.

Example: ``law_s * np.exp(process.mean(features(dims, law.dims)))``
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from roofline.laws.law import Floats

LARGEST = 0.3
"""Of a correction, on the logarithm of time: a law that is further off is wrong, not rough."""
ROWS_AT_ONCE = 20_000
"""Of predictions: bounds memory."""


@dataclass(frozen=True, eq=False)
class Process:
    """A process that has seen residuals."""

    features: Floats
    """Shape (points, features)."""
    residuals: Floats
    """Shape (points,): log measured − log of the law."""
    variances: Floats
    """Shape (points,): of each residual's noise; larger than `noise`² where it looked like an outlier."""
    scale: float
    noise: float
    """Standard deviation of a kernel that is measured once."""
    lengths: Floats
    """Shape (features,): over which residuals resemble each other."""

    def mean(self, features: Floats) -> Floats:
        """Correction of the logarithm of time, within ± `LARGEST`; shape (rows,)."""
        weights = self._inverse @ self.residuals
        parts = [self._across(features, at) @ weights for at in range(0, len(features), ROWS_AT_ONCE)]
        return LARGEST * np.tanh(np.concatenate([np.zeros(0), *parts]) / LARGEST)

    def deviation(self, features: Floats) -> Floats:
        """Standard deviation of a measured residual: noise, and what is not known so far from the points."""
        parts = []
        for at in range(0, len(features), ROWS_AT_ONCE):
            across = self._across(features, at)
            known = ((across @ self._inverse) * across).sum(axis=1)
            parts.append(np.sqrt(np.maximum(self.scale**2 - known, 0.0) + self.noise**2))
        return np.concatenate([np.zeros(0), *parts])

    @cached_property
    def _inverse(self) -> Floats:
        """Of the points' covariance, noise included."""
        lower = np.linalg.cholesky(covariance(self.features, self.features, self) + np.diag(self.variances))
        half = np.linalg.inv(lower)
        return np.asarray(half.T @ half)

    def _across(self, features: Floats, at: int) -> Floats:
        return covariance(features[at : at + ROWS_AT_ONCE], self.features, self)


def covariance(one: Floats, other: Floats, process: Process) -> Floats:
    """Shape (rows of one, rows of other)."""
    a, b = one / process.lengths, other / process.lengths
    distance = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)[None] - 2 * a @ b.T
    return np.asarray(process.scale**2 * np.exp(-0.5 * np.maximum(distance, 0.0)))
