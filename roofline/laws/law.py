"""A law is a formula for the time of one kind of kernel from its sizes, a device's facts and a few constants.

A constant has a physical meaning (an effective bandwidth, a fixed cost), a unit, bounds and a prior: its expected value
before anything is measured, and how sure that is. `calibrate.kernels.fit` moves constants away from their priors; those
that the data cannot determine stay there. Laws are arithmetic on arrays and need neither a device nor a measured table.
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
    """Its physical meaning."""
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
        """Its constants for a dtype, with priors scaled to the device. Raises ValueError or KeyError: facts missing."""

    def time_s(self, dims: Dims, facts: Facts, dtype: str, values: Values) -> Floats:
        """Seconds of each kernel, in the shape of its sizes."""
