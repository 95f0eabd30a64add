"""Times of the kernels of a compiled pass as times of the operations that they do: what is measured, and its roofline.

A kernel's time is shared among its members in proportion to their own rooflines, as DESIGN.md shares that of a fused
group; an operation that several kernels do has a share of each.

Example: ``KernelTable.of(result, graph, spec).measured_s`` → seconds of each operation, one execution
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibrate.passes.replicates import median_by_round, medians_by_round, middle
from profiler.record.run import CellResult
from roofline.graph.op import OpGraph
from roofline.hardware.spec import HardwareSpec, Peaks
from roofline.price import Prepared, price, price_kernels, share
from roofline.price_by_law import law_prices
from roofline.record import Record

NUMBER = re.compile(r"^graph_\d+_|_\d+$")
"""What makes the names of alike kernels differ: inductor numbers its graphs, and kernels within one."""


class FusedKernel(Record):
    """Calls of alike kernels: one name, one set of layer kinds."""

    name: str
    """Without the numbers that the compiler gives its graphs and kernels."""
    modules: tuple[str, ...]
    """Layer kinds that it came from, in order; the index of a repeated layer is "*"."""
    kinds: tuple[str, ...]
    """Kinds of its operations."""
    count: float
    """Calls in the whole model."""
    measured_s: float
    """In total."""
    predicted_s: float | None
    """By the law of its operation, else the roofline of what it moves and computes, in total; None: not known."""


@dataclass(frozen=True, eq=False)
class KernelTable:
    """The kernels of one pass beside its operations."""

    members: tuple[tuple[int, ...], ...]
    names: tuple[str, ...]
    count: NDArray[np.float64]
    """Shape (kernels,): calls in the whole model that each stands for."""
    kernel_s: NDArray[np.float64]
    """Shape (kernels,): measured, one call."""
    predicted_s: NDArray[np.float64]
    """Shape (kernels,): one call by the calibrated law, where the kernel is one operation that has one, else by the
    roofline at measured peaks; NaN where not known."""
    measured_s: NDArray[np.float64]
    """Shape (operations,)."""
    rounds_s: NDArray[np.float64]
    """Shape (operations, rounds): what was measured in each round."""
    gap_s: NDArray[np.float64]
    """Shape (operations,): idle before a kernel, given to its first member."""
    executed_s: NDArray[np.float64]
    """Shape (operations,): the kernels' rooflines, shared."""
    calibrated_s: NDArray[np.float64]
    """Shape (operations,): the kernels' predictions, shared; NaN without calibrated laws."""
    labels: tuple[tuple[str, ...], ...]
    """Of each operation, the kernels that do it."""

    @classmethod
    def of(cls, result: CellResult, graph: OpGraph, spec: HardwareSpec) -> "KernelTable":
        """Raises ValueError where the kernels are not of the graph."""
        members = tuple(kernel.ops for kernel in result.kernels)
        size = len(graph.ops)
        if any(not 0 <= op < size for ops in members for op in ops):
            raise ValueError(f"{result.cell.key}: what was measured is not its graph of {size}; measure it again")
        peaks: Peaks | None = spec.measured or spec.datasheet
        in_round_s = medians_by_round([kernel.device_s for kernel in result.kernels], result.rounds)
        kernel_s = middle(in_round_s)
        roofline_s = price_kernels(graph, members, spec.measured).time_s if spec.measured else kernel_s * np.nan
        predicted_s = _by_law(graph, members, spec, roofline_s)
        unknown = np.full(size, np.nan)
        gap_s = np.zeros(size)
        labels: list[list[str]] = [[] for _ in range(size)]
        for kernel in result.kernels:
            gap_s[kernel.ops[0]] += median_by_round(kernel.gap_s, result.rounds)
            for op in kernel.ops:
                labels[op].append(kernel.name)
        return cls(
            members=members,
            names=tuple(kernel.name for kernel in result.kernels),
            count=np.array([graph.ops[ops[0]].count for ops in members]),
            kernel_s=kernel_s,
            predicted_s=predicted_s,
            measured_s=share(graph, members, kernel_s, peaks),
            rounds_s=np.stack([share(graph, members, one_s, peaks) for one_s in in_round_s.T], axis=1),
            gap_s=gap_s,
            executed_s=share(graph, members, roofline_s, peaks),
            calibrated_s=share(graph, members, predicted_s, peaks) if spec.calibrated else unknown,
            labels=tuple(tuple(dict.fromkeys(names)) for names in labels),
        )

    def alike(self, paths: Sequence[str], kinds: Sequence[str]) -> tuple[FusedKernel, ...]:
        """Alike kernels together, the slowest first. Args: layer kind and kind of each operation of the graph."""
        groups: dict[tuple[str, tuple[str, ...], tuple[str, ...]], list[int]] = {}
        for k, ops in enumerate(self.members):
            modules, of_kinds = (tuple(dict.fromkeys(words[i] for i in ops)) for words in (paths, kinds))
            groups.setdefault((NUMBER.sub("", self.names[k]), modules, of_kinds), []).append(k)
        rows = []
        for (name, modules, of_kinds), same in groups.items():
            predicted_s = float((self.predicted_s[same] * self.count[same]).sum())
            rows.append(
                FusedKernel(
                    name=name,
                    modules=modules,
                    kinds=of_kinds,
                    count=float(self.count[same].sum()),
                    measured_s=float((self.kernel_s[same] * self.count[same]).sum()),
                    predicted_s=None if np.isnan(predicted_s) else predicted_s,
                )
            )
        return tuple(sorted(rows, key=lambda row: -row.measured_s))


def _by_law(
    graph: OpGraph, members: Sequence[Sequence[int]], spec: HardwareSpec, otherwise: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Kernels of one operation priced by its law; what a compiler fused has none, and keeps its roofline."""
    if spec.measured is None or not spec.calibrated:
        return otherwise
    prepared = Prepared(graph)
    laws = law_prices(prepared, spec, price(prepared, spec.measured).time_s)
    found = otherwise.copy()
    for kernel, ops in enumerate(members):
        if len(ops) == 1 and laws.by_law[ops[0]]:
            found[kernel] = laws.time_s[ops[0]]
    return found
