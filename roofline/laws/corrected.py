"""How a kernel is priced: a law at a device's constants, what it leaves as it was learnt, an interval around both.

Both a fresh fit (`calibrate.model`) and a spec's record of one (`roofline.calibrated`) price by this. Kernels resemble
each other as their sizes do, and as the law says: in their time, and in which constants decide it.

Example: ``low, high = Corrected(law, "bfloat16", values, width=2.1, process=process).interval(dims, facts)``
"""

from dataclasses import dataclass

import numpy as np

from roofline.laws.features import features
from roofline.laws.law import Dims, Facts, Floats, Law, Values
from roofline.laws.process import Process
from roofline.laws.sensitivity import responses

RESPONSE = 4.0
"""Doublings of a size that a constant which decides a kernel wholly counts as."""


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

    def time_s(self, dims: Dims, facts: Facts) -> Floats:
        """Seconds of each kernel."""
        if self.process is None:
            return self._law_s(dims, facts)
        log_time, places = self.places(dims, facts)
        return np.asarray(np.exp(log_time + self.process.mean(places)))

    def interval(self, dims: Dims, facts: Facts) -> tuple[Floats, Floats]:
        """Seconds between which 90 % of kernels like each lie."""
        if self.process is None:
            time_s = self._law_s(dims, facts)
            return time_s * np.exp(-self.width), time_s * np.exp(self.width)
        log_time, places = self.places(dims, facts)
        middle, half = log_time + self.process.mean(places), self.width * self.process.deviation(places)
        return np.exp(middle - half), np.exp(middle + half)

    def places(self, dims: Dims, facts: Facts) -> tuple[Floats, Floats]:
        """log time of the law, shape (rows,), and where the process finds each kernel, shape (rows, features)."""
        rows = {name: np.atleast_1d(dims[name]) for name in dims}
        log_time, response = responses(self.law, rows, facts, self.dtype, self.values, self.watched)
        doublings = log_time[:, None] / np.log(2)
        return log_time, np.concatenate([features(rows, self.law.dims), doublings, RESPONSE * response], axis=1)

    def _law_s(self, dims: Dims, facts: Facts) -> Floats:
        return np.atleast_1d(self.law.time_s(dims, facts, self.dtype, self.values))
