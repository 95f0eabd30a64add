"""The floor of a clock: the median of many readings, or of those that half a second allows."""

from profiler.timing.clock import Call
from profiler.timing.floor import LIMIT_S, READINGS, floor_s, too_short


class Clock:
    """Readings that cost what they are told to."""

    name = "simulated"
    replays = False

    def __init__(self, reading_s: float) -> None:
        self.reading_s, self.at, self.taken = reading_s, 0.0, 0

    def now(self) -> float:
        return self.at

    def time(self, call: Call, repeats: int) -> float:
        call()
        self.at += self.reading_s
        self.taken += 1
        return 1e-7 * self.taken


def test_a_quick_clock_is_read_often() -> None:
    clock = Clock(1e-6)
    assert floor_s(clock) == 1e-7 * (READINGS + 1) / 2 and clock.taken == READINGS
    floor_s(clock)
    assert clock.taken == READINGS, "once for each clock"


def test_a_slow_clock_is_read_once_at_least_and_not_for_long() -> None:
    slow, slowest = Clock(LIMIT_S / 4), Clock(10 * LIMIT_S)
    floor_s(slow)
    floor_s(slowest)
    assert (slow.taken, slowest.taken) == (4, 1)


def test_ten_floors_are_enough() -> None:
    assert too_short(9e-7, 1e-7) and not too_short(11e-7, 1e-7)
