"""Prices and memory of many workloads at once, against each workload alone."""

import numpy as np
import pytest
from graphs import GraphBuilder, figure, peaks
from hypothesis import given, settings
from hypothesis import strategies as st
from parametric_graphs import Traced, decoder, model_graphs, totals, traced, workload

from roofline.fusion.fuse import fused
from roofline.graph.fold import fold
from roofline.graph.memory import footprint
from roofline.graph.op import OpGraph, Traffic
from roofline.hardware.spec import Link, Peaks
from roofline.price import price
from roofline.sweep.family import Family
from roofline.sweep.polynomial import ParametricGraph, Sweep, fit
from roofline.sweep.price import Summed, memory_pieces, memory_sweep, price_pieces, price_sweep
from roofline.sweep.regimes import monomials, regime_of, samples
from roofline.workload import Workload

BALANCED = peaks(matrix=30.0, vector=4.0, dtype="float32")
"""FLOP/s and bytes/s at which the graphs by hand wait for each of their roofs at one length or another."""

DEVICE = peaks(vector=39e12, levels=(("DRAM", 48e9, 768e9),)).model_copy(
    update={"matrix": {"bfloat16": figure(155e12), "float32": figure(39e12)}}
)


def fitted(make, w: Workload) -> ParametricGraph:  # type: ignore[no-untyped-def]
    regime = regime_of(w, ())
    assert regime is not None
    points = samples(regime, (), w.dtype)
    assert points is not None
    return fit([fold(make(point)) for point in points], monomials(regime, False))


def seconds(graph: OpGraph, at: Peaks) -> float:
    return float((price(graph, at).time_s * [op.count for op in graph.ops]).sum())


def agrees(graph: ParametricGraph, ws: list[Workload], at: Peaks) -> None:
    """Every total of a sweep is the sum over the operations of the graph at each workload."""
    swept = price_sweep(graph, Sweep.of(ws), at)
    for i, w in enumerate(ws):
        alone = graph.at(w)
        assert swept.time_s[i] == pytest.approx(seconds(alone, at), rel=1e-12, nan_ok=True)
        assert swept.count[i] == pytest.approx(sum(op.count for op in alone.ops), rel=1e-12)
        expected = totals(alone)
        for name in ("matrix_flops", "vector_flops", "link_bytes"):
            assert getattr(swept, name)[i] == pytest.approx(expected[name], rel=1e-12)
        assert swept.traffic(i).model_dump() == pytest.approx({n: expected[n] for n in Traffic.model_fields}, rel=1e-12)


shapes = {
    "prefill": st.builds(workload, st.integers(2, 99), st.integers(2, 5000), st.just(0)),
    "decode": st.builds(workload, st.integers(2, 99), st.just(1), st.integers(1, 9000)),
    "chunk": st.builds(workload, st.integers(2, 99), st.integers(2, 900), st.integers(1, 9000)),
}


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["prefill", "decode", "chunk"]).flatmap(
        lambda phase: st.lists(shapes[phase], min_size=1, max_size=6)
    ),
    st.sampled_from([0, 4, 64]),
    st.sampled_from([60, 3000, 10**6]),
    st.sampled_from([1, 30]),
    st.tuples(st.floats(0.1, 1e4), st.floats(0.1, 1e4)),
)
def test_totals_are_those_of_each_workload(
    ws: list[Workload], experts: int, vocabulary: int, steps: int, rates: tuple[float, float]
) -> None:
    def make(w: Workload) -> OpGraph:
        return decoder(w, experts=experts, layers=4, steps=steps)

    graph = fitted(make, ws[0])
    agrees(graph, ws, peaks(matrix=rates[0], vector=rates[1], dtype="float32"))
    exact = [seconds(make(w), BALANCED) for w in ws]
    assert price_sweep(graph, Sweep.of(ws), BALANCED).time_s == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "ws"),
    [
        ("llama", [workload(b, 1, c) for b in (2, 50) for c in (33, 200)]),
        ("mixtral", [workload(b, 1, c) for b in (2, 3, 50) for c in (33, 200)]),
        ("deepseek_v3", [workload(b, 1, c) for b in (2, 9) for c in (33, 150)]),
        ("gpt2", [workload(b, q, 0) for b in (2, 9) for q in (33, 200)]),
        ("mamba", [workload(1, q, 0) for q in (9, 33, 40)]),
    ],
)
def test_totals_of_real_models(name: str, ws: list[Workload]) -> None:
    for change in (lambda graph: graph, fused):
        graph = fitted(lambda w, change=change: change(traced(name, w)), ws[0])
        agrees(graph, ws, DEVICE)
        exact = [seconds(change(traced(name, w)), DEVICE) for w in ws]
        assert price_sweep(graph, Sweep.of(ws), DEVICE).time_s == pytest.approx(exact, rel=1e-9)


