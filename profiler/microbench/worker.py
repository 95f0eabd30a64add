"""One fresh process of a characterisation: takes a task on stdin, runs its parts, and writes what it finds on stdout.

A line a message, JSON: ``{"part": name}`` as a part begins, ``{"measurement": …}``,
``{"shape": [dtype, [m, n, k], layout]}``, ``{"done": name}``. Whatever a library prints goes to stderr. A part that
raises is a failed measurement.

Example: ``echo '{"device": "cpu", "process": 1, "parts": ["memory"], …}' | python -m profiler.microbench.worker``
"""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from profiler.microbench import suite
from profiler.microbench.bench import Bench, reason
from profiler.microbench.peak import shape_search
from profiler.record.measurement import Layout, Measurement
from roofline.record import Record


class Task(Record):
    """What one process does."""

    device: str
    process: int
    parts: tuple[str, ...]
    """Names of `suite.PARTS`, or `suite.SEARCH`, in the order they run."""
    dtypes: tuple[str, ...]
    quick: bool = False
    threads: int | None = None
    """Of an operation on a CPU; None: torch's own choice."""
    shapes: dict[str, tuple[int, int, int]] = {}
    """From the search."""
    layouts: dict[str, Layout] = {}
    """Of the second operand, from the search."""
    limit_bytes: int | None = None
    seed: int = 0


Tell = Callable[[dict[str, Any]], None]


def work(task: Task, tell: Tell) -> None:
    """Run the parts of a task and tell what they find."""
    if task.threads is not None:
        torch.set_num_threads(task.threads)
    torch.manual_seed(task.seed + task.process)
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
            _measure(part, replace(bench_of(task), layouts=layouts), shapes, tell)
            torch.set_num_threads(threads)
        tell({"done": name})


def bench_of(task: Task) -> Bench:
    """What the parts are given; made anew for each, since the number of threads changes caches and clocks."""
    return Bench(
        torch.device(task.device),
        budget_s=suite.QUICK_BUDGET_S if task.quick else suite.BUDGET_S,
        process=task.process,
        dtypes=task.dtypes,
        quick=task.quick,
        limit_bytes=task.limit_bytes,
    )


def _measure(part: suite.Part, bench: Bench, shapes: suite.Shapes, tell: Tell) -> None:
    try:
        for one in part.run(bench, shapes):
            tell({"measurement": one.model_dump(mode="json")})
    except Exception as error:  # noqa: BLE001 - whatever a part raises fails it, and the others go on
        tell({"measurement": lost(part.name, bench.process, bench.threads, reason(error)).model_dump(mode="json")})


def _search(task: Task, shapes: dict[str, tuple[int, int, int]], layouts: dict[str, Layout], tell: Tell) -> None:
    bench = bench_of(task)
    for dtype in task.dtypes:
        tell({"part": f"{suite.SEARCH}: {dtype}"})
        try:
            shapes[dtype], layouts[dtype] = shape_search(bench, dtype)
        except Exception as error:  # noqa: BLE001 - a dtype that the device lacks has its reason
            failed = lost("matmul", task.process, bench.threads, reason(error), dtype=dtype, case="burst")
            tell({"measurement": failed.model_dump(mode="json")})
        else:
            tell({"shape": [dtype, list(shapes[dtype]), layouts[dtype]]})


def lost(
    benchmark: str, process: int, threads: int | None, why: str, *, dtype: str | None = None, case: str = "all"
) -> Measurement:
    """A measurement that says why there is none."""
    return Measurement(
        benchmark=benchmark,
        case=case,
        dtype=dtype,
        threads=threads,
        process=process,
        unit="FLOP/s" if benchmark == "matmul" else "s",
        work=1,
        status="failed",
        reason=why,
    )


def main() -> None:
    """Serve one task."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints must not stand between our lines

    def tell(message: dict[str, Any]) -> None:
        out.write(json.dumps(message, allow_nan=False) + "\n")
        out.flush()

    work(Task.model_validate_json(sys.stdin.read()), tell)


if __name__ == "__main__":
    main()
