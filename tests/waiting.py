"""Waiting for what another process does, for as long as the machine takes.

A test never counts on how fast something is: it waits until the other process has said, or written, that it has come
as far as the test needs. `LAST_RESORT_S` is no expectation; it makes a test fail that would otherwise hang.

Example::

    child = subprocess.Popen(command)
    until(journal.exists, child)
    child.send_signal(signal.SIGINT)
"""

import subprocess
import time
from collections.abc import Callable

LAST_RESORT_S = 600.0
"""Many times what any wait of these tests takes on two busy cores."""
POLL_S = 0.02


def until(holds: Callable[[], object], child: "subprocess.Popen[str] | None" = None) -> None:
    """Return as soon as `holds()` is true.

    Raises AssertionError where the child has ended before that, with what it wrote to a piped stderr, and after
    `LAST_RESORT_S` seconds.
    """
    deadline_s = time.monotonic() + LAST_RESORT_S
    while not holds():
        if child is not None and child.poll() is not None and not holds():
            said = child.stderr.read() if child.stderr else ""
            raise AssertionError(f"the process ended with code {child.returncode} before it came so far: {said}")
        assert time.monotonic() < deadline_s, f"nothing within {LAST_RESORT_S:g} s"
        time.sleep(POLL_S)
