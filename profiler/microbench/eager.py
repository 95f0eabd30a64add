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
from profiler.microbench.probe import Inside, middle, samples
from profiler.models.trace import trace
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
PASSES = 4
"""Of a visit. The first is not looked at."""


@dataclass(frozen=True, slots=True)
class Eager:
    """What one pass of one model showed; in the order of its operations."""

    graph: OpGraph
    taken: tuple[Sample, ...]

    @property
    def time_s(self) -> NDArray[np.float64]:
        """Seconds of each operation."""
        return middle([one.device_s for one in self.taken])

    @property
    def gap_s(self) -> NDArray[np.float64]:
        """Of the host before each operation."""
        return middle([one.gap_s for one in self.taken])


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


def measure_eager(
    device: torch.device, dtype: str, cache_bytes: float, before: Sequence[Eager] = ()
) -> tuple[Eager, ...]:
    """One visit to passes of all sizes, whose results are added to those `before`.

    Args: `cache_bytes`, of the last-level cache. Raises `InvalidMeasurement` and `SequenceMismatch` as profiling does.
    """
    found: list[Eager] = []
    for part, layers in SIZES:
        width = UNIT * max(1, round(math.sqrt(part * cache_bytes / getattr(torch, dtype).itemsize) / UNIT))
        step = Step(device, dtype, width, layers)
        for prompt in (1, *PROMPTS):
            runner = Runner(_Pass(step, prompt), Inside(), device)
            with torch.no_grad():
                known = before[len(found)] if before else Eager(_traced(runner, prompt, dtype), ())
                found.append(_visited(known, runner))
    return tuple(found)


def _traced(runner: Runner, prompt: int, dtype: str) -> OpGraph:
    context = CONTEXT if prompt == 1 else 0
    workload = Workload(batch=1, query_tokens=prompt, context_tokens=context, dtype=dtype)
    return trace(runner.model, Inside(), workload, name="eager", target=runner.kind, options={})


def _visited(known: Eager, runner: Runner) -> Eager:
    taken = samples(runner, [op.name for op in known.graph.ops], PASSES)[1:]
    return replace(known, taken=(*known.taken, *taken))
