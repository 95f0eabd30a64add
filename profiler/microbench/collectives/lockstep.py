"""Times calls that several ranks make together: all start at once, and the time of the slowest rank counts.

Every decision (how long to warm up, how often to repeat, how many samples) is made from times that the ranks have
exchanged, so that all decide alike without a leader; a stop rule that looks at its own samples would leave others
waiting. A phase that fails on one rank fails on all in the same exchange, so that none waits for another. The ranks
meet before each sample; on a GPU in the stream itself, after the hold, because ranks hold their devices for different
times. Samples are exchanged after the last one, outside the timing.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from profiler.devices.backend import PerDevice, backend_of
from profiler.microbench.collectives.cases import Operands
from profiler.record.measurement import WarmUp
from profiler.timing.clocks import Call, Clock, EventClock, HostClock

SAMPLE_S = PerDevice(host=2e-4, accelerator=1e-3)
"""Shortest sample: many times the difference with which ranks leave a barrier (some 10 µs)."""
MOST_SAMPLES = 50
FEWEST_SAMPLES = 5
"""Samples that are taken even where that takes longer than the budget."""
WARM_UP_PART = 0.25
"""Part of the budget for the warm-up."""
FALLING = 0.02
"""A call is steady when it is less than this fraction faster than before, as in `profiler.timing.engine`."""
MOST_REPEATS = 10_000

Phase = Callable[[], Sequence[float]]
"""A step of a rank, alone or with the others, that returns times."""
Share = Callable[[Phase], list[float]]
"""Runs a phase and returns the maximum of each time over all ranks; raises on all ranks if the phase raises on any."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Number of samples, and of calls in each, the same on all ranks."""

    repeats: int
    samples: int


@dataclass(frozen=True, slots=True)
class Together:
    """The result of a measurement, the same on every rank."""

    times_s: tuple[float, ...]
    """Seconds a call of the slowest rank."""
    repeats: int
    warm_up: WarmUp
    clock: str


class HostLockstep(HostClock):
    """Times calls that return when their work is done: gloo on a CPU."""

    name = "monotonic clock, slowest rank"

    def __init__(self, meet: Call) -> None:
        """`meet` returns on all ranks at once."""
        self._meet = meet

    def time(self, call: Call, repeats: int) -> float:
        self._meet()
        return super().time(call, repeats)


class EventLockstep(EventClock):
    """Times calls that enqueue kernels, with a collective of a few bytes between the hold and the start."""

    def __init__(self, device: torch.device, meet: Call) -> None:
        """`meet` enqueues something that ends on all ranks at once."""
        super().__init__(device)
        self._meet = meet
        self.name += ", slowest rank"

    def time(self, call: Call, repeats: int) -> float:
        with self._backend.on(self._device):
            self._meet()  # on the host, so that no rank's hold is over before another's begins
            self._backend.synchronize(self._device)
            self.hold(call, repeats)
            self._meet()
            return self.timed(call, repeats)


def lockstep_clock(device: torch.device, meet: Call) -> Clock:
    """The clock of a device among ranks that `meet`."""
    return EventLockstep(device, meet) if backend_of(device).runs_ahead_of_host else HostLockstep(meet)


def plan(call_s: float, *, budget_s: float, sample_s: float, most_repeats: int | None = None) -> Plan:
    """Repeats that make a sample long enough, and as many samples as fit the budget, from one call's time."""
    call_s = max(call_s, 1e-9)
    repeats = max(1, min(math.ceil(sample_s / call_s), most_repeats or MOST_REPEATS))
    return Plan(repeats, max(FEWEST_SAMPLES, min(MOST_SAMPLES, int(budget_s / (repeats * call_s)))))


def measure(
    operands: Operands,
    clock: Clock,
    share: Share,
    *,
    budget_s: float,
    sample_s: float,
    most_repeats: int | None = None,
) -> Together:
    """Check, warm up, time and check again a call on all ranks. Raises what `share` raises for a failure."""

    def sampled(repeats: int, samples: int) -> list[float]:
        times = []
        for _ in range(samples):
            operands.reset()
            times.append(clock.time(operands.run, repeats))
        if not all(math.isfinite(taken) and taken > 0 for taken in times):
            raise ArithmeticError(f"the clock ({clock.name}) gave no positive time for {repeats} calls")
        return times

    def checked(repeats: int) -> list[float]:
        operands.check(repeats)
        return []

    share(lambda: sampled(1, 1))
    share(lambda: checked(1))
    warmed, call_s = warm_up(
        lambda repeats: share(lambda: sampled(repeats, 1))[0], max_s=WARM_UP_PART * budget_s, most_repeats=most_repeats
    )
    todo = plan(call_s, budget_s=(1 - WARM_UP_PART) * budget_s, sample_s=sample_s, most_repeats=most_repeats)
    times = share(lambda: sampled(todo.repeats, todo.samples))
    share(lambda: checked(todo.repeats))
    return Together(tuple(taken / todo.repeats for taken in times), todo.repeats, warmed, clock.name)


def warm_up(round_s: Callable[[int], float], *, max_s: float, most_repeats: int | None = None) -> tuple[WarmUp, float]:
    """Make rounds of 1, 2, 4, … calls until a call is no faster than in the round before, or the time is up.

    `round_s` runs so many calls and returns their seconds. Also returns the seconds of a call in the last round.
    """
    calls, spent_s, repeats, before = 0, 0.0, 1, math.inf
    while True:
        taken = round_s(repeats)
        calls, spent_s, call_s = calls + repeats, spent_s + taken, taken / repeats
        steady = call_s >= (1 - FALLING) * before
        if math.isfinite(before) and (steady or spent_s >= max_s):
            return WarmUp(calls=calls, seconds=spent_s, steady=steady), call_s
        before, repeats = call_s, min(2 * repeats, most_repeats or MOST_REPEATS)
