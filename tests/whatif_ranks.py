"""What must hold of every graph that a what-if with links makes: it is valid, priced and fused."""

import math

from graphs import figure
from whatif_graphs import all_peaks, traffic

from roofline.fusion.fuse import fused
from roofline.graph.op import Kind, Op, OpGraph
from roofline.hardware.spec import Link, Peaks
from roofline.price import price

LINKS = ("nvlink", "pcie", "network")


def linked_peaks() -> Peaks:
    """1 byte a second over each link, without latency."""
    return all_peaks().model_copy(update={"links": {name: Link(bandwidth=figure(1.0)) for name in LINKS}})


def check_rank(graph: OpGraph) -> None:
    """Valid, written and read, priced, fused with no more traffic, and no access beyond its tensor."""
    assert OpGraph.model_validate(graph.model_dump()) == graph
    times = price(graph, linked_peaks()).time_s
    assert (times >= 0).all()
    ideal = fused(graph)
    assert traffic(ideal) <= traffic(graph) * (1 + 1e-9)
    assert (price(ideal, linked_peaks()).time_s >= 0).all()
    assert math.isclose(sum(op.link_bytes for op in ideal.ops), link_bytes(graph), rel_tol=1e-9, abs_tol=1e-9)
    touched: dict[int, list[int]] = {}
    for i, op in enumerate(graph.ops):
        for access in (*op.reads, *op.writes):
            assert access.bytes <= graph.tensors[access.tensor].storage_bytes * (1 + 1e-9), (op.path, op.name)
            touched.setdefault(access.tensor, []).append(i)
    for tensor in graph.tensors:
        if tensor.held is not None and tensor.id in touched:
            assert tensor.held[0] <= touched[tensor.id][0] and touched[tensor.id][-1] <= tensor.held[1]


def link_bytes(graph: OpGraph) -> float:
    return sum(op.link_bytes * op.count for op in graph.ops)


def collectives(graph: OpGraph, name: str = "") -> list[Op]:
    """Collectives of one name ("all_reduce"), or all, in order."""
    return [op for op in graph.ops if op.kind is Kind.COLLECTIVE and op.name.endswith(name)]


def transfers(graph: OpGraph, name: str = "") -> list[Op]:
    return [op for op in graph.ops if op.kind is Kind.TRANSFER and op.name.endswith(name)]


def flops(graph: OpGraph) -> float:
    return sum(op.matrix_flops * op.count for op in graph.ops)
