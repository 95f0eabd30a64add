"""Absorbed latent attention (MLA) behind what-ifs that change the product that expands the latents.

The tiny deepseek: 4 heads, latents of 16, keys of 8 + 4 (rope), values of 8; two sequences with 12 cached tokens and
a new one, so 13 keys; every one of its layers is alike in this.
"""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from whatif_graphs import check, linked_peaks, totals, traced

from roofline.fusion.fuse import fused
from roofline.graph.op import Kind, Op, OpGraph
from roofline.price import price
from roofline.whatif.low_rank import lora, low_rank
from roofline.whatif.quantise import quantise

BATCH, HEADS, RANK, NOPE, ROPE, VALUE, KEYS = 2, 4, 16, 8, 4, 8, 13
WIDTH = HEADS * (NOPE + VALUE)
WHERE = ("*.kv_b_proj",)
PROJECTIONS = 2 * BATCH * HEADS * RANK * (NOPE + VALUE)


def scores(width: int) -> int:
    """Matrix FLOPs of one query a sequence on latents of such a width."""
    return 2 * BATCH * HEADS * KEYS * (2 * width + ROPE)


def attention(graph: OpGraph) -> Op:
    """That of the first layer, of the fused graph."""
    return next(op for op in fused(graph).ops if op.kind is Kind.ATTENTION)


def executed(graph: OpGraph) -> list[Op]:
    """What expands the latents and attends, in the first layer."""
    return [op for op in graph.ops if "layers.0.self_attn.kv_b_proj" in op.path or _is_first_attention(op)]


def _is_first_attention(op: Op) -> bool:
    return op.path == "model.layers.0.self_attn" and op.kind is Kind.ATTENTION


def test_the_decode_of_the_tiny_model_is_absorbed() -> None:
    assert attention(traced("deepseek_v3", "decode")).matrix_flops == scores(RANK) + PROJECTIONS


def test_quantised_activations_change_no_matrix_work() -> None:
    for weights, activations in [(8, None), (8, 8), (4, 8), (4, 4)]:
        graph = traced("deepseek_v3", "decode")
        narrow = quantise(graph, weights=weights, activations=activations)
        assert totals(fused(narrow))["matrix_flops"] == totals(fused(graph))["matrix_flops"], (weights, activations)
        check(narrow)


def test_scales_are_applied_to_the_weights_or_to_partial_sums() -> None:
    graph = traced("deepseek_v3", "decode")
    base = attention(graph).vector_flops
    assert attention(quantise(graph, weights=8, where=WHERE)).vector_flops == base + RANK * WIDTH
    # one group: a multiplication and an addition for each of the 64 sums of a token, here of one query a sequence
    assert attention(quantise(graph, weights=8, activations=8, where=WHERE)).vector_flops == base + 2 * BATCH * WIDTH
    assert (
        attention(quantise(graph, weights=4, activations=8, where=WHERE)).vector_flops
        == base + RANK * WIDTH + 2 * BATCH * WIDTH
    )


@pytest.mark.parametrize("first", ["kv", "weights"])
def test_narrow_latents_are_turned_back_once(first: str) -> None:
    graph = traced("deepseek_v3", "decode")
    steps: list[Callable[[OpGraph], OpGraph]] = [
        lambda g: quantise(g, kv=8),
        lambda g: quantise(g, weights=8, activations=8, where=WHERE),
    ]
    changed = graph
    for step in steps if first == "kv" else steps[::-1]:
        changed = step(changed)
    latents, rope = BATCH * KEYS * RANK, BATCH * KEYS * ROPE
    assert attention(changed).vector_flops == attention(graph).vector_flops + latents + rope + 2 * BATCH * WIDTH
    assert attention(changed).matrix_flops == attention(graph).matrix_flops
    with_adapters = lora(quantise(graph, kv=8), rank=2, adapters=1, where=WHERE)
    added = BATCH * HEADS * (RANK + VALUE)
    assert attention(with_adapters).vector_flops == attention(graph).vector_flops + latents + rope + added


def test_low_rank_runs_the_cheapest_way() -> None:
    for rank in [1, 2, 4, 8, 12]:
        graph = low_rank(traced("deepseek_v3", "decode"), rank=rank, where=WHERE)
        queries = BATCH * HEADS
        through_both = scores(RANK) + 2 * queries * rank * (NOPE + VALUE + 2 * RANK)
        merged = scores(RANK) + PROJECTIONS + 2 * RANK * rank * WIDTH
        on_the_narrow = 2 * BATCH * KEYS * RANK * rank + scores(rank) + 2 * queries * rank * (NOPE + VALUE)
        found = attention(graph)
        assert found.matrix_flops == min(through_both, merged, on_the_narrow), rank
        assert found.matrix_flops < sum(op.matrix_flops for op in executed(graph)), rank
        moved = sum(a.bytes for a in found.reads if graph.tensors[a.tensor].role == "weight")
        assert moved == rank * (RANK + WIDTH) * 2, rank
        check(graph)


