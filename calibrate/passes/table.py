"""The measured and the predicted time of every operation, side by side, as arrays in the graph's order.

A kernel of a compiled pass may do several operations: its time is shared among them in proportion to their own
rooflines, as that of a fused group is. An operation of several kernels has a share of each.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibrate.passes.pass_report import FusedKernel
from calibrate.passes.predicted import NOTED, Predicted
from calibrate.passes.replicates import levels, median_by_round, medians_by_round, middle
from profiler.record.run import CellResult, OpTimes
from roofline.graph.op import OpGraph
from roofline.hardware.spec import HardwareSpec, Peaks
from roofline.price import UNKNOWN, Prepared, missing_peaks, price, price_fused, price_kernels, share
from roofline.price_by_law import LawPrices, law_prices, waits
from roofline.units import whole_percent

Array = NDArray[np.float64]

RUNGS = ("ideal", "achieved", "executed", "calibrated", "calibrated_at_level")
"""T0, T1, T2, T3 at the calibration's level of the machine, and T3 at that of the pass; T4, "measured", is separate."""
NUMBER = re.compile(r"^graph_\d+_|_\d+$")
"""The numbers that inductor gives its graphs and the kernels within them."""


@dataclass(frozen=True, eq=False)
class KernelTable:
    members: tuple[tuple[int, ...], ...]
    names: tuple[str, ...]
    count: Array
    """Shape (kernels,): calls in the whole model."""
    kernel_s: Array
    """Shape (kernels,): measured seconds of one call."""
    predicted_s: Array
    """Shape (kernels,): seconds of one call by the law of its only operation, else by the roofline; NaN where
    unknown."""
    measured_s: Array
    """Shape (operations,): measured seconds."""
    rounds_s: Array
    """Shape (operations, rounds): measured seconds in each round."""
    gap_s: Array
    """Shape (operations,): idle before a kernel, assigned to its first member."""
    executed_s: Array
    """Shape (operations,): shares of the kernels' rooflines."""
    calibrated_s: Array
    """Shape (operations,): shares of the kernels' predictions; NaN without calibrated laws."""
    labels: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, result: CellResult, graph: OpGraph, spec: HardwareSpec) -> "KernelTable":
        """The table of a pass. Raises ValueError where the kernels are not of the graph."""
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
        """Joins calls of one name with the same layer kinds (`paths`) and kinds of operations; the slowest first."""
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


@dataclass(frozen=True, eq=False)
class OpTimesTable:
    """Arrays of shape (operations,), in seconds of one execution; NaN is a rung that is not known."""

    count: Array
    """Executions in the whole model."""
    gap_s: Array
    """Device idle before it, middle of the rounds."""
    rungs: dict[str, Array]
    """Times of each of `RUNGS`, and "measured" (T4)."""
    rounds_s: Array
    """Shape (operations, rounds): measured seconds in each round."""
    bound: tuple[str, ...]
    """Limit of the executed graph at the measured peaks, or at the datasheet's if there are none."""
    kernels: tuple[tuple[str, ...], ...]
    warnings: tuple[str, ...]
    predicted: Predicted | None = None
    """Predictions of calibrated laws, with intervals; None without laws."""
    compiled: KernelTable | None = None
    """The kernels of a compiled pass, whose shares are then in `rungs`."""

    @classmethod
    def of(
        cls, result: CellResult, graph: OpGraph, spec: HardwareSpec, calibrated_s: Array | None = None
    ) -> "OpTimesTable":
        """Join a measurement to its graph; `calibrated_s` replaces the times that the spec's laws predict. In a
        compiled pass kernels were executed, and laws price those that are one operation. Raises ValueError where the
        measurement and the graph do not belong together."""
        size = len(graph.ops)
        if calibrated_s is not None and calibrated_s.shape != (size,):
            raise ValueError(f"calibrated times are {calibrated_s.shape}, the graph has {size} operations")
        prepared, unknown = Prepared(graph), np.full(size, np.nan)
        executed = price(prepared, spec.measured) if spec.measured else None
        priced = executed or (price(prepared, spec.datasheet) if spec.datasheet else None)
        compiled, laws, own = None, None, calibrated_s is None
        if result.kernels:
            compiled = KernelTable.of(result, graph, spec)
            rounds_s, gap_s, kernels = compiled.rounds_s, compiled.gap_s, compiled.labels
            measured_s, executed_s, calibrated_s = compiled.measured_s, compiled.executed_s, compiled.calibrated_s
            present = {op for ops in compiled.members for op in ops}
            lacking = _lacking(graph, present, "are in no compiled kernel, the compiler left them out,")
        else:
            rounds_s, gap_s, kernels = _measured(result, size)
            measured_s, executed_s = middle(rounds_s), executed.time_s if executed else unknown
            if executed and spec.calibrated:
                laws = law_prices(prepared, spec, executed.time_s, with_intervals=True)
            if calibrated_s is None:
                calibrated_s = laws.time_s if laws else unknown
            lacking = _lacking(graph, {times.op for times in result.ops}, "were not measured")
        predicted = _predicted(calibrated_s, laws if own else None, prepared, result, spec)
        return cls(
            count=np.array([op.count for op in graph.ops], dtype=float),
            gap_s=gap_s,
            rungs={
                "ideal": price_fused(prepared, spec.datasheet).time_s if spec.datasheet else unknown,
                "achieved": price_fused(prepared, spec.measured).time_s if spec.measured else unknown,
                "executed": executed_s,
                "calibrated": calibrated_s,
                "calibrated_at_level": predicted.at_level_s if predicted and predicted.levels else unknown,
                "measured": measured_s,
            },
            rounds_s=rounds_s,
            bound=priced.bound if priced else (UNKNOWN,) * size,
            kernels=kernels,
            warnings=(*lacking, *_unpriced(graph, spec), *_unlawful(graph, laws)),
            predicted=predicted,
            compiled=compiled,
        )

    @property
    def measured_s(self) -> Array:
        return self.rungs["measured"]

    def total(self, rung: str) -> float | None:
        """Sum over all executions in the whole model; None if the rung is unknown for some operation."""
        return known(float((self.rungs[rung] * self.count).sum()))


