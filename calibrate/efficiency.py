"""Measured against predicted, for each operation, layer kind and pass: the waterfall and the closure.

`summarise` turns a measured cell, its graph and a device's figures into a `PassReport`; every view
(terminal, markdown, HTML, JSON) renders that and computes nothing of its own.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from calibrate.kernel_times import FusedKernel
from calibrate.op_times import Array, OpTimesTable, known, layer_kind
from calibrate.soundness import doubts, judge
from calibrate.waterfall import TERMS, terms
from profiler.record.run import CellResult, Closure, Mode
from roofline.forecast import pass_wall_s
from roofline.hardware import HardwareSpec
from roofline.host_gaps import least_gap_s
from roofline.op import OpGraph
from roofline.record import Record
from roofline.workload import Workload

UNATTRIBUTED = "(unattributed)"
"""Path of the row that holds device time of no operation of the graph."""


class Rungs(Record):
    """The five times of DESIGN.md, in seconds, in total over all executions; None where a rung is not known."""

    ideal: float | None
    """T0: fused graph, datasheet peaks."""
    achieved: float | None
    """T1: fused graph, peaks measured on this device."""
    executed: float | None
    """T2: graph as executed, peaks measured on this device."""
    calibrated: float | None
    """T3: graph as executed, calibrated laws."""
    measured: float
    """T4: device time."""


class Waterfall(Record):
    """Signed seconds that add up to the wall time. A term with an unknown rung is None and shown merged."""

    ideal: float | None
    peak_derate: float | None
    extra_work: float | None
    shape_loss: float | None
    residual: float | None
    idle: float
    merged: dict[str, float] = {}
    """Terms that an unknown rung joins: {"shape_loss+residual": seconds}."""


class LayerEfficiency(Record):
    """One layer kind: the operations of one kind under one module path, repeated layers folded."""

    path: str
    """Module path; the index of a repeated layer is "*"."""
    kind: str
    count: float
    """Executions in the whole model."""
    rungs: Rungs
    waterfall: Waterfall
    ideal_s: float | None
    """Lowest known rung, in total."""
    predicted_s: float | None
    """Highest known rung below the measurement, in total."""
    measured_s: float
    """In total, so that the layers add up to the busy time."""
    median_s: float
    """Of one repeated layer's measured time."""
    spread_s: float
    """Half the 5–95 % range over the repeated layers."""
    efficiency: float | None
    """ideal_s ÷ measured_s; above 1 is marked, never clipped."""
    bound: str
    """What the executed roofline waits for: "matrix", "vector", or the name of a memory level."""
    matrix_flops: float
    vector_flops: float
    bytes: float
    kernels: tuple[str, ...] = ()
    """Kernels or backends that ran it."""


class PassReport(Record):
    """One measured pass."""

    model: str
    workload: Workload
    status: str
    """"done", "inconclusive" or "invalid", as `calibrate.soundness` judges."""
    reason: str | None
    wall_s: float
    """Median of the unprofiled passes; scaled where only some layers ran."""
    busy_s: float
    """Sum of the layers' measured times."""
    scaled_from_layers: tuple[int, int] | None
    """(measured, whole model) repeated layers."""
    ideal_peaks: str | None
    """Which peaks `ideal_s` uses: "datasheet", "achieved", None if no peaks are known."""
    prediction: str | None
    """Rung of `predicted_s`: "executed" (achieved peaks) or "calibrated"."""
    rungs: Rungs
    waterfall: Waterfall
    predicted_busy_s: float | None
    predicted_wall_s: float | None
    noise: float
    """Half the 5–95 % range of the unprofiled wall times ÷ their median."""
    closure: Closure
    ran: dict[str, str]
    differences: tuple[str, ...]
    inactive: tuple[str, ...]
    peak_memory_bytes: int | None
    layers: tuple[LayerEfficiency, ...]
    mode: Mode = "eager"
    kernels: tuple[FusedKernel, ...] = ()
    """Of a compiled pass, the slowest first; their times are shared among the layers that they came from."""
    warnings: tuple[str, ...] = ()
    """What an expert must know before using the figures."""
    clock: str = ""
    """What gave the device times, as `CellResult.clock`; "" if it was not recorded."""
    cache_state: str = ""
    """State of the caches, as `CellResult.cache_state`; "" if it was not recorded."""
    passes: tuple[int, int] | None = None
    """(unprofiled, profiled) passes behind the medians; None if it was not recorded."""


