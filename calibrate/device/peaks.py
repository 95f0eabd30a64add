"""The peaks of a device from measurements, and its spec with them.

Matrix peaks are the burst of each dtype, vector peaks the best operation of each dtype, levels main memory and each
cache that is distinctly faster, each with the best of its kernels. The last-level cache may be shared with other
tenants, so its capacity is twice the largest working set that still shows its bandwidth. Figures of one thread of
several are not peaks.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from calibrate.device.figures import characteristic
from profiler.record.measurement import DISTINCT, Capacity, Key, Measurement, MemoryHierarchy, grouped
from profiler.record.run import Environment
from roofline.hardware.load import find_device
from roofline.hardware.spec import Characteristic, Chip, Figure, HardwareSpec, Level, Link, Peaks, spec_kind
from roofline.units import whole_percent

PEAK_FAMILIES = ("memory", "cache", "matmul", "vector", "host")
"""Families from which peaks are made."""


def spec_of_peaks(
    measurements: Sequence[Measurement], environment: Environment, hierarchy: MemoryHierarchy
) -> HardwareSpec:
    """The spec of a short measurement in one process; low and high are the samples' spread. Raises RuntimeError as
    `peaks_of`."""
    return described(environment, *peaks_of(measurements, environment, hierarchy, samples_spread=True))


def described(environment: Environment, peaks: Peaks | None, missing: dict[str, str]) -> HardwareSpec:
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


def threads_of(environment: Environment) -> int | None:
    """Host threads of an operation; None on a GPU."""
    return environment.threads if environment.device_kind == "cpu" else None


def _host_chip(environment: Environment) -> Chip | None:
    """The cores that torch uses, which laws need of a CPU without a datasheet; None for other devices."""
    if (threads := threads_of(environment)) is None:
        return None
    return Chip(units=Figure(value=threads, source="torch.get_numthreads_of()"), unit="core")


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
        if key[3] in (None, threads_of(environment))
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


@dataclass(frozen=True, slots=True)
class Reached:
    """The bandwidth of a kernel on a working set."""

    kernel: str
    working_set_bytes: int
    bytes_per_s: float


@dataclass(frozen=True, slots=True)
class MeasuredLevel:
    """A level of the memory hierarchy with the rate of its fastest kernel."""

    name: str
    capacity_bytes: int
    """Capacity for this process, at most what the system states."""
    stated_bytes: int
    best: Reached


def ladder(
    main: MeasuredLevel, caches: Mapping[Capacity, Sequence[Reached]]
) -> tuple[tuple[MeasuredLevel, ...], dict[str, str]]:
    """Main memory and, outwards from it, each cache (given from the smallest) that is distinctly faster. The second
    result is the reason of each level that was merged into the next or has no figure."""
    kept = [main]
    reasons: dict[str, str] = {}
    for cache in reversed(list(caches)):
        if not caches[cache]:
            reasons[cache.name] = "no kernel has a result on it"
            continue
        outer = kept[0]
        level = shown(cache, caches[cache], outer.best.bytes_per_s)
        if level is None:
            reached = max(kernel.bytes_per_s for kernel in caches[cache])
            how = "slower than" if reached < outer.best.bytes_per_s else f"not {whole_percent(DISTINCT - 1)} above"
            reasons[cache.name] = (
                f"merged into {outer.name}: {reached / 1e9:.1f} GB/s is {how} {outer.best.bytes_per_s / 1e9:.1f} GB/s"
            )
        else:
            kept.insert(0, level)
    return tuple(kept), reasons


def shown(cache: Capacity, kernels: Sequence[Reached], outer_bytes_per_s: float) -> MeasuredLevel | None:
    """The cache with the largest working set that is about as fast as the fastest; None if it is not distinct."""
    fastest = max(kernel.bytes_per_s for kernel in kernels)
    if fastest < DISTINCT * outer_bytes_per_s:
        return None
    least = max(fastest / DISTINCT, DISTINCT * outer_bytes_per_s)
    fast = [kernel for kernel in kernels if kernel.bytes_per_s >= least]
    chosen = max(fast, key=lambda kernel: (kernel.working_set_bytes, kernel.bytes_per_s))
    return MeasuredLevel(cache.name, min(cache.bytes, 2 * chosen.working_set_bytes), cache.bytes, chosen)
