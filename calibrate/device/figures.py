"""Figures with intervals from measurements in several processes: the process is the unit of replication.

Samples within a process are correlated (one address layout, one clock history, one neighbour), so each process gives
one value a case (`Measurement.value`), in the order in which the processes ran, and a figure is their geometric mean
with Student's t interval on their logarithms. A "90 %" interval of pooled samples holds less than half of the time (see
the tests). From `DETRENDED_FROM` processes on, a linear trend over the order is removed before the spread is taken, so
that a drift of the machine does not widen the interval. It is always removed: removed only where it is significant, a
90 % interval holds 88 % of the time at 5 processes. Disturbed processes stay in: with a chance of one in ten each, by 2
to 20 spreads, 90 % intervals hold 87–93 % of the time at 3 to 10 processes, 85 % at ten if outliers are rejected first
(Grubbs), and a trimmed mean (Yuen) is a quarter wider at 5 where nothing outlies.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from profiler.record.measurement import Measurement, grouped
from roofline.hardware.spec import Characteristic, Peaks

FEWEST = 3
"""Least number of processes for an interval: two leave one degree of freedom, where t is 6.3 at 90 %."""
DETRENDED_FROM = 5
"""Least number of processes from which a trend is removed: below, a lost degree of freedom costs more width than
drift."""
ONE_CORE = ".one core"
"""Suffix of the names of figures of a single thread of several."""
LABELS = 4
"""Most labels of a figure that are kept, the most severe of all its processes."""
SPREAD = "; low–high: 5–95 % of the samples in this process"
SEVERITY = ("invalidates", "warns", "note")


def interval(estimates: Sequence[float], confidence: float = 0.9) -> tuple[float, float] | None:
    """Low and high end, in the unit of the estimates (one a process, in the order they ran); None below `FEWEST`.
    Raises ValueError for an estimate that is not finite and positive."""
    logs = _logs(estimates)
    if len(logs) < FEWEST:
        return None
    low, high = log_interval(logs, confidence)
    return float(np.exp(low)), float(np.exp(high))


def center(estimates: Sequence[float]) -> float:
    """Geometric mean: the middle of the interval on its logarithmic scale. Raises ValueError as `interval` does."""
    return float(np.exp(_logs(estimates).mean()))


def coefficient_of_variation(estimates: Sequence[float]) -> float:
    """Standard deviation (n − 1) of the estimates over their mean, drift and outlying processes included. Raises
    ValueError as `interval` does, and for fewer than two estimates."""
    values = np.exp(_logs(estimates))
    if len(values) < 2:
        raise ValueError("a spread between processes needs two of them; run more")
    return float(values.std(ddof=1) / values.mean())


def log_interval(logs: NDArray[np.float64], confidence: float = 0.9) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Ends of the intervals of many sessions at once: logs of shape (..., processes) to two of shape (...).

    They are mean ± t(df) s / √n, with s² the squared residuals from the mean or the trend over df = n − 1 or n − 2. The
    order is centred, so the error of the line at its middle is that of the mean (Draper and Smith, Applied Regression
    Analysis, 1.4).
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence lies between 0 and 1, not at {confidence}")
    n = logs.shape[-1]
    if n < FEWEST:
        raise ValueError(f"an interval needs {FEWEST} processes, not {n}; run more")
    means = logs.mean(axis=-1)
    residuals = logs - means[..., None]
    freedom = n - 1
    if n >= DETRENDED_FROM:
        order = np.arange(n) - (n - 1) / 2
        slopes = residuals @ order / (order @ order)
        residuals = residuals - slopes[..., None] * order
        freedom -= 1
    half = t.ppf((1 + confidence) / 2, freedom) * np.sqrt((residuals**2).sum(axis=-1) / freedom / n)
    return means - half, means + half


def _logs(estimates: Sequence[float]) -> NDArray[np.float64]:
    if len(estimates) == 0:
        raise ValueError("no estimates; one for each process is needed")
    for value in estimates:
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"an estimate is finite and positive, not {value}; leave out the process that failed")
    return np.log(np.asarray(estimates, dtype=np.float64))


def characteristic(name: str, alike: Sequence[Measurement], *, samples_spread: bool = False) -> Characteristic:
    """The figure that measurements of one case give, or the reason why there is none.

    With `samples_spread`, low and high are the value at the slowest and the fastest twentieth of the samples, which
    shows other work and not the device, instead of an interval over processes.
    """
    first = alike[0]
    done = [process for process in alike if process.status == "done"]
    done = done or [process for process in alike if process.status == "inconclusive"]
    about = {"name": name, "dtype": first.dtype, "unit": first.unit, "labels": _labels(alike)}
    if not done:
        return Characteristic(**about, status=first.status, reason=first.reason)
    values = [process.value() for process in done]
    spread = [process.value(q) for process in done for q in (0.05, 0.95, process.quantile)]
    ends = (min(spread), max(spread)) if samples_spread else interval(values)
    return Characteristic(
        **about,
        value=center(values),
        low=ends[0] if ends else None,
        high=ends[1] if ends else None,
        typical=center([process.value(0.5) for process in done]),
        variation=coefficient_of_variation(values) if len(values) > 1 else None,
        replicates=len(values),
        conditions=conditions(done, samples_spread=samples_spread),
        status=done[0].status,
        reason=done[0].reason,
    )


def conditions(done: Sequence[Measurement], *, samples_spread: bool) -> str:
    """The measured case and the way it was measured, in one line."""
    first = done[0]
    sizes = ", ".join(f"{name} {value}" for name, value in first.parameters.items())
    threads = f"{first.threads} thread{'' if first.threads == 1 else 's'}" if first.threads is not None else ""
    estimator = {0.5: "median", 0.0: "fastest"}.get(first.quantile, f"{100 * first.quantile:g}th percentile")
    count = sum(len(process.samples) for process in done)
    parts = [
        first.case if first.case not in sizes else "",
        sizes,
        threads,
        first.cache.declared if first.cache is not None else "",
        f"{estimator} of {count} samples" + (SPREAD if samples_spread else f", {len(done)} fresh processes"),
        first.clock,
    ]
    return "; ".join(part for part in parts if part)


def characteristics(measurements: Iterable[Measurement], threads: int | None) -> tuple[Characteristic, ...]:
    """A figure for each measured thing, by family and case; `threads` is all that the device has."""
    return tuple(characteristic(name_of(alike[0], threads), alike) for alike in grouped(measurements).values())


def name_of(measurement: Measurement, threads: int | None) -> str:
    """The name of a figure: family and case, and whether one core of several ran it."""
    single = measurement.threads == 1 and threads is not None and threads > 1
    return f"{measurement.benchmark}.{measurement.case}{ONE_CORE if single else ''}"


def with_datasheet(figures: Iterable[Characteristic], datasheet: Peaks | None) -> tuple[Characteristic, ...]:
    """The figures with the datasheet's value of each."""
    return tuple(figure.model_copy(update={"datasheet": datasheet_value(figure, datasheet)}) for figure in figures)


def datasheet_value(figure: Characteristic, datasheet: Peaks | None) -> float | None:
    """The datasheet's value: main memory for its kernels, the peak of the dtype; None where it states none."""
    if datasheet is None or figure.name.endswith(ONE_CORE):
        return None
    family, _, case = figure.name.partition(".")
    if family == "memory":
        return datasheet.levels[-1].bandwidth.value
    if family == "level":
        return next((level.bandwidth.value for level in datasheet.levels if level.name == case), None)
    if family in ("matmul", "vector") and figure.unit == "FLOP/s" and figure.dtype is not None:
        peak = (datasheet.matrix if family == "matmul" else datasheet.vector).get(figure.dtype)
        return peak.value if peak else None
    if family == "transfer" and figure.unit == "B/s" and "both" not in case:
        link = datasheet.links.get("pcie")
        return link.bandwidth.value if link else None
    return None


def _labels(alike: Sequence[Measurement]) -> tuple[str, ...]:
    labels = sorted((x for process in alike for x in process.labels), key=lambda x: SEVERITY.index(x.severity))
    return tuple(dict.fromkeys(label.what for label in labels))[:LABELS]
