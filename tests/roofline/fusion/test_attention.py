"""Attention of the ideal graph: the same for all forms that can be traced, without its mask, over a window's cache."""

from itertools import combinations

import numpy as np
import pytest
from parametric_graphs import workload
from tiny import tiny
from whatif_graphs import linked_peaks

from profiler.cli.options import what_ifs
from profiler.models.graphs import ModelGraphs, Tracing
from roofline.fusion.fuse import fused
from roofline.graph.memory import footprint
from roofline.graph.op import OpGraph
from roofline.price import price
from roofline.workload import Workload

ALONE = (
    "quantise:kv=8", "quantise:kv=4", "quantise:weights=4,activations=8,kv=8", "compress_kv:ratio=2",
    "tensor_parallel:degree=2,link=nvlink", "offload:kv=1,link=pcie", "send_kv:link=network", "lora:rank=2,adapters=2",
    "low_rank:rank=4", "sparsify_2_4", "early_exit:after_layers=1", "pipeline_stage:stages=2,stage=0,link=network",
)  # fmt: skip
"""What-ifs that change attention, its cache, or what is beside it."""

TOGETHER = ("tensor_parallel:degree=2,link=nvlink", "compress_kv:ratio=2", "quantise:kv=8", "offload:kv=1,link=pcie")


def figures(graph: OpGraph) -> list[float]:
    """Seconds, FLOPs, bytes and memory of a whole pass."""
    seconds = float(price(graph, linked_peaks()).time_s.sum())
    work = [sum(getattr(op, name) for op in graph.ops) for name in ("matrix_flops", "vector_flops", "link_bytes")]
    memory = footprint(graph)
    return [seconds, *work, sum(t.total for t in graph.traffic), memory.kv_cache, memory.activations, memory.peak]


def changed(graph: OpGraph, names: tuple[str, ...]) -> OpGraph | str:
    """The graph with these what-ifs; why not, where one of them refuses it."""
    try:
        for change in what_ifs(names):
            graph = change(graph)
    except ValueError as error:
        return str(error)
    return graph


def test_eager_and_fused_attention_have_one_ideal_form_under_every_what_if() -> None:
    chains = [(), *((name,) for name in ALONE), *combinations(TOGETHER, 2)]
    for name in ("llama", "mistral", "gemma3"):
        for w in (workload(4, 1, 40), workload(2, 6, 40), workload(2, 32, 0)):
            by_form = [
                ModelGraphs(tiny(name), name, Tracing(dtype="bfloat16", attn=attn)).whole(w)
                for attn in ("sdpa", "eager")
            ]
            for chain in chains:
                sdpa, eager = (changed(graph, chain) for graph in by_form)
                if isinstance(sdpa, str) or isinstance(eager, str):
                    assert sdpa == eager, (name, w.key, chain)
                    continue
                ours, theirs = figures(fused(sdpa)), figures(fused(eager))
                np.testing.assert_allclose(theirs, ours, rtol=1e-9, err_msg=f"{name} {w.key} {chain}")


def test_eight_bits_of_cache_cost_less_than_sixteen_with_repeated_heads() -> None:
    graph = ModelGraphs(tiny("gpt_oss"), "gpt_oss", Tracing(dtype="bfloat16")).whole(workload(4, 1, 200))
    narrow = changed(graph, ("quantise:kv=8",))
    assert not isinstance(narrow, str)
    read, plain = (sum(t.kv_read + t.kv_write for t in fused(g).traffic) for g in (narrow, graph))
    assert read == pytest.approx(plain * (8 * 8 + 16) / (16 * 8))  # a scale of 16 bits for a head of 8 elements
    written = [sum(t.activation_write for t in fused(g).traffic) for g in (narrow, graph)]
    assert written[0] <= written[1] + 4 * 2 * 2 * 2 * 8 * 2  # at most new keys and values of each layer


def test_a_windowed_layer_keeps_a_window_and_a_prefill_makes_no_mask() -> None:
    # name: (layers, windowed ones, bytes of keys and values of a token in a layer, window)
    token = 2 * 2 * 8 * 2  # keys and values, heads, width, bytes
    cases = {"mistral": (2, 2, token, 8), "gpt_oss": (2, 1, token, 8), "gemma3": (4, 3, token // 2, 8)}
    for name, (layers, windowed, bytes_of_token, window) in cases.items():
        graphs = ModelGraphs(tiny(name), name, Tracing(dtype="bfloat16"))
        activations = []
        for tokens in (256, 512, 1024):
            prefill = footprint(fused(graphs.whole(workload(1, tokens, 0))))
            step = footprint(fused(graphs.whole(workload(1, 1, tokens - 1))))
            expected = bytes_of_token * ((layers - windowed) * tokens + windowed * min(tokens, window))
            assert prefill.kv_cache == step.kv_cache == expected, (name, tokens)
            assert prefill.peak >= prefill.weights + prefill.kv_cache, (name, tokens)
            activations.append(prefill.activations)
        assert activations[2] - activations[1] == pytest.approx(2 * (activations[1] - activations[0])), name


def test_chunks_after_a_context_keep_a_window_too() -> None:
    graphs = ModelGraphs(tiny("mistral"), "mistral", Tracing(dtype="bfloat16"))
    for query, context in ((4, 100), (40, 100), (40, 4)):
        w = Workload(batch=1, query_tokens=query, context_tokens=context, dtype="bfloat16")
        assert footprint(fused(graphs.whole(w))).kv_cache == 2 * 8 * 2 * 2 * 8 * 2, (query, context)
