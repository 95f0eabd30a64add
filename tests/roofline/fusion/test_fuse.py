from collections import Counter

import pytest
from graphs import GraphBuilder, sizes
from hypothesis import given, settings
from hypothesis import strategies as st

from roofline.fusion.fuse import Group, fuse
from roofline.graph.op import AttentionModule, OpGraph
from roofline.workload import Workload


def groups_of(graph: OpGraph) -> list[tuple[int, ...]]:
    return [group.ops for group in fuse(graph)]


def group_with(graph: OpGraph, op: int) -> Group:
    return next(group for group in fuse(graph) if op in group.ops)


def check_invariants(graph: OpGraph) -> None:
    groups = fuse(graph)
    assert Counter(i for g in groups for i in g.ops) == Counter(range(len(graph.ops)))
    fused = sum(a.bytes * g.count for g in groups for a in (*g.reads, *g.writes))
    assert fused <= sum(t.total * op.count for t, op in zip(graph.traffic, graph.ops, strict=True))
    for figure in ("matrix_flops", "vector_flops"):
        ours, executed = (sum(getattr(x, figure) * x.count for x in xs) for xs in (groups, graph.ops))
        assert ours <= executed * (1 + 1e-12)
    assert all(graph.ops[i].count == g.count for g in groups for i in g.ops)
    number = {op: n for n, g in enumerate(groups) for op in g.ops}
    written: dict[int, list[int]] = {}
    read: dict[int, list[int]] = {}
    for i, op in enumerate(graph.ops):  # the groups, in order, overtake no read after write, or write after either
        for access in op.reads:
            assert all(number[earlier] <= number[i] for earlier in written.get(access.tensor, []))
        for access in op.writes:
            touched = written.get(access.tensor, []) + read.get(access.tensor, [])
            assert all(number[earlier] <= number[i] for earlier in touched)
        for access in op.reads:
            read.setdefault(access.tensor, []).append(i)
        for access in op.writes:
            written.setdefault(access.tensor, []).append(i)


# (a) anchors and what joins them


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


# (b) the cache


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


# (c) pure data movement


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


def named(graph: OpGraph, names: dict[int, str]) -> OpGraph:
    ops = tuple(op.model_copy(update={"name": names.get(i, op.name)}) for i, op in enumerate(graph.ops))
    return graph.model_copy(update={"ops": ops})


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


# (d) unfused attention. One sequence of 4 tokens, 2 heads over 1 KV head, head dim 8, fp32.

Q, K, S, OUT = 2 * 4 * 8 * 4, 4 * 8 * 4, 2 * 4 * 4 * 4, 2 * 4 * 8 * 4  # bytes
FULL = 2 * 2 * 4 * 4 * 8  # 2 × heads × query × KV × head dim, either matmul


def eager(builder: GraphBuilder | None = None) -> GraphBuilder:
    b = builder or GraphBuilder()
    b.activation("q", Q)
    b.kv("k", K)
    b.kv("v", K)
    b.activation("mask", 4 * 4 * 4)
    dims = {"b": 2, "m": 4}
    b.op("copy", reads=["k"], writes={"k2": 2 * K}, path="attn")
    b.op("copy", reads=["v"], writes={"v2": 2 * K}, path="attn")
    b.op("matmul", reads=["q", "k2"], writes={"s": S}, path="attn", matrix=FULL, n=4, k=8, **dims)
    b.op("pointwise", reads=["s", "mask"], writes={"t": S}, path="attn", vector=64, elements=32)
    b.op("softmax", reads=["t"], writes={"p": S}, path="attn", vector=160, elements=32)
    b.op("matmul", reads=["p", "v2"], writes={"o": OUT}, path="attn", matrix=FULL, n=8, k=4, **dims)
    b.op("copy", reads=["o"], writes={"ot": OUT}, path="attn")
    return b


def test_unfused_causal_attention_has_the_traffic_and_the_flops_of_flash_attention():
    graph = eager().graph([AttentionModule(path="attn", causal=True)])
    group = group_with(graph, 4)
    assert set(group.ops) == {2, 3, 4, 5, 6} | ({0, 1} & set(group.ops))
    assert sizes(graph, group.reads) == {"q": Q, "k": K, "v": K}
    assert sizes(graph, group.writes) == {"ot": OUT}
    # causal: 1 + 2 + 3 + 4 = 10 of 16 pairs
    assert group.matrix_flops == 2 * FULL * 10 / 16
    assert group.vector_flops == 160 * 10 / 16  # the softmax: who knows the mask does not add it
    check_invariants(graph)


def test_a_window_counts_its_own_pairs():
    graph = eager().graph([AttentionModule(path="attn", causal=True, window=2)])
    assert group_with(graph, 4).matrix_flops == 2 * FULL * 7 / 16  # 1 + 2 + 2 + 2


def test_a_module_that_says_nothing_of_itself_keeps_all_pairs_and_its_mask():
    graph = eager().graph()
    group = group_with(graph, 4)
    assert group.matrix_flops == 2 * FULL
    assert sizes(graph, group.reads) == {"q": Q, "k": K, "v": K, "mask": 64}
    check_invariants(graph)


def test_keys_that_change_before_the_values_are_used_keep_attention_unfused():
    b = eager()
    b.op("pointwise", reads=["ot"], writes={"q": Q})
    assert set(range(2, 6)) <= set(group_with(b.graph(), 2).ops)  # after the attention: no matter
    b = GraphBuilder()
    b.op("matmul", reads={"q": Q, "k": K}, writes={"s": S}, path="attn")
    b.op("softmax", reads=["s"], writes={"p": S}, path="attn")
    b.op("other", reads={"x": 1}, writes={"q": Q})  # cannot run before the scores
    b.op("matmul", reads={"p": S, "q": Q}, writes={"o": OUT}, path="attn")
    assert 3 not in group_with(b.graph(), 0).ops
    check_invariants(b.graph())


