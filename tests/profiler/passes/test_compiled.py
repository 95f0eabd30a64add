"""Compiled passes of a real, tiny Llama on the CPU: kernels, the operations each came from, and what breaks."""

import math
import shutil
from types import SimpleNamespace

import pytest
import torch
from tiny import layered
from torch import nn

from profiler.models.build import build, build_meta
from profiler.models.inputs import prepare
from profiler.passes.measure import Loaded, measure_cell
from profiler.record.run import Cell, CellResult, InvalidMeasurement
from roofline.graph.op import Kind, OpGraph
from roofline.workload import Workload

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
    pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler"),
]

CPU = torch.device("cpu")
DECODE = Workload(batch=1, query_tokens=1, context_tokens=16, dtype="float32")
LAYER = "model.layers.0"


def loaded() -> Loaded:
    config = layered("llama", 1)
    meta = build_meta(config, "float32")
    return Loaded(name="llama", model=build(config, "cpu", "float32"), meta=meta, whole=meta)


@pytest.fixture(scope="module")
def measured() -> tuple[CellResult, OpGraph]:
    cell = Cell(model="llama", workload=DECODE, attn="default", experts="default", cache="dynamic", mode="compile")
    result, graph = measure_cell(cell, loaded(), device=CPU, budget_s=0.01, seed=0)
    assert (result.status, result.reason) == ("done", None) and graph is not None
    return result, graph


def names(graph: OpGraph, ops: tuple[int, ...]) -> set[tuple[str, str]]:
    return {(graph.ops[i].path, graph.ops[i].name.removeprefix("aten::")) for i in ops}


def test_a_compiled_pass_closes_and_is_attributed(measured: tuple[CellResult, OpGraph]) -> None:
    result, _ = measured
    assert result.ops == () and result.closure is not None and result.closure.attributed >= 0.97
    assert all(s > 0 for kernel in result.kernels for s in kernel.device_s)
    for i, wall_s in enumerate(result.profiled_wall_s):
        inside = math.fsum(kernel.device_s[i] + kernel.gap_s[i] for kernel in result.kernels) + result.tail_gap_s[i]
        assert 0 < inside <= wall_s
    assert result.ran["mode"] == "compile" and result.ran["graph breaks"] == "0"
    assert result.ran["compiled kernels"] == str(len(result.kernels))


def test_products_and_attention_are_kernels_of_their_own(measured: tuple[CellResult, OpGraph]) -> None:
    result, graph = measured
    alone = {kernel.ops[0] for kernel in result.kernels if len(kernel.ops) == 1}
    kinds = (Kind.MATMUL, Kind.ATTENTION)  # but the angles of transformers < 5.2x, a product that is fused
    anchors = {i for i, op in enumerate(graph.ops) if op.kind in kinds and "rotary" not in op.path}
    assert len(anchors) == 9 and anchors <= alone
    for kernel in result.kernels:
        assert len(kernel.ops) == 1 or not anchors & set(kernel.ops), kernel.name


def test_a_fused_kernel_has_the_set_of_modules_it_came_from(measured: tuple[CellResult, OpGraph]) -> None:
    result, graph = measured
    fused = [names(graph, kernel.ops) for kernel in result.kernels if len(kernel.ops) > 1]
    assert {(f"{LAYER}.mlp.act_fn", "silu"), (f"{LAYER}.mlp", "mul")} in fused
    norm = f"{LAYER}.post_attention_layernorm"
    (after,) = [found for found in fused if (norm, "rsqrt") in found]
    assert {(LAYER, "add"), (norm, "pow"), (norm, "mean"), (norm, "mul")} <= after


def test_every_operation_of_the_graph_is_in_a_kernel(measured: tuple[CellResult, OpGraph]) -> None:
    result, graph = measured
    assert {op for kernel in result.kernels for op in kernel.ops} == set(range(len(graph.ops)))


class Broken(nn.Module):
    """Two products; between them Python looks at a value, which no graph can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)

    def forward(self, x: torch.Tensor) -> SimpleNamespace:
        x = self.first(x)
        torch._dynamo.graph_break()
        return SimpleNamespace(logits=self.second(x.neg()))


def test_a_model_that_breaks_is_measured_in_parts() -> None:
    from profiler.passes.compiled import CompiledRunner
    from profiler.passes.measure import rounds

    model = Broken()
    x = torch.randn(4, 8)
    inputs = SimpleNamespace(kwargs=lambda: {"x": x}, restore=lambda: None)
    runner = CompiledRunner(model, inputs, CPU)  # type: ignore[arg-type]
    graph = _traced(model, x)
    times = rounds(runner, graph, budget_s=0.01)
    assert (runner.environment_notes()["compiled graphs"], runner.environment_notes()["graph breaks"]) == ("2", "1")
    assert times.closure.attributed >= 0.97
    assert {("first", "mm"), ("second", "mm")} <= {pair for k in times.kernels for pair in names(graph, k.ops)}


def _traced(model: nn.Module, x: torch.Tensor) -> OpGraph:
    from profiler.models.trace import trace

    inputs = SimpleNamespace(call=lambda m: m(x), restore=lambda: None, cache_tensors=lambda: ())
    return trace(model, inputs, DECODE, name="broken", target="cpu", options={})  # type: ignore[arg-type]


def test_a_model_that_recompiles_itself_is_refused() -> None:
    from profiler.passes.compiled import CompiledRunner

    ready = loaded()
    runner = CompiledRunner(ready.model, prepare(ready.meta, DECODE, device=CPU), CPU)
    made = iter(range(100))
    runner._compiled = runner.forward = lambda **kwargs: runner._made.called.append(next(made)) or ready.model(**kwargs)
    from profiler.models.trace import trace

    graph = trace(ready.meta, prepare(ready.meta, DECODE), DECODE, name="llama", target="cpu", options={})
    with torch.no_grad(), pytest.raises(InvalidMeasurement, match="recompiles itself"):
        runner.check(graph)
