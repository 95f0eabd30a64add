"""Runs kernels in processes of their own: one that crashes, hangs or is killed costs itself alone.

A *nursery* is a fresh process that imports torch once and forks a child for each task, so that a kernel's own process
begins in milliseconds. All kernels run once in each of several nurseries, in another order each time: what is the luck
of a process (the layout of its code, when it ran) differs between the replicates of a kernel, which are the unit of its
interval. A nursery reads a line of JSON a request and writes one an answer; when its parent dies, its input ends, and
it ends its child and itself. A child that is silent for too long is killed with all that it has started.

Example::

    with Nursery() as nursery:
        result = nursery.run(task, limit_s=60)
"""

import faulthandler
import importlib
import json
import os
import random
import selectors
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import IO, Any, Self

from profiler.devices.host import keep_freed_memory
from profiler.kernels.serving.timing import Task
from profiler.record.suite_table import Check, CheckStatus, KernelResult, SuiteLog
from roofline.units import duration

COMMAND = (sys.executable, "-P", "-m", "profiler.kernels.serving.worker")
ALONE = {
    "TORCHINDUCTOR_COMPILE_THREADS": "1",  # a pool of compilers would not survive the fork, and take cores from timing
    "PYTHONFAULTHANDLER": "1",
}
LIST_S = 60.0
"""Seconds that a user's file may take to be imported."""
GRACE_S = 120.0
"""Seconds beyond a task's own limit after which its nursery is lost: a busy machine imports torch in a minute."""
MOST_LINES = 1 << 26
"""Bytes of one answer at most."""


class Lost(RuntimeError):
    """A nursery that ended, or says nothing any more: no fault of the kernel that it was to run."""


