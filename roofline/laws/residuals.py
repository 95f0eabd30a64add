"""A Gaussian process over the residuals of a law (log measured − log predicted) at measured kernels.

Its covariance is ``scale² · matern(√Σ ((x − x′) / length)²)`` with Matérn's of 3/2: residuals change suddenly where a
library switches kernels, and a smoother covariance would ring there. x are `features` of the sizes and `responses` of
the law to its constants. Kernels of one group (a weight shape, a head layout) also share ``apart²``, and each residual
has its own noise variance (Rasmussen, Williams, "Gaussian Processes for Machine Learning", 2006, ch. 2 and eq. 4.17).
Away from the points the mean goes to zero and the deviation to the whole scale.
`calibrate.kernels.correct` finds the parameters. Use: ``law_s * np.exp(residuals.mean(places))``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from roofline.laws.kinds import categories
from roofline.laws.law import Constant, Dims, Facts, Floats, Law, Values

LARGEST = 0.3
"""Largest correction of log time: a law that is further off is wrong, not rough."""
ROWS_AT_ONCE = 1000
"""Kernels priced at once: their covariances with some hundred points fit in a processor's cache, which is five times as
fast as 20,000 at once on one processor."""
EVEN = 3
"""Largest power of two in a size that counts: 8 elements of 16 bits are a 16-byte vector."""
EVENNESS = 0.67
"""Doublings of a size that equal one power of two in its factors."""
EXPONENTS = ("skew",)
"""Sizes used without a logarithm, since they are exponents themselves."""
APART = 2.0
"""Distance of two categories in doublings of a size."""
SMALLEST = 0.5
"""Stands for a size of zero (no window, no context)."""
STEP = 0.05
"""Step of a finite difference in a constant's logarithm, or in units of its prior's spread."""


@dataclass(frozen=True, eq=False)
class Residuals:
    """A Gaussian process conditioned on residuals."""

    features: Floats
    """Shape (points, features)."""
    residuals: Floats
    """Shape (points,): log measured − log of the law."""
    variances: Floats
    """Shape (points,): noise variances, larger than `noise`² for likely outliers."""
    group: NDArray[np.int_]
    """Shape (points,): number of each point's group."""
    scale: float
    noise: float
    apart: float
    """Standard deviation of a group's common offset."""
    lengths: Floats
    """Shape (features,): length scales."""

    def mean(self, features: Floats) -> Floats:
        """Correction of log time within ± `LARGEST`; shape (rows,)."""
        weights = self._inverse @ self.residuals
        parts = [self._across(features, at) @ weights for at in range(0, len(features), ROWS_AT_ONCE)]
        return LARGEST * np.tanh(np.concatenate([np.zeros(0), *parts]) / LARGEST)

    def deviation(self, features: Floats) -> Floats:
        """Standard deviation of a measured residual of a new group, shape (rows,): noise, group, and uncertainty."""
        parts = []
        for at in range(0, len(features), ROWS_AT_ONCE):
            across = self._across(features, at)
            known = ((across @ self._inverse) * across).sum(axis=1)
            parts.append(np.sqrt(np.maximum(self.scale**2 - known, 0.0) + self.apart**2 + self.noise**2))
        return np.concatenate([np.zeros(0), *parts])

    def shared(self) -> Floats:
        """Covariance of the points' residuals without noise, shape (points, points)."""
        together = self.group[:, None] == self.group[None]
        return self._covariance(self.features) + self.apart**2 * together

    @cached_property
    def _inverse(self) -> Floats:
        """Inverse of the points' covariance with noise."""
        lower = np.linalg.cholesky(self.shared() + np.diag(self.variances))
        half = np.linalg.inv(lower)
        return np.asarray(half.T @ half)

    def _across(self, features: Floats, at: int) -> Floats:
        return self._covariance(features[at : at + ROWS_AT_ONCE])

    def _covariance(self, features: Floats) -> Floats:
        a, b = features / self.lengths, self.features / self.lengths
        distance = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)[None] - 2 * a @ b.T
        matern, _ = matern_of(np.maximum(distance, 0.0))
        return np.asarray(self.scale**2 * matern)


def matern_of(squares: Floats) -> tuple[Floats, Floats]:
    """Matérn's covariance of 3/2 at squared distances (in length scales), and its derivative by them."""
    root = np.sqrt(3 * squares)
    decay = np.exp(-root)
    return (1 + root) * decay, -1.5 * decay


def features(dims: Dims, names: tuple[str, ...]) -> Floats:
    """Coordinates in which near kernels are alike, for any law: shape (rows, columns); absent names are left out.

    They are the sizes, their product (the amount of work), and the evenness of each size (how often 2 divides it, up to
    `EVEN`), since libraries choose other kernels for sizes that do not divide into vectors and tiles. A coordinate
    depends on the name and value of a size alone, so that a kernel has the same place in every batch.
    """
    others = {*categories(), *EXPONENTS}
    sizes = [np.asarray(dims[name], dtype=float) for name in names if name in dims and name not in others]
    work = np.sum([doublings(size) for size in sizes], axis=0) / np.sqrt(len(sizes))
    evenness = [EVENNESS * _evenness(size) for size in sizes]
    return np.concatenate([coordinates(dims, names), *(column[:, None] for column in (work, *evenness))], axis=1)


def coordinates(dims: Dims, names: tuple[str, ...]) -> Floats:
    """Sizes in doublings, exponents, and a column for each value of a category (equally far apart): (rows, columns)."""
    columns = []
    for name in (name for name in names if name in dims):
        values = np.asarray(dims[name], dtype=float)
        if (places := categories().get(name)) is not None:
            columns.append(APART / np.sqrt(2) * (values[:, None] == np.arange(len(places))[None]))
        else:
            columns.append((values if name in EXPONENTS else doublings(values))[:, None])
    return np.concatenate(columns, axis=1)


def doublings(size: Floats) -> Floats:
    """log2 of a size, with `SMALLEST` as the least."""
    return np.log2(np.maximum(size, SMALLEST))


def _evenness(size: Floats) -> Floats:
    """Return how often 2 divides a size, at most `EVEN`; 0 for a size that is not whole."""
    whole = np.where(size < 1, 2**EVEN, size).astype(np.int64)
    even = np.minimum(np.log2(whole & -whole), EVEN)
    return np.asarray(np.where(size == np.floor(size), even, 0.0))


def responses(
    law: Law, dims: Dims, facts: Facts, dtype: str, values: Values, names: Sequence[str] | None = None
) -> tuple[Floats, Floats]:
    """log time, shape (rows,), and ∂ log time / ∂ log constant of the named (or all) constants, shape (rows, names). A
    constant without a logarithm is moved in units of its prior's spread. A kernel bound by arithmetic responds to its
    law's rate with −1 and to its bandwidth with 0."""
    log_time = np.log(law.time_s(dims, facts, dtype, values))
    columns = [np.zeros((len(log_time), 0))]
    for constant in law.constants(facts, dtype):
        if names is None or constant.name in names:
            moved, by = _moved(constant, values[constant.name])
            other = np.log(law.time_s(dims, facts, dtype, {**values, constant.name: moved}))
            columns.append(((other - log_time) / by)[:, None])
    return log_time, np.concatenate(columns, axis=1)


def _moved(constant: Constant, value: float) -> tuple[float, float]:
    """The constant moved down, or up where that would cross its bound, and the step."""
    for by in (-STEP, STEP):
        moved = value * np.exp(by) if constant.logarithmic else value + by * constant.spread
        if moved >= constant.low:
            break
    return float(moved), by