def summarise(result: CellResult, graph: OpGraph, spec: HardwareSpec, calibrated_s: Array | None = None) -> PassReport:
    """The report of one measured cell. `calibrated_s`: T3 of each operation, one execution, where laws are fitted.

    Every time of an operation counts `Op.count` times. Where only some layers ran, the wall is scaled with them:
    wall × (Σ count·(T4 + gap) + rest) ÷ (Σ (T4 + gap) + rest), rest being the tail gap and unattributed time.
    The idle of the pass, wall − busy, is given to the layers in proportion to the gaps measured before them (to
    their times if no gap was seen), so that the layers' waterfalls add up to the pass's.

    Raises ValueError: the cell failed, has no samples, or does not belong to the graph.
    """
    if result.status == "failed" or not result.wall_s or result.closure is None:
        raise ValueError(f"{result.cell.key}: nothing to summarise ({result.reason or 'no samples'})")
    table = OpTimesTable.of(result, graph, spec, calibrated_s)
    unattributed_s = float(np.median(result.unattributed_s)) if result.unattributed_s else 0.0
    tail_s = float(np.median(result.tail_gap_s)) if result.tail_gap_s else 0.0
    wall_s = float(np.median(result.wall_s)) * _scale(table, tail_s + unattributed_s)
    busy_s = float((table.measured_s * table.count).sum()) + unattributed_s
    idle_s = wall_s - busy_s
    rungs = _rungs([table.total(rung) for rung in ("ideal", "achieved", "executed", "calibrated")], busy_s)
    ideal_peaks = _ideal_peaks(rungs, spec)
    layers = _layers(table, graph, idle_s, ideal_peaks)
    if unattributed_s:
        layers.append(_unattributed_row(unattributed_s))
    noise = _half_range(result.wall_s) / float(np.median(result.wall_s))
    status, reason = judge(result, idle=idle_s / wall_s, noise=noise)
    prediction = next((name for name in ("calibrated", "executed") if getattr(rungs, name) is not None), None)
    return PassReport(
        model=result.cell.model,
        workload=result.cell.workload,
        status=status,
        reason=reason,
        wall_s=wall_s,
        busy_s=busy_s,
        scaled_from_layers=graph.layers,
        ideal_peaks=ideal_peaks,
        prediction=prediction,
        rungs=rungs,
        waterfall=_waterfall(rungs, idle_s),
        predicted_busy_s=rungs.calibrated if rungs.calibrated is not None else rungs.executed,
        predicted_wall_s=_predicted_wall_s(table, spec, prediction, result.cell.mode),
        noise=noise,
        closure=result.closure,
        ran=result.ran,
        differences=result.differences,
        inactive=graph.inactive,
        peak_memory_bytes=result.peak_memory_bytes,
        layers=tuple(sorted(layers, key=lambda layer: -layer.measured_s)),
        mode=result.cell.mode,
        kernels=_kernels(table, graph),
        warnings=(*table.warnings, *doubts(result), *_doubts(layers, result.closure)),
        clock=result.clock,
        cache_state=result.cache_state,
        passes=(len(result.wall_s), len(result.profiled_wall_s)),
    )


def to_json(report: PassReport) -> dict[str, Any]:
    """One element of `passes` in the output of `run --json`, as DESIGN.md gives it, with more keys."""
    workload = report.workload
    return {
        "model": report.model,
        "phase": workload.phase,
        **workload.model_dump(),
        "attributed": report.closure.attributed,
        "instrumented_ratio": report.closure.instrumented_ratio,
        "spans_plus_gaps": report.closure.spans_plus_gaps,
        "unprofiled_passes": report.passes[0] if report.passes else None,
        "profiled_passes": report.passes[1] if report.passes else None,
        **report.model_dump(mode="json", exclude={"workload", "passes"}),
    }


def _scale(table: OpTimesTable, rest_s: float) -> float:
    """Whole model ÷ what ran, in measured time; 1 where everything ran."""
    spans = table.measured_s + table.gap_s
    ran = float(spans.sum()) + rest_s
    return (float((spans * table.count).sum()) + rest_s) / ran if ran else 1.0


def _rungs(predicted: Sequence[float | None], measured: float) -> Rungs:
    ideal, achieved, executed, calibrated = predicted
    return Rungs(ideal=ideal, achieved=achieved, executed=executed, calibrated=calibrated, measured=measured)


def _waterfall(rungs: Rungs, idle_s: float) -> Waterfall:
    alone, merged = terms(rungs.ideal, rungs.achieved, rungs.executed, rungs.calibrated, rungs.measured)
    return Waterfall(**{name: alone[name] for name in TERMS}, idle=idle_s, merged=merged)


def _ideal_peaks(rungs: Rungs, spec: HardwareSpec) -> str | None:
    """One origin for all layers: the datasheet, unless only the achieved peaks price every operation."""
    if spec.datasheet and (rungs.ideal is not None or not (spec.measured and rungs.achieved is not None)):
        return "datasheet"
    return "achieved" if spec.measured else None


def _layers(table: OpTimesTable, graph: OpGraph, idle_s: float, ideal_peaks: str | None) -> list[LayerEfficiency]:
    members: dict[tuple[str, str], list[int]] = {}
    for i, op in enumerate(graph.ops):
        members.setdefault((layer_kind(op.path), str(op.kind)), []).append(i)
    rows = [np.array(row) for row in members.values()]
    gaps, times = ([float((x[row] * table.count[row]).sum()) for row in rows] for x in (table.gap_s, table.measured_s))
    weights = gaps if any(gaps) else times if any(times) else [1.0] * len(rows)
    return [
        _layer(table, graph, path, kind, row, idle_s * (weight / sum(weights)), ideal_peaks)
        for (path, kind), row, weight in zip(members, rows, weights, strict=True)
    ]


