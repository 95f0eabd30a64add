"""What must hold of every prediction, on traces of tiny models of several families."""

from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from graphs import peaks
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import TINY, tiny

from profiler.models.graphs import ModelGraphs, Tracing, model_source
from profiler.record.run import RequestError
from roofline.caches import Touches, level_bytes
from roofline.fusion.fuse import fused
from roofline.graph.memory import footprint
from roofline.graph.op import Kind, Op, OpGraph
from roofline.price import price
from roofline.sweep.family import Family, Form
from roofline.sweep.price import price_pieces
from roofline.whatif.registry import parse
from roofline.workload import Workload

PHASES = {"prefill": (12, 0), "decode": (1, 21), "chunk": (5, 17)}
ONE_LEVEL = peaks(matrix=1e12, vector=1e11, levels=(("HBM", 1e12, 1e11),), dtype="bfloat16")
THREE_LEVELS = peaks(
    matrix=1e12,
    vector=1e11,
    levels=(("L1", 4e3, 8e11), ("L2", 4e4, 4e11), ("HBM", 1e12, 1e11)),
    dtype="bfloat16",
)


def workload(batch: int, query: int, context: int) -> Workload:
    return Workload(batch=batch, query_tokens=query, context_tokens=context, dtype="bfloat16")


@cache
def models(name: str) -> ModelGraphs:
    return ModelGraphs(tiny(name), name, Tracing("bfloat16"))


@cache
def graph(name: str, batch: int, query: int, context: int, form: Form = "fused", changes: str = "") -> OpGraph:
    made = [parse(text) for text in changes.split()]
    return model_source(models(name), made, form).whole(workload(batch, query, context))


def matrix(ops: Sequence[Op]) -> float:
    return sum(op.matrix_flops * op.count for op in ops)


def vector(found: OpGraph) -> float:
    return sum(op.vector_flops * op.count for op in found.ops)


def moved(found: OpGraph) -> float:
    return sum(t.total * op.count for t, op in zip(found.traffic, found.ops, strict=True))


def body(found: OpGraph) -> list[Op]:
    """All but the head, whose logits are those of the last token alone."""
    heads = {op.path for op in found.ops if op.path in ("lm_head", "embed_out")}
    assert len(heads) == 1
    return [op for op in found.ops if op.path not in heads]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "gpt_oss", "deepseek_v3"])
def test_flops_are_linear_in_batch(name: str) -> None:
    for phase in PHASES:
        one, two, three, seven = (graph(name, batch, *PHASES[phase]) for batch in (1, 2, 3, 7))
        assert matrix(three.ops) == pytest.approx(3 * matrix(one.ops), rel=1e-12), phase
        assert matrix(seven.ops) == pytest.approx(7 * matrix(one.ops), rel=1e-12), phase
        assert vector(seven) - vector(three) == pytest.approx(4 * (vector(three) - vector(two)), rel=1e-9), phase


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral", "gemma2"])
@settings(max_examples=3, deadline=None)
@given(cuts=st.lists(st.integers(1, 30), min_size=1, max_size=3, unique=True))
def test_chunks_sum_to_the_whole_prefill(name: str, cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), 31]
    whole = body(graph(name, 1, 31, 0))
    parts = [body(graph(name, 1, stop - start, start)) for start, stop in pairwise(edges)]
    for kinds in ((Kind.MATMUL, Kind.GROUPED_MATMUL), (Kind.ATTENTION,)):
        in_chunks = sum(matrix([op for op in part if op.kind in kinds]) for part in parts)
        assert in_chunks == matrix([op for op in whole if op.kind in kinds]) > 0


def linear_flops(found: OpGraph, replicated: str) -> tuple[float, float]:
    """Matrix FLOPs with weights: of what is split, and of what each rank repeats."""
    kinds = (Kind.MATMUL, Kind.GROUPED_MATMUL)
    ops = [op for op in found.ops if op.kind in kinds]
    again = [op for op in ops if op.path.endswith(replicated)]
    return matrix([op for op in ops if op not in again]), matrix(again)


