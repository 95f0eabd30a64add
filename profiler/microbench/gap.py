"""Host time between two operations of an eager model where host and device are one: a CPU.

The model of `profiler.microbench.host`, wider, decodes a token with and without the profiler in turn. What its operations
take under the profiler is what laws are fitted to; the rest of an unprofiled pass, over its operations, is the gap.

Example: ``gap(torch.device("cpu"), "float32", 32e6).value`` → seconds an operation
"""

import math
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

WEIGHT_PART = 1 / 16
"""Of the last-level cache, for one square weight: weights go through the caches that the interpreter's code lives in, and
drive it out, as a model's do."""
UNIT = 64
"""Widths are multiples of it."""
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


def gap(device: torch.device, dtype: str, cache_bytes: float) -> Figure:
    """Measure it on a CPU. Args: `cache_bytes`, of the last-level cache.

    Raises `InvalidMeasurement` and `SequenceMismatch` as profiling does.
    """
    width = UNIT * max(1, round(math.sqrt(WEIGHT_PART * cache_bytes / getattr(torch, dtype).itemsize) / UNIT))
    model = _Decoding(Step(device, dtype, width))
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
        source=f"a Llama of width {width} decodes in {dtype}: wall less the spans of its {len(names)} operations, over them",
        low=min(low, value),
        high=max(high, value),
    )