class Nursery:
    """A fresh process that forks one for each task."""

    def __init__(self, preload: Sequence[str] = (), command: Sequence[str] = COMMAND) -> None:
        """`preload`: modules that its children share, since each would need seconds to import them."""
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        # in a session of its own, so that Ctrl-C reaches this process alone, which ends the others
        self._process = subprocess.Popen(
            [*command, *preload],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
            env={**os.environ, **ALONE},
        )

    def run(self, task: Task, limit_s: float) -> KernelResult:
        """Return the result of a task, whatever becomes of its process. Raises Lost."""
        answer = self._ask({"task": task.model_dump(mode="json"), "limit_s": limit_s}, limit_s + GRACE_S)
        if "result" in answer:
            return KernelResult.model_validate(answer["result"])
        return failed(task, answer.get("status", "runtime error"), str(answer.get("failed")))

    def listed(self, file: str) -> str | None:
        """Return the reason why a user's file cannot be used, found in a process of its own; None where it can."""
        answer = self._ask({"file": file, "limit_s": LIST_S}, LIST_S + GRACE_S)
        why = answer.get("failed")
        return None if why is None else str(why)

    def _ask(self, request: Mapping[str, Any], limit_s: float) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        line = next(lines(self._process.stdout.fileno(), limit_s), None)
        if line is None:
            self.close()
            raise Lost(f"the process that starts kernels ended: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _last_words(self) -> str:
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        return said[-1] if said else f"code {self._process.returncode}"

    def close(self) -> None:
        """End the process and all that it has started."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
        self._errors.close()


def failed(task: Task, status: CheckStatus, why: str) -> KernelResult:
    """Return the result of a task whose process gave none."""
    return KernelResult(
        kernel=task.kernel,
        process=task.process,
        check=Check(status=status, reason=why),
        models=task.models,
        file=task.file,
    )


def run_tasks(
    tasks: Iterable[Task],
    log: SuiteLog,
    *,
    processes: int,
    limit_s: float,
    seed: int = 0,
    step: Callable[[str, float], None] = lambda text, done: None,
    nursery: Callable[[], Nursery] = Nursery,
) -> None:
    """Run each task in `processes` fresh processes, and keep each result as soon as it is there.

    A kernel that fails is not run again: its first result says why. What the log holds already is left out. The tasks'
    own `process` is ignored; after the first process a kernel's own sizes alone are compared again. Raises RequestError
    where the log cannot be written.
    """
    tasks = list(tasks)
    done = done_of(tasks, log, processes)
    for process in range(1, processes + 1):
        order = list(tasks)
        random.Random((seed << 8) + process).shuffle(order)
        left = [task for task in order if _is_wanted(task, process, log)]
        if not left:
            continue
        with ExitStack() as homes:
            home = homes.enter_context(nursery())
            for task in left:
                step(f"process {process}: {task.kernel.family} {task.kernel.provider}", done)
                again = {"process": process} if process == 1 else {"process": process, "draws": 0}
                asked = task.model_copy(update=again)
                try:
                    result = home.run(asked, limit_s)
                except Lost:  # once more, in a new one
                    homes.close()
                    home = homes.enter_context(nursery())
                    try:
                        result = home.run(asked, limit_s)
                    except Lost as lost:
                        homes.close()
                        home = homes.enter_context(nursery())
                        result = failed(asked, "runtime error", str(lost))
                log.append(result)
                done += 1 if result.check.status == "passed" else processes - process + 1


def done_of(tasks: Sequence[Task], log: SuiteLog, processes: int) -> int:
    """Return how many results of kernels × processes the log has, or are not wanted since an earlier one failed."""
    return sum(not _is_wanted(task, process, log) for task in tasks for process in range(1, processes + 1))


def _is_wanted(task: Task, process: int, log: SuiteLog) -> bool:
    if log.get(task.kernel, process) is not None:
        return False
    earlier = [log.get(task.kernel, before) for before in range(1, process)]
    return (process == 1 or task.timed) and all(r is None or r.check.status == "passed" for r in earlier)


def lines(descriptor: int, limit_s: float | None = None) -> Iterator[bytes]:
    """Yield whole lines as they come, until the end or `limit_s` without any byte."""
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while selector.select(limit_s) and len(rest) < MOST_LINES:
            chunk = os.read(descriptor, 1 << 16)
            if not chunk:
                return
            *whole, rest = (rest + chunk).split(b"\n")
            yield from whole


def in_child(work: Callable[[], dict[str, Any]], limit_s: float, parent: int) -> dict[str, Any]:
    """Return what `work` gives in a forked process, or how that process ended.

    `parent`: a descriptor that becomes readable when nobody waits for the result any more.
    """
    inlet, outlet = os.pipe()
    with tempfile.TemporaryFile() as said:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads: none of them holds a lock
            child = os.fork()
        if child == 0:
            _be_child(work, inlet, outlet, said)
        with suppress(OSError):  # the child does the same; whoever is first
            os.setpgid(child, child)
        os.close(outlet)
        content, ended = _read_all(inlet, limit_s, parent)
        os.close(inlet)
        if ended:  # it ends by itself, and its group may hold what it has started
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child, signal.SIGKILL)
        if not ended:
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if content.endswith(b"\n"):
            answer: dict[str, Any] = json.loads(content)
            return answer
        if not ended:
            return {"status": "timeout", "failed": f"it gave no result within {duration(limit_s)}"}
        said.seek(0)
        return {"status": "runtime error", "failed": how_it_ended(code, said.read())}


def _read_all(inlet: int, limit_s: float, parent: int) -> tuple[bytes, bool]:
    """Return what a child writes, and whether it closed its end by itself."""
    content, until = b"", time.monotonic() + limit_s
    with selectors.DefaultSelector() as selector:
        selector.register(inlet, selectors.EVENT_READ)
        selector.register(parent, selectors.EVENT_READ)
        while (left_s := until - time.monotonic()) > 0:
            ready = {key.fd for key, _ in selector.select(left_s)}
            if parent in ready:
                return b"", False
            if inlet in ready:
                chunk = os.read(inlet, 1 << 16)
                if not chunk:
                    return content, True
                content += chunk
    return content, False


def _be_child(work: Callable[[], dict[str, Any]], inlet: int, outlet: int, said: IO[bytes]) -> None:
    """Do the work in a forked process, write its answer, and end without any of the parent's own endings."""
    code = 1
    try:
        os.setpgid(0, 0)
        os.close(inlet)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
        faulthandler.enable(said)
        answer = json.dumps(work(), allow_nan=False).encode() + b"\n"
        while answer:
            answer = answer[os.write(outlet, answer) :]
        code = 0
    except BaseException as error:  # noqa: BLE001 - whatever it is, this process ends here
        with suppress(Exception):
            os.write(2, f"\n{type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(code)


def how_it_ended(code: int, said: bytes) -> str:
    """Return how a process ended without a result, in one line."""
    if code < 0:
        hint = " (out of memory?)" if -code == signal.SIGKILL else ""
        return f"its process was ended by {signal.Signals(-code).name}{hint}"
    spoken = said.decode(errors="replace").strip().splitlines()
    return f"its process ended with code {code}: {spoken[-1] if spoken else 'no message'}"


def serve(inlet: int, tell: Callable[[dict[str, Any]], None], preload: Sequence[str] = ()) -> None:
    """Answer requests until the input ends; `preload` names modules that most of them need."""
    import torch  # children share what is loaded here

    from profiler.kernels.serving.guards import originals, replaced
    from profiler.kernels.serving.registry import Registry, UserError
    from profiler.kernels.serving.timing import run_kernel

    for name in preload:
        with suppress(Exception):
            importlib.import_module(name)

    before = originals()

    def work(request: dict[str, Any]) -> dict[str, Any]:
        if "file" in request:
            try:
                Registry.of([request["file"]])
            except UserError as error:
                return {"failed": str(error)}
            return {}
        task = Task.model_validate(request["task"])
        if task.threads is not None:
            torch.set_num_threads(task.threads)
        result = run_kernel(task, Registry.of(task.files))
        if (name := replaced(before)) is not None:
            return {"failed": f"it replaced {name}, by which it is checked and timed"}
        return {"result": result.model_dump(mode="json")}

    for line in lines(inlet):
        request = json.loads(line)
        tell(in_child(lambda request=request: work(request), float(request["limit_s"]), inlet))  # type: ignore[misc]


def main() -> None:
    """Serve the requests of standard input."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # the prints of libraries must not come between the answers
    keep_freed_memory()

    def tell(answer: dict[str, Any]) -> None:
        out.write(json.dumps(answer, allow_nan=False) + "\n")
        out.flush()

    serve(0, tell, sys.argv[1:])


if __name__ == "__main__":
    main()
