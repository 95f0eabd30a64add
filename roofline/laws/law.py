"""What a law is: a formula for the time of one kind of kernel, from its sizes, a device's facts, and a few constants.

A constant means something physically (an effective bandwidth, a fixed cost, how sharply two roofs blend), has a unit,
bounds, and a prior: what it is held to be, and how surely, before anything is measured. `calibrate.kernels.fit` moves
constants from their priors; where data cannot tell, they stay there. Laws are arithmetic on arrays: a hundred thousand
kernels at once, no device, no table of measured rows. `roofline.laws.kinds` lists them all, by kind of kernel.

Example: ``law.time_s({"m": m, "n": n, "k": k}, device, "bfloat16", values)`` → seconds, shape of `m`
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
    """One number that a fit may move."""

    name: str
    unit: str
    low: float
    high: float
    """Bounds: outside them it would not mean what it says."""
    prior: float
    spread: float
    """Standard deviation of the prior's natural logarithm, or of the prior itself where `logarithmic` is off."""
    what: str
    """Its physical meaning, in one line."""
    logarithmic: bool = True
    """Fitted on a logarithmic scale: positive, known to a factor."""

    def __post_init__(self) -> None:
        if not self.low <= self.prior <= self.high or (self.logarithmic and self.low <= 0) or self.spread <= 0:
            raise ValueError(f"constant {self.name}: need low ≤ prior ≤ high (low > 0 on a logarithm) and spread > 0")


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a device without measuring it: its datasheet. A law scales its priors by these."""

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
    """Bandwidth to other devices of its kind, one direction."""
    cores: bool = False
    """General-purpose cores with vector units, not units with matrix instructions on large tiles: a CPU."""
    assumed: tuple[str, ...] = ()
    """Facts that its datasheet does not state, each with the value that is taken instead."""


class Law(Protocol):
    """The time of one kind of kernel."""

    @property
    def name(self) -> str:
        """Its name in stored specs: "matmul", "scaled_matmul", "core_matmul", "decode_attention", …"""

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the sizes that it needs."""

    def constants(self, facts: Facts, dtype: str) -> tuple[Constant, ...]:
        """Its constants for a dtype, with priors from the device's facts."""

    def time_s(self, dims: Dims, facts: Facts, dtype: str, values: Values) -> Floats:
        """Seconds of each kernel."""
