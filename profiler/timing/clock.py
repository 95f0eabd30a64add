"""Clocks that time calls on a device: the monotonic clock of the host, and CUDA events.

A clock times several calls at once, so that a short kernel is not measured as its launch (CUDA) or as the clock's
own resolution (host).

Example: ``clock_for(torch.device("cpu")).time(lambda: torch.mm(a, b, out=c), 10)``
"""

import math
import time
from collections.abc import Callable
from typing import Protocol
from weakref import WeakKeyDictionary

import torch

from profiler.devices.backend import backend_of

Call = Callable[[], object]


class Clock(Protocol):
    """What the sampler needs; tests inject their own."""

    name: str
    """Shown with the result."""
    replays: bool
    """Whether a sample runs the calls of the first one again, on the same operands, instead of calling anew."""

    def __hash__(self) -> int:
        """By identity: the floor of a clock is measured once."""

    def now(self) -> float:
        """Seconds on the host's clock, for time limits."""

    def time(self, call: Call, repeats: int) -> float:
        """Seconds that `repeats` calls take together, from the first one's start to the last one's end."""


class HostClock:
    """Calls that return when their work is done: a CPU."""

    name = "monotonic clock"
    replays = False

    def now(self) -> float:
        return time.perf_counter()

    def time(self, call: Call, repeats: int) -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        return time.perf_counter() - start


HOLD_LIMIT_S = 0.02
"""Longest hold of the device: time in which nothing is measured."""
HOLD_MARGIN = 1.5
"""Hold ÷ time in which the host enqueued as many calls before."""


class EventClock:
    """Calls that enqueue kernels on the current stream; events at both ends, the device idle before.

    While the host enqueues, a spinning kernel holds the device (as nvbench's blocking kernel does), so that kernels
    shorter than their launch run back to back and are not measured as launches. How long the host takes is learnt of
    each call, so give the same object again: the first sample of a call is not held.
    """

    replays = False

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._backend = backend_of(device)
        self._start, self._end = self._backend.event(), self._backend.event()
        self.name = f"{self._backend.label} events"
        self._issue_s: WeakKeyDictionary[Call, float] = WeakKeyDictionary()
        """Host time of a call, the least so far; a full queue or a first call takes longer."""

    def now(self) -> float:
        return time.perf_counter()

    def time(self, call: Call, repeats: int) -> float:
        with self._backend.on(self._device):
            self._backend.synchronize(self._device)
            self.hold(call, repeats)
            return self.timed(call, repeats)

    def hold(self, call: Call, repeats: int) -> None:
        """Keep the device busy for as long as the host will take to enqueue; not at all where that is not known yet."""
        if (known_s := self._issue_s.get(call)) is not None:
            self._backend.hold(self._device, min(HOLD_LIMIT_S, HOLD_MARGIN * known_s * repeats))

    def timed(self, call: Call, repeats: int) -> float:
        """Seconds between events around the calls, on whatever the stream holds already."""
        self._start.record()
        begin = self.now()
        for _ in range(repeats):
            call()
        self._issue_s[call] = min(self._issue_s.get(call, math.inf), (self.now() - begin) / repeats)
        self._end.record()
        self._end.synchronize()
        return self._start.elapsed_time(self._end) * 1e-3  # elapsed_time is in ms


def clock_for(device: torch.device) -> Clock:
    """The clock of a device. Raises ValueError for a device type without one."""
    return EventClock(device) if backend_of(device).runs_ahead_of_host else HostClock()
