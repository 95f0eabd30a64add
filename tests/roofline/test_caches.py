import numpy as np
import pytest
from graphs import GraphBuilder, peaks
from hypothesis import given, settings
from hypothesis import strategies as st

from roofline.caches import Touches, level_bytes
from roofline.graph.op import Access, OpGraph


def split(graph: OpGraph, state: str, *capacities: float) -> list[list[float]]:
    levels = [(f"C{i}", capacity, 1.0) for i, capacity in enumerate(capacities)] + [("DRAM", 1e12, 1.0)]
    return level_bytes(Touches.of(graph.ops, graph.tensors), peaks(levels=levels), state).tolist()


def reread(weight_bytes: int = 100) -> OpGraph:
    """x (10 bytes) is written, then `weight_bytes` of a weight are streamed, then x is read."""
    builder = GraphBuilder()
    builder.weight("w", weight_bytes)
    builder.op("pointwise", writes={"x": 10})
    builder.op("reduction", reads=["w"], writes={"y": 1})
    builder.op("pointwise", reads=["x", "y"], writes={"out": 5})
    return builder.graph()


def test_a_tensor_read_again_after_other_bytes_needs_room_for_both():
    # distance of x: w (100) + y (1); with x itself 111
    assert split(reread(), "in situ", 111) == [[10, 0], [1, 100], [11, 5]]
    assert split(reread(), "in situ", 110) == [[0, 10], [1, 100], [1, 15]]


def test_a_weight_comes_back_from_the_last_pass_if_the_whole_pass_fits():
    # between two reads of w: y 1, x 10 twice touched but distinct once, out 5: 16; with w itself 116
    assert split(reread(), "in situ", 116)[1] == [101, 0]
    assert split(reread(), "in situ", 115)[1] == [1, 100]


def test_three_levels_take_the_smallest_that_holds_it():
    assert split(reread(), "in situ", 12, 111) == [[0, 10, 0], [1, 0, 100], [1, 10, 5]]


def test_a_part_read_again_leaves_the_rest_further_away():
    builder = GraphBuilder()
    builder.op("pointwise", writes={"x": 100})
    builder.op("pointwise", reads={"x": 10}, writes={"a": 1})  # the first tenth becomes recent
    builder.op("pointwise", reads=["x"], writes={"b": 1})
    graph = builder.graph()
    # first 10 of x: distance 1 (a); last 90: distance 1 + 10
    assert split(graph, "in situ", 11)[2] == [10, 91]
    assert split(graph, "in situ", 101)[2] == [100, 1]


def test_views_of_one_tensor_are_one_access():
    b = GraphBuilder()
    b.op("pointwise", writes={"qkv": 30, "o": 10})
    b.op("attention", reads={"qkv": 30}, writes={"z": 10})
    whole = b.graph()
    (write, attend), thirds = whole.ops, [Access(tensor=b.id("qkv"), bytes=10)] * 3
    graph = whole.model_copy(update={"ops": (write, attend.model_copy(update={"reads": tuple(thirds)}))})
    assert split(graph, "in situ", 40) == split(whole, "in situ", 40) == [[30, 10], [30, 10]]
    assert split(graph, "in situ", 39) == [[0, 40], [0, 40]]
    assert split(graph, "warm", 40)[1] == [40, 0]
    twice = whole.model_copy(update={"ops": (write, attend.model_copy(update={"reads": (*attend.reads, thirds[0])}))})
    assert split(twice, "in situ", 39)[1] == [10, 40]  # the 10 bytes seen again are near


def test_writes_that_are_overwritten_or_never_read_go_to_main_memory():
    builder = GraphBuilder()
    builder.op("pointwise", writes={"x": 10})
    builder.op("pointwise", writes={"x": 10})
    builder.op("pointwise", reads=["x"], writes={"out": 3})
    assert split(builder.graph(), "in situ", 1000) == [[0, 10], [10, 0], [10, 3]]


def test_a_write_read_in_the_next_pass_is_kept_for_it():
    builder = GraphBuilder()
    builder.kv("state", 10)
    builder.op("pointwise", reads=["state"], writes={"a": 1})
    builder.op("pointwise", reads=["a"], writes={"state": 10})
    assert split(builder.graph(), "in situ", 100) == [[11, 0], [11, 0]]


