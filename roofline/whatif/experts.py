"""Experts on several ranks, and experts that are chosen unevenly.

`skew_experts`: some experts are chosen more often, by Zipf's law, so that a step touches fewer of them.

`expert_parallel`: one rank has its share of the experts, for the tokens of all ranks (GShard, arXiv 2006.16668).

With data-parallel attention everything but the routed experts is whole on each rank and works on the workload of the
graph, so that all `degree` ranks together serve `degree` times its batch. An all-to-all sends tokens to the ranks of
their experts, another one back. A token goes once to each rank that has an expert of its choice, however many, and one
sum comes back (DeepSeek-V3, arXiv 2412.19437, section 3.2.2). With tensor-parallel attention the same ranks divide all
else among them (`tensor_parallel`); each has all tokens of the batch already, works on those of its experts, and the
all-reduce behind the layer adds up what they made.

Experts that run densely, every token through each one, become those that run the tokens that choose them alone
(`roofline.fusion.experts`): that is what there is to send, and to skew.

Under uniform routing a rank gets as many rows as it sends, for a `degree`-th of the
experts. Under skew the graph is that of the most loaded rank, experts being dealt out round robin from the most popular
on; the experts it touches are those of Zipf's law among its own, with the same exponent.
"""

from collections import defaultdict
from math import isfinite
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from roofline.fusion.experts import routed
from roofline.graph.dataflow import GATHERS, Dataflow
from roofline.graph.edit import Edit, access, changed, redirected
from roofline.graph.op import ANCHORS, EXPERT_PARALLEL, Access, Kind, Op, OpGraph, Routing, chosen_by_a_token
from roofline.whatif.checks import checked_ranks, executed
from roofline.whatif.pipeline import all_to_all
from roofline.whatif.tensor_parallel import sharded

OPTION, SKEW_OPTION = EXPERT_PARALLEL, "expert_skew"


def expert_parallel(
    graph: OpGraph, degree: int, link: str = "nvlink", attention: Literal["data", "tensor"] = "data"
) -> OpGraph:
    """The most loaded of the ranks that share the experts.

    Args:
        degree: number of ranks; 1 changes nothing.
        link: of the device to the other ranks.
        attention: data where each rank has a batch of its own and all-to-alls move tokens, tensor where the ranks
            divide one batch by tensor parallelism too.
    Raises: ValueError without experts in grouped products and an assumed routing, or where they do not divide.
    """
    if checked_ranks(OPTION, degree) == 1:
        return graph
    if OPTION in executed(graph, OPTION).options:
        raise ValueError(f"the experts are spread already ({graph.options[OPTION]}); give one degree")
    graph = routed(graph)
    modules: dict[str, list[int]] = defaultdict(list)
    for i, op in enumerate(graph.ops):
        if op.routing is not None:
            modules[op.path].append(i)
    if not modules:
        raise ValueError(
            "no product of the graph has experts with an assumed routing; use a mixture of experts, traced on meta"
        )
    if attention == "tensor":
        parts = {i: _Experts(graph, path, products, degree) for path, products in modules.items() for i in products}
        divided = sharded(graph, degree, link, {i: (part.share, part.of_batch) for i, part in parts.items()})
        options = {**divided.options, OPTION: f"{degree} over {link}, whole experts of one batch"}
        return divided.model_copy(update={"options": options})
    edit, flow = Edit(graph), Dataflow(graph)
    for path, products in modules.items():
        _spread(edit, flow, _Experts(graph, path, products, degree), link)
    return edit.done({OPTION: f"{degree} over {link}, a batch for each rank"})


