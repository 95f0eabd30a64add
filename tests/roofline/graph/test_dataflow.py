"""Copies that an ideal implementation avoids: of the cache, and pure data movement."""

import pytest
from graphs import GraphBuilder, check_invariants, group_with, groups_of, named, sizes

from roofline.fusion.fuse import fuse

# the cache


def test_a_rewritten_cache_becomes_an_append():
    b = GraphBuilder()
    b.weight("w", 50)
    b.kv("old", 90)
    b.kv("new", 100)
    b.op("matmul", reads=["w"], writes={"k": 10})
    b.op("copy", reads=["old", "k"], writes={"new": 100})
    b.activation("q", 10)
    b.op("attention", reads=["q", "new"], writes={"o": 10})
    graph = b.graph()
    project, attend = fuse(graph)
    assert (project.ops, attend.ops) == ((0, 1), (2,))
    assert sizes(graph, project.reads) == {"w": 50}
    assert sizes(graph, project.writes) == {"new": 10}
    assert sizes(graph, attend.reads) == {"q": 10, "new": 100}
    check_invariants(graph)


def test_a_rolled_window_becomes_an_append():
    b = GraphBuilder()
    b.weight("w", 50)
    b.kv("cache", 100)
    b.op("matmul", reads=["w"], writes={"k": 10})
    b.op("copy", reads=["cache"], writes={"rolled": 100})
    b.op("copy", reads={"k": 10, "where": 8}, writes={"rolled": 10})
    b.op("copy", reads={"rolled": 100}, writes={"cache": 100})
    b.op("attention", reads=["cache"], writes={"o": 10})
    graph = b.graph()
    groups = fuse(graph)
    assert sum(a.bytes for g in groups for a in g.writes if graph.tensors[a.tensor].name == "cache") == 10
    # attention, which the append joins, need not read back what it appends
    assert sum(a.bytes for g in groups for a in g.reads if graph.tensors[a.tensor].name == "cache") == 90
    assert all(graph.tensors[a.tensor].name != "rolled" or a.bytes == 10 for g in groups for a in g.writes)
    check_invariants(graph)


def test_a_new_cache_is_not_cleared_first():
    b = GraphBuilder()
    b.kv("cache", 100)
    b.op("copy", writes={"cache": 100})
    b.op("matmul", reads={"w": 50}, writes={"k": 10})
    b.op("copy", reads=["k"], writes={"cache": 10})
    b.op("attention", reads={"cache": 10}, writes={"o": 5})
    graph = b.graph()
    assert sum(a.bytes for g in fuse(graph) for a in g.writes if graph.tensors[a.tensor].name == "cache") == 10
    check_invariants(graph)


def test_the_first_fill_of_a_cache_is_written_whole():
    b = GraphBuilder()
    b.weight("w", 50)
    b.kv("new", 100)
    b.op("matmul", reads=["w"], writes={"k": 100})
    b.op("copy", reads=["k"], writes={"new": 100})
    graph = b.graph()
    assert sizes(graph, fuse(graph)[0].writes) == {"new": 100}
    check_invariants(graph)


# pure data movement


@pytest.mark.parametrize("anchor", ["attention", "matmul"])
def test_repeated_heads_are_read_at_their_source(anchor):
    b = GraphBuilder()
    b.kv("k", 25)
    b.activation("q", 10)
    b.op("copy", reads=["k"], writes={"k4": 100})
    b.op("copy", reads=["k4"], writes={"k4t": 100})  # a chain: contiguous after repeat
    b.op(anchor, reads=["q", "k4t"], writes={"o": 10})
    graph = b.graph()
    last = group_with(graph, 2)
    assert sizes(graph, last.reads) == {"q": 10, "k": 25}
    assert sum(a.bytes for g in fuse(graph) for a in (*g.reads, *g.writes)) == 45
    check_invariants(graph)


