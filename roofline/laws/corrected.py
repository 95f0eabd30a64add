"""How a kernel is priced: a law at a device's constants, what it leaves as it was learnt, an interval around both.

Both a fresh fit (`calibrate.model`) and a spec's record of one (`roofline.calibrated`) price by this.

Example: ``low, high = Corrected(law, "bfloat16", values, process, width).interval(dims, facts)``
"""

from dataclasses import dataclass

import numpy as np

from roofline.laws.features import features
from roofline.laws.law import Dims, Facts, Floats, Law, Values
from roofline.laws.process import Process


@dataclass(frozen=True, eq=False)
class Corrected:
    """Prices one kind of kernel in one dtype on one device."""

    law: Law
    dtype: str
    """Of its arithmetic."""
    values: Values
    process: Process | None
    """Of the law's residuals; None: the law alone."""
    width: float
    """Half an interval: in deviations of the process, or on the logarithm of time where there is none."""

    def time_s(self, dims: Dims, facts: Facts) -> Floats:
        """Seconds of each kernel."""
        return self._priced(dims, facts, self._places(dims))

    def interval(self, dims: Dims, facts: Facts) -> tuple[Floats, Floats]:
        """Seconds between which 90 % of kernels like each lie."""
        places = self._places(dims)
        time_s = self._priced(dims, facts, places)
        half = np.exp(self.width * (self.process.deviation(places) if self.process else np.ones(len(time_s))))
        return time_s / half, time_s * half

    def _places(self, dims: Dims) -> Floats:
        return features({name: np.atleast_1d(dims[name]) for name in self.law.dims if name in dims}, self.law.dims)

    def _priced(self, dims: Dims, facts: Facts, places: Floats) -> Floats:
        time_s = np.atleast_1d(self.law.time_s(dims, facts, self.dtype, self.values))
        return time_s if self.process is None else np.asarray(time_s * np.exp(self.process.mean(places)))
