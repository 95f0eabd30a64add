"""The machine's own accounting, against work of another process."""

import subprocess
import sys
import time

import psutil

from profiler.timing.contention import other_work


def test_work_of_another_process_is_seen_and_our_own_is_not() -> None:
    burn = "import time; e = time.monotonic() + 1.5\nwhile time.monotonic() < e: pass"
    with other_work() as own:
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            pass
    busy = [subprocess.Popen([sys.executable, "-c", burn]) for _ in range(2)]
    with other_work() as other:
        for process in busy:
            process.wait()
    assert 0 <= own.share <= 1
    assert other.share * (psutil.cpu_count() or 1) > 0.8  # a core at least, of two processes; others can only add
