"""A graph as a compiler ran it: kernels that each do several of its operations, as operations of their own.

A kernel reads what its members read and have not written themselves before; it writes what the cache keeps, what
nobody reads (an output of the model), and what a kernel reads that does not do the writing operation itself. An
operation may be part of several kernels, which then all compute it; of these the first one writes for others.
"""

from collections.abc import Sequence

from roofline.fusion.fuse import moved_once
from roofline.graph.dataflow import Dataflow, Sizes
from roofline.graph.op import ANCHORS, Op, OpGraph, sizes_by_tensor

Members = Sequence[Sequence[int]]
"""Operations of each kernel, as indices in order."""


def kernel_ops(graph: OpGraph, members: Members) -> tuple[Op, ...]:
    """Each kernel as one operation, described by its member with the most matrix work, else the most vector work."""
    flow = Dataflow(graph)
    doing: list[set[int]] = [set() for _ in graph.ops]
    for kernel, ops in enumerate(members):
        for i in ops:
            doing[i].add(kernel)
    kernels = []
    for kernel, ops in enumerate(members):
        main = max((graph.ops[i] for i in ops), key=lambda op: (op.kind in ANCHORS, op.matrix_flops, op.vector_flops))
        reads: Sizes = {}
        writes: Sizes = {}
        written: Sizes = {}
        for i in ops:
            for tensor, size in sizes_by_tensor(graph.ops[i].reads).items():
                if (missing := size - written.get(tensor, 0)) > 0:
                    reads[tensor] = max(reads.get(tensor, 0), missing)
            for tensor, size in sizes_by_tensor(graph.ops[i].writes).items():
                written[tensor] = written.get(tensor, 0) + size
                readers = [r for r in flow.readers[tensor] if r > i]
                is_kept = graph.tensors[tensor].role == "kv" or not readers
                if min(doing[i]) == kernel and (is_kept or any(not doing[r] <= doing[i] for r in readers)):
                    writes[tensor] = writes.get(tensor, 0) + size
        update = {name: sum(getattr(graph.ops[i], name) for i in ops) for name in ("matrix_flops", "vector_flops")}
        accesses = {"reads": moved_once(graph, reads), "writes": moved_once(graph, writes)}
        kernels.append(main.model_copy(update=update | accesses))
    return tuple(kernels)
