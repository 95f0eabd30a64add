"""A folded graph against the graph it came from."""

import pytest
from graphs import GraphBuilder
from hypothesis import given, settings
from hypothesis import strategies as st
from parametric_graphs import decoder, totals, traced, workload
from tiny import layered

from profiler.models.graphs import ModelGraphs, Tracing
from roofline.fusion.fuse import fused
from roofline.graph.fold import LEAST_REPEATS, fold
from roofline.graph.memory import footprint
from roofline.graph.op import Op, OpGraph

FAMILIES = (
    "llama", "gpt2", "mixtral", "gemma3", "deepseek_v3", "mamba", "mamba2", "qwen3_next", "gpt_oss", "falcon",
)  # fmt: skip
PREFILL, DECODE, CHUNK = workload(2, 21, 0), workload(3, 1, 17), workload(1, 13, 20)


def same_totals(folded: OpGraph, graph: OpGraph) -> None:
    assert totals(folded) == pytest.approx(totals(graph), rel=1e-12)
    one, whole = footprint(folded), footprint(graph)
    assert (folded.weight_bytes, one.weights, one.kv_cache) == (whole.weights, whole.weights, whole.kv_cache)
    OpGraph.model_validate(folded.model_dump())  # every access has its tensor
    assert sum(op.count for op in folded.ops) == sum(op.count for op in graph.ops)


@pytest.mark.parametrize("name", FAMILIES)
def test_totals_of_real_models_are_kept(name: str) -> None:
    for w in [PREFILL, DECODE, CHUNK]:
        graph = traced(name, w)
        for one in (graph, fused(graph)):
            folded = fold(one)
            same_totals(folded, one)
            assert fold(folded).ops == folded.ops, w


@pytest.mark.parametrize(
    ("name", "layers"),
    [("llama", 6), ("gemma2", 6), ("gemma2", 7), ("gemma3", 7), ("gpt_oss", 6), ("mixtral", 6), ("deepseek_v3", 6)],
)
def test_the_fused_memory_of_many_layers_is_kept(name: str, layers: int) -> None:
    """Of two kinds of layers that take turns too; but for numbers of 8 bytes that later layers bring along."""
    for w in [workload(2, 96, 0), DECODE, workload(1, 13, 40)]:
        graph = fused(ModelGraphs(layered(name, layers), name, Tracing("bfloat16")).whole(w))
        folded = fold(graph)
        assert len(folded.ops) < 0.8 * len(graph.ops), w
        assert footprint(folded).activations == pytest.approx(footprint(graph).activations, abs=8 * layers), w
        assert footprint(folded).peak == pytest.approx(footprint(graph).peak, abs=8 * layers), w


def test_what_one_layer_makes_for_the_next_is_held_until_then() -> None:
    """Layers of three kinds in turn, and one of its own that reads what the first kind makes."""
    b = GraphBuilder()
    b.activation("x", 10)
    last = "x"
    for i, size in enumerate((20, 30, 31, 20, 30, 31, 20, 40)):
        b.op("matmul", [last], {f"h{i}": size}, f"layers.{i}", matrix=size)
        last = f"h{i}"
    b.op("matmul", [last], {"y": 5}, "head", matrix=5)
    assert footprint(b.graph()).activations == 30 + 31
    assert footprint(fold(b.graph())).activations == 30 + 31


@pytest.mark.parametrize("name", ["llama", "gpt2", "falcon", "mixtral"])
def test_layers_that_are_alike_become_one(name: str) -> None:
    graph = traced(name, DECODE)
    folded = fold(graph)
    assert folded.layers == (1, 2)
    assert {op.count for op in folded.ops} == {1, 2}
    assert {op.path for op in folded.ops if op.count == 2} <= {op.path for op in graph.ops if ".0" in op.path}


def test_layers_of_two_kinds_become_two() -> None:
    assert fold(traced("deepseek_v3", DECODE)).layers == (2, 3)  # one is dense, two have experts


def test_an_unrolled_scan_is_as_long_as_one_step() -> None:
    graphs = [traced("mamba", workload(1, tokens, 0)) for tokens in (16, 40)]
    for more, form in ((40 - 16, lambda graph: graph), (0, fused)):  # the ideal graph runs it in one kernel
        short, long = (fold(form(graph)) for graph in graphs)
        assert len(short.ops) == len(long.ops), more
        assert {b.count - a.count for a, b in zip(short.ops, long.ops, strict=True)} == {0, more}


def test_memory_of_folded_layers_is_near() -> None:
    for w in (PREFILL, DECODE, CHUNK):
        graph = decoder(w, layers=12)
        assert footprint(fold(graph)).peak == pytest.approx(footprint(graph).peak, rel=0.02)


