"""The two sides of a gate, and the processes that time their kernels in turns.

A side is a file of kernels, an interpreter, a source tree, or a commit of the repository in the current folder. Where
it is not itself a file of kernels, both sides run the same one, so that the benchmark never changes with the code.

Example::

    with sides("main", "HEAD", Path("bench.py")) as (base, new):
        pairs, failed = Turns(base, new, random).draw(["rms_norm"], 10)
"""

import json
import os
import random as randomness
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from profiler.record.run import RequestError
from roofline.reading import MOST_BYTES, entry, read_bytes

WORKER = Path(__file__).with_name("worker.py")
TIMEOUT_S = 600.0
"""Seconds that one process may take, for all of its kernels."""
VISIBLE = "CUDA_VISIBLE_DEVICES"
"""The variable that says which GPUs a process sees, for CUDA and for ROCm."""
Pairs = dict[str, list[tuple[float, float]]]


@dataclass(frozen=True)
class Arm:
    """One side: what starts its processes."""

    name: str
    interpreter: str
    file: Path
    """The file of kernels."""
    tree: Path | None = None
    """Folder that is the working directory of its processes, and first among their modules."""
    commit: str | None = None


@dataclass
class Sample:
    """Findings of one process."""

    seconds: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    found: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    devices: tuple[str, ...] = ()
    """Names of the GPUs that its process may use."""


@contextmanager
def sides(base: str, new: str, kernels: Path | None) -> Iterator[tuple[Arm, Arm]]:
    """The arms that two texts stand for; commits are checked out beside the repository, and removed at the end.

    Raises RequestError, one line, where a text stands for nothing, or the kernels are not given.
    """
    with tempfile.TemporaryDirectory(prefix="roofcal-gate-") as folder:
        made: list[Path] = []
        try:
            yield _arm(base, kernels, Path(folder) / "base", made), _arm(new, kernels, Path(folder) / "new", made)
        finally:
            for tree in made:
                with suppress(OSError):
                    _git("worktree", "remove", "--force", str(tree))


class Turns:
    """Times kernels in pairs of fresh processes, base and new in ABBA order that begins at random."""

    def __init__(
        self, base: Arm, new: Arm, random: randomness.Random, seconds: float = 0.2, timeout_s: float = TIMEOUT_S
    ) -> None:
        self.base, self.new, self._random = base, new, random
        self._seconds, self._timeout_s = seconds, timeout_s
        self.processes = 0
        """Processes that were started."""
        self.second: str | None = None
        """CUDA's name of a second GPU like the first, which draws again; None where there is none, or after no `list`.
        """

    def list(self, arm: Arm) -> Sample:
        """The names of an arm's kernels. Raises RequestError where its file cannot be run at all."""
        sample = self._run(arm, None)
        if len(sample.devices) > 1 and sample.devices[1] == sample.devices[0]:
            visible = os.environ.get(VISIBLE, "").split(",")
            self.second = visible[1].strip() if len(visible) > 1 else "1"
        if why := sample.failed.get(""):
            raise RequestError(f"{arm.name}: {arm.file} cannot be run by {arm.interpreter} ({why}); mend it first")
        return sample

    def draw(
        self, kernels: Sequence[str], pairs: int, against_itself: bool = False, again: bool = False
    ) -> tuple[Pairs, dict[str, str]]:
        """(base, new) seconds of each kernel in each pair, and the kernels that failed with the reason.

        A kernel that failed once is not run again. Both arms are the base if `against_itself`. Pairs that are drawn
        `again` run on the second GPU where there is one.
        """
        times: Pairs = {name: [] for name in kernels}
        failed: dict[str, str] = {}
        arms = (self.base, self.base if against_itself else self.new)
        first = self._random.randrange(2)
        for pair in range(pairs):
            if pair % 2 == 0:
                first = self._random.randrange(2)
            order = (first, 1 - first) if pair % 2 == 0 else (1 - first, first)
            names = [name for name in kernels if name not in failed]
            self._random.shuffle(names)
            found: dict[int, dict[str, float]] = {}
            for which in order:
                wanted = [name for name in names if name not in failed]
                sample = self.sample(arms[which], wanted, self.second if again else None)
                found[which] = sample.seconds
                label = "base" if which == 0 or against_itself else "new"
                failed.update({name: f"{label}: {why}" for name, why in sample.failed.items()})
            for name in names:
                if name not in failed:
                    times[name].append((found[0][name], found[1][name]))
        return {name: values for name, values in times.items() if name not in failed}, failed

    def sample(self, arm: Arm, kernels: Sequence[str], device: str | None = None) -> Sample:
        """Times of these kernels in one fresh process, or in a few where one of them ends its process; `device`: CUDA's
        name of the only GPU that it sees."""
        whole, waiting = Sample(), list(kernels)
        while waiting:
            part = self._run(arm, waiting, device)
            whole.seconds |= part.seconds
            whole.failed |= part.failed
            if why := part.failed.get(""):
                return Sample(failed=dict.fromkeys(kernels, why))
            done = part.seconds.keys() | part.failed.keys()
            waiting = [name for name in waiting if name not in done]
        return whole

    def _run(self, arm: Arm, kernels: Sequence[str] | None, device: str | None = None) -> Sample:
        """One process. The key "" of `failed` is a process that came to nothing."""
        self.processes += 1
        with tempfile.TemporaryDirectory(prefix="roofcal-gate-") as folder:
            request, results = Path(folder) / "request.json", Path(folder) / "results.jsonl"
            asked = {
                "file": str(arm.file), "kernels": kernels, "seconds": self._seconds,
                "path": None if arm.tree is None else str(arm.tree),
            }  # fmt: skip
            request.write_text(json.dumps(asked), encoding="utf-8")
            command = [arm.interpreter, str(WORKER), str(request), str(results)]
            variables = None if device is None else {**os.environ, VISIBLE: device}
            why = _process(command, arm.tree, self._timeout_s, Path(folder) / "errors", variables)
            return _read(results, kernels, why)


