"""Measured against predicted times, for each operation, layer kind and pass: rungs, waterfall, intervals, verdict.

Measured figures are means of the middle half of the rounds (`calibrate.passes.replicates`), with intervals over rounds;
those of predictions come from the laws (`calibrate.passes.predicted`). The interval of a difference of the two has the
root of the sum of both squares, as they are independent.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from calibrate.passes.pass_report import LayerEfficiency, PassReport, Rungs, Waterfall, term_ending_at, waterfall
from calibrate.passes.predicted import Ends, Wall, executed_wall, predicted_wall
from calibrate.passes.replicates import Median, around, by_round, error_within, median_by_round, median_of
from calibrate.passes.table import RUNGS, Array, OpTimesTable, known, layer_kind
from calibrate.passes.verdict import CERTAIN, doubts, excess_of, judge
from profiler.record.run import CellResult, Closure
from roofline.graph.op import OpGraph, uncounted_share
from roofline.hardware.spec import HardwareSpec

UNATTRIBUTED = "(unattributed)"
"""Path of the row of device time that belongs to no operation of the graph."""


def summarise(result: CellResult, graph: OpGraph, spec: HardwareSpec, calibrated_s: Array | None = None) -> PassReport:
    """The report of one measured cell. `calibrated_s`: T3 of one execution of each operation, instead of the laws'.

    Every time of an operation counts `Op.count` times. Where only some layers ran, the wall is scaled with them:
    wall × (Σ count·(T4 + gap) + rest) ÷ (Σ (T4 + gap) + rest), rest being the tail gap and unattributed time.
    The idle of the pass, wall − busy, is given to the layers in proportion to the gaps measured before them (or to
    their times without gaps), so that the layers' waterfalls add up to the pass's.

    Raises ValueError: the cell failed, has no samples, or does not belong to the graph.
    """
    if result.status == "failed" or not result.wall_s or result.closure is None:
        raise ValueError(f"{result.cell.key}: nothing to summarise ({result.reason or 'no samples'})")
    table = OpTimesTable.of(result, graph, spec, calibrated_s)
    rounds = result.rounds
    lost_s, tail_s = (median_by_round(samples, rounds) for samples in (result.unattributed_s, result.tail_gap_s))
    scale = _scale(table, tail_s + lost_s)
    busys_s = table.count @ table.rounds_s
    lost_by_round_s = by_round(result.unattributed_s, rounds)
    if len(lost_by_round_s) == len(busys_s):
        busys_s = busys_s + lost_by_round_s
    wall = median_of(by_round(result.wall_s, rounds) * scale)
    wall = replace(wall, error=max(wall.error, error_within(result.wall_s, rounds) * scale))
    busy_s = float((table.measured_s * table.count).sum()) + lost_s
    idle_s = wall.value - busy_s
    rungs = Rungs(**{name: table.total(name) for name in RUNGS}, measured=busy_s)
    ideal_peaks = _ideal_peaks(rungs, spec)
    layers = _layers(table, graph, idle_s, ideal_peaks)
    if lost_s:
        layers.append(
            LayerEfficiency(
                path=UNATTRIBUTED,
                kind="other",
                count=1,
                rungs=Rungs(measured=lost_s),
                waterfall=waterfall(Rungs(measured=lost_s), 0.0),
                measured_s=lost_s,
                median_s=lost_s,
                **_ends("measured_s", around(lost_s, median_of(lost_by_round_s).half())),
            )
        )
    excess = excess_of(np.array(result.wall_s) * scale, np.array(result.profiled_wall_s) * scale, busys_s)
    excess = Median(-idle_s / wall.value, excess.error, excess.freedom)
    ratio = _instrumented(result, result.closure)
    status, reason = judge(result, wall=wall, excess=excess, ratio=ratio)
    prediction = next((name for name in ("calibrated", "executed") if getattr(rungs, name) is not None), None)
    predicted_wall_s = _predicted_wall(table, graph, spec, result, prediction)
    fall = waterfall(rungs, idle_s)
    busy_ends = around(busy_s, median_of(busys_s).half())
    predicted_ends = table.predicted.ends(table.count) if table.predicted else None
    terms = {**_residual(rungs, fall, busy_ends, predicted_ends), **_idle(idle_s, result, busys_s, scale)}
    if fall.level is not None and table.predicted is not None:
        terms["level"] = table.predicted.level_ends(table.count)
    return PassReport(
        model=result.cell.model,
        workload=result.cell.workload,
        status=status,
        reason=reason,
        wall_s=wall.value,
        busy_s=busy_s,
        scaled_from_layers=graph.layers,
        ideal_peaks=ideal_peaks,
        prediction=prediction,
        rungs=rungs,
        waterfall=fall,
        waterfall_low={name: ends[0] for name, ends in terms.items()},
        waterfall_high={name: ends[1] for name, ends in terms.items()},
        predicted_busy_s=_highest(rungs),
        predicted_wall_s=predicted_wall_s.at_level_s,
        predicted_busy_calibrated_s=rungs.calibrated,
        predicted_wall_calibrated_s=predicted_wall_s.calibrated_s,
        level=dict(table.predicted.levels) if table.predicted else {},
        noise=_half_range(result.wall_s) / float(np.median(result.wall_s)),
        closure=result.closure,
        ran=result.ran,
        differences=result.differences,
        inactive=graph.inactive,
        uncounted=graph.uncounted,
        uncounted_share=uncounted_share(graph) if graph.uncounted else 0.0,
        peak_memory_bytes=result.peak_memory_bytes,
        layers=tuple(sorted(layers, key=lambda layer: -layer.measured_s)),
        mode=result.cell.mode,
        kernels=table.compiled.alike([layer_kind(op.path) for op in graph.ops], [str(op.kind) for op in graph.ops])
        if table.compiled
        else (),
        warnings=tuple(
            w for w in (*table.warnings, *doubts(result, ratio), *_doubts(layers, result.closure)) if w != reason
        ),
        clock=result.clock,
        cache_state=result.cache_state,
        passes=(len(result.wall_s), len(result.profiled_wall_s)),
        rounds=rounds,
        excess=excess.value,
        cell=result.cell.key,
        change=result.cell.change,
        beside=result.cell.beside,
        **_ends("wall_s", wall.interval()),
        **_ends("busy_s", busy_ends),
        **_ends("predicted_busy_s", predicted_ends),
        **_ends("predicted_wall_s", predicted_wall_s.ends),
        **_ends("instrumented_ratio", ratio.interval()),
        **_ends("excess", excess.interval(CERTAIN)),
    )


def _ends(name: str, ends: Ends | None) -> dict[str, Any]:
    """The two fields of the ends of a figure's interval."""
    return {f"{name}_low": ends[0], f"{name}_high": ends[1]} if ends else {}


