"""Experts on several ranks, and experts that are chosen unevenly.

`skew_experts`: some experts are chosen more often, by Zipf's law, so that a step touches fewer of them.

`expert_parallel`: one rank has its share of the experts, for the tokens of all ranks (GShard, arXiv 2006.16668).
Everything but the routed experts is whole on each rank and works on a batch of its own: the workload of the graph is
that of one rank, and all `degree` ranks together serve `degree` times its batch (data-parallel attention). Tokens are
sent to the ranks of their experts before them and back after them, by an all-to-all each.

Under uniform routing a rank gets as many rows as it sends, for a `degree`-th of the experts. Under skew the graph is
that of the most loaded rank, experts being dealt out one by one from the most popular on (round robin). The experts it
touches are those of Zipf's law among its own, with the same exponent.

Example: ``expert_parallel(graph, 8, link="nvlink")`` → two all-to-alls in each layer with experts
"""

from collections import defaultdict
from math import isfinite

from roofline.graph.dataflow import GATHERS, Dataflow
from roofline.graph.edit import Edit, access, changed
from roofline.graph.op import ANCHORS, Access, Kind, Op, OpGraph, Routing, chosen_by_a_token
from roofline.whatif.checks import checked_ranks, executed
from roofline.whatif.collectives import all_to_all

OPTION, SKEW_OPTION = "expert_parallel", "expert_skew"


def expert_parallel(graph: OpGraph, degree: int, link: str = "nvlink") -> OpGraph:
    """The most loaded of `degree` ranks that share the experts; 1 is the identity.

    Raises: ValueError without experts in grouped products and an assumed routing, or where they do not divide.
    """
    if checked_ranks(OPTION, degree) == 1:
        return graph
    if OPTION in executed(graph, OPTION).options:
        raise ValueError(f"the experts are spread already ({graph.options[OPTION]}); give one degree")
    modules: dict[str, list[int]] = defaultdict(list)
    for i, op in enumerate(graph.ops):
        if op.routing is not None:
            modules[op.path].append(i)
    if not modules:
        raise ValueError(
            "no product of the graph has experts with an assumed routing; use a mixture of experts, traced on meta"
        )
    edit, flow = Edit(graph), Dataflow(graph)
    for path, products in modules.items():
        _spread(edit, flow, _Experts(graph, path, products, degree), link)
    return edit.done({OPTION: f"{degree} over {link}, a batch for each rank"})


