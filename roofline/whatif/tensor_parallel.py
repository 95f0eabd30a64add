"""One rank of tensor parallelism: its share of each operation, and the collectives between them.

`tensor_parallel_plan` says how the work is divided, from the dataflow alone; this applies it. The workload stays that
of the whole group of ranks. A vocabulary that does not divide is padded, as Megatron does; anything else that does not
is refused. Apply it before the activations are quantised (a scale for all features of a token would otherwise be taken
for work that needs them all) and before fusing.
"""

import re
from collections.abc import Mapping
from math import isclose

from roofline.graph.edit import Edit, access, changed
from roofline.graph.op import PRODUCTS, Access, Kind, Op, OpGraph, Routing
from roofline.whatif.checks import checked_ranks, executed, workspaces
from roofline.whatif.pipeline import all_gather, all_reduce
from roofline.whatif.tensor_parallel_plan import plan
from roofline.whatif.tensor_parallel_rules import Plan, Shares

OPTION = "tensor_parallel"
WHOLE_OPTION = "tensor_parallel_whole"
"""Weight products that stay whole on every rank, layers by "*"."""


def tensor_parallel(graph: OpGraph, degree: int, link: str = "nvlink") -> OpGraph:
    """Return one rank of tensor parallelism: its share of every layer, and the all-reduces between them.

    Args:
        degree: number of ranks; 1 changes nothing.
        link: of the device to the other ranks.
    Raises: ValueError where query heads, key-value heads or a width cannot be divided, or for a fused graph.
    """
    return sharded(graph, degree, link, {})


def sharded(graph: OpGraph, degree: int, link: str, experts: Mapping[int, tuple[float, Routing]]) -> OpGraph:
    """The same as `tensor_parallel`, but the products of `experts`, by operation, keep whole experts: the share of all
    rows that the rank has, and its routing."""
    if checked_ranks(OPTION, degree) == 1:
        return graph
    if OPTION in graph.options:
        raise ValueError(f"the graph is one rank of {graph.options[OPTION]} already; start from the whole model")
    _check_heads(executed(graph, OPTION), degree)
    rank = plan(graph, degree)
    for i, how in rank.split.items():
        if how not in ("column", "row") or i in rank.padded or i in experts:
            continue
        op, side, name = graph.ops[i], *(("n", "output") if how == "column" else ("k", "input"))
        width = op.dims[side] * rank.shares[i].matrix
        if not isclose(width, round(width), abs_tol=1e-6):
            raise ValueError(
                f"{op.path} has an {name} width of {op.dims[side]}, "
                f"which {degree} ranks cannot share; use a degree that divides it"
            )
    edit = Edit(graph)
    _resize(edit, rank)
    for i, op in enumerate(graph.ops):
        if i in experts:
            piece = [_whole_experts(graph, op, rank.shares[i], *experts[i])]
        else:
            piece = [_divided(op, rank.shares[i], rank.split.get(i), degree)]
        for tensor in rank.summed.get(i, ()):
            piece.append(all_reduce(_written(op, tensor), ranks=degree, link=link, like=op))
        for tensor in rank.gathered.get(i, ()):
            part, whole = _written(piece[0], tensor), edit.activation(_written(op, tensor).bytes)
            piece.append(all_gather(part, whole, ranks=degree, link=link, like=op))
        if len(piece) > 1 or piece[0] is not op:
            edit.put(i, *piece)
    heads = graph.heads and (graph.heads[0] // degree, max(1, graph.heads[1] // degree))
    options = {OPTION: f"{degree} over {link}"}
    kept = dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.|$)", "*", graph.ops[i].path) for i in rank.whole)
    return edit.done(options | ({WHOLE_OPTION: ", ".join(kept)} if kept else {}), heads=heads)


