"""The machine's own accounting, against work of another process."""

import subprocess
import sys
import time

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
    assert other.share > 0.2  # two processes on the cores there are; the rest of the machine can only add
