"""What the host does between operations, counted by hand on small graphs."""

import numpy as np
import pytest
from calibrated_laws import at_priors
from graphs import GraphBuilder, peaks
from hypothesis import given
from hypothesis import strategies as st

from roofline.graph.op import OpGraph
from roofline.hardware.facts import facts_of
from roofline.hardware.spec import Chip, Figure, HardwareSpec
from roofline.law_inputs import bytes_since_last_run, gap_dims
from roofline.price_by_law import host_gap_s, least_gap_s

LEVELS = (("L3", 1000.0, 100.0), ("DRAM", 1e9, 10.0))
SPEC = HardwareSpec(
    name="a", kind="cpu", chip=Chip(units=Figure(value=2, source="made up")), measured=peaks(levels=LEVELS)
)
GAPS = at_priors("host_gap", "float32", facts_of(SPEC))


def two_layers(size: int = 10) -> OpGraph:
    b = GraphBuilder()
    for layer in (0, 1):
        before = f"x{layer}"
        b.op("norm", reads={before: size}, writes={f"n{layer}": size}, path=f"layers.{layer}.norm")
        b.op("pointwise", reads={f"n{layer}": size}, writes={f"x{layer + 1}": size}, path=f"layers.{layer}.mlp.act")
    b.op("norm", reads={"x2": size}, writes={"y": size}, path="norm")
    return b.graph()


def test_modules_are_those_left_and_entered() -> None:
    # enter layers, 0, norm; leave norm, enter mlp, act; leave those and 0, enter 1, norm; …; leave all, enter it
    assert gap_dims(two_layers().ops)["modules"].tolist() == [3, 3, 5, 3, 5]


def test_the_same_line_ran_a_layer_ago_or_a_pass_ago() -> None:
    found = gap_dims(two_layers().ops)["reach"]
    assert found.tolist() == [40, 40, 20, 20, 80]  # each operation touches 20 bytes, five of them make a pass


def test_reach_is_counted_since_the_same_code_ran() -> None:
    ops = two_layers().ops
    assert bytes_since_last_run(ops, ["a"] * 5).tolist() == [0] * 5
    assert bytes_since_last_run(ops, list("abcde")).tolist() == [80] * 5
    assert bytes_since_last_run(ops, list("abbab")).tolist() == [20, 20, 0, 40, 20]
    assert bytes_since_last_run((), []).tolist() == []


@given(layers=st.integers(2, 9), sizes=st.lists(st.integers(1, 50), min_size=1, max_size=4))
def test_folded_layers_have_the_mean_of_all(layers: int, sizes: list[int]) -> None:
    def graph(unfolded: int, count: float) -> OpGraph:
        b = GraphBuilder()
        b.op("embedding", reads={"t": 3}, writes={"x": 5})
        for layer in range(unfolded):
            for i, size in enumerate(sizes):
                b.op("norm", reads={"x": size}, writes={f"y{layer}{i}": size}, path=f"layers.{layer}", count=count)
        b.op("norm", reads={"x": 7}, writes={"z": 7}, path="norm")
        return b.graph()

    folded, unfolded = graph(1, layers).ops, graph(layers, 1).ops
    for code in (lambda op: op.name, lambda op: op.kind == "norm"):
        whole = bytes_since_last_run(unfolded, [code(op) for op in unfolded])
        part = bytes_since_last_run(folded, [code(op) for op in folded])
        assert part[[0, -1]] == pytest.approx(whole[[0, -1]])
        assert part[1:-1] == pytest.approx(whole[1:-1].reshape(layers, -1).mean(axis=0))


def test_gaps_are_priced_by_the_law_and_colder_ones_are_longer() -> None:
    spec = SPEC.model_copy(update={"calibrated": (GAPS,)})
    small, large = host_gap_s(two_layers(1), spec), host_gap_s(two_layers(10**9), spec)
    assert small is not None and large is not None
    warm = GAPS.values["operation"] + np.array([3, 3, 5, 3, 5]) * GAPS.values["module"]
    assert small == pytest.approx(warm, rel=0.05)
    assert large == pytest.approx(warm * GAPS.values["cold"], rel=0.05)
    assert least_gap_s(spec, 2) == pytest.approx([GAPS.values["operation"]] * 2)


def test_a_matrix_that_is_streamed_is_counted_apart() -> None:
    b = GraphBuilder()
    b.op("matmul", reads={"w": 100, "x": 1}, writes={"y": 1}, path="a", b=1, m=1, n=1, k=1)
    b.op("norm", reads={"y": 3}, writes={"z": 4}, path="b")
    found = gap_dims(b.graph().ops)
    assert found["streamed"].tolist() == [0, 102]  # of the others, since it last ran
    assert found["reach"].tolist() == [7, 0]


def test_a_law_of_an_older_spec_is_left_out() -> None:
    constants = tuple(one for one in GAPS.constants if one.name not in ("held", "share"))
    spec = SPEC.model_copy(update={"calibrated": (GAPS.model_copy(update={"constants": constants}),)})
    assert host_gap_s(two_layers(), spec) is None and least_gap_s(spec, 2) is None


def test_without_a_law_there_is_no_gap_to_be_told() -> None:
    assert host_gap_s(two_layers(), SPEC) is None
    assert least_gap_s(SPEC, 3) is None