def test_each_way_is_the_cheapest_somewhere() -> None:
    """Both factors with a rank near the latents'; the first executed with a small rank."""
    queries = BATCH * HEADS
    small, large = (attention(low_rank(traced("deepseek_v3", "decode"), rank=r, where=WHERE)) for r in (4, 12))
    assert small.matrix_flops == 2 * BATCH * KEYS * RANK * 4 + scores(4) + 2 * queries * 4 * (NOPE + VALUE)
    assert large.matrix_flops == scores(RANK) + 2 * queries * 12 * (NOPE + VALUE + 2 * RANK)


@pytest.mark.parametrize("adapters", [1, 3])
def test_adapters_are_absorbed_beside_the_weight(adapters: int) -> None:
    graph = lora(traced("deepseek_v3", "decode"), rank=2, adapters=adapters, where=WHERE)
    base = traced("deepseek_v3", "decode")
    through_both = 2 * BATCH * HEADS * 2 * (NOPE + VALUE + 2 * RANK)
    found = attention(graph)
    assert found.matrix_flops == attention(base).matrix_flops + through_both
    assert found.vector_flops == attention(base).vector_flops + BATCH * HEADS * (RANK + VALUE)
    hit = adapters * (1 - (1 - 1 / adapters) ** BATCH)
    weights = [a.bytes for a in found.reads if graph.tensors[a.tensor].role == "weight"]
    assert sum(weights) == pytest.approx((RANK * WIDTH + hit * 2 * (RANK + WIDTH)) * 2)
    check(graph)


def test_adapters_go_around_quantised_inputs_and_both_factors() -> None:
    graph = traced("deepseek_v3", "decode")
    added = 2 * BATCH * HEADS * 2 * (NOPE + VALUE + 2 * RANK)
    narrow = lora(quantise(graph, weights=8, activations=8), rank=2, adapters=2, where=WHERE)
    assert attention(narrow).matrix_flops == scores(RANK) + PROJECTIONS + added
    factors = lora(low_rank(graph, rank=4, where=WHERE), rank=2, adapters=2, where=WHERE)
    through_both = 2 * BATCH * HEADS * 4 * (NOPE + VALUE + 2 * RANK)
    assert attention(factors).matrix_flops == scores(RANK) + through_both + added
    check(factors)


def test_what_others_read_too_is_not_absorbed() -> None:
    """A prefill whose latents are expanded for as many queries as keys."""
    graph = quantise(traced("deepseek_v3", "prefill"), weights=8, activations=8)
    assert totals(fused(graph))["matrix_flops"] == totals(graph)["matrix_flops"]


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from(["prefill", "decode", "chunk"]),
    st.sampled_from(["deepseek_v2", "deepseek_v3"]),
    st.sampled_from(["default", "eager"]),
    st.integers(0, 12),
    st.sampled_from([None, (8, None), (8, 8), (4, 8), (4, 4)]),
    st.integers(0, 3),
    st.sampled_from([None, 8]),
)
def test_fused_is_never_slower_than_executed(
    phase: str, name: str, attn: str, rank: int, bits: tuple[int, int | None] | None, adapters: int, kv: int | None
) -> None:
    graph = traced(name, phase, attn=attn)
    if rank:
        graph = low_rank(graph, rank=rank, where=WHERE)
    if bits:
        graph = quantise(graph, weights=bits[0], activations=bits[1])
    if adapters:
        graph = lora(graph, rank=2, adapters=adapters, where=WHERE)
    if kv:
        graph = quantise(graph, kv=kv)
    ideal = fused(graph)
    found, ran = (
        float(sum(t * op.count for t, op in zip(price(g, linked_peaks(), "cold").time_s, g.ops, strict=True)))
        for g in (ideal, graph)
    )
    assert found <= ran * (1 + 1e-9)
    assert totals(ideal)["matrix_flops"] <= totals(graph)["matrix_flops"] * (1 + 1e-9)
    if phase == "decode" and not (bits and bits[1]):  # of 13 keys, narrow products may be the faster ones
        assert not any(op.path.endswith("kv_b_proj") for op in ideal.ops)
