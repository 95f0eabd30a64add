"""What a law leaves, learnt: a Gaussian process over the residuals of measured kernels, and how sure it is elsewhere.

Covariance ``scale² · matern(√Σ ((x − x′) / length)²)``, Matérn's of 3/2: residuals change suddenly where a library
takes another kernel, and a smoother covariance would ring around that. x is a kernel's place among others: `features`
of its sizes, and `responses` of the law to its constants, since kernels that the same constants decide are alike.
Kernels of one group (a weight shape, a head layout) share ``apart²`` besides, and each measured residual has a variance
of its own (Rasmussen, Williams, "Gaussian Processes for Machine Learning", 2006, ch. 2 and eq. 4.17). The mean goes to
zero away from the points, so the law is what remains there, and it is never beyond `LARGEST`; the deviation goes to the
whole scale there. `calibrate.kernels.correct` finds scale, noise, apart, lengths and variances.

Example: ``law_s * np.exp(residuals.mean(places))``
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from roofline.laws.kinds import categories
from roofline.laws.law import Constant, Dims, Facts, Floats, Law, Values

LARGEST = 0.3
"""Largest correction, on the logarithm of time: a law that is further off is wrong, not rough."""
ROWS_AT_ONCE = 1000
"""Kernels priced at once: bounds memory, and their covariances with some hundred points stay in a processor's cache
(five times as fast as 20,000 on one)."""
EVEN = 3
"""Powers of two that count: 8 elements of 16 bits are a 16-byte vector."""
EVENNESS = 0.67
"""Doublings of a size that one more of them is worth."""
EXPONENTS = ("skew",)
"""Sizes that are placed as they are: logarithms already."""
APART = 2.0
"""Doublings of a size that two categories lie apart."""
SMALLEST = 0.5
"""A size of zero (no window, no context) counts as this one: one doubling below 1."""
STEP = 0.05
"""Change of a constant, on its logarithm (or in units of its prior's spread)."""


@dataclass(frozen=True, eq=False)
class Residuals:
    """A Gaussian process that has seen residuals."""

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
        return self._covariance(self.features) + self.apart**2 * together

    @cached_property
    def _inverse(self) -> Floats:
        """Inverse of the points' covariance, noise included."""
        lower = np.linalg.cholesky(self.shared() + np.diag(self.variances))
        half = np.linalg.inv(lower)
        return np.asarray(half.T @ half)

    def _across(self, features: Floats, at: int) -> Floats:
        return self._covariance(features[at : at + ROWS_AT_ONCE])

    def _covariance(self, features: Floats) -> Floats:
        """Shape (rows, points)."""
        a, b = features / self.lengths, self.features / self.lengths
        distance = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)[None] - 2 * a @ b.T
        matern, _ = matern_of(np.maximum(distance, 0.0))
        return np.asarray(self.scale**2 * matern)


def matern_of(squares: Floats) -> tuple[Floats, Floats]:
    """Matérn's covariance of 3/2 at squared distances (in lengths), and its derivative by them."""
    root = np.sqrt(3 * squares)
    decay = np.exp(-root)
    return (1 + root) * decay, -1.5 * decay


def features(dims: Dims, names: tuple[str, ...]) -> Floats:
    """Coordinates in which near means alike, for any law: shape (rows, columns); names not in `dims` are left out.

    Sizes, the product of all (the amount of work), and how even each size is (how often 2 divides it, up to `EVEN`):
    libraries choose other kernels for sizes that do not divide into vectors and tiles. What a size is follows from its
    name, never from the values beside it, so that a kernel lies where it lies in whatever batch it is priced.
    """
    others = {*categories(), *EXPONENTS}
    sizes = [np.asarray(dims[name], dtype=float) for name in names if name in dims and name not in others]
    work = np.sum([doublings(size) for size in sizes], axis=0) / np.sqrt(len(sizes))
    evenness = [EVENNESS * _evenness(size) for size in sizes]
    return np.concatenate([coordinates(dims, names), *(column[:, None] for column in (work, *evenness))], axis=1)


def coordinates(dims: Dims, names: tuple[str, ...]) -> Floats:
    """Shape (rows, columns): sizes in doublings, exponents, and a column for each place of a category: any two places
    lie equally far apart."""
    columns = []
    for name in (name for name in names if name in dims):
        values = np.asarray(dims[name], dtype=float)
        if (places := categories().get(name)) is not None:
            columns.append(APART / np.sqrt(2) * (values[:, None] == np.arange(len(places))[None]))
        else:
            columns.append((values if name in EXPONENTS else doublings(values))[:, None])
    return np.concatenate(columns, axis=1)


def doublings(size: Floats) -> Floats:
    """log2 of a size; zero (no window, no rows) lies one below 1, fractions no lower."""
    return np.log2(np.maximum(size, SMALLEST))


def _evenness(size: Floats) -> Floats:
    """0 for a size that is not whole."""
    whole = np.where(size < 1, 2**EVEN, size).astype(np.int64)
    even = np.minimum(np.log2(whole & -whole), EVEN)
    return np.asarray(np.where(size == np.floor(size), even, 0.0))


def responses(
    law: Law, dims: Dims, facts: Facts, dtype: str, values: Values, names: Sequence[str] | None = None
) -> tuple[Floats, Floats]:
    """log time, shape (rows,), and ∂ log time / ∂ log constant, shape (rows, names), of all constants if not named.

    A constant that is not on a logarithm is moved by spreads of its prior. A kernel that computes all the time responds
    to its law's rate with −1 and to its bandwidth with 0.
    """
    log_time = np.log(law.time_s(dims, facts, dtype, values))
    columns = [np.zeros((len(log_time), 0))]
    for constant in law.constants(facts, dtype):
        if names is None or constant.name in names:
            moved, by = _moved(constant, values[constant.name])
            other = np.log(law.time_s(dims, facts, dtype, {**values, constant.name: moved}))
            columns.append(((other - log_time) / by)[:, None])
    return log_time, np.concatenate(columns, axis=1)


def _moved(constant: Constant, value: float) -> tuple[float, float]:
    """A step down, or up where that would be below its bound; and the step."""
    for by in (-STEP, STEP):
        moved = value * np.exp(by) if constant.logarithmic else value + by * constant.spread
        if moved >= constant.low:
            break
    return float(moved), by
