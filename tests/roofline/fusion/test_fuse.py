"""Groups of the ideal graph: what joins an anchor, what they read and write, and in which order they run."""

from graphs import GraphBuilder, check_invariants, groups_of, named, sizes
from hypothesis import example, given, settings
from hypothesis import strategies as st

from roofline.fusion.fuse import fuse
from roofline.graph.op import AttentionModule, OpGraph


def test_pointwise_joins_the_matmul_before_it_and_its_intermediate_vanishes():
    b = GraphBuilder()
    b.weight("w", 100)
    b.activation("x", 10)
    b.op("matmul", reads=["x", "w"], writes={"y": 20}, matrix=7)
    b.op("pointwise", reads=["y"], writes={"z": 20}, vector=3)
    graph = b.graph()
    (group,) = fuse(graph)
    assert group.ops == (0, 1)
    assert (group.matrix_flops, group.vector_flops, group.dtype, group.count) == (7, 3, "float32", 1)
    assert sizes(graph, group.reads) == {"x": 10, "w": 100}
    assert sizes(graph, group.writes) == {"z": 20}  # an output of the model: nobody reads it
    check_invariants(graph)


def test_an_operation_with_two_producers_joins_the_latest_and_reads_the_other():
    b = GraphBuilder()
    b.weight("w1", 100)
    b.weight("w2", 100)
    b.activation("x", 10)
    b.op("matmul", reads=["x", "w1"], writes={"gate": 20})
    b.op("matmul", reads=["x", "w2"], writes={"up": 20})
    b.op("pointwise", reads=["gate", "up"], writes={"z": 20})
    b.op("pointwise", reads=["z", "x"], writes={"out": 10})
    graph = b.graph()
    first, second = fuse(graph)
    assert (first.ops, second.ops) == ((0,), (1, 2, 3))
    assert sizes(graph, first.writes) == {"gate": 20}
    assert sizes(graph, second.reads) == {"x": 10, "w2": 100, "gate": 20}  # x once, though two members read it
    assert sizes(graph, second.writes) == {"out": 10}
    check_invariants(graph)


def test_slices_of_one_tensor_add_up_to_no_more_than_the_tensor():
    b = GraphBuilder()
    b.activation("qkv", 30)
    b.op("pointwise", reads={"qkv": 10}, writes={"q": 10})
    b.op("pointwise", reads={"qkv": 20, "q": 10}, writes={"r": 10})
    b.op("pointwise", reads={"qkv": 30, "r": 10}, writes={"s": 10})
    graph = b.graph()
    (group,) = fuse(graph)
    assert sizes(graph, group.reads) == {"qkv": 30}


def test_a_group_writes_only_the_part_that_others_read():
    b = GraphBuilder()
    b.op("matmul", reads={"x": 5}, writes={"qkv": 30})
    b.op("attention", reads={"qkv": 10}, writes={"o": 10})
    graph = b.graph()
    assert sizes(graph, fuse(graph)[0].writes) == {"qkv": 10}
    check_invariants(graph)


def test_by_products_that_nobody_reads_are_not_written_but_outputs_are():
    b = GraphBuilder()
    b.op("norm", reads={"x": 5}, writes={"y": 30, "mean": 2})
    b.op("matmul", reads=["y"], writes={"logits": 10, "more": 3})
    graph = b.graph()
    assert [sizes(graph, g.writes) for g in fuse(graph)] == [{"logits": 10, "more": 3}]


def test_counts_do_not_mix():
    b = GraphBuilder()
    b.weight("w", 100)
    b.op("matmul", reads=["w"], writes={"y": 20}, count=8)
    b.op("norm", reads=["y"], writes={"z": 20})
    b.op("pointwise", reads=["z"], writes={"out": 20})
    graph = b.graph()
    assert [(g.ops, g.count) for g in fuse(graph)] == [((0,), 8), ((1, 2), 1)]
    check_invariants(graph)


def test_what_has_no_producer_moves_into_the_anchor_that_alone_uses_it():
    def graph(readers: int) -> OpGraph:
        b = GraphBuilder()
        b.activation("ids", 4)
        b.op("pointwise", reads=["ids"], writes={"positions": 40})
        b.op("pointwise", reads=["positions"], writes={"table": 40})
        for i in range(readers):
            b.op("embedding", reads=["table"], writes={f"e{i}": 5})
        return b.graph()

    assert groups_of(graph(1)) == [(0, 1, 2)]
    assert sizes(graph(1), fuse(graph(1))[0].reads) == {"ids": 4}
    assert groups_of(graph(2)) == [(0, 1), (2,), (3,)]
    check_invariants(graph(1))
    check_invariants(graph(2))


