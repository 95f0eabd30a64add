"""What every view shows of one measured pass: records of times, their intervals, and the terms between them.

`calibrate.efficiency.summarise` makes them; terminal, Markdown, HTML and JSON render them and compute nothing of their
own. Ends of intervals are of 90 %; they are None where too little was measured to tell.

Example: ``to_json(summarise(result, graph, spec))["wall_s_low"]``
"""

from typing import Any

from calibrate.kernel_times import FusedKernel
from calibrate.waterfall import Waterfall
from profiler.record.run import Closure, Mode
from roofline.laws.fitted import LevelRatio
from roofline.record import Record
from roofline.workload import Workload


class Rungs(Record):
    """Times of a pass from its ideal to what was measured, seconds in total over all executions; None: not known."""

    ideal: float | None
    """T0: fused graph, datasheet peaks."""
    achieved: float | None
    """T1: fused graph, peaks measured on this device."""
    executed: float | None
    """T2: graph as executed, peaks measured on this device."""
    calibrated: float | None
    """T3: graph as executed, calibrated laws, at the level of the machine that they were fitted at."""
    calibrated_at_level: float | None = None
    """T3 at the level of the machine beside the pass; None where reference probes did not run in both."""
    measured: float
    """T4: device time."""


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
    predicted_s_low: float | None = None
    predicted_s_high: float | None = None
    measured_s: float
    """In total, so that the layers add up to the busy time."""
    measured_s_low: float | None = None
    measured_s_high: float | None = None
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
    """Median over the rounds of the median of their unprofiled passes; scaled where only some layers ran."""
    wall_s_low: float | None = None
    wall_s_high: float | None = None
    busy_s: float
    """Sum of the layers' measured times."""
    busy_s_low: float | None = None
    busy_s_high: float | None = None
    scaled_from_layers: tuple[int, int] | None
    """(measured, whole model) repeated layers."""
    ideal_peaks: str | None
    """Which peaks `ideal_s` uses: "datasheet", "achieved", None if no peaks are known."""
    prediction: str | None
    """Rung of `predicted_s`: "executed" (achieved peaks) or "calibrated"."""
    rungs: Rungs
    waterfall: Waterfall
    waterfall_low: dict[str, float] = {}
    """Ends of the terms that have an interval, by the name of the term, or of the merged one."""
    waterfall_high: dict[str, float] = {}
    predicted_busy_s: float | None
    """At the level of the machine beside the pass, where that is known."""
    predicted_busy_s_low: float | None = None
    predicted_busy_s_high: float | None = None
    predicted_wall_s: float | None
    """As `predicted_busy_s`."""
    predicted_wall_s_low: float | None = None
    predicted_wall_s_high: float | None = None
    predicted_busy_calibrated_s: float | None = None
    """At the level of the machine that the laws were fitted at; None without laws."""
    predicted_wall_calibrated_s: float | None = None
    level: dict[str, LevelRatio] = {}
    """Of the machine beside the pass against the calibration, by reference probe; empty where it is not known."""
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
    rounds: int | None = None
    """In which they were taken; None if it was not recorded."""
    instrumented_ratio_low: float | None = None
    """Ends of `Closure.instrumented_ratio`."""
    instrumented_ratio_high: float | None = None
    excess: float | None = None
    """(Busy − wall) ÷ wall."""
    excess_low: float | None = None
    """Ends of its 99 % interval, of pairs within a round; below a tolerance unless the pass contradicts itself."""
    excess_high: float | None = None


def to_json(report: PassReport) -> dict[str, Any]:
    """One element of `passes` in the output of `run --json`, keys are only ever added."""
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
