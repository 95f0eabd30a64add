"""Operations and groups at a device's roofs, and transfers that overlap with a layer, against sums by hand."""

import math

import numpy as np
import pytest
from graphs import GraphBuilder, peaks
from hypothesis import given
from hypothesis import strategies as st

from roofline.graph.op import Kind, Op
from roofline.price import Overlaps, Prepared, missing_peaks, price, price_fused, price_groups, roofline


def two_matmuls_and_an_add():
    """At 100 FLOP/s matrix, 10 vector, 10 bytes/s: 4 s (matrix), 6 s (DRAM), 3 s (DRAM)."""
    b = GraphBuilder()
    b.weight("w1", 10)
    b.weight("w2", 30)
    b.op("matmul", reads=["w1"], writes={"a": 10}, matrix=400)
    b.op("matmul", reads=["w2", "a"], writes={"b": 20}, matrix=100)  # 30 + 10 + 20 bytes
    b.op("pointwise", reads=["b"], writes={"c": 10}, vector=10)  # 20 + 10 bytes
    return b.graph()


def test_executed_operations_are_priced_one_by_one():
    priced = price(two_matmuls_and_an_add(), peaks(), "cold")
    assert priced.time_s.tolist() == [4.0, 6.0, 3.0]
    assert priced.bound == ("matrix", "DRAM", "DRAM")


def test_a_groups_time_is_shared_by_the_members_own_rooflines():
    graph = two_matmuls_and_an_add()
    # the add joins the second matmul: 30 + 10 + 10 bytes, 5 s, shared as 6 to 3
    assert price_groups(graph, peaks(), "cold").time_s.tolist() == [4.0, 5.0]
    priced = price_fused(graph, peaks(), "cold")
    assert priced.time_s.tolist() == pytest.approx([4.0, 5 * 6 / 9, 5 * 3 / 9])
    assert priced.time_s.sum() == pytest.approx(9.0)


def test_members_without_any_work_share_equally():
    b = GraphBuilder()
    b.op("pointwise", writes={"x": 0})
    b.op("pointwise", reads=["x"], writes={"x": 0})
    assert price_fused(b.graph(), peaks(), "cold").time_s.tolist() == [0.0, 0.0]


def test_an_unknown_member_makes_its_group_unknown_and_no_other():
    b = GraphBuilder()
    b.op("matmul", reads={"x": 5}, writes={"y": 5}, matrix=1, dtype="bfloat16")
    b.op("pointwise", reads=["y"], writes={"z": 5})
    b.op("matmul", reads=["z"], writes={"o": 5}, matrix=1)
    times = price_fused(b.graph(), peaks(), "cold").time_s.tolist()
    assert [math.isnan(t) for t in times] == [True, True, False]


def test_in_situ_uses_the_levels_of_the_device():
    b = GraphBuilder()
    b.weight("w", 1000)
    b.op("matmul", reads=["w"], writes={"y": 20})
    b.op("pointwise", reads=["y"], writes={"z": 10})
    two = peaks(levels=(("L2", 100, 20.0), ("DRAM", 1e9, 10.0)))
    # w from DRAM 100 s, y to L2 1 s; y from L2 1 s, z to DRAM 1 s
    assert price(b.graph(), two).time_s.tolist() == [101.0, 2.0]


def test_one_preparation_serves_several_peaks():
    b = GraphBuilder()
    b.activation("x", 64)
    for i in range(1000):
        b.weight(f"w{i}", 4096)
        b.op("matmul", reads=["x", f"w{i}"], writes={f"a{i}": 64}, matrix=10)
        b.op("pointwise", reads=[f"a{i}"], writes={"x": 64}, vector=1)
    prepared = Prepared(b.graph())
    total = price(prepared, peaks(), "cold").time_s.sum()
    assert total == pytest.approx(1000 * (4096 + 64 + 64 + 64 + 64) / 10)
    assert np.isfinite(price_fused(prepared, peaks()).time_s).all()
    assert prepared.groups is prepared.groups


TWO_LEVELS = (("L2", 100, 40.0), ("HBM", 1e9, 10.0))


def ops(**fields: object):
    builder = GraphBuilder()
    builder.op("matmul", **fields)
    return builder.graph().ops


def test_slowest_roof_binds():
    for matrix, vector, level_bytes, time_s, bound in [
        (400, 10, (0, 20), 4.0, "matrix"),  # 400/100 against 10/10 and 20/10
        (100, 50, (0, 20), 5.0, "vector"),  # 50/10
        (100, 10, (0, 60), 6.0, "HBM"),  # 60/10
        (100, 10, (120, 20), 5.0, "L2"),  # 120/40 + 20/10: the levels add up, L2 takes 3 of the 5
        (100, 10, (40, 20), 3.0, "HBM"),  # 40/40 + 20/10
        (0, 0, (0, 0), 0.0, "HBM"),
    ]:
        priced = roofline(
            ops(matrix=matrix, vector=vector), np.array([level_bytes], dtype=float), peaks(levels=TWO_LEVELS)
        )
        assert priced.time_s.tolist() == [time_s], (matrix, vector)
        assert priced.bound == (bound,), (matrix, vector)


