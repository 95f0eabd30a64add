"""One step over a mixed batch: sequences in prefill chunks and others that decode share one read of the weights.

A product with weights runs once over the tokens of all parts (Orca, OSDI 2022, selective batching; Sarathi-Serve,
arXiv 2403.02310): work and activations add up, weights are read once, and of experts those that any token hits.
Operations on one sequence at a time, attention above all, run part by part.
"""

from collections.abc import Sequence
from functools import reduce
from typing import Any

from roofline.graph.edit import redirected
from roofline.graph.op import Access, Bytes, Kind, Op, OpGraph, Tensor, routed_reads

Key = tuple[object, ...]


def mix(parts: Sequence[OpGraph]) -> OpGraph:
    """The graph of one step over all parts, in the order of the first.

    Raises: ValueError unless the parts are of one model, in one dtype, with the same weights.
    """
    return reduce(_joined, parts)


def _joined(first: OpGraph, other: OpGraph) -> OpGraph:
    if (first.model, first.workload.dtype, first.options) != (other.model, other.workload.dtype, other.options):
        raise ValueError(
            f"{first.model} {first.workload.key} and {other.model} {other.workload.key} are not one batch of one model"
        )
    numbers, tensors = _tensors(first, other)
    moved = [redirected(op, numbers) for op in other.ops]
    graph = other.model_copy(update={"tensors": tensors})
    weights = {key: i for i, op in enumerate(moved) if (key := _weights_of(op, graph))}
    ops: list[Op] = []
    done = 0
    for op in first.ops:
        match = weights.get(_weights_of(op, graph) or ())
        if match is None or match < done:
            ops.append(op)
            continue
        ops += [*moved[done:match], _merged(op, moved[match], graph)]
        done = match + 1
    ops += moved[done:]
    uncounted = tuple(sorted({*first.uncounted, *other.uncounted}))
    return first.model_copy(update={"ops": tuple(ops), "tensors": tensors, "uncounted": uncounted})


def _tensors(first: OpGraph, other: OpGraph) -> tuple[dict[int, int], tuple[Tensor, ...]]:
    """New number of each tensor of the other graph, and all tensors.

    Weights of one name are one; the caches of two parts are two, and those of one name would be taken for one.
    """
    named = {tensor.name: tensor.id for tensor in first.tensors if tensor.role == "weight" and tensor.name}
    tensors = [tensor.model_copy(update={"held": None}) for tensor in first.tensors]
    numbers: dict[int, int] = {}
    for tensor in other.tensors:
        shared = named.get(tensor.name or "") if tensor.role == "weight" else None
        numbers[tensor.id] = len(tensors) if shared is None else shared
        if shared is None:
            own = f"{tensor.name} beside {len(first.tensors)}" if tensor.role == "kv" and tensor.name else tensor.name
            tensors.append(tensor.model_copy(update={"id": len(tensors), "name": own, "held": None}))
    return numbers, tuple(tensors)


def _weights_of(op: Op, graph: OpGraph) -> Key | None:
    """Key of a use of weights: module, operator, and the weights themselves."""
    weights = tuple(a.tensor for a in op.reads if graph.tensors[a.tensor].role == "weight")
    return (op.path, op.kind, weights) if weights else None


def _merged(first: Op, other: Op, graph: OpGraph) -> Op:
    """Both uses of the same weights as one operation."""
    if first.count != other.count:
        raise ValueError(
            f"{first.path} stands for {first.count:g} operations in one part and {other.count:g} in another; mix parts "
            "on the same side of each sliding window, or graphs that are not folded"
        )
    routing = first.routing
    if routing is not None and other.routing is not None:
        routing = routing.model_copy(update={"tokens": routing.tokens + other.routing.tokens})
    reads: dict[int, Bytes] = {}
    for access in (*first.reads, *other.reads):
        before = reads.get(access.tensor, 0)
        shared = graph.tensors[access.tensor].role == "weight" and first.kind is not Kind.EMBEDDING
        most = graph.tensors[access.tensor].storage_bytes
        reads[access.tensor] = max(before, access.bytes) if shared else min(most, before + access.bytes)
    if routing is not None and first.routing is not None:
        for i in routed_reads(first, graph):
            reads[first.reads[i].tensor] = first.reads[i].bytes * routing.hit / first.routing.hit
    # the batch of a product that runs once for each sequence grows with the tokens, of others the rows do
    by_sequence = {"b", "m"} <= set(first.dims) and first.dims["m"] == other.dims.get("m") and first.dims["b"] != 1
    tokens = ("b" if by_sequence and first.dims["b"] != other.dims["b"] else "m", "rows", "elements")
    fields: dict[str, Any] = {
        name: getattr(first, name) + getattr(other, name) for name in ("matrix_flops", "vector_flops", "link_bytes")
    }
    fields |= {
        "messages": max(first.messages, other.messages),
        "counted": first.counted and other.counted,
        "reads": tuple(Access.model_construct(tensor=t, bytes=size) for t, size in reads.items()),
        "writes": (*first.writes, *other.writes),
        "dims": {name: size + other.dims.get(name, 0) * (name in tokens) for name, size in first.dims.items()},
        "routing": routing,
        "also": tuple(dict.fromkeys((*first.also, *other.also))),
    }
    return first.model_copy(update=fields)
