"""Tensor parallelism: graphs by hand, the plans that `transformers` has for its models, and sums over ranks."""

import math
import re

import pytest
from each import each
from graphs import GraphBuilder
from tiny import tiny
from whatif_graphs import PHASES, check_rank, collectives, flops, stored, traced

from profiler.models.build import build_meta
from roofline.fusion.fuse import fused
from roofline.graph.op import Kind, OpGraph
from roofline.whatif.low_rank import lora, low_rank
from roofline.whatif.quantise import quantise
from roofline.whatif.tensor_parallel import OPTION, WHOLE_OPTION, tensor_parallel
from roofline.whatif.tensor_parallel_plan import plan

DENSE = ("llama", "gpt2", "qwen2", "phi3", "opt", "mistral")
FAMILIES = (*DENSE, "falcon", "mixtral", "qwen3_moe", "gpt_oss", "gemma2", "gemma3", "deepseek_v3", "mamba")
KINDS = {"column": "colwise", "row": "rowwise", "rows": "embedding_rowwise"}


def mlp(norm: bool = False) -> GraphBuilder:
    """x (4, 8) → up (8, 16) → act or full-width norm → down (16, 8) → + x → out."""
    b = GraphBuilder()
    b.activation("x", 128)
    b.weight("up", 512)
    b.weight("down", 512)
    b.op("matmul", reads=["x", "up"], writes={"h": 256}, path="up", matrix=1024, b=1, m=4, n=16, k=8)
    if norm:
        b.op("reduction", reads=["h"], writes={"mean": 16}, path="norm", vector=64, elements=64)
        b.op("pointwise", reads=["h", "mean"], writes={"a": 256}, path="norm", vector=64, elements=64)
    else:
        b.op("pointwise", reads=["h"], writes={"a": 256}, path="act", vector=64, elements=64)
    b.op("matmul", reads=["a", "down"], writes={"y": 128}, path="down", matrix=1024, b=1, m=4, n=8, k=16)
    b.op("pointwise", reads=["x", "y"], writes={"z": 128}, path="", vector=32, elements=32)
    b.op("reduction", reads=["z"], writes={"out": 16}, path="", vector=32, elements=32)
    return b


def test_a_feed_forward_by_hand() -> None:
    shard = tensor_parallel(mlp().graph(), 4, link="pcie")
    up, act, down, summed, add, _ = shard.ops
    assert (up.dims["n"], up.matrix_flops, [a.bytes for a in up.reads], up.writes[0].bytes) == (4, 256, [128, 128], 64)
    assert (act.vector_flops, act.dims["elements"], act.reads[0].bytes, act.writes[0].bytes) == (16, 16, 64, 64)
    assert (down.dims["k"], down.matrix_flops, [a.bytes for a in down.reads]) == (4, 256, [64, 128])
    assert down.writes[0].bytes == 128
    assert (summed.kind, summed.link, summed.link_bytes, summed.messages) == (Kind.COLLECTIVE, "pcie", 192, 6)
    assert add.vector_flops == 32
    assert [t.storage_bytes for t in shard.tensors[:5]] == [128, 128, 128, 64, 64]
    assert shard.options == {OPTION: "4 over pcie"}


def test_a_norm_over_the_full_width_keeps_the_product_before_it_whole() -> None:
    shard = tensor_parallel(mlp(norm=True).graph(), 4)
    assert [op.matrix_flops for op in shard.ops if op.path in ("up", "down")] == [1024, 1024]
    assert not collectives(shard)
    assert shard.options[WHOLE_OPTION] == "up, down"


def test_a_softmax_over_features_keeps_the_product_before_it_whole() -> None:
    b = mlp()
    b._ops[1]["kind"] = Kind.SOFTMAX
    assert tensor_parallel(b.graph(), 4).options[WHOLE_OPTION] == "up, down"


