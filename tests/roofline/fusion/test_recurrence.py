"""Recurrent layers of the ideal graph: a state is read once and written once, and a prefill has its published FLOPs."""

from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
from graphs import GraphBuilder, sizes
from parametric_graphs import traced, workload
from tiny import TINY, tiny
from transformers import AutoConfig

from profiler.models.graphs import ModelGraphs, Tracing, model_source
from roofline.fusion.fuse import fuse, fused
from roofline.fusion.recurrence import CHUNK
from roofline.graph.memory import footprint
from roofline.graph.op import OpGraph, holds_tokens
from roofline.workload import Workload

BATCH = 8
_DENSE = {name: value for name, value in TINY["llama"].items() if name not in ("model_type", "tie_word_embeddings")}
_MAMBA = {name: value for name, value in TINY["mamba"].items() if name != "model_type"}

RECURRENT: dict[str, dict[str, Any]] = {
    "falcon_mamba": _MAMBA,
    "jamba": _DENSE | {"mamba_d_state": 4, "mamba_dt_rank": 2, "num_hidden_layers": 4, "attn_layer_offset": 2,
                       "attn_layer_period": 4, "num_experts": 2, "use_mamba_kernels": False},
    "bamba": _DENSE | {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8,
                       "attn_layer_indices": [1], "mamba_chunk_size": 8},
    "kimi_linear": _DENSE | {"num_hidden_layers": 4, "num_key_value_heads": 4, "kv_lora_rank": 8,
                             "qk_nope_head_dim": 8, "qk_rope_head_dim": 4,
                             "v_head_dim": 8, "linear_attn_config": {"head_dim": 8, "num_heads": 4,
                             "short_conv_kernel_size": 4, "kda_layers": [1, 2, 3], "full_attn_layers": [4]},
                             "num_experts": 4, "num_experts_per_token": 2, "moe_intermediate_size": 16},
    "xlstm": {"vocab_size": 128, "hidden_size": 128, "num_heads": 4, "num_blocks": 2, "num_hidden_layers": 2},
    "rwkv": {"vocab_size": 128, "hidden_size": 32, "attention_hidden_size": 32, "intermediate_size": 64,
             "num_hidden_layers": 2, "context_length": 256},
}  # fmt: skip
"""Small configs of types with recurrent layers, beside those of `TINY`."""


def graphs(name: str) -> ModelGraphs:
    fields = dict(RECURRENT.get(name, {}))
    config = AutoConfig.for_model(name, **fields) if fields else tiny(name)
    return ModelGraphs(config, name, Tracing(dtype="bfloat16"))


def ideal(name: str, w: Workload) -> OpGraph:
    return model_source(graphs(name), (), "fused").whole(w)


def state_bytes(graph: OpGraph) -> tuple[float, float, float]:
    """Bytes of all states after the pass, and those that are read and written."""
    states = {t.id for t in graph.tensors if t.role == "kv" and not holds_tokens(t)}
    kept: dict[str | None, float] = {}
    for tensor in graph.tensors:
        if tensor.id in states:  # a state that is replaced has the name of its successor
            kept[tensor.name] = tensor.storage_bytes
    read = sum(a.bytes * op.count for op in graph.ops for a in op.reads if a.tensor in states)
    written = sum(a.bytes * op.count for op in graph.ops for a in op.writes if a.tensor in states)
    return sum(kept.values()), read, written


def test_a_decode_step_reads_each_state_once_and_writes_it_once() -> None:
    for name in ("mamba", "mamba2", "qwen3_next", *RECURRENT):
        graph = ideal(name, workload(BATCH, 1, 40))
        state, read, written = state_bytes(graph)
        assert state > 0, name
        assert (read, written) == (pytest.approx(state), pytest.approx(state)), name
        largest = max(t.storage_bytes for t in graph.tensors if t.role == "kv" and not holds_tokens(t))
        made = {a.tensor for op in graph.ops for a in op.writes if graph.tensors[a.tensor].role == "activation"}
        tokens = [graph.tensors[t].storage_bytes for t in made]  # (batch, width), never (batch, width, state)
        assert max(tokens) <= max(BATCH * 2 * 300, largest / 2), name


