"""What a law is: the time of one kind of operation from its sizes, a device's known facts, and a few constants.

A constant means something physically (an effective bandwidth, a fixed cost, how sharply two roofs blend), has a unit,
bounds, and a prior: what it is held to be, and how surely, before anything is measured. `calibrate.fit` moves constants
from their priors; where data cannot tell, they stay there. Laws are arithmetic on arrays: a hundred thousand kernels at
once, no device, no table of measured rows.

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
    """Of the prior: standard deviation of its natural logarithm, or of itself where `logarithmic` is off."""
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
    """Of the last-level cache."""
    bandwidth_bytes_per_s: float
    """Of main memory."""
    matrix_flops_per_s: Mapping[str, float]
    """Dense, by dtype of the inputs."""
    vector_flops_per_s: float
    """float32."""
    link_bytes_per_s: float | None = None
    """One direction, to others of its kind."""
    cores: bool = False
    """General-purpose cores with vector units, not units with matrix instructions on large tiles: a CPU."""
    assumed: tuple[str, ...] = ()
    """Those of the above that its datasheet does not say, with what is taken instead."""


class Law(Protocol):
    """The price of one kind of operation."""

    @property
    def kind(self) -> str:
        """As in calibrate's tables: "matmul", "prefill_attention", "decode_attention", "experts", "collective", …"""

    @property
    def dims(self) -> tuple[str, ...]:
        """Sizes that it needs, by name."""

    def constants(self, facts: Facts, dtype: str) -> tuple[Constant, ...]:
        """Its constants for a dtype, with priors from the device's facts."""

    def time_s(self, dims: Dims, facts: Facts, dtype: str, values: Values) -> Floats:
        """Seconds of each kernel."""
