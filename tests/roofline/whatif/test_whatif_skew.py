"""Skewed experts: weight reads follow the expected experts hit."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from whatif_graphs import traced
from whatif_ranks import check_rank

from roofline.graph.op import Kind, OpGraph
from roofline.whatif.skew import skew_experts

SKEWS = st.floats(0, 4, allow_subnormal=False)


def expert_reads(graph: OpGraph) -> list[float]:
    return [op.reads[1].bytes for op in graph.ops if op.kind is Kind.GROUPED_MATMUL]


@settings(deadline=None, max_examples=40)
@given(SKEWS, SKEWS)
def test_more_skew_hits_fewer_experts(one: float, other: float) -> None:
    graph = traced("mixtral", "decode")
    less, more = (expert_reads(skew_experts(graph, s)) for s in sorted((one, other)))
    assert all(b <= a * (1 + 1e-9) for a, b in zip(less, more, strict=True))


@settings(deadline=None, max_examples=40)
@given(SKEWS)
def test_reads_are_those_of_all_experts_by_the_share_that_is_hit(skew: float) -> None:
    graph = skew_experts(traced("mixtral", "chunk"), skew)
    for op in graph.ops:
        if op.routing:
            whole = graph.tensors[op.reads[1].tensor].storage_bytes
            assert op.routing.skew == skew
            assert math.isclose(op.reads[1].bytes, whole * op.routing.hit / op.routing.experts)


@settings(deadline=None, max_examples=40)
@given(SKEWS)
def test_where_each_token_chooses_all_experts_skew_changes_nothing(skew: float) -> None:
    graph = traced("mixtral", "decode")
    ops = tuple(
        op.model_copy(
            update={
                "routing": op.routing.model_copy(update={"per_token": 4.0}),
                "reads": (
                    op.reads[0],
                    op.reads[1].model_copy(update={"bytes": graph.tensors[op.reads[1].tensor].storage_bytes}),
                    *op.reads[2:],
                ),
            }
        )
        if op.routing
        else op
        for op in graph.ops
    )
    dense = graph.model_copy(update={"ops": ops})
    assert expert_reads(skew_experts(dense, skew)) == pytest.approx(expert_reads(dense))


def test_zero_is_the_identity_and_there_and_back_is_too() -> None:
    graph = traced("deepseek_v3", "decode")
    assert skew_experts(graph, 0) is graph
    skewed = skew_experts(graph, 1.2)
    check_rank(skewed)
    assert expert_reads(skew_experts(skewed, 0)) == pytest.approx(expert_reads(graph))
    assert sum(expert_reads(skewed)) < sum(expert_reads(graph))


def test_bad_requests_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the skew of experts is -1; use 0"):
        skew_experts(traced("mixtral", "decode"), -1)
    with pytest.raises(ValueError, match="use a mixture of experts"):
        skew_experts(traced("llama", "decode"), 1)
