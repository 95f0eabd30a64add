"""The memory hierarchy as the system states it, and how much of the last-level cache this process really has.

A virtual machine of two cores is told of the 260 MiB that a whole processor shares and gets a few of them; some systems
state nothing. A large or missing statement is therefore checked by a probe of a second at most, once in a process:
one buffer is read over and over, from its first 8 MiB up to all of it, and where the rate has fallen to that of main
memory and stays there, the cache is exceeded. GPUs state their cache correctly and are not probed.

Example: ``effective_cache(torch.device("cpu")).bytes``
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from profiler.devices.backend import backend_of
from profiler.devices.host import (
    cpu_list,
    free_bytes,
    pretended_root,
    read_text,
    sys_root,
    total_bytes,
    usable_cpus,
    whole,
)
from profiler.record.measurement import DISTINCT, CacheSource, Capacity, MemoryHierarchy
from roofline.hardware.load import find_device

TRUSTED_BYTES = 32 << 20
"""A stated cache up to this size is taken as it is: the L3 of a group of cores in AMD's servers. Operands that exceed
it take 48 MiB, a few milliseconds of reading."""
FIRST_BYTES = 8 << 20
"""Smallest buffer of the probe: larger than the L2 of a few cores, so that it shows the last level."""
STEPS = 2
"""Sizes an octave."""
PAST_STATED = 4
"""Largest buffer of the probe, in stated caches: in one octave the rate falls, in the last one main memory shows."""
MOST_BYTES = 512 << 20
"""Limit of that buffer: touching a larger one for the first time takes longer than the probe has."""
FREE_PART = 1 / 8
"""Largest part of the free memory that the buffer takes."""
ROUNDS = 3
"""Times that each size is read, some time apart: other work makes one slower, never faster."""
DEADLINE_S = 1.0
"""After it no further size is read."""


@dataclass(frozen=True, slots=True)
class CpuCache:
    """One instance of a data or unified cache."""

    name: str
    """"L1", "L2", "L3"."""
    bytes: int
    cpus: frozenset[int]
    """CPU numbers that share it; empty where the system does not say."""


def parse_size(text: str) -> int | None:
    """Bytes from sysfs's "32K", "1024K", "33M"; None where it is no size, or none at all."""
    text = text.strip()
    factor = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:])
    return factor * (whole(text[:-1]) or 0) or None if factor else whole(text) or None


def read_cpu_caches(cpus: Sequence[int], sys: Path | None = None) -> tuple[CpuCache, ...]:
    """Caches that these CPUs reach, each instance once, the smallest level first; empty where the system states none.

    A cache that eight cores share is one instance, two sockets have two. What the system states need not be what a
    process gets: a hypervisor passes on the cache of the whole machine. Entries without a readable level or size are
    left out.
    """
    system, caches = (sys or sys_root()) / "devices/system/cpu", set()
    for index in (index for cpu in cpus for index in (system / f"cpu{cpu}/cache").glob("index[0-9]*")):
        level, size = whole(read_text(index / "level") or ""), parse_size(read_text(index / "size") or "")
        if level is not None and size is not None and read_text(index / "type") != "Instruction":
            caches.add(CpuCache(f"L{level}", size, frozenset(cpu_list(index / "shared_cpu_list") or ())))
    return tuple(sorted(caches, key=lambda cache: (cache.name, cache.bytes, sorted(cache.cpus))))


@dataclass(frozen=True, slots=True)
class EffectiveCache:
    """The last-level cache that cold operands must exceed."""

    bytes: int
    stated_bytes: int | None
    """None where the system states none."""
    source: CacheSource
    reason: str
    """The origin of the size, in one line."""


@dataclass(frozen=True, slots=True)
class ReadCurve:
    """Rates of reading buffers of ascending size, each again and again."""

    sizes: tuple[int, ...]
    rates: tuple[float, ...]
    """Bytes/s; the best of each size and all larger ones, since a larger buffer is read no faster."""
    main_rate: float | None
    """Rate of the last octave where it is flat: that of main memory. None where the rate still falls there."""

    @property
    def cached_rate(self) -> float | None:
        """Bytes/s of the cache; None where it is not distinctly faster than main memory."""
        if self.main_rate is None or self.rates[0] < DISTINCT * self.main_rate:
            return None
        return self.rates[0]

    @property
    def past_bytes(self) -> int | None:
        """The smallest size that is read at the rate of main memory; None where the curve does not tell."""
        if self.main_rate is None or self.cached_rate is None:
            return None
        return next(s for s, r in zip(self.sizes, self.rates, strict=True) if r < DISTINCT * self.main_rate)


def cache_capacities(device: torch.device) -> tuple[Capacity, ...]:
    """Caches that the threads of one operation have together, level by level; empty where they are unknown.

    A level as large as all of main memory is no cache and is left out.
    """
    backend = backend_of(device)
    if not backend.is_host:
        return tuple(Capacity(name=name, bytes=size) for name, size in backend.cache_bytes(device).items())
    levels: dict[str, list[int]] = {}
    for cache in read_cpu_caches(usable_cpus()):
        levels.setdefault(cache.name, []).append(cache.bytes)
    # Which CPUs the threads run on is not known: with fewer threads than instances they are taken to have the largest.
    threads, most = torch.get_num_threads(), total_bytes()
    held = {name: sum(sorted(sizes, reverse=True)[:threads]) for name, sizes in sorted(levels.items())}
    return tuple(Capacity(name=name, bytes=size) for name, size in held.items() if size < most)


