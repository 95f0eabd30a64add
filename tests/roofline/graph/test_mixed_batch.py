"""A step over several kinds of sequences: weights are read once, everything else adds up."""

from functools import cache

import pytest
from graphs import peaks
from tiny import tiny

from profiler.models.graphs import ModelGraphs, Tracing, model_source
from roofline.graph.fold import fold
from roofline.graph.memory import footprint
from roofline.graph.mixed_batch import mix
from roofline.graph.op import Kind, Op, OpGraph, experts_hit
from roofline.price import price
from roofline.sweep.family import Form
from roofline.workload import Workload

PARTS = ((1, 12, 0), (4, 1, 20), (1, 6, 9))


@cache
def models(name: str) -> ModelGraphs:
    return ModelGraphs(tiny(name), name, Tracing("bfloat16"))


@cache
def graph(name: str, batch: int, query: int, context: int, form: Form = "fused") -> OpGraph:
    asked = Workload(batch=batch, query_tokens=query, context_tokens=context, dtype="bfloat16")
    return model_source(models(name), (), form).whole(asked)


def total(graph: OpGraph, name: str) -> float:
    return sum(getattr(t, name) * op.count for t, op in zip(graph.traffic, graph.ops, strict=True))


def flops(graph: OpGraph) -> tuple[float, float]:
    return sum(op.matrix_flops * op.count for op in graph.ops), sum(op.vector_flops * op.count for op in graph.ops)


def test_one_part_is_itself() -> None:
    one = graph("llama", *PARTS[0])
    assert mix([one]) == one


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma2", "gpt2", "qwen3_moe", "deepseek_v3"])
def test_weights_once_and_all_else_added(name: str) -> None:
    for form in ["fused", "executed"]:
        parts = [graph(name, *sizes, form) for sizes in PARTS]
        whole = mix(parts)
        assert flops(whole)[0] == pytest.approx(sum(flops(part)[0] for part in parts), rel=1e-12), form
        assert flops(whole)[1] == pytest.approx(sum(flops(part)[1] for part in parts), rel=1e-12), form
        for kind in ("kv_read", "kv_write", "activation_write"):
            assert total(whole, kind) == pytest.approx(sum(total(part, kind) for part in parts), rel=1e-12), form
        read = [total(part, "weight_read") for part in parts]
        assert max(read) <= total(whole, "weight_read") < 1.4 * max(read), (
            form
        )  # rows of the embedding add, and experts
        dense = [op for op in whole.ops if op.kind is Kind.MATMUL]
        once = {(op.path, a.tensor) for op in dense for a in op.reads if whole.tensors[a.tensor].role == "weight"}
        assert len(once) == sum(whole.tensors[a.tensor].role == "weight" for op in dense for a in op.reads), form
        assert footprint(whole).weights == footprint(parts[0]).weights, form
        assert footprint(whole).kv_cache == pytest.approx(sum(footprint(part).kv_cache for part in parts)), form


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_experts_are_those_of_all_tokens(name: str) -> None:
    whole = mix([graph(name, *sizes, "executed") for sizes in PARTS])
    grouped = [(i, op) for i, op in enumerate(whole.ops) if op.routing is not None]
    assert grouped
    hit = float(experts_hit(4, 2, 12 + 4 + 6))
    for i, op in grouped:
        size = max(whole.tensors[a.tensor].storage_bytes for a in op.reads if whole.tensors[a.tensor].role == "weight")
        assert whole.traffic[i].weight_read == pytest.approx(size * hit / 4, rel=1e-12)
        assert op.dims["m"] == 2 * 22  # rows: each token at two experts


def test_tokens_add_up_in_the_dimensions() -> None:
    whole = mix([graph("llama", 1, 1, 20), graph("llama", 1, 12, 0)])
    (up,) = (op for op in whole.ops if op.path == "model.layers.0.mlp.up_proj")
    assert (up.dims["b"], up.dims["m"], up.matrix_flops) == (1, 13, 2 * 13 * up.dims["n"] * up.dims["k"])


def test_a_mixed_step_is_faster_than_its_parts_and_slower_than_any() -> None:
    device = peaks(matrix=1e12, vector=1e12, levels=(("HBM", 1e12, 1e10),), dtype="bfloat16")

    def seconds(graph: OpGraph) -> float:
        return float(price(graph, device).time_s.sum())

    parts = [graph("llama", *sizes) for sizes in PARTS]
    assert max(map(seconds, parts)) < seconds(mix(parts)) < sum(map(seconds, parts))


def test_what_comes_before_stays_before() -> None:
    whole = mix([graph("gemma2", *sizes, "executed") for sizes in PARTS])
    written: set[int] = set()
    later = {a.tensor for op in whole.ops for a in op.writes}

    def ready(op: Op) -> bool:
        mine = {a.tensor for a in op.writes}
        return all(
            a.tensor in written
            or a.tensor not in later
            or a.tensor in mine
            or whole.tensors[a.tensor].role != "activation"
            for a in op.reads
        )

    for op in whole.ops:
        assert ready(op), op.path
        written |= {a.tensor for a in op.writes}


def test_parts_of_two_models_are_no_batch() -> None:
    with pytest.raises(ValueError, match="are not one batch"):
        mix([graph("llama", *PARTS[0]), graph("qwen2", *PARTS[1])])


def test_folded_parts_mix_as_whole_ones_do() -> None:
    parts = [graph("llama", *sizes) for sizes in PARTS]
    whole, folded = mix(parts), mix([fold(part) for part in parts])
    assert flops(folded) == pytest.approx(flops(whole), rel=1e-12)
    for kind in ("weight_read", "activation_read", "activation_write", "kv_read", "kv_write"):
        assert total(folded, kind) == pytest.approx(total(whole, kind), rel=1e-12)


def test_folded_parts_with_other_layers_are_refused() -> None:
    one = fold(graph("llama", *PARTS[0]))
    other = one.model_copy(update={"ops": tuple(op.model_copy(update={"count": op.count / 2}) for op in one.ops)})
    with pytest.raises(ValueError, match="the same side of each sliding window"):
        mix([one, other])