def test_a_missing_matrix_peak_is_unknown_unless_it_is_not_needed():
    builder = GraphBuilder()
    builder.op("matmul", matrix=1, dtype="bfloat16")
    builder.op("pointwise", vector=20, dtype="bfloat16")  # the vector peak falls to float32
    work = builder.graph().ops
    priced = roofline(work, np.full((2, 1), 1e6), peaks())
    assert math.isnan(priced.time_s[0])
    assert priced.bound == ("", "DRAM")
    assert priced.time_s[1] == 1e5
    assert missing_peaks(work, peaks()) == ("matrix bfloat16",)


def test_a_missing_vector_peak_is_unknown():
    work = ops(matrix=100, vector=1)
    assert math.isnan(roofline(work, np.zeros((1, 1)), peaks(vector=None)).time_s[0])
    assert missing_peaks(work, peaks(vector=None)) == ("vector float32",)


def test_a_vector_peak_of_its_own_type_comes_first():
    both = peaks().model_copy(update={"vector": {**peaks().vector, "float16": peaks(vector=5.0).vector["float32"]}})
    assert roofline(ops(vector=10, dtype="float16"), np.zeros((1, 1)), both).time_s[0] == 2.0


def test_level_bytes_must_fit_the_peaks():
    with pytest.raises(ValueError, match="level_bytes"):
        roofline(ops(), np.zeros((1, 2)), peaks())


def op(path: str, link: str | None = None, beside: str | None = None) -> Op:
    return Op.model_construct(path=path, name=path, kind=Kind.OTHER, dims={}, link=link, beside=beside, count=1)


TWO_LAYERS = [
    op("layers.0.a"),
    op("layers.0.b", "pcie", "in"),
    op("layers.0.c", "pcie", "out"),
    op("layers.1.a", "pcie", "in"),
    op("head", "pcie"),
]


def times(runs: list[float], crosses: list[float], count: list[float] | None = None) -> list[float]:
    of = np.array(count or [1.0] * len(runs))
    found = Overlaps.of(TWO_LAYERS).time_s((np.array(runs), np.zeros(len(runs)), np.array(crosses)), of)
    return [float(t) for t in found]


def test_what_a_layer_hides_costs_nothing() -> None:
    assert times([5, 3, 2, 4, 1], [0, 10, 10, 4, 3]) == [5, 3, 2, 4, 3]


def test_both_directions_go_at_once_and_share_the_wait() -> None:
    # layer 0: 10 s of work, 30 s in, 15 s out: 20 s of waiting, two thirds of it for the larger transfer
    found = times([5, 3, 2, 4, 1], [0, 30, 15, 9, 0])
    assert found == pytest.approx([5, 3 + 20 * 30 / 45, 2 + 20 * 15 / 45, 9, 1], rel=1e-12)


def test_executions_count() -> None:
    # the first runs twice, 10 s in all; what comes, 40 s in all, comes in four parts
    found = times([5, 0, 0, 0, 0], [0, 10, 0, 0, 0], [2, 4, 1, 1, 1])
    assert found == [5, 30 / 4, 0, 0, 0]


def test_others_on_the_same_link_keep_it_busy() -> None:
    ops = [op("layers.0.a", "pcie"), op("layers.0.b", "pcie", "in"), op("layers.0.c", "nvlink")]
    roofs = np.array([1.0, 2.0, 1.0]), np.array([6.0, 8.0, 100.0])
    # 6 + 2 + 100 s of work; 14 s over pcie
    assert Overlaps.of(ops).time_s(roofs, np.ones(3)).tolist() == [6, 2, 100]
    roofs = np.array([1.0, 2.0, 1.0]), np.array([6.0, 8.0, 1.0])
    assert Overlaps.of(ops).time_s(roofs, np.ones(3)).tolist() == [6, 2 + (14 - 9), 1]


def test_a_link_that_is_not_known_is_no_guess() -> None:
    found = times([5, 3, 2, 4, 1], [0, math.nan, 10, 4, 3])
    assert math.isnan(found[1]) and found[0] == 5 and found[3:] == [4, 3]


@given(st.lists(st.floats(0, 100), min_size=5, max_size=5), st.lists(st.floats(0, 100), min_size=5, max_size=5))
def test_a_layer_takes_the_longer_of_both(runs: list[float], crosses: list[float]) -> None:
    crosses[0] = 0.0
    found = times(runs, crosses)
    assert math.isclose(sum(found[:3]), max(sum(runs[:3]), crosses[1], crosses[2]), abs_tol=1e-9)
    assert math.isclose(found[3], max(runs[3], crosses[3]), abs_tol=1e-9)
    assert found[4] == max(runs[4], crosses[4])
