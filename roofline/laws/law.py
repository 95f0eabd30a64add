"""A law is a formula for the time of one kind of kernel from its sizes, a device's facts and a few constants.

A constant has a physical meaning (an effective bandwidth, a fixed cost), a unit, bounds and a prior: its expected value
before anything is measured, and how sure that is. `calibrate.kernels.fit` moves constants away from their priors; those
that the data cannot determine stay there. Laws are arithmetic on arrays and need neither a device nor a measured table.
Here are also the terms that several laws share (the blend of two roofs, the fetch of evicted code), and the
four-constant roofline, ``t0 + ((F/P)^p + (B/W)^p)^(1/p)``, which every law must beat: it knows FLOPs and bytes only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Dims = Mapping[str, Floats]
"""Sizes of kernels by name, all of one shape."""
Values = Mapping[str, float]
"""Constants by name."""


@dataclass(frozen=True, slots=True)
class Constant:
    """A number that a fit may move."""

    name: str
    unit: str
    low: float
    high: float
    """Bounds, beyond which the value would lose its meaning."""
    prior: float
    spread: float
    """Standard deviation of the prior's natural logarithm, or of the prior itself where `logarithmic` is off."""
    what: str
    """Physical meaning of the constant."""
    logarithmic: bool = True
    """The fit moves its logarithm: it is positive and known to a factor."""

    def __post_init__(self) -> None:
        if not self.low <= self.prior <= self.high or (self.logarithmic and self.low <= 0) or self.spread <= 0:
            raise ValueError(f"constant {self.name}: need low ≤ prior ≤ high (low > 0 on a logarithm) and spread > 0")


@dataclass(frozen=True, slots=True)
class Facts:
    """The datasheet of a device. A law scales its priors by these figures."""

    units: int
    """Streaming multiprocessors, compute units, cores."""
    cache_bytes: float
    """Size of the last-level cache."""
    bandwidth_bytes_per_s: float
    """Bandwidth of main memory."""
    matrix_flops_per_s: Mapping[str, float]
    """Dense peaks by dtype of the inputs."""
    vector_flops_per_s: float
    """Peak of the vector units in float32."""
    link_bytes_per_s: float | None = None
    """Bandwidth in one direction to other devices of its kind."""
    cores: bool = False
    """True for a CPU: general-purpose cores with vector units instead of matrix instructions on large tiles."""
    assumed: tuple[str, ...] = ()
    """Facts that its datasheet does not state, each with the value that is assumed instead."""


class Law(Protocol):
    """The time of one kind of kernel."""

    @property
    def name(self) -> str:
        """The name that stored specs use: "matmul", "decode_attention", …"""

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the sizes that it needs."""

    def constants(self, facts: Facts, dtype: str) -> tuple[Constant, ...]:
        """The law's constants for a dtype, priors scaled to the device. Raises ValueError or KeyError where facts are
        missing."""

    def time_s(self, dims: Dims, facts: Facts, dtype: str, values: Values) -> Floats:
        """Seconds of each kernel, in the shape of its sizes."""


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
FETCH = Constant("fetch", "s", 1e-9, 4e-5, 1e-6, 1.5, "additional cost where code and tables come from main memory")
"""At most the time in which an instruction cache of 32 KiB is filled from main memory, 512 lines one after another at
80 ns each. Without that bound a single slow kernel of a calibration made it 400 µs, and six operators of a model 2 to 7
times too long; of operators that were measured often enough, the constant is 1 to 30 µs on an EPYC."""


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
