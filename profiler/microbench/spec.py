"""The spec of a device from all that was measured of it: its figures, its peaks, and why some are missing.

Figures of single sizes stand for themselves where a reader asks for them (a skinny product, a kernel on main memory);
of curves and sweeps the spec has what was fitted to them: plateaus and knees of the working-set curve, latency and
bandwidth of transfers and collectives, cost of a graph and of its nodes. The sizes themselves are in hardware.parquet.

Example: ``spec_of(measurements, environment, torch.device("cpu")).measured.matrix["bfloat16"].value``
"""

from collections.abc import Iterable, Iterator, Sequence

import torch

from profiler.devices.backend import backend_of
from profiler.devices.caches import cache_capacities, main_capacity
from profiler.microbench.collective_fit import costs as collective_costs
from profiler.microbench.collective_fit import measured_link
from profiler.microbench.costs import graph_cost, transfer_costs
from profiler.microbench.figures import characteristics, grouped, with_datasheet
from profiler.microbench.knees import knees, plateaus
from profiler.microbench.linear_cost import LinearCost
from profiler.microbench.peaks import peaks_of
from profiler.record.measurement import Measurement
from profiler.record.run import Environment
from roofline.hardware import Characteristic, Chip, Figure, HardwareSpec, Level, Link, Peaks, find_device, spec_kind

FITTED = ("curve", "transfer", "collective", "cache")
"""Families whose single sizes are no figures of the device."""
MANY = "sizes, see hardware.parquet"


def spec_of(measurements: Sequence[Measurement], environment: Environment, device: torch.device) -> HardwareSpec:
    """The spec; without peaks where main memory has no figure, since nothing can be priced without it."""
    known = find_device(environment.device)
    datasheet = known.datasheet if known else None
    threads = environment.threads if backend_of(device).is_host else None
    peaks: Peaks | None = None
    links, why = _links(measurements)
    try:
        peaks, missing = peaks_of(
            [one for one in measurements if one.benchmark not in ("curve", "transfer", "collective")],
            main=main_capacity(device),
            caches=cache_capacities(device),
            threads=threads,
            links=links,
            where=f"torch {environment.versions.get('torch', '?')}, {environment.device}",
            ieee_products_are_vector_work=backend_of(device).fp32_matmul_on_vector_units,
        )
    except RuntimeError as error:
        missing = {"peaks": str(error)}
    if why is not None and any(one.benchmark == "collective" for one in measurements):
        missing["links"] = why
    single = [one for one in measurements if one.benchmark not in FITTED or one.case in ("all", "remaining", "graph")]
    found = [
        *characteristics(single, threads),
        *(_level(level) for level in (peaks.levels if peaks else ())),
        *_curve(measurements),
        *_costs("transfer", ((f"{m} {d}", cost) for (m, d), cost in transfer_costs(measurements).items())),
        *_costs("collective", collective_costs(measurements).items()),
        *_graph(measurements),
    ]
    return HardwareSpec(
        name=known.name if known else environment.device,
        kind=spec_kind(environment.device_kind),
        matches=known.matches if known else (environment.device,),
        chip=known.chip if known else host_chip(device),
        datasheet=datasheet,
        measured=peaks,
        missing=missing,
        characteristics=with_datasheet(found, datasheet),
        uuid=environment.device_uuid,
    )


def host_chip(device: torch.device) -> Chip | None:
    """What laws need to know of a CPU that no datasheet describes, the cores that torch uses; None for others."""
    if not backend_of(device).is_host:
        return None
    return Chip(units=Figure(value=torch.get_num_threads(), source="torch.get_num_threads()"), unit="core")


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
    for alike in grouped(one for one in measurements if one.benchmark == "curve" and one.has_value).values():
        one = alike[-1]
        point = (int(one.parameters["working_set_bytes"]), one.value())
        by_kernel.setdefault(str(one.parameters["kernel"]), []).append(point)
    for kernel, points in by_kernel.items():
        sizes, rates = zip(*sorted(points), strict=True)
        levels = plateaus(sizes, rates)
        for i, level in enumerate(levels, start=1):
            span = f"{kernel}, working sets of {level.first_bytes} to {level.last_bytes} bytes"
            yield Characteristic(
                name=f"curve.plateau {i} {kernel}", dtype="float32", unit="B/s", value=level.rate, conditions=span
            )
        for i, knee in enumerate(knees(sizes, levels), start=1):
            yield Characteristic(
                name=f"curve.knee {i} {kernel}",
                unit="B",
                value=knee,
                conditions=f"{kernel}, where the bandwidth begins to fall; {len(sizes)} {MANY}",
            )


def _costs(family: str, found: Iterable[tuple[str, LinearCost]]) -> Iterator[Characteristic]:
    """Latency and bandwidth of each line."""
    for name, cost in found:
        conditions = f"time = latency + bytes ÷ bandwidth; off by {cost.worst_relative_error:.1%} at the worst size"
        if cost.latency_s > 0:
            yield _fitted(f"{family}.{name}.latency", "s", cost.latency_s, cost.latency_interval, conditions)
        if cost.bandwidth_bytes_per_s < float("inf"):
            value, ends = cost.bandwidth_bytes_per_s, cost.bandwidth_interval
            yield _fitted(f"{family}.{name}.bandwidth", "B/s", value, ends, conditions)


def _graph(measurements: Iterable[Measurement]) -> Iterator[Characteristic]:
    cost = graph_cost(measurements)
    if cost is None:
        return
    conditions = f"time = start + nodes × node; off by {cost.worst_relative_error:.1%} at the worst size"
    if cost.latency_s > 0:
        yield _fitted("launch.graph start", "s", cost.latency_s, cost.latency_interval, conditions)
    if cost.bandwidth_bytes_per_s < float("inf"):
        low, high = cost.bandwidth_interval
        node_s = 1 / cost.bandwidth_bytes_per_s
        yield _fitted("launch.graph node", "s", node_s, (1 / high, 1 / low), conditions)


def _fitted(name: str, unit: str, value: float, ends: tuple[float, float], conditions: str) -> Characteristic:
    """A constant of a line; its interval is that of the fit, not of processes."""
    finite = ends[1] < float("inf")
    return Characteristic(
        name=name,
        unit=unit,
        value=value,
        low=ends[0] if finite else None,
        high=ends[1] if finite else None,
        conditions=f"{conditions}; low–high: 90 % interval of the fit",
    )


def _links(measurements: Sequence[Measurement]) -> tuple[dict[str, Link], str | None]:
    """The host's link from pinned copies, the slower way; that between ranks from collectives, or why there is none."""
    found: dict[str, Link] = {}
    pinned = [
        cost
        for (memory, way), cost in transfer_costs(measurements).items()
        if memory == "pinned" and way != "both ways"
    ]
    if pinned:
        slower = min(pinned, key=lambda cost: cost.bandwidth_bytes_per_s)
        source = "measured: pinned copies between host and device, the slower way, latency + bytes ÷ bandwidth"
        found["pcie"] = _link(slower, source)
    try:
        name, link = measured_link(measurements)
    except ValueError as error:
        return found, str(error)
    return found | {name: link}, None


def _link(cost: LinearCost, source: str) -> Link:
    low, high = cost.bandwidth_interval
    figure = Figure(value=cost.bandwidth_bytes_per_s, low=low, high=high, source=source)
    latency = Figure(value=cost.latency_s, source=source) if cost.latency_s > 0 else None
    return Link(bandwidth=figure, latency_s=latency)
