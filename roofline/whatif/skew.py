"""Uneven choice of experts: some are chosen more often, so that a step touches fewer of them.

Example: ``skew_experts(graph, 1.0)`` → weight reads of experts as under Zipf's law with exponent 1
"""

from math import isfinite

from roofline.graph.edit import Edit, access, changed
from roofline.graph.op import Access, Op, OpGraph

OPTION = "expert_skew"


def skew_experts(graph: OpGraph, exponent: float) -> OpGraph:
    """The pass with experts chosen by Zipf's law (`Routing.skew`); 0 is uniform.

    The reads of expert weights are those of all experts × expected experts hit ÷ experts.
    Raises: ValueError for a negative exponent, or a graph without assumed routing.
    """
    if not isfinite(exponent) or exponent < 0:
        raise ValueError(f"the skew of experts is {exponent}; use 0 (uniform) or a positive exponent of Zipf's law")
    routed = [i for i, op in enumerate(graph.ops) if op.routing]
    if not routed:
        raise ValueError("no product of the graph has an assumed choice of experts to skew; use a mixture of experts")
    if all((routing := graph.ops[i].routing) and routing.skew == exponent for i in routed):
        return graph
    edit = Edit(graph)
    for i in routed:
        edit.put(i, _skewed(graph, graph.ops[i], exponent))
    return edit.done({OPTION: f"{exponent:g}"})


def _skewed(graph: OpGraph, op: Op, exponent: float) -> Op:
    if op.routing is None:
        return op
    routing = op.routing.model_copy(update={"skew": float(exponent)})
    ratio = routing.hit / op.routing.hit if op.routing.hit else 1.0

    def resized(a: Access) -> Access:
        return access(a.tensor, a.bytes * ratio) if graph.tensors[a.tensor].role == "weight" else a

    return changed(op, routing=routing, reads=tuple(resized(a) for a in op.reads))