def _instrumented(result: CellResult, closure: Closure) -> Median:
    """Profiled ÷ unprofiled wall, compared within rounds."""
    plain_s, profiled_s = by_round(result.wall_s, result.rounds), by_round(result.profiled_wall_s, result.rounds)
    if len(plain_s) != len(profiled_s) or not (plain_s > 0).all():
        return Median(closure.instrumented_ratio, np.inf, 1)
    ratio = median_of(profiled_s / plain_s)
    return Median(closure.instrumented_ratio, ratio.error, ratio.freedom)


def _idle(idle_s: float, result: CellResult, busys_s: Array, scale: float) -> dict[str, Ends]:
    """Interval of the idle time, from wall and busy time compared within rounds."""
    walls_s = by_round(result.wall_s, result.rounds) * scale
    if len(walls_s) != len(busys_s):
        return {}
    ends = around(idle_s, median_of(walls_s - busys_s).half())
    return {"idle": ends} if ends else {}


def _residual(rungs: Rungs, fall: Waterfall, busy: Ends | None, predicted: Ends | None) -> dict[str, Ends]:
    """Interval of the term that ends with the residual and begins at a prediction, or at a roofline without one."""
    name = term_ending_at(fall, "residual")
    if name is None or busy is None:
        return {}
    value = fall.merged[name] if name in fall.merged else getattr(fall, name)
    predicted_s, below, above = _highest(rungs), 0.0, 0.0
    if rungs.calibrated is not None and predicted_s is not None and predicted_s == rungs.measured - value:
        if predicted is None:
            return {}
        below, above = predicted_s - predicted[0], predicted[1] - predicted_s
    return {
        name: (value - np.hypot(rungs.measured - busy[0], above), value + np.hypot(busy[1] - rungs.measured, below))
    }


