"""The measure of a union of intervals, for tests to hold shared times against.

Example: ``union_s(np.array([0.0, 1.0]), np.array([2.0, 3.0])) == 3``
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def union_s(starts: Floats, ends: Floats) -> float:
    """Measure of the union, in the unit of the ends."""
    if not len(starts):
        return 0.0
    order = np.argsort(starts, kind="stable")
    starts, ends = starts[order], np.maximum.accumulate(ends[order])
    covered = np.concatenate([[starts[0]], ends[:-1]])
    return float(np.sum(np.maximum(0.0, ends - np.maximum(starts, covered))))
