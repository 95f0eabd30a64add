"""The law of many small matrix products in one call: `bmm`, and the experts of a mixture as `_grouped_mm` runs them.

``time = fixed + batch · piece + ((loops^p + traffic^p)^(1/p))``: each product costs a start of its own (`piece`), loops
reach half of their rate at `half_m`, `half_n` and `half_k` (Hockney's n½), and operands come from main memory or from a
cache in the share that the dim "cold" says. Weights of all products are read once.

Example: ``BatchedMatmul("batched_matmul").time_s({"batch": b, "m": m, "n": n, "k": k}, facts, "float32", values)``
"""

from dataclasses import dataclass

import numpy as np

from roofline.laws.driven_out import FETCH, driven_out
from roofline.laws.four_constant import blend
from roofline.laws.law import Constant, Dims, Facts, Floats, Values
from roofline.laws.matmul import ELEMENT_BYTES

SHARPNESS = 1.5
"""Power of the blend of loops and traffic: as little goes on at once as in a product on cores (1 adds them)."""


@dataclass(frozen=True, slots=True)
class BatchedMatmul:
    """The law; "batch" is the number of products, m, n and k are the sizes of each."""

    kind: str = "batched_matmul"
    dims: tuple[str, ...] = ("batch", "m", "n", "k")

    def constants(self, facts: Facts, dtype: str) -> tuple[Constant, ...]:
        """Nine, scaled to the device. Raises KeyError where its peak for the dtype is not known."""
        peak, memory = facts.matrix_flops_per_s[dtype], facts.bandwidth_bytes_per_s
        return (
            Constant("fixed", "s", 2e-7, 1e-3, 5e-6, 1.0, "cost of a call"),
            Constant("piece", "s", 1e-9, 1e-4, 5e-7, 1.5, "of one of its products"),
            Constant("rate", "FLOP/s", 0.01 * peak, 1.2 * peak, 0.6 * peak, 0.6, "of long loops on all units"),
            Constant("half_m", "1", 0.1, 300.0, 4.0, 1.0, "rows at which half of the rate is reached"),
            Constant("half_n", "1", 0.1, 1000.0, 10.0, 1.0, "columns at which it is"),
            Constant("half_k", "1", 0.1, 1000.0, 10.0, 1.0, "depth at which it is"),
            Constant("memory", "B/s", 0.02 * memory, 1.2 * memory, 0.5 * memory, 0.6, "operands out of main memory"),
            Constant("cache", "B/s", 0.05 * memory, 20 * memory, 1.5 * memory, 0.7, "operands in a cache"),
            FETCH,
        )

    def time_s(self, dims: Dims, facts: Facts, dtype: str, values: Values) -> Floats:
        """Seconds of each call. Raises ValueError for a dtype whose size is not known."""
        if dtype not in ELEMENT_BYTES:
            raise ValueError(f"size of {dtype} is not known; known: {', '.join(ELEMENT_BYTES)}")
        batch, m, n, k = (np.asarray(dims[name], dtype=float) for name in self.dims)
        loops = 2 * batch * m * n * k / values["rate"]
        for size, half in ((m, "half_m"), (n, "half_n"), (k, "half_k")):
            loops = loops * (1 + values[half] / size)
        moved = ELEMENT_BYTES[dtype] * batch * (m * k + k * n + m * n)
        cold = np.asarray(dims.get("cold", np.zeros_like(batch)), dtype=float)
        traffic = moved * (cold / values["memory"] + (1 - cold) / values["cache"])
        once = values["fixed"] + batch * values["piece"] + values["fetch"] * driven_out(dims, facts)
        return np.asarray(once + blend(loops, traffic, SHARPNESS))
