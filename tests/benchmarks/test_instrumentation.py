"""What the instrumentation costs: profiled against plain passes, of the default model's decode and prefill.

Prints figures and judges nothing. Run: ``python -m pytest -s tests/benchmarks/test_instrumentation.py``
"""

import statistics

import pytest
import torch

from profiler.models.build import build, build_meta
from profiler.models.inputs import prepare
from profiler.models.resolve import resolve
from profiler.models.trace import trace
from profiler.passes.eager import Runner
from profiler.passes.measure import PASSES, rounds
from roofline.workload import Workload

ROUNDS_S = 20.0
"""Seconds of passes for each line."""


@pytest.mark.parametrize("model", ["qwen2.5-0.5b", "gpt2"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_profiled_against_plain_passes(model: str, dtype: str) -> None:
    config = resolve(model).config
    meta, real = build_meta(config, dtype), build(config, "cpu", dtype)
    for query, context in ((1, 128), (128, 0)):
        workload = Workload(batch=1, query_tokens=query, context_tokens=context, dtype=dtype)
        graph = trace(meta, prepare(meta, workload), workload, name=model, target="cpu", options={})
        runner = Runner(real, prepare(meta, workload, device="cpu"), torch.device("cpu"))
        times = rounds(runner, graph, budget_s=ROUNDS_S)
        ratios = [
            statistics.median(times.profiled_wall_s[i : i + PASSES]) / statistics.median(times.wall_s[i : i + PASSES])
            for i in range(0, len(times.wall_s), PASSES)
        ]
        plain_s, profiled_s = statistics.median(times.wall_s), statistics.median(times.profiled_wall_s)
        print(
            f"\n{model} {workload.key}: plain {plain_s * 1e3:.2f} ms, profiled {profiled_s * 1e3:.2f} ms, "
            f"ratio {statistics.median(ratios):.4f} (rounds {min(ratios):.3f}–{max(ratios):.3f}), "
            f"{(profiled_s - plain_s) / len(graph.ops) * 1e6:.2f} µs an operation"
        )