def _check_heads(graph: OpGraph, degree: int) -> None:
    counts = [graph.heads] if graph.heads else []
    for op in graph.ops:
        if op.kind is Kind.ATTENTION and "heads" in op.dims:
            # heads of a group may be folded into the queries: then the config's count is the true one
            folded = op.dims.get("query", 0) // graph.workload.query_tokens or 1
            counts.append((op.dims["heads"] * folded, op.dims.get("kv_heads", op.dims["heads"])))
    for query, kv in dict.fromkeys(counts):
        fits = [n for n in range(1, query + 1) if query % n == 0 and (kv % n == 0 or n % kv == 0)]
        use = f"use one of {', '.join(map(str, fits))}"
        if query % degree:
            raise ValueError(f"{query} query heads do not divide by {degree} ranks; {use}")
        if kv % degree and degree % kv:
            raise ValueError(f"{kv} key-value heads neither divide by {degree} ranks nor these by them; {use}")


def _divided(op: Op, shares: Shares, how: str | None, degree: int) -> Op:
    if all(share == 1 for share in (*shares.reads, *shares.writes, shares.matrix, shares.vector)):
        return op
    return changed(
        op, dims=_dims(op, shares, how, degree),
        matrix_flops=op.matrix_flops * shares.matrix, vector_flops=op.vector_flops * shares.vector,
        reads=tuple(access(a.tensor, a.bytes * s) for a, s in zip(op.reads, shares.reads, strict=True)),
        writes=tuple(access(a.tensor, a.bytes * s) for a, s in zip(op.writes, shares.writes, strict=True)),
    )  # fmt: skip


def _whole_experts(graph: OpGraph, op: Op, shares: Shares, rows: float, routing: Routing) -> Op:
    """A product with the rank's own experts for their share of the rows."""
    was = op.routing.hit if op.routing else 0.0
    weights = routing.hit / was if was else shares.matrix
    kept = {a.tensor for a in op.reads if graph.tensors[a.tensor].role == "weight"}
    reads = (access(a.tensor, a.bytes * (weights if a.tensor in kept else rows)) for a in op.reads)
    writes = (access(a.tensor, a.bytes * s) for a, s in zip(op.writes, shares.writes, strict=True))
    smaller = {name: round(op.dims[name] * rows) for name in ("m",) if name in op.dims}
    if op.routing and "groups" in op.dims:
        smaller["groups"] = op.dims["groups"] * routing.experts // op.routing.experts
    return changed(
        op, dims=op.dims | smaller, matrix_flops=op.matrix_flops * rows, vector_flops=op.vector_flops * rows,
        reads=tuple(reads), writes=tuple(writes), routing=routing,
    )  # fmt: skip


def _dims(op: Op, shares: Shares, how: str | None, degree: int) -> dict[str, int]:
    dims = dict(op.dims)
    if how == "heads" and op.kind is Kind.ATTENTION:
        heads = max(1, dims["heads"] // degree)
        folded = dims["heads"] / heads / degree  # below 1 where heads of a group are folded into the queries
        dims |= {"heads": heads, "kv_heads": max(1, dims.get("kv_heads", dims["heads"]) // degree)}
        dims |= {name: round(dims[name] * folded) for name in ("query", "pairs") if name in dims}
    elif how == "heads":
        dims["b"] = round(dims["b"] * shares.matrix)
    elif how in ("column", "row"):
        side = "n" if how == "column" else "k"
        dims[side] = round(dims[side] * shares.matrix)
    elif how is None and "elements" in dims and op.kind not in PRODUCTS:
        dims["elements"] = round(dims["elements"] * shares.vector)
    return dims


def _written(op: Op, tensor: int) -> Access:
    return access(tensor, sum(a.bytes for a in op.writes if a.tensor == tensor))


def _resize(edit: Edit, rank: Plan) -> None:
    """A tensor is as large as its written part, or else as the part of it that is read."""
    read: dict[int, float] = {}
    written: dict[int, float] = {}
    for op, shares in zip(edit.graph.ops, rank.shares, strict=True):
        for parts, accesses, own in ((read, op.reads, shares.reads), (written, op.writes, shares.writes)):
            for a, share in zip(accesses, own, strict=True):
                parts[a.tensor] = max(share, parts.get(a.tensor, 0.0))
    by_tensor = {tensor: rank.shares[op].matrix for tensor, op in workspaces(edit.graph).items() if op in rank.split}
    for tensor, share in (by_tensor | read | written).items():
        if share < 1:
            edit.resize(tensor, edit.graph.tensors[tensor].storage_bytes * share)
