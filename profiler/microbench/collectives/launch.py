"""Bandwidth of collectives among the GPUs of this machine (NCCL), or among processes of its CPU (gloo).

Ranks are separate processes under torchrun, so that NCCL runs as it does in serving; on a CPU each has one thread, and
they communicate over the loopback. Sizes and bus bandwidth are those of nccl-tests (`roofline.laws.work`). A
measurement is the time of the slowest rank; `calibrate.device.costs` fits latency, bandwidth and a `Link` to them.

Reading the ranks' lines blocks; nothing polls while ranks are timed. Whatever ends the reader (the last line, a
timeout, an interruption, `kill -9` of this process) ends the launcher and every rank: torchrun starts ranks in their
own sessions, out of reach of a signal to its group, so that each rank also holds the reading end of a named pipe, the
lifeline, whose writing end this process holds. Across machines, run the worker by hand (`worker` shows the command).
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

from profiler.microbench.bench import Bench
from profiler.microbench.collectives.cases import CASES
from profiler.microbench.collectives.worker import SMALLEST, failed, sizes
from profiler.record.measurement import Measurement

WORKER = "profiler.microbench.collectives.worker"
CPU_RANKS = (2, 4)
"""Fewest and most ranks on a CPU; between them, one rank for each core."""
START_S = 120.0
"""Longest time for importing torch on all ranks and for the first connections, on a busy machine."""
CASE_S, BUDGETS = 3.0, 5.0
"""Longest time of a case: `CASE_S` seconds for operands and checks, and `BUDGETS` times its budget."""
ROOT = Path(__file__).resolve().parents[3]
"""Folder of the packages, so that ranks import the same ones."""
GRACE_S = 10.0
"""Time for the launcher to end after SIGTERM."""
ERROR = re.compile(r"^(?:\[rank\d+\]: ?)?((?:\w+\.)*\w*(?:Error|Exception|Interrupt)\b.*)$")
SIGNAL = re.compile(r"traceback\s*:\s*(Signal .*)$")
"""Line of torchrun's summary for a rank that a signal ended."""
SUMMARY = re.compile(r"^E\d{4} .*torch/distributed")
"""First line of torchrun's report that a rank has failed."""
FRAME = re.compile(r"^[IW]\d{4} .*torch/distributed")
"""Other lines that torchrun logs itself, such as that it ends the other ranks."""


class LaunchFailed(RuntimeError):
    """The launcher failed; the message says why, in one line."""


def collectives(
    bench: Bench,
    *,
    operations: Sequence[str] = tuple(CASES),
    smallest: int = SMALLEST,
    largest: int | None = None,
    timeout_s: float | None = None,
) -> Iterator[Measurement]:
    """Time every operation at every size and yield as ranks finish; a failed measurement says why the rest is missing.

    Sizes are in bytes; `largest` None stands for the device's. Leaving the generator ends all ranks.
    """
    count = ranks(bench)
    if count < 2:
        yield failed("all", "one GPU: collectives need two or more", process=bench.process)
        return
    device = bench.device.type
    todo = len(operations) * len(sizes(device, quick=bench.quick, smallest=smallest, largest=largest))
    arguments = [
        *("--device", device, "--budget", str(bench.budget_s), "--process", str(bench.process)),
        *("--smallest", str(smallest), *(("--largest", str(largest)) if largest is not None else ())),
        *("--operations", *operations, *(("--quick",) if bench.quick else ())),
    ]
    limit_s = START_S + todo * (CASE_S + BUDGETS * bench.budget_s) if timeout_s is None else timeout_s
    had = 0
    try:
        for line in lines(WORKER, arguments, ranks=count, timeout_s=limit_s, environment=environment(bench)):
            had += 1
            yield Measurement.model_validate_json(line)
    except LaunchFailed as error:
        yield failed("remaining", f"after {had} of {todo} cases: {error}", process=bench.process)


def ranks(bench: Bench) -> int:
    """Number of processes to start: one for each GPU, or 2 to 4 on a CPU."""
    if not bench.backend.is_host:
        return bench.backend.count()
    fewest, most = CPU_RANKS
    return max(fewest, min(most, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else fewest))


def environment(bench: Bench) -> dict[str, str]:
    """Environment variables of the ranks: gloo stays within this machine, and a CPU's ranks use one thread each."""
    loopback = {"GLOO_SOCKET_IFNAME": "lo"}
    return {**loopback, "OMP_NUM_THREADS": "1"} if bench.backend.is_host else loopback


class _Launch:
    """A running torchrun with its lifeline and the pipe for the ranks' lines."""

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
        """Wait until the launcher has ended, then end everything."""
        self.process.wait()
        self.end()

    def time_out(self) -> None:
        self.timed_out = True
        self.end()

    def end(self) -> None:
        """End the ranks, the launcher and the stream of lines; further calls do nothing."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
            self._lifeline.unlink()  # before it is closed: a rank that starts late finds no pipe, and ends
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
    """Run a module on several ranks under torchrun and yield the lines of rank 0 as it writes them.

    The module takes `--out FILE`, which rank 0 appends lines to, and `--lifeline FILE` (`worker.hold`). `environment`
    is added to this process's own. Raises LaunchFailed, after all lines, where the launcher fails or is out of time.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    command += ["--nproc-per-node", str(ranks)]
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with TemporaryDirectory(prefix="roofcal-ranks-") as name:
        command += ["--log-dir", name, "-m", module, *arguments]  # without it torchrun leaves a folder behind
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
    """The reason of a failed launch: the signal that ended a rank, or the last error of a rank, or the last line with
    words. torchrun's own lines around them, and its SIGTERM to the other ranks, are skipped."""
    written = [line.strip() for line in log.splitlines() if re.search(r"\w", line)]
    signals = [match[1] for line in written if (match := SIGNAL.search(line)) and "SIGTERM" not in line]
    own = itertools.takewhile(lambda line: not SUMMARY.match(line), written)
    before = [line for line in own if not FRAME.match(line)]
    errors = [match[1] for line in before if (match := ERROR.match(line)) and "ChildFailedError" not in line]
    return next((last[-1] for last in (signals, errors, before, written) if last), None)


def _both_ends(pipe: Path) -> tuple[int, int]:
    """The reading and the writing end of a named pipe, opened without blocking."""
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(pipe, os.O_WRONLY)
    os.set_blocking(reader, True)
    return reader, writer