def test_cold_and_warm():
    builder = GraphBuilder()
    builder.weight("w", 100)
    builder.op("matmul", reads=["w"], writes={"y": 20})
    builder.op("pointwise", reads=["y"], writes={"y": 20})  # in place: 20 distinct bytes, 40 moved
    graph = builder.graph()
    assert split(graph, "cold", 1000) == [[0, 120], [0, 40]]
    assert split(graph, "warm", 119) == [[0, 120], [40, 0]]
    assert split(graph, "warm", 20, 120) == [[0, 120, 0], [40, 0, 0]]
    with pytest.raises(ValueError, match="tepid"):
        split(graph, "tepid", 1)


def test_layers_that_were_not_traced_push_weights_out_but_not_activations():
    def graph(count: float) -> OpGraph:
        builder = GraphBuilder()
        builder.weight("w", 100)
        builder.op("pointwise", writes={"x": 10})
        builder.op("matmul", reads=["x", "w"], writes={"y": 10}, count=count)
        builder.op("pointwise", reads=["y"], writes={"out": 1})
        return builder.graph()

    # w: distance y 10 + out 1 + x 10 = 21, with itself 121; four more layers bring 400 bytes of weights
    assert split(graph(1), "in situ", 121)[1] == [120, 0]
    assert split(graph(5), "in situ", 520)[1] == [20, 100]
    assert split(graph(5), "in situ", 521)[1] == [120, 0]
    assert split(graph(5), "in situ", 121)[2] == [10, 1]


def test_kv_written_and_read_within_a_layer_is_near_however_many_layers_there_are():
    builder = GraphBuilder()
    builder.op("copy", reads={"new": 1}, writes={"k": 10}, count=50)
    builder.kv("k", 10)
    builder.op("attention", reads=["k"], writes={"o": 1}, count=50)
    assert split(builder.graph(), "in situ", 10)[1] == [10, 1]


steps = st.lists(
    st.tuples(
        st.lists(st.tuples(st.integers(0, 5), st.integers(1, 20)), max_size=3, unique_by=lambda a: a[0]),
        st.lists(st.tuples(st.integers(0, 5), st.integers(1, 20)), max_size=2, unique_by=lambda a: a[0]),
    ),
    min_size=1,
    max_size=8,
)


@given(steps, st.integers(1, 400), st.sampled_from(["cold", "warm", "in situ"]))
@settings(deadline=None)
def test_every_byte_is_served_once(sequence, capacity, state):
    builder = GraphBuilder()
    for reads, writes in sequence:
        builder.op("pointwise", reads={f"t{t}": b for t, b in reads}, writes={f"t{t}": b for t, b in writes})
    graph = builder.graph()
    served = np.array(split(graph, state, capacity)).sum(axis=1)
    assert served.tolist() == [t.total for t in graph.traffic]


@given(steps, st.integers(1, 160))
@settings(max_examples=60, deadline=None)
def test_distances_equal_those_of_counting_byte_by_byte(sequence, capacity):
    """The stack against a list of single bytes, most recent first, over two passes."""
    builder = GraphBuilder()
    for reads, writes in sequence:
        builder.op("pointwise", reads={f"t{t}": b for t, b in reads}, writes={f"t{t}": b for t, b in writes})
    graph = builder.graph()
    recent: dict[tuple[int, int], int] = {}  # (tensor, byte) -> time of its last touch
    unread: dict[tuple[int, int], int] = {}  # (tensor, byte) -> operation that wrote it, if nothing has read it
    hits = [0.0] * len(graph.ops)
    now = 0
    for again in (False, True):
        for i, op in enumerate(graph.ops):
            for access, is_read in [*((a, True) for a in op.reads), *((a, False) for a in op.writes)]:
                now += 1
                stretch = [(access.tensor, byte) for byte in range(access.bytes)]
                if is_read:
                    times = [recent.get(byte, -1) for byte in stretch]
                    for byte, time in zip(stretch, times, strict=True):
                        distance = sum(1 for t in recent.values() if t > time)
                        if again and distance + times.count(time) <= capacity:
                            hits[i] += 1
                            if byte in unread:
                                hits[unread[byte]] += 1
                for byte in stretch:
                    recent[byte] = now
                    unread.pop(byte, None)
                    if not is_read:
                        unread[byte] = i
    assert np.array(split(graph, "in situ", capacity))[:, 0].tolist() == hits
