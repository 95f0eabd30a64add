"""Fixed costs of starting work: a call, a kernel, a replay of a CUDA graph, a wait for the device.

- "call": host time to issue one operation on one element with a given output. On a CPU this is the whole operation.
- "back to back": device time from one tiny kernel to the next while a queue is never empty.
- "graph N": device time from one replay to the next of a graph of N tiny kernels, each of which needs the one before;
  the host's launches are hidden. A line over N has the cost of a replay and of a node (`calibrate.device.costs`).
- "synchronize": host time to wait for an idle device.
"""

import math
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
"""Numbers of kernels in a graph; a decode step of a small model has some hundred."""
ELEMENT_BYTES = 4
TOLERANCE = 1e-5
"""Relative error of a sum of a few hundred float32: a rounding (6e-8) each."""


class IssueClock(HostClock):
    """Times how long the host takes to enqueue calls: the device is idle before, and is not waited for.

    A sample must hold fewer launches than the device's queue (1024), which otherwise fills.
    """

    name = "monotonic clock, device not waited for"

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def time(self, call: Call, repeats: int) -> float:
        backend_of(self._device).synchronize(self._device)
        return super().time(call, repeats)


@dataclass(frozen=True, slots=True)
class Chain:
    """A captured chain of additions: value i + 1 is value i plus 1."""

    values: Tensor
    """float32, shape (nodes + 1,)"""
    graph: Graph


def launch(bench: Bench) -> Iterator[Measurement]:
    """Time every case in seconds; a CPU has only the call."""

    def time(name: str, case: Case[Any], clock: Clock | None = None, **parameters: int | float | str) -> Measurement:
        about: dict[str, Any] = {"cache": "in place", "parameters": parameters, "clock": clock}
        return bench.time("launch", name, lambda: case, unit="s", work=1, **about)

    device, backend = bench.device, bench.backend
    yield time("call", addition(device), IssueClock(device) if backend.runs_ahead_of_host else None)
    if not backend.captures_graphs:
        yield bench.missing("launch", "graph", unit="s", reason="CUDA graphs need a GPU")
        return
    yield time("back to back", addition(device))
    for nodes in NODES:
        yield time(f"graph {nodes}", replay(nodes, device), nodes=nodes)
    yield time("synchronize", Case(lambda: None, lambda _: backend.synchronize(device), 0), HostClock())


def addition(device: torch.device) -> Case[tuple[Tensor, ...]]:
    """The case a + b of one element, into a given output."""

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
    """The case of one replay of a graph of `nodes` kernels."""

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


def _agree(written: float, expected: float) -> None:
    if not abs(written - expected) <= TOLERANCE * max(1.0, abs(expected)):  # NaN is refused too
        raise ArithmeticError(f"the kernels gave {written:g}, not {expected:g}")
