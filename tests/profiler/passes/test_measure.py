"""Passes of real, tiny models: what is kept closes, and what does not match or is not finite is refused."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import tiny

from profiler.attribution.operations import SequenceMismatch
from profiler.models.build import build, build_meta
from profiler.models.inputs import prepare
from profiler.models.trace import trace
from profiler.passes.eager import Runner
from profiler.passes.measure import ROUNDS, Loaded, measure_cell, rounds
from profiler.passes.samples import PassTimes, Sample
from profiler.record.run import Cell, InvalidMeasurement
from roofline.graph.op import Kind
from roofline.workload import Workload

CPU = torch.device("cpu")
DECODE = Workload(batch=1, query_tokens=1, context_tokens=12, dtype="float32")
PREFILL = Workload(batch=2, query_tokens=12, context_tokens=0, dtype="float32")


def loaded(name: str) -> Loaded:
    meta = build_meta(tiny(name), "float32")
    return Loaded(name=name, model=build(tiny(name), "cpu", "float32"), meta=meta, whole=meta)


def cell(name: str, workload: Workload) -> Cell:
    return Cell(model=name, workload=workload, attn="default", experts="default", cache="dynamic")


@pytest.mark.parametrize("workload", [PREFILL, DECODE], ids=["prefill", "decode"])
def test_samples_of_a_pass_close(workload: Workload) -> None:
    ready = loaded("llama")
    result, graph = measure_cell(cell("llama", workload), ready, device=CPU, budget_s=0.01, seed=0)
    assert result.status == "done" and graph is not None and result.closure is not None
    count = len(result.wall_s)
    assert count >= ROUNDS[0]
    assert count == len(result.profiled_wall_s) == len(result.tail_gap_s) == count
    assert [times.op for times in result.ops] == list(range(len(graph.ops)))
    assert all(len(times.device_s) == len(times.gap_s) == count for times in result.ops)
    assert all(s > 0 for times in result.ops for s in times.device_s)
    assert all(s >= -1e-9 for times in result.ops for s in times.gap_s)
    for i, wall_s in enumerate(result.profiled_wall_s):
        inside = math.fsum(times.device_s[i] + times.gap_s[i] for times in result.ops) + result.tail_gap_s[i]
        assert 0 < inside <= wall_s  # the pass's range lies within the wall clock's two readings
    assert result.closure.attributed == 1
    assert result.ran["attention backend"].startswith("_scaled_dot_product")


class Slow(Runner):
    """A runner whose passes take as long as it says, on a clock of its own."""

    def __init__(self, *arguments: Any, pass_s: float) -> None:
        super().__init__(*arguments)
        self.pass_s, self.now_s = pass_s, 0.0
        self.in_a_row: set[int] = set()

    def finite(self) -> bool:
        self.now_s += self.pass_s
        return super().finite()

    def once(self) -> float:
        super().once()
        self.now_s += self.pass_s
        return self.pass_s

    def profiled(self, count: int) -> tuple[list[Sample], list[float]]:
        self.now_s += self.pass_s * count
        self.in_a_row.add(count)
        return super().profiled(count)


@pytest.mark.parametrize(
    ("pass_s", "budget_s", "in_a_row", "settles", "warm_up"),
    [(1e-3, 0.1, 3, True, True), (0.4, 5.0, 2, True, True), (30.0, 10.0, 1, False, False)],
)
def test_long_passes_are_fewer_in_a_round_and_need_none_that_does_not_count(
    pass_s: float, budget_s: float, in_a_row: int, settles: bool, warm_up: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = loaded("llama")
    runner = Slow(ready.model, prepare(ready.meta, DECODE, device="cpu"), CPU, pass_s=pass_s)
    monkeypatch.setattr("profiler.passes.measure.time.monotonic", lambda: runner.now_s)
    times = rounds(runner, _graph(ready), budget_s=budget_s)
    assert runner.in_a_row == {in_a_row}
    assert len(times.wall_s) >= ROUNDS[0] * in_a_row
    assert runner.settles == settles
    assert (times.warm_up.calls > 1 or times.warm_up.seconds != pass_s) == warm_up  # a long pass is its own


def test_each_round_reads_the_level_of_the_machine_and_what_events_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("profiler.passes.measure.event_cost_s", lambda: 1e-9)
    ready = loaded("llama")
    inputs = prepare(ready.meta, DECODE, device="cpu")
    readings = iter(range(1, 99))
    probes = SimpleNamespace(time=lambda: {"memory": float(next(readings))})
    times = rounds(Runner(ready.model, inputs, CPU), _graph(ready), budget_s=0.01, probes=probes)
    assert times.reference["memory"][:3] == (1.0, 2.0, 3.0)
    assert times.closure.event_cost_s == 1e-9
    assert times.closure.subtracted_s >= 1e-9 * len(times.ops)  # an event at least for each operation


def test_a_graph_of_other_operations_is_refused() -> None:
    ready = loaded("llama")
    inputs = prepare(ready.meta, DECODE, device="cpu")
    graph = trace(ready.meta, prepare(ready.meta, DECODE), DECODE, name="llama", target="cpu", options={})
    wrong = graph.model_copy(update={"ops": graph.ops[:-1]})
    with pytest.raises(SequenceMismatch, match="device only: aten::mm in lm_head"):
        rounds(Runner(ready.model, inputs, CPU), wrong, budget_s=0.01)
    moved = [op.model_copy(update={"path": "elsewhere"}) if op.path == "lm_head" else op for op in graph.ops]
    with pytest.raises(SequenceMismatch, match="traced only: aten::mm in elsewhere"):
        rounds(Runner(ready.model, inputs, CPU), graph.model_copy(update={"ops": tuple(moved)}), budget_s=0.01)


def test_what_the_device_runs_beyond_the_meta_trace_is_explained() -> None:
    # Falcon's attention takes the plain path on a CPU, whose output needs a copy that `meta` does not show.
    result, graph = measure_cell(cell("falcon", PREFILL), loaded("falcon"), device=CPU, budget_s=0.01, seed=0)
    assert result.status == "done" and graph is not None
    assert graph.traced_on == "cpu"
    assert result.differences == tuple(
        f"device only: aten::clone in transformer.h.{layer}.self_attention" for layer in range(2)
    )


def test_experts_are_priced_with_the_routing_that_happened() -> None:
    result, graph = measure_cell(cell("mixtral", DECODE), loaded("mixtral"), device=CPU, budget_s=0.01, seed=0)
    assert result.status == "done" and graph is not None
    products = [op for op in graph.ops if op.kind == Kind.GROUPED_MATMUL]
    assert len(products) == 2 * tiny("mixtral").num_hidden_layers
    for op in products:  # one token that chooses two of four experts hits two; uniform routing expects two as well
        assert op.reads[1].bytes == 2 * op.dims["k"] * op.dims["n"] * 4
    assert graph.traced_on == "cpu"


@pytest.mark.parametrize("name", ["phi", "opt"])
def test_a_head_with_a_bias_on_some_of_the_tokens(name: str) -> None:
    # `linear` of a strided input adds its bias in place, and not in place while a mode watches
    result, graph = measure_cell(cell(name, PREFILL), loaded(name), device=CPU, budget_s=0.01, seed=0)
    assert (result.status, result.reason) == ("done", None) and graph is not None


def test_where_of_one_argument_is_an_operation_of_its_own() -> None:
    config = tiny("gpt_oss")
    meta = build_meta(config, "float32", experts="eager")
    ready = Loaded("gpt_oss", build(config, "cpu", "float32", experts="eager"), meta, meta)
    result, graph = measure_cell(cell("gpt_oss", PREFILL), ready, device=CPU, budget_s=0.01, seed=0)
    assert (result.status, result.reason) == ("done", None) and graph is not None
    assert graph.uncounted == ()


def test_whatever_a_model_raises_fails_its_cell_alone() -> None:
    ready = loaded("llama")
    ready.model.model.norm.forward = lambda x: x.no_such_method()
    result, graph = measure_cell(cell("llama", DECODE), ready, device=CPU, budget_s=0.01, seed=0)
    assert (result.status, graph) == ("failed", None)
    assert result.reason == "AttributeError: 'Tensor' object has no attribute 'no_such_method'"


def test_logits_that_are_not_finite_make_no_times() -> None:
    ready = loaded("llama")
    with torch.no_grad():
        ready.model.lm_head.weight[3] = float("nan")
    result, graph = measure_cell(cell("llama", DECODE), ready, device=CPU, budget_s=0.01, seed=0)
    assert (result.status, graph, result.wall_s) == ("invalid", None, ())
    assert result.reason is not None and "not finite" in result.reason
    with pytest.raises(InvalidMeasurement):
        rounds(Runner(ready.model, prepare(ready.meta, DECODE, device="cpu"), CPU), _graph(ready), budget_s=0.01)


def _graph(ready: Loaded):  # type: ignore[no-untyped-def]
    return trace(ready.meta, prepare(ready.meta, DECODE), DECODE, name="llama", target="cpu", options={})


def test_a_cell_beyond_memory_fails_with_its_reason() -> None:
    ready = loaded("gpt2")
    endless = Workload(batch=1 << 24, query_tokens=64, context_tokens=0, dtype="float32")
    result, graph = measure_cell(cell("gpt2", endless), ready, device=CPU, budget_s=0.01, seed=0)
    assert (result.status, graph) == ("failed", None)
    assert result.reason is not None and "GB are free" in result.reason


def test_the_state_is_the_same_before_each_pass() -> None:
    ready = loaded("mamba")
    inputs = prepare(ready.meta, DECODE, device="cpu")
    before = {(layer, name): t.clone() for layer, name, t in inputs.cache_tensors()}
    times = rounds(Runner(ready.model, inputs, CPU), _graph(ready), budget_s=0.01)
    assert isinstance(times, PassTimes)
    for layer, name, tensor in inputs.cache_tensors():
        assert torch.equal(tensor, before[layer, name])