def _predicted(
    time_s: Array, laws: LawPrices | None, prepared: Prepared, result: CellResult, spec: HardwareSpec
) -> Predicted | None:
    """Predictions with intervals; None where an operation has no calibrated time."""
    if spec.measured is None or np.isnan(time_s).any():
        return None
    shares = waits(prepared, spec.measured, spec.kind)
    return Predicted.of(
        time_s, laws, shares, levels(result.reference, spec.reference, result.cell.workload.dtype, result.rounds)
    )


def _by_law(graph: OpGraph, members: Sequence[Sequence[int]], spec: HardwareSpec, otherwise: Array) -> Array:
    """Seconds of each kernel by the law of its only operation; a fused kernel keeps its roofline."""
    if spec.measured is None or not spec.calibrated:
        return otherwise
    prepared = Prepared(graph)
    laws = law_prices(prepared, spec, price(prepared, spec.measured).time_s)
    times_s = otherwise.copy()
    for kernel, ops in enumerate(members):
        if len(ops) == 1 and laws.by_law[ops[0]]:
            times_s[kernel] = laws.time_s[ops[0]]
    return times_s


def known(value: float) -> float | None:
    """The value, or None for NaN."""
    return None if np.isnan(value) else value


def layer_kind(path: str) -> str:
    """A module path with the indices of repeated modules as "*": "model.layers.*.mlp"."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", path)


def _measured(result: CellResult, size: int) -> tuple[Array, Array, tuple[tuple[str, ...], ...]]:
    """Seconds of each operation in each round, its idle before, and the kernels that it became. Raises ValueError where
    the measurement does not belong to a graph of this size."""
    by_op = {times.op: times for times in result.ops}
    if len(by_op) != len(result.ops) or any(not 0 <= op < size for op in by_op):
        raise ValueError(f"{result.cell.key}: what was measured is not its graph of {size}; measure it again")
    times = [by_op.get(i, OpTimes(op=i, device_s=(), gap_s=())) for i in range(size)]
    gaps_s = [median_by_round(own.gap_s, result.rounds) for own in times]
    rounds_s = medians_by_round([own.device_s for own in times], result.rounds)
    return rounds_s, np.array(gaps_s), tuple(own.kernels for own in times)


def _lacking(graph: OpGraph, present: set[int], how: str) -> list[str]:
    missing = [op for i, op in enumerate(graph.ops) if i not in present]
    where = f"{missing[0].path or 'the model'} {missing[0].name}" if missing else ""
    return [f"{len(missing)} operations {how} and count as 0 s, the first: {where}"] if missing else []


def _unlawful(graph: OpGraph, laws: LawPrices | None) -> list[str]:
    """Notes on the time that no law predicts, or a law beyond its sizes, where it is more than `NOTED`."""
    if laws is None:
        return []
    times = laws.time_s * np.array([op.count for op in graph.ops])
    whole, out = float(times.sum()), []
    for rows, statement in (
        (~laws.by_law, "has no calibrated law and is the roofline's"),
        (laws.outside, "is from a law beyond the sizes that it was fitted on"),
    ):
        share = float(times[rows].sum()) / whole if whole > 0 else 0.0
        if share > NOTED:
            names = sorted({graph.ops[i].name for i in np.flatnonzero(rows)})
            out.append(f"{whole_percent(share)} of the predicted time {statement} ({', '.join(names)})")
    return out


def _unpriced(graph: OpGraph, spec: HardwareSpec) -> list[str]:
    return [
        f"no {origin} peak for {', '.join(lacking)}: the times that need it are not known"
        for origin, peaks in (("datasheet", spec.datasheet), ("measured", spec.measured))
        if peaks and (lacking := missing_peaks(graph.ops, peaks))
    ]
