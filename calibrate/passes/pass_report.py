"""Records of one measured pass for every view: times, their intervals, and the terms between them.

`calibrate.passes.efficiency.summarise` makes them; terminal, Markdown, HTML and JSON render them and compute nothing.
Ends of intervals are of 90 % and None where too little was measured.

The terms of a waterfall are signed and never clipped, and each needs the times on both its sides. Where one is unknown,
its two terms are merged under both names, so that the sum stays the same and an unknown is never shown as 0: a pass
without reference probes has one term "level+residual".
"""

from typing import Any

from profiler.record.run import Closure, Mode
from roofline.laws.fitted import LevelRatio
from roofline.record import Record
from roofline.workload import Workload

TERMS = ("ideal", "peak_derate", "extra_work", "shape_loss", "level", "residual")
"""Terms that end at T0, T1, T2, T3, T3 at the level of the pass, and T4."""


class Rungs(Record):
    """Times of a pass from its ideal to the measurement, total seconds over all executions; None: unknown."""

    ideal: float | None = None
    """T0: fused graph, datasheet peaks."""
    achieved: float | None = None
    """T1: fused graph, peaks measured on this device."""
    executed: float | None = None
    """T2: graph as executed, peaks measured on this device."""
    calibrated: float | None = None
    """T3: graph as executed, calibrated laws, at the level of the machine that they were fitted at."""
    calibrated_at_level: float | None = None
    """T3 at the level of the machine beside the pass; None where reference probes did not run in both."""
    measured: float
    """T4: device time."""


class Waterfall(Record):
    """Signed seconds that add up to the wall time; a term with an unknown rung is None and merged."""

    ideal: float | None
    peak_derate: float | None
    extra_work: float | None
    shape_loss: float | None
    level: float | None = None
    """Seconds because the machine is slower than when the laws were fitted."""
    residual: float | None
    idle: float
    merged: dict[str, float] = {}
    """Terms joined by an unknown rung: {"level+residual": seconds}."""


class FusedKernel(Record):
    """Calls of alike kernels: one name and one set of layer kinds."""

    name: str
    """Name without the numbers that the compiler gives its graphs and kernels."""
    modules: tuple[str, ...]
    """Layer kinds of its operations, in order; the index of a repeated layer is "*"."""
    kinds: tuple[str, ...]
    count: float
    """Calls in the whole model."""
    measured_s: float
    predicted_s: float | None
    """Total seconds by the law of its operation, else by the roofline; None: unknown."""


class LayerEfficiency(Record):
    """A layer kind: the operations of one kind under one module path, repeated layers folded."""

    path: str
    """Module path; the index of a repeated layer is "*"."""
    kind: str
    count: float
    """Executions in the whole model."""
    rungs: Rungs
    waterfall: Waterfall
    ideal_s: float | None = None
    """Total seconds of the lowest known rung."""
    predicted_s: float | None = None
    """Total seconds of the highest known rung below the measurement."""
    predicted_s_low: float | None = None
    predicted_s_high: float | None = None
    measured_s: float
    """Total seconds, so that the layers add up to the busy time."""
    measured_s_low: float | None = None
    measured_s_high: float | None = None
    median_s: float
    """Median of the measured time of one execution over the repeated layers."""
    spread_s: float = 0.0
    """Half the 5–95 % range over the repeated layers."""
    efficiency: float | None = None
    """ideal_s ÷ measured_s; above 1 is marked, never clipped."""
    bound: str = ""
    """Limit of the executed roofline: "matrix", "vector", or the name of a memory level."""
    matrix_flops: float = 0
    vector_flops: float = 0
    bytes: float = 0
    kernels: tuple[str, ...] = ()
    """Kernels or backends that ran it."""


