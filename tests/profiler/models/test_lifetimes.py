"""How long the trace says tensors are held, against what real forward passes allocate."""

import pytest
from each import each
from memory_oracle import FAMILIES, allocated, model_of, predicted, storages

from profiler.models.build import build_meta
from profiler.models.catalogue import config_of
from profiler.models.inputs import prepare
from profiler.models.trace import trace
from roofline.graph.memory import footprint
from roofline.graph.op import OpGraph
from roofline.workload import Workload

PHASES = {"prefill": (64, 0), "decode": (1, 128), "chunk": (32, 64)}


def workload(phase: str, dtype: str = "float32", batch: int = 4) -> Workload:
    query, context = PHASES[phase]
    return Workload(batch=batch, query_tokens=query, context_tokens=context, dtype=dtype)


def check(name: str, what: Workload, attn: str, cache: str = "dynamic") -> None:
    graph = predicted(name, what, attn, cache)
    memory = footprint(graph)
    model, real = model_of(name, attn, what.dtype, "cpu"), allocated(name, what, attn, cache)
    assert memory.weights == storages((*model.parameters(), *model.buffers()))
    assert memory.kv_cache == real.cache_bytes
    assert memory.peak - memory.weights == pytest.approx(real.peak_bytes, rel=0.05)
    for i, op in enumerate(graph.ops):
        held = [graph.tensors[access.tensor].held or (-1, i) for access in (*op.reads, *op.writes)]
        assert all(first <= i <= last for first, last in held)


@each("phase", PHASES)
@each("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "mamba"])
def test_memory_of_a_pass_is_what_torch_allocates(name: str, attn: str, phase: str) -> None:
    check(name, workload(phase), attn)


@each("phase", PHASES)
def test_memory_of_a_state_space_model_is_what_torch_allocates(phase: str) -> None:
    check("mamba", workload(phase), "default")


@each("attn", ["sdpa", "eager"])
@each("phase", ["prefill", "decode"])
def test_a_static_cache_is_held_whole_and_not_copied(phase: str, attn: str) -> None:
    check("llama", workload(phase), attn, cache="static")


@pytest.mark.parametrize("name", ["llama", "deepseek_v3"])
def test_memory_at_16_bits_is_what_torch_allocates(name: str) -> None:
    check(name, workload("chunk", "bfloat16"), "sdpa")


def test_lifetimes_of_a_decode_step() -> None:
    graph = predicted("llama", workload("decode"), "sdpa", "dynamic")
    end = len(graph.ops)
    assert all((tensor.held is None) == (tensor.role == "weight") for tensor in graph.tensors)
    caches = [tensor for tensor in graph.tensors if tensor.role == "kv"]
    old = [tensor for tensor in caches if tensor.held[0] == -1]
    new = [tensor for tensor in caches if tensor.held[0] != -1]
    assert sorted(t.name for t in old) == sorted(t.name for t in new) == ["0.keys", "0.values", "1.keys", "1.values"]
    made = {a.tensor: i for i, op in enumerate(graph.ops) for a in op.writes}
    for tensor in new:
        assert tensor.held == (made[tensor.id], end)
        (before,) = [t for t in old if t.name == tensor.name]
        assert before.held == (-1, made[tensor.id])  # its copy is the last that needs it
    (tokens,) = [
        t for t in graph.tensors if t.role == "activation" and t.storage_bytes == 4 * 8 and _first(graph, t.id)
    ]
    assert tokens.held == (-1, end)


def _first(graph: OpGraph, tensor: int) -> bool:
    return tensor in {access.tensor for access in graph.ops[0].reads}


def test_attention_without_a_fused_kernel_takes_room_for_its_scores() -> None:
    """On the CPU there is none for keys and values of different widths; elsewhere there is."""
    what = workload("prefill")
    meta = model_of("deepseek_v3", "sdpa", "float32", "meta")

    def workspaces(target: str) -> list[float]:
        graph = trace(meta, prepare(meta, what), what, name="deepseek_v3", target=target, options={})
        return [tensor.storage_bytes for tensor in graph.tensors if tensor.name == "workspace"]

    scores = 4 * 8 * 64 * 64 * 4
    assert len(workspaces("cpu")) == 3 and min(workspaces("cpu")) > 2 * scores
    assert workspaces("cuda") == []


def test_weights_of_llama_2_7b_at_16_bits() -> None:
    meta = build_meta(config_of("llama-2-7b"), "float16")
    what = Workload(batch=1, query_tokens=1, context_tokens=8, dtype="float16")
    graph = trace(meta, prepare(meta, what), what, name="llama-2-7b", target="cuda", options={})
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in meta.buffers())
    assert footprint(graph).weights == 6_738_415_616 * 2 + buffers
    assert f"{footprint(graph).weights / 1e9:.2f}" == "13.48"
