"""The data caches of this host's processors as the system states them, one entry an instance.

Instances are what matters: a cache that eight cores share is one, two sockets have two of each, and cores of different
kinds have caches of different sizes. What the system states need not be what a process gets: a hypervisor passes on the
cache of the whole machine. Entries without a readable level or size are left out.

Example: ``sum(one.bytes for one in read_cpu_caches(usable_cpus()) if one.name == "L3")``
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from profiler.machine import cpu_list, read_text, sys_root

FACTORS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True, slots=True)
class CpuCache:
    """One data or unified cache."""

    name: str
    """"L1", "L2", "L3"."""
    bytes: int
    cpus: frozenset[int]
    """CPU numbers that share it; empty where the system does not say."""


def parse_size(text: str) -> int | None:
    """Bytes from sysfs's "32K", "1024K", "33M"; None where it is no size, or none at all."""
    text = text.strip()
    number, factor = (text[:-1], FACTORS[text[-1]]) if text[-1:] in FACTORS and text else (text, 1)
    return int(number) * factor or None if number.isascii() and number.isdigit() else None


def read_cpu_caches(cpus: Sequence[int], sys: Path | None = None) -> tuple[CpuCache, ...]:
    """Caches that these CPUs reach, each once, the smallest level first; empty where the system describes none."""
    system = (sys or sys_root()) / "devices/system/cpu"
    found: dict[CpuCache, None] = {}
    for cpu in cpus:
        for index in (system / f"cpu{cpu}/cache").glob("index[0-9]*"):
            if (one := _cache(index)) is not None:
                found[one] = None
    return tuple(sorted(found, key=lambda one: (one.name, one.bytes, sorted(one.cpus))))


def _cache(index: Path) -> CpuCache | None:
    level, size = read_text(index / "level") or "", parse_size(read_text(index / "size") or "")
    if read_text(index / "type") == "Instruction" or size is None or not (level.isascii() and level.isdigit()):
        return None
    return CpuCache(f"L{level}", size, frozenset(cpu_list(index / "shared_cpu_list") or ()))