class PassReport(Record):
    """One measured pass."""

    model: str
    workload: Workload
    status: str
    """"done", "inconclusive" or "invalid", as `calibrate.passes.verdict` judges."""
    reason: str | None
    wall_s: float
    """Wall time of the unprofiled passes over the rounds; scaled where only some layers ran."""
    wall_s_low: float | None = None
    wall_s_high: float | None = None
    busy_s: float
    """Sum of the layers' measured times."""
    busy_s_low: float | None = None
    busy_s_high: float | None = None
    scaled_from_layers: tuple[int, int] | None
    """(measured, whole model) repeated layers."""
    ideal_peaks: str | None
    """Peaks of `ideal_s`: "datasheet", "achieved", or None if no peaks are known."""
    prediction: str | None
    """Rung of `predicted_s`: "executed" (achieved peaks) or "calibrated"."""
    rungs: Rungs
    waterfall: Waterfall
    waterfall_low: dict[str, float] = {}
    """Ends of the terms that have an interval, by the name of the term or of the merged one."""
    waterfall_high: dict[str, float] = {}
    predicted_busy_s: float | None
    """Device time at the level of the machine beside the pass, where that is known."""
    predicted_busy_s_low: float | None = None
    predicted_busy_s_high: float | None = None
    predicted_wall_s: float | None
    predicted_wall_s_low: float | None = None
    predicted_wall_s_high: float | None = None
    predicted_busy_calibrated_s: float | None = None
    """Device time at the level of the calibration; None without laws."""
    predicted_wall_calibrated_s: float | None = None
    level: dict[str, LevelRatio] = {}
    """Level of the machine beside the pass against the calibration by reference probe; empty where it is unknown."""
    noise: float
    """Half the 5–95 % range of the unprofiled wall times ÷ their median."""
    closure: Closure
    ran: dict[str, str]
    differences: tuple[str, ...]
    inactive: tuple[str, ...]
    uncounted: tuple[str, ...] = ()
    """Operators of the pass whose FLOPs are in no table: ideal and executed rungs have the price of their bytes."""
    uncounted_share: float = 0.0
    """Share of the executed bytes that they move."""
    peak_memory_bytes: int | None
    layers: tuple[LayerEfficiency, ...]
    mode: Mode = "eager"
    kernels: tuple[FusedKernel, ...] = ()
    """Kernels of a compiled pass, the slowest first; their times are shared among their layers."""
    warnings: tuple[str, ...] = ()
    """Caveats of the figures."""
    clock: str = ""
    """Source of the device times, as `CellResult.clock`; "" if it was not recorded."""
    cache_state: str = ""
    """State of the caches, as `CellResult.cache_state`; "" if it was not recorded."""
    passes: tuple[int, int] | None = None
    """(unprofiled, profiled) passes; None if they were not recorded."""
    rounds: int | None = None
    """Rounds of passes; None if they were not recorded."""
    instrumented_ratio_low: float | None = None
    """Ends of `Closure.instrumented_ratio`."""
    instrumented_ratio_high: float | None = None
    excess: float | None = None
    """(Busy − wall) ÷ wall."""
    excess_low: float | None = None
    """Ends of its 99 % interval, compared within rounds; a pass contradicts itself if all of it is above a
    tolerance."""
    excess_high: float | None = None
    cell: str = ""
    """Key of the measured cell."""
    change: str = ""
    """Change of the model before it ran, as `Cell.change`."""
    beside: Workload | None = None
    """Sequences of another kind in the same step."""


def waterfall(rungs: Rungs, idle_s: float) -> Waterfall:
    """The terms between rungs in the order of `TERMS`, which add up to the measurement, and the idle.

    ``waterfall(Rungs(achieved=2.0, executed=3.0, calibrated=3.2, measured=4.5), 0.5)`` has extra_work 1.0, shape_loss
    0.2, idle 0.5 and merged {"ideal+peak_derate": 2.0, "level+residual": 1.3}.
    """
    alone: dict[str, float | None] = dict.fromkeys(TERMS)
    merged: dict[str, float] = {}
    below, waiting = 0.0, []
    for name, rung in zip(TERMS, rungs.model_dump().values(), strict=True):
        waiting.append(name)
        if rung is not None:
            if len(waiting) == 1:
                alone[name] = rung - below
            else:
                merged["+".join(waiting)] = rung - below
            below, waiting = rung, []
    return Waterfall(**alone, idle=idle_s, merged=merged)


def term_ending_at(rungs: Waterfall, last: str) -> str | None:
    """Name of the known term that ends with `last`, possibly a merged one ("level+residual"); None if there is none."""
    if getattr(rungs, last) is not None:
        return last
    return next((names for names in rungs.merged if names.split("+")[-1] == last), None)


def to_json(report: PassReport) -> dict[str, Any]:
    """An element of `passes` in the output of `run --json`; keys are only ever added."""
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
