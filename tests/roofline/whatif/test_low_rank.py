"""2:4 sparsity, low rank and adapters: closed forms by hand and on traces, in any order with each other."""

from collections.abc import Callable
from itertools import combinations

import pytest
from each import each
from graphs import GraphBuilder
from tiny import tiny
from whatif_graphs import PHASES, check, stored, totals, traced

from roofline.fusion.fuse import fused
from roofline.graph.op import Kind, OpGraph, experts_hit
from roofline.whatif.attention import unfuse_attention
from roofline.whatif.layers import early_exit
from roofline.whatif.low_rank import lora, low_rank, sparsify_2_4
from roofline.whatif.quantise import quantise

FAMILIES = ("llama", "gpt2", "mixtral", "gpt_oss", "gemma3", "deepseek_v3", "falcon", "qwen2", "mamba2")
LAYER = "model.layers.0.mlp.up_proj"


def product(k: int = 64, n: int = 32, m: int = 3) -> OpGraph:
    b = GraphBuilder()
    b.weight("w", 4 * k * n)
    b.weight("bias", 4 * n)
    b.op(
        "matmul", reads={"bias": 4 * n, "x": 4 * m * k, "w": 4 * k * n}, writes={"y": 4 * m * n}, path=LAYER,
        matrix=2 * m * n * k, vector=m * n, count=5, b=1, m=m, n=n, k=k,
    )  # fmt: skip
    return b.graph()


# 2:4 sparsity


def test_a_sparse_product_by_hand() -> None:
    graph = sparsify_2_4(product())
    (op,) = graph.ops
    elements = 64 * 32
    assert graph.tensors[0].storage_bytes == elements / 2 * 4 + elements / 2 * 2 / 8
    assert op.reads[2].bytes == graph.tensors[0].storage_bytes
    assert (op.matrix_flops, op.vector_flops, op.count) == (3 * 32 * 64, 3 * 32, 5)
    assert op.dims == {"b": 1, "m": 3, "n": 32, "k": 64, "nonzero_of_4": 2}


@pytest.mark.parametrize("name", FAMILIES)
def test_sparse_models(name: str) -> None:
    graph = traced(name, "decode")
    sparse = sparsify_2_4(graph)
    check(sparse)
    saved = totals(graph)["weight_read"] - totals(sparse)["weight_read"]
    products = [op for op in sparse.ops if "nonzero_of_4" in op.dims]
    assert totals(graph)["matrix_flops"] - totals(sparse)["matrix_flops"] == sum(op.matrix_flops for op in products)
    assert saved > 0
    check(sparsify_2_4(fused(graph)))


def test_what_cannot_be_sparse() -> None:
    with pytest.raises(ValueError, match="k = 6, no multiple of 4"):
        sparsify_2_4(product(k=6))
    with pytest.raises(ValueError, match="sparse already"):
        sparsify_2_4(sparsify_2_4(product()))
    with pytest.raises(ValueError, match="row by row"):
        sparsify_2_4(traced("qwen2", "decode"), where=("lm_head",))


# low rank


def test_a_factorised_product_by_hand() -> None:
    graph = low_rank(product(), rank=8)
    first, second = graph.ops
    assert (first.dims, second.dims) == ({"b": 1, "m": 3, "n": 8, "k": 64}, {"b": 1, "m": 3, "n": 32, "k": 8})
    assert (first.matrix_flops, second.matrix_flops) == (2 * 3 * 8 * 64, 2 * 3 * 32 * 8)
    assert (first.vector_flops, second.vector_flops) == (0, 3 * 32)  # the bias is added at the end
    assert [a.bytes for a in first.reads] == [4 * 3 * 64, 4 * 64 * 8]
    assert [a.bytes for a in second.reads] == [4 * 3 * 8, 4 * 8 * 32, 4 * 32]
    assert first.writes == second.reads[:1] and second.writes == (graph.ops[1].writes[0],)
    assert stored(graph, "weight") == 4 * (8 * (64 + 32) + 32)
    assert first.path == second.path == LAYER and first.count == 5
    assert [t.name for t in graph.tensors if t.role == "weight"] == ["bias", "w.A", "w.B"]


@each("phase", PHASES)
@pytest.mark.parametrize("name", FAMILIES)
def test_low_rank_models(name: str, phase: str) -> None:
    graph = traced(name, phase)
    small = low_rank(graph, rank=2)
    check(small)
    for figure in ("matrix_flops", "weight_read", "weight"):
        assert totals(small)[figure] < totals(graph)[figure]
    assert totals(small)["vector_flops"] == totals(graph)["vector_flops"]
    check(low_rank(fused(graph), rank=2))


def test_only_layers_that_gain_are_factorised() -> None:
    graph, config = traced("llama", "decode"), tiny("llama")
    small = low_rank(graph, rank=12)
    factorised = {op.path.rpartition(".")[2] for op in small.ops if op.name.startswith("roofcal::")}
    width, inner, kv = config.hidden_size, config.intermediate_size, 16
    sizes = {"q_proj": (width, width), "o_proj": (width, width), "k_proj": (width, kv), "v_proj": (width, kv)}
    sizes |= {"gate_proj": (width, inner), "up_proj": (width, inner), "down_proj": (inner, width)}
    assert factorised == {name for name, (k, n) in sizes.items() if 12 * (k + n) < k * n}


