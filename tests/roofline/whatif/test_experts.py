"""Experts on several ranks, and uneven choices of experts: rows, weight reads and transfers."""

import itertools
import math

import numpy as np
import pytest
from each import each
from graphs import GraphBuilder
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny
from whatif_graphs import PHASES, check_rank, collectives, flops, stored, traced

from profiler.models.build import build_meta
from profiler.models.inputs import prepare
from profiler.models.trace import trace
from roofline.fusion.experts import routed
from roofline.graph.op import Kind, OpGraph, Routing, chosen_by_a_token
from roofline.whatif.experts import expert_parallel, ranks_reached, skew_experts
from roofline.whatif.tensor_parallel import tensor_parallel
from roofline.workload import Workload

FAMILIES = ("mixtral", "qwen3_moe", "deepseek_v3", "gpt_oss")


def grouped(graph: OpGraph) -> list:  # type: ignore[type-arg]
    return [op for op in graph.ops if op.kind is Kind.GROUPED_MATMUL]


def by_hand() -> OpGraph:
    """4 tokens choose 2 of 8 experts: rows (8, 4) → up (8, 4, 6) → act → down (8, 6, 4) → sum."""
    b = GraphBuilder()
    b.weight("up", 768)
    b.weight("down", 768)
    b.op("pointwise", reads={"x": 64}, writes={"rows": 128}, path="experts")
    b.op("grouped_matmul", reads=["rows", "up"], writes={"h": 192}, path="experts", matrix=384, groups=8, m=8, n=6, k=4)
    b.op("pointwise", reads=["h"], writes={"a": 192}, path="experts", vector=48, elements=48)
    b.op("grouped_matmul", reads=["a", "down"], writes={"y": 128}, path="experts", matrix=384, groups=8, m=8, n=4, k=6)
    b.op("reduction", reads=["y"], writes={"z": 64}, path="experts", vector=32, elements=32)
    graph = b.graph()
    routing = Routing(experts=8, per_token=2, tokens=4)

    def routed(op):  # type: ignore[no-untyped-def]
        if op.kind is not Kind.GROUPED_MATMUL:
            return op
        rows, weight = op.reads
        return op.model_copy(
            update={
                "routing": routing,
                "reads": (rows, weight.model_copy(update={"bytes": weight.bytes * routing.hit / 8})),
            }
        )

    return graph.model_copy(update={"ops": tuple(routed(op) for op in graph.ops)})


def test_by_hand() -> None:
    rank = expert_parallel(by_hand(), 4, link="network")
    check_rank(rank)
    assert [op.name.split("::")[1] for op in rank.ops] == [
        "pointwise", "all_to_all", "grouped_matmul", "pointwise", "grouped_matmul", "all_to_all", "reduction",
    ]  # fmt: skip
    sent, up, act, down, back = rank.ops[1:6]
    assert (sent.link, sent.messages) == ("network", 3)
    goes = 1 - math.comb(6, 2) / math.comb(8, 2)  # a token of 16 bytes has one of a rank's two experts among its two
    assert math.isclose(sent.link_bytes, 4 * 16 * 3 * goes) and math.isclose(back.link_bytes, sent.link_bytes)
    hit = 2 * (1 - (1 - 2 / 8) ** 16)  # the tokens of all ranks
    assert (up.dims["groups"], up.dims["m"], up.matrix_flops) == (2, 8, 384)
    assert math.isclose(up.reads[1].bytes, 96 * hit) and math.isclose(down.reads[1].bytes, 96 * hit)
    assert act.vector_flops == 48
    assert [t.storage_bytes for t in rank.tensors if t.role == "weight"] == [192, 192]
    assert up.reads[0].tensor == sent.writes[0].tensor and rank.ops[6].reads[0].tensor == back.writes[0].tensor


@each("phase", PHASES)
@pytest.mark.parametrize("name", FAMILIES)
def test_each_rank_has_its_share_of_the_experts(name: str, phase: str) -> None:
    graph = traced(name, phase)
    rank = expert_parallel(graph, 2)
    check_rank(rank)
    assert flops(rank) == flops(graph)  # as many rows arrive as go
    experts = sum(t.storage_bytes for t in graph.tensors if t.role == "weight" and ".experts." in str(t.name))
    assert stored(graph, "weight") - stored(rank, "weight") == experts / 2
    layers = len(grouped(graph)) // 2
    tokens = graph.workload.batch * graph.workload.query_tokens
    goes = 1 - math.comb(2, 2) / math.comb(4, 2)  # a token has one of the other rank's two experts among its two
    sent = [op.link_bytes for op in collectives(rank, "all_to_all")]
    assert sent == pytest.approx([tokens * 32 * 2 * goes] * (2 * layers))
    for before, after in zip(grouped(graph), grouped(rank), strict=True):
        assert after.routing.hit <= before.routing.experts / 2
        assert math.isclose(after.reads[1].bytes, before.reads[1].bytes / before.routing.hit * after.routing.hit)


