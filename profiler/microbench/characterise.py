"""Characterises a device in fresh processes, one after another, and keeps each measurement as soon as it is there.

First the search for the fastest products and what else runs once, then as many processes as there are replicates, each
with every replicated part. While one measures, this process only waits on its pipe: it takes no core from it. A process
that dies (a lost device, the kernel's out-of-memory killer) or is silent for too long costs the part that it was in; a
new one goes on with the next part.

Example::

    plan = make_plan("cpu", ("float32",), replicates=3, quick=True)
    characterise(plan, HardwareLog(folder.path), step=print)
"""

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any

from profiler.microbench import suite
from profiler.microbench.worker import Task, lost
from profiler.record.hardware_table import HardwareLog
from profiler.record.measurement import Measurement

REPLICATES = 3
"""Fresh processes: the fewest that have an interval (`profiler.microbench.replicates.FEWEST`)."""
START_S = 6.0
"""Of a process until it measures: importing torch and transformers, on a 2-core machine."""
SEARCH_S = (8.0, 5.0)
"""Of a search for one dtype, full and quick."""
SILENT_S = 300.0
"""Without a line from a process: far longer than any case takes, a hung device apart."""

WORKER = (sys.executable, "-m", "profiler.microbench.worker")

Step = Callable[[str, float], None]
"""Told what begins, and how many of the plan's parts are done by then."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One fresh process."""

    process: int
    parts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What will run, and roughly how long."""

    kind: str
    device: str
    dtypes: tuple[str, ...]
    quick: bool
    threads: int | None
    limit_bytes: int | None
    stages: tuple[Stage, ...]

    @property
    def total(self) -> int:
        """Parts of all processes."""
        return sum(len(stage.parts) for stage in self.stages)

    def seconds(self, part: str) -> float:
        """Estimate for one execution of a part."""
        if part == suite.SEARCH:
            return SEARCH_S[self.quick] * len(self.dtypes)
        return suite.named(part).seconds[self.quick]

    @property
    def total_s(self) -> float:
        """Estimate for all, processes' starts included."""
        return sum(START_S + sum(self.seconds(part) for part in stage.parts) for stage in self.stages)


def make_plan(
    device: str,
    dtypes: tuple[str, ...],
    *,
    replicates: int = REPLICATES,
    quick: bool = False,
    threads: int | None = None,
    limit_bytes: int | None = None,
    only: frozenset[str] | None = None,
) -> Plan:
    """The processes and their parts; `only` keeps some parts by name (the search comes along where it is needed)."""
    kind = device.partition(":")[0]
    wanted = [part for part in suite.parts(kind) if only is None or part.name in only]
    replicated = tuple(part.name for part in wanted if part.replicated)
    once = tuple(part.name for part in wanted if not part.replicated)
    needs_shapes = any(name.partition(",")[0] in ("matmul", "sustained", "energy") for name in replicated)
    stages = [Stage(0, (*((suite.SEARCH,) if needs_shapes else ()), *once))]
    if replicated:
        stages += [Stage(process, replicated) for process in range(1, replicates + 1)]
    return Plan(kind, device, dtypes, quick, threads, limit_bytes, tuple(stage for stage in stages if stage.parts))


def characterise(
    plan: Plan,
    log: HardwareLog,
    step: Step = lambda text, done: None,
    *,
    worker: Sequence[str] = WORKER,
    silent_s: float = SILENT_S,
) -> None:
    """Run what of the plan the log does not hold yet. Raises RequestError where the log cannot be written.

    `worker` is started for each process: it reads a `Task` and writes lines as `profiler.microbench.worker` does.
    """
    for stage in plan.stages:
        while left := [part for part in stage.parts if (stage.process, part) not in log.done]:
            for kind, content in _messages(plan, stage.process, tuple(left), log, worker, silent_s):
                if kind == "part":
                    step(f"process {stage.process}: {content}", len(log.done))
                elif kind == "measurement":
                    log.append(Measurement.model_validate(content))
                elif kind == "shape":
                    log.choose(content[0], tuple(content[1]), content[2])
                elif kind == "done":
                    log.close_part(stage.process, content)
            if halted := next((part for part in left if (stage.process, part) not in log.done), None):
                log.append(lost(_benchmark(halted), stage.process, plan.threads, content))
                log.close_part(stage.process, halted)


def _benchmark(part: str) -> str:
    """The family that a part's measurements are of."""
    return "matmul" if part == suite.SEARCH else part.partition(",")[0]


def _messages(
    plan: Plan, process: int, parts: tuple[str, ...], log: HardwareLog, worker: Sequence[str], silent_s: float
) -> Iterator[tuple[str, Any]]:
    """What a fresh process says, and at last ("ended", why), for where it left out parts."""
    task = Task(
        device=plan.device,
        process=process,
        parts=parts,
        dtypes=plan.dtypes,
        quick=plan.quick,
        threads=plan.threads,
        shapes=log.shapes,
        layouts=log.layouts,
        limit_bytes=plan.limit_bytes,
    )
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(
            list(worker),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,  # so that all it has started can be stopped with it
        )
        why = ""
        try:
            assert child.stdin is not None
            with suppress(BrokenPipeError):  # it died before it could be asked
                child.stdin.write(task.model_dump_json().encode())
                child.stdin.close()
            for line in _lines(child, silent_s):
                if line is None:
                    why = f"the process said nothing for {silent_s:g} s"
                    break
                ((kind, content),) = json.loads(line).items()
                yield kind, content
            yield "ended", why or _why(child, errors)
        finally:
            _stop(child)


def _lines(child: subprocess.Popen[bytes], silent_s: float) -> Iterator[bytes | None]:
    """Whole lines as they come; None, at last, after `silent_s` without one."""
    assert child.stdout is not None
    descriptor = child.stdout.fileno()
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while True:
            if not selector.select(silent_s):
                yield None
                return
            chunk = os.read(descriptor, 1 << 16)
            if not chunk:
                return
            *lines, rest = (rest + chunk).split(b"\n")
            yield from lines


def _why(child: subprocess.Popen[bytes], errors: IO[bytes]) -> str:
    """How a process ended, in one line."""
    code = child.wait()
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (out of memory?)" if -code == signal.SIGKILL else ""
        return f"the process was ended by {name}{hint}"
    errors.seek(0)
    lines = errors.read().decode(errors="replace").strip().splitlines()
    return f"the process ended with code {code}: {lines[-1] if lines else 'no message'}"


def _stop(child: subprocess.Popen[bytes]) -> None:
    """End a process and all that it has started; harmless where it has ended."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    if child.stdout is not None:
        child.stdout.close()
