"""Experts that were executed densely, every token through each one, as kernels that run the chosen ones alone.

Some models multiply all tokens by the matrices of all experts, in one batched product, and leave to the router's scores
what counts (Llama 4). The work that is asked for is that of the experts that a token chooses, as kernels for mixtures
do it (MegaBlocks, arXiv 2211.15841): k of E of the rows, and the weights of the experts that any token chooses.

A product is dense over experts if its batch is as large as what a `topk` in the block around it chooses from, its rows
are the tokens that choose, and it reads a weight. It becomes a grouped product with an assumed routing; what lies
between such products, and before and behind them in the same sizes, shrinks with the rows. No operation is taken out,
so that the result can be joined to what was executed.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from roofline.graph.dataflow import Dataflow
from roofline.graph.edit import access, changed, rebuilt, whole
from roofline.graph.op import ANCHORS, Access, Kind, Op, OpGraph, Routing


@dataclass(frozen=True)
class _Dense:
    """A product of all tokens with all experts."""

    index: int
    routing: Routing

    @property
    def share(self) -> float:
        """Rows that are asked for ÷ rows that are executed."""
        return self.routing.per_token / self.routing.experts


def routed(graph: OpGraph) -> OpGraph:
    """`graph` with the same number of operations, in which experts run only the tokens that choose them."""
    products = list(_dense_products(graph))
    if not products:
        return graph
    flow = Dataflow(graph)
    shares: dict[int, float] = {}  # by tensor with a row for each pair of token and expert
    within: dict[int, float] = {}  # by operation on such tensors
    for product in products:
        for i, numbers in _same_rows(flow, product.index):
            shares |= dict.fromkeys(numbers, product.share)
            within[i] = product.share
    ops = list(graph.ops)
    for i, share in within.items():
        ops[i] = _fewer_rows(ops[i], shares, share)
    for product in products:
        ops[product.index] = _grouped(graph, ops[product.index], product.routing)
    tensors = tuple(
        tensor.model_copy(update={"storage_bytes": whole(tensor.storage_bytes * shares[tensor.id])})
        if tensor.id in shares
        else tensor
        for tensor in graph.tensors
    )
    return rebuilt(graph, ops=tuple(ops), tensors=tensors)


def _dense_products(graph: OpGraph) -> Iterator[_Dense]:
    choices: list[Op] = []
    for i, op in enumerate(graph.ops):
        if "chosen" in op.dims:
            choices.append(op)
        if op.kind is not Kind.MATMUL or op.dims.get("b", 1) == 1 or not choices:
            continue
        reads_weight = graph.has_weight(op)
        choice = next((c for c in reversed(choices) if _in_block(op.path, c.path)), None)
        if choice is None or not reads_weight or op.dims["b"] != choice.dims["of"]:
            continue
        tokens = choice.dims["elements"] // choice.dims["of"]
        if op.dims["m"] == tokens:
            yield _Dense(i, Routing(experts=op.dims["b"], per_token=choice.dims["chosen"], tokens=tokens))


def _in_block(path: str, router: str) -> bool:
    """Return whether a module lies in the block of a router: in the module around it."""
    block = router.rpartition(".")[0]
    return not block or f"{path}.".startswith(f"{block}.")


def _same_rows(flow: Dataflow, product: int) -> Iterator[tuple[int, list[int]]]:
    """Operations on a row for each pair of token and expert, with the tensors among theirs that have such rows.

    From the operands and results of the product, over operations that keep each row apart.
    """
    ops, tensors = flow.graph.ops, flow.graph.tensors
    dims = ops[product].dims
    pairs = dims["b"] * dims["m"]

    def rows(i: int) -> bool:
        op = ops[i]
        return op.kind not in ANCHORS | {Kind.REDUCTION} and op.dims.get("elements", 0) in widths

    widths = {pairs * dims["k"], pairs * dims["n"], pairs * dims["n"] // 2}  # halves: gate and up in one product
    inputs = [
        a.tensor
        for a in ops[product].reads
        if tensors[a.tensor].role == "activation" and (p := flow.producer(product, a.tensor)) is not None and rows(p)
    ]
    outputs = [a.tensor for a in ops[product].writes]
    yield product, [*inputs, *outputs]
    seen = {product}
    todo = [*inputs, *outputs]
    while todo:
        tensor = todo.pop()
        for i in (*flow.writers[tensor], *flow.readers[tensor]):
            if i in seen or ops[i].kind in ANCHORS:
                continue
            seen.add(i)
            if not rows(i):
                yield i, []  # a sum over experts
                continue
            written = [a.tensor for a in ops[i].writes]
            before = [
                a.tensor
                for a in ops[i].reads
                if tensors[a.tensor].role == "activation" and (p := flow.producer(i, a.tensor)) is not None and rows(p)
            ]
            yield i, [*written, *before]
            todo += [*written, *before]


def _fewer_rows(op: Op, shares: dict[int, float], share: float) -> Op:
    """`op` on the rows that are asked for."""

    def sized(accesses: tuple[Access, ...]) -> tuple[Access, ...]:
        return tuple(access(a.tensor, a.bytes * shares.get(a.tensor, 1)) for a in accesses)

    work = {"matrix_flops": op.matrix_flops * share, "vector_flops": op.vector_flops * share}
    dims = op.dims if op.kind is Kind.MATMUL else op.dims | {"elements": round(op.dims.get("elements", 0) * share)}
    return changed(op, reads=sized(op.reads), writes=sized(op.writes), dims=dims, **work)


def _grouped(graph: OpGraph, op: Op, routing: Routing) -> Op:
    """A batched product as one of each expert's rows with its matrix; the weights are those of the experts hit."""
    share = routing.hit / routing.experts
    reads = tuple(
        access(a.tensor, a.bytes * share) if graph.tensors[a.tensor].role == "weight" else a for a in op.reads
    )
    rows = round(routing.tokens * routing.per_token)
    dims = {"groups": op.dims["b"], "m": rows} | {name: op.dims[name] for name in op.dims if name not in ("b", "m")}
    return changed(op, kind=Kind.GROUPED_MATMUL, dims=dims, reads=reads, routing=routing)
