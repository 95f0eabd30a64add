"""Times of a model in processes that have not run it before: until it has its weights, its first and its second pass.

A process imports the libraries first, which is not counted. Then it builds the model with its weights, as the run does,
runs a pass, with everything that libraries prepare only when they are used, and runs the same pass again.

Example: ``fresh_times(cell, torch.device("cpu"), processes=3, seed=0)["first pass"]``
"""

import json
import os
import subprocess
import sys
import time
from typing import Any

import torch

from profiler.devices.backend import backend_of
from profiler.devices.host import keep_freed_memory
from profiler.models.build import build, build_meta
from profiler.models.inputs import prepare
from profiler.models.resolve import resolve
from profiler.record.run import Cell, InvalidMeasurement

LONGEST_S = 1800.0
"""A process that takes longer is ended: on the slowest disks a model of 100 GB is read within."""


def fresh_times(
    cell: Cell, device: torch.device, *, processes: int, seed: int, trust_remote_code: bool = False
) -> dict[str, tuple[float, ...]]:
    """Return the seconds of each part, a sample for each process. Raises InvalidMeasurement where one fails."""
    task = {
        "cell": cell.model_dump(mode="json"),
        "device": str(device),
        "seed": seed,
        "trust_remote_code": trust_remote_code,
        "threads": torch.get_num_threads(),
    }
    told = [_once(json.dumps(task)) for _ in range(processes)]
    return {name: tuple(times[name] for times in told) for name in told[0]} if told else {}


def _once(task: str) -> dict[str, float]:
    command = [sys.executable, "-m", "profiler.passes.fresh"]
    try:
        ended = subprocess.run(command, input=task, capture_output=True, text=True, timeout=LONGEST_S, check=False)
    except subprocess.TimeoutExpired:
        raise InvalidMeasurement(f"a new process took longer than {LONGEST_S:g} s; use a smaller model") from None
    if ended.returncode:
        why = (ended.stderr.strip().splitlines() or ["no message"])[-1]
        raise InvalidMeasurement(f"a new process ended with code {ended.returncode}: {why}")
    times: dict[str, float] = json.loads(ended.stdout)
    return times


@torch.no_grad()
def work(task: dict[str, Any]) -> dict[str, float]:
    """Do what is timed, in this process."""
    cell = Cell.model_validate(task["cell"])
    device, dtype = torch.device(task["device"]), cell.workload.dtype
    resolved = resolve(cell.model, trust_remote_code=task["trust_remote_code"])
    meta = build_meta(resolved.config, dtype, cell.attn, cell.experts)
    inputs = prepare(meta, cell.workload, cache=cell.cache, device=device, seed=task["seed"])
    backend = backend_of(device)
    times: dict[str, float] = {}

    def timed(name: str, call: Any) -> Any:
        start = time.perf_counter()
        result = call()
        backend.synchronize(device)
        times[name] = time.perf_counter() - start
        return result

    model = timed(
        "weights",
        lambda: build(
            resolved.config,
            device,
            dtype,
            cell.attn,
            cell.experts,
            weights=cell.weights,
            name=resolved.location,
            seed=task["seed"],
            trust_remote_code=task["trust_remote_code"],
        ),
    )
    for name in ("first pass", "second pass"):
        kwargs = inputs.kwargs()
        timed(name, lambda kwargs=kwargs: model(**kwargs))
        inputs.restore()
    return times


def main() -> None:
    """Serve one task from stdin; the times are a JSON document on stdout."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # the prints of libraries must not come between
    keep_freed_memory()
    task = json.loads(sys.stdin.read())
    torch.set_num_threads(task["threads"])
    out.write(json.dumps(work(task)))
    out.close()


if __name__ == "__main__":
    main()
