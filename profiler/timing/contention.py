"""How much of the machine something else used while we measured: other processes, and what a hypervisor took away.

Example::

    with other_work() as other:
        measure(...)
    other.share  # 0.4: of all the cores' time, so much went to something else
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil


@dataclass(slots=True)
class OtherWork:
    """Filled in when the block ends."""

    share: float = 0.0
    """Of the time of all cores, over the block."""


@contextmanager
def other_work() -> Iterator[OtherWork]:
    """Host time in the block that was neither idle nor this process's, by the system's own accounting (10 ms ticks)."""
    found = OtherWork()
    process = psutil.Process()
    start_s, busy_s, own_s = time.monotonic(), _busy_s(), _own_s(process)
    try:
        yield found
    finally:
        wall_s = time.monotonic() - start_s
        if wall_s > 0:
            other_s = (_busy_s() - busy_s) - (_own_s(process) - own_s)
            found.share = max(0.0, other_s) / (wall_s * (psutil.cpu_count() or 1))


def _busy_s() -> float:
    """CPU seconds since boot of all cores, time stolen by a hypervisor included."""
    times = psutil.cpu_times()._asdict()
    # `guest` time is part of `user` already (proc(5))
    return sum(s for name, s in times.items() if name not in ("idle", "iowait", "guest", "guest_nice"))


def _own_s(process: psutil.Process) -> float:
    """CPU seconds of this process and its threads."""
    times = process.cpu_times()
    return float(times.user + times.system)
