"""Kernels of several operations: what they move, by hand, and how their times are shared."""

import math

import numpy as np
import pytest
from graphs import GraphBuilder, peaks

from roofline.fusion.fuse import kernel_ops
from roofline.graph.op import OpGraph
from roofline.price import price, price_kernels, share

PEAKS = peaks(matrix=100, vector=10, levels=(("DRAM", 1e9, 10.0),))


def chain() -> OpGraph:
    """mm: x, w → a (40 + 10 bytes); gelu: a → b; add: b, x → c; all of 10 bytes."""
    b = GraphBuilder()
    b.weight("w", 30)
    b.op("matmul", reads={"x": 10, "w": 30}, writes={"a": 10}, matrix=1000, path="up")
    b.op("pointwise", reads=["a"], writes={"b": 10}, vector=5, path="act")
    b.op("pointwise", reads=["b", "x"], writes={"c": 10}, vector=1, path="")
    return b.graph()


def moved(graph: OpGraph, *members: tuple[int, ...]) -> list[tuple[float, float]]:
    """(read, written) bytes of each kernel."""
    ops = kernel_ops(graph, members)
    return [(sum(a.bytes for a in op.reads), sum(a.bytes for a in op.writes)) for op in ops]


def test_kernels_of_one_operation_are_the_executed_graph() -> None:
    graph = chain()
    alone = [(i,) for i in range(3)]
    assert moved(graph, *alone) == [(40, 10), (10, 10), (20, 10)]
    assert price_kernels(graph, alone, PEAKS).time_s == pytest.approx(price(graph, PEAKS).time_s)


def test_what_stays_within_a_kernel_is_not_moved() -> None:
    assert moved(chain(), (0,), (1, 2)) == [(40, 10), (20, 10)]
    assert moved(chain(), (0, 1, 2)) == [(40, 10)]


def test_what_a_later_kernel_reads_is_written() -> None:
    assert moved(chain(), (0, 1), (2,)) == [(40, 10), (20, 10)]


def test_what_a_later_kernel_computes_itself_is_not_written_for_it() -> None:
    # gelu is part of both kernels: the second reads a, not b
    graph = chain()
    assert moved(graph, (0,), (1,), (1, 2)) == [(40, 10), (10, 0), (20, 10)]
    assert [op.vector_flops for op in kernel_ops(graph, [(1,), (1, 2)])] == [5, 6], "and both compute it"


def test_what_two_kernels_compute_is_written_by_one() -> None:
    b = GraphBuilder()
    b.op("pointwise", reads={"x": 10}, writes={"a": 10})
    b.op("pointwise", reads=["a"], writes={"b": 10})
    b.op("pointwise", reads=["a"], writes={"c": 10})
    assert moved(b.graph(), (0, 1), (0,), (2,)) == [(10, 20), (10, 0), (10, 10)]


def test_the_cache_is_always_written() -> None:
    b = GraphBuilder()
    b.kv("keys", 10)
    b.op("copy", reads={"x": 10}, writes={"keys": 10})
    b.op("pointwise", reads=["keys"], writes={"y": 10})
    assert moved(b.graph(), (0, 1)) == [(10, 20)]


def test_a_kernel_is_described_by_its_anchor() -> None:
    (op,) = kernel_ops(chain(), [(0, 1, 2)])
    assert (op.path, op.matrix_flops, op.vector_flops) == ("up", 1000, 6)


def test_times_are_shared_by_the_members_own_rooflines() -> None:
    # own: 10 s of matrix work, 2 s (20 bytes ÷ 10), 3 s (30 ÷ 10)
    assert share(chain(), [(0,), (1, 2)], [12.0, 10.0], PEAKS) == pytest.approx([12, 4, 6])


def test_an_operation_of_several_kernels_has_a_share_of_each() -> None:
    assert share(chain(), [(0,), (1,), (1, 2)], [12.0, 1.0, 10.0], PEAKS) == pytest.approx([12, 1 + 4, 6])


def test_an_operation_of_no_kernel_takes_no_time() -> None:
    assert share(chain(), [(0,), (2,)], [12.0, 10.0], PEAKS) == pytest.approx([12, 0, 10])


def test_without_peaks_bytes_share() -> None:
    assert share(chain(), [(0,), (1, 2)], [12.0, 10.0], None) == pytest.approx([12, 4, 6])
    unknown = peaks(matrix=100, vector=10, levels=(("DRAM", 1e9, 10.0),))
    graph = chain().model_copy(update={"ops": tuple(op.model_copy(update={"dtype": "float16"}) for op in chain().ops)})
    assert share(graph, [(0, 1, 2)], [10.0], unknown) == pytest.approx([5, 2, 3]), "50, 20 and 30 bytes"


def test_what_is_shared_adds_up_and_unknown_stays_unknown() -> None:
    members = [(0, 1), (1, 2), (0,)]
    assert share(chain(), members, [3.0, 4.0, 5.0], PEAKS).sum() == pytest.approx(12)
    assert math.isnan(share(chain(), [(0, 1), (2,)], [np.nan, 1.0], PEAKS)[0])
