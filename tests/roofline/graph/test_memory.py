from typing import Any

import numpy as np
import pytest
from graphs import GraphBuilder
from hypothesis import given
from hypothesis import strategies as st

from roofline.fusion.fuse import fused
from roofline.graph.fold import fold
from roofline.graph.memory import Liveness, footprint, largest, storage_bytes
from roofline.graph.op import Access, OpGraph, Tensor


def peak_profile(graph: OpGraph) -> np.ndarray:
    return Liveness.of(graph).held(storage_bytes(graph))


def changed(graph: OpGraph, **fields: dict[str, Any]) -> OpGraph:
    """The graph with fields of the tensors of these names changed."""
    tensors = tuple(t.model_copy(update=fields.get(str(t.name), {})) for t in graph.tensors)
    return graph.model_copy(update={"tensors": tensors})


def chain() -> GraphBuilder:
    """x → y → z → out, over a weight, and a weight that nothing uses."""
    b = GraphBuilder()
    b.weight("w", 100)
    b.weight("spare", 7)
    b.activation("x", 10)
    b.op("matmul", reads=["x", "w"], writes={"y": 20})
    b.op("pointwise", reads=["y"], writes={"z": 30})
    b.op("pointwise", reads=["z"], writes={"out": 5})
    return b


def test_an_activation_lives_from_its_first_write_to_its_last_read() -> None:
    graph = chain().graph()
    assert peak_profile(graph).tolist() == [107 + 10 + 20, 107 + 20 + 30, 107 + 30 + 5]
    found = footprint(graph)
    assert (found.weights, found.kv_cache, found.activations, found.peak) == (107, 0, 50, 157)


def test_what_python_held_is_held() -> None:
    graph = changed(chain().graph(), x={"held": (-1, 3)}, y={"held": (0, 0)}, z={"held": (1, 2)}, out={"held": (2, 3)})
    assert peak_profile(graph).tolist() == [107 + 10 + 20, 107 + 10 + 30, 107 + 10 + 30 + 5]


def test_memory_that_an_operation_takes_for_itself_counts_during_it() -> None:
    graph = chain().graph()
    extra = Tensor(id=len(graph.tensors), storage_bytes=1000, role="activation", name="workspace", held=(1, 1))
    graph = graph.model_copy(update={"tensors": (*graph.tensors, extra)})
    assert peak_profile(graph).tolist() == [137, 1157, 142]


def decode(count: float = 1) -> OpGraph:
    """Two operations around one layer, whose cache of 80 bytes is copied to append 8; the layer runs `count` times."""
    b = GraphBuilder()
    b.weight("w", 100)
    b.weight("head", 40)
    b.kv("old", 80)
    b.kv("new", 88)
    b.activation("tokens", 1)
    b.op("embedding", reads=["tokens"], writes={"x": 8})
    b.op("matmul", reads=["x", "w"], writes={"k": 8}, count=count, path="layers.0")
    b.op("copy", reads=["old", "k"], writes={"new": 88}, count=count, path="layers.0")
    b.op("attention", reads=["x", "new"], writes={"y": 8}, count=count, path="layers.0")
    b.op("matmul", reads=["y", "head"], writes={"logits": 4})
    graph = b.graph()
    return changed(graph, old={"name": "0.keys"}, new={"name": "0.keys"})


def test_a_cache_that_is_copied_is_there_twice_for_one_operation() -> None:
    expected = [140 + 80 + 1 + 8, 140 + 80 + 8 + 8, 140 + 80 + 88 + 8 + 8, 140 + 88 + 8 + 8, 140 + 88 + 8 + 4]
    by_dataflow = decode()
    as_held = changed(by_dataflow, **{"0.keys": {"held": (-1, 2)}})
    new = next(t for t in as_held.tensors if t.storage_bytes == 88)
    tensors = tuple(t.model_copy(update={"held": (2, 5)}) if t is new else t for t in as_held.tensors)
    for one in (by_dataflow, as_held.model_copy(update={"tensors": tensors})):
        assert peak_profile(one).tolist() == expected
        found = footprint(one)
        assert (found.weights, found.kv_cache, found.peak) == (140, 88, 140 + 80 + 88 + 8 + 8)
        assert found.activations == 80 + 8 + 8  # the old cache, beside what the attention needs


def test_a_fused_graph_appends_to_its_cache_in_place() -> None:
    found = footprint(fused(decode()))
    assert (found.weights, found.kv_cache) == (140, 88)
    assert found.peak <= 140 + 88 + 8 + 8


def test_a_folded_layer_stands_for_the_weights_and_caches_of_all() -> None:
    found = footprint(decode(count=5))
    assert (found.weights, found.kv_cache) == (5 * 100 + 40, 5 * 88)
    assert found.activations == 80 + 8 + 8  # activations and copies of one layer at a time
    others = 540 + 4 * 88  # in the last repetition the other caches have grown
    assert peak_profile(decode(count=5)).tolist() == [
        540 + 5 * 80 + 9, others + 80 + 16, others + 80 + 88 + 16, others + 88 + 16, others + 88 + 12,
    ]  # fmt: skip


def test_an_unused_weight_in_a_folded_layer_is_there_in_each() -> None:
    b = GraphBuilder()
    b.weight("layers.0.mlp.spare", 10)
    b.weight("spare", 3)
    b.weight("layers.0.mlp.up.weight", 100)
    b.op("matmul", reads=["layers.0.mlp.up.weight"], writes={"y": 1}, count=6, path="layers.0.mlp.up")
    b.op("pointwise", reads=["y"], writes={"z": 1})
    assert footprint(b.graph()).weights == 6 * 110 + 3


