"""Sessions of the torch profiler: how one is recorded, what recording costs, and a clock of kernels alone.

`KernelClock` times the kernels of calls as CUPTI stamps them: where CUDA events include the gaps between kernels and
vary by 10–30 µs, kernel spans vary by some 0.5 µs. Each sample is a session, a fraction of a second.

Example::

    with recorded(path, device):
        with _RecordFunctionFast(PASS):
            model(**inputs)
    timeline = read_timeline(path)
"""

import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch._C._profiler import _RecordFunctionFast
from torch.profiler import ProfilerActivity, profile

from profiler.attribution.kernels import check, join
from profiler.attribution.operations import PASS, passes
from profiler.attribution.timeline import Timeline, read_timeline
from profiler.devices.backend import backend_of
from profiler.record.run import InvalidMeasurement
from profiler.timing.clocks import Call, HostNow

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