def test_the_most_loaded_rank_is_that_of_drawn_routings() -> None:
    graph = skew_experts(traced("mixtral", "prefill"), 1.0)
    before, after = grouped(graph)[0], grouped(expert_parallel(graph, 2))[0]
    chosen = chosen_by_a_token(4, 2, 1.0)
    draws = np.random.default_rng(1).random((200_000, 4)) < chosen  # Poisson sampling, as the law says
    load = draws[:, ::2].sum() / draws.sum()
    assert math.isclose(after.matrix_flops / before.matrix_flops, 2 * load, rel_tol=5e-3)
    assert after.matrix_flops > before.matrix_flops


def test_a_token_goes_once_to_each_rank() -> None:
    """Against all sets of experts that a token can choose."""
    even = Routing(experts=128, per_token=8, tokens=1)
    assert ranks_reached(even, 4) == pytest.approx(1 - math.comb(96, 8) / math.comb(128, 8))
    assert 8 * 3 / 4 / (3 * ranks_reached(even, 4)[0]) == pytest.approx(2.2, abs=0.01)  # copies to each expert would be
    skewed = Routing(experts=8, per_token=3, tokens=1, skew=0.7)
    chosen = chosen_by_a_token(8, 3, 0.7)
    odds = chosen / (1 - chosen)
    sets = [(set(s), math.prod(odds[list(s)])) for s in itertools.combinations(range(8), 3)]
    for rank in range(4):
        has = sum(weight for members, weight in sets if members & {rank, rank + 4})
        assert ranks_reached(skewed, 4)[rank] == pytest.approx(has / sum(weight for _, weight in sets))


def test_one_batch_on_ranks_that_divide_attention_too() -> None:
    """A rank of two has whole experts for half of the rows, and half of all else; nothing but sums crosses the link."""
    for name in ("mixtral", "gpt_oss"):
        graph = traced(name, "decode")
        rank, divided = expert_parallel(graph, 2, attention="tensor"), tensor_parallel(graph, 2)
        check_rank(rank)
        assert flops(rank) == flops(divided) and stored(rank, "weight") == stored(divided, "weight"), name
        assert [op.link_bytes for op in collectives(rank)] == [op.link_bytes for op in collectives(divided)], name
        for before, after in zip(grouped(graph), grouped(rank), strict=True):
            sizes = [(op.dims["m"], op.dims["n"], op.dims["k"], op.routing.experts) for op in (before, after)]
            assert sizes[1] == (sizes[0][0] / 2, *sizes[0][1:3], sizes[0][3] / 2), name
    skewed = skew_experts(traced("mixtral", "prefill"), 1.0)
    busiest = grouped(expert_parallel(skewed, 2, attention="tensor"))[0].matrix_flops
    chosen = chosen_by_a_token(4, 2, 1.0)
    assert busiest / grouped(skewed)[0].matrix_flops == pytest.approx(chosen[::2].sum() / 2)


def test_it_commutes_with_tensor_parallel() -> None:
    graph = traced("mixtral", "decode")
    first, last = expert_parallel(tensor_parallel(graph, 2), 2), tensor_parallel(expert_parallel(graph, 2), 2)
    check_rank(first)
    check_rank(last)
    assert flops(first) == flops(last) and stored(first, "weight") == stored(last, "weight")
    assert sorted(op.link_bytes for op in collectives(first)) == sorted(op.link_bytes for op in collectives(last))


def test_what_cannot_be_spread_is_refused() -> None:
    graph = traced("mixtral", "decode")
    assert expert_parallel(graph, 1) is graph
    with pytest.raises(ValueError, match="4 experts do not divide by 3 ranks; use one of 1, 2, 4"):
        expert_parallel(graph, 3)
    with pytest.raises(ValueError, match="no product of the graph has experts"):
        expert_parallel(traced("llama", "decode"), 2)
    with pytest.raises(ValueError, match="the experts are spread already"):
        expert_parallel(expert_parallel(graph, 2), 2)
    with pytest.raises(ValueError, match="expert_parallel is -1; use a whole number"):
        expert_parallel(graph, -1)


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


def test_experts_that_run_densely_are_sharded_and_tokens_sent() -> None:
    """Llama 4 multiplies all tokens by all experts; a rank of 4 has 2 of its 8, of which a token chooses one."""
    config = tiny("llama4_text")
    model = build_meta(config, "bfloat16")
    what = Workload(batch=6, query_tokens=1, context_tokens=12, dtype="bfloat16")
    graph = trace(model, prepare(model, what), what, name="llama4", target="cuda", options={})
    for form in (graph, routed(graph)):
        rank = expert_parallel(form, 4, link="network")
        check_rank(rank)
        experts = 2 * 8 * 3 * 32 * 48 * 2  # layers × experts × elements × bytes
        assert stored(graph, "weight") - stored(rank, "weight") == experts * 3 / 4
        assert [op.link_bytes for op in collectives(rank, "all_to_all")] == pytest.approx([6 * 32 * 2 * 3 / 4] * 4)
        products = grouped(rank)
        assert [op.dims["m"] for op in products] == [6] * 4  # as many rows arrive as go
        hit = 2 * (1 - (1 - 1 / 8) ** 24)  # of the tokens of all ranks
        assert [op.reads[1].bytes for op in products] == pytest.approx([hit * n * 32 * 48 * 2 for n in (2, 1)] * 2)
    skewed = grouped(skew_experts(graph, 1.0))[0].routing
    assert (skewed.experts, skewed.per_token, skewed.tokens, skewed.skew) == (8, 1, 6, 1.0)
