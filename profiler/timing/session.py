"""One session of the torch profiler, written to a file: what every session needs, whatever runs in it.

On CUDA it begins with kernels that are not looked at, since the first ones of a session can be lost.

Contract: the file is there when the block has ended without an error, and `read_timeline` reads it.

Example::

    with recorded(path, device):
        with _RecordFunctionFast(PASS):
            model(**inputs)
    timeline = read_timeline(path)
"""

import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from profiler.devices.backend import backend_of

SETTLING_LAUNCHES = 1024
"""Kernels that run at the start of each session on CUDA and are not looked at: in a process's k-th session CUPTI stamps
the first k kernels with a wrong clock, and kineto drops them (pytorch issue 192021). Some 5 ms."""

COST_CALLS, COST_ROWS = 50, 9
"""Small operations of a row, and rows: a row takes some 0.1 ms, and the middle row is the one that counts."""


@contextmanager
def recorded(path: Path, device: torch.device, settling: int = SETTLING_LAUNCHES) -> Iterator[None]:
    """Profile the block into a file, after `settling` kernels."""
    backend = backend_of(device)
    with warnings.catch_warnings():
        # torch < 2.13 warns of it although a session has one cycle; `acc_events` would parse for a second instead
        warnings.filterwarnings("ignore", message=".*Profiler clears events")
        session = profile(activities=backend.activities)
        session.start()
        try:
            backend.settle(device, settling)
            yield
        finally:
            session.stop()
    session.export_chrome_trace(str(path))


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

    plain, profiled = [], []
    row_s()
    session = profile(activities=[ProfilerActivity.CPU])
    plain += [row_s() for _ in range(COST_ROWS)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Profiler clears events")
        session.start()
        try:
            profiled += [row_s() for _ in range(COST_ROWS + 1)][1:]
        finally:
            session.stop()
    plain += [row_s() for _ in range(COST_ROWS)]
    return max(0.0, statistics.median(profiled) - statistics.median(plain))
