"""The measured and the predicted time of every operation, side by side, as arrays in the graph's order.

Example: ``OpTimesTable.of(result, graph, spec).rungs["executed"]`` → T2 of each operation, one execution, seconds.
"""

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibrate.kernel_times import KernelTable
from calibrate.passes.replicates import levels, median_by_round, medians_by_round, middle
from calibrate.predicted import NOTED, Predicted
from profiler.record.run import CellResult
from roofline.graph.op import OpGraph
from roofline.hardware.spec import HardwareSpec
from roofline.price import UNKNOWN, Prepared, missing_peaks, price, price_fused
from roofline.price_by_law import LawPrices, law_prices, waits

Array = NDArray[np.float64]

RUNGS = ("ideal", "achieved", "executed", "calibrated", "calibrated_at_level")
"""T0, T1, T2, T3 at the calibration's level of the machine, and T3 at that of the pass; "measured", T4, is apart."""


@dataclass(frozen=True, eq=False)
class OpTimesTable:
    """Arrays of shape (operations,), in seconds of one execution; NaN is a rung that is not known."""

    count: Array
    """Executions in the whole model that each operation stands for."""
    gap_s: Array
    """Device idle before it, median over the rounds."""
    rungs: dict[str, Array]
    """Those of `RUNGS`, and measured (T4): the median over the rounds of the median of each round's passes."""
    rounds_s: Array
    """Shape (operations, rounds): what was measured in each round."""
    bound: tuple[str, ...]
    """What the executed graph waits for, at the measured peaks, or the datasheet's if there are none."""
    kernels: tuple[tuple[str, ...], ...]
    warnings: tuple[str, ...]
    predicted: Predicted | None = None
    """By calibrated laws, with intervals; None without them."""
    compiled: KernelTable | None = None
    """The kernels of a compiled pass, whose shares `rungs` then holds."""

    @classmethod
    def of(
        cls, result: CellResult, graph: OpGraph, spec: HardwareSpec, calibrated_s: Array | None = None
    ) -> "OpTimesTable":
        """Join a measurement to its graph. Raises ValueError where they do not belong together."""
        size = len(graph.ops)
        if result.kernels:
            return cls._of_kernels(KernelTable.of(result, graph, spec), result, graph, spec)
        by_op = {times.op: times for times in result.ops}
        if len(by_op) != len(result.ops) or any(not 0 <= op < size for op in by_op):
            raise ValueError(f"{result.cell.key}: what was measured is not its graph of {size}; measure it again")
        if calibrated_s is not None and calibrated_s.shape != (size,):
            raise ValueError(f"calibrated times are {calibrated_s.shape}, the graph has {size} operations")
        samples = [by_op[i].device_s if i in by_op else () for i in range(size)]
        rounds_s = medians_by_round(samples, result.rounds)
        gap = np.array([median_by_round(by_op[i].gap_s, result.rounds) if i in by_op else 0.0 for i in range(size)])
        prepared, unknown = Prepared(graph), np.full(size, np.nan)
        executed = price(prepared, spec.measured) if spec.measured else None
        laws = None
        if executed and spec.calibrated:
            laws = law_prices(prepared, spec, executed.time_s, with_intervals=True)
        if calibrated_s is None:
            calibrated_s = laws.time_s if laws else unknown
            predicted = _predicted(calibrated_s, laws, prepared, result, spec)
        else:
            predicted = _predicted(calibrated_s, None, prepared, result, spec)
        said = price(prepared, spec.datasheet) if spec.datasheet and not executed else None
        return cls(
            count=np.array([op.count for op in graph.ops], dtype=float),
            gap_s=gap,
            rungs={
                "ideal": price_fused(prepared, spec.datasheet).time_s if spec.datasheet else unknown,
                "achieved": price_fused(prepared, spec.measured).time_s if spec.measured else unknown,
                "executed": executed.time_s if executed else unknown,
                "calibrated": calibrated_s,
                "calibrated_at_level": _at_level_s(predicted, size),
                "measured": middle(rounds_s),
            },
            rounds_s=rounds_s,
            bound=executed.bound if executed else said.bound if said else (UNKNOWN,) * size,
            kernels=tuple(by_op[i].kernels if i in by_op else () for i in range(size)),
            predicted=predicted,
            warnings=(*_unmeasured(graph, set(by_op)), *_unpriced(graph, spec), *_unlawful(graph, laws)),
        )

    @classmethod
    def _of_kernels(cls, table: KernelTable, result: CellResult, graph: OpGraph, spec: HardwareSpec) -> "OpTimesTable":
        """A compiled pass: what was executed is its kernels, and laws price those that are one operation."""
        prepared, unknown = Prepared(graph), np.full(len(graph.ops), np.nan)
        said = price(prepared, peaks) if (peaks := spec.measured or spec.datasheet) else None
        predicted = _predicted(table.calibrated_s, None, prepared, result, spec)
        return cls(
            count=np.array([op.count for op in graph.ops], dtype=float),
            gap_s=table.gap_s,
            rungs={
                "ideal": price_fused(prepared, spec.datasheet).time_s if spec.datasheet else unknown,
                "achieved": price_fused(prepared, spec.measured).time_s if spec.measured else unknown,
                "executed": table.executed_s if spec.measured else unknown,
                "calibrated": table.calibrated_s,
                "calibrated_at_level": _at_level_s(predicted, len(graph.ops)),
                "measured": table.measured_s,
            },
            rounds_s=table.rounds_s,
            bound=said.bound if said else (UNKNOWN,) * len(graph.ops),
            kernels=table.labels,
            warnings=(*_uncompiled(graph, table), *_unpriced(graph, spec)),
            predicted=predicted,
            compiled=table,
        )

    @property
    def measured_s(self) -> Array:
        return self.rungs["measured"]

    def total(self, rung: str) -> float | None:
        """Sum over all executions in the whole model; None if the rung is not known for some operation."""
        return known(float((self.rungs[rung] * self.count).sum()))


