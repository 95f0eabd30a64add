"""Which memory level serves which bytes, for all workloads of a fitted graph at once.

The reuse distances of `residency`, followed through arrays of sizes. Loops whose length differs from workload to
workload hide different numbers of bytes, so their graphs are followed one workload at a time.

Example: ``in_situ(graph, sweep, peaks).sum(axis=(1, 2))`` → bytes of each workload, one execution of each operation
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from roofline.hardware import Peaks
from roofline.op import Role
from roofline.parametric import ParametricGraph, Sweep, places
from roofline.residency import Touches, level_bytes

AT_ONCE = 256
"""Workloads that are followed together: more need more memory and are no faster."""


@dataclass(frozen=True, slots=True)
class _Access:
    tensor: int
    bytes: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Step:
    reads: tuple[_Access, ...]
    writes: tuple[_Access, ...]
    count: float


@dataclass(frozen=True, slots=True)
class _Tensor:
    storage_bytes: NDArray[np.float64]
    role: Role


def in_situ(graph: ParametricGraph, sweep: Sweep, peaks: Peaks) -> NDArray[np.float64]:
    """Bytes of one execution of each operation that each level serves: shape (workloads, operations, levels)."""
    blocks = [
        _followed(graph, sweep.take(index), peaks)
        for start in range(0, len(sweep), AT_ONCE)
        for index in _blocks(graph, sweep, np.arange(start, min(start + AT_ONCE, len(sweep))))
    ]
    return np.concatenate(blocks) if blocks else np.zeros((0, len(graph.template.ops), len(peaks.levels)))


def _blocks(graph: ParametricGraph, sweep: Sweep, index: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Workloads that can be followed together: all, if loops are as long in each."""
    sizes = graph.sizes(sweep.take(index))
    counts = sizes[:, [place.first for place in places(graph.template)]]
    return [index] if (counts == counts[0]).all() else [index[i : i + 1] for i in range(len(index))]


def _followed(graph: ParametricGraph, sweep: Sweep, peaks: Peaks) -> NDArray[np.float64]:
    values = graph.sizes(sweep)
    tensors = [_Tensor(values[:, i], tensor.role) for i, tensor in enumerate(graph.template.tensors)]
    steps = [
        _Step(
            reads=tuple(_Access(a.tensor, values[:, place.reads + i]) for i, a in enumerate(op.reads)),
            writes=tuple(_Access(a.tensor, values[:, place.writes + i]) for i, a in enumerate(op.writes)),
            count=float(values[0, place.first]),
        )
        for op, place in zip(graph.template.ops, places(graph.template), strict=True)
    ]
    return level_bytes(Touches.of(steps, tensors), peaks, "in situ")