def test_a_missing_peak_is_not_a_number_and_everything_else_is() -> None:
    ws = [workload(b, 1, c) for b in (2, 7) for c in (10, 500)]
    graph = fitted(decoder, ws[0])
    known = price_sweep(graph, Sweep.of(ws), BALANCED)
    for lacking in (peaks(matrix=None), peaks(vector=None)):
        swept = price_sweep(graph, Sweep.of(ws), lacking)
        assert np.isnan(swept.time_s).all()
        assert swept.matrix_flops == pytest.approx(known.matrix_flops)
        assert swept.kv_read == pytest.approx(known.kv_read)
        agrees(graph, ws, lacking)


def test_a_peak_that_no_operation_needs_may_be_missing() -> None:
    def make(w: Workload) -> OpGraph:
        graph = decoder(w)
        return graph.model_copy(update={"ops": tuple(op for op in graph.ops if not op.vector_flops)})

    ws = [workload(2, 1, 10), workload(3, 1, 99)]
    agrees(fitted(make, ws[0]), ws, peaks(vector=None))
    assert not np.isnan(price_sweep(fitted(make, ws[0]), Sweep.of(ws), peaks(vector=None)).time_s).any()


def test_links_are_priced_by_bytes_and_messages() -> None:
    def make(w: Workload) -> OpGraph:
        graph = decoder(w)
        ops = (
            op.model_copy(update={"link": "nvlink", "link_bytes": 64 * w.batch, "messages": 3})
            if op.kind == "attention" else op for op in graph.ops
        )  # fmt: skip
        return graph.model_copy(update={"ops": tuple(ops)})

    ws = [workload(b, 1, c) for b in (2, 70) for c in (1, 20, 900)]
    graph = fitted(make, ws[0])
    for link in (Link(bandwidth=figure(2.0)), Link(bandwidth=figure(2.0), latency_s=figure(300.0))):
        at = BALANCED.model_copy(update={"links": {"nvlink": link}})
        agrees(graph, ws, at)
    assert np.isnan(price_sweep(graph, Sweep.of(ws), BALANCED).time_s).all()  # no such link


def test_several_levels_are_priced_one_by_one() -> None:
    ws = [workload(b, 1, c) for b in (2, 30) for c in (10, 400)]
    at = peaks(30.0, 4.0, (("L2", 3000.0, 50.0), ("DRAM", 1e9, 10.0)))
    agrees(fitted(decoder, ws[0]), ws, at)


def test_operations_with_one_roof_or_the_same_roofs_are_summed_once() -> None:
    graph = fitted(lambda w: decoder(w, layers=50), workload(2, 1, 99))
    summed = Summed.of(graph, BALANCED)
    assert summed.others.tolist() == [0]  # the gather
    assert sum(roofs.shape[2] for roofs in summed.several) <= 3  # projection, attention, head
    fast = Summed.of(graph, peaks(matrix=1e12, vector=1e12))
    assert fast.several == ()  # all wait for memory whatever the workload


def test_pieces_are_put_together_in_the_order_asked() -> None:
    ws = [workload(b, q, c) for q, c in ((1, 40), (300, 0), (1, 9), (64, 200), (17, 0), (1, 0)) for b in (1, 4, 9)]
    pieces = Family(Traced()).cover(ws)
    swept, memory = price_pieces(pieces, ws, BALANCED), memory_pieces(pieces, ws)
    for i, w in enumerate(ws):
        assert swept.time_s[i] == pytest.approx(seconds(decoder(w), BALANCED), rel=1e-9)
        whole = footprint(decoder(w))
        assert (memory.weights[i], memory.kv_cache[i]) == (whole.weights, whole.kv_cache)
        assert memory.peak[i] == pytest.approx(whole.peak, rel=0.02)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(sorted(shapes)).flatmap(lambda phase: st.lists(shapes[phase], min_size=1, max_size=4)))