def test_ranks_that_are_refused() -> None:
    with pytest.raises(ValueError, match="use 1 or more"):
        low_rank(product(), rank=0)
    with pytest.raises(ValueError, match="rank 22 makes no layer smaller; use 21 or less"):
        low_rank(product(), rank=22)
    with pytest.raises(ValueError, match="has a low rank already"):
        low_rank(low_rank(product(), rank=8), rank=2)
    with pytest.raises(ValueError, match="is quantised already; do low_rank first"):
        low_rank(quantise(product(), weights=8, activations=8), rank=8)
    with pytest.raises(ValueError, match="used elsewhere"):
        low_rank(traced("qwen2", "decode"), rank=2, where=("lm_head",))


# adapters


@each("adapters", [1, 7])
def test_adapters_by_hand(adapters: int) -> None:
    graph = lora(product(), rank=8, adapters=adapters)
    base, shrink, expand, add = graph.ops
    assert base == product().ops[0]
    assert (shrink.matrix_flops, expand.matrix_flops) == (2 * 3 * 8 * 64, 2 * 3 * 32 * 8)
    assert (add.kind, add.vector_flops) == (Kind.POINTWISE, 3 * 32)
    assert [a.bytes for a in shrink.reads] == pytest.approx(
        [4 * 3 * 64, 4 * 8 * 64]
    )  # one sequence: one adapter is read
    assert add.writes == base.writes and add.reads[0] == base.writes[0] and add.reads[1] == expand.writes[0]
    assert stored(graph, "weight") - stored(product(), "weight") == adapters * 4 * 8 * (64 + 32)
    assert all(op.count == 5 for op in graph.ops)


@pytest.mark.parametrize("name", FAMILIES)
def test_adapters_of_models(name: str) -> None:
    graph = traced(name, "decode", batch=3)
    served = lora(graph, rank=2, adapters=5)
    check(served)
    after, before = totals(served), totals(graph)
    hit = float(experts_hit(5, 1, 3))
    assert after["weight_read"] - before["weight_read"] == pytest.approx(hit / 5 * (after["weight"] - before["weight"]))
    check(lora(fused(graph), rank=2, adapters=5))


def test_cost_grows_with_rank_adapters_and_batch() -> None:
    def cost(rank: int = 4, adapters: int = 4, batch: int = 4) -> tuple[float, float]:
        graph = traced("llama", "decode", batch=batch)
        before, after = totals(graph), totals(lora(graph, rank=rank, adapters=adapters))
        return tuple(after[figure] - before[figure] for figure in ("matrix_flops", "weight_read"))

    flops, read = cost()
    assert cost(rank=8) == (2 * flops, 2 * read)
    assert cost(adapters=8)[0] == flops and read < cost(adapters=8)[1] < 2 * read
    assert cost(batch=8)[0] == 2 * flops and read < cost(batch=8)[1] < 2 * read


def test_adapters_that_are_refused() -> None:
    for rank, adapters in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="use 1 or more of each"):
            lora(product(), rank=rank, adapters=adapters)
    with pytest.raises(ValueError, match="has adapters already"):
        lora(lora(product(), rank=1, adapters=1), rank=1, adapters=1)
    for where, message in ((("*.experts",), "only experts"), (("*.q_proj", "*.experts"), "holds experts")):
        with pytest.raises(ValueError, match=message):
            lora(traced("mixtral", "decode"), rank=1, adapters=1, where=where)


# in any order

CHANGES: dict[str, Callable[[OpGraph], OpGraph]] = {
    "bits": lambda g: quantise(g, weights=4, group=4, zero_point_bits=4, kv=8),
    "sparse": sparsify_2_4,
    "low rank": lambda g: low_rank(g, rank=4),
    "adapters": lambda g: lora(g, rank=2, adapters=3),
    "fewer layers": lambda g: early_exit(g, 1),
    "unfused": unfuse_attention,
}


@pytest.mark.parametrize("name", ["llama", "mixtral"])
@each(("one", "other"), list(combinations(CHANGES, 2)))
def test_two_changes_commute(name: str, one: str, other: str) -> None:
    graph = traced(name, "decode", attn="sdpa")
    first, second = CHANGES[other](CHANGES[one](graph)), CHANGES[one](CHANGES[other](graph))
    assert totals(first) == pytest.approx(totals(second))
    assert first.options == second.options
    check(first)


def test_all_changes_at_once() -> None:
    graph = traced("llama", "chunk", attn="sdpa")
    orders = [list(CHANGES), list(reversed(CHANGES))]
    ends = []
    for order in orders:
        changed = graph
        for name in order:
            changed = CHANGES[name](changed)
        check(changed)
        ends.append(totals(changed))
    assert ends[0] == pytest.approx(ends[1])


def test_adapters_read_what_was_quantised() -> None:
    def narrow(g: OpGraph) -> OpGraph:
        return quantise(g, weights=8, activations=8, group=-1)

    def served(g: OpGraph) -> OpGraph:
        return lora(g, rank=2, adapters=3)

    graph = traced("llama", "decode")
    assert totals(narrow(served(graph))) == pytest.approx(totals(served(narrow(graph))))