def test_a_bias_behind_a_divided_input_is_added_once() -> None:
    b = mlp()
    b.weight("bias", 32)
    b._ops[2]["reads"]["bias"], b._ops[2]["vector_flops"] = 32, 32.0
    down = tensor_parallel(b.graph(), 4).ops[2]
    assert [a.bytes for a in down.reads] == [64, 128, 32]
    assert down.vector_flops == 32


def test_degree_one_changes_nothing() -> None:
    graph = traced("llama", "decode")
    assert tensor_parallel(graph, 1) is graph


@each(
    ("name", "attn", "phase"),
    [(name, "default", phase) for name in FAMILIES for phase in PHASES]
    + [(name, "eager", "chunk") for name in FAMILIES if name != "mamba"],
)
def test_every_family_gives_a_graph_that_is_priced_and_fused(name: str, attn: str, phase: str) -> None:
    graph = traced(name, phase, attn=attn)
    shard = tensor_parallel(graph, 2)
    check_rank(shard)
    assert shard.heads == (graph.heads and (2, max(1, graph.heads[1] // 2)))
    assert tensor_parallel(graph, 2) == shard


@each(("degree", "phase"), [(2, "prefill"), (4, "decode")])
@pytest.mark.parametrize("name", FAMILIES)
def test_divided_products_of_all_ranks_are_the_whole(name: str, degree: int, phase: str) -> None:
    graph = traced(name, phase)
    found, shard = plan(graph, degree), tensor_parallel(graph, degree)
    new = iter(op for op in shard.ops if op.kind is not Kind.COLLECTIVE)
    kv_heads = graph.heads[1] if graph.heads and name != "falcon" else 1  # its config says nothing of multi-query
    for i, (op, part) in enumerate(zip(graph.ops, new, strict=True)):
        split = found.split.get(i)
        if split is None:
            if op.kind in (Kind.MATMUL, Kind.GROUPED_MATMUL, Kind.ATTENTION):
                assert part == op  # the same on every rank
            continue
        is_kv = split == "column" and op.path.endswith((".k_proj", ".v_proj"))
        is_fused = split == "column" and op.path.endswith((".query_key_value", ".qkv_proj"))
        if is_kv and kv_heads < degree:
            assert part.matrix_flops * kv_heads == op.matrix_flops  # a head for each rank, copied
        elif is_fused and kv_heads < degree:
            head = op.dims["n"] / (4 + 2 * kv_heads)
            assert part.dims["n"] == head * (4 / degree + 2)
        else:
            assert math.isclose(part.matrix_flops * degree, op.matrix_flops)
        weights = [j for j, a in enumerate(op.reads) if graph.tensors[a.tensor].role == "weight"]
        for j in weights[:1] if split == "rows" else []:
            whole, mine = graph.tensors[op.reads[j].tensor], shard.tensors[op.reads[j].tensor]
            assert mine.storage_bytes * degree == whole.storage_bytes
        if split != "heads" and weights:
            matrix = max(weights, key=lambda j: op.reads[j].bytes)
            share = part.matrix_flops / op.matrix_flops if op.matrix_flops else 1 / degree
            assert math.isclose(part.reads[matrix].bytes, op.reads[matrix].bytes * share)


@pytest.mark.parametrize("name", DENSE)
def test_a_dense_layer_has_two_all_reduces(name: str) -> None:
    graph = traced(name, "decode")
    shard = tensor_parallel(graph, 2)
    hidden = graph.workload.batch * 32 * 2
    assert [op.reads[0].bytes for op in collectives(shard, "all_reduce")] == [hidden] * (2 * 2 + 1)
    (gather,) = collectives(shard, "all_gather")
    assert gather.writes[0].bytes == 2 * gather.reads[0].bytes == graph.workload.batch * 128 * 2
    assert OpGraph.model_validate(shard.model_dump()).ops[-1] == gather


def test_parallel_attention_and_feed_forward_are_summed_together() -> None:
    """As vLLM's Falcon does: `reduce_row_parallel_results` only where they are not parallel."""
    assert len(collectives(tensor_parallel(traced("falcon", "decode"), 2), "all_reduce")) == 2 + 1


def test_experts_and_shared_experts_are_summed_together_after_the_experts_are_combined() -> None:
    graph = traced("deepseek_v3", "prefill")
    reduced = collectives(tensor_parallel(graph, 2), "all_reduce")
    assert len(reduced) == 2 * 3 + 1
    assert {op.reads[0].bytes for op in reduced} == {2 * 12 * 32 * 2}


@pytest.mark.parametrize("name", ["llama", "mixtral", "qwen3_moe", "qwen2", "mistral", "gemma2", "deepseek_v3"])
def test_the_plan_is_that_of_transformers(name: str) -> None:
    theirs = dict(build_meta(tiny(name), "bfloat16").tp_plan)
    graph = traced(name, "prefill")
    found = plan(graph, 2)
    ours: dict[str, set[str]] = {}
    for i, how in found.split.items():
        if how == "heads":
            continue
        op = graph.ops[i]
        weight = next(graph.tensors[a.tensor].name for a in op.reads if graph.tensors[a.tensor].role == "weight")
        path = str(weight).removesuffix(".weight") if op.kind is Kind.GROUPED_MATMUL else op.path
        ours.setdefault(re.sub(r"\.\d+\.", ".*.", path), set()).add(KINDS[how])
    for path, how in theirs.items():
        if how in ("replicated_with_grad_allreduce", "moe_tp_experts") or path not in ours:
            continue
        expected = {"packed_colwise": "colwise", "colwise_gather_output": "colwise"}.get(how, how)
        assert ours[path] == {expected}, path
    latent = {path for path in ours if "self_attn" in path} if name == "deepseek_v3" else set()  # theirs has no plan
    assert set(ours) - latent <= set(theirs)
    unused = {"model.layers.*.mlp.gate_proj", "model.layers.*.mlp.up_proj", "model.layers.*.mlp.down_proj"}
    planned = {path for path, how in theirs.items() if how not in ("replicated_with_grad_allreduce", "moe_tp_experts")}
    assert planned - set(ours) <= (unused if name == "qwen3_moe" else set())


@each("phase", PHASES)
def test_latents_and_routers_stay_whole(phase: str) -> None:
    graph = traced("deepseek_v3", phase)
    shard = tensor_parallel(graph, 2)
    whole = "self_attn.q_a_proj, model.layers.*.self_attn.kv_a_proj_with_mqa, model.layers.*.mlp.gate"
    assert shard.options[WHOLE_OPTION] == f"model.layers.*.{whole}"
    assert stored(shard, "kv") == stored(graph, "kv")
    expand = [op for op in shard.ops if op.path.endswith("kv_b_proj")]
    assert {op.dims["n"] for op in expand} == {4 * (8 + 8) / 2}


def test_state_space_mixers_stay_whole_and_are_named() -> None:
    graph = traced("mamba", "prefill")
    shard = tensor_parallel(graph, 2)
    assert "backbone.layers.*.mixer.in_proj" in shard.options[WHOLE_OPTION]
    assert [op.name for op in collectives(shard)] == ["collective::all_reduce", "collective::all_gather"]
    assert stored(shard, "kv") == stored(graph, "kv")


@each(("name", "degree", "share"), [("llama", 2, 0.5), ("llama", 4, 0.5), ("falcon", 4, 1.0)])
@each("attn", ["default", "eager"])
def test_a_rank_keeps_at_least_one_key_value_head(name: str, degree: int, share: float, attn: str) -> None:
    graph = traced(name, "decode", attn=attn)
    shard = tensor_parallel(graph, degree)
    assert stored(shard, "kv") == share * stored(graph, "kv")
    for op in shard.ops:
        if op.kind is Kind.ATTENTION:
            assert (op.dims["heads"], op.dims["kv_heads"]) == (4 / degree, 1)


def test_heads_that_are_folded_into_the_queries_are_divided_too() -> None:
    graph = traced("llama", "decode", cached="static")
    shard = tensor_parallel(graph, 4)
    check_rank(shard)
    for before, after in zip(graph.ops, [o for o in shard.ops if o.kind is not Kind.COLLECTIVE], strict=True):
        if before.kind is Kind.ATTENTION:
            assert after.dims["heads"] * after.dims["pairs"] * 4 == before.dims["heads"] * before.dims["pairs"]
            assert after.matrix_flops * 4 == before.matrix_flops


@each("phase", ["prefill", "decode"])
@each(
    "change",
    [
        lambda g: quantise(g, weights=4, group=8),
        lambda g: quantise(g, kv=8),
        lambda g: lora(g, rank=4, adapters=2),
    ],
)
@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_sharding_commutes_with_other_what_ifs(name: str, change, phase: str) -> None:  # type: ignore[no-untyped-def]
    graph = traced(name, phase)
    first, last = tensor_parallel(change(graph), 2), change(tensor_parallel(graph, 2))
    check_rank(first)
    for total in (flops, lambda g: stored(g, "weight"), lambda g: stored(g, "kv")):
        assert math.isclose(total(first), total(last))
    assert sorted(op.link_bytes for op in collectives(first)) == sorted(op.link_bytes for op in collectives(last))


def test_a_low_rank_pair_is_divided_behind_its_bottleneck() -> None:
    shard = tensor_parallel(low_rank(traced("llama", "decode"), rank=4), 2)
    check_rank(shard)
    inside = collectives(shard, "all_reduce")[1:]
    assert {op.reads[0].bytes for op in inside} == {2 * 4 * 2}  # summed where it is narrow


def test_a_vocabulary_that_does_not_divide_is_padded() -> None:
    graph = traced("llama", "decode")
    tensors = {t.name: t for t in graph.tensors}
    table, head = tensors["model.embed_tokens.weight"], tensors["lm_head.weight"]
    odd = {table.id: 127 * 64, head.id: 127 * 64}
    ops = list(graph.ops)
    logits = ops[-1].writes[0]
    ops[-1] = ops[-1].model_copy(
        update={
            "dims": ops[-1].dims | {"n": 127},
            "reads": tuple(
                a.model_copy(update={"bytes": 127 * 64}) if a.tensor == head.id else a for a in ops[-1].reads
            ),
            "writes": (logits.model_copy(update={"bytes": 2 * 127 * 2}),),
        }
    )
    odd[logits.tensor] = 2 * 127 * 2
    resized = tuple(t.model_copy(update={"storage_bytes": odd.get(t.id, t.storage_bytes)}) for t in graph.tensors)
    shard = tensor_parallel(graph.model_copy(update={"ops": tuple(ops), "tensors": resized}), 2)
    check_rank(shard)
    assert next(op for op in shard.ops if op.path == "lm_head").dims["n"] == 64
    assert math.isclose(shard.tensors[table.id].storage_bytes, 64 * 64)


def test_what_cannot_be_divided_is_refused_in_one_line() -> None:
    graph = traced("llama", "decode")
    with pytest.raises(ValueError, match=r"^4 query heads do not divide by 3 ranks; use one of 1, 2, 4$"):
        tensor_parallel(graph, 3)
    with pytest.raises(ValueError, match="tensor_parallel is 0; use a whole number of devices, 1 or more"):
        tensor_parallel(graph, 0)
    with pytest.raises(ValueError, match="one rank of 2 over nvlink already"):
        tensor_parallel(tensor_parallel(graph, 2), 2)
    with pytest.raises(ValueError, match="apply it first, then fuse"):
        tensor_parallel(fused(graph), 2)
    with pytest.raises(ValueError, match="up has an output width of 16, which 3 ranks cannot share"):
        tensor_parallel(mlp().graph(), 3)
    uneven = graph.model_copy(update={"heads": (12, 3)})
    with pytest.raises(ValueError, match="3 key-value heads neither divide by 4 ranks"):
        tensor_parallel(uneven, 4)
