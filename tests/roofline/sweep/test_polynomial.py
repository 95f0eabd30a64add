"""Graphs fitted to small samples against graphs of far workloads."""

from itertools import product

import numpy as np
import pytest
from graphs import GraphBuilder
from hypothesis import given, settings
from hypothesis import strategies as st
from parametric_graphs import ROW, decoder, model_graphs, traced, workload

from roofline.fusion.fuse import fused
from roofline.graph.fold import fold
from roofline.graph.op import OpGraph, experts_hit
from roofline.sweep.polynomial import CLASSES, Mismatch, ParametricGraph, Sweep, fit
from roofline.sweep.regimes import monomials, regime_of, samples
from roofline.workload import Workload

WINDOW = 64


def fitted(make, w: Workload, windows: tuple[int, ...] = (), chunk: int = 1) -> ParametricGraph:  # type: ignore[no-untyped-def]
    """Fitted to the small samples of a workload's regime."""
    regime = regime_of(w, windows)
    assert regime is not None
    points = samples(regime, windows, w.dtype, chunk=chunk)
    assert points is not None and w not in points
    return fit([fold(make(point)) for point in points], monomials(regime, chunk > 1), chunk=chunk)


def same(graph: ParametricGraph, exact: OpGraph) -> None:
    """A graph is what a trace folds to, in every size."""
    said, seen = graph.at(exact.workload), fold(exact)
    assert graph.differs(seen) is None
    assert [op.model_dump(exclude={"reads", "routing"}) for op in said.ops] == [
        op.model_dump(exclude={"reads", "routing"}) for op in seen.ops
    ]
    for a, b in zip(said.ops, seen.ops, strict=True):
        exactly = not a.routing  # expected reads are products of floats
        assert [x.bytes for x in a.reads] == (
            [x.bytes for x in b.reads] if exactly else pytest.approx([x.bytes for x in b.reads], rel=1e-12)
        )
        assert a.routing == b.routing
    assert [t.storage_bytes for t in said.tensors] == [t.storage_bytes for t in seen.tensors]
    assert (said.workload, said.weight_bytes, said.layers) == (seen.workload, seen.weight_bytes, seen.layers)


FAR = {
    "prefill": (workload(1, 190, 0), workload(5, 100, 0)),
    "decode": (workload(1, 1, 199), workload(7, 1, 150)),
    "chunk": (workload(1, 90, 101), workload(5, 80, 70)),
}


@pytest.mark.parametrize("phase", FAR)
@pytest.mark.parametrize(("name", "many"), [("llama", False), ("mixtral", True)])
def test_far_traces_are_what_small_ones_say(name: str, many: bool, phase: str) -> None:
    far = FAR[phase][many]
    same(fitted(lambda w: traced(name, w), far), traced(name, far))
    same(fitted(lambda w: fused(traced(name, w)), far), fused(traced(name, far)))


@pytest.mark.parametrize(
    ("name", "far"),
    [
        ("gpt2", FAR["prefill"][1]),
        ("gpt2", FAR["decode"][1]),
        ("falcon", FAR["prefill"][0]),
        ("falcon", FAR["chunk"][0]),
        ("deepseek_v3", FAR["prefill"][0]),
        ("deepseek_v3", FAR["decode"][1]),
        ("mamba", workload(1, 60, 0)),
        ("mamba", FAR["decode"][1]),
        ("mamba2", FAR["decode"][1]),
        ("qwen3_next", FAR["decode"][0]),
        ("gemma3", workload(1, 1, 40)),
        ("gemma3", workload(3, 1, 200)),
        ("gemma3", workload(1, 60, 0)),
        ("gemma3", workload(1, 200, 0)),
        ("gpt_oss", workload(1, 31, 30)),
        ("gpt_oss", workload(1, 150, 40)),
        ("gpt_oss", workload(1, 50, 150)),
        ("gpt_oss", workload(5, 1, 170)),
    ],
    ids=lambda one: one.key if isinstance(one, Workload) else one,
)
def test_every_family_and_each_side_of_a_window(name: str, far: Workload) -> None:
    fields = {"sliding_window": WINDOW} if name in ("gemma3", "gpt_oss") else {}
    windows = tuple(sorted(fields.values()))
    same(fitted(lambda w: traced(name, w, **fields), far, windows), traced(name, far, **fields))
    same(fitted(lambda w: fused(traced(name, w, **fields)), far, windows), fused(traced(name, far, **fields)))


def test_another_side_of_a_window_is_noticed() -> None:
    graph = fitted(lambda w: traced("gemma3", w, sliding_window=WINDOW), workload(1, 1, 40), (WINDOW,))
    assert graph.differs(fold(traced("gemma3", workload(1, 1, 200), sliding_window=WINDOW))) is not None


def test_experts_hit_are_those_of_the_trace_at_every_batch() -> None:
    graph = fitted(lambda w: traced("mixtral", w), workload(2, 1, 50))
    for batch in (2, 3, 5, 17, 64):
        w = workload(batch, 1, 50)
        same(graph, traced("mixtral", w))
        reads = [t.weight_read for op, t in zip(graph.at(w).ops, graph.at(w).traffic, strict=True) if op.routing]
        full = 2 * 3 * 32 * 48 * 4  # up, gate and down of four experts, bfloat16
        assert sum(reads) == pytest.approx(full * (1 - 0.5**batch))


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 300), st.integers(2, 5000), st.sampled_from([0, 5, 3000]), st.sampled_from([4, 8, 128]))
def test_a_graph_by_hand_everywhere(batch: int, query: int, context: int, experts: int) -> None:
    w = workload(batch, query, context)

    def make(one: Workload) -> OpGraph:
        return decoder(one, experts=experts, layers=3)

    graph = fitted(make, w)
    same(graph, make(w))
    routing = [op.routing for op in graph.at(w).ops if op.routing]
    assert [r.tokens for r in routing] == [batch * query]
    assert routing[0].hit == pytest.approx(float(experts_hit(experts, 2, batch * query)))


