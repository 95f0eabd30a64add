"""Transfers beside the operations of a layer, against sums by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roofline.graph.op import Kind, Op
from roofline.price import Overlaps


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
