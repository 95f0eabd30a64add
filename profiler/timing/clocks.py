"""Clocks that time calls on a device: the host's, CUDA events, CUDA graph replay, and kernel spans of a profiler.

A clock times several calls at once, so that a short kernel is not measured as its launch (CUDA) or as the clock's own
resolution (host). The floor is what a clock says of a call that does nothing: shorter times cannot be measured. Events
include the gaps between kernels and vary by 10–30 µs; `KernelClock` takes spans as CUPTI stamps them, which vary by
some 0.5 µs, but each of its samples is a profiler session (`recorded`), a fraction of a second.

Example: ``clock_for(torch.device("cpu")).time(lambda: torch.mm(a, b, out=c), 10)``
"""

import math
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Protocol
from weakref import WeakKeyDictionary

import torch
from torch._C._profiler import _RecordFunctionFast
from torch.profiler import ProfilerActivity, profile

from profiler.attribution.kernels import check, join
from profiler.attribution.operations import PASS, passes
from profiler.attribution.timeline import Timeline, read_timeline
from profiler.devices.backend import Graph, backend_of
from profiler.record.run import InvalidMeasurement

HOLD_LIMIT_S = 0.02
"""Longest hold of the device: time in which nothing is measured."""
HOLD_MARGIN = 1.5
"""Hold ÷ time in which the host enqueued as many calls before."""
WARM_UPS = 3
"""Calls on a side stream before a capture: the number in torch's own examples (docs, "CUDA Graphs")."""
READINGS = 101
"""Calls of a floor, of which the median counts."""
LIMIT_S = 0.5
"""Seconds after which fewer readings do: one of the kernel clock is a profiler session."""
ABOVE = 10
"""A sample shorter than this many floors is flagged: the floor itself then makes a tenth of it."""
Call = Callable[[], object]


class Clock(Protocol):
    """The interface of a clock that the sampler needs; tests inject clocks of their own."""

    name: str
    """Shown with the result."""
    replays: bool
    """Whether a sample runs the calls of the first one again, on the same operands, instead of calling anew."""

    def __hash__(self) -> int:
        """A clock is hashed by identity: its floor is measured once."""

    def now(self) -> float:
        """Seconds on the host's clock, for time limits."""

    def time(self, call: Call, repeats: int) -> float:
        """Seconds that `repeats` calls take together, from the first one's start to the last one's end."""


class HostNow:
    """A clock whose time limits are on the host's own."""

    replays = False

    def now(self) -> float:
        return time.perf_counter()


class HostClock(HostNow):
    """Calls that return when their work is done: a CPU."""

    name = "monotonic clock"

    def time(self, call: Call, repeats: int) -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        return time.perf_counter() - start