def test_a_gather_reads_no_more_rows_than_there_are() -> None:
    graph = fitted(lambda w: decoder(w, vocabulary=2000), workload(1, 5000, 0))
    for query in (100, 1999, 2000, 2001, 5000):
        w = workload(1, query, 0)
        same(graph, decoder(w, vocabulary=2000))
        assert graph.at(w).traffic[0].weight_read == min(query, 2000) * ROW
        assert graph.amounts(Sweep.of([w]))["weight_read"][0, 0] == min(query, 2000) * ROW


def test_amounts_are_those_of_the_graph_at_each_workload() -> None:
    ws = [workload(b, q, c) for b, q, c in product((2, 3, 64), (2, 9, 700), (1, 33, 9999))]
    graph = fitted(lambda w: decoder(w, experts=16, vocabulary=900), ws[-1])
    found = graph.amounts(Sweep.of(ws))
    for i, w in enumerate(ws):
        at = graph.at(w)
        for name, amount in found.items():
            rows = at.traffic if name in CLASSES else at.ops
            assert amount[i] == pytest.approx([getattr(row, name) for row in rows], rel=1e-12), name


def chunked(w: Workload, chunk: int) -> OpGraph:
    """A loop over chunks, each with work on all of a chunk, and one operation over the padded whole."""
    b = GraphBuilder(w)
    chunks = -(-w.query_tokens // chunk)
    for i in range(chunks):
        b.op("matmul", {"x": chunk * w.batch}, {f"y{i}": 8 * w.batch}, "scan", matrix=chunk**2 * w.batch)
        b.op("pointwise", {f"y{i}": 8 * w.batch}, {f"z{i}": 8 * w.batch}, "scan", vector=w.batch)
    b.op("copy", {f"z{i}": 8 * w.batch for i in range(chunks)}, {"out": 8 * chunks * w.batch}, "scan")
    b.op("pointwise", {"out": w.batch * w.query_tokens * (chunks * chunk - w.query_tokens + 1)}, {"end": 1})
    return b.graph()


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([8, 16, 64]), st.integers(4, 40), st.integers(0, 63), st.integers(1, 4))
def test_loops_over_chunks_have_a_count_in_chunks(chunk: int, chunks: int, rest: int, batch: int) -> None:
    w = workload(batch, chunk * chunks + rest % chunk, 0)
    graph = fitted(lambda one: chunked(one, chunk), w.model_copy(update={"query_tokens": 10**6}), chunk=chunk)
    same(graph, chunked(w, chunk))
    assert graph.at(w).ops[0].count == -(-w.query_tokens // chunk)
    assert graph.amounts(Sweep.of([w]))["count"][0].tolist() == [op.count for op in graph.at(w).ops]


def test_what_is_no_polynomial_is_noticed() -> None:
    def make(w: Workload) -> OpGraph:
        b = GraphBuilder(w)
        b.op("pointwise", {"x": w.query_tokens**3}, {"y": 1}, vector=w.query_tokens)
        return b.graph()

    graph = fitted(make, workload(1, 100, 0))
    unlike = graph.differs(fold(make(workload(1, 100, 0))))
    assert unlike is not None and "2 sizes are not polynomials" in unlike  # the tensor and its read


def test_another_list_of_operations_is_noticed() -> None:
    graph = fitted(decoder, workload(1, 100, 0))
    for other, said in (
        (decoder(workload(1, 100, 0), steps=9), "operations at"),
        (decoder(workload(1, 100, 0), experts=4), "is layers.0"),
        (decoder(workload(1, 100, 7)), "is layers.0"),
    ):
        unlike = graph.differs(fold(other))
        assert unlike is not None and said in unlike


def test_samples_must_be_alike_and_tell_the_monomials_apart() -> None:
    one, other = (fold(decoder(workload(1, q, 0))) for q in (11, 13))
    with pytest.raises(Mismatch, match="do not determine"):
        fit([one, one], [(0, 0, 0, 0), (0, 1, 0, 0)])
    with pytest.raises(Mismatch, match="do not determine"):
        fit([one, other], [(0, 0, 0, 0), (0, 1, 0, 0), (0, 2, 0, 0)])
    with pytest.raises(Mismatch, match="operations at"):
        fit([one, fold(decoder(workload(1, 13, 0), steps=9))], [(0, 0, 0, 0), (0, 1, 0, 0)])


def test_a_fitted_graph_survives_a_file() -> None:
    graph = fitted(lambda w: decoder(w, experts=8), workload(3, 70, 40))
    again = ParametricGraph.model_validate_json(graph.model_dump_json())
    w = workload(9, 1234, 5678)
    assert again == graph and again.at(w) == graph.at(w)


def test_a_sweep_holds_its_workloads() -> None:
    ws = [workload(1, 2, 3), workload(4, 5, 6)]
    sweep = Sweep.of(ws)
    assert len(sweep) == 2 and len(Sweep.of([])) == 0
    taken = sweep.take(np.array([1]))
    assert (taken.batch[0], taken.query[0], taken.context[0]) == (4, 5, 6)


def test_the_model_is_traced_as_its_own_folded_graph() -> None:
    w = workload(1, 21, 0)
    assert model_graphs("llama").folded(w) == fold(traced("llama", w))