def test_memory_is_the_footprint_of_each_workload(ws: list[Workload]) -> None:
    graph = fitted(decoder, ws[0])
    swept = memory_sweep(graph, Sweep.of(ws))
    for i, w in enumerate(ws):
        found = footprint(graph.at(w))
        for name in ("weights", "kv_cache", "activations", "peak"):
            assert getattr(swept, name)[i] == pytest.approx(getattr(found, name), rel=1e-12)
        whole = footprint(decoder(w))
        assert (swept.weights[i], swept.kv_cache[i]) == (whole.weights, whole.kv_cache)


@pytest.mark.parametrize("name", ["llama", "mixtral", "gpt2", "deepseek_v3"])
def test_memory_of_real_models(name: str) -> None:
    """A folded graph holds the peak of the whole within 2 % where weights and cache dominate."""
    ws = [workload(b, 1, c) for b in (2, 9) for c in (33, 200)]
    for change in (lambda graph: graph, fused):
        swept = memory_sweep(fitted(lambda w, change=change: change(traced(name, w)), ws[0]), Sweep.of(ws))
        for i, w in enumerate(ws):
            whole = footprint(change(traced(name, w)))
            assert (swept.weights[i], swept.kv_cache[i]) == (whole.weights, whole.kv_cache)
            assert swept.peak[i] == pytest.approx(whole.peak, rel=0.02)


def test_weights_on_the_host_are_not_in_memory() -> None:
    def make(w: Workload) -> OpGraph:
        graph = decoder(w)
        tensors = (t.model_copy(update={"on_host": 0.25 if t.role == "weight" else 0}) for t in graph.tensors)
        return graph.model_copy(update={"tensors": tuple(tensors)})

    ws = [workload(2, 1, 10), workload(5, 1, 700)]
    swept = memory_sweep(fitted(make, ws[0]), Sweep.of(ws))
    assert swept.weights == pytest.approx(0.75 * memory_sweep(fitted(decoder, ws[0]), Sweep.of(ws)).weights)
    assert swept.peak == pytest.approx([footprint(fitted(make, ws[0]).at(w)).peak for w in ws])


def test_no_workloads_have_no_prices() -> None:
    graph = fitted(decoder, workload(2, 1, 10))
    for at in (BALANCED, peaks(30.0, 4.0, (("L2", 3000.0, 50.0), ("DRAM", 1e9, 10.0)))):
        assert len(price_sweep(graph, Sweep.of([]), at).time_s) == 0
    assert len(memory_sweep(graph, Sweep.of([])).peak) == 0


def test_weights_are_those_of_the_whole_model() -> None:
    graphs = model_graphs("llama")
    elements = sum(p.numel() for p in graphs.model.parameters()) + sum(b.numel() * 2 for b in graphs.model.buffers())
    graph = fitted(lambda w: traced("llama", w), workload(2, 1, 50))
    assert memory_sweep(graph, Sweep.of([workload(2, 1, 50)])).weights[0] == 2 * elements


def test_a_graph_in_which_every_operation_has_two_roofs_is_priced() -> None:
    def matmul(batch: int) -> OpGraph:
        builder = GraphBuilder(workload(batch, 1, 1))
        builder.weight("w", 1000)
        builder.op("matmul", reads=["w"], writes={}, matrix=100.0 * batch)
        return builder.graph()

    graph = fit([matmul(2), matmul(3)], [(0, 0, 0, 0), (1, 0, 0, 0)])
    both = Sweep.of([workload(5, 1, 1), workload(20, 1, 1)])
    assert price_sweep(graph, both, peaks(matrix=1.0, vector=1.0)).time_s.tolist() == [500.0, 2000.0]
    slow_memory = peaks(matrix=1.0, levels=(("DRAM", 1e9, 1.0),))
    assert price_sweep(graph, Sweep.of([workload(b, 1, 1) for b in (5, 20)]), slow_memory).time_s.tolist() == [
        1000,
        2000,
    ]