def weight_bytes(found: OpGraph, *ends: str) -> float:
    names = {t.name: t.storage_bytes for t in found.tensors if t.role == "weight" and t.name}
    return sum(size for name, size in names.items() if name.rpartition(".")[0].endswith(ends))


MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head", "experts")


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3_moe"])
def test_shards_sum_to_the_whole(name: str) -> None:
    for phase in PHASES:
        whole = graph(name, 2, *PHASES[phase])
        rank = graph(name, 2, *PHASES[phase], changes="tensor_parallel:degree=2")
        routers = ".gate"  # every rank chooses the experts by itself
        for before, after, times in zip(linear_flops(whole, routers), linear_flops(rank, routers), (2, 1), strict=True):
            assert times * after == pytest.approx(before, rel=1e-12), phase
        attends = [matrix([op for op in g.ops if op.kind is Kind.ATTENTION]) for g in (whole, rank)]
        assert 2 * attends[1] == attends[0] > 0, phase
        assert 2 * weight_bytes(rank, *MATRICES) == weight_bytes(whole, *MATRICES) > 0, phase


def test_kv_heads_replicate_where_there_are_fewer_than_ranks() -> None:
    whole, rank = graph("llama", 2, 12, 0), graph("llama", 2, 12, 0, changes="tensor_parallel:degree=4")
    keys, rest = ("k_proj", "v_proj"), tuple(name for name in MATRICES if name not in ("k_proj", "v_proj"))
    assert 4 * weight_bytes(rank, *rest) == weight_bytes(whole, *rest)
    assert 2 * weight_bytes(rank, *keys) == weight_bytes(whole, *keys)  # 2 heads for 4 ranks
    for ends, times in ((keys, 2), (rest, 4)):
        here = [matrix([op for op in g.ops if op.path.endswith(ends)]) for g in (rank, whole)]
        assert times * here[0] == here[1] > 0


@pytest.mark.parametrize("name", ["qwen2", "gemma2", "qwen3_moe", "deepseek_v3"])
def test_sixteen_bits_are_the_identity(name: str) -> None:
    for form in ["fused", "executed"]:
        for change in ("quantise:weights=16", "quantise:weights=16,activations=16,kv=16"):
            assert graph(name, 2, 12, 0, form, change) == graph(name, 2, 12, 0, form), form


def test_experts_that_are_all_chosen_are_a_dense_mlp() -> None:
    for phase in PHASES:
        fields = dict(TINY["qwen3_moe"])
        experts, width = fields["num_experts"], fields["moe_intermediate_size"]
        sparse = tiny("qwen3_moe")
        sparse.num_experts_per_tok = experts
        dense = type(tiny("llama")).from_dict(tiny("llama").to_dict() | {"intermediate_size": experts * width})
        found = {}
        for name, config in (("sparse", sparse), ("dense", dense)):
            one = ModelGraphs(config, name, Tracing("bfloat16")).whole(workload(2, *PHASES[phase]))
            ops = [i for i, op in enumerate(one.ops) if ".mlp" in op.path and not op.path.endswith(".gate")]
            found[name] = matrix([one.ops[i] for i in ops]), sum(one.traffic[i].weight_read for i in ops)
        assert found["sparse"] == pytest.approx(found["dense"], rel=1e-12), phase


@pytest.mark.parametrize("phase", PHASES)
def test_a_window_that_holds_all_is_no_window(phase: str) -> None:
    for form in ["fused", "executed"]:
        found = []
        for window in (64, None):
            config = tiny("mistral")
            config.sliding_window = window
            one = model_source(ModelGraphs(config, "mistral", Tracing("bfloat16")), (), form).whole(
                workload(2, *PHASES[phase])
            )
            attention = [(op.matrix_flops, op.vector_flops) for op in one.ops if op.kind is Kind.ATTENTION]
            kv = [(t.kv_read, t.kv_write) for t in one.traffic if t.kv_read + t.kv_write]
            found.append((attention, kv, matrix(one.ops)))
        assert found[0] == found[1], form
        assert found[0][0], form


