"""Small operations and the gaps between them as they are in an eager model, which no row of equal calls can tell.

A Llama whose width follows from the device decodes a token and prefills prompts. Between two small operations of a
model the interpreter runs, products stream their weights through the caches, and operands lie where another operation
has put them. On a CPU a small operation takes twice as long there as in a row of its own; so what streams is measured
here, and in rows only where it is large or not in a Llama. The gap is what remains of an unprofiled pass beside the
spans of its operations.

Example: ``measure_eager(torch.device("cpu"), "float32", 32e6).gap.value`` → seconds an operation
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from profiler.microbench.host import CONTEXT, Step
from profiler.microbench.probe import Inside, operation_times
from profiler.models.trace import trace
from profiler.timing.runner import Runner
from roofline.hardware import Figure
from roofline.op import OpGraph
from roofline.workload import Workload

WEIGHT_PART = 1 / 16
"""Of the last-level cache, for one square weight: so weights go through the caches, as a model's do."""
UNIT = 64
"""Widths are multiples of it."""
PROMPTS = (16, 128)
"""Tokens of a prefill."""
LEAST_S = 1e-8
"""Of a gap: below, the profiler's own cost within the spans hides it."""
SESSIONS, PASSES = 3, 5
"""Profiled; as many passes run without the profiler beside each session."""


@dataclass(frozen=True, slots=True)
class Eager:
    """What one model showed."""

    passes: tuple[tuple[OpGraph, tuple[float, ...]], ...]
    """Operations of each pass, and their seconds: medians."""
    gap: Figure
    """Seconds of the host between two operations: median over the passes."""


class _Pass(nn.Module):
    """One pass of the model, again and again from the same state."""

    def __init__(self, step: Step, prompt: int) -> None:
        super().__init__()
        self.model = step.model
        self._step, self._prompt = step, prompt
        self._tokens = torch.zeros((1, prompt), dtype=torch.long, device=next(step.model.parameters()).device)

    def forward(self) -> Any:
        if self._prompt == 1:
            return self._step.run()
        return self.model(input_ids=self._tokens, use_cache=True, logits_to_keep=1).logits


def measure_eager(device: torch.device, dtype: str, cache_bytes: float) -> Eager:
    """Measure it. Args: `cache_bytes`, of the last-level cache.

    Raises `InvalidMeasurement` and `SequenceMismatch` as profiling does.
    """
    width = UNIT * max(1, round(math.sqrt(WEIGHT_PART * cache_bytes / getattr(torch, dtype).itemsize) / UNIT))
    step = Step(device, dtype, width)
    passes, gaps = [], []
    for prompt in (1, *PROMPTS):
        graph, times, found = _measured(_Pass(step, prompt), prompt, dtype, device)
        passes.append((graph, times))
        gaps.append(found)
    value = statistics.median(gaps)
    source = (
        f"a Llama of width {width} in {dtype}, decode and prefill: wall less the spans of its operations, over them"
    )
    return Eager(tuple(passes), Figure(value=value, source=source, low=min(*gaps, value), high=max(*gaps, value)))


def _measured(model: _Pass, prompt: int, dtype: str, device: torch.device) -> tuple[OpGraph, tuple[float, ...], float]:
    """Operations, their times, and the gap between two of them."""
    context = CONTEXT if prompt == 1 else 0
    workload = Workload(batch=1, query_tokens=prompt, context_tokens=context, dtype=dtype)
    runner = Runner(model, Inside(), device)
    with torch.no_grad():
        graph = trace(model, Inside(), workload, name="eager", target=runner.kind, options={})
        names = [op.name for op in graph.ops]
        taken: list[Sequence[float]] = []
        walls: list[float] = []
        for _ in range(SESSIONS):
            taken += operation_times(runner, names, PASSES)
            runner.once()
            walls += [runner.once() for _ in range(PASSES)]
    times = tuple(statistics.median(each) for each in zip(*taken, strict=True))
    busy_s = statistics.median(math.fsum(each) for each in taken)
    return graph, times, max(LEAST_S, (statistics.median(walls) - busy_s) / len(names))
