"""Whether a kernel's code and tables are still in a cache: by the dim "reach", the bytes touched since it last ran.

Example: ``values["fetch"] * driven_out(dims, facts)``
"""

import numpy as np

from roofline.laws.law import Constant, Dims, Facts, Floats

HELD = 0.5
"""Part of the last-level cache that other bytes have to touch to drive half of it out: an LRU cache would take all of
it, shared and hashed ones are less sure."""
KNEE = 2.0
"""How sharply."""
FETCH = Constant("fetch", "s", 1e-9, 1e-3, 1e-6, 1.5, "more where code and tables come from main memory")


def driven_out(dims: Dims, facts: Facts) -> Floats:
    """Share that no cache holds; 0 where "reach" is absent."""
    if "reach" not in dims:
        return np.zeros(1)
    size = (np.asarray(dims["reach"], dtype=float) / (HELD * facts.cache_bytes)) ** KNEE
    return np.asarray(size / (size + 1))
