"""Host time between two operations of an eager model where host and device are one: a CPU.

The tiny model of `profiler.microbench.host` decodes a token with and without the profiler in turn. What its operations
take under the profiler is what laws are fitted to; the rest of an unprofiled pass, over its operations, is the gap.

Example: ``gap(torch.device("cpu"), "float32").value`` → seconds an operation
"""

import statistics
from typing import Any

import torch
from torch import nn

from profiler.microbench.host import CONTEXT, Step
from profiler.microbench.probe import Inside, operation_times
from profiler.models.trace import trace
from profiler.record.measurement import quantile_of
from profiler.timing.runner import Runner
from roofline.hardware import Figure
from roofline.workload import Workload

SESSIONS, PASSES = 5, 8
"""Profiled; as many passes run without the profiler beside each session."""


class _Decoding(nn.Module):
    """One step of the tiny model, from its own cache."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.tiny = step.model
        self._step = step

    def forward(self) -> Any:
        return self._step.run()


def gap(device: torch.device, dtype: str) -> Figure:
    """Measure it on a CPU. Raises `InvalidMeasurement` and `SequenceMismatch` as profiling does."""
    model = _Decoding(Step(device, dtype))
    workload = Workload(batch=1, query_tokens=1, context_tokens=CONTEXT, dtype=dtype)
    graph = trace(model, Inside(), workload, name="tiny", target="cpu", options={})
    names = [op.name for op in graph.ops]
    runner = Runner(model, Inside(), device)
    found = []
    with torch.no_grad():
        for _ in range(SESSIONS):
            busy_s = statistics.median(sum(times) for times in operation_times(runner, names, PASSES))
            runner.once()
            found.append((statistics.median(runner.once() for _ in range(PASSES)) - busy_s) / len(names))
    low, high = (max(0.0, quantile_of(tuple(found), q)) for q in (0.05, 0.95))
    value = max(statistics.median(found), 1e-9)
    return Figure(
        value=value,
        source=f"a tiny Llama decodes in {dtype}: wall less the spans of its {len(names)} operations, over them",
        low=min(low, value),
        high=max(high, value),
    )
