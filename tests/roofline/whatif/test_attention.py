"""Attention in one piece and in pieces, against traces of both."""

import pytest
from each import each
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny
from whatif_graphs import PHASES, by_class, check, totals, traced, traffic

from roofline.fusion.fuse import fused
from roofline.graph.op import Kind, Op, OpGraph, Traffic
from roofline.whatif.attention import fuse_attention, unfuse_attention
from roofline.whatif.quantise import quantise

PLAIN = ("llama", "qwen2", "gpt2", "phi", "opt", "mixtral", "falcon", "deepseek_v3")


def attention(graph: OpGraph) -> list[tuple[Op, Traffic]]:
    return [(op, t) for op, t in zip(graph.ops, by_class(graph), strict=True) if op.kind is Kind.ATTENTION]


@each("phase", PHASES)
@pytest.mark.parametrize("name", [*PLAIN, "gemma3", "mistral", "qwen3_next"])
def test_eager_attention_in_one_piece_is_that_of_sdpa(name: str, phase: str) -> None:
    eager = fuse_attention(traced(name, phase, attn="eager"))
    check(eager)
    ours, theirs = attention(eager), attention(traced(name, phase, attn="sdpa"))
    assert len(ours) == len(theirs)
    for (one, moved), (other, _) in zip(ours, theirs, strict=True):
        assert (one.matrix_flops, one.name, one.path) == (other.matrix_flops, other.name, other.path)
        assert one.vector_flops == pytest.approx(other.vector_flops)
        assert one.dims["pairs"] * one.dims["heads"] == other.dims["pairs"] * other.dims["heads"]
        assert all(one.dims[size] == other.dims[size] for size in ("batch", "kv", "head_dim", "value_dim"))
        keys_and_values = one.dims["kv_heads"] * (one.dims["head_dim"] + one.dims["value_dim"])
        read = 2 * one.dims["batch"] * one.dims["kv"] * keys_and_values
        query = 2 * one.dims["batch"] * one.dims["heads"] * one.dims["query"] * one.dims["head_dim"]
        assert moved.kv_read + moved.activation_read == read + query  # in place: no copy, no mask


def test_prefill_in_one_piece_moves_what_sdpa_moves() -> None:
    eager, sdpa = (traced("llama", "prefill", attn=attn) for attn in ("eager", "sdpa"))
    for (_, one), (_, other) in zip(attention(fuse_attention(eager)), attention(sdpa), strict=True):
        assert one == other


@each("phase", PHASES)
@pytest.mark.parametrize("name", [*PLAIN, "gemma3", "mistral", "qwen3_next"])
def test_there_and_back(name: str, phase: str) -> None:
    graph = traced(name, phase, attn="sdpa")
    apart = unfuse_attention(graph)
    check(apart)
    back = fuse_attention(apart)
    assert back.ops == graph.ops
    assert [(t.role, t.name, t.storage_bytes) for t in back.tensors] == [
        (t.role, t.name, t.storage_bytes) for t in graph.tensors if t.name != "workspace"
    ]
    assert traffic(apart) > traffic(graph)
    assert totals(apart)["matrix_flops"] >= totals(graph)["matrix_flops"]
    if not any(tensor.name == "workspace" for tensor in graph.tensors):
        assert [t.held for t in back.tensors] == [t.held for t in graph.tensors]


@each("phase", PHASES)
def test_pieces_by_hand(phase: str) -> None:
    apart, config = unfuse_attention(traced("llama", phase, attn="sdpa")), tiny("llama")
    query, context = PHASES[phase]
    kv, heads, width, batch = context + query, config.num_attention_heads, 8, 2
    pairs = batch * heads * query * kv  # masked ones too
    ops = [op for op in apart.ops if op.name.startswith("roofcal::") and op.path == "model.layers.0.self_attn"]
    copies, (qk, softmax, pv) = ops[:-3], ops[-3:]
    assert len(copies) == (0 if phase == "chunk" else 2)  # with a mask `transformers` has copied keys itself
    assert (qk.matrix_flops, pv.matrix_flops, softmax.vector_flops) == (2 * pairs * width, 2 * pairs * width, 5 * pairs)
    assert qk.dims == {"b": batch * heads, "m": query, "n": kv, "k": width}
    assert qk.writes == softmax.reads[:1] and softmax.writes == pv.reads[:1]
    assert qk.writes[0].bytes == softmax.writes[0].bytes == pairs * 2
    assert all(copy.writes[0].bytes == batch * heads * kv * width * 2 for copy in copies)


