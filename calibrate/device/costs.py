"""The costs of transfers, graph replays and collectives from their measurements: a fixed cost, a rate, and links.

Time = latency + size ÷ bandwidth; the size of a graph is its number of nodes, that of a collective the bytes that cross
a rank's link. Residuals are differences of logarithms, since times span decades. Disturbed samples are only ever slow:
under the soft L1 loss, which merely bounds their pull, 90 % intervals hold 70–80 % of the time (3 % noise, 5 %
outliers), so that loss gives the convex start and the Cauchy loss, which ignores far samples, finishes the fit (90 %).
`measured_link` gives every priced collective the bytes and messages of a ring. Libraries leave the ring where messages
are small (trees, sums in the switch), so the relative errors are part of its answer.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import OptimizeResult, least_squares
from scipy.stats import norm, t

from profiler.record.measurement import UNKNOWN_LINK, Measurement, quantile_of
from roofline.hardware.spec import Figure, Link
from roofline.laws.work import factor, messages
from roofline.units import whole_percent

CONFIDENCE = 0.9
"""Coverage of the intervals."""
FEWEST = 3
"""Least number of distinct sizes: two always lie on a line."""
SOFT = 0.05
"""Relative error from which the loss of the start grows linearly."""
TUNING = 2.385
"""Scale of the Cauchy loss in deviations of the noise: 95 % as efficient as least squares where the noise is normal
(Holland and Welsch, Communications in Statistics A6, 1977)."""
QUIETEST = 1e-3
"""Least relative noise, the resolution of a clock."""
TINY = float(np.finfo(np.float64).tiny)
"""Least seconds under a logarithm, where size 0 meets latency 0."""
Floats = NDArray[np.float64]
Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class LinearCost:
    """The line T = latency + size / bandwidth with its uncertainty."""

    latency_s: float
    """Seconds at size 0; 0 where the measured sizes show no latency."""
    bandwidth_bytes_per_s: float
    """Bytes (or nodes) per second beyond the latency; inf where the time does not grow with the size."""
    latency_interval: Interval
    """90 % interval in seconds."""
    bandwidth_interval: Interval
    """90 % interval in bytes a second."""
    worst_relative_error: float
    """Largest |fitted ÷ median time − 1| over the sizes; far above the noise, the line is the wrong law."""

    def time_s(self, size: float) -> float:
        return self.latency_s + size / self.bandwidth_bytes_per_s


def fit(sizes: Sequence[float], times_s: Sequence[float]) -> LinearCost:
    """The line with the least relative errors, a ≥ 0 and b > 0. `sizes` in bytes (or nodes) may repeat and be 0;
    `times_s` are as many seconds. Raises ValueError for fewer than `FEWEST` distinct sizes and for times that are not
    positive."""
    v, times = _checked(sizes, times_s)
    first, last = (float(np.median(times[v == end])) for end in (v.min(), v.max()))
    # Both parameters are in units of about the largest they can be, so that the solver sees numbers of about one.
    latency_unit, slope_unit = first, float((times[v > 0] / v[v > 0]).max())
    design = np.stack([np.full(len(v), latency_unit), v * slope_unit], axis=1)  # seconds
    logs = np.log(times)
    start = np.array([0.5, max(last - first, 0.1 * last) / v.max() / slope_unit])
    x = _solve(design, logs, start, "soft_l1", SOFT)
    scale = TUNING * _noise(_residuals(x, design, logs))
    x = _solve(design, logs, x, "cauchy", scale)
    a, slope = x[0] * latency_unit, x[1] * slope_unit
    units = np.array([latency_unit, slope_unit])
    half_a, half_slope = _half_widths(_residuals(x, design, logs), _jacobian(x, design, logs), scale) * units
    return LinearCost(
        latency_s=float(a),
        bandwidth_bytes_per_s=_inverse(slope),
        latency_interval=(max(0.0, float(a - half_a)), float(a + half_a)),
        bandwidth_interval=(_inverse(slope + half_slope), _inverse(slope - half_slope)),
        worst_relative_error=max(abs((a + slope * size) / np.median(times[v == size]) - 1) for size in np.unique(v)),
    )


def _residuals(x: Floats, design: Floats, logs: Floats) -> Floats:
    return np.log(np.maximum(design @ x, TINY)) - logs


def _jacobian(x: Floats, design: Floats, logs: Floats) -> Floats:
    return design / np.maximum(design @ x, TINY)[:, None]


def _solve(design: Floats, logs: Floats, start: Floats, loss: str, scale: float) -> Floats:
    tolerances = {"xtol": 1e-10, "ftol": 1e-10, "gtol": 1e-10}
    bounds = (0, np.inf)
    result: OptimizeResult = least_squares(
        _residuals, start, _jacobian, bounds, loss=loss, f_scale=scale, args=(design, logs), **tolerances
    )
    return np.asarray(result.x)


def _noise(residuals: Floats) -> float:
    """Standard deviation of normal residuals with this median size after a fit of two parameters."""
    n = len(residuals)
    return max(QUIETEST, float(np.median(np.abs(residuals)) / norm.ppf(0.75)) * math.sqrt(n / (n - 2)))


def _half_widths(residuals: Floats, jacobian: Floats, scale: float) -> Floats:
    """Half of the asymptotic 90 % interval of each parameter of an M-estimate. Covariance Σψ² / (n − p) / mean(ψ')²
    (JᵀJ)⁻¹ (Huber and Ronchetti, Robust Statistics, section 7.6), with the Cauchy loss's ψ = r / (1 + (r/c)²) and ψ' =
    (1 − (r/c)²) / (1 + (r/c)²)²."""
    n, p = jacobian.shape
    bent = 1 + (residuals / scale) ** 2
    variance = ((residuals / bent) ** 2).sum() / (n - p) / np.mean((2 - bent) / bent**2) ** 2
    spreads: Floats = np.sqrt(variance * np.diag(np.linalg.pinv(jacobian.T @ jacobian)))
    return spreads * t.ppf((1 + CONFIDENCE) / 2, n - p)


def _inverse(slope: float) -> float:
    return 1 / float(slope) if slope > 0 else math.inf


def _checked(sizes: Sequence[float], times_s: Sequence[float]) -> tuple[Floats, Floats]:
    if len(sizes) != len(times_s):
        raise ValueError(f"a time for each size: {len(sizes)} sizes, {len(times_s)} times")
    v, times = np.asarray(sizes, dtype=np.float64), np.asarray(times_s, dtype=np.float64)
    if not (np.isfinite(v).all() and (v >= 0).all()):
        raise ValueError("sizes are finite and not negative")
    if not (np.isfinite(times).all() and (times > 0).all()):
        raise ValueError("times are finite and positive; leave out the samples that failed")
    if len(np.unique(v)) < FEWEST:
        raise ValueError(f"a line with an error needs {FEWEST} distinct sizes, not {len(np.unique(v))}; measure more")
    return v, times


Route = tuple[str, str]
"""A kind of host memory and a direction of copying."""
PRICED = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv")
"""Collectives whose times `measured_link` is fitted to and held against."""
ONLY_MOVES = ("all_gather", "send_recv")
"""Collectives without arithmetic, whose times determine the bandwidth."""
LEAST_S = 1e-9
"""Least latency of a message that is stored: a device file with a smaller one is taken for a wrong unit."""
LARGE_PART = 0.5
"""Share of an operation's sizes, the largest ones, that determine its bandwidth at large sizes."""


def transfer_costs(measurements: Iterable[Measurement]) -> dict[Route, LinearCost]:
    """The line of each route with three sizes or more, over all processes; both ways at once count the bytes of both.
    Measurements that failed or are invalid are left out."""
    points: dict[Route, list[tuple[float, float]]] = defaultdict(list)
    for copied in measurements:
        if copied.benchmark == "transfer" and copied.status == "done":
            route = str(copied.parameters["memory"]), str(copied.parameters["direction"])
            points[route].append((copied.work, copied.work / copied.value()))
    return {route: line for route, timed in points.items() if (line := _line(timed)) is not None}


def graph_cost(measurements: Iterable[Measurement]) -> LinearCost | None:
    """The line over the nodes of replayed graphs; None with fewer than three sizes."""
    return _line(
        [
            (float(replayed.parameters["nodes"]), replayed.value())
            for replayed in measurements
            if replayed.benchmark == "launch" and replayed.status == "done" and "nodes" in replayed.parameters
        ]
    )


def _line(points: Iterable[tuple[float, float]]) -> LinearCost | None:
    """The line through (size, seconds); None with fewer than three sizes."""
    ordered = sorted(points)
    if len({size for size, _ in ordered}) < FEWEST:
        return None
    return fit([size for size, _ in ordered], [time_s for _, time_s in ordered])


@dataclass(frozen=True, slots=True)
class Timed:
    """A measured call of a collective operation."""

    operation: str
    size: int
    """Bytes as nccl-tests counts them."""
    ranks: int
    time_s: float
    """Seconds of a call, at the measurement's own quantile."""

    @property
    def bus_bytes(self) -> float:
        """Bytes that cross a rank's link."""
        return self.size * factor(self.operation, self.ranks)


def collective_costs(measurements: Iterable[Measurement]) -> dict[str, LinearCost]:
    """Latency of a call, and bus bandwidth, of each operation with three sizes or more. Raises ValueError for
    collectives among different numbers of ranks or over different links."""
    lines = {operation: _bus_line(own) for operation, own in _by_operation(timed(measurements)).items()}
    return {operation: line for operation, line in lines.items() if line is not None}


def measured_link(measurements: Sequence[Measurement]) -> tuple[str, Link]:
    """The link between the ranks, by its name in `Peaks.links`, so that a priced collective takes as long as it did.
    Its latency is None where messages cost nothing beside their bytes. Raises ValueError where neither all-gather nor
    send/receive has three sizes, where the link's name is unknown, and as `collective_costs` does."""
    every = timed(measurements)
    best, rate = _rate(_by_operation(every))
    if (between := str(_shared("link", measurements))) == UNKNOWN_LINK:
        raise ValueError("the link between the ranks is not known: NVML could not be read; set the parameter link")
    where = f"{every[0].ranks} ranks, {_shared('backend', measurements)}"
    bandwidth = Figure(
        value=rate.bandwidth_bytes_per_s,
        source=f"bus bandwidth of {best} at large sizes, {where}",
        low=_finite(rate.bandwidth_interval[0]),
        high=_finite(rate.bandwidth_interval[1]),
    )
    message_s = _message_s([call for call in every if call.operation in PRICED], bandwidth.value)
    if message_s < LEAST_S:
        return between, Link(bandwidth=bandwidth)
    source = f"least relative errors over collectives, {where}"
    link = Link(bandwidth=bandwidth, latency_s=Figure(value=message_s, source=source))
    off = "; ".join(
        f"{name} {whole_percent(low, signed=True)} to {whole_percent(high, signed=True)}"
        for name, (low, high) in errors(link, measurements).items()
    )
    latency = Figure(value=message_s, source=f"{source}; priced against measured: {off}")
    return between, link.model_copy(update={"latency_s": latency})


def priced_s(link: Link, operation: str, size: int, ranks: int) -> float:
    """Seconds by the roofline's link roof: bytes ÷ bandwidth + messages × latency."""
    latency_s = link.latency_s.value if link.latency_s else 0.0
    return size * factor(operation, ranks) / link.bandwidth.value + messages(operation, ranks) * latency_s


def errors(link: Link, measurements: Iterable[Measurement]) -> dict[str, tuple[float, float]]:
    """Lowest and highest priced ÷ measured − 1 over the sizes of each operation that is priced."""
    bounds: dict[str, tuple[float, float]] = {}
    for name, own in _by_operation(timed(measurements)).items():
        if name in PRICED:
            off = [priced_s(link, name, call.size, call.ranks) / call.time_s - 1 for call in own]
            bounds[name] = min(off), max(off)
    return bounds


def timed(measurements: Iterable[Measurement]) -> list[Timed]:
    """The finished collectives. Raises ValueError where they differ in ranks, link or backend."""
    done = _done(measurements)
    for parameter in ("ranks", "link", "backend") if done else ():
        _shared(parameter, done)
    return [
        Timed(
            operation=str(call.parameters["operation"]),
            size=int(call.parameters["bytes"]),
            ranks=int(call.parameters["ranks"]),
            time_s=quantile_of(call.samples, call.quantile),
        )
        for call in done
    ]


def _rate(own: dict[str, list[Timed]]) -> tuple[str, LinearCost]:
    """The operation of `ONLY_MOVES` that is faster at large sizes, with its line. Raises ValueError for none."""
    large = {name: _bus_line(_large(own[name])) for name in ONLY_MOVES if name in own}
    rates = {name: line for name, line in large.items() if line and math.isfinite(line.bandwidth_bytes_per_s)}
    if not rates:
        raise ValueError(
            f"a link needs {FEWEST} or more sizes of {' or '.join(ONLY_MOVES)}, their time growing; measure more"
        )
    return max(rates.items(), key=lambda item: item[1].bandwidth_bytes_per_s)


def _message_s(calls: Sequence[Timed], bandwidth: float) -> float:
    """The latency λ with the least Σ ((bytes / bandwidth + messages · λ) / time − 1)²."""
    weights = [messages(call.operation, call.ranks) / call.time_s for call in calls]
    left = [1 - call.bus_bytes / bandwidth / call.time_s for call in calls]
    return sum(w * rest for w, rest in zip(weights, left, strict=True)) / sum(w * w for w in weights)


def _large(own: Sequence[Timed]) -> list[Timed]:
    """The calls with an operation's larger sizes."""
    sizes = sorted({call.size for call in own})
    kept = sizes[-max(FEWEST, math.ceil(LARGE_PART * len(sizes))) :]
    return [call for call in own if call.size >= kept[0]]


def _bus_line(own: Iterable[Timed]) -> LinearCost | None:
    return _line((call.bus_bytes, call.time_s) for call in own)


def _by_operation(calls: Iterable[Timed]) -> dict[str, list[Timed]]:
    groups: dict[str, list[Timed]] = defaultdict(list)
    for call in calls:
        groups[call.operation].append(call)
    return groups


def _done(measurements: Iterable[Measurement]) -> list[Measurement]:
    return [call for call in measurements if call.benchmark == "collective" and call.status == "done"]


def _shared(parameter: str, measurements: Iterable[Measurement]) -> int | float | str:
    """A parameter that all collectives must share. Raises ValueError where they do not."""
    values = {call.parameters[parameter] for call in _done(measurements)}
    if len(values) != 1:
        raise ValueError(f"collectives of one {parameter} at a time, not {', '.join(sorted(map(str, values)))}")
    return values.pop()


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) and value > 0 else None
