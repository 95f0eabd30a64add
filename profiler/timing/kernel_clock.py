"""A clock of kernels alone: the time in which the device was busy with the calls, as CUPTI stamps its kernels.

Where CUDA events include the gaps between kernels and wander by 10–30 µs, kernel spans wander by some 0.5 µs; each
sample is a profiler session, a fraction of a second, so it is for few samples of what must be known exactly.

Contract: the busy union of the kernels, copies and memsets that the calls launched, each instant counted once. Raises
InvalidMeasurement where the profiler lost an event or knows one without its launch, and for CUDA graphs. 0 s: the calls
launched nothing.

Example: ``KernelClock(torch.device("cuda")).time(lambda: torch.mm(a, b, out=c), 10)``
"""

import tempfile
import time
from pathlib import Path

import torch
from torch._C._profiler import _RecordFunctionFast

from profiler.attribution.kernels import check, join
from profiler.attribution.spans import PASS, passes
from profiler.attribution.timeline import Timeline, read_timeline
from profiler.devices.backend import backend_of
from profiler.record.errors import InvalidMeasurement
from profiler.timing.clock import Call
from profiler.timing.session import recorded


class KernelClock:
    """Calls that launch kernels, copies or memsets, profiled in a session of their own."""

    name = "kernel spans (CUPTI)"
    replays = False

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def now(self) -> float:
        return time.perf_counter()

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
