"""Attention over the keys that an index chooses, against counts by hand; a model without an index is the guard."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from tiny import TINY
from transformers import AutoConfig

from profiler.models.graphs import ModelGraphs, Tracing, model_source
from roofline.graph.memory import footprint
from roofline.graph.op import Kind, Op, OpGraph
from roofline.sweep.family import Source
from roofline.sweep.polynomial import Sweep
from roofline.whatif.registry import WhatIf, parse
from roofline.workload import Workload

BATCH, KEPT, HEADS, RANK, ROPE, NOPE, VALUE, INDEX_HEADS, INDEX_WIDTH = 2, 16, 4, 16, 4, 8, 8, 4, 8
INDEX = {"index_topk": KEPT, "index_n_heads": INDEX_HEADS, "index_head_dim": INDEX_WIDTH}


def source(model_type: str, attn: str = "default", changes: Sequence[WhatIf] = (), **fields: Any) -> Source:
    config = TINY["deepseek_v3"] | INDEX | fields | {"model_type": model_type}
    if model_type == "diffllama":
        config = TINY["llama"] | {"num_hidden_layers": 3, "model_type": model_type}
    if model_type == "deepseek_v3":
        config = {name: value for name, value in config.items() if name not in INDEX}
    made = AutoConfig.for_model(config.pop("model_type"), **config)
    return model_source(ModelGraphs(made, model_type, Tracing(dtype="bfloat16", attn=attn)), changes, "fused")


def decode(context: int) -> Workload:
    return Workload(batch=BATCH, query_tokens=1, context_tokens=context, dtype="bfloat16")


def attentions(graph: OpGraph) -> list[tuple[Op, float]]:
    pairs = zip(graph.ops, graph.traffic, strict=True)
    return [(op, traffic.kv_read) for op, traffic in pairs if op.kind is Kind.ATTENTION]


def indexes(graph: OpGraph) -> list[tuple[Op, float]]:
    """The kernels that score cached keys."""
    pairs = zip(graph.ops, graph.traffic, strict=True)
    return [(op, traffic.kv_read) for op, traffic in pairs if ".indexer" in op.path and traffic.kv_read]


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("context", [200, 8])
def test_a_step_reads_the_chosen_keys_and_scores_all(context: int, attn: str) -> None:
    graph = source("deepseek_v32", attn).whole(decode(context))
    keys, chosen = context + 1, min(context + 1, KEPT)
    assert [read for _, read in attentions(graph)] == pytest.approx([BATCH * chosen * (RANK + ROPE) * 2] * 3)
    absorbed = 2 * BATCH * HEADS * (chosen * (2 * RANK + ROPE) + RANK * (NOPE + VALUE))
    assert [op.matrix_flops for op, _ in attentions(graph)] == pytest.approx([absorbed] * 3)
    assert [read for _, read in indexes(graph)] == [BATCH * keys * INDEX_WIDTH * 2] * 3
    scores = 2 * BATCH * INDEX_HEADS * keys * (INDEX_WIDTH + 1)  # and their weighted sum over the heads
    assert [op.matrix_flops for op, _ in indexes(graph)] == [scores] * 3
    assert {op.dtype for op, _ in indexes(graph)} == {"bfloat16"}  # widened for the product alone


def test_a_model_without_an_index_reads_all_keys() -> None:
    graph = source("deepseek_v3").whole(decode(200))
    assert [read for _, read in attentions(graph)] == [BATCH * 201 * (RANK + ROPE) * 2] * 3
    assert not indexes(graph)


def test_a_prefill_computes_the_chosen_pairs() -> None:
    tokens = 100
    work = Workload(batch=BATCH, query_tokens=tokens, context_tokens=0, dtype="bfloat16")
    sparse, full = (source(kind).whole(work) for kind in ("deepseek_v32", "deepseek_v3"))
    pairs = sum(min(i + 1, KEPT) for i in range(tokens))
    attention = attentions(sparse)[0][0]
    assert attention.dims["pairs"] == pairs and attentions(full)[0][0].dims["pairs"] == tokens * (tokens + 1) // 2
    assert attention.vector_flops == pytest.approx(5 * BATCH * HEADS * pairs)
    scored = 2 * BATCH * INDEX_HEADS * (INDEX_WIDTH + 1) * tokens * (tokens + 1) // 2
    assert [op.matrix_flops for op, _ in indexes(sparse)] == pytest.approx([scored] * 3)


def test_layers_may_share_an_index() -> None:
    graph = source("glm_moe_dsa", indexer_types=["full", "shared", "shared"]).whole(decode(200))
    assert len(indexes(graph)) == 1
    assert [read for _, read in attentions(graph)] == pytest.approx([BATCH * KEPT * (RANK + ROPE) * 2] * 3)


def test_a_sweep_across_the_chosen_number_is_the_single_passes() -> None:
    workloads = [decode(context) for context in (4, 9, 12, 40, 100, 300, 1000)]
    made = source("deepseek_v32")
    for piece in made.family().cover(workloads):
        amounts = piece.graph.amounts(Sweep.of([workloads[i] for i in piece.index]))
        for row, i in enumerate(piece.index):
            graph = made.whole(workloads[i])
            flops = (amounts["matrix_flops"] * amounts["count"])[row].sum()
            assert flops == pytest.approx(sum(op.matrix_flops * op.count for op in graph.ops), rel=1e-9)
            read = (amounts["kv_read"] * amounts["count"])[row].sum()
            assert read == pytest.approx(sum(t.kv_read for t in graph.traffic), rel=1e-9)


def test_narrow_caches_and_ranks_read_the_chosen_keys() -> None:
    narrow = source("deepseek_v32", changes=[parse("quantise:kv=8")]).whole(decode(200))
    plain = source("deepseek_v32").whole(decode(200))
    assert 0.5 < attentions(narrow)[0][1] / attentions(plain)[0][1] < 0.8  # and a scale a token
    assert 0.5 < indexes(narrow)[0][1] / indexes(plain)[0][1] < 0.8
    rank = source("deepseek_v32", changes=[parse("tensor_parallel:degree=2")]).whole(decode(200))
    assert attentions(rank)[0][1] == attentions(plain)[0][1]
    assert attentions(rank)[0][0].matrix_flops == pytest.approx(attentions(plain)[0][0].matrix_flops / 2)
    assert [read for _, read in indexes(rank)] == [read for _, read in indexes(plain)]


def test_chunk_sweeps_of_latents_take_the_form_of_least_work_in_each_workload() -> None:
    made = source("deepseek_v3")
    grid = [(query, context) for query in (4, 8, 12, 20, 40, 90) for context in (8, 40, 300)]
    workloads = [Workload(batch=2, query_tokens=q, context_tokens=c, dtype="bfloat16") for q, c in grid]
    sides = []
    for piece in made.family().cover(workloads):
        amounts = piece.graph.amounts(Sweep.of([workloads[i] for i in piece.index]))
        flops = np.asarray((amounts["matrix_flops"] * amounts["count"]).sum(axis=1))
        for swept, i in zip(flops, piece.index, strict=True):
            graph = made.whole(workloads[i])
            sides.append((graph.lead or 0) > 0)
            assert swept == pytest.approx(sum(op.matrix_flops * op.count for op in graph.ops), rel=1e-9)
    assert len(set(sides)) == 2  # some absorb the expansion, some do not


WINDOW, RATES, HEAD, TOPK = 16, (4, 32), 16, 6
COMPRESSED = {
    "vocab_size": 128, "hidden_size": 32, "moe_intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 1, "head_dim": HEAD, "q_lora_rank": 16, "num_experts_per_tok": 2, "n_routed_experts": 4,
    "sliding_window": WINDOW, "o_groups": 2, "o_lora_rank": 16, "index_n_heads": 4, "index_head_dim": 8,
    "index_topk": TOPK, "max_position_embeddings": 4096, "partial_rotary_factor": 0.25,
    "layer_types": ["sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"],
    "mlp_layer_types": ["moe"] * 3,
    "compress_rates": {"compressed_sparse_attention": RATES[0], "heavily_compressed_attention": RATES[1]},
}  # fmt: skip


def compressed(work: Workload) -> OpGraph:
    made = AutoConfig.for_model("deepseek_v4", **COMPRESSED)
    return model_source(ModelGraphs(made, "deepseek_v4", Tracing(dtype="bfloat16")), (), "fused").whole(work)


def test_compressed_entries_are_chosen_beside_a_window() -> None:
    """DeepSeek-V4: a query sees its window, and of the entries of older tokens the chosen ones, or all."""
    graph = compressed(decode(200))  # one token more than fills an entry
    seen = [WINDOW, WINDOW + TOPK, WINDOW + 200 // RATES[1]]
    assert [read for _, read in attentions(graph)] == pytest.approx([BATCH * keys * HEAD * 2 for keys in seen])
    flops = [2 * BATCH * HEADS * keys * 2 * HEAD for keys in seen]
    assert [op.matrix_flops for op, _ in attentions(graph)] == pytest.approx(flops)
    (scored,) = (read for op, read in indexes(graph) if "scorer" in op.path)
    assert scored == BATCH * 200 // RATES[0] * INDEX_WIDTH * 2
    assert not [op for op in graph.ops if op.kind is Kind.SCAN]


def test_a_prefill_sees_entries_of_tokens_before_it_and_keeps_no_more_than_they_need() -> None:
    tokens = 192  # of which each fills whole entries
    graph = compressed(Workload(batch=BATCH, query_tokens=tokens, context_tokens=0, dtype="bfloat16"))
    single = sum(min(i + 1, WINDOW) for i in range(tokens))
    chosen = sum(min((i + 1) / RATES[0], TOPK) for i in range(tokens))
    every = sum((i + 1) / RATES[1] for i in range(tokens))
    flops = [2 * BATCH * HEADS * (single + pairs) * 2 * HEAD for pairs in (0, chosen, every)]
    assert [op.matrix_flops for op, _ in attentions(graph)] == pytest.approx(flops, rel=1e-2)
    entries = [0, tokens // RATES[0] * (HEAD + INDEX_WIDTH), tokens // RATES[1] * HEAD]
    overlap = 2 * RATES[0] * (HEAD + INDEX_WIDTH)  # the last whole entry's tokens and gates
    values = tokens * HEAD  # of the layer without entries, whose copies of its keys nothing reads
    assert footprint(graph).kv_cache == 2 * BATCH * (3 * WINDOW * HEAD + sum(entries) + overlap + values)


def test_halves_of_the_values_share_the_scores() -> None:
    """DiffLlama calls sdpa for each half of the values, and once over all where it is eager: one price."""
    graphs = [source("diffllama", attn).whole(decode(200)) for attn in ("sdpa", "eager")]
    for graph in graphs:
        width, keys = 32 // HEADS, 201
        scores_and_values = 2 * BATCH * HEADS * keys * (width + 2 * width)
        assert [op.matrix_flops for op, _ in attentions(graph)] == [scores_and_values] * 3
        assert [read for _, read in attentions(graph)] == [2 * BATCH * 2 * keys * width * 2] * 3


def test_pools_of_tokens_are_chosen_where_the_numbers_are_spread_out() -> None:
    """GLM-5-Next scores pools of tokens, and its numbers of tokens are made of those of the chosen pools."""
    pool, keys = 4, 203  # the last pool lacks a token
    config = TINY["deepseek_v3"] | INDEX | {
        "num_hidden_layers": 4, "n_routed_experts": 4, "n_group": 1, "index_kpool": pool, "linear_head_dim": 8,
        "linear_num_heads": 4, "hc_mult": 2, "pad_token_id": None, "qk_rope_head_dim": 0,
        "model_type": "glm5_next_text",
    }  # fmt: skip
    made = AutoConfig.for_model("glm5_next", text_config=config)
    work = decode(keys - 1)
    graph = model_source(ModelGraphs(made, "glm5_next", Tracing(dtype="bfloat16")), (), "fused").whole(work)
    seen = KEPT + keys % pool
    assert [(op.dims["pairs"], read) for op, read in attentions(graph)] == [
        (seen, pytest.approx(BATCH * seen * RANK * 2))
    ]
