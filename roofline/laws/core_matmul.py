"""The law of a matrix product on cores with vector units: a CPU. n × k are weights, m × k activations.

``time = fixed + (loops^p + traffic^p)^(1/p)``. A core computes small blocks of the output from panels that it has
copied into its caches (Goto, van de Geijn, "Anatomy of high-performance matrix multiplication", ACM TOMS 34(3), 2008):
no large tiles that have to be full, but loops that need length to reach their rate. As in Hockney's n½, half of the
rate is reached at `half_m`, `half_n` and `half_k`. Copying the panels is traffic besides reading them, so `memory` and
`cache` are bytes of the operands per second of all that is done to them, below a device's bandwidth. Little of it goes
on beside the loops: p is near 1.

What no cache holds beforehand is weights first: as many bytes as the dim "cold" says, or what is more of them than
`resident` of the last-level cache can hold.

Example: ``CoreMatmul().time_s({"m": m, "n": n, "k": k}, facts, "float32", values)``
"""

import numpy as np

from roofline.laws.driven_out import FETCH, driven_out
from roofline.laws.four_constant import blend
from roofline.laws.law import Constant, Dims, Facts, Floats, Values
from roofline.laws.matmul import product_of


class CoreMatmul:
    """A product of two matrices by a library of blocked loops."""

    kind = "core_matmul"
    dims: tuple[str, ...] = ("m", "n", "k")

    def constants(self, facts: Facts, dtype: str) -> tuple[Constant, ...]:
        """Eleven, scaled to the device. Raises ValueError where its peak for the dtype is not known."""
        if dtype not in facts.matrix_flops_per_s:
            raise ValueError(f"no peak of {dtype} is known; known: {', '.join(sorted(facts.matrix_flops_per_s))}")
        peak, memory = facts.matrix_flops_per_s[dtype], facts.bandwidth_bytes_per_s
        return (
            Constant("fixed", "s", 2e-7, 1e-3, 5e-6, 1.0, "cost of a call that no size explains"),
            Constant("rate", "FLOP/s", 0.1 * peak, 1.2 * peak, 0.95 * peak, 0.2, "of long loops on all cores"),
            Constant("half_m", "1", 0.1, 100.0, 3.0, 1.0, "rows at which half of the rate is reached"),
            Constant("half_n", "1", 0.1, 1000.0, 10.0, 1.0, "columns at which it is"),
            Constant("half_k", "1", 0.1, 1000.0, 10.0, 1.0, "depth at which it is"),
            Constant("memory", "B/s", 0.02 * memory, memory, 0.4 * memory, 0.6, "operands out of main memory, copied"),
            Constant("cache", "B/s", 0.05 * memory, 20 * memory, 1.5 * memory, 0.7, "operands in a cache, copied"),
            Constant("resident", "1", 0.02, 2.0, 0.5, 0.7, "part of the last-level cache that holds weights"),
            Constant("latency", "s", 1e-8, 2e-4, 5e-6, 1.0, "first bytes of weights out of main memory"),
            Constant("sharpness", "1", 1.0, 6.0, 1.3, 0.3, "power of the blend of loops and traffic"),
            FETCH,
        )

    def time_s(self, dims: Dims, facts: Facts, dtype: str, values: Values) -> Floats:
        """Seconds of each product."""
        product = product_of(dims, dtype)
        loops = product.flops / values["rate"]
        for size, half in ((product.m, "half_m"), (product.n, "half_n"), (product.k, "half_k")):
            loops = loops * (1 + values[half] / size)
        weights = product.element_bytes * product.k * product.n
        others = product.element_bytes * (product.m * product.k + product.m * product.n)
        outgrown = weights**2 / (weights**2 + (values["resident"] * facts.cache_bytes) ** 2)
        outside = np.maximum(product.cold * (weights + others), outgrown * weights)
        traffic = outside / values["memory"] + (weights + others - outside) / values["cache"]
        waited = np.minimum(outside / weights, 1.0) * values["latency"]
        once = values["fixed"] + values["fetch"] * driven_out(dims, facts)
        return np.asarray(once + waited + blend(loops, traffic, values["sharpness"]))
