"""Runs a module on several ranks of this machine under torchrun and hands on the lines that it writes, as they come.

Reading blocks; nothing polls while ranks are timed. Whatever ends the reader (the last line, a timeout, an
interruption, `kill -9` of this very process) ends the launcher and every rank: torchrun starts ranks in sessions of
their own, out of reach of a signal to its group, so that each rank also holds a lifeline, a named pipe that this
process holds at the other end.

Contract: the module takes `--out FILE` (rank 0 appends lines to it) and `--lifeline FILE` (`collective_worker.hold`).
Raises LaunchFailed, after all lines, where the launcher fails or is out of time.

Example: ``for line in lines("profiler.microbench.collective_worker", ["--device", "cpu"], ranks=2, timeout_s=60): …``
"""

import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[2]
"""Folder of the packages, so that ranks import the same ones."""
GRACE_S = 10.0
"""For the launcher to end after SIGTERM."""
ERROR = re.compile(r"^(?:\[rank\d+\]: ?)?((?:\w+\.)*\w*(?:Error|Exception|Interrupt)\b.*)$")
SIGNAL = re.compile(r"traceback\s*:\s*(Signal .*)$")
"""In torchrun's summary, of a rank that did not fail by itself."""
SUMMARY = re.compile(r"^E\d{4} .*torch/distributed")
"""Where torchrun begins to tell that a rank has failed."""


class LaunchFailed(RuntimeError):
    """The launcher did not end well; the message says why, in one line."""


class _Launch:
    """A launcher with the two pipes, and one way to end them all."""

    def __init__(self, command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
        self._lifeline = folder / "lifeline"
        os.mkfifo(self._lifeline)
        os.mkfifo(folder / "out")
        self.reader, self._keeper = _both_ends(folder / "out")
        other, self._life = _both_ends(self._lifeline)
        os.close(other)
        self._lock = threading.Lock()
        self._ended = False
        self.timed_out = False
        with (folder / "stderr").open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--out", str(folder / "out"), "--lifeline", str(self._lifeline)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )

    def wait(self) -> None:
        """End everything when the launcher has ended."""
        self.process.wait()
        self.end()

    def time_out(self) -> None:
        self.timed_out = True
        self.end()

    def end(self) -> None:
        """Ranks, launcher, and the end of the lines; once."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
            self._lifeline.unlink()  # before it is let go: a rank that starts late finds no pipe, and ends
            os.close(self._life)
            if self.process.poll() is None:
                self.process.terminate()
                try:
                    self.process.wait(GRACE_S)
                except subprocess.TimeoutExpired:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(self.process.pid, signal.SIGKILL)
            os.close(self._keeper)


def lines(
    module: str,
    arguments: Sequence[str],
    *,
    ranks: int,
    timeout_s: float,
    environment: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """Lines that rank 0 writes. `environment` is added to this process's own."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"),
        *("--nproc-per-node", str(ranks)),
    ]
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with TemporaryDirectory(prefix="roofcal-ranks-") as name:
        command += ["--log-dir", name, "-m", module, *arguments]  # else torchrun leaves a folder behind
        launch = _Launch(command, Path(name), {**os.environ, "PYTHONPATH": paths, **(environment or {})})
        waiter = threading.Thread(target=launch.wait, name="torchrun", daemon=True)
        timer = threading.Timer(timeout_s, launch.time_out)
        timer.daemon = True
        try:
            waiter.start()
            timer.start()
            with os.fdopen(launch.reader, encoding="utf-8") as written:
                for line in written:
                    if line.endswith("\n"):  # a rank that is killed may leave half a line
                        yield line
        finally:
            timer.cancel()
            launch.end()
            waiter.join()
        if launch.timed_out:
            raise LaunchFailed(f"the ranks had not ended after {timeout_s:g} s")
        if code := launch.process.returncode:
            log = (Path(name) / "stderr").read_text(encoding="utf-8", errors="replace")
            raise LaunchFailed(last_words(log) or f"torchrun ended with exit code {code}")


def last_words(log: str) -> str | None:
    """What a failed launch says last that tells why: a signal that ended a rank, else the last error of a rank, else
    the last line with words; torchrun's own frame around them, and its SIGTERM to the other ranks, are passed over."""
    found = [line.strip() for line in log.splitlines() if re.search(r"\w", line)]
    signals = [match[1] for line in found if (match := SIGNAL.search(line)) and "SIGTERM" not in line]
    before = list(itertools.takewhile(lambda line: not SUMMARY.match(line), found))
    errors = [match[1] for line in before if (match := ERROR.match(line)) and "ChildFailedError" not in line]
    return next((last[-1] for last in (signals, errors, before, found) if last), None)


def _both_ends(pipe: Path) -> tuple[int, int]:
    """The reading and the writing end of a named pipe, opened without waiting for anybody."""
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(pipe, os.O_WRONLY)
    os.set_blocking(reader, True)
    return reader, writer
