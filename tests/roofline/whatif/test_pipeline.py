"""Pipeline stages: together they are the whole, and each sends on what the next one reads."""

import math

import pytest
from each import each
from graphs import GraphBuilder
from whatif_graphs import PHASES, check_rank, flops, link_bytes, stored, traced, transfers

from roofline.graph.fold import fold
from roofline.graph.op import OpGraph
from roofline.whatif.pipeline import pipeline_stage
from roofline.whatif.tensor_parallel import tensor_parallel

FAMILIES = ("llama", "gpt2", "falcon", "mixtral", "qwen3_moe", "gemma3", "deepseek_v3", "mamba")
TIED = frozenset({"gpt2", "falcon", "gemma3", "mamba"})


def stages_of(graph: OpGraph, stages: int) -> list[OpGraph]:
    return [pipeline_stage(graph, stages, i, link="network") for i in range(stages)]


def test_three_layers_by_hand() -> None:
    b = GraphBuilder()
    b.activation("x", 40)
    for layer, (read, made) in enumerate([("x", "h0"), ("h0", "h1"), ("h1", "h2")]):
        b.weight(f"w{layer}", 100)
        b.op("matmul", reads=[read, f"w{layer}"], writes={made: 40}, path=f"layers.{layer}.mlp", matrix=10)
    b.weight("head", 50)
    b.op("matmul", reads=["h2", "head"], writes={"out": 20}, path="head", matrix=5)
    for unread in ("layers.0.unread", "layers.2.unread", "unread"):
        b.weight(unread, 7)
    first, last = stages_of(b.graph(), 2)
    assert [op.path for op in first.ops] == ["layers.0.mlp", "layers.1.mlp", "layers.1.mlp"]
    assert (first.ops[-1].link, first.ops[-1].link_bytes, first.ops[-1].messages) == ("network", 40, 1)
    assert [op.path for op in last.ops] == ["layers.2.mlp", "head"]
    assert [t.name for t in first.tensors] == ["x", "w0", "h0", "w1", "h1", "layers.0.unread", "unread"]
    assert [t.name for t in last.tensors] == ["h1", "w2", "h2", "head", "out", "layers.2.unread"]
    assert [t.id for t in last.tensors] == [0, 1, 2, 3, 4, 5]


@each("phase", PHASES)
@pytest.mark.parametrize("name", FAMILIES)
def test_stages_are_together_the_whole(name: str, phase: str) -> None:
    graph = traced(name, phase)
    parts = stages_of(graph, 2)
    for part in parts:
        check_rank(part)
    assert flops(graph) == sum(flops(part) for part in parts)
    assert math.isclose(
        sum(op.vector_flops for op in graph.ops), sum(op.vector_flops for part in parts for op in part.ops)
    )
    tied = 128 * 32 * 2 if name in TIED else 0  # embedding and head on both ends
    tables = sum(t.storage_bytes for t in graph.tensors if t.role == "weight" and "rotary" in str(t.name))
    assert 0 <= sum(stored(part, "weight") for part in parts) - stored(graph, "weight") - tied <= tables
    assert sum(stored(part, "kv") for part in parts) == stored(graph, "kv")
    batch, query = graph.workload.batch, graph.workload.query_tokens
    (sent,) = transfers(parts[0])
    assert sent.link_bytes == batch * query * 32 * (4 if name == "mamba" else 2)  # mamba's residual is in float32
    assert not transfers(parts[1])


def test_more_stages_split_as_evenly_as_they_can() -> None:
    parts = stages_of(traced("gemma3", "decode"), 3)  # four layers
    layers = [{op.path.split(".")[2] for op in part.ops if op.path.startswith("model.layers.")} for part in parts]
    assert layers == [{"0", "1"}, {"2"}, {"3"}]
    assert [len(transfers(part)) for part in parts] == [1, 1, 0]


def test_it_composes_with_tensor_parallel_in_either_order() -> None:
    graph = traced("llama", "decode")
    first = pipeline_stage(tensor_parallel(graph, 2), 2, 0)
    last = tensor_parallel(pipeline_stage(graph, 2, 0), 2)
    check_rank(first)
    check_rank(last)
    assert flops(first) == flops(last) and stored(first, "weight") == stored(last, "weight")
    assert link_bytes(first) == link_bytes(last)


def test_one_stage_is_the_identity_and_the_rest_is_refused() -> None:
    graph = traced("llama", "decode")
    assert pipeline_stage(graph, 1, 0) is graph
    with pytest.raises(ValueError, match="3 stages, but only 2 repeated layers; use 2 stages or fewer"):
        pipeline_stage(graph, 3, 0)
    with pytest.raises(ValueError, match="stage 2 is not one of 2; they are numbered 0 to 1"):
        pipeline_stage(graph, 2, 2)
    with pytest.raises(ValueError, match="stages is 0; use a whole number"):
        pipeline_stage(graph, 0, 0)
    with pytest.raises(ValueError, match="is stage 0 of 2 over nvlink already"):
        pipeline_stage(pipeline_stage(graph, 2, 0), 2, 0)
    with pytest.raises(ValueError, match="the graph is folded"):
        pipeline_stage(fold(graph), 2, 0)
