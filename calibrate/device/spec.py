"""The spec of a device from all measurements of it: its peaks, its figures, and the reasons of missing ones.

Of curves and sweeps the spec holds what was fitted to them (plateaus and knees, latency and
bandwidth, the cost of a graph and its nodes); their single sizes are in hardware.parquet.
"""

import math
from collections.abc import Iterable, Iterator, Sequence

from calibrate.device.costs import LinearCost, collective_costs, graph_cost, measured_link, transfer_costs
from calibrate.device.figures import characteristics, with_datasheet
from calibrate.device.levels import knees, plateaus
from calibrate.device.peaks import described, peaks_of, threads_of
from profiler.record.measurement import Measurement, MemoryHierarchy, grouped
from profiler.record.run import Environment
from roofline.hardware.spec import Characteristic, Figure, HardwareSpec, Level, Link, Peaks
from roofline.units import percent

FITTED = ("curve", "transfer", "collective", "cache")
"""Families whose single sizes are no figures of the device."""


def spec_of(measurements: Sequence[Measurement], environment: Environment, hierarchy: MemoryHierarchy) -> HardwareSpec:
    """The spec of a characterisation, without peaks where main memory has no figure: nothing can be priced without it.
    `hierarchy` is the device's memory as the system states it."""
    peaks: Peaks | None = None
    links, why = _links(measurements)
    try:
        peaks, missing = peaks_of(measurements, environment, hierarchy, links=links)
    except RuntimeError as error:
        missing = {"peaks": str(error)}
    if why is not None and any(measured.benchmark == "collective" for measured in measurements):
        missing["links"] = why
    single = [m for m in measurements if m.benchmark not in FITTED or m.case in ("all", "remaining", "graph")]
    figures = [
        *characteristics(single, threads_of(environment)),
        *(_level(level) for level in (peaks.levels if peaks else ())),
        *_curve(measurements),
        *_costs("transfer", ((f"{m} {d}", cost) for (m, d), cost in transfer_costs(measurements).items())),
        *_costs("collective", collective_costs(measurements).items()),
        *_graph(graph_cost(measurements)),
    ]
    spec = described(environment, peaks, missing)
    return spec.model_copy(update={"characteristics": with_datasheet(figures, spec.datasheet)})


def _level(level: Level) -> Characteristic:
    figure = level.bandwidth
    return Characteristic(
        name=f"level.{level.name}",
        dtype="float32",
        unit="B/s",
        value=figure.value,
        low=figure.low,
        high=figure.high,
        conditions=f"best kernel; capacity {level.capacity_bytes:.0f} bytes; {figure.source}",
    )


def _curve(measurements: Iterable[Measurement]) -> Iterator[Characteristic]:
    """Plateaus and knees of each kernel's curve, from small to large working sets."""
    by_kernel: dict[str, list[tuple[int, float]]] = {}
    for alike in grouped(m for m in measurements if m.benchmark == "curve" and m.has_value).values():
        point = (int(alike[-1].parameters["working_set_bytes"]), alike[-1].value())
        by_kernel.setdefault(str(alike[-1].parameters["kernel"]), []).append(point)
    for kernel, points in by_kernel.items():
        sizes, rates = zip(*sorted(points), strict=True)
        levels = plateaus(sizes, rates)
        for i, level in enumerate(levels, start=1):
            span = f"{kernel}, working sets of {level.first_bytes} to {level.last_bytes} bytes"
            yield Characteristic(
                name=f"curve.plateau {i} {kernel}", dtype="float32", unit="B/s", value=level.rate, conditions=span
            )
        for i, knee in enumerate(knees(sizes, levels), start=1):
            falls = f"{kernel}, where the bandwidth begins to fall; {len(sizes)} sizes, see hardware.parquet"
            yield Characteristic(name=f"curve.knee {i} {kernel}", unit="B", value=knee, conditions=falls)


def _costs(family: str, costs: Iterable[tuple[str, LinearCost]]) -> Iterator[Characteristic]:
    """Latency and bandwidth of each line."""
    for name, cost in costs:
        law = "time = latency + bytes ÷ bandwidth"
        if cost.latency_s > 0:
            yield _fitted(cost, law, f"{family}.{name}.latency", "s", cost.latency_s, cost.latency_interval)
        if (bandwidth := cost.bandwidth_bytes_per_s) < math.inf:
            yield _fitted(cost, law, f"{family}.{name}.bandwidth", "B/s", bandwidth, cost.bandwidth_interval)


def _graph(cost: LinearCost | None) -> Iterator[Characteristic]:
    law = "time = start + nodes × node"
    if cost is not None and cost.latency_s > 0:
        yield _fitted(cost, law, "launch.graph start", "s", cost.latency_s, cost.latency_interval)
    if cost is not None and (nodes_per_s := cost.bandwidth_bytes_per_s) < math.inf:
        low, high = cost.bandwidth_interval
        yield _fitted(cost, law, "launch.graph node", "s", 1 / nodes_per_s, (1 / high, 1 / low))


def _fitted(
    cost: LinearCost, law: str, name: str, unit: str, value: float, ends: tuple[float, float]
) -> Characteristic:
    """A constant of a line, with the interval of the fit, not of processes."""
    off = f"off by {percent(cost.worst_relative_error)} at the worst size"
    finite = ends[1] < math.inf
    return Characteristic(
        name=name,
        unit=unit,
        value=value,
        low=ends[0] if finite else None,
        high=ends[1] if finite else None,
        conditions=f"{law}; {off}; low–high: 90 % interval of the fit",
    )


def _links(measurements: Sequence[Measurement]) -> tuple[dict[str, Link], str | None]:
    """The host's link from pinned copies, the slower way; the link between ranks from collectives, or why there is
    none."""
    links: dict[str, Link] = {}
    routes = transfer_costs(measurements).items()
    if pinned := [cost for (memory, way), cost in routes if memory == "pinned" and way != "both ways"]:
        slower = min(pinned, key=lambda cost: cost.bandwidth_bytes_per_s)
        source = "measured: pinned copies between host and device, the slower way, latency + bytes ÷ bandwidth"
        low, high = slower.bandwidth_interval
        links["pcie"] = Link(
            bandwidth=Figure(value=slower.bandwidth_bytes_per_s, low=low, high=high, source=source),
            latency_s=Figure(value=slower.latency_s, source=source) if slower.latency_s > 0 else None,
        )
    try:
        name, link = measured_link(measurements)
    except ValueError as error:
        return links, str(error)
    return links | {name: link}, None
