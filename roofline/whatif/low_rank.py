"""Smaller weights of linear layers (of a low rank, or 2:4 sparse), and low-rank adapters beside them (LoRA).

`low_rank`: W (k×n) becomes A·B of rank r (best by SVD, as in ASVD, arXiv 2312.05821, and SVD-LLM, arXiv 2403.07378):
two matmuls, stored as the matrix was; layers where r·(k + n) >= k·n stay as they are. `sparsify_2_4` keeps two of each
four weights along k, with two bits each that say which; sparse tensor cores have "twice the throughput of dense" math
(NVIDIA A100 whitepaper, v1.0, 2020), so `matrix_flops` are halved instead of doubling the peak. `lora`: y += (x·A)·B
with each sequence's own A and B (S-LoRA, arXiv 2311.03285); all adapters are in memory, and a pass is expected to read
``adapters·(1 − (1 − 1/adapters)^batch)`` distinct ones (`experts_hit`), in the model's type.
"""

from collections.abc import Sequence
from typing import Any

from roofline.dtypes import element_bits
from roofline.graph import linear as names
from roofline.graph.dataflow import Dataflow
from roofline.graph.edit import Edit, access, changed, inserted
from roofline.graph.linear import LOW_RANK_IN, LOW_RANK_OUT, Linear, described, linear_layers, linear_of, matrix_bytes
from roofline.graph.op import Access, Kind, Op, OpGraph, experts_hit