def layered(layers: int) -> OpGraph:
    b = GraphBuilder()
    b.activation("x", 16)
    last = "x"
    for i in range(layers):
        path = f"model.layers.{i}"
        b.weight(f"{path}.w", 100)
        b.kv(f"{i}.keys", 64)
        b.op("matmul", reads=[last, f"{path}.w"], writes={f"h{i}": 24}, path=path)
        b.op("copy", reads=[f"h{i}"], writes={f"{i}.keys": 8}, path=path)
        b.op("attention", reads=[f"h{i}", f"{i}.keys"], writes={f"x{i}": 16}, path=path)
        last = f"x{i}"
    b.weight("head", 50)
    b.op("matmul", reads=[last, "head"], writes={"logits": 12}, path="head")
    return b.graph()


def test_a_folded_graph_has_the_weights_and_the_cache_of_the_whole() -> None:
    for layers in [1, 2, 9]:
        whole, folded = footprint(layered(layers)), footprint(fold(layered(layers)))
        assert (
            (folded.weights, folded.kv_cache) == (whole.weights, whole.kv_cache) == (100 * layers + 50, 64 * layers)
        ), layers


def test_a_graph_without_operations_needs_its_weights() -> None:
    b = GraphBuilder()
    b.weight("w", 5)
    assert footprint(b.graph()).model_dump() == {"weights": 5, "kv_cache": 0, "activations": 0, "peak": 5}


@st.composite
def graphs(draw: st.DrawFn) -> OpGraph:
    b = GraphBuilder()
    names = [f"t{i}" for i in range(draw(st.integers(2, 8)))]
    for name in names:
        {"weight": b.weight, "kv": b.kv, "activation": b.activation}[
            draw(st.sampled_from(["weight", "kv", "activation", "activation"]))
        ](name, draw(st.integers(0, 100)))
    for _ in range(draw(st.integers(1, 8))):
        reads = draw(st.lists(st.sampled_from(names), unique=True, max_size=3))
        writes = draw(st.lists(st.sampled_from(names), unique=True, max_size=2))
        b.op("pointwise", reads=dict.fromkeys(reads, 0), writes=dict.fromkeys(writes, 0))
    return b.graph()


def operands(graph: OpGraph) -> list[set[int]]:
    return [{access.tensor for access in (*op.reads, *op.writes)} for op in graph.ops]


@given(graphs())
def test_every_operation_has_its_operands_and_the_parts_bound_the_peak(graph: OpGraph) -> None:
    found, profile = footprint(graph), peak_profile(graph)
    sizes = storage_bytes(graph)
    for held, touched in zip(profile, operands(graph), strict=True):
        assert held >= sizes[list(touched)].sum()
    assert found.peak == max(profile)
    assert found.weights + found.kv_cache <= found.peak <= found.weights + found.kv_cache + found.activations
    assert found.weights + found.kv_cache + found.activations <= sizes.sum()


@given(graphs())
def test_liveness_is_that_of_a_walk_backwards(graph: OpGraph) -> None:
    """The textbook's: a value is live before an operation if it is read there, or live after it and not made there."""
    activations = {t.id for t in graph.tensors if t.role == "activation"}
    always = sum(t.storage_bytes for t in graph.tensors if t.role != "activation")
    made: dict[int, int] = {}
    for i, op in enumerate(graph.ops):
        for access in op.reads:
            made.setdefault(access.tensor, -1)
        for access in op.writes:
            made.setdefault(access.tensor, i)
    needed: set[int] = set()
    expected = []
    for i, touched in reversed(list(enumerate(operands(graph)))):
        needed |= touched & activations
        needed -= {t for t in needed if made[t] > i}
        expected.append(always + sum(graph.tensors[t].storage_bytes for t in needed))
    assert peak_profile(graph).tolist() == expected[::-1]


@given(graphs(), st.data())
def test_a_further_reader_at_the_end_never_lowers_the_peak(graph: OpGraph, data: st.DataObject) -> None:
    tensor = data.draw(st.sampled_from(graph.tensors))
    reader = graph.ops[0].model_copy(update={"reads": (Access(tensor=tensor.id, bytes=0),), "writes": ()})
    longer = graph.model_copy(update={"ops": (*graph.ops, reader)})
    assert footprint(longer).peak >= footprint(graph).peak


@given(graphs(), st.integers(1, 50), st.integers(0, 50))
def test_memory_is_linear_in_the_sizes_of_tensors(graph: OpGraph, batch: int, context: int) -> None:
    """So coefficients of polynomials can be given in the place of sizes."""
    live = Liveness.of(graph)
    coefficients = np.stack([storage_bytes(graph), np.arange(len(graph.tensors), dtype=float)], axis=1)
    at = np.array([batch, context], dtype=float)
    assert (live.held(coefficients) @ at).tolist() == live.held(coefficients @ at).tolist()
    assert (live.activations(coefficients) @ at).tolist() == live.activations(coefficients @ at).tolist()


@given(st.lists(st.integers(0, 20), min_size=1, max_size=40), st.integers(0, 200))
def test_largest_is_the_last_that_fits(steps: list[int], capacity: int) -> None:
    needed = np.cumsum(steps).tolist()
    tried: list[int] = []

    def fits(n: int) -> float:
        tried.append(n)
        return float(needed[n - 1])  # an index beyond the limit would raise

    found = largest(fits, capacity, limit=len(needed))
    assert found == sum(one <= capacity for one in needed)
    assert len(tried) <= 2 * len(needed).bit_length() + 1 and min(tried) >= 1


def test_largest_needs_something_to_try() -> None:
    with pytest.raises(ValueError, match="limit is 0"):
        largest(float, 10, limit=0)
