"""The spec of a device from all measurements of it: its peaks, its figures, and the reasons of missing ones.

Matrix peaks are the burst of each dtype, vector peaks the best operation of each dtype, levels main memory and each
cache that is distinctly faster (`calibrate.device.levels`), each with the best of its kernels. Figures of one thread of
several are not peaks. Of curves and sweeps the spec holds what was fitted to them (plateaus and knees, latency and
bandwidth, the cost of a graph and its nodes); their single sizes are in hardware.parquet.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from calibrate.device.costs import LinearCost, collective_costs, graph_cost, measured_link, transfer_costs
from calibrate.device.figures import characteristic, characteristics, with_datasheet
from calibrate.device.levels import MeasuredLevel, Reached, knees, ladder, plateaus
from profiler.record.measurement import Key, Measurement, MemoryHierarchy, grouped
from profiler.record.run import Environment
from roofline.hardware.load import find_device
from roofline.hardware.spec import Characteristic, Chip, Figure, HardwareSpec, Level, Link, Peaks, spec_kind
from roofline.units import percent

FITTED = ("curve", "transfer", "collective", "cache")
"""Families whose single sizes are no figures of the device."""
PEAK_FAMILIES = ("memory", "cache", "matmul", "vector", "host")
"""Families from which peaks are made."""


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
        *characteristics(single, _threads(environment)),
        *(_level(level) for level in (peaks.levels if peaks else ())),
        *_curve(measurements),
        *_costs("transfer", ((f"{m} {d}", cost) for (m, d), cost in transfer_costs(measurements).items())),
        *_costs("collective", collective_costs(measurements).items()),
        *_graph(graph_cost(measurements)),
    ]
    spec = _described(environment, peaks, missing)
    return spec.model_copy(update={"characteristics": with_datasheet(figures, spec.datasheet)})


def spec_of_peaks(
    measurements: Sequence[Measurement], environment: Environment, hierarchy: MemoryHierarchy
) -> HardwareSpec:
    """The spec of a short measurement in one process; low and high are the samples' spread. Raises RuntimeError as
    `peaks_of`."""
    return _described(environment, *peaks_of(measurements, environment, hierarchy, samples_spread=True))


def _described(environment: Environment, peaks: Peaks | None, missing: dict[str, str]) -> HardwareSpec:
    """A spec named after the device, with datasheet and chip where a device file describes it."""
    known = find_device(environment.device)
    return HardwareSpec(
        name=known.name if known else environment.device,
        kind=spec_kind(environment.device_kind),
        matches=known.matches if known else (environment.device,),
        chip=known.chip if known else _host_chip(environment),
        datasheet=known.datasheet if known else None,
        measured=peaks,
        missing=missing,
        uuid=environment.device_uuid,
    )


def _threads(environment: Environment) -> int | None:
    """Host threads of an operation; None on a GPU."""
    return environment.threads if environment.device_kind == "cpu" else None


def _host_chip(environment: Environment) -> Chip | None:
    """The cores that torch uses, which laws need of a CPU without a datasheet; None for other devices."""
    if (threads := _threads(environment)) is None:
        return None
    return Chip(units=Figure(value=threads, source="torch.get_num_threads()"), unit="core")


def peaks_of(
    measurements: Iterable[Measurement],
    environment: Environment,
    hierarchy: MemoryHierarchy,
    *,
    links: Mapping[str, Link] | None = None,
    samples_spread: bool = False,
) -> tuple[Peaks, dict[str, str]]:
    """The peaks, and the reason of each figure ("matrix.float16", "level.L3", "host_s_per_op") that is missing or
    merged.

    On a GPU a float32 product in full precision runs on the vector units, and is a vector peak where it is faster than
    the best operation. `samples_spread` is that of `characteristic`. Raises RuntimeError where main memory has no
    figure: nothing can be priced without it.
    """
    where = f"torch {environment.versions.get('torch', '?')}, {environment.device}"
    alike = {
        key: group
        for key, group in grouped(m for m in measurements if m.benchmark in PEAK_FAMILIES).items()
        if key[3] in (None, _threads(environment))
    }
    figures = {
        key: characteristic(f"{key[0]}.{key[1]}", group, samples_spread=samples_spread) for key, group in alike.items()
    }
    missing: dict[str, str] = {}
    matrix = _by_dtype({k: f for k, f in figures.items() if k[1] == "burst"}, "matmul", "matrix", missing, where)
    vector = _by_dtype(figures, "vector", "vector", missing, where)
    if environment.device_kind != "cpu" and (product := matrix.get("float32")) is not None:
        arithmetic = vector.get("float32")
        if arithmetic is None or product.value > arithmetic.value:
            vector["float32"] = product
    levels, merged = _levels(alike, figures, hierarchy, where)
    hosts = [figure for key, figure in figures.items() if key[0] == "host"]
    host = _figure(hosts[0], where) if hosts and hosts[0].value else None
    if host is None and hosts:
        missing["host_s_per_op"] = hosts[0].reason or "not measured"
    peaks = Peaks(matrix=matrix, vector=vector, levels=levels, links=dict(links or {}), host_s_per_op=host)
    return peaks, {**{f"level.{name}": reason for name, reason in merged.items()}, **missing}


def _by_dtype(
    figures: Mapping[Key, Characteristic], benchmark: str, what: str, missing: dict[str, str], where: str
) -> dict[str, Figure]:
    """The best case of each dtype; the reason of a dtype without one is added to `missing`."""
    best: dict[str, Characteristic] = {}
    reasons: dict[str, str] = {}
    for (family, _, dtype, _), figure in figures.items():
        if family != benchmark or dtype is None:
            continue
        if figure.value is None:
            reasons[dtype] = figure.reason or "no result"
        elif dtype not in best or figure.value > (best[dtype].value or 0):
            best[dtype] = figure
    missing.update({f"{what}.{dtype}": reason for dtype, reason in reasons.items() if dtype not in best})
    return {dtype: _figure(figure, where) for dtype, figure in best.items()}


def _levels(
    alike: Mapping[Key, Sequence[Measurement]],
    figures: Mapping[Key, Characteristic],
    hierarchy: MemoryHierarchy,
    where: str,
) -> tuple[tuple[Level, ...], dict[str, str]]:
    sources: dict[tuple[str, int], Characteristic] = {}
    reached: dict[str, list[Reached]] = {}
    for key, group in alike.items():
        figure, parameters = figures[key], group[0].parameters
        if key[0] not in ("memory", "cache") or figure.value is None:
            continue
        level = str(parameters["level"])
        size = int(parameters.get("working_set_bytes", parameters.get("operand_bytes", 0)))
        kernel = str(parameters.get("kernel", key[1]))
        if kernel == "write":
            continue  # a level's bandwidth is that of reads and writes together; some devices only fill fast
        reached.setdefault(level, []).append(Reached(kernel, size, figure.value))
        if (level, size) not in sources or figure.value > (sources[level, size].value or 0):
            sources[level, size] = figure
    main = hierarchy.main
    if main.name not in reached:
        why = next((f.reason for key, f in figures.items() if key[0] == "memory" and f.reason), "no result")
        raise RuntimeError(f"main memory could not be measured: {why}")
    fastest = max(reached[main.name], key=lambda kernel: kernel.bytes_per_s)
    known = {cache: reached.get(cache.name, []) for cache in hierarchy.caches}
    kept, merged = ladder(MeasuredLevel(main.name, main.bytes, main.bytes, fastest), known)
    levels = []
    for shown in kept:
        bandwidth = _figure(sources[shown.name, shown.best.working_set_bytes], where)
        if shown.capacity_bytes != shown.stated_bytes:
            stated = f"{shown.stated_bytes} bytes stated by the system"
            bandwidth = bandwidth.model_copy(update={"source": f"{bandwidth.source}; {stated}"})
        levels.append(Level(name=shown.name, capacity_bytes=shown.capacity_bytes, bandwidth=bandwidth))
    return tuple(levels), merged


def _figure(figure: Characteristic, where: str) -> Figure:
    if figure.value is None:
        raise ValueError(f"{figure.name} has no value")
    source = f"measured: {figure.name}; {figure.conditions}; {where}"
    doubt = (figure.reason or "measured beside other work") if figure.status == "inconclusive" else None
    return Figure(value=figure.value, low=figure.low, high=figure.high, source=source, doubt=doubt)


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
