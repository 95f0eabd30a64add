"""The law of a matrix-vector product: a product with one row streams its matrix once, and reuses nothing of it.

``time = launch + outputs · output + missed · rows · row · r / √(r² + ramp²) + bytes / B``

B goes from the cache's bandwidth to the memory's with the share of bytes that no cache holds, "missed": what other work
has driven out (dim "cold"), or what is more than `resident` of the last-level cache can hold. Each output ends with a
sum over the lanes of a vector, or of a group of threads: `output`, of all units together. Each row of r bytes, as the
matrix is stored, is a stream to begin anew out of main memory, `row`; one shorter than `ramp` has ended before that is
paid in full. First bytes out of main memory are waited for (`latency`), code that has been driven out is fetched.

Example: ``Matvec().time_s({"bytes_read": r, "bytes_written": w, "elements": n}, facts, "bfloat16", values)``
"""

import numpy as np

from roofline.laws.driven_out import FETCH, driven_out
from roofline.laws.law import Constant, Dims, Facts, Floats, Values

KNEE = 2.0
"""How sharply a cache is outgrown: the power of size over capacity."""


class Matvec:
    """The law; "elements" are outputs. Where absent, "cold" is 0 and "rows", of the matrix as it is stored, outputs."""

    kind = "matvec"
    dims: tuple[str, ...] = ("bytes_read", "bytes_written", "elements")

    def constants(self, facts: Facts, dtype: str) -> tuple[Constant, ...]:
        """Nine, scaled to the device."""
        del dtype
        memory = facts.bandwidth_bytes_per_s
        return (
            Constant("launch", "s", 1e-8, 1e-3, 2e-6, 0.7, "cost of a call without work"),
            Constant("output", "s", 1e-13, 1e-6, 2e-8 / facts.units, 1.5, "of one output on all units together"),
            Constant("row", "s", 1e-13, 1e-6, 4e-8 / facts.units, 1.5, "of a row out of main memory, likewise"),
            Constant("ramp", "B", 1.0, 1e5, 500.0, 1.0, "of a row, below which that is not paid in full"),
            Constant("memory", "B/s", 0.05 * memory, 1.2 * memory, 0.7 * memory, 0.5, "matrix out of main memory"),
            Constant("cache", "B/s", 0.1 * memory, 20 * memory, 2 * memory, 0.7, "matrix in a cache"),
            Constant("resident", "1", 0.02, 2.0, 0.5, 0.7, "part of the last-level cache that holds a matrix"),
            Constant("latency", "s", 1e-8, 2e-4, 2e-6, 1.0, "first bytes out of main memory"),
            FETCH,
        )

    def time_s(self, dims: Dims, facts: Facts, dtype: str, values: Values) -> Floats:
        """Seconds of each product."""
        del dtype
        moved = dims["bytes_read"] + dims["bytes_written"]
        size = (moved / (values["resident"] * facts.cache_bytes)) ** KNEE
        missed = 1 - (1 - size / (size + 1)) * (1 - dims.get("cold", np.zeros_like(moved)))
        streamed = moved * (missed / values["memory"] + (1 - missed) / values["cache"])
        once = values["launch"] + values["fetch"] * driven_out(dims, facts) + missed * values["latency"]
        rows = dims.get("rows", dims["elements"])
        started = rows * values["row"] / np.hypot(1.0, values["ramp"] * rows / moved)
        return np.asarray(once + dims["elements"] * values["output"] + missed * started + streamed)