def test_states_that_modules_keep_themselves_are_part_of_the_cache() -> None:
    """RecurrentGemma: two recurrent layers of 32 channels with a state in float32 and a window of 3 tokens in bfloat16,
    then one layer of keys and values in one head of 8, over 8 tokens at most."""
    sizes = {"num_hidden_layers": 3, "num_key_value_heads": 1, "head_dim": 8, "lru_width": 32, "sliding_window": 8}
    config = AutoConfig.for_model("recurrent_gemma", **_DENSE | sizes)
    made = ModelGraphs(config, "recurrent_gemma", Tracing(dtype="bfloat16"))
    state, window, keys = BATCH * 2 * 32 * 4, BATCH * 2 * 32 * 2, BATCH * 8 * 2 * 8 * 2  # window: of one token
    for form in ("executed", "fused"):
        graph = model_source(made, (), form).whole(workload(BATCH, 1, 40))
        assert footprint(graph).kv_cache == keys + state + 4 * window, form  # a step leaves a view of 4 tokens
        _, read, written = state_bytes(graph)
        if form == "fused":
            assert (read, written) == (state + 3 * window, state + window)
    assert footprint(fused(made.whole(workload(BATCH, 12, 0)))).kv_cache == keys + state + 3 * window


def test_the_step_of_a_large_batch_costs_no_more_rows_than_it_has_tokens() -> None:
    for name in RECURRENT:
        for op in ideal(name, workload(BATCH, 1, 40)).ops:
            assert op.kind != "matmul" or op.dims.get("m", 0) * op.dims.get("b", 1) <= BATCH * 4, (name, op.path)


def test_a_prefill_of_a_recurrence_moves_its_inputs_and_results_once() -> None:
    for name in ("mamba", "qwen3_next"):
        one, two = (fused(graphs(name).whole(workload(1, tokens, 0))) for tokens in (70, 140))
        scans = [[op for op in graph.ops if op.kind == "scan"] for graph in (one, two)]
        assert len(scans[0]) == len(scans[1]) > 0, name
        for short, long in zip(*scans, strict=True):
            fixed = sum(t.storage_bytes for t in one.tensors if t.role == "kv")
            moved = [sum(a.bytes for a in (*op.reads, *op.writes)) for op in (short, long)]
            assert moved[0] < moved[1] <= 2 * moved[0], (name, short.path)
            assert moved[0] < fixed + 70 * 2 * 1000, (name, short.path)
        rising = [footprint(graph).activations for graph in (one, two)]
        assert rising[1] <= 2.01 * rising[0], name


def test_flops_of_the_forms_in_chunks() -> None:
    # products of a state of heads × key × value with each token, and chunk × results within a chunk
    tokens = 200
    delta, heads, key, value = ideal("qwen3_next", workload(2, tokens, 0)), 4, 8, 8
    for op in (op for op in delta.ops if op.kind == "scan"):
        products = 3 * 2 * heads * key * value + 2 * CHUNK * heads * value
        assert op.matrix_flops == 2 * tokens * products
        assert op.dtype == "bfloat16"
    dual, heads, head_dim, state = ideal("mamba2", workload(2, tokens, 0)), 8, 8, 8
    scans = [op for op in dual.ops if op.kind == "scan"]
    assert [op.matrix_flops for op in scans] == [
        2 * tokens * (2 * 2 * heads * head_dim * state + CHUNK * heads * head_dim)
    ] * len(scans)
    # a selective scan has decays of its own for each element of the state: no form in chunks, and FLOPs as executed
    executed = traced("mamba", workload(2, 40, 0))
    for scan in (g for g in fuse(executed) if g.kind == "scan"):
        assert scan.matrix_flops == sum(executed.ops[i].matrix_flops for i in scan.ops)


