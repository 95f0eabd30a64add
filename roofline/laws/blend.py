"""Terms that several laws share: the blend of two roofs, code driven out of caches, and the four-constant roofline.

The four-constant roofline, ``t0 + ((F/P)^p + (B/W)^p)^(1/p)``, needs the FLOPs and bytes of a kernel and nothing of its
kind: it is what a law has to beat. Without constants, the bare datasheet roofline (`roofline.laws.work.datasheet_s`).

Example: ``FourConstant("matmul").time_s({"flops": f, "bytes": b}, facts, "bfloat16", values)``
"""

from dataclasses import dataclass

import numpy as np

from roofline.laws.law import Constant, Dims, Facts, Floats, Values


def blend(one: Floats | float, other: Floats | float, sharpness: float) -> Floats:
    """Two roofs: their maximum where `sharpness` is large, their sum where it is 1. At least the longer of the two, and
    at most 2^(1 / sharpness) of it; seconds, of any size."""
    longest = np.maximum(np.maximum(one, other), np.finfo(float).tiny)
    return np.asarray(longest * ((one / longest) ** sharpness + (other / longest) ** sharpness) ** (1 / sharpness))


def optional(dims: Dims, name: str, like: Floats) -> Floats:
    """A size that a law can do without; 0 where it is absent, in the shape of `like`."""
    return np.asarray(dims.get(name, np.zeros_like(like)), dtype=float)


EVICTED_BY = 0.5
"""Part of the last-level cache that other bytes have to touch to drive half of a kernel's code and tables out of it: an
LRU cache would take all of it, shared and hashed ones are less sure."""
EVICTION_SHARPNESS = 2.0
"""How sharply, as a power of bytes over capacity."""
FETCH = Constant("fetch", "s", 1e-9, 1e-3, 1e-6, 1.5, "more where code and tables come from main memory")


def evicted_code(dims: Dims, facts: Facts) -> Floats:
    """Share of a kernel's code and tables that no cache holds, by the dim "reach": the bytes that others have touched
    since it last ran. 0 where "reach" is absent."""
    if "reach" not in dims:
        return np.zeros(1)
    size = (np.asarray(dims["reach"], dtype=float) / (EVICTED_BY * facts.cache_bytes)) ** EVICTION_SHARPNESS
    return np.asarray(size / (size + 1))


@dataclass(frozen=True, slots=True)
class FourConstant:
    """The law, for kernels of any kind."""

    name: str
    dims: tuple[str, ...] = ("flops", "bytes")
    """FLOPs, and bytes read and written added."""

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
