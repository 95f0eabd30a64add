"""Offloaded weights and cache: what crosses the link, what stays on the device, what an operation then waits for."""

import math

import pytest
from each import each
from graphs import GraphBuilder, figure, peaks
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import layered
from whatif_graphs import PHASES, check_rank, link_bytes, linked_peaks, totals, traced, transfers

from profiler.models.graphs import ModelGraphs, Tracing, model_source
from roofline.fusion.fuse import fused
from roofline.graph.op import OpGraph
from roofline.hardware.spec import Link
from roofline.price import Prepared, price
from roofline.sweep.family import Form
from roofline.sweep.price import price_pieces
from roofline.whatif.offload import KV_BUFFERS, WEIGHT_BUFFERS, offload
from roofline.whatif.registry import parse
from roofline.whatif.tensor_parallel import tensor_parallel
from roofline.workload import Workload

FAMILIES = ("llama", "gpt2", "falcon", "mixtral", "gemma3", "deepseek_v3", "mamba")
SHARES = st.floats(0.01, 1)


def seconds(graph: OpGraph) -> float:
    return float(sum(t * op.count for t, op in zip(price(graph, linked_peaks()).time_s, graph.ops, strict=True)))


def layers_by_hand() -> OpGraph:
    """Two layers, of 100 and 300 weight bytes, and a head of 200."""
    b = GraphBuilder()
    for name, size in (("w0", 100), ("w1", 300), ("head", 200)):
        b.weight(name, size)
    b.op("matmul", reads={"x": 10, "w0": 100}, writes={"h": 10}, path="layers.0.mlp", matrix=1000)
    b.op("matmul", reads={"h": 10, "w1": 300}, writes={"i": 10}, path="layers.1.mlp", matrix=1000)
    b.op("matmul", reads={"i": 10, "head": 200}, writes={"y": 10}, path="head", matrix=1000)
    return b.graph()


def on_device(graph: OpGraph, role: str) -> float:
    return sum(t.storage_bytes * (1 - t.on_host) for t in graph.tensors if t.role == role)


def test_weights_by_hand() -> None:
    pcie = {"pcie": Link(bandwidth=figure(5.0))}
    device = peaks(matrix=100.0).model_copy(update={"links": pcie})
    graph = layers_by_hand()
    overlapped = offload(graph, weights=0.5)
    assert [op.link_bytes for op in overlapped.ops] == [50, 150, 100]
    assert price(overlapped, device, "cold").time_s.tolist() == [12, 32, 22]  # 10 or 5 bytes a second
    assert price(offload(graph, weights=1.0), device, "cold").time_s.tolist() == [20, 60, 40]
    apart = offload(graph, weights=0.5, overlap=False)
    assert [op.name for op in apart.ops[::2]] == ["transfer::load"] * 3
    assert price(apart, device, "cold").time_s.tolist() == [10, 12, 30, 32, 20, 22]
    buffer = next(t for t in overlapped.tensors if t.name == WEIGHT_BUFFERS)
    assert buffer.storage_bytes == 300  # twice the largest layer is more than is offloaded: half of all
    assert on_device(overlapped, "weight") == 300 + 300
    assert [t.storage_bytes for t in overlapped.tensors if t.role == "weight"][:3] == [100, 300, 200]


def test_a_layer_waits_for_all_its_weights_at_once() -> None:
    """57 s of work and 30 s over the link, then 17 s of work and 30 s over the link: 57 + 30."""
    b = GraphBuilder()
    for name, size in (("w0", 0), ("w1", 150), ("w2", 150)):
        b.weight(name, size)
    b.op("matmul", {"x": 10}, {"h": 10}, path="layers.0.attn", matrix=4000)
    b.op("matmul", {"h": 10, "w1": 150}, {"i": 10}, path="layers.0.mlp", matrix=1700)
    b.op("matmul", {"i": 10, "w2": 150}, {"y": 10}, path="layers.1.mlp", matrix=1000)
    device = peaks(matrix=100.0).model_copy(update={"links": {"pcie": Link(bandwidth=figure(5.0))}})
    assert price(b.graph(), device, "cold").time_s.tolist() == [40, 17, 17]
    found = price(offload(b.graph(), weights=1.0), device, "cold")
    assert found.time_s.tolist() == [40, 17, 30]
    assert found.bound == ("matrix", "matrix", "pcie")
    assert price(offload(b.graph(), weights=1.0, overlap=False), device, "cold").time_s.sum() == 40 + 17 + 17 + 60