class EventClock(HostNow):
    """Calls that enqueue kernels on the current stream; events at both ends, the device idle before.

    While the host enqueues, a spinning kernel holds the device (as nvbench's blocking kernel does), so that kernels
    shorter than their launch run back to back and are not measured as launches. How long the host takes is learnt of
    each call, so give the same object again: the first sample of a call is not held.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._backend = backend_of(device)
        self._start, self._end = self._backend.event(), self._backend.event()
        self.name = f"{self._backend.label} events"
        self._issue_s: WeakKeyDictionary[Call, float] = WeakKeyDictionary()
        """Host time of a call, the least so far; a full queue or a first call takes longer."""

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


class NotCapturable(RuntimeError):
    """A call that does what no CUDA graph can hold."""


class GraphClock(HostNow):
    """Calls that enqueue kernels; the device is idle before, and held while the host launches the graph."""

    name = "graph replay"
    replays = True

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._events = EventClock(device)
        self._graphs: WeakKeyDictionary[Call, tuple[int, Call]] = WeakKeyDictionary()
        """Repeats that a graph of a call holds, and its replay, which keeps it alive."""

    def time(self, call: Call, repeats: int) -> float:
        held, replay = self._graphs.get(call, (0, call))
        if held != repeats:
            replay = capture(call, repeats, self._device).replay
            # The first replay uploads the graph, and tells how long the next one needs the device held.
            self._events.time(replay, 1)
            self._graphs[call] = repeats, replay
        return self._events.time(replay, 1)


def capture(call: Call, repeats: int, device: torch.device, instead: str = "time it with CUDA events") -> Graph:
    """A graph of `repeats` calls in a row; tensors that they make live as long as the graph.

    `instead`: what to do with a call that cannot be captured, for people.
    Raises NotCapturable, what the call itself raises in warm-up, and torch.OutOfMemoryError.
    """
    handled = sys.exception()
    backend = backend_of(device)
    with backend.on(device):
        with backend.beside(device) as side, side:  # what a library allocates or chooses first stays out of the graph
            for _ in range(WARM_UPS):
                call()
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="The CUDA Graph is empty")  # a clock's floor is such a call
                with backend.capture(device) as graph:
                    for _ in range(repeats):
                        call()
        except Exception as error:
            first = _first(error, handled)
            line = (str(first).strip().splitlines() or ["no message"])[0]
            if isinstance(first, torch.OutOfMemoryError):
                raise first from None
            raise NotCapturable(
                f"not captured in a CUDA graph ({type(first).__name__}: {line}): the call waits for the "
                f"device, or makes the host look at data; {instead}"
            ) from error
    return graph


def _first(error: BaseException, handled: BaseException | None) -> BaseException:
    """Return the first error: ending a broken capture raises another one, which only says that the capture is broken.

    `handled` is the error that was being handled before, and does not count.
    """
    while error.__context__ is not None and error.__context__ is not handled:
        error = error.__context__
    return error


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


SETTLING_LAUNCHES = 1024
"""Kernels that run at the start of each session on CUDA and are not looked at: in a process's k-th session CUPTI stamps
the first k kernels with a wrong clock, and kineto drops them (pytorch issue 192021). Some 5 ms."""
COST_CALLS, COST_ROWS = 50, 9
"""Small operations of a row, and rows: a row takes some 0.1 ms, and the middle row is the one that counts."""


@contextmanager
def recorded(path: Path, device: torch.device, settling: int = SETTLING_LAUNCHES) -> Iterator[None]:
    """Profile the block, after `settling` kernels, into a file that `read_timeline` reads once the block has ended."""
    backend = backend_of(device)
    session = profile(activities=backend.activities)
    with _running(session):
        backend.settle(device, settling)
        yield
    session.export_chrome_trace(str(path))


@contextmanager
def _running(session: profile) -> Iterator[None]:
    with warnings.catch_warnings():
        # torch < 2.13 warns of it although a session has one cycle; `acc_events` would parse for a second instead
        warnings.filterwarnings("ignore", message=".*Profiler clears events")
        session.start()
        try:
            yield
        finally:
            session.stop()


def event_cost_s(now: Callable[[], float] = time.perf_counter) -> float:
    """Host seconds by which the profiler lengthens a pass for each event that it records, 0 or more.

    Rows of a small operation, each of which is one event, are timed with the profiler and without it, in turn.
    """
    small = torch.zeros(1)

    def row_s() -> float:
        start = now()
        for _ in range(COST_CALLS):
            small.add_(small)
        return (now() - start) / COST_CALLS

    row_s()
    session = profile(activities=[ProfilerActivity.CPU])
    plain = [row_s() for _ in range(COST_ROWS)]
    with _running(session):
        profiled = [row_s() for _ in range(COST_ROWS + 1)][1:]
    plain += [row_s() for _ in range(COST_ROWS)]
    return max(0.0, statistics.median(profiled) - statistics.median(plain))


class KernelClock(HostNow):
    """Calls that launch kernels, copies or memsets, profiled in a session of their own."""

    name = "kernel spans (CUPTI)"

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def time(self, call: Call, repeats: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            backend = backend_of(self._device)
            with backend.on(self._device), recorded(path, self._device):
                backend.synchronize(self._device)
                with _RecordFunctionFast(PASS):
                    for _ in range(repeats):
                        call()
                    backend.synchronize(self._device)
            return busy_s(read_timeline(path))


def busy_s(timeline: Timeline) -> float:
    """Seconds in which the device worked on what was launched in the session's last pass.

    Raises InvalidMeasurement where that is not known.
    """
    windows = passes(timeline.host)
    if not windows:
        raise InvalidMeasurement("the profiler lost the range around the calls: profile again")
    if not timeline.device:  # the kernels before the calls are missing as well
        raise InvalidMeasurement(
            "the profiler saw no kernel on the GPU: let no other profiler use it, and allow its counters"
        )
    try:
        joined = join(timeline, (windows[-1].start_s, windows[-1].end_s), ())
    except ValueError as refused:
        raise InvalidMeasurement(str(refused)) from refused
    if problems := check(joined):
        raise InvalidMeasurement("; ".join(problems))
    return joined.device_s