def _read(results: Path, kernels: Sequence[str] | None, why: str) -> Sample:
    """Return what a process wrote, with the kernel at which it ended."""
    sample, running = Sample(), None
    lines = read_bytes(results, MOST_BYTES).splitlines() if entry(results) == "file" else []
    for line in lines:
        try:
            told = json.loads(line)
        except ValueError:
            break  # it ended within a line
        if "broken" in told:
            sample.failed[""] = told["broken"]
        elif "found" in told:
            sample.found, sample.versions = tuple(told["found"]), told["versions"]
            sample.devices = tuple(told["devices"])
        elif "starts" in told:
            running = told["starts"]
        elif "failed" in told:
            sample.failed[told["name"]] = told["failed"]
        elif told["seconds"] > 0:
            sample.seconds[told["name"]] = told["seconds"]
    if running is not None and running not in sample.seconds and running not in sample.failed:
        sample.failed[running] = why or "its process ended"
    elif not sample.found and not sample.failed:
        sample.failed[""] = why or "it found no kernel: define kernel() or kernel_NAME()"
    elif kernels and why and running is None:
        sample.failed[""] = why
    return sample


def _process(
    command: Sequence[str], cwd: Path | None, timeout_s: float, errors: Path, variables: Mapping[str, str] | None
) -> str:
    """Run a process and all that it starts to their end; why it ended, "" where it ended well."""
    with errors.open("wb") as stderr:  # a file: a pipe would be waited for as long as any grandchild lives
        try:
            process = subprocess.Popen(
                command, cwd=cwd, env=variables, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr,
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            return f"it cannot be started: {error.strerror}"
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return f"it took more than {timeout_s:g} s"
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode < 0:
        with suppress(ValueError):
            return f"it was ended by {signal.Signals(-process.returncode).name}"
    last = errors.read_bytes()[-10_000:].decode(errors="replace").strip().splitlines()[-1:]
    told = f" ({' '.join(last[0].split())[:200]})" if last else ""
    return f"it ended with code {process.returncode}{told}" if process.returncode else ""


def _arm(text: str, kernels: Path | None, tree: Path, made: list[Path]) -> Arm:
    path = Path(text)
    if entry(path) == "file" and path.suffix == ".py":
        if kernels is not None:
            raise RequestError(f"{text} is a file of kernels already; leave out --kernels")
        return Arm(text, sys.executable, path.resolve())
    if kernels is None:
        raise RequestError(f"say with --kernels which file of kernels {text!r:.60} runs; only two .py files need none")
    if entry(kernels) != "file":
        raise RequestError(f"no file of kernels at {kernels}; see docs/ci.md")
    file = kernels.resolve()
    if entry(path) == "file":
        if not os.access(path, os.X_OK):
            raise RequestError(f"{text} is neither a Python file nor an interpreter; name one of them")
        return Arm(text, str(path.absolute()), file)
    if entry(path) == "folder":
        return Arm(text, sys.executable, file, path.resolve())
    if text.startswith("-"):
        raise RequestError(f"{text!r:.60} is no commit; name a file, a folder, an interpreter or a commit")
    commit = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{text}^{{commit}}")
    if commit is None:
        raise RequestError(
            f"{text!r:.60} is no file, no folder, and no commit of the repository here; name one of them"
        )
    if _git("worktree", "add", "--detach", str(tree), commit) is None:
        raise RequestError(f"git cannot check out {text!r:.60} beside the repository; see: git worktree list")
    made.append(tree)
    return Arm(f"{text} ({commit[:10]})" if text != commit else text[:10], sys.executable, file, tree, commit)


def _git(*arguments: str) -> str | None:
    """The output of git, None where it fails or is not installed."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