def _layer(
    table: OpTimesTable, graph: OpGraph, path: str, kind: str, row: Any, idle_s: float, ideal_peaks: str | None
) -> LayerEfficiency:
    count = table.count[row]
    total = {rung: known(float((times[row] * count).sum())) for rung, times in table.rungs.items()}
    measured_s = float((table.measured_s[row] * count).sum())
    rungs = _rungs([total[rung] for rung in ("ideal", "achieved", "executed", "calibrated")], measured_s)
    ideal_s = {"datasheet": rungs.ideal, "achieved": rungs.achieved, None: None}[ideal_peaks]
    repeated: dict[str, float] = {}
    waits: dict[str, float] = {}
    weight = table.rungs["executed"] if not np.isnan(table.rungs["executed"][row]).any() else table.measured_s
    for i in row.tolist():
        repeated[graph.ops[i].path] = repeated.get(graph.ops[i].path, 0.0) + table.measured_s[i]
        waits[table.bound[i]] = waits.get(table.bound[i], 0.0) + weight[i] * table.count[i]
    ops = [graph.ops[i] for i in row.tolist()]
    return LayerEfficiency(
        path=path,
        kind=kind,
        count=float(count.sum()),
        rungs=rungs,
        waterfall=_waterfall(rungs, idle_s),
        ideal_s=ideal_s,
        predicted_s=rungs.calibrated if rungs.calibrated is not None else rungs.executed,
        measured_s=measured_s,
        median_s=float(np.median([*repeated.values()])),
        spread_s=_half_range([*repeated.values()]),
        efficiency=ideal_s / measured_s if ideal_s is not None and measured_s > 0 else None,
        bound=max(waits, key=lambda bound: waits[bound]),
        matrix_flops=sum(op.matrix_flops * op.count for op in ops),
        vector_flops=sum(op.vector_flops * op.count for op in ops),
        bytes=sum(op.count * sum(a.bytes for a in (*op.reads, *op.writes)) for op in ops),
        kernels=tuple(dict.fromkeys(name for i in row.tolist() for name in table.kernels[i])),
    )


def _unattributed_row(seconds: float) -> LayerEfficiency:
    rungs = _rungs([None] * 4, seconds)
    return LayerEfficiency(
        path=UNATTRIBUTED,
        kind="other",
        count=1,
        rungs=rungs,
        waterfall=_waterfall(rungs, 0.0),
        ideal_s=None,
        predicted_s=None,
        measured_s=seconds,
        median_s=seconds,
        spread_s=0.0,
        efficiency=None,
        bound="",
        matrix_flops=0,
        vector_flops=0,
        bytes=0,
    )


def _predicted_wall_s(table: OpTimesTable, spec: HardwareSpec, prediction: str | None, mode: Mode) -> float | None:
    """The host model over the predicted device times; None without a prediction or a host figure.

    Of a CUDA graph the host issues one launch, which the device does not wait for: its wall is the device's time. Of a
    compiled pass it issues kernels.
    """
    if prediction is None or spec.measured is None or spec.kind == "other":
        return None
    if mode.endswith("cuda-graph"):
        return table.total(prediction)
    with_laws = prediction == "calibrated"
    if table.compiled is not None:
        time_s, count = table.compiled.predicted_s, table.compiled.count
        gap_s = least_gap_s(spec, len(count))
    else:
        time_s, count, gap_s = table.rungs[prediction], table.count, table.host_gap_s
    return pass_wall_s(time_s, count, spec, spec.measured, gap_s, with_laws=with_laws)


def _kernels(table: OpTimesTable, graph: OpGraph) -> tuple[FusedKernel, ...]:
    if table.compiled is None:
        return ()
    return table.compiled.alike([layer_kind(op.path) for op in graph.ops], [str(op.kind) for op in graph.ops])


def _half_range(values: Sequence[float]) -> float:
    """Half of the 5–95 % range."""
    low, high = np.quantile(values, (0.05, 0.95))
    return float(high - low) / 2


def _doubts(layers: Sequence[LayerEfficiency], closure: Closure) -> list[str]:
    out = []
    above = [(each.efficiency, each.path, each.kind) for each in layers if each.efficiency and each.efficiency > 1]
    if above:
        worst, path, kind = max(above)
        kinds = "layer kind" if len(above) == 1 else "layer kinds"
        out.append(
            f"efficiency above 1 in {len(above)} {kinds}, most in {path or 'the model'} {kind} ({worst:.2f}): "
            "a wrong count, a wrong peak, or a warm cache"
        )
    if closure.kernels != closure.launches:
        out.append(f"{closure.launches} launches but {closure.kernels} kernels: the profiler dropped events")
    return out
