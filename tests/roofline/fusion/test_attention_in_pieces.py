"""Attention that runs in pieces, or over expanded latents, as one operation of the ideal graph."""

from graphs import GraphBuilder, check_invariants, group_with, groups_of, sizes

from roofline.fusion.fuse import fuse
from roofline.graph.op import AttentionModule, OpGraph
from roofline.workload import Workload

# Unfused attention. One sequence of 4 tokens, 2 heads over 1 KV head, head dim 8, fp32.

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


# Latent attention. Rank 16, rope 4, nope 8, values 8, 2 heads; 32 cached tokens and 1 new one or all new.

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
