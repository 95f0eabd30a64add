"""Traces of tiny models for what-ifs, and what must hold of every graph that a what-if makes, with links or without."""

import math
from functools import cache

from graphs import figure, peaks
from tiny import TINY, tiny
from transformers import AutoConfig

from profiler.models.build import build_meta
from profiler.models.inputs import prepare
from profiler.models.trace import trace
from roofline.fusion.fuse import fused
from roofline.graph.op import Kind, Op, OpGraph, Traffic
from roofline.graph.op import traffic as classes
from roofline.hardware.spec import Link, Peaks
from roofline.price import price
from roofline.workload import Workload

PHASES = {"prefill": (12, 0), "decode": (1, 12), "chunk": (4, 12)}
DTYPES = ("float32", "bfloat16", "int8", "float8_e4m3fn", "int4", "float4_e2m1fn_x2")
LINKS = ("nvlink", "pcie", "network")
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


def linked_peaks() -> Peaks:
    """Peaks by hand for each type a what-if can choose; 1 byte a second over each link, without latency."""
    matrix = {dtype: figure(100.0) for dtype in DTYPES}
    return peaks().model_copy(update={"matrix": matrix, "links": {name: Link(bandwidth=figure(1.0)) for name in LINKS}})


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
    """Valid, written and read, priced, fused with no more traffic, and tensors held while they are touched."""
    assert OpGraph.model_validate(graph.model_dump()) == graph
    assert (price(graph, linked_peaks()).time_s >= 0).all()
    ideal = fused(graph)
    assert traffic(ideal) <= traffic(graph) * (1 + 1e-9)
    assert (price(ideal, linked_peaks()).time_s >= 0).all()
    assert math.isclose(link_bytes(ideal), link_bytes(graph), rel_tol=1e-9, abs_tol=1e-9)
    touched: dict[int, list[int]] = {}
    for i, op in enumerate(graph.ops):
        for access in (*op.reads, *op.writes):
            touched.setdefault(access.tensor, []).append(i)
    for tensor in graph.tensors:
        if tensor.held is not None and tensor.id in touched:
            assert tensor.held[0] <= touched[tensor.id][0] and touched[tensor.id][-1] <= tensor.held[1]
            assert tensor.held[0] >= -1 and tensor.held[1] <= len(graph.ops)


def check_rank(graph: OpGraph) -> None:
    """As `check`, and no access is larger than its tensor."""
    check(graph)
    for op in graph.ops:
        for access in (*op.reads, *op.writes):
            assert access.bytes <= graph.tensors[access.tensor].storage_bytes * (1 + 1e-9), (op.path, op.name)


def link_bytes(graph: OpGraph) -> float:
    return sum(op.link_bytes * op.count for op in graph.ops)


def collectives(graph: OpGraph, name: str = "") -> list[Op]:
    """Collectives of one name ("all_reduce"), or all, in order."""
    return [op for op in graph.ops if op.kind is Kind.COLLECTIVE and op.name.endswith(name)]


def transfers(graph: OpGraph, name: str = "") -> list[Op]:
    return [op for op in graph.ops if op.kind is Kind.TRANSFER and op.name.endswith(name)]


def flops(graph: OpGraph) -> float:
    return sum(op.matrix_flops * op.count for op in graph.ops)