def low_rank(graph: OpGraph, *, rank: int, where: Sequence[str] = ()) -> OpGraph:
    """Linear layers as two products of a low rank, where that makes them smaller.

    Args:
        rank: width between the two products.
        where: glob patterns of module paths; all linear layers inside repeated layers if not given.
    Raises: ValueError for a rank below 1, if no layer gains, or for layers that are factorised or have quantised
        inputs already.
    """
    if rank < 1:
        raise ValueError(f"rank {rank}: use 1 or more")
    sizes = [(linear, linear.op.dims["k"], linear.op.dims["n"]) for linear in linear_layers(graph, where)]
    gaining = [linear for linear, k, n in sizes if rank * (k + n) < k * n]
    if not gaining:
        most = max((k * n - 1) // (k + n) for _, k, n in sizes)
        raise ValueError(f"rank {rank} makes no layer smaller; use {most} or less" if most else "no layer can shrink")
    factors = _Factors(graph, rank)
    indices = {linear.index for linear in gaining}
    elsewhere = {a.tensor for i, op in enumerate(graph.ops) if i not in indices for a in op.reads}
    for linear in gaining:
        if linear.matrix.tensor in elsewhere:
            raise ValueError(f"the weights of {linear.op.path} are used elsewhere too; leave it out of where")
    for linear in gaining:
        factors.edit.put(linear.index, *factors.of(linear))
    return factors.edit.done({"low_rank": f"{rank}{described(where)}"})


class _Factors:
    """Two operations for one; a weight that several layers share is factorised once."""

    def __init__(self, graph: OpGraph, rank: int) -> None:
        self.edit = Edit(graph)
        self._graph, self._rank = graph, rank
        self._made: dict[tuple[int, str], int] = {}

    def of(self, linear: Linear) -> tuple[Op, Op]:
        op, rank, k, n = linear.op, self._rank, linear.op.dims["k"], linear.op.dims["n"]
        if op.name in (LOW_RANK_IN, LOW_RANK_OUT):
            raise ValueError(f"{op.path} has a low rank already; give each layer its rank once")
        if element_bits(op.dtype) < 16:
            raise ValueError(f"the input of {op.path} is quantised already; do low_rank first")
        if linear.is_sparse and rank % 4:
            raise ValueError(f"rank {rank} is no multiple of 4, as 2:4 sparse factors need it")
        source, dequantise = linear.input(), linear.dequantise_flops
        between = self.edit.activation(linear.rows * rank * element_bits(op.dtype) / 8)
        weights = {linear.matrix.tensor, *(a.tensor for a in linear.sides)}
        # row numbers that say where each expert's rows end, which both grouped products need
        offsets = "groups" in op.dims and self._graph.tensors[op.reads[-1].tensor].role == "activation"
        shared = op.reads[-1:] if offsets else ()
        others = (a for a in op.reads if a is not source and a.tensor not in weights and a not in shared)
        first = changed(
            op, name=LOW_RANK_IN, dims=op.dims | {"n": rank}, matrix_flops=op.matrix_flops * rank / n,
            vector_flops=dequantise * rank / n, reads=(source, *self._weights(linear, "A", rank / n), *shared),
            writes=(between,),
        )  # fmt: skip
        second = changed(
            op, name=LOW_RANK_OUT, dims=op.dims | {"k": rank}, matrix_flops=op.matrix_flops * rank / k,
            vector_flops=op.vector_flops - dequantise + dequantise * rank / k,
            reads=(between, *self._weights(linear, "B", rank / k), *shared, *others),
        )  # fmt: skip
        return first, second

    def _weights(self, linear: Linear, factor: str, part: float) -> list[Access]:
        """Reads of one factor, with its scales: `part` of those of the whole matrix."""
        reads = []
        for a in (linear.matrix, *linear.sides):
            if (a.tensor, factor) not in self._made:
                whole = self._graph.tensors[a.tensor]
                # "q_proj.weight.scales" → "q_proj.weight.A.scales": the end goes on saying what the tensor is
                stem, dot, end = (whole.name or "").rpartition(".")
                is_side = end in ("scales", "zeros")
                name = f"{stem}.{factor}.{end}" if is_side else f"{stem}{dot}{end}.{factor}"
                self._made[a.tensor, factor] = self.edit.tensor(whole.storage_bytes * part, "weight", name)
            reads.append(access(self._made[a.tensor, factor], a.bytes * part))
        return reads


def sparsify_2_4(graph: OpGraph, *, where: Sequence[str] = ()) -> OpGraph:
    """Linear layers with 2:4 sparse weights: two of four are kept.

    Args:
        where: glob patterns of module paths; all linear layers inside repeated layers if not given.
    Raises: ValueError where k is no multiple of 4, or a matrix is sparse already or used by others than linear layers.
    """
    edit = Edit(graph)
    tensors = {linear.matrix.tensor for linear in linear_layers(graph, where)}
    for i, op in enumerate(graph.ops):
        if not any(a.tensor in tensors for a in op.reads):
            continue
        linear = linear_of(graph, i)
        if linear is None or linear.matrix.tensor not in tensors:
            name = graph.tensors[next(a.tensor for a in op.reads if a.tensor in tensors)].name
            raise ValueError(f"{op.path} reads {name} row by row, so it cannot be 2:4 sparse; leave it out of where")
        if linear.is_sparse:
            raise ValueError(f"the weights of {op.path} are 2:4 sparse already; name each layer once")
        if op.dims["k"] % 4:
            raise ValueError(f"{op.path} has k = {op.dims['k']}, no multiple of 4, so it cannot be 2:4 sparse")
        size = matrix_bytes(linear.elements, linear.bits, is_sparse=True)
        edit.resize(linear.matrix.tensor, size)
        reads = tuple(access(a.tensor, size * linear.share) if a is linear.matrix else a for a in op.reads)
        sparse = changed(
            op, dims=op.dims | {"nonzero_of_4": 2}, reads=reads, matrix_flops=op.matrix_flops / 2,
            vector_flops=op.vector_flops - linear.dequantise_flops / 2,
        )  # fmt: skip
        edit.put(i, sparse)
    return edit.done({"sparsity": f"2:4{described(where)}"})


def lora(graph: OpGraph, *, rank: int, adapters: int, where: Sequence[str] = ()) -> OpGraph:
    """LoRA adapters beside linear layers, as many of them read as the sequences of the batch choose.

    Args:
        rank: width of each adapter.
        adapters: adapters in memory, of which each sequence chooses one.
        where: glob patterns of module paths; all in repeated layers but routers and experts if not given.
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