def test_results_of_a_loop_that_are_stacked_stay_one_tensor_of_their_size() -> None:
    graph = decoder(workload(2, 9, 0), layers=1, steps=50)
    folded = fold(graph)
    (stack,) = [op for op in folded.ops if op.path == "scan" and op.kind == "copy"]
    (read,) = stack.reads
    assert read.bytes == folded.tensors[read.tensor].storage_bytes == 50 * 16
    same_totals(folded, graph)


def test_few_repetitions_are_no_loop() -> None:
    for times in range(1, 8):
        b = GraphBuilder()
        for i in range(times):
            b.op("pointwise", writes={f"t{i}": 4}, vector=1)
        assert len(fold(b.graph()).ops) == (times if times < LEAST_REPEATS else 1)


def test_steps_in_other_modules_or_of_other_sizes_are_not_one_loop() -> None:
    b = GraphBuilder()
    for i in range(8):
        b.op("pointwise", writes={f"t{i}": 4}, path=f"part{i}")
    for i in range(8):
        b.op("pointwise", writes={f"u{i}": i + 1})
    assert len(fold(b.graph()).ops) == 16


def test_two_results_that_take_turns_are_counted_once() -> None:
    b = GraphBuilder()
    for i in range(8):
        one, other = ("a", "b") if i % 2 else ("b", "a")
        b.op("pointwise", {}, {one: 10}, vector=1)
        b.op("copy", {one: 10}, {other: 10}, vector=1)
    b.op("copy", {"a": 10, "b": 10}, {"c": 20})
    same_totals(fold(b.graph()), b.graph())


def test_weights_that_are_said_to_be_there_are_not_counted_again() -> None:
    assert fold(decoder(DECODE).model_copy(update={"weight_bytes": 12345})).weight_bytes == 12345


def test_an_empty_graph_folds_to_itself() -> None:
    assert fold(GraphBuilder().graph()).ops == ()


@st.composite
def looping(draw: st.DrawFn) -> OpGraph:
    """Straight operations, and loops whose steps write new tensors or the same ones, in modules and layers."""
    b = GraphBuilder()
    b.weight("w", 100)
    b.kv("k", 50)
    names = ["w", "k"]
    paths = st.sampled_from(["", "head", "layers.0", "layers.1.mlp", "layers.2.mlp", "layers.2"])
    for part in range(draw(st.integers(1, 4))):
        path, repeats = draw(paths), draw(st.sampled_from([1, 2, 4, 5, 9]))
        step = draw(
            st.lists(
                st.tuples(
                    st.lists(st.tuples(st.sampled_from(names), st.integers(1, 50)), max_size=3),
                    st.lists(st.sampled_from(["new", "shared", "turns", "k"]), max_size=2, unique=True),
                    st.integers(0, 2),
                ),
                min_size=1,
                max_size=4,
            )
        )
        for i in range(repeats):
            for j, (reads, writes, work) in enumerate(step):
                made = {"new": f"n{part}.{i}.{j}", "shared": f"s{part}", "turns": f"t{part}.{(i + j) % 2}", "k": "k"}
                written = {made[way]: 8 for way in writes}
                b.op("pointwise", dict(reads), written, path, matrix=work, vector=3 * work)
                names += [name for name in written if name not in names]
        if draw(st.booleans()):
            b.op("copy", dict.fromkeys(names[-12:], 8), {f"stack{part}": 96}, path)
    return b.graph()


@settings(max_examples=150, deadline=None)
@given(looping())
def test_totals_of_any_loops_are_kept(graph: OpGraph) -> None:
    folded = fold(graph)
    assert totals(folded) == pytest.approx(totals(graph), rel=1e-12)
    assert sum(op.count for op in folded.ops) == len(graph.ops)
    assert footprint(folded).weights == footprint(graph).weights
    OpGraph.model_validate(folded.model_dump())
    for tensor in folded.tensors:
        accesses = [a.bytes for op in folded.ops for a in (*op.reads, *op.writes) if a.tensor == tensor.id]
        assert tensor.role != "activation" or tensor.storage_bytes >= max(accesses)


@settings(max_examples=50, deadline=None)
@given(looping(), st.integers(2, 5))
def test_a_graph_said_again_in_other_layers_is_said_once(graph: OpGraph, times: int) -> None:
    def moved(op: Op, layer: int) -> Op:
        return op.model_copy(update={"path": f"blocks.{layer}.{op.path.replace('layers.', 'part')}".rstrip(".")})

    ops = tuple(moved(op, layer) for layer in range(times) for op in graph.ops)
    alone = graph.model_copy(update={"ops": tuple(moved(op, 0) for op in graph.ops)})
    folded = fold(graph.model_copy(update={"ops": ops}))
    assert len(folded.ops) == len(fold(alone).ops)
    assert totals(folded) == pytest.approx({name: times * value for name, value in totals(graph).items()}, rel=1e-12)
