"""Host time between two operations of an eager model where host and device are one: a CPU.

The tiny model of `profiler.microbench.host` decodes a token with and without the profiler in turn. What its operations
take under the profiler is what laws are fitted to; the rest of an unprofiled pass, over its operations, is the gap.

Example: ``gap(torch.device("cpu"), "float32").value`` → seconds an operation
"""

import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._profiler import _RecordFunctionFast

from profiler.attribution.spans import PASS, passes
from profiler.attribution.timeline import read_timeline
from profiler.microbench.host import CONTEXT, Step
from profiler.models.trace import trace
from profiler.record.measurement import quantile_of
from profiler.timing.samples import sample
from profiler.timing.session import recorded
from roofline.hardware import Figure
from roofline.workload import Workload

SESSIONS, PASSES = 5, 8
"""Profiled; as many passes run without the profiler beside each session."""


class _Inputs:
    """One step of the tiny model, from its own cache."""

    def __init__(self, step: Step) -> None:
        self._step = step

    def call(self, model: nn.Module) -> Any:
        del model
        return self._step.run()

    def restore(self) -> None:
        """The step restores its cache itself."""

    def cache_tensors(self) -> Iterable[tuple[int, str, Tensor]]:
        return ()


def gap(device: torch.device, dtype: str) -> Figure:
    """Measure it on a CPU. Raises `InvalidMeasurement` and `SequenceMismatch` as profiling does."""
    step = Step(device, dtype)
    workload = Workload(batch=1, query_tokens=1, context_tokens=CONTEXT, dtype=dtype)
    graph = trace(step.model, _Inputs(step), workload, name="tiny", target="cpu", options={})
    names = [op.name for op in graph.ops]
    found = []
    with torch.no_grad():
        for _ in range(SESSIONS):
            busy_s = statistics.median(_busy_s(step, names, device))
            step.run()
            found.append((statistics.median(_wall_s(step) for _ in range(PASSES)) - busy_s) / len(names))
    low, high = (max(0.0, quantile_of(tuple(found), q)) for q in (0.05, 0.95))
    value = max(statistics.median(found), 1e-9)
    return Figure(
        value=value,
        source=f"a tiny Llama decodes in {dtype}: wall less the spans of its {len(names)} operations, over them",
        low=min(low, value),
        high=max(high, value),
    )


def _wall_s(step: Step) -> float:
    start = time.perf_counter()
    step.run()
    return time.perf_counter() - start


def _busy_s(step: Step, names: list[str], device: torch.device) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        with recorded(path, device):
            for _ in range(1 + PASSES):
                with _RecordFunctionFast(PASS):
                    step.run()
        timeline = read_timeline(path)
    return [sum(sample(timeline, window, names, "cpu").device_s) for window in passes(timeline.host)[1:]]
