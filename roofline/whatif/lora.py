"""The cost of serving LoRA adapters (S-LoRA, arXiv 2311.03285): y += (x·A)·B for each sequence's own A and B.

Each target layer gets two skinny products, grouped by adapter, and an addition into its output. All adapters are
in memory; a pass reads those that a sequence of the batch wants, which are drawn evenly and independently:
``adapters·(1 − (1 − 1/adapters)^batch)`` distinct ones are expected (`experts_hit`). Adapters stay in the type of
the model whatever the weights are stored as; with quantised inputs they read the input from before.
"""

from collections.abc import Sequence
from typing import Any

from roofline.dtypes import element_bits
from roofline.graph import linear as names
from roofline.graph.dataflow import Dataflow
from roofline.graph.edit import Edit, access, inserted
from roofline.graph.linear import Linear, described, linear_layers, linear_of
from roofline.graph.op import Access, Kind, Op, OpGraph, experts_hit


def lora(graph: OpGraph, *, rank: int, adapters: int, where: Sequence[str] = ()) -> OpGraph:
    """The same pass with `adapters` LoRA adapters of `rank` beside its linear layers.

    Args: `where` are glob patterns of module paths (default: all in repeated layers but routers and experts).
    Raises: ValueError for a rank or a number below 1, adapters that are there already, or experts named in `where`.
    """
    if rank < 1 or adapters < 1:
        raise ValueError(f"rank {rank} and {adapters} adapters: use 1 or more of each")
    edit, flow = Edit(graph), Dataflow(graph)
    served = {op.path.removesuffix(".lora") for op in graph.ops if op.name == names.LORA_ADD}
    chosen = linear_layers(graph, where)
    experts = [linear for linear in chosen if linear.op.kind is Kind.GROUPED_MATMUL]
    if len(experts) == len(chosen):
        raise ValueError("only experts are chosen, whose adapters are not modelled; name other layers with where")
    if experts and where:
        path = experts[0].op.path
        raise ValueError(f"{path} holds experts, whose adapters are not modelled; leave it out of where")
    for linear in chosen:
        if linear in experts or linear.op.name == names.LOW_RANK_IN:  # adapters go around both factors
            continue
        if linear.op.path in served:
            raise ValueError(f"{linear.op.path} has adapters already; name each layer once")
        edit.put(linear.index, *_with_adapters(edit, flow, linear, rank, adapters))
    return edit.done({"lora": f"rank {rank}, {adapters} adapters{described(where)}"})


def _with_adapters(edit: Edit, flow: Dataflow, linear: Linear, rank: int, adapters: int) -> tuple[Op, ...]:
    op, rows, n = linear.op, linear.rows, linear.op.dims["n"]
    source, k = _input(flow, linear)
    dtype = edit.graph.workload.dtype
    element = element_bits(dtype) / 8
    own: dict[str, Any] = {"path": f"{op.path}.lora", "dtype": dtype}
    hit = float(experts_hit(adapters, 1, edit.graph.workload.batch))
    name = edit.graph.tensors[linear.matrix.tensor].name or op.path
    grouped = {"groups": adapters} if adapters > 1 else {"b": 1}
    kind = Kind.GROUPED_MATMUL if adapters > 1 else Kind.MATMUL

    def matrix(which: str, elements: int) -> Access:
        size = elements * element
        return access(edit.tensor(adapters * size, "weight", f"{name}.lora_{which}"), hit * size)

    def product(name: str, read: Access, weights: Access, made: Access, width: int, deep: int) -> Op:
        dims = grouped | {"m": rows, "n": width, "k": deep}
        flops = 2.0 * rows * width * deep
        return inserted(op, name, kind, dims, (read, weights), (made,), matrix_flops=flops, **own)

    low, delta = (edit.activation(rows * width * element) for width in (rank, n))
    out, dims = max(op.writes, key=lambda a: a.bytes), {"elements": rows * n}
    return (
        op,
        product(names.LORA_A, source, matrix("A", k * rank), low, rank, k),
        product(names.LORA_B, low, matrix("B", rank * n), delta, n, rank),
        inserted(op, names.LORA_ADD, Kind.POINTWISE, dims, (out, delta), (out,), vector_flops=float(rows * n), **own),
    )


def _input(flow: Dataflow, linear: Linear) -> tuple[Access, int]:
    """The layer's input before it was quantised or multiplied by a first factor, and its width."""
    source, k = linear.input(), linear.op.dims["k"]
    producer = flow.producer(linear.index, source.tensor)
    if producer is None:
        return source, k
    if linear.op.name == names.LOW_RANK_OUT and (first := linear_of(flow.graph, producer)):
        return _input(flow, first)
    op = flow.graph.ops[producer]
    return (op.reads[0] if op.name == names.QUANTISE else source), k
