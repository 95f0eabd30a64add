import math

import numpy as np
import pytest
from graphs import GraphBuilder, peaks

from roofline.price import Prepared, price, price_fused, price_groups


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
