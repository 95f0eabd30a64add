"""Times small operations and the gaps between them as they are in eager models, where they take longer than in a row.

Between two small operations of a model the interpreter runs, products stream their weights through the caches, and
operands lie where another operation has put them: a layer smaller than the last-level cache leaves code and interpreter
in it, a larger one evicts them. So Llamas whose widths follow from the device decode a token and prefill prompts.

Example: ``InModelKernels(torch.device("cpu"), "float32", cache_bytes=32e6, flops_per_s=1e12).visit(watched)``
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from profiler.kernels.measure import samples
from profiler.microbench.host_cost import CONTEXT, Step
from profiler.models.trace import NoInputs, trace
from profiler.passes.eager import Runner
from profiler.passes.samples import Sample
from profiler.record.measurement import middle_mean
from profiler.timing.turns import Watched
from roofline.graph.op import OpGraph
from roofline.workload import Workload

SIZES = ((1 / 16, 8), (1 / 4, 3))
"""Part of the last-level cache that one square weight fills, and layers: nine such weights make a layer, so layers of
half of the cache and of twice the cache."""
UNIT = 64
"""Widths are multiples of it."""
PROMPTS = (16, 128)
"""Tokens of a prefill."""
LONGEST_S = 0.3
"""Longest prefill at the device's peak: a longer one is all products, of which probes tell more in less time."""
PASSES = 2
"""Passes of a visit. The first is not looked at; more of them tell less than another visit."""


@dataclass(frozen=True, slots=True)
class InModel:
    """Passes of one model in one phase; times are in the order of its operations."""

    graph: OpGraph
    taken: tuple[Sample, ...]

    @property
    def time_s(self) -> NDArray[np.float64]:
        """Return seconds of each operation."""
        return middle_mean([sample.device_s for sample in self.taken])

    @property
    def gap_s(self) -> NDArray[np.float64]:
        """Return seconds of the host before each operation."""
        return middle_mean([sample.gap_s for sample in self.taken])


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


class InModelKernels:
    """Passes of models in one dtype, over several visits; each model lives as long as its passes run."""

    def __init__(self, device: torch.device, dtype: str, cache_bytes: float, flops_per_s: float) -> None:
        """`cache_bytes`, of the last-level cache; `flops_per_s`, the device's peak of products in this dtype."""
        self._device, self._dtype = device, dtype
        self._cache_bytes, self._flops_per_s = cache_bytes, flops_per_s
        self.graphs: list[OpGraph] = []

    def visit(self, watched: Watched) -> list[list[Sample]]:
        """Return samples of each pass; the first visit traces them.

        Raises `InvalidMeasurement` and `SequenceMismatch` as profiling does.
        """
        taken: list[list[Sample]] = []
        for runner, graph in self._runners():
            with torch.no_grad():
                taken.append(samples(runner, [op.name for op in graph.ops], PASSES, watched)[1:])
        return taken

    def prepare(self) -> None:
        """Trace the passes, the first time."""
        if not self.graphs:
            for _ in self._runners():
                pass

    def _runners(self) -> Iterator[tuple[Runner, OpGraph]]:
        """Yield each pass in turn with its graph, which is traced the first time."""
        number = 0
        for width, layers in widths(self._dtype, self._cache_bytes):
            step = Step(self._device, self._dtype, width, layers)
            for prompt in prompts_of(step, self._flops_per_s):
                runner = Runner(_Pass(step, prompt), NoInputs(), self._device)
                if len(self.graphs) == number:
                    with torch.no_grad():
                        self.graphs.append(_traced(runner, prompt, self._dtype))
                yield runner, self.graphs[number]
                number += 1

    def passes(self, visits: Iterable[Sequence[Sequence[Sample]]]) -> list[InModel]:
        """Return the passes of these visits together."""
        return [
            InModel(graph, tuple(sample for visit in taken for sample in visit))
            for graph, *taken in zip(self.graphs, *visits, strict=True)
        ]


def widths(dtype: str, cache_bytes: float) -> list[tuple[int, int]]:
    """Return width and layers of each model. `cache_bytes`: of the last-level cache."""
    itemsize = getattr(torch, dtype).itemsize
    return [(UNIT * max(1, round(math.sqrt(part * cache_bytes / itemsize) / UNIT)), layers) for part, layers in SIZES]


def prompts_of(step: Step, flops_per_s: float) -> tuple[int, ...]:
    """Return tokens of the passes of one model: a decode, and prefills that end within `LONGEST_S` at `flops_per_s`."""
    work = 2 * sum(parameter.numel() for parameter in step.model.parameters())
    return (1, *(prompt for prompt in PROMPTS if work * prompt / flops_per_s <= LONGEST_S))


def _traced(runner: Runner, prompt: int, dtype: str) -> OpGraph:
    context = CONTEXT if prompt == 1 else 0
    workload = Workload(batch=1, query_tokens=prompt, context_tokens=context, dtype=dtype)
    return trace(runner.model, NoInputs(), workload, name="eager", target=runner.backend.type, options={})