def _predicted(
    time_s: Array, laws: LawPrices | None, prepared: Prepared, result: CellResult, spec: HardwareSpec
) -> Predicted | None:
    """None where an operation has no calibrated time."""
    if spec.measured is None or np.isnan(time_s).any():
        return None
    shares = waits(prepared, spec.measured, spec.kind)
    return Predicted.of(time_s, laws, shares, levels(result.reference, spec.reference))


def _at_level_s(predicted: Predicted | None, size: int) -> Array:
    return predicted.at_level_s if predicted is not None and predicted.levels else np.full(size, np.nan)


def known(value: float) -> float | None:
    """None for NaN, for what leaves the arrays."""
    return None if np.isnan(value) else value


def layer_kind(path: str) -> str:
    """A module path with the indices of repeated modules as "*": "model.layers.*.mlp"."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", path)


def _unmeasured(graph: OpGraph, measured: set[int]) -> list[str]:
    missing = [op for i, op in enumerate(graph.ops) if i not in measured]
    if not missing:
        return []
    first = missing[0]
    return [f"{len(missing)} operations were not measured and count as 0 s, the first: {first.path} {first.name}"]


def _uncompiled(graph: OpGraph, table: KernelTable) -> list[str]:
    missing = sorted(set(range(len(graph.ops))) - {op for ops in table.members for op in ops})
    if not missing:
        return []
    first = graph.ops[missing[0]]
    return [
        f"{len(missing)} operations are in no compiled kernel, the compiler left them out, and count as 0 s, "
        f"the first: {first.path or 'the model'} {first.name}"
    ]


def _unlawful(graph: OpGraph, laws: LawPrices | None) -> list[str]:
    """Time that no law predicts, or a law beyond its sizes, where it is more than `NOTED`."""
    if laws is None:
        return []
    times = laws.time_s * np.array([op.count for op in graph.ops])
    whole, out = float(times.sum()), []
    for rows, what in (
        (~laws.by_law, "no calibrated law; it is the roofline's"),
        (laws.outside, "a law beyond the sizes that it was fitted on"),
    ):
        share = float(times[rows].sum()) / whole if whole > 0 else 0.0
        if share > NOTED:
            names = sorted({graph.ops[i].name for i in np.flatnonzero(rows)})
            out.append(f"{share:.0%} of the predicted time is of {what} ({', '.join(names)})")
    return out


def _unpriced(graph: OpGraph, spec: HardwareSpec) -> list[str]:
    out = []
    for origin, peaks in (("datasheet", spec.datasheet), ("measured", spec.measured)):
        lacking = missing_peaks(graph.ops, peaks) if peaks else ()
        if lacking:
            out.append(f"no {origin} peak for {', '.join(lacking)}: the times that need it are not known")
    return out
