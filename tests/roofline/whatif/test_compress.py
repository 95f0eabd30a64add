"""A compressed cache: a decode over it is a decode after fewer tokens, which is traced for comparison."""

import math
from functools import cache

import pytest
from each import each
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny
from whatif_graphs import check_rank, stored, totals, traced

from profiler.models.build import build_meta
from profiler.models.inputs import prepare
from profiler.models.trace import trace
from roofline.fusion.fuse import fused
from roofline.graph.op import Kind, OpGraph
from roofline.whatif.compress import compress_kv
from roofline.whatif.tensor_parallel import tensor_parallel
from roofline.workload import Workload

FAMILIES = ("llama", "gpt2", "falcon", "mixtral", "qwen3_moe", "deepseek_v3")


@cache
def after(name: str, query: int, context: int, attn: str = "default", cached: str = "dynamic") -> OpGraph:
    what = Workload(batch=2, query_tokens=query, context_tokens=context, dtype="bfloat16")
    model = build_meta(tiny(name), "bfloat16", attn)
    return trace(model, prepare(model, what, cache=cached), what, name=name, target="cuda", options={})


@each("attn", ["default", "eager"])
@each("query", [1, 4])
@pytest.mark.parametrize("name", FAMILIES)
def test_it_is_the_pass_after_as_many_tokens_as_are_kept(name: str, query: int, attn: str) -> None:
    compressed, fewer = compress_kv(after(name, query, 12, attn), 4), after(name, query, 3, attn)
    check_rank(compressed)
    mine, theirs = totals(compressed), totals(fewer)
    for figure in ("matrix_flops", "kv_read", "kv_write", "kv", "weight_read"):
        assert math.isclose(mine[figure], theirs[figure]), figure
    shapes = [[op.dims for op in graph.ops if op.kind is Kind.ATTENTION] for graph in (compressed, fewer)]
    assert shapes[0] == shapes[1]
    ideal = [fused(graph) for graph in (compressed, fewer)]
    mine, theirs = totals(ideal[0]), totals(ideal[1])
    for figure in ("kv_read", "kv_write"):
        assert math.isclose(mine[figure], theirs[figure]), figure


@settings(deadline=None, max_examples=40)
@given(st.floats(1, 20))
def test_a_static_cache_and_windows_keep_their_share(ratio: float) -> None:
    kept = math.ceil(12 / ratio)
    static = after("llama", 1, 12, cached="static")
    length = stored(static, "kv") / (2 * 2 * 2 * 2 * 8 * 2)  # layers, keys and values, batch, heads, width, bytes
    small = compress_kv(static, ratio)
    assert math.isclose(stored(small, "kv") / stored(static, "kv"), (length - 12 + kept) / length)
    windowed = compress_kv(traced("gemma3", "decode"), ratio)
    tokens = [op.dims["kv"] for op in windowed.ops if op.kind is Kind.ATTENTION]
    in_window = math.ceil(7 / ratio) + 1
    assert tokens == [in_window, in_window, kept + 1, in_window]


def test_a_prefill_has_nothing_to_compress_yet() -> None:
    graph = traced("llama", "prefill")
    compressed = compress_kv(graph, 4)
    assert (compressed.ops, compressed.tensors) == (graph.ops, graph.tensors)
    assert compressed.options["compress_kv"] == "4"


def test_one_is_the_identity_and_it_composes_with_shards() -> None:
    graph = traced("llama", "decode")
    assert compress_kv(graph, 1) is graph
    first, last = compress_kv(tensor_parallel(graph, 2), 4), tensor_parallel(compress_kv(graph, 4), 2)
    check_rank(first)
    assert totals(first) == pytest.approx(totals(last))


@each("ratio", [0.5, 0, -3, math.nan, math.inf])
def test_a_ratio_below_one_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match=r"use 1 \(all of it\) or more"):
        compress_kv(traced("llama", "decode"), ratio)


def test_what_has_no_tokens_to_drop_is_refused() -> None:
    with pytest.raises(ValueError, match="no keys and values of tokens"):
        compress_kv(traced("mamba", "decode"), 2)
    with pytest.raises(ValueError, match="the cache is compressed already"):
        compress_kv(compress_kv(traced("llama", "decode"), 2), 2)
    with pytest.raises(ValueError, match="apply it first, then fuse"):
        compress_kv(fused(traced("llama", "decode")), 2)