def test_copies_of_the_cache_vanish_but_equal_copies_of_activations_are_written_once():
    b = GraphBuilder()
    b.kv("k", 25)
    b.op("copy", reads=["k"], writes={"kc": 25})
    b.op("attention", reads=["kc"], writes={"o": 10})
    b.op("copy", reads=["o"], writes={"oc": 10})
    b.op("matmul", reads=["oc"], writes={"y": 5})
    graph = b.graph()
    traffic = [(sizes(graph, g.reads), sizes(graph, g.writes)) for g in fuse(graph)]
    assert ({"k": 25}, {"oc": 10}) in traffic  # attention writes the layout that the matmul reads
    assert ({"oc": 10}, {"y": 5}) in traffic
    check_invariants(graph)


def test_what_is_only_read_through_a_copy_is_still_written():
    b = GraphBuilder()
    b.weight("w", 50)
    b.op("matmul", reads={"in": 10, "w": 50}, writes={"x": 20})
    b.op("copy", reads=["x"], writes={"x2": 40})
    b.op("matmul", reads=["x2", "w"], writes={"y": 10})
    graph = b.graph()
    first, second = fuse(graph)
    assert sizes(graph, first.writes) == {"x": 20}
    assert sizes(graph, second.reads) == {"x": 20, "w": 50}
    check_invariants(graph)


def test_experts_read_their_tokens_and_biases_at_the_source():
    b = GraphBuilder()
    b.weight("router", 30)
    b.weight("experts", 500)
    b.weight("bias", 24)
    b.op("matmul", reads={"x": 40, "router": 30}, writes={"choice": 8})
    b.op("copy", reads={"x": 40, "choice": 8}, writes={"rows": 160})  # each token for 4 experts
    b.op("copy", reads={"bias": 24, "choice": 8}, writes={"biases": 160})
    b.op("grouped_matmul", reads=["rows", "experts"], writes={"y": 160}, matrix=9)
    b.op("pointwise", reads=["y", "biases"], writes={"z": 160}, vector=1)
    graph = named(b.graph(), {1: "aten::index", 2: "aten::index"})
    first, second = fuse(graph)
    assert second.ops == (3, 4)
    assert sizes(graph, first.writes) == {"choice": 8}
    assert sizes(graph, second.reads) == {"x": 40, "choice": 8, "experts": 500, "bias": 24}
    assert sizes(graph, second.writes) == {"z": 160}
    check_invariants(graph)


def test_few_rows_of_much_are_gathered_once():
    b = GraphBuilder()
    b.op("matmul", reads={"in": 10}, writes={"x": 400})
    b.op("copy", reads={"x": 40, "numbers": 8}, writes={"rows": 40})
    b.op("matmul", reads=["rows"], writes={"y": 10})
    graph = named(b.graph(), {1: "aten::index"})
    assert sizes(graph, group_with(graph, 2).reads) == {"rows": 40}
    check_invariants(graph)


def test_a_slice_of_a_copy_is_not_read_at_a_larger_source():
    b = GraphBuilder()
    b.kv("k", 25)
    b.op("copy", reads=["k"], writes={"k4": 100})
    b.op("attention", reads={"k4": 20}, writes={"o": 10})
    b.op("attention", reads={"k4": 20}, writes={"p": 10})
    graph = b.graph()
    assert sizes(graph, group_with(graph, 1).reads) == {"k4": 20}
    check_invariants(graph)


def test_what_an_anchorless_group_reads_may_change_before_its_anchor_comes():
    b = GraphBuilder()
    b.activation("x", 5)
    b.op("pointwise", reads=["x"], writes={"y": 5})
    b.op("matmul", reads={"w": 5}, writes={"x": 5})
    b.op("matmul", reads=["y"], writes={"z": 5})
    assert groups_of(b.graph()) == [(0,), (1,), (2,)]
    check_invariants(b.graph())


def test_a_copy_is_not_read_through_when_its_source_changes_in_between():
    b = GraphBuilder()
    b.kv("k", 25)
    b.op("copy", reads=["k"], writes={"k4": 100})
    b.op("pointwise", reads={"q": 1}, writes={"k": 25})
    b.op("attention", reads=["k4"], writes={"o": 10})
    graph = b.graph()
    assert sizes(graph, group_with(graph, 2).reads) == {"k4": 100}
    check_invariants(graph)