class _Experts:
    """The experts of one module, and the share of them on one rank."""

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
        self.share = share
        """Share of all rows that the rank works on."""
        self.rows = degree * share
        """Rows that the rank works on ÷ rows that it sends."""
        self.of_batch = Routing(
            experts=routing.experts // degree,
            per_token=min(routing.per_token * share, routing.experts // degree),
            tokens=routing.tokens,
            skew=routing.skew,
        )
        self.routing = self.of_batch.model_copy(update={"tokens": routing.tokens * degree})
        product = graph.ops[products[0]]
        self.copies = (
            degree
            * float(ranks_reached(routing, degree).max())
            * min(1.0, routing.tokens / product.dims["m"] if product.dims.get("m") else 1.0)
        )
        """Rows that cross the links, or stay, for one row of an expert: a token goes once to each rank."""


def ranks_reached(routing: Routing, ranks: int) -> NDArray[np.float64]:
    """Probability that a token chooses an expert of each rank: shape (ranks,); experts are dealt out round robin.

    A token chooses its k experts without replacement, a set S with probability ∝ Π_S w_e (conditional Poisson
    sampling), so that it misses a rank with e_k(w of the others) ÷ e_k(w), e_k the elementary symmetric polynomial.
    For even choices that is C(E − E/n, k) ÷ C(E, k).
    """
    chosen = chosen_by_a_token(routing.experts, routing.per_token, routing.skew)
    certain = chosen > 1 - 1e-12
    free = round(routing.per_token) - int(certain.sum())
    weights = np.where(certain, 0.0, chosen / np.where(certain, 1.0, 1 - chosen))
    weights = weights / max(float(weights.max()), 1e-300)
    rank = np.arange(routing.experts) % ranks
    every = _symmetric(weights, free)
    missed = [0.0 if certain[rank == r].any() else _symmetric(weights[rank != r], free) / every for r in range(ranks)]
    return 1 - np.array(missed)


def _symmetric(values: NDArray[np.float64], degree: int) -> float:
    """The elementary symmetric polynomial: the sum over all sets of `degree` values of their product."""
    sums = np.zeros(degree + 1)
    sums[0] = 1.0
    for value in values:
        sums[1:] += value * sums[:-1]
    return float(sums[degree])


def _spread(edit: Edit, flow: Dataflow, experts: _Experts, link: str) -> None:
    """Rewrite one module: send in, work on the rank's rows, send back."""
    graph, rows, ranks = edit.graph, experts.rows, experts.degree
    first, last = experts.products[0], experts.products[-1]
    made: set[int] = set()
    inside: list[int] = []  # the products and all operations between them on rows of experts
    for i in range(first, last + 1):
        op = graph.ops[i]
        if i in experts.products or (op.kind not in ANCHORS and any(a.tensor in made for a in op.reads)):
            inside.append(i)
            made.update(a.tensor for a in op.writes)
    inputs, outputs = _inputs(graph, experts, made), graph.ops[last].writes
    fewer = min(rows, experts.copies)
    arrived = {a.tensor: edit.tensor(a.bytes * fewer, "activation") for a in inputs}
    returned = {a.tensor: edit.tensor(a.bytes, "activation") for a in outputs}
    pieces = {i: [_on_rank(graph, graph.ops[i], experts, arrived, made)] for i in inside}
    for i in {r for a in outputs for r in flow.readers[a.tensor] if r > last}:
        pieces[i] = [redirected(graph.ops[i], returned)]

    def exchange(held: Access, received: Access, of: Access) -> Op:
        moved = of.bytes * experts.copies
        return all_to_all(held, received, ranks=ranks, link=link, like=graph.ops[first], moved=moved)

    pieces[first][:0] = [exchange(a, access(arrived[a.tensor], a.bytes * fewer), a) for a in inputs]
    pieces[last] += [
        exchange(access(a.tensor, a.bytes * rows), access(returned[a.tensor], a.bytes), a) for a in outputs
    ]
    for i, piece in pieces.items():
        edit.put(i, *piece)
    for tensor in made:
        edit.resize(tensor, edit.storage_bytes(tensor) * rows)
    operands = {a.tensor for i in experts.products for a in graph.ops[i].reads}
    for tensor in (t for t in operands if graph.tensors[t].role == "weight"):
        edit.resize(tensor, edit.storage_bytes(tensor) / ranks)
    # biases, of which the module picks an expert's for each row: a rank has those of its experts
    for i, op in enumerate(graph.ops):
        if op.path == experts.path and op.name in GATHERS and graph.tensors[op.reads[0].tensor].role == "weight":
            table, *rest = op.reads
            edit.resize(table.tensor, edit.storage_bytes(table.tensor) / ranks)
            read = access(table.tensor, min(table.bytes, edit.storage_bytes(table.tensor)))
            edit.put(i, changed(op, reads=(read, *rest)))


def _inputs(graph: OpGraph, experts: _Experts, made: set[int]) -> list[Access]:
    """The rows that the products start from: the largest operand of each that they do not make."""
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
            hit = op.routing.hit
            reads.append(access(a.tensor, a.bytes * (experts.routing.hit / hit if hit else 1 / experts.degree)))
        elif a.tensor in arrived:
            reads.append(access(arrived[a.tensor], a.bytes * min(rows, experts.copies)))
        else:
            reads.append(access(a.tensor, a.bytes * rows) if a.tensor in made else a)
    dims = op.dims | {name: round(op.dims[name] * rows) for name in ("m", "elements") if name in op.dims}
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


def skew_experts(graph: OpGraph, exponent: float) -> OpGraph:
    """Experts chosen unevenly, by Zipf's law.

    The reads of expert weights are those of all experts × expected experts hit ÷ experts.

    Args:
        exponent: of Zipf's law; 0 is uniform.
    Raises: ValueError for a negative exponent, or a graph without assumed routing.
    """
    if not isfinite(exponent) or exponent < 0:
        raise ValueError(f"the skew of experts is {exponent}; use 0 (uniform) or a positive exponent of Zipf's law")
    graph = routed(graph)
    routings = {i: op.routing for i, op in enumerate(graph.ops) if op.routing}
    if not routings:
        raise ValueError("no product of the graph has an assumed choice of experts to skew; use a mixture of experts")
    if all(routing.skew == exponent for routing in routings.values()):
        return graph
    edit = Edit(graph)
    for i, uniform in routings.items():
        skewed = uniform.model_copy(update={"skew": float(exponent)})
        ratio = skewed.hit / uniform.hit if uniform.hit else 1.0
        reads = tuple(
            access(a.tensor, a.bytes * ratio) if graph.tensors[a.tensor].role == "weight" else a
            for a in graph.ops[i].reads
        )
        edit.put(i, changed(graph.ops[i], routing=skewed, reads=reads))
    return edit.done({SKEW_OPTION: f"{exponent:g}"})
