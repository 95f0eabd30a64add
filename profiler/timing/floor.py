"""What a clock says of a call that does nothing: below it nothing can be told, and close above it not much.

Example: ``floor_s(HostClock())`` is some 100 ns, two readings of the clock and an empty call
"""

import statistics
from functools import lru_cache

from profiler.timing.clock import Clock

READINGS = 101
LIMIT_S = 0.5
"""Seconds after which fewer readings do: one of the kernel clock is a profiler session."""
ABOVE = 10
"""A sample shorter than this many floors is flagged: the floor itself then makes a tenth of it."""


@lru_cache(maxsize=16)
def floor_s(clock: Clock) -> float:
    """Seconds between the two ends of the clock with an empty call between them, the median; once for each clock."""
    began = clock.now()
    readings: list[float] = []
    while not readings or (len(readings) < READINGS and clock.now() - began < LIMIT_S):
        readings.append(clock.time(_nothing, 1))
    return statistics.median(readings)


def too_short(sample_s: float, floor: float) -> bool:
    """Whether a sample of so many seconds lies under `ABOVE` floors of its clock."""
    return sample_s < ABOVE * floor


def _nothing() -> None:
    """An empty call."""
