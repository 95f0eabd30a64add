"""How a kernel is priced: a law at a device's constants, what it leaves as it was learnt, an interval around both.

Both a fresh fit (`calibrate.model`) and a spec's record of one (`roofline.calibrated`) price by this. Kernels resemble
each other as their sizes do, and as the law says: in their time, and in which constants decide it.

A kernel whose sizes lie beyond those that were fitted is priced with care, in three ways.

- Its correction is that of the nearest kernel within the fitted sizes, and fades with the distance to it: by half
  within two doublings, to nothing beyond five. What remains is the law.
- The law is held between the roofline and a multiple of it (`roofline.laws.bounds`), within the fitted sizes as well.
- Its interval is never narrower than that of the nearest fitted sizes, and widens with the distance.

Example: ``low, high = Corrected(law, "bfloat16", values, width=2.1, process=process).interval(dims, facts)``
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from roofline.laws.bounds import Bounds
from roofline.laws.features import CATEGORIES, EXPONENTS, features
from roofline.laws.law import Dims, Facts, Floats, Law, Values
from roofline.laws.process import Process
from roofline.laws.sensitivity import responses
from roofline.laws.work import work

RESPONSE = 4.0
"""Doublings of a size that a constant which decides a kernel wholly counts as."""
FADED = 2.4
"""Doublings beyond the fitted sizes at which a correction is faded to 1/e: flat where the fitted sizes end, so that a
size a little beyond them is priced as those within."""
DRIFT = 0.1
"""Standard deviation of the law itself, on the logarithm of time, that each doubling beyond the fitted sizes adds."""
SMALLEST = 0.5
"""A size of zero (no window, no context) counts as this one: one doubling below 1."""
Z90 = 1.6449
"""Normal quantile of a 90 % interval."""


@dataclass(frozen=True, eq=False)
class Corrected:
    """Prices one kind of kernel in one dtype on one device."""

    law: Law
    dtype: str
    """Of its arithmetic."""
    values: Values
    width: float
    """Half an interval: in deviations of the process, or on the logarithm of time where there is none."""
    process: Process | None = None
    """Of the law's residuals over `places`; None: the law alone."""
    watched: tuple[str, ...] = ()
    """Constants whose responses are among the places."""
    domain: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Smallest and largest of each size among the fitted kernels; a size that is not named is never beyond."""
    bounds: Bounds | None = None
    """None: the law is believed as it is."""

    def time_s(self, dims: Dims, facts: Facts) -> Floats:
        """Seconds of each kernel."""
        rows, inside, distance = self._split(dims)
        if self.process is None:
            return self._law_s(rows, facts)
        log_time, places = self.places(inside, facts)
        middle = self._logarithm(rows, facts, log_time, distance > 0)
        return np.asarray(np.exp(middle + _kept(distance) * self.process.mean(places)))

    def interval(self, dims: Dims, facts: Facts) -> tuple[Floats, Floats]:
        """Seconds between which 90 % of kernels like each lie."""
        middle, deviation, drift = self.spread(dims, facts)
        half = np.hypot(self.width * deviation, Z90 * drift)
        return np.exp(middle - half), np.exp(middle + half)

    def spread(self, dims: Dims, facts: Facts) -> tuple[Floats, Floats, Floats]:
        """Of each kernel, on the logarithm of time: its middle, the deviation that `width` multiplies, the law's drift.

        The deviation is 1 where there is no process.
        """
        rows, inside, distance = self._split(dims)
        drift = DRIFT * distance
        if self.process is None:
            return np.log(self._law_s(rows, facts)), np.ones_like(drift), drift
        log_time, places = self.places(inside, facts)
        kept, process = _kept(distance), self.process
        middle = self._logarithm(rows, facts, log_time, distance > 0) + kept * process.mean(places)
        unknown = process.scale**2 + process.apart**2 + process.noise**2
        return middle, np.sqrt(kept**2 * process.deviation(places) ** 2 + (1 - kept**2) * unknown), drift

    def places(self, dims: Dims, facts: Facts) -> tuple[Floats, Floats]:
        """log time of the law, shape (rows,), and where the process finds each kernel, shape (rows, features)."""
        rows = {name: np.atleast_1d(dims[name]) for name in dims}
        log_time, response = responses(self.law, rows, facts, self.dtype, self.values, self.watched)
        doublings = log_time[:, None] / np.log(2)
        return log_time, np.concatenate([features(rows, self.law.dims), doublings, RESPONSE * response], axis=1)

    def _split(self, dims: Dims) -> tuple[Dims, Dims, Floats]:
        """Sizes as arrays, the nearest ones within the domain, and how many doublings these are away."""
        rows = {name: np.atleast_1d(np.asarray(dims[name], dtype=float)) for name in dims}
        inside, squares = dict(rows), np.zeros(1)
        for name, (low, high) in self.domain.items():
            if name in rows and name not in CATEGORIES:
                inside[name] = np.clip(rows[name], low, high)
                squares = squares + (_placed(name, rows[name]) - _placed(name, inside[name])) ** 2
        return rows, inside, np.broadcast_to(np.sqrt(squares), next(iter(rows.values())).shape)

    def _logarithm(self, rows: Dims, facts: Facts, inside: Floats, beyond: NDArray[np.bool_]) -> Floats:
        """log time of the law, held. `inside`: the law's at the nearest sizes, a row's own unless it is beyond."""
        if beyond.any():
            return np.asarray(np.log(self._law_s(rows, facts)))
        return np.asarray(np.log(self._held(np.exp(inside), rows, facts)))

    def _law_s(self, rows: Dims, facts: Facts) -> Floats:
        return self._held(np.atleast_1d(self.law.time_s(rows, facts, self.dtype, self.values)), rows, facts)

    def _held(self, law_s: Floats, rows: Dims, facts: Facts) -> Floats:
        if self.bounds is None:
            return law_s
        return self.bounds.held(law_s, work(self.law.kind, rows, self.dtype), facts, self.dtype)


def _placed(name: str, size: Floats) -> Floats:
    """In doublings, as `roofline.laws.features` places a size."""
    return size if name in EXPONENTS else np.log2(np.maximum(size, SMALLEST))


def _kept(distance: Floats) -> Floats:
    """Part of a correction that is believed so many doublings beyond the fitted sizes."""
    return np.asarray(np.exp(-((distance / FADED) ** 2)))