def test_linear_attention_lies_below_what_kernels_reach() -> None:
    """Qwen3.5-35B-A3B, a prefill of 8,192 tokens on an H100: core 11.7 ms and convolution 3.7 ms in 30 layers."""
    layers, tokens, bandwidth, matrix = 30, 8192, 3.35e12, 989e12
    config = AutoConfig.for_model(
        "qwen3_5_moe_text", vocab_size=128, hidden_size=2048, num_hidden_layers=4, num_attention_heads=16,
        num_key_value_heads=2, head_dim=256, linear_num_key_heads=16, linear_num_value_heads=32,
        linear_key_head_dim=128, linear_value_head_dim=128, num_experts=4, num_experts_per_tok=1,
        moe_intermediate_size=16, shared_expert_intermediate_size=16,
    )  # fmt: skip
    graph = fused(ModelGraphs(config, "hybrid", Tracing(dtype="bfloat16")).whole(workload(1, tokens, 0)))
    seconds: Counter[str] = Counter()
    for op in graph.ops:
        if op.path.endswith("linear_attn") and op.kind in ("scan", "conv"):
            moved = sum(a.bytes for a in (*op.reads, *op.writes)) / bandwidth
            seconds[op.kind] += max(moved, op.matrix_flops / matrix) * layers / 3
    inputs = tokens * 2 * (2 * 16 * 128 + 3 * 32 * 128)  # queries, keys, values, gates and results of one layer
    assert layers * inputs / bandwidth <= seconds["scan"] < 11.7e-3
    assert layers * tokens * 2 * 2 * 8192 / bandwidth <= seconds["conv"] < 3.7e-3


def recurrence(products: bool) -> GraphBuilder:
    """A layer of two projections, a state that decays and takes in a token, and a gate that is made on the way."""
    b = GraphBuilder(workload(1, 1, 9))
    for name in ("w_in", "w_gate", "w_out"):
        b.weight(name, 100)
    b.kv("state", 64)
    b.activation("x", 8)
    b.op("matmul", ["x", "w_in"], {"v": 8}, "in")
    b.op("pointwise", ["state"], {"decayed": 64}, "mixer", elements=32, vector=32)
    b.op("pointwise", ["decayed", "v"], {"new": 64}, "mixer", elements=32, vector=64)
    b.op("copy", ["new"], {"state": 64}, "mixer", elements=32)
    if products:
        b.op("matmul", ["v", "w_gate"], {"gate": 8}, "mixer.gate")
    b.op("matmul", ["new", "gate" if products else "v"], {"y": 8}, "mixer", matrix=64)
    b.op("matmul", ["y", "w_out"], {"out": 8}, "out")
    return b


def test_what_runs_beside_a_recurrence_comes_before_it() -> None:
    graph = recurrence(products=True).graph()
    groups = fuse(graph)
    assert [group.ops for group in groups] == [(0,), (4,), (1, 2, 3, 5), (6,)]
    assert sizes(graph, groups[2].reads) == {"state": 64, "v": 8, "gate": 8}
    assert sizes(graph, groups[2].writes) == {"state": 64, "y": 8}
    for earlier, later in pairwise(groups):
        assert {a.tensor for a in later.writes}.isdisjoint(a.tensor for a in earlier.reads)


def test_a_state_that_a_projection_needs_in_between_stays_in_pieces() -> None:
    b = recurrence(products=False)
    b.op("matmul", ["new", "w_gate"], {"gate": 64}, "mixer.gate")
    b.op("copy", ["gate"], {"state": 64}, "mixer", elements=32)
    groups = fuse(b.graph())
    assert len(groups) > 4
    assert Counter(i for group in groups for i in group.ops) == Counter(range(8))