def test_work_on_a_weight_does_not_part_a_norm_from_the_matmul_before_it():
    b = GraphBuilder()
    b.weight("w", 100)
    b.weight("gain", 4)
    b.op("matmul", reads={"x": 10, "w": 100}, writes={"y": 20}, matrix=8)
    b.op("pointwise", reads=["y"], writes={"normed": 40}, vector=2)
    b.op("copy", reads=["gain"], writes={"wide": 8})
    b.op("pointwise", reads=["wide"], writes={"one_more": 8}, vector=1)  # Gemma: 1 + gain, in float32
    b.op("pointwise", reads=["normed", "one_more"], writes={"z": 20}, vector=1)
    b.op("matmul", reads=["z", "w"], writes={"out": 10})
    graph = b.graph()
    assert groups_of(graph) == [(0, 1, 2, 3, 4), (5,)]
    first = fuse(graph)[0]
    assert sizes(graph, first.reads) == {"x": 10, "w": 100, "gain": 4}
    assert sizes(graph, first.writes) == {"z": 20}
    check_invariants(graph)


def test_a_table_that_others_use_too_stays_where_it_is():
    b = GraphBuilder()
    b.weight("w", 100)
    b.op("matmul", reads={"x": 10, "w": 100}, writes={"y": 20})
    b.op("pointwise", reads={"positions": 4}, writes={"table": 8})
    b.op("pointwise", reads=["y", "table"], writes={"z": 20})
    b.op("matmul", reads=["z", "table"], writes={"out": 10})
    assert groups_of(b.graph()) == [(0,), (1, 2, 3)]
    check_invariants(b.graph())


def test_what_is_made_early_for_the_work_behind_an_anchor_moves_into_it():
    b = GraphBuilder()
    b.weight("w", 100)
    b.op("pointwise", reads={"a": 4}, writes={"decay": 50})
    b.op("matmul", reads={"x": 10, "w": 100}, writes={"y": 20})
    b.op("pointwise", reads=["y", "decay"], writes={"z": 20})
    graph = b.graph()
    assert groups_of(graph) == [(0, 1, 2)]
    assert sizes(graph, fuse(graph)[0].reads) == {"a": 4, "x": 10, "w": 100}
    check_invariants(graph)


def test_an_in_place_write_does_not_overtake_the_readers_of_the_old_value():
    b = GraphBuilder()
    b.weight("w", 10)
    b.op("matmul", reads=["w"], writes={"x": 5})
    b.op("matmul", reads=["x", "w"], writes={"y": 5})
    b.op("pointwise", reads=["x"], writes={"x": 5})  # overwrites what operation 1 reads
    b.op("matmul", reads=["x"], writes={"z": 5})
    assert groups_of(b.graph()) == [(0,), (1, 2), (3,)]
    check_invariants(b.graph())


# any graph at all

NAMES = [f"t{i}" for i in range(6)] + ["w", "kv"]
random_ops = st.lists(
    st.tuples(
        st.sampled_from(["matmul", "pointwise", "copy", "softmax", "norm", "attention", "other"]),
        st.lists(st.tuples(st.sampled_from(NAMES), st.integers(1, 20)), max_size=3, unique_by=lambda a: a[0]),
        st.lists(
            st.tuples(st.sampled_from([*NAMES[:6], "kv"]), st.integers(1, 20)),
            min_size=1,
            max_size=2,
            unique_by=lambda a: a[0],
        ),
        st.sampled_from([1, 3]),
    ),
    max_size=14,
)


@given(random_ops)
@example([("attention", [], [("t0", 1)], 1)] * 2)
@example([("attention", [("w", 1), ("kv", 1)], [(name, 1)], 1) for name in ("t0", "t1")])
@settings(deadline=None)
def test_invariants_hold_for_any_graph(ops):
    b = GraphBuilder()
    b.weight("w", 30)
    b.kv("kv", 30)
    for kind, reads, writes, count in ops:
        copies = kind == "copy"
        b.op(
            kind,
            reads=dict(reads),
            writes=dict(writes),
            count=count,
            matrix=5 * (kind in ("matmul", "attention")),
            vector=0 if copies else 2,
            path="m",
            m=4,
            n=4,
            k=2,
            b=2,
        )
    graph = b.graph([AttentionModule(path="m", causal=True)])
    check_invariants(graph)
    gathers = {i: "aten::index" for i, op in enumerate(graph.ops) if op.kind == "copy" and op.reads}
    check_invariants(named(graph, gathers))