class _Experts:
    """The experts of one module, and what of them one rank has."""

    def __init__(self, graph: OpGraph, path: str, products: list[int], degree: int) -> None:
        self.path, self.products, self.degree = path, products, degree
        routing = graph.ops[products[0]].routing
        assert routing is not None  # products are those with a routing
        if routing.experts % degree:
            fits = ", ".join(str(n) for n in range(1, routing.experts + 1) if routing.experts % n == 0)
            raise ValueError(f"{routing.experts} experts do not divide by {degree} ranks; use one of {fits}")
        share = 1 / degree
        if routing.skew:
            chosen = chosen_by_a_token(routing.experts, routing.per_token, routing.skew)
            share = float(chosen[::degree].sum() / chosen.sum())
        self.rows = degree * share
        """Rows that the rank works on ÷ rows that it sends."""
        self.routing = Routing(
            experts=routing.experts // degree,
            per_token=min(routing.per_token * share, routing.experts // degree),
            tokens=routing.tokens * degree,
            skew=routing.skew,
        )

    def weight_factor(self, op: Op) -> float:
        """Weight bytes that the rank reads ÷ those of the whole in the graph before."""
        assert op.routing is not None
        hit = op.routing.hit
        return self.routing.hit / hit if hit else 1 / self.degree


def _spread(edit: Edit, flow: Dataflow, experts: _Experts, link: str) -> None:
    """Rewrite one module: send in, work on the rank's rows, send back."""
    graph, rows = edit.graph, experts.rows
    first, last = experts.products[0], experts.products[-1]
    inside = _between(graph, experts)
    made = {a.tensor for i in inside for a in graph.ops[i].writes}
    inputs, outputs = _inputs(graph, experts, made), graph.ops[last].writes
    arrived = {a.tensor: edit.tensor(a.bytes * rows, "activation") for a in inputs}
    returned = {a.tensor: edit.tensor(a.bytes, "activation") for a in outputs}
    pieces = {i: [_on_rank(graph, graph.ops[i], experts, arrived, made)] for i in inside}
    for i in {r for a in outputs for r in flow.readers[a.tensor] if r > last}:
        pieces[i] = [_redirected(graph.ops[i], returned)]
    ranks, like = experts.degree, graph.ops[first]
    pieces[first][:0] = [
        all_to_all(a, access(arrived[a.tensor], a.bytes * rows), ranks=ranks, link=link, like=like) for a in inputs
    ]
    pieces[last] += [
        all_to_all(
            access(a.tensor, a.bytes * rows), access(returned[a.tensor], a.bytes), ranks=ranks, link=link, like=like
        )
        for a in outputs
    ]
    for i, piece in pieces.items():
        edit.put(i, *piece)
    for tensor in made:
        edit.resize(tensor, edit.storage_bytes(tensor) * rows)
    for tensor in _weights(graph, experts.products):
        edit.resize(tensor, edit.storage_bytes(tensor) / ranks)
    _spread_biases(edit, experts)


def _spread_biases(edit: Edit, experts: _Experts) -> None:
    """Biases, of which the module picks an expert's for each row: a rank has those of its experts."""
    for i, op in enumerate(edit.graph.ops):
        if op.path == experts.path and op.name in GATHERS and edit.graph.tensors[op.reads[0].tensor].role == "weight":
            table, *rest = op.reads
            edit.resize(table.tensor, edit.storage_bytes(table.tensor) / experts.degree)
            read = access(table.tensor, min(table.bytes, edit.storage_bytes(table.tensor)))
            edit.put(i, changed(op, reads=(read, *rest)))


def _between(graph: OpGraph, experts: _Experts) -> list[int]:
    """The products and all between them: what works on rows of experts."""
    made: set[int] = set()
    inside: list[int] = []
    for i in range(experts.products[0], experts.products[-1] + 1):
        op = graph.ops[i]
        if i in experts.products or (op.kind not in ANCHORS and any(a.tensor in made for a in op.reads)):
            inside.append(i)
            made.update(a.tensor for a in op.writes)
    return inside


def _inputs(graph: OpGraph, experts: _Experts, made: set[int]) -> list[Access]:
    """The rows that the products start from: the largest operand of each that is not made by them."""
    inputs: dict[int, Access] = {}
    for i in experts.products:
        rows = [a for a in graph.ops[i].reads if graph.tensors[a.tensor].role != "weight"]
        largest = max(rows, key=lambda a: a.bytes)
        if largest.tensor not in made:
            inputs[largest.tensor] = largest
    return list(inputs.values())


def _on_rank(graph: OpGraph, op: Op, experts: _Experts, arrived: dict[int, int], made: set[int]) -> Op:
    """An operation on the rank's rows, with the rank's experts."""
    rows, reads = experts.rows, []
    for a in op.reads:
        if graph.tensors[a.tensor].role == "weight" and op.routing is not None:
            reads.append(access(a.tensor, a.bytes * experts.weight_factor(op)))
        elif a.tensor in arrived:
            reads.append(access(arrived[a.tensor], a.bytes * rows))
        else:
            reads.append(access(a.tensor, a.bytes * rows) if a.tensor in made else a)
    dims = dict(op.dims)
    for name in ("m", "elements"):
        if name in dims:
            dims[name] = round(dims[name] * rows)
    if op.kind is Kind.GROUPED_MATMUL and "groups" in dims:
        dims["groups"] //= experts.degree
    return changed(
        op,
        dims=dims,
        matrix_flops=op.matrix_flops * rows,
        vector_flops=op.vector_flops * rows,
        reads=tuple(reads),
        writes=tuple(access(a.tensor, a.bytes * rows) for a in op.writes),
        routing=experts.routing if op.routing is not None else None,
    )


def _redirected(op: Op, returned: dict[int, int]) -> Op:
    def moved(accesses: tuple[Access, ...]) -> tuple[Access, ...]:
        return tuple(access(returned.get(a.tensor, a.tensor), a.bytes) for a in accesses)

    return changed(op, reads=moved(op.reads), writes=moved(op.writes))


def _weights(graph: OpGraph, products: list[int]) -> set[int]:
    return {a.tensor for i in products for a in graph.ops[i].reads if graph.tensors[a.tensor].role == "weight"}


def skew_experts(graph: OpGraph, exponent: float) -> OpGraph:
    """The pass with experts chosen unevenly, by Zipf's law with this exponent (`Routing.skew`); 0 is uniform.

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
    return edit.done({SKEW_OPTION: f"{exponent:g}"})


def _skewed(graph: OpGraph, op: Op, exponent: float) -> Op:
    if op.routing is None:
        return op
    routing = op.routing.model_copy(update={"skew": float(exponent)})
    ratio = routing.hit / op.routing.hit if op.routing.hit else 1.0

    def resized(a: Access) -> Access:
        return access(a.tensor, a.bytes * ratio) if graph.tensors[a.tensor].role == "weight" else a

    return changed(op, routing=routing, reads=tuple(resized(a) for a in op.reads))
