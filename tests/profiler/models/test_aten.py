"""What single operators do and touch, in modules made for them."""

from typing import Any

import torch
from each import each
from torch import Tensor, nn

from profiler.models.aten import OPERATORS, is_metadata, work_of
from profiler.models.module import Example
from profiler.models.trace import trace
from roofline.graph.op import Kind, OpGraph
from roofline.workload import Workload


class Calls(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function
        self.gain = nn.Parameter(torch.ones(64))

    def forward(self, **tensors: Tensor) -> Tensor:
        return self.function(gain=self.gain, **tensors)


def traced(function: Any, **tensors: Tensor) -> OpGraph:
    workload = Workload(batch=1, query_tokens=4, context_tokens=0, dtype="float32")
    return trace(Calls(function), Example((), tensors), workload, name="calls", target="cpu", options={})  # type: ignore[arg-type]


def accesses(graph: OpGraph) -> list[tuple[list[int], list[int]]]:
    return [([a.bytes for a in op.reads], [a.bytes for a in op.writes]) for op in graph.ops]


def test_an_expanded_operand_counts_at_its_storage() -> None:
    graph = traced(lambda gain, x: x * gain[:8].expand(4, 8), x=torch.randn(4, 8))
    assert accesses(graph) == [([4 * 8 * 4, 8 * 4], [4 * 8 * 4])]


def test_the_same_operand_twice_is_read_once() -> None:
    assert accesses(traced(lambda gain, x: x * x, x=torch.randn(4, 8))) == [([128], [128])]
    halves = traced(lambda gain, x: x[:, :4] * x[:, 4:], x=torch.randn(4, 8))
    assert accesses(halves) == [([64, 64], [64])]


def test_an_in_place_copy_does_not_read_what_it_overwrites() -> None:
    assert accesses(traced(lambda gain, x, y: x.copy_(y), x=torch.randn(4, 8), y=torch.randn(4, 8))) == [([128], [128])]
    assert accesses(traced(lambda gain, x, y: x.add_(y), x=torch.randn(4, 8), y=torch.randn(4, 8))) == [
        ([128, 128], [128])
    ]


@each("make", [torch.zeros_like, lambda x: x.new_ones(4, 8), lambda x: torch.full_like(x, 2.0)])
def test_a_new_tensor_does_not_read_its_template(make: Any) -> None:
    graph = traced(lambda gain, x: make(x), x=torch.randn(4, 8))
    assert accesses(graph)[-1] == ([], [4 * 8 * 4])


def test_complex_numbers_are_counted() -> None:
    graph = traced(lambda gain, x: torch.polar(gain, x), x=torch.randn(64))
    assert (graph.ops[0].kind, graph.ops[0].vector_flops, graph.uncounted) == (Kind.POINTWISE, 4 * 64, ())


def test_scattered_rows_touch_as_much_as_they_bring() -> None:
    def write(gain: Tensor, x: Tensor, rows: Tensor, new: Tensor) -> Tensor:
        return x.index_put_((rows,), new)

    given = {"x": torch.randn(100, 8), "rows": torch.tensor([3, 5]), "new": torch.randn(2, 8)}
    assert accesses(traced(write, **given)) == [([16, 64], [64])]


def test_gathered_rows_are_what_is_read() -> None:
    graph = traced(lambda gain, x, rows: x[rows], x=torch.randn(100, 8), rows=torch.tensor([3, 5]))
    assert accesses(graph) == [([64, 16], [64])]


def test_views_and_allocations_are_no_operations() -> None:
    graph = traced(
        lambda gain, x: torch.empty(3) if x is None else x.view(8, 4).t()[1:].unsqueeze(0), x=torch.ones(4, 8)
    )
    assert graph.ops == ()
    assert graph.inactive == ("gain",)


def test_host_tensors_are_left_out_of_a_graph_for_another_device() -> None:
    workload = Workload(batch=1, query_tokens=4, context_tokens=0, dtype="float32")
    calls = Calls(lambda gain, x: (torch.arange(4) + 1, x * 2)[1]).to("meta")
    inputs = Example((), {"x": torch.ones(4, 8, device="meta")})
    for target, names in (("cuda", ["aten::mul"]), ("cpu", ["aten::arange", "aten::add", "aten::mul"])):
        graph = trace(calls, inputs, workload, name="calls", target=target, options={})
        assert [op.name for op in graph.ops] == names


def test_every_row_of_the_table_is_an_operator_of_torch() -> None:
    assert [name for name in OPERATORS if not hasattr(torch.ops.aten, name)] == ["gelu_tanh"]  # a variant of gelu


def test_an_operator_in_place_does_what_the_other_one_does() -> None:
    x, aten = torch.ones(4, 8), torch.ops.aten
    for func, other in ((aten.add_.Tensor, aten.add.Tensor), (aten.mul_.Tensor, aten.mul.Tensor)):
        assert work_of(func, (x, x), x) == work_of(other, (x, x), x)
    assert work_of(aten.gelu_.default, (x,), x) == work_of(aten.gelu.default, (x,), x)


def test_gelu_by_tanh_has_a_row_of_its_own() -> None:
    for how, flops in (("none", 5), ("tanh", 8)):
        (op,) = traced(lambda gain, x, how=how: torch.nn.functional.gelu(x, approximate=how), x=torch.ones(4, 8)).ops
        assert (op.name, op.kind, op.vector_flops) == ("aten::gelu", Kind.POINTWISE, flops * 32), how


def test_bags_of_rows_are_read_and_summed() -> None:
    graph = traced(lambda gain, table, at: nn.functional.embedding_bag(at, table), table=torch.ones(100, 4),
                   at=torch.zeros(2, 3, dtype=torch.long))  # fmt: skip
    (bag,) = (op for op in graph.ops if op.kind is Kind.EMBEDDING)
    assert (bag.vector_flops, bag.reads[0].bytes) == (2 * 3 * 4, 2 * 3 * 4 * 4)


def test_a_product_helps_distances_in_the_second_norm_alone() -> None:
    x, y, aten = torch.ones(8, 64), torch.ones(9, 64), torch.ops.aten
    second, first = (work_of(aten._cdist_forward.default, (x, y, p, None), torch.ones(8, 9)) for p in (2.0, 1.0))
    assert (second.matrix_flops, first.matrix_flops) == (2 * 8 * 9 * 64, 0)
    assert first.vector_flops == 4 * 8 * 9 * 64


def test_flops_are_counted_on_results_operands_or_sources() -> None:
    x, rows, aten = torch.ones(4, 8), torch.ones(2, 8), torch.ops.aten
    total = work_of(aten.sum.dim_IntList, (x, [1]), torch.ones(4))
    assert (total.kind, total.dims, total.vector_flops) == (Kind.REDUCTION, {"elements": 32}, 32)
    added = work_of(aten.index_add_.default, (x, 0, torch.tensor([1, 2]), rows), x)
    assert (added.kind, added.vector_flops) == (Kind.POINTWISE, 16)
    assert work_of(aten.max.other, (x, x), x).kind is Kind.POINTWISE
    assert work_of(aten.max.dim, (x, 1), (torch.ones(4), torch.ones(4))).kind is Kind.REDUCTION
    unknown = work_of(aten.special_entr.default, (x,), x)
    assert (unknown.kind, unknown.vector_flops, unknown.counted) == (Kind.POINTWISE, 0, False)
    assert is_metadata(aten.empty.memory_format) and is_metadata(aten.view.default)
    assert not is_metadata(aten.clone.default)
