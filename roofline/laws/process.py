"""What a law leaves, learnt: a Gaussian process over the residuals of measured kernels, and how sure it is elsewhere.

Covariance ``scale² · matern(√Σ ((x − x′) / length)²)``, x a kernel's place among others, Matérn's of 3/2: residuals
change suddenly where a library takes another kernel, and a smoother covariance would ring around that. Kernels of
one group (a weight shape, a head layout) share ``apart²`` besides, and each measured residual has a variance of its own
(Rasmussen, Williams, "Gaussian Processes for Machine Learning", 2006, ch. 2 and eq. 4.17). The mean goes to zero away
from the points, so the law is what remains there, and it is never beyond `LARGEST`; the deviation goes to the whole
scale there.
`calibrate.correction` finds scale, noise, apart, lengths and variances.

Example: ``law_s * np.exp(process.mean(places))``
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from roofline.laws.law import Floats

LARGEST = 0.3
"""Of a correction, on the logarithm of time: a law that is further off is wrong, not rough."""
ROWS_AT_ONCE = 1000
"""Of predictions: bounds memory, and their covariances with some hundred points stay in a processor's cache (five times
as fast as 20,000 on one)."""


@dataclass(frozen=True, eq=False)
class Process:
    """A process that has seen residuals."""

    features: Floats
    """Shape (points, features)."""
    residuals: Floats
    """Shape (points,): log measured − log of the law."""
    variances: Floats
    """Shape (points,): of each residual's noise; larger than `noise`² where it looked like an outlier."""
    group: NDArray[np.int_]
    """Shape (points,): points of one group have one number."""
    scale: float
    noise: float
    """Standard deviation of a kernel that is measured once."""
    apart: float
    """Standard deviation of what a whole group is off, beyond what its features tell."""
    lengths: Floats
    """Shape (features,): over which residuals resemble each other."""

    def mean(self, features: Floats) -> Floats:
        """Correction of the logarithm of time, within ± `LARGEST`; shape (rows,)."""
        weights = self._inverse @ self.residuals
        parts = [self._across(features, at) @ weights for at in range(0, len(features), ROWS_AT_ONCE)]
        return LARGEST * np.tanh(np.concatenate([np.zeros(0), *parts]) / LARGEST)

    def deviation(self, features: Floats) -> Floats:
        """Standard deviation of a measured residual of another group: noise, the group's, and what is not known so far
        from the points."""
        parts = []
        for at in range(0, len(features), ROWS_AT_ONCE):
            across = self._across(features, at)
            known = ((across @ self._inverse) * across).sum(axis=1)
            parts.append(np.sqrt(np.maximum(self.scale**2 - known, 0.0) + self.apart**2 + self.noise**2))
        return np.concatenate([np.zeros(0), *parts])

    def shared(self) -> Floats:
        """Shape (points, points): covariance of the points' residuals without their noise."""
        together = self.group[:, None] == self.group[None]
        return covariance(self.features, self.features, self) + self.apart**2 * together

    @cached_property
    def _inverse(self) -> Floats:
        """Of the points' covariance, noise included."""
        lower = np.linalg.cholesky(self.shared() + np.diag(self.variances))
        half = np.linalg.inv(lower)
        return np.asarray(half.T @ half)

    def _across(self, features: Floats, at: int) -> Floats:
        return covariance(features[at : at + ROWS_AT_ONCE], self.features, self)


def covariance(one: Floats, other: Floats, process: Process) -> Floats:
    """Shape (rows of one, rows of other)."""
    a, b = one / process.lengths, other / process.lengths
    distance = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)[None] - 2 * a @ b.T
    matern, _ = matern_of(np.maximum(distance, 0.0))
    return np.asarray(process.scale**2 * matern)


def matern_of(squares: Floats) -> tuple[Floats, Floats]:
    """Matérn's covariance of 3/2 at squared distances (in lengths), and its derivative by them."""
    root = np.sqrt(3 * squares)
    decay = np.exp(-root)
    return (1 + root) * decay, -1.5 * decay