def _highest(rungs: Rungs) -> float | None:
    """The highest known rung below the measurement that prices the graph as executed."""
    known_s = (rung for rung in (rungs.calibrated_at_level, rungs.calibrated, rungs.executed) if rung is not None)
    return next(known_s, None)


def _scale(table: OpTimesTable, rest_s: float) -> float:
    """Whole model ÷ measured layers, in measured time; 1 where everything ran."""
    spans = table.measured_s + table.gap_s
    ran = float(spans.sum()) + rest_s
    return (float((spans * table.count).sum()) + rest_s) / ran if ran else 1.0


def _ideal_peaks(rungs: Rungs, spec: HardwareSpec) -> str | None:
    """The peaks of all layers' ideal: the datasheet's, unless only the achieved peaks price every operation."""
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
    measured_s = float((table.measured_s[row] * count).sum())
    totals = {name: known(float((table.rungs[name][row] * count).sum())) for name in RUNGS}
    rungs = Rungs(**totals, measured=measured_s)
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
        waterfall=waterfall(rungs, idle_s),
        ideal_s=ideal_s,
        predicted_s=_highest(rungs),
        measured_s=measured_s,
        median_s=float(np.median([*repeated.values()])),
        spread_s=_half_range([*repeated.values()]),
        efficiency=_ratio(ideal_s, measured_s),
        bound=max(waits, key=lambda bound: waits[bound]),
        matrix_flops=sum(op.matrix_flops * op.count for op in ops),
        vector_flops=sum(op.vector_flops * op.count for op in ops),
        bytes=sum(op.count * sum(a.bytes for a in (*op.reads, *op.writes)) for op in ops),
        kernels=tuple(dict.fromkeys(name for i in row.tolist() for name in table.kernels[i])),
        **_ends("measured_s", around(measured_s, median_of(count @ table.rounds_s[row]).half())),
        **_ends("predicted_s", table.predicted.ends(table.count, row) if table.predicted else None),
    )


def _predicted_wall(
    table: OpTimesTable, graph: OpGraph, spec: HardwareSpec, result: CellResult, prediction: str | None
) -> Wall:
    """The predicted wall time, unknown without a prediction or a host figure."""
    if prediction == "calibrated" and table.predicted is not None:
        return predicted_wall(graph, table.count, spec, table.predicted, result.cell.mode, table.compiled)
    if prediction == "executed":
        return executed_wall(table.count, spec, table.rungs[prediction], result.cell.mode, table.compiled)
    return Wall()


def _ratio(ideal_s: float | None, measured_s: float) -> float | None:
    """Ideal time ÷ measured time; None where either is unknown or the measured one is as good as nothing."""
    ratio = ideal_s / measured_s if ideal_s is not None and measured_s > 0 else math.inf
    return ratio if math.isfinite(ratio) else None


def _half_range(values: Sequence[float]) -> float:
    """Half of the 5–95 % range."""
    low, high = np.quantile(values, (0.05, 0.95))
    return float(high - low) / 2


def _doubts(layers: Sequence[LayerEfficiency], closure: Closure) -> list[str]:
    out = []
    above = [(layer.efficiency, layer.path, layer.kind) for layer in layers if (layer.efficiency or 0) > 1]
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
