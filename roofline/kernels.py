"""A graph as a compiler ran it: kernels that each do several of its operations, and what they move and take.

A kernel reads what its members read and have not written themselves before; it writes what the cache keeps, what
nobody reads (an output of the model), and what a kernel reads that does not do the writing operation itself. An
operation may be part of several kernels, which then all compute it; of these the first one writes for others.

Example: ``price_kernels(graph, [(0,), (1, 2, 3)], spec.measured)`` → seconds of each operation, shared
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from roofline.dataflow import Dataflow, Sizes, executed_accesses
from roofline.hardware import Peaks
from roofline.laws.roofline import Priced, roofline
from roofline.op import ANCHORS, Access, Op, OpGraph
from roofline.predict import price, shares
from roofline.residency import CacheState, Touches, level_bytes

Members = Sequence[Sequence[int]]
"""Operations of each kernel, as indices in order."""


def kernel_ops(graph: OpGraph, members: Members) -> tuple[Op, ...]:
    """Each kernel as one operation, described by its member with the most matrix work, else the most vector work."""
    flow = Dataflow(graph)
    accesses = [executed_accesses(op) for op in graph.ops]
    doing: list[set[int]] = [set() for _ in graph.ops]
    for kernel, ops in enumerate(members):
        for i in ops:
            doing[i].add(kernel)
    found = []
    for kernel, ops in enumerate(members):
        main = max((graph.ops[i] for i in ops), key=lambda op: (op.kind in ANCHORS, op.matrix_flops, op.vector_flops))
        reads: Sizes = {}
        writes: Sizes = {}
        written: Sizes = {}
        for i in ops:
            for tensor, size in accesses[i][0].items():
                if (missing := size - written.get(tensor, 0)) > 0:
                    reads[tensor] = max(reads.get(tensor, 0), missing)
            for tensor, size in accesses[i][1].items():
                written[tensor] = written.get(tensor, 0) + size
                readers = [r for r in flow.readers[tensor] if r > i]
                is_kept = graph.tensors[tensor].role == "kv" or not readers
                if min(doing[i]) == kernel and (is_kept or any(not doing[r] <= doing[i] for r in readers)):
                    writes[tensor] = writes.get(tensor, 0) + size
        found.append(
            main.model_copy(
                update={
                    "matrix_flops": sum(graph.ops[i].matrix_flops for i in ops),
                    "vector_flops": sum(graph.ops[i].vector_flops for i in ops),
                    "reads": _accesses(graph, reads),
                    "writes": _accesses(graph, writes),
                }
            )
        )
    return tuple(found)


def price_kernels(graph: OpGraph, members: Members, peaks: Peaks, state: CacheState = "in situ") -> Priced:
    """The kernels at `peaks`: shape (kernels,), seconds of one call."""
    ops = kernel_ops(graph, members)
    return roofline(ops, level_bytes(Touches.of(ops, graph.tensors), peaks, state), peaks)


def share(
    graph: OpGraph, members: Members, kernel_s: Sequence[float] | NDArray[np.float64], peaks: Peaks | None
) -> NDArray[np.float64]:
    """Times of kernels shared among the operations: shape (operations,), 0 where no kernel does one.

    In proportion to the members' own rooflines; to their bytes where a peak that one of them needs is not known.
    """
    moved = [float(traffic.total) for traffic in graph.traffic]
    own = price(graph, peaks).time_s.tolist() if peaks is not None else [math.nan] * len(graph.ops)
    time_s = np.zeros(len(graph.ops))
    for ops, total in zip(members, kernel_s, strict=True):
        weights = [own[i] for i in ops]
        if any(math.isnan(weight) for weight in weights):
            weights = [moved[i] for i in ops]
        time_s[list(ops)] += shares(weights, float(total))
    return time_s


def _accesses(graph: OpGraph, sizes: Sizes) -> tuple[Access, ...]:
    """A tensor is moved once, however many members touch it."""
    return tuple(Access(tensor=t, bytes=min(size, graph.tensors[t].storage_bytes)) for t, size in sizes.items())
