"""What serving LoRA adapters would cost (S-LoRA, arXiv 2311.03285): y += (x·A)·B for each sequence's own A and B.

Each target layer gets two skinny products, grouped by adapter, and an addition into its output. All adapters are
in memory; a pass reads those that a sequence of the batch wants, which are drawn evenly and independently:
``adapters·(1 − (1 − 1/adapters)^batch)`` distinct ones are expected (`experts_hit`). Adapters stay in the type of
the model whatever the weights are stored as; with quantised inputs they read what was quantised.

Example: ``lora(graph, rank=16, adapters=32, where=("*.q_proj", "*.v_proj"))``
"""

from collections.abc import Sequence
from typing import Any

from roofline.dtypes import element_bits
from roofline.graph.dataflow import Dataflow
from roofline.graph.edit import Edit, access, inserted
from roofline.graph.linear import (
    LORA_A,
    LORA_ADD,
    LORA_B,
    LOW_RANK_IN,
    LOW_RANK_OUT,
    QUANTISE,
    Linear,
    described,
    input_of,
    linear_layers,
    linear_of,
)
from roofline.graph.op import Access, Kind, Op, OpGraph, experts_hit


def lora(graph: OpGraph, *, rank: int, adapters: int, where: Sequence[str] = ()) -> OpGraph:
    """The same pass with `adapters` LoRA adapters of `rank` beside its linear layers.

    Args: `where` are glob patterns of module paths (default: all in repeated layers but routers and experts).
    Raises: ValueError for a rank or a number below 1, adapters that are there already, or experts named in `where`.
    """
    if rank < 1 or adapters < 1:
        raise ValueError(f"rank {rank} and {adapters} adapters: use 1 or more of each")
    edit, flow, served = Edit(graph), Dataflow(graph), _adapted(graph)
    chosen = linear_layers(graph, where)
    if all(linear.op.kind is Kind.GROUPED_MATMUL for linear in chosen):
        raise ValueError("only experts are chosen, whose adapters are not modelled; name other layers with where")
    for linear in chosen:
        if linear.op.kind is Kind.GROUPED_MATMUL:
            if where:
                raise ValueError(
                    f"{linear.op.path} holds experts, whose adapters are not modelled; leave it out of where"
                )
            continue
        if linear.op.name == LOW_RANK_IN:
            continue  # its adapters go around both factors
        if linear.op.path in served:
            raise ValueError(f"{linear.op.path} has adapters already; name each layer once")
        edit.put(linear.index, *_with_adapters(edit, flow, linear, rank, adapters))
    return edit.done({"lora": f"rank {rank}, {adapters} adapters{described(where)}"})


def _adapted(graph: OpGraph) -> set[str]:
    return {op.path.removesuffix(".lora") for op in graph.ops if op.name == LORA_ADD}


def _with_adapters(edit: Edit, flow: Dataflow, linear: Linear, rank: int, adapters: int) -> tuple[Op, ...]:
    op, rows, n = linear.op, linear.rows, linear.op.dims["n"]
    given, k = _input(flow, linear)
    dtype = edit.graph.workload.dtype
    element = element_bits(dtype) / 8
    own: dict[str, Any] = {"path": f"{op.path}.lora", "dtype": dtype}
    hit = float(experts_hit(adapters, 1, edit.graph.workload.batch))
    name = edit.graph.tensors[linear.matrix.tensor].name or op.path

    def matrix(which: str, elements: int) -> Access:
        size = elements * element
        return access(edit.tensor(adapters * size, "weight", f"{name}.lora_{which}"), hit * size)

    def value(width: int) -> Access:
        return access(edit.tensor(rows * width * element, "activation"), rows * width * element)

    def product(name: str, read: Access, weights: Access, made: Access, width: int, deep: int) -> Op:
        grouped = {"groups": adapters} if adapters > 1 else {"b": 1}
        kind = Kind.GROUPED_MATMUL if adapters > 1 else Kind.MATMUL
        dims = grouped | {"m": rows, "n": width, "k": deep}
        flops = 2.0 * rows * width * deep
        return inserted(op, name, kind, dims, (read, weights), (made,), matrix_flops=flops, **own)

    low, delta, added = value(rank), value(n), float(rows * n)
    out = max(op.writes, key=lambda a: a.bytes)
    return (
        op,
        product(LORA_A, given, matrix("A", k * rank), low, rank, k),
        product(LORA_B, low, matrix("B", rank * n), delta, n, rank),
        inserted(op, LORA_ADD, Kind.POINTWISE, {"elements": rows * n}, (out, delta), (out,), vector_flops=added, **own),
    )


def _input(flow: Dataflow, linear: Linear) -> tuple[Access, int]:
    """What the layer reads, before it was quantised or multiplied by a first factor, and how wide that is."""
    given, k = input_of(flow.graph, linear), linear.op.dims["k"]
    producer = flow.producer(linear.index, given.tensor)
    if linear.op.name == LOW_RANK_OUT and producer is not None:
        first = linear_of(flow.graph, producer, flow.graph.ops[producer])
        if first is not None:
            return _input(flow, first)
    if producer is not None and flow.graph.ops[producer].name == QUANTISE:
        return flow.graph.ops[producer].reads[0], k
    return given, k
