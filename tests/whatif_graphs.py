"""Traces of tiny models for what-ifs, and what must hold of every graph that a what-if makes."""

from functools import cache

from graphs import figure, peaks
from tiny import TINY, tiny
from transformers import AutoConfig

from profiler.models.inputs import prepare
from profiler.models.trace import trace
from profiler.models.weights import build_meta
from roofline.fusion.fuse import fused
from roofline.graph.op import OpGraph, Traffic
from roofline.graph.op import traffic as classes
from roofline.hardware.spec import Peaks
from roofline.price import price
from roofline.workload import Workload

PHASES = {"prefill": (12, 0), "decode": (1, 12), "chunk": (4, 12)}
DTYPES = ("float32", "bfloat16", "int8", "float8_e4m3fn", "int4", "float4_e2m1fn_x2")
BYTES = ("weight_read", "activation_read", "activation_write", "kv_read", "kv_write")


@cache
def traced(
    name: str,
    phase: str,
    *,
    attn: str = "default",
    cached: str = "dynamic",
    layers: int | None = None,
    dtype: str = "bfloat16",
    batch: int = 2,
) -> OpGraph:
    """One pass of a tiny model, on `meta`; with `layers` the number of its layers."""
    query, context = PHASES[phase]
    what = Workload(batch=batch, query_tokens=query, context_tokens=context, dtype=dtype)
    config = tiny(name)
    if layers is not None:
        fields = dict(TINY[name]) | {"num_hidden_layers": layers, "n_layer": layers}
        config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    model = build_meta(config, dtype, attn)
    return trace(model, prepare(model, what, cache=cached), what, name=name, target="cuda", options={})


def all_peaks() -> Peaks:
    """Peaks by hand for each type a what-if can choose."""
    return peaks().model_copy(update={"matrix": {dtype: figure(100.0) for dtype in DTYPES}})


def totals(graph: OpGraph) -> dict[str, float]:
    """FLOPs and bytes of the pass, counts included, and what is stored."""
    ops = list(zip(graph.ops, by_class(graph), strict=True))
    found = {name: sum(getattr(t, name) * op.count for op, t in ops) for name in BYTES}
    found |= {name: sum(getattr(op, name) * op.count for op, _ in ops) for name in ("matrix_flops", "vector_flops")}
    return found | {role: stored(graph, role) for role in ("weight", "activation", "kv")}


def by_class(graph: OpGraph) -> list[Traffic]:
    """As `OpGraph.traffic`, never from a cache."""
    return [classes(graph.tensors, op.reads, op.writes) for op in graph.ops]


def stored(graph: OpGraph, role: str) -> float:
    return sum(tensor.storage_bytes for tensor in graph.tensors if tensor.role == role)


def traffic(graph: OpGraph) -> float:
    return sum(t.total * op.count for op, t in zip(graph.ops, by_class(graph), strict=True))


def check(graph: OpGraph) -> None:
    """Whatever a what-if makes is a valid graph that can be written, priced and fused."""
    assert OpGraph.model_validate(graph.model_dump()) == graph
    assert (price(graph, all_peaks()).time_s >= 0).all()
    ideal = fused(graph)
    assert traffic(ideal) <= traffic(graph) * (1 + 1e-9)
    assert (price(ideal, all_peaks()).time_s >= 0).all()
    touched: dict[int, list[int]] = {}
    for i, op in enumerate(graph.ops):
        for access in (*op.reads, *op.writes):
            touched.setdefault(access.tensor, []).append(i)
    for tensor in graph.tensors:
        if tensor.held is not None and tensor.id in touched:
            assert tensor.held[0] <= touched[tensor.id][0] and touched[tensor.id][-1] <= tensor.held[1]
            assert tensor.held[0] >= -1 and tensor.held[1] <= len(graph.ops)
