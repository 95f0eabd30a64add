"""The whole measuring path on a real GPU: what a recorded timeline cannot show. Skips by itself where there is none.

With ROOFCAL_TIMELINE=PATH in the environment one decode pass of the tiny Llama is written there as kineto exports it
(.json or .json.gz), to replace the hand-made timeline in tests/data.

Example: ``ROOFCAL_TIMELINE=$OUT/llama_decode.json.gz python -m pytest tests/gpu``
"""

import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import TINY, tiny
from transformers import LlamaConfig, PretrainedConfig

from profiler.attribution.operations import passes
from profiler.devices.environment import collect, findings
from profiler.models.build import build, build_meta
from profiler.models.inputs import prepare
from profiler.models.trace import trace
from profiler.passes.eager import Runner
from profiler.passes.measure import Loaded, measure_cell
from profiler.passes.samples import sample
from profiler.record.run import Cell, CellResult
from profiler.timing.clocks import EventClock
from roofline.graph.op import OpGraph
from roofline.workload import Workload

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

CUDA = torch.device("cuda")
MIDDLE = LlamaConfig(
    vocab_size=32_000,
    hidden_size=4096,
    intermediate_size=14_336,
    num_hidden_layers=2,
    num_attention_heads=32,
    num_key_value_heads=8,
    max_position_embeddings=8192,
)
"""Two layers of Llama-3-8B's size: 4,096 tokens of prefill keep any GPU busy longer than their launches take."""
SESSIONS, IDLE_S = 20, 0.5


def loaded(config: PretrainedConfig, dtype: str) -> Loaded:
    meta = build_meta(config, dtype)
    return Loaded(name="model", model=build(config, CUDA, dtype), meta=meta, whole=meta)


def workload(query: int, context: int, dtype: str = "bfloat16") -> Workload:
    return Workload(batch=1, query_tokens=query, context_tokens=context, dtype=dtype)


def measured(ready: Loaded, work: Workload, budget_s: float = 0.01) -> tuple[CellResult, OpGraph]:
    cell = Cell(model=ready.name, workload=work, attn="default", experts="default", cache="dynamic")
    result, graph = measure_cell(cell, ready, device=CUDA, budget_s=budget_s, seed=0)
    assert result.status == "done" and graph is not None, (result.reason, result.differences[:10])
    return result, graph


def runner(ready: Loaded, work: Workload) -> tuple[Runner, OpGraph]:
    graph = trace(ready.meta, prepare(ready.meta, work), work, name=ready.name, target="cuda", options={})
    return Runner(ready.model, prepare(ready.meta, work, device=CUDA), CUDA), graph


@pytest.mark.parametrize("work", [workload(24, 0), workload(1, 24)], ids=["prefill", "decode"])
@pytest.mark.parametrize("name", sorted(TINY))
def test_every_family_closes(name: str, work: Workload) -> None:
    result, graph = measured(loaded(tiny(name), "bfloat16"), work)
    assert result.closure is not None
    assert result.closure.kernels == result.closure.launches > 0
    assert result.closure.attributed >= 0.99, result.unattributed
    assert abs(result.closure.spans_plus_gaps - 1) <= 0.005
    assert len(result.ops) == len(graph.ops) and result.clock == "kernel timeline"


@pytest.mark.parametrize("work", [workload(24, 0), workload(1, 24)], ids=["prefill", "decode"])
def test_the_meta_trace_of_a_llama_is_what_cuda_runs(work: Workload) -> None:
    result, graph = measured(loaded(tiny("llama"), "bfloat16"), work)
    assert graph.traced_on == "meta" and result.differences == ()
    assert "_scaled_dot_product" in result.ran["attention backend"]


