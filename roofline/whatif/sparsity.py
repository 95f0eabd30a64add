"""What 2:4 sparsity would do: of each four weights along k two are kept, with two bits each that say which.

Sparse tensor cores leave out the products with the other two and so do "twice the throughput of dense" math (NVIDIA
A100 Tensor Core GPU Architecture whitepaper, v1.0, 2020, "Fine-grained structured sparsity"). Peaks of a device are
dense ones here, so the work is halved instead of the peak doubled: `matrix_flops` are those on kept weights.
Scales of quantised weights stay as they are: a group is counted along the k of the dense matrix.

Example: ``sparsify_2_4(graph, where=("*.mlp.*",))``
"""

from collections.abc import Sequence

from roofline.graph.edit import Edit, access, changed
from roofline.graph.linear import dequantise_flops, described, linear_layers, linear_of, matrix_bytes
from roofline.graph.op import OpGraph


def sparsify_2_4(graph: OpGraph, *, where: Sequence[str] = ()) -> OpGraph:
    """The same pass with 2:4 sparse weights in the linear layers that `where` matches (default: see `linear_layers`).

    Raises: ValueError where k is no multiple of 4, or a matrix is sparse already or used by others than linear layers.
    """
    edit = Edit(graph)
    tensors = {linear.matrix.tensor for linear in linear_layers(graph, where)}
    for i, op in enumerate(graph.ops):
        if not any(a.tensor in tensors for a in op.reads):
            continue
        linear = linear_of(graph, i, op)
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
        edit.put(
            i,
            changed(
                op,
                dims=op.dims | {"nonzero_of_4": 2},
                reads=reads,
                matrix_flops=op.matrix_flops / 2,
                vector_flops=op.vector_flops - dequantise_flops(graph, linear) / 2,
            ),
        )
    return edit.done({"sparsity": f"2:4{described(where)}"})