@each(("name", "form"), [("llama", "executed"), ("gemma3", "fused")])
def test_a_sweep_of_chunks_is_its_exact_passes(name: str, form: Form) -> None:
    """Chunks shorter and longer than what is cached: more comes than goes back, or less."""
    graphs = ModelGraphs(layered(name, 6), name, Tracing("bfloat16"))
    made = model_source(graphs, [parse("offload:weights=0.1,kv=1,link=pcie")], form)
    works = [
        Workload(batch=b, query_tokens=q, context_tokens=c, dtype="bfloat16")
        for b in (1, 3)
        for q, c in ((20, 90), (90, 20), (50, 50), (33, 70))
    ]
    wholes, pieces = [Prepared(made.whole(work)) for work in works], made.family().cover(works)
    for slow in (1e-3, 1.0, 1e3):
        device = linked_peaks().model_copy(update={"links": {"pcie": Link(bandwidth=figure(slow))}})
        swept = price_pieces(pieces, works, device)
        for i, whole in enumerate(wholes):
            time_s = price(whole, device).time_s @ [op.count for op in whole.graph.ops]
            assert swept.link_bytes[i] == pytest.approx(link_bytes(whole.graph), rel=1e-12)
            assert swept.time_s[i] == pytest.approx(time_s, rel=1e-9)


@settings(deadline=None, max_examples=40)
@given(SHARES, SHARES)
def test_what_crosses_is_linear_in_the_shares(weights: float, kv: float) -> None:
    graph = traced("llama", "decode")
    both, whole = offload(graph, weights, kv, overlap=False), offload(graph, 1.0, 1.0, overlap=False)
    for name, share in (("load", None), ("store", kv)):
        mine, all_of_it = (sum(op.link_bytes for op in transfers(g, name)) for g in (both, whole))
        if share is not None:
            assert math.isclose(mine, share * all_of_it)
        else:
            read = totals(graph)["weight_read"]
            assert math.isclose(mine, weights * read + kv * (all_of_it - read))


@each("phase", PHASES)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family(name: str, phase: str) -> None:
    graph = traced(name, phase)
    host = offload(graph, 0.5, 0.25)
    check_rank(host)
    check_rank(offload(graph, 0.5, 0.25, overlap=False))
    assert totals(host)["matrix_flops"] == totals(graph)["matrix_flops"]
    assert {t.on_host for t in host.tensors if t.role == "weight"} <= {0.0, 0.5}
    assert seconds(host) >= seconds(graph)
    assert seconds(host) <= seconds(offload(graph, 0.5, 0.25, overlap=False))


@each("cached", ["dynamic", "static"])
def test_the_cache_comes_once_and_what_is_new_goes_back(cached: str) -> None:
    graph = traced("llama", "decode", cached=cached)
    apart = offload(graph, kv=1.0, overlap=False)
    token = 2 * 2 * 2 * 8 * 2  # keys and values, batch, heads, width, bytes
    length = 12 if cached == "dynamic" else round(totals(graph)["kv"] / (2 * token)) - 1
    assert sum(op.link_bytes for op in transfers(apart, "load")) == 2 * token * length
    assert sum(op.link_bytes for op in transfers(apart, "store")) == 2 * token
    assert any(t.name == KV_BUFFERS for t in apart.tensors)
    assert on_device(apart, "kv") <= totals(graph)["kv"]


def test_a_prefill_writes_its_cache_back_and_fetches_nothing() -> None:
    apart = offload(traced("llama", "prefill"), kv=1.0, overlap=False)
    assert not transfers(apart, "load")
    assert sum(op.link_bytes for op in transfers(apart, "store")) == 2 * 12 * 2 * 2 * 2 * 8 * 2


def test_of_a_window_only_what_the_cache_keeps_goes_back() -> None:
    sent = [op.link_bytes for op in transfers(offload(traced("gemma3", "prefill"), kv=1.0, overlap=False), "store")]
    token = 2 * 8 * 2  # of keys or of values: batch, width, bytes; a window of 8 in three layers of four
    assert sent == [length * token for length in (8, 8, 8, 8, 12, 12, 8, 8)]


def test_an_operation_that_has_another_link_gets_a_transfer_before_it() -> None:
    shard = tensor_parallel(traced("llama", "decode"), 2, link="nvlink")
    host = offload(shard, weights=1.0, link="pcie")
    check_rank(host)
    crossing = sum(op.link_bytes for op in host.ops if op.link == "pcie")
    assert math.isclose(crossing, totals(shard)["weight_read"])
    assert math.isclose(link_bytes(host) - crossing, link_bytes(shard))


def test_it_works_on_a_fused_graph() -> None:
    graph = traced("llama", "decode")
    assert link_bytes(offload(fused(graph), weights=1.0)) <= link_bytes(offload(graph, weights=1.0))
    assert link_bytes(offload(fused(graph), kv=1.0)) <= link_bytes(offload(graph, kv=1.0, overlap=False))


def test_nothing_is_the_identity_and_nonsense_is_refused() -> None:
    graph = traced("llama", "decode")
    assert offload(graph) is graph
    with pytest.raises(ValueError, match=r"weights is 1.5; use a share from 0 to 1"):
        offload(graph, weights=1.5)
    with pytest.raises(ValueError, match=r"kv is nan; use a share from 0 to 1"):
        offload(graph, kv=math.nan)
    with pytest.raises(ValueError, match="is offloaded already; give both shares at once"):
        offload(offload(graph, weights=1.0), kv=1.0)
    with pytest.raises(ValueError, match="no cache to offload"):
        offload(layers_by_hand(), kv=1.0)
