"""Terms that several laws share: the blend of two roofs, the fetch of evicted code, and the four-constant roofline.

The four-constant roofline, ``t0 + ((F/P)^p + (B/W)^p)^(1/p)``, knows only the FLOPs and bytes of a kernel, whatever its
kind: a law must be better than this.
"""

from dataclasses import dataclass

import numpy as np

from roofline.laws.law import Constant, Dims, Facts, Floats, Values


def blend(first: Floats | float, second: Floats | float, sharpness: float) -> Floats:
    """Blend of two times in seconds: near their maximum where `sharpness` is large, their sum where it is 1."""
    longest = np.maximum(np.maximum(first, second), np.finfo(float).tiny)
    return np.asarray(longest * ((first / longest) ** sharpness + (second / longest) ** sharpness) ** (1 / sharpness))


def optional(dims: Dims, name: str, like: Floats) -> Floats:
    """An optional size; 0 in the shape of `like` where it is absent."""
    return np.asarray(dims.get(name, np.zeros_like(like)), dtype=float)


EVICTED_BY = 0.5
"""Part of the last-level cache that other bytes must touch to evict half of a kernel's code and tables: all of it in an
LRU cache, less in a shared or hashed one."""
EVICTION_SHARPNESS = 2.0
"""Power of (bytes ÷ capacity) with which the evicted share grows."""
FETCH = Constant("fetch", "s", 1e-9, 1e-3, 1e-6, 1.5, "additional cost where code and tables come from main memory")


def evicted_code(dims: Dims, facts: Facts) -> Floats:
    """Share of a kernel's code and tables that no cache holds, from the dim "reach" (0 where it is absent): the bytes
    that other operations have touched since the kernel last ran."""
    if "reach" not in dims:
        return np.zeros(1)
    size = (np.asarray(dims["reach"], dtype=float) / (EVICTED_BY * facts.cache_bytes)) ** EVICTION_SHARPNESS
    return np.asarray(size / (size + 1))


@dataclass(frozen=True, slots=True)
class FourConstant:
    """The four-constant roofline for kernels of any kind; "bytes" are those read and written."""

    name: str
    dims: tuple[str, ...] = ("flops", "bytes")

    def constants(self, facts: Facts, dtype: str) -> tuple[Constant, ...]:
        peak = facts.matrix_flops_per_s.get(dtype, facts.vector_flops_per_s)
        memory = facts.bandwidth_bytes_per_s
        return (
            Constant("fixed", "s", 1e-8, 1e-2, 5e-6, 1.5, "cost of a kernel without work"),
            Constant("peak", "FLOP/s", 1e-3 * peak, 2 * peak, 0.7 * peak, 1.0, "effective, of its arithmetic"),
            Constant("bandwidth", "B/s", 1e-3 * memory, 10 * memory, 0.8 * memory, 1.0, "effective, of its bytes"),
            Constant("sharpness", "1", 0.5, 20.0, 3.0, 1.0, "how sharply the two roofs blend"),
        )

    def time_s(self, dims: Dims, facts: Facts, dtype: str, values: Values) -> Floats:
        compute, memory = dims["flops"] / values["peak"], dims["bytes"] / values["bandwidth"]
        return np.asarray(values["fixed"] + blend(compute, memory, values["sharpness"]))
