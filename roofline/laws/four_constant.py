"""The four-constant roofline, ``t0 + ((F/P)^p + (B/W)^p)^(1/p)``: what a law of a kind has to beat.

Needs the FLOPs and bytes of a kernel and nothing of its kind. Without constants, the bare datasheet roofline.

Example: ``FourConstant("matmul").time_s({"flops": f, "bytes": b}, facts, "bfloat16", values)``
"""

from dataclasses import dataclass

import numpy as np

from roofline.laws.law import Constant, Dims, Facts, Floats, Values


@dataclass(frozen=True, slots=True)
class FourConstant:
    """The law, for kernels of any kind."""

    kind: str
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


def blend(one: Floats, other: Floats, sharpness: float) -> Floats:
    """Two roofs: their maximum where `sharpness` is large, their sum where it is 1; seconds, of any size."""
    longest = np.maximum(np.maximum(one, other), np.finfo(float).tiny)
    return np.asarray(longest * ((one / longest) ** sharpness + (other / longest) ** sharpness) ** (1 / sharpness))


def datasheet_s(dims: Dims, facts: Facts, dtype: str) -> Floats:
    """Seconds by the datasheet's two peaks alone: the longer of arithmetic and memory."""
    peak = facts.matrix_flops_per_s.get(dtype, facts.vector_flops_per_s)
    return np.maximum(dims["flops"] / peak, dims["bytes"] / facts.bandwidth_bytes_per_s)