def test_the_result_is_not_held_before_the_last_piece() -> None:
    apart = unfuse_attention(traced("llama", "prefill", attn="sdpa"))
    for i, op in enumerate(apart.ops):
        if op.name == "roofcal::pv":
            held = apart.tensors[op.writes[0].tensor].held
            assert held is not None and held[0] == i
            assert apart.tensors[op.reads[0].tensor].held == (i - 1, i)  # the probabilities


@each("phase", PHASES)
@pytest.mark.parametrize("name", ["llama", "gpt2", "falcon"])
def test_pieces_are_those_of_eager_attention(name: str, phase: str) -> None:
    """The two products and the softmax of a real eager trace, which casts and scales besides."""
    ours = unfuse_attention(traced(name, phase, attn="sdpa"))
    eager = traced(name, phase, attn="eager")
    kinds = (Kind.MATMUL, Kind.SOFTMAX)

    def figures(graph: OpGraph) -> list[tuple[float, float]]:
        inside = [op for op in graph.ops if op.path.endswith(("self_attn", "attn", "self_attention"))]
        return [(op.matrix_flops, op.vector_flops) for op in inside if op.kind in kinds]

    assert figures(ours) == figures(eager)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "falcon"])
def test_the_ideal_of_the_pieces_is_no_worse_than_the_whole(name: str) -> None:
    graph = traced(name, "prefill", attn="sdpa")
    one, other = fused(unfuse_attention(graph)), fused(graph)
    assert totals(one)["matrix_flops"] == totals(other)["matrix_flops"]
    assert traffic(one) == pytest.approx(traffic(other))


@given(st.sampled_from(["llama", "gpt2", "mistral"]), st.sampled_from(sorted(PHASES)), st.sampled_from([4, 8]))
@settings(max_examples=12, deadline=None)
def test_a_narrow_cache_and_pieces_commute(name: str, phase: str, bits: int) -> None:
    graph = traced(name, phase, attn="sdpa")
    one, other = unfuse_attention(quantise(graph, kv=bits)), quantise(unfuse_attention(graph), kv=bits)
    assert totals(one) == pytest.approx(totals(other))
    check(one)


def test_latents_and_softcaps_stay_as_executed() -> None:
    for name in ("deepseek_v3", "gemma2", "gpt_oss"):
        graph = traced(name, "decode", attn="eager")
        whole = fuse_attention(graph)
        check(whole)
        assert totals(whole)["matrix_flops"] <= totals(graph)["matrix_flops"]
        outside = [sum(op.matrix_flops for op in g.ops if op.path.endswith("_proj")) for g in (graph, whole)]
        assert outside[0] == outside[1] > 0
    sinks = next(
        op for op in fuse_attention(traced("gpt_oss", "decode", attn="eager")).ops if op.kind is Kind.ATTENTION
    )
    assert len(sinks.reads) == 4  # query, keys, values, sinks


def test_bad_requests() -> None:
    with pytest.raises(ValueError, match="nothing to unfuse"):
        unfuse_attention(traced("llama", "decode", attn="eager"))
    with pytest.raises(ValueError, match="nothing to fuse"):
        fuse_attention(traced("llama", "decode", attn="sdpa"))
    with pytest.raises(ValueError, match=r"of model\.layers\.0\.self_attn does not say its batch.*before"):
        unfuse_attention(fused(traced("llama", "decode", attn="eager")))