def main_capacity(device: torch.device) -> Capacity:
    """Main memory of the device, named as in its datasheet where a file describes it; what a container may use."""
    backend = backend_of(device)
    spec = None if backend.is_host else find_device(backend.device_name(device))
    name = spec.datasheet.levels[-1].name if spec is not None and spec.datasheet is not None else "DRAM"
    return Capacity(name=name, bytes=backend.memory_bytes(device))


def memory_hierarchy(device: torch.device) -> MemoryHierarchy:
    """Return the levels of the device's memory, as the system states them."""
    return MemoryHierarchy(main=main_capacity(device), caches=cache_capacities(device))


def effective_cache(device: torch.device) -> EffectiveCache:
    """The last-level cache of a device; on a CPU with a large or no stated cache a probe runs the first time.

    It is never more than the system states, and not less than `TRUSTED_BYTES` or, if smaller, the stated size, since
    other work can only make a cache look smaller.
    """
    stated = max((cache.bytes for cache in cache_capacities(device)), default=None)
    if not backend_of(device).is_host and stated is not None:
        return EffectiveCache(stated, stated, "stated", "stated by the driver")
    if stated is not None and stated <= TRUSTED_BYTES:
        return EffectiveCache(stated, stated, "stated", "stated by the system")
    return judged(stated, read_curve(device))


def read_curve(device: torch.device) -> ReadCurve | None:
    """The curve of the probe, which runs once in a process for each number of threads; None without room or time."""
    key = (torch.get_num_threads(), pretended_root())
    if key not in _CURVES:
        stated = max((cache.bytes for cache in cache_capacities(device)), default=MOST_BYTES)
        sizes = probe_sizes(max(stated, TRUSTED_BYTES), int(FREE_PART * free_bytes()))
        buffer = torch.ones(sizes[-1] // 4 if sizes else 0)

        def read(size: int) -> float:
            part = buffer[: size // 4]
            began = time.perf_counter()
            torch.sum(part)
            return time.perf_counter() - began

        _CURVES[key] = curve_of(sizes, read, time.perf_counter)
    return _CURVES[key]


_CURVES: dict[object, ReadCurve | None] = {}
"""Curves by number of threads and pretended host."""


def probe_sizes(stated_bytes: int, limit_bytes: int) -> tuple[int, ...]:
    """Buffers of the probe, ascending, past the stated cache where `limit_bytes` and `MOST_BYTES` allow it."""
    most = min(PAST_STATED * stated_bytes, limit_bytes, MOST_BYTES)
    sizes: list[int] = []
    while (size := int(FIRST_BYTES * 2 ** (len(sizes) / STEPS))) <= most:
        sizes.append(size)
    return tuple(sizes)


def curve_of(sizes: Sequence[int], read: Callable[[int], float], now: Callable[[], float]) -> ReadCurve | None:
    """The curve from `read`, which gives the seconds of one reading; None where not all sizes were read in time.

    `now` is the clock of the deadline.
    """
    began = now()
    best: dict[int, float] = {}
    for _ in range(ROUNDS):
        for size in sizes:
            if now() - began > DEADLINE_S:
                break
            read(size)  # brings into the cache what fits
            best[size] = max(best.get(size, 0.0), size / max(read(size), 1e-9))
    if len(best) < max(len(sizes), STEPS + 2):  # an octave, and a size before it
        return None
    rates = [max(best[larger] for larger in sizes[i:]) for i in range(len(sizes))]
    first, last = rates[-1 - STEPS], rates[-1]
    return ReadCurve(tuple(sizes), tuple(rates), first if first < DISTINCT * last else None)


def judged(stated_bytes: int | None, curve: ReadCurve | None) -> EffectiveCache:
    """The effective cache from a large or missing statement and the probe."""
    known = "the system states no cache" if stated_bytes is None else f"the system states {_mib(stated_bytes)}"
    past = curve.past_bytes if curve is not None else None
    if past is not None and curve is not None:
        size = max(past, TRUSTED_BYTES)
        size = min(size, stated_bytes or size)
        what = (
            f"{known}; buffers of {_mib(past)} and more are read at the {curve.main_rate or 0:.3g} B/s of main memory"
        )
        return EffectiveCache(size, stated_bytes, "measured", what)
    if stated_bytes is not None:
        why = "there was no room or time to probe it" if curve is None else "a short probe did not show where it ends"
        return EffectiveCache(stated_bytes, stated_bytes, "assumed", f"{known}; {why}")
    if curve is not None and curve.main_rate is None:
        return EffectiveCache(curve.sizes[-1], None, "assumed", f"{known}, and none ended within a probe")
    return EffectiveCache(
        TRUSTED_BYTES, None, "assumed", f"{known}, and none showed; {_mib(TRUSTED_BYTES)} are assumed"
    )


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.4g} MiB"
