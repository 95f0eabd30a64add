"""The peaks that price operations (`roofline.hardware.Peaks`), from measurements of a device.

Matrix: the burst of each dtype. Vector: the best operation of each dtype. Levels: main memory and each cache that is
distinctly faster (`profiler.microbench.levels`), each with the best of its kernels. Links: what transfers and
collectives were fitted to. Figures of one thread of several are not peaks.

Example: ``peaks, missing = peaks_of(measurements, torch.device("cpu"))``
"""

from collections.abc import Iterable, Mapping, Sequence

from profiler.devices.caches import Capacity
from profiler.microbench.figures import characteristic, grouped
from profiler.microbench.levels import MeasuredLevel, Reached, ladder
from profiler.record.measurement import Measurement
from roofline.hardware import Characteristic, Figure, Level, Link, Peaks


def peaks_of(
    measurements: Iterable[Measurement],
    *,
    main: Capacity,
    caches: Sequence[Capacity],
    threads: int | None,
    links: Mapping[str, Link] | None = None,
    where: str = "",
    ieee_products_are_vector_work: bool = False,
    samples_spread: bool = False,
) -> tuple[Peaks, dict[str, str]]:
    """The peaks, and by figure ("matrix.float16", "level.L3", "host_s_per_op") why one is missing or merged.

    `where`: conditions that all figures share, such as torch's version. `ieee_products_are_vector_work`: on a GPU a
    float32 product runs on the vector units, and counts if it is faster than the best operation. `samples_spread`: as
    of `characteristic`.
    Raises RuntimeError where main memory has no figure: nothing can be priced without it.
    """
    alike = {key: some for key, some in grouped(measurements).items() if key[3] in (None, threads)}
    found = {
        key: characteristic(f"{key[0]}.{key[1]}", some, samples_spread=samples_spread) for key, some in alike.items()
    }
    missing: dict[str, str] = {}
    matrix = _by_dtype(found, "matmul", "matrix", missing, where, cases=("burst",))
    vector = _by_dtype(found, "vector", "vector", missing, where)
    if ieee_products_are_vector_work and (product := matrix.get("float32")) is not None:
        arithmetic = vector.get("float32")
        if arithmetic is None or product.value > arithmetic.value:
            vector["float32"] = product
    levels, merged = _levels(alike, found, main, caches, where)
    hosts = [one for key, one in found.items() if key[0] == "host"]
    host = _figure(hosts[0], where) if hosts and hosts[0].value else None
    if host is None and hosts:
        missing["host_s_per_op"] = hosts[0].reason or "not measured"
    peaks = Peaks(matrix=matrix, vector=vector, levels=levels, links=dict(links or {}), host_s_per_op=host)
    return peaks, {**{f"level.{name}": reason for name, reason in merged.items()}, **missing}


Key = tuple[str, str, str | None, int | None]


def _by_dtype(
    found: Mapping[Key, Characteristic],
    benchmark: str,
    what: str,
    missing: dict[str, str],
    where: str,
    cases: tuple[str, ...] | None = None,
) -> dict[str, Figure]:
    """The best case of each dtype; the reason of a dtype that has none goes to `missing`."""
    best: dict[str, Characteristic] = {}
    reasons: dict[str, str] = {}
    for (family, case, dtype, _), one in found.items():
        if family != benchmark or dtype is None or (cases is not None and case not in cases):
            continue
        if one.value is None:
            reasons[dtype] = one.reason or "no result"
        elif dtype not in best or one.value > (best[dtype].value or 0):
            best[dtype] = one
    missing.update({f"{what}.{dtype}": reason for dtype, reason in reasons.items() if dtype not in best})
    return {dtype: _figure(one, where) for dtype, one in best.items()}


def _levels(
    alike: Mapping[Key, Sequence[Measurement]],
    found: Mapping[Key, Characteristic],
    main: Capacity,
    caches: Sequence[Capacity],
    where: str,
) -> tuple[tuple[Level, ...], dict[str, str]]:
    sources: dict[tuple[str, int], Characteristic] = {}
    reached: dict[str, list[Reached]] = {}
    for key, some in alike.items():
        one, parameters = found[key], some[0].parameters
        if key[0] not in ("memory", "cache") or one.value is None:
            continue
        level = str(parameters["level"])
        size = int(parameters.get("working_set_bytes", parameters.get("operand_bytes", 0)))
        kernel = str(parameters.get("kernel", key[1]))
        if kernel == "write":
            continue  # a level's bandwidth is what reads and writes together reach; some devices only fill fast
        reached.setdefault(level, []).append(Reached(kernel, size, one.value))
        if (level, size) not in sources or one.value > (sources[level, size].value or 0):
            sources[level, size] = one
    if main.name not in reached:
        why = next((one.reason for key, one in found.items() if key[0] == "memory" and one.reason), "no result")
        raise RuntimeError(f"main memory could not be measured: {why}")
    fastest = max(reached[main.name], key=lambda one: one.bytes_per_s)
    known = {cache: reached.get(cache.name, []) for cache in caches}
    kept, merged = ladder(MeasuredLevel(main.name, main.bytes, main.bytes, fastest), known)
    levels = []
    for one_level in kept:
        figure = _figure(sources[one_level.name, one_level.best.working_set_bytes], where)
        if one_level.capacity_bytes != one_level.stated_bytes:
            stated = f"{one_level.stated_bytes} bytes stated by the system"
            figure = figure.model_copy(update={"source": f"{figure.source}; {stated}"})
        levels.append(Level(name=one_level.name, capacity_bytes=one_level.capacity_bytes, bandwidth=figure))
    return tuple(levels), merged


def _figure(one: Characteristic, where: str) -> Figure:
    if one.value is None:
        raise ValueError(f"{one.name} has no value")
    what = f"measured: {one.name}; {one.conditions}"
    return Figure(value=one.value, low=one.low, high=one.high, source=f"{what}; {where}" if where else what)
