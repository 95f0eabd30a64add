"""Runs one command for a limited time, and ends it together with everything that it has started.

Example: ``execute([sys.executable, "-m", "profiler", "doctor"], Path("doctor.txt"), 60.0).code == 0``
"""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from profiler.record.files import PARENT

ROOT = Path(__file__).parents[2]
"""Folder of the packages, so that commands import the same ones."""
GRACE_S = 10.0
"""Seconds from an interruption, after which a command writes what it has, until it is killed."""
PR_SET_PDEATHSIG = 1
"""Of <linux/prctl.h>."""


@dataclass(frozen=True)
class Outcome:
    """The end of a process; `code` is None where the process ran out of time."""

    code: int | None
    stdout: str


def execute(
    command: Sequence[str],
    log: Path,
    limit_s: float,
    variables: Mapping[str, str] | None = None,
    keep: Sequence[int] = (),
) -> Outcome:
    """Run a command for at most `limit_s`; then interrupt it as Ctrl-C does, and kill it if it does not end.

    Its stderr is added to the file `log`, and `variables` to its environment. It inherits the descriptors `keep`: a
    lock of them is held until it has ended, even if this process is killed before.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        PARENT: str(os.getpid()),
        **(variables or {}),
    }
    with log.open("a", encoding="utf-8") as stderr:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=environment,
            start_new_session=True,
            pass_fds=keep,
        )
        try:
            stdout, _ = process.communicate(timeout=limit_s)
            return Outcome(process.returncode, stdout)
        except subprocess.TimeoutExpired:
            return Outcome(None, "")
        finally:
            _end(process)


def end_with_parent() -> None:
    """Let this process end with the one that `execute` ran in: by SIGTERM of the kernel where that is killed (prctl(2),
    on Linux), by SIGINT where it interrupts this one, although jobs in the background ignore that and Ray blocks it.

    It does nothing in a process that `execute` has not started.
    """
    parent = os.environ.pop(PARENT, None)  # what this process starts is its own matter
    if parent is None:
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
    if str(os.getppid()) != parent:  # it has ended meanwhile
        raise SystemExit(128 + signal.SIGTERM)


def _end(process: "subprocess.Popen[str]") -> None:
    """Interrupt the process and all that it started, and kill them after a while."""
    for sign in (signal.SIGINT, signal.SIGKILL):
        if process.poll() is not None:
            return
        with suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=GRACE_S)