@pytest.mark.parametrize("name", TINY)
def test_fused_moves_no_more_than_executed(name: str) -> None:
    for phase in PHASES:
        try:
            executed, ideal = (graph(name, 2, *PHASES[phase], form) for form in ("executed", "fused"))
        except RequestError:  # it has no such pass, and says so
            assert phase == "chunk", phase
            continue
        assert moved(ideal) <= moved(executed), phase
        absorbs = name.startswith("deepseek")  # its latents
        assert matrix(ideal.ops) <= matrix(executed.ops) * (1 + 1e-12) or absorbs, phase


CHANGES = (
    "",
    "tensor_parallel:degree=2,link=nvlink",
    "quantise:weights=4",
    "quantise:weights=8,kv=8 tensor_parallel:degree=2",
    "sparsify_2_4",
    "lora:rank=4,adapters=2",
)


@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
def test_no_time_is_below_the_roofline(name: str) -> None:
    for changes in CHANGES:
        for levels in [ONE_LEVEL, THREE_LEVELS]:
            for sizes in ((1, 12, 0), (3, 1, 21)):
                for form in ("executed", "fused"):
                    found = graph(name, *sizes, form, changes)
                    split = level_bytes(Touches.of(found.ops, found.tensors), levels, "in situ")
                    times = price(found, levels).time_s
                    for op, parts, time_s in zip(found.ops, split.tolist(), times.tolist(), strict=True):
                        memory = sum(size / lv.bandwidth.value for size, lv in zip(parts, levels.levels, strict=True))
                        if np.isnan(time_s):
                            unknown = op.link is not None or (op.matrix_flops and op.dtype not in levels.matrix)
                            assert unknown, changes
                            continue
                        least = max(memory, op.vector_flops / 1e11, op.matrix_flops / 1e12)
                        assert time_s >= least * (1 - 1e-12), changes
                    assert split.sum() == pytest.approx(
                        moved(found.model_copy(update={"ops": once(found)})), rel=1e-9
                    ), changes


def once(found: OpGraph) -> tuple[Op, ...]:
    return tuple(op.model_copy(update={"count": 1}) for op in found.ops)


@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
def test_no_sweep_is_below_the_roofline(name: str) -> None:
    for changes in CHANGES:
        made = [parse(text) for text in changes.split()]
        source = model_source(models(name), made, "fused")
        asked = [workload(b, 1, c) for b in (2, 3, 5) for c in (30, 47, 64, 129)]
        family: Family = source.family()
        swept = price_pieces(family.cover(asked), asked, ONE_LEVEL)
        for i, one in enumerate(asked):
            totals = swept.matrix_flops[i] / 1e12, swept.vector_flops[i] / 1e11, swept.traffic(i).total / 1e11
            if np.isnan(swept.time_s[i]):
                assert "tensor_parallel" in changes, changes
                continue
            assert swept.time_s[i] >= max(totals) * (1 - 1e-12), changes
            if i % 5 == 0:  # each is traced
                exact = source.whole(one)
                count = [op.count for op in exact.ops]
                assert swept.time_s[i] == pytest.approx(price(exact, ONE_LEVEL).time_s @ np.array(count), rel=1e-9), (
                    changes
                )


def test_weights_of_llama_2_7b() -> None:
    from profiler.models.catalogue import config_of

    found = ModelGraphs(config_of("llama-2-7b"), "llama-2-7b", Tracing("bfloat16")).whole(workload(1, 1, 16))
    for one in (found, fused(found)):
        assert f"{footprint(one).weights / 1e9:.2f}" == "13.48"
    assert found.parameters * 2 == 13_476_831_232  # of the published checkpoint's 6,738,415,616 parameters
