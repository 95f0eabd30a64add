"""What single operations read and write, in a module made for it."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from profiler.models.trace import trace
from roofline.graph.op import Kind, OpGraph
from roofline.workload import Workload


class Given:
    """Inputs of a module without a cache."""

    def __init__(self, **tensors: Tensor) -> None:
        self.tensors = tensors

    def call(self, model: nn.Module) -> Any:
        return model(**self.tensors)

    def restore(self) -> None: ...

    def cache_tensors(self) -> Iterator[tuple[int, str, Tensor]]:
        return iter(())


class Calls(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function
        self.gain = nn.Parameter(torch.ones(64))

    def forward(self, **tensors: Tensor) -> Tensor:
        return self.function(gain=self.gain, **tensors)


def traced(function: Any, **tensors: Tensor) -> OpGraph:
    workload = Workload(batch=1, query_tokens=4, context_tokens=0, dtype="float32")
    return trace(Calls(function), Given(**tensors), workload, name="calls", target="cpu", options={})  # type: ignore[arg-type]


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


@pytest.mark.parametrize("make", [torch.zeros_like, lambda x: x.new_ones(4, 8), lambda x: torch.full_like(x, 2.0)])
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
    inputs: Any = Given(x=torch.ones(4, 8, device="meta"))
    for target, names in (("cuda", ["aten::mul"]), ("cpu", ["aten::arange", "aten::add", "aten::mul"])):
        graph = trace(calls, inputs, workload, name="calls", target=target, options={})
        assert [op.name for op in graph.ops] == names
