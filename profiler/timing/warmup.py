"""Warm-up to a steady state: calls until their time has stopped falling.

Lazy initialisation, page faults, clocks that rise and algorithms that are still being chosen all make the first calls
slower. Warm-up ends when the median of three calls is no longer below that of the three before, or when its time is
up; which of the two is recorded.

Example: ``warm_up(lambda: torch.mm(a, b, out=c), clock, min_s=0.0, max_s=0.2)[0].steady``
"""

import math
import statistics

from profiler.record.measurement import WarmUp
from profiler.timing.clock import Call, Clock

WINDOW = 3
"""Calls whose median is compared: the fewest that have a middle one."""
FALLING = 0.02
"""A median this much below the one before is still falling: the size of the interval that sampling asks for."""
FEWEST = 2
"""Calls at least: the first pays for initialisation, the second tells what a call takes."""


def warm_up(call: Call, clock: Clock, *, min_s: float, max_s: float, fewest: int = FEWEST) -> tuple[WarmUp, float]:
    """Run `call` until it is steady, for `min_s` to `max_s` seconds; also the seconds of the last call.

    `fewest` calls at least: 1 does where the call has run before. The first never counts towards steadiness.
    Raises ArithmeticError where the clock gives no finite time.
    """
    began = clock.now()
    times: list[float] = []
    while True:
        times.append(clock.time(call, 1))
        if not math.isfinite(times[-1]):
            raise ArithmeticError(f"the clock ({clock.name}) gave {times[-1]} s for a call")
        spent_s = clock.now() - began
        steady = is_steady(times[1:])
        if len(times) >= fewest and (spent_s >= max_s or (steady and spent_s >= min_s)):
            return WarmUp(calls=len(times), seconds=spent_s, steady=steady), times[-1]


def is_steady(times_s: list[float]) -> bool:
    """Whether the last `WINDOW` times are not below those before them; False while there are too few."""
    if len(times_s) < 2 * WINDOW:
        return False
    last, before = times_s[-WINDOW:], times_s[-2 * WINDOW : -WINDOW]
    return statistics.median(last) >= (1 - FALLING) * statistics.median(before)
