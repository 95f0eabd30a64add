"""What it costs to start work, however little: a call, a kernel, a replay of a CUDA graph, a wait for the device.

- "call": host time to issue one operation on one element with its output given. On a CPU this is the whole operation.
- "back to back": device time from one tiny kernel to the next while a queue is never empty.
- "graph N": device time from one replay to the next of a graph of N tiny kernels, each of which needs the one before;
  the host's launches are hidden. A line over N has the cost of a replay and of a node (`calibrate.device.costs`).
- "synchronize": host time to wait for a device that has nothing to do.

Example: ``{m.case: m.value() for m in launch(Bench(torch.device("cuda")))}``
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from profiler.devices.backend import Graph, backend_of
from profiler.microbench.bench import Bench
from profiler.microbench.memory import normal
from profiler.record.measurement import Measurement
from profiler.timing.clocks import Call, Clock, HostClock, capture
from profiler.timing.engine import Case

NODES = (1, 4, 16, 64, 256)
"""Kernels of a graph; a decode step of a small model has some hundred."""
ELEMENT_BYTES = 4
TOLERANCE = 1e-5
"""Relative error of a sum of a few hundred float32: a rounding (6e-8) each."""


class IssueClock:
    """Host time of calls that enqueue: the device is idle before, and nothing waits for it in between.

    A sample must hold fewer launches than the device's queue (1024), which otherwise fills.
    """

    name = "monotonic clock, device not waited for"
    replays = False

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def now(self) -> float:
        return time.perf_counter()

    def time(self, call: Call, repeats: int) -> float:
        backend_of(self._device).synchronize(self._device)
        start = self.now()
        for _ in range(repeats):
            call()
        return self.now() - start


@dataclass(frozen=True, slots=True)
class Chain:
    """A captured chain of additions: value i + 1 is value i plus 1."""

    values: Tensor
    """float32, shape (nodes + 1,)"""
    graph: Graph


def launch(bench: Bench) -> Iterator[Measurement]:
    """Seconds of every case; a CPU has only the call."""
    yield _time(
        bench, "call", addition(bench.device), IssueClock(bench.device) if bench.backend.runs_ahead_of_host else None
    )
    if not bench.backend.captures_graphs:
        yield bench.missing("launch", "graph", unit="s", reason="CUDA graphs need a GPU")
        return
    yield _time(bench, "back to back", addition(bench.device))
    for nodes in NODES:
        yield _time(bench, f"graph {nodes}", replay(nodes, bench.device), nodes=nodes)
    yield _time(bench, "synchronize", wait(bench.device), HostClock())


def _time(bench: Bench, case: str, what: Case[Any], clock: Clock | None = None, **parameters: int) -> Measurement:
    return bench.time(
        "launch", case, lambda: what, unit="s", work=1, cache="in place", parameters={**parameters}, clock=clock
    )


def addition(device: torch.device) -> Case[tuple[Tensor, ...]]:
    """a + b of one element, into a given output."""

    def check(operands: tuple[Tensor, ...], result: object) -> None:
        a, b, out = (float(tensor) for tensor in operands)
        _agree(out, a + b)

    return Case(
        lambda: (normal(1, device), normal(1, device), torch.full((1,), math.nan, device=device)),
        lambda operands: torch.add(operands[0], operands[1], out=operands[2]),
        3 * ELEMENT_BYTES,
        check,
    )


def replay(nodes: int, device: torch.device) -> Case[Chain]:
    """One replay of a graph of so many kernels."""

    def make() -> Chain:
        values = torch.full((nodes + 1,), math.nan, device=device)
        steps = [(values[i], values[i + 1]) for i in range(nodes)]

        def add() -> None:
            for before, after in steps:
                torch.add(before, 1.0, out=after)

        graph = capture(add, 1, device)
        values[0].copy_(normal(1, device)[0])  # the rest is still NaN until the graph has run
        return Chain(values, graph)

    def check(chain: Chain, result: object) -> None:
        _agree(float(chain.values[-1]), float(chain.values[0]) + nodes)

    return Case(make, lambda chain: chain.graph.replay(), (nodes + 1) * ELEMENT_BYTES, check)


def wait(device: torch.device) -> Case[None]:
    """A wait for an idle device."""
    backend = backend_of(device)
    return Case(lambda: None, lambda _: backend.synchronize(device), 0)


def _agree(written: float, expected: float) -> None:
    if not abs(written - expected) <= TOLERANCE * max(1.0, abs(expected)):  # NaN is refused too
        raise ArithmeticError(f"the kernels gave {written:g}, not {expected:g}")
