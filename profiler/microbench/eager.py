"""Small operations and the gaps between them as they are in eager models, which no row of equal calls can tell.

Llamas whose widths follow from the device decode a token and prefill prompts. Between two small operations of a model
the interpreter runs, products stream their weights through the caches, and operands lie where another operation has
put them: a layer smaller than the last-level cache leaves code and interpreter in it, a larger one drives them out. So
a small operation takes longer there than in a row of its own, on a CPU above all. What lies between the spans of two
operations is the host's.

Example: ``measure_eager(torch.device("cpu"), "float32", 32e6)[0].time_s`` → seconds of each operation of a pass
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from profiler.microbench.host import CONTEXT, Step
from profiler.microbench.probe import Inside, samples
from profiler.models.trace import trace
from profiler.record.measurement import middle_mean
from profiler.timing.runner import Runner
from profiler.timing.samples import Sample
from roofline.op import OpGraph
from roofline.workload import Workload

SIZES = ((1 / 16, 8), (1 / 4, 3))
"""Part of the last-level cache that one square weight fills, and layers: nine such weights make a layer, so layers of
half of the cache and of twice the cache."""
UNIT = 64
"""Widths are multiples of it."""
PROMPTS = (16, 128)
"""Tokens of a prefill."""
LONGEST_S = 0.3
"""Of a prefill at the device's peak: a longer one is all products, of which probes tell more in less time."""
PASSES = 3
"""Of a visit. The first is not looked at."""


@dataclass(frozen=True, slots=True)
class Eager:
    """What one pass of one model showed; in the order of its operations."""

    graph: OpGraph
    taken: tuple[Sample, ...]

    @property
    def time_s(self) -> NDArray[np.float64]:
        """Seconds of each operation."""
        return middle_mean([one.device_s for one in self.taken])

    @property
    def gap_s(self) -> NDArray[np.float64]:
        """Of the host before each operation."""
        return middle_mean([one.gap_s for one in self.taken])


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


def steps_of(device: torch.device, dtype: str, cache_bytes: float) -> list[Step]:
    """The models. `cache_bytes`: of the last-level cache."""
    itemsize = getattr(torch, dtype).itemsize
    return [
        Step(device, dtype, UNIT * max(1, round(math.sqrt(part * cache_bytes / itemsize) / UNIT)), layers)
        for part, layers in SIZES
    ]


def prompts_of(step: Step, flops_per_s: float) -> tuple[int, ...]:
    """Tokens of the passes of one model: a decode, and the prefills that `flops_per_s` let end within `LONGEST_S`."""
    work = 2 * sum(parameter.numel() for parameter in step.model.parameters())
    return (1, *(prompt for prompt in PROMPTS if work * prompt / flops_per_s <= LONGEST_S))


def measure_eager(
    device: torch.device, dtype: str, steps: Sequence[Step], flops_per_s: float, before: Sequence[Eager] = ()
) -> tuple[Eager, ...]:
    """One visit to passes of all models, whose results are added to those `before`.

    Args: `flops_per_s`, the device's peak of products in this dtype. Raises `InvalidMeasurement` and `SequenceMismatch`
    as profiling does.
    """
    found: list[Eager] = []
    for step in steps:
        for prompt in prompts_of(step, flops_per_s):
            runner = Runner(_Pass(step, prompt), Inside(), device)
            with torch.no_grad():
                known = before[len(found)] if before else Eager(_traced(runner, prompt, dtype), ())
                found.append(_visited(known, runner))
    return tuple(found)


def _traced(runner: Runner, prompt: int, dtype: str) -> OpGraph:
    context = CONTEXT if prompt == 1 else 0
    workload = Workload(batch=1, query_tokens=prompt, context_tokens=context, dtype=dtype)
    return trace(runner.model, Inside(), workload, name="eager", target=runner.backend.type, options={})


def _visited(known: Eager, runner: Runner) -> Eager:
    taken = samples(runner, [op.name for op in known.graph.ops], PASSES)[1:]
    return replace(known, taken=(*known.taken, *taken))
