"""One session of the torch profiler, written to a file: what every session needs, whatever runs in it.

On CUDA it begins with kernels that are not looked at, since the first ones of a session can be lost.

Contract: the file is there when the block has ended without an error, and `read_timeline` reads it.

Example::

    with recorded(path, device):
        with _RecordFunctionFast(PASS):
            model(**inputs)
    timeline = read_timeline(path)
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

SETTLING_LAUNCHES = 1024
"""Kernels that run at the start of each session on CUDA and are not looked at: in a process's k-th session CUPTI stamps
the first k kernels with a wrong clock, and kineto drops them (pytorch issue 192021). Some 5 ms."""


@contextmanager
def recorded(path: Path, device: torch.device, settling: int = SETTLING_LAUNCHES) -> Iterator[None]:
    """Profile the block into a file, after `settling` kernels."""
    is_cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_cuda else [])]
    with warnings.catch_warnings():
        # torch < 2.13 warns of it although a session has one cycle; `acc_events` would parse for a second instead
        warnings.filterwarnings("ignore", message=".*Profiler clears events")
        session = profile(activities=activities)
        session.start()
        try:
            if is_cuda:
                settle(device, settling)
            yield
        finally:
            session.stop()
    session.export_chrome_trace(str(path))


def settle(device: torch.device, launches: int) -> None:
    """Give a session kernels to lose."""
    with torch.cuda.device(device):
        for _ in range(launches):
            torch.cuda._sleep(1)
