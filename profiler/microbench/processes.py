"""Runs the parts of a characterisation in fresh processes, one after another, and keeps each measurement at once.

The first process runs the search for the fastest products and the other parts that run once; the replicates follow,
each with every replicated part. While a process measures, its parent only waits on a pipe and takes no core from it.
A process that dies (a lost device, the kernel's out-of-memory killer) or is silent for too long loses the part that it
was in; a new process goes on with the next part.

A process takes a `Task` on stdin and writes a line of JSON a message: ``{"part": name}`` as a part begins,
``{"measurement": …}``, ``{"shape": [dtype, [m, n, k], layout]}``, ``{"done": name}``. Whatever a library prints goes to
stderr. Example::

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
from dataclasses import dataclass, replace
from typing import IO, Any

import torch

from profiler.devices.host import keep_freed_memory
from profiler.microbench import suite
from profiler.microbench.bench import Bench, reason
from profiler.microbench.peak import shape_search
from profiler.record.hardware_table import HardwareLog
from profiler.record.measurement import Layout, Measurement, Unit
from roofline.record import Record

REPLICATES = 3
"""Number of fresh processes: the fewest that have an interval (`calibrate.device.figures.FEWEST`)."""
START_S = 6.0
"""Seconds until a process measures: it imports torch and transformers, on a 2-core machine."""
SEARCH_S = (8.0, 5.0)
"""Seconds of a search for one dtype, full and quick."""
SILENT_S = 300.0
"""A process that writes no line for so many seconds is ended: any case is far shorter, unless the device hangs."""
WORKER = (sys.executable, "-m", "profiler.microbench.processes")

Step = Callable[[str, float], None]
"""Is called with the part that begins, and the number of the plan's parts that are done."""
Tell = Callable[[dict[str, Any]], None]
"""Sends a message to the parent process."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A fresh process and its parts."""

    process: int
    parts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """The processes that will run, and estimates of their time."""

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
        """Estimated seconds of one execution of a part."""
        if part == suite.SEARCH:
            return SEARCH_S[self.quick] * len(self.dtypes)
        return suite.named(part).seconds[self.quick]

    @property
    def unit_s(self) -> tuple[float, ...]:
        """Estimated seconds of each part of all processes, in order; the first of each has the process's start."""
        return tuple(
            self.seconds(part) + (START_S if i == 0 else 0.0)
            for stage in self.stages
            for i, part in enumerate(stage.parts)
        )

    @property
    def total_s(self) -> float:
        """Estimated seconds of all parts, with the start of each process."""
        return sum(self.unit_s)


class Task(Record):
    """The work of one process."""

    device: str
    process: int
    parts: tuple[str, ...]
    """Names of `suite.PARTS`, or `suite.SEARCH`, in the order they run."""
    dtypes: tuple[str, ...]
    quick: bool = False
    threads: int | None = None
    """Host threads of an operation on a CPU; None for torch's own choice."""
    shapes: dict[str, tuple[int, int, int]] = {}
    """m, n, k of the fastest product of each dtype, from the search."""
    layouts: dict[str, Layout] = {}
    """Layout of the second operand of that product."""
    limit_bytes: int | None = None


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
    """Plan the processes and their parts; `only` selects parts by name, and the search where one of them needs it."""
    wanted = [part for part in suite.parts(device.partition(":")[0]) if only is None or part.name in only]
    replicated = tuple(part.name for part in wanted if part.replicated)
    once = tuple(part.name for part in wanted if not part.replicated)
    search = (suite.SEARCH,) if any(part.needs_search for part in wanted) else ()
    stages = Stage(0, (*search, *once)), *(Stage(process, replicated) for process in range(1, replicates + 1))
    return Plan(device, dtypes, quick, threads, limit_bytes, tuple(stage for stage in stages if stage.parts))