def test_attention_of_layers_with_different_counts_stays_unfused():
    b = GraphBuilder()
    b.op("matmul", reads={"q": Q, "k": K}, writes={"s": S}, path="attn", count=2)
    b.op("softmax", reads=["s"], writes={"p": S}, path="attn", count=2)
    b.op("matmul", reads={"p": S, "v": K}, writes={"o": OUT}, path="attn")
    assert groups_of(b.graph()) == [(0, 1), (2,)]
    check_invariants(b.graph())


def test_scores_that_somebody_else_reads_keep_attention_unfused():
    b = eager()
    b.op("reduction", reads=["p"], writes={"entropy": 4})
    graph = b.graph([AttentionModule(path="attn", causal=True)])
    assert 5 not in group_with(graph, 2).ops
    check_invariants(graph)


def test_a_matmul_with_a_weight_is_not_attention():
    b = GraphBuilder()
    b.weight("router", 40)
    b.activation("x", 10)
    b.op("matmul", reads=["x", "router"], writes={"logits": 8}, path="moe")
    b.op("softmax", reads=["logits"], writes={"p": 8}, path="moe")
    b.op("matmul", reads=["p", "x"], writes={"y": 8}, path="moe")
    assert groups_of(b.graph()) == [(0, 1), (2,)]


def test_fused_attention_of_a_known_module_needs_no_mask():
    b = GraphBuilder()
    b.weight("wq", 64)
    b.op("pointwise", writes={"mask": 16}, path="model")
    b.kv("k", K)
    for module in ("a", "b"):
        b.op("matmul", reads=["wq"], writes={f"q{module}": Q}, path=f"{module}.q_proj")
        b.op(
            "attention",
            reads=[f"q{module}", "k", "mask"],
            writes={f"o{module}": OUT},
            path=module,
            matrix=9,
            query=4,
            kv=4,
        )
    known = b.graph([AttentionModule(path=module, causal=True) for module in ("a", "b")])
    assert sizes(known, group_with(known, 2).reads) == {"qa": Q, "k": K}
    assert group_with(known, 2).matrix_flops == 9
    assert group_with(known, 0).writes == ()
    unknown = b.graph()
    assert sizes(unknown, group_with(unknown, 2).reads) == {"qa": Q, "k": K, "mask": 16}
    assert sizes(unknown, group_with(unknown, 0).writes) == {"mask": 16}
    check_invariants(known)


# (e) latent attention. Rank 16, rope 4, nope 8, values 8, 2 heads; 32 cached tokens and 1 new one or all new.

R, ROPE, NOPE, V, HEADS = 16, 4, 8, 8, 2


def latent(query: int, kv: int) -> OpGraph:
    b = GraphBuilder(Workload(batch=1, query_tokens=query, context_tokens=kv - query, dtype="float32"))
    b.kv("latent", kv * R * 4)
    b.kv("rope", kv * ROPE * 4)
    b.weight("w", R * HEADS * (NOPE + V) * 4)
    b.activation("q", query * HEADS * (NOPE + ROPE) * 4)
    width = HEADS * (NOPE + V)
    key_bytes = kv * HEADS * (NOPE + ROPE) * 4
    b.op(
        "matmul",
        reads=["latent", "w"],
        writes={"x": kv * width * 4},
        path="attn.kv_b",
        matrix=2 * kv * R * width,
        b=1,
        m=kv,
        n=width,
        k=R,
    )
    b.op("copy", reads={"x": kv * HEADS * NOPE * 4}, writes={"keys": kv * HEADS * NOPE * 4}, path="attn")
    b.op("copy", reads=["rope"], writes={"keys": kv * HEADS * ROPE * 4}, path="attn")
    b.op(
        "attention",
        reads={"q": query * HEADS * (NOPE + ROPE) * 4, "keys": key_bytes, "x": kv * HEADS * V * 4},
        writes={"o": query * HEADS * V * 4},
        path="attn",
        matrix=2 * HEADS * query * kv * (NOPE + ROPE + V),
        batch=1,
        heads=HEADS,
        kv_heads=HEADS,
        query=query,
        kv=kv,
        head_dim=NOPE + ROPE,
        value_dim=V,
    )
    return b.graph()


def test_decode_absorbs_the_expansion_and_reads_the_latents_only():
    graph = latent(1, 32)
    (group,) = fuse(graph)
    # q·W_k and o·W_v: 2·2·16·(8 + 8) = 1024; scores on 16 + 4, values on 16: 2·2·32·36 = 4608
    assert group.matrix_flops == 1024 + 4608
    assert group.matrix_flops < sum(op.matrix_flops for op in graph.ops)
    assert sizes(graph, group.reads) == {"latent": 32 * R * 4, "rope": 32 * ROPE * 4, "w": 16 * 32 * 4, "q": 96}
    assert sizes(graph, group.writes) == {"o": 64}
    check_invariants(graph)


def test_prefill_keeps_the_expansion_because_absorbing_costs_more_flops():
    graph = latent(32, 32)
    assert 0 not in group_with(graph, 3).ops
    assert sum(g.matrix_flops for g in fuse(graph)) == sum(op.matrix_flops for op in graph.ops)
    check_invariants(graph)


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