@pytest.mark.parametrize("work", [workload(4096, 0), workload(1, 4096)], ids=["prefill", "decode"])
def test_a_real_size_closes(work: Workload, record_property: Callable[[str, object], None]) -> None:
    ready = loaded(MIDDLE, "bfloat16")
    result, _ = measured(ready, work, budget_s=2.0)
    assert result.closure is not None
    assert result.closure.kernels == result.closure.launches > 0
    assert result.closure.attributed >= 0.99, result.unattributed
    assert abs(result.closure.spans_plus_gaps - 1) <= 0.005
    busy_s = sum(statistics.median(times.device_s) for times in result.ops)
    wall_s = statistics.median(result.wall_s)
    record_property("instrumented_ratio", result.closure.instrumented_ratio)
    record_property("busy_of_wall", busy_s / wall_s)
    assert busy_s <= 1.02 * wall_s, "idle below -2 % of the wall makes the pass invalid"
    if work.query_tokens > 1:  # the device is the bottleneck: profiling must not show
        assert abs(result.closure.instrumented_ratio - 1) <= 0.05


def test_traced_and_untraced_busy_time_agree() -> None:
    ready, work = loaded(MIDDLE, "bfloat16"), workload(4096, 0)
    run, graph = runner(ready, work)
    names = [op.name for op in graph.ops]
    with torch.no_grad():
        run.once()
        timeline, _ = run.session(4)
        busy = [
            math.fsum(sample(timeline, window, names, by_kernels=True).device_s) for window in passes(timeline.host)[1:]
        ]

        def once() -> None:
            run.model(**run.inputs.kwargs())
            run.inputs.restore()

        clock = EventClock(CUDA)
        clock.time(once, 1)
        untraced = [clock.time(once, 3) / 3 for _ in range(5)]
    assert statistics.median(busy) == pytest.approx(statistics.median(untraced), rel=0.05)


def test_many_sessions_lose_no_kernels() -> None:
    run, graph = runner(loaded(tiny("llama"), "bfloat16"), workload(1, 24))
    names = [op.name for op in graph.ops]
    counts = set()
    with torch.no_grad():
        run.once()
        for _ in range(SESSIONS):  # the loss of pytorch issue 192021 grows with sessions and idle time between them
            timeline, _ = run.session(2)
            for window in passes(timeline.host):
                one = sample(timeline, window, names, by_kernels=True)
                counts.add((one.launches, one.launched, one.memory_operations))
            time.sleep(IDLE_S)
    assert len(counts) == 1 and all(launches == kernels for launches, kernels, _ in counts)


def test_a_profiler_session_leaves_later_passes_as_fast(record_property: Callable[[str, object], None]) -> None:
    run, _ = runner(loaded(tiny("llama"), "bfloat16"), workload(1, 24))
    with torch.no_grad():
        before = [run.once() for _ in range(50)][10:]
        run.session(2)
        after = [run.once() for _ in range(50)][10:]
    ratio = statistics.median(after) / statistics.median(before)
    record_property("wall_after_session", ratio)  # CUPTI stays attached: a cost that "unprofiled" passes then have
    assert ratio < 1.25


def test_short_kernels_are_not_timed_as_their_launches() -> None:
    x = torch.randn(1 << 14, device=CUDA)
    out = torch.empty_like(x)
    clock = EventClock(CUDA)

    def call() -> None:
        torch.add(x, x, out=out)

    unheld = clock.time(call, 200) / 200
    held = min(clock.time(call, 200) / 200 for _ in range(5))
    assert 0 < held <= unheld


def test_this_process_is_no_foreign_process() -> None:
    torch.ones(1, device=CUDA)
    found = findings(CUDA, interval_s=0.1)
    assert not [f.what for f in found if f"pid {os.getpid()}" in f.what]
    environment = collect(CUDA, found)
    assert environment.device and environment.versions["torch"] == torch.__version__


@pytest.mark.skipif("ROOFCAL_TIMELINE" not in os.environ, reason="ROOFCAL_TIMELINE names no file")
def test_a_real_timeline_is_exported() -> None:
    path = Path(os.environ["ROOFCAL_TIMELINE"])
    run, _ = runner(loaded(tiny("llama"), "bfloat16"), workload(1, 24))
    with torch.no_grad():
        run.once()
        run.settling = 0  # a small file
        run.record(path, 2, modules=True)
    assert path.stat().st_size