def characterise(
    plan: Plan,
    log: HardwareLog,
    step: Step = lambda text, done: None,
    *,
    worker: Sequence[str] = WORKER,
    silent_s: float = SILENT_S,
) -> None:
    """Run the parts of the plan that the log does not hold yet. Raises RequestError where the log cannot be written.

    `worker` is the command that is started for each process; it reads a `Task` and writes lines as `main` does.
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
                family = "matmul" if halted == suite.SEARCH else halted.partition(",")[0]
                about: dict[str, Any] = {"benchmark": family, "threads": plan.threads, "process": stage.process}
                about |= {"unit": _unit(family), "work": 1, "status": "failed", "reason": content}
                log.append(Measurement(case="all", **about))
                log.close_part(stage.process, halted)


def _messages(
    plan: Plan, process: int, parts: tuple[str, ...], log: HardwareLog, worker: Sequence[str], silent_s: float
) -> Iterator[tuple[str, Any]]:
    """The messages of a fresh process, and at last ("ended", reason), for the parts that it left out."""
    about: dict[str, Any] = {"device": plan.device, "dtypes": plan.dtypes, "quick": plan.quick, "threads": plan.threads}
    about |= {"limit_bytes": plan.limit_bytes, "shapes": log.shapes, "layouts": log.layouts}
    task = Task(process=process, parts=parts, **about)
    pipe = subprocess.PIPE
    with tempfile.TemporaryFile() as errors:
        # in a session of its own, so that all that it has started can be ended with it
        child = subprocess.Popen(list(worker), stdin=pipe, stdout=pipe, stderr=errors, start_new_session=True)
        try:
            assert child.stdin is not None
            with suppress(BrokenPipeError):  # it died before it read its task
                child.stdin.write(task.model_dump_json().encode())
                child.stdin.close()
            for line in _lines(child, silent_s):
                if line is None:
                    yield "ended", f"the process said nothing for {silent_s:g} s"
                    return
                ((kind, content),) = json.loads(line).items()
                yield kind, content
            yield "ended", _why(child, errors)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            if child.stdout is not None:
                child.stdout.close()


def _lines(child: subprocess.Popen[bytes], silent_s: float) -> Iterator[bytes | None]:
    """Whole lines as they come; None, at last, after `silent_s` without one."""
    assert child.stdout is not None
    descriptor = child.stdout.fileno()
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while selector.select(silent_s):
            chunk = os.read(descriptor, 1 << 16)
            if not chunk:
                return
            *lines, rest = (rest + chunk).split(b"\n")
            yield from lines
        yield None


def _why(child: subprocess.Popen[bytes], errors: IO[bytes]) -> str:
    """Tell how a process ended, in one line."""
    code = child.wait()
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (out of memory?)" if -code == signal.SIGKILL else ""
        return f"the process was ended by {name}{hint}"
    errors.seek(0)
    lines = errors.read().decode(errors="replace").strip().splitlines()
    return f"the process ended with code {code}: {lines[-1] if lines else 'no message'}"


def work(task: Task, tell: Tell) -> None:
    """Run the parts of a task in this process and tell each message. A part that raises is a failed measurement."""
    if task.threads is not None:
        torch.set_num_threads(task.threads)
    torch.manual_seed(task.process)
    threads = torch.get_num_threads()
    shapes, layouts = dict(task.shapes), dict(task.layouts)
    for name in task.parts:
        tell({"part": name})
        if name == suite.SEARCH:
            _search(task, shapes, layouts, tell)
        elif (part := suite.named(name)).one_core and threads == 1:
            pass  # its other part is on one core already
        else:
            torch.set_num_threads(1 if part.one_core else threads)
            _measure(part, replace(bench_of(task), shapes=shapes, layouts=layouts), tell)
            torch.set_num_threads(threads)
        tell({"done": name})


def bench_of(task: Task) -> Bench:
    """A new bench for a part: the number of threads changes caches and clocks."""
    return Bench(
        torch.device(task.device),
        budget_s=suite.QUICK_BUDGET_S if task.quick else suite.BUDGET_S,
        process=task.process,
        dtypes=task.dtypes,
        quick=task.quick,
        limit_bytes=task.limit_bytes,
    )


def _measure(part: suite.Part, bench: Bench, tell: Tell) -> None:
    try:
        for measurement in part.run(bench):
            tell({"measurement": measurement.model_dump(mode="json")})
    except Exception as error:  # noqa: BLE001 - whatever a part raises fails it, and the others go on
        failed = bench.missing(part.name, "all", unit=_unit(part.name), reason=reason(error))
        tell({"measurement": failed.model_dump(mode="json")})


def _unit(benchmark: str) -> Unit:
    """Unit of a measurement that says why a part has no result."""
    return "FLOP/s" if benchmark == "matmul" else "s"


def _search(task: Task, shapes: dict[str, tuple[int, int, int]], layouts: dict[str, Layout], tell: Tell) -> None:
    bench = bench_of(task)
    for dtype in task.dtypes:
        tell({"part": f"{suite.SEARCH}: {dtype}"})
        try:
            shapes[dtype], layouts[dtype] = shape_search(bench, dtype)
        except Exception as error:  # noqa: BLE001 - a dtype that the device lacks is a failed measurement
            failed = bench.missing("matmul", "burst", unit="FLOP/s", reason=reason(error), dtype=dtype)
            tell({"measurement": failed.model_dump(mode="json")})
        else:
            tell({"shape": [dtype, list(shapes[dtype]), layouts[dtype]]})


def main() -> None:
    """Serve one task."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # the prints of libraries must not come between the messages
    keep_freed_memory()

    def tell(message: dict[str, Any]) -> None:
        out.write(json.dumps(message, allow_nan=False) + "\n")
        out.flush()

    work(Task.model_validate_json(sys.stdin.read()), tell)


if __name__ == "__main__":
    main()
