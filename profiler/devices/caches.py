"""The memory hierarchy as the system states it: what a measurement is held against, not what it found.

Example: ``cache_capacities(torch.device("cpu"))[-1].bytes`` is the last-level cache
"""

from dataclasses import dataclass

import torch

from profiler.devices.backend import backend_of
from profiler.devices.host import CpuCache, read_cpu_caches, total_bytes, usable_cpus
from roofline.hardware import find_device


@dataclass(frozen=True, slots=True)
class Capacity:
    """A level of the hierarchy, all threads together."""

    name: str
    bytes: int


def cache_capacities(device: torch.device) -> tuple[Capacity, ...]:
    """Caches that the threads of one operation have together, level by level; empty where they are unknown.

    A level as large as all of main memory is no cache and is left out.
    """
    backend = backend_of(device)
    if not backend.is_host:
        return tuple(Capacity(name, size) for name, size in backend.cache_bytes(device).items())
    levels: dict[str, list[CpuCache]] = {}
    for one in read_cpu_caches(usable_cpus()):
        levels.setdefault(one.name, []).append(one)
    # Which CPUs the threads run on is not known: with fewer threads than instances they are taken to have the largest.
    threads, most = torch.get_num_threads(), total_bytes()
    held = {
        name: sum(sorted((one.bytes for one in found), reverse=True)[:threads])
        for name, found in sorted(levels.items())
    }
    return tuple(Capacity(name, size) for name, size in held.items() if size < most)


def main_capacity(device: torch.device) -> Capacity:
    """Main memory of the device, named as in its datasheet where a file describes it; what a container may use."""
    backend = backend_of(device)
    spec = None if backend.is_host else find_device(backend.device_name(device))
    name = spec.datasheet.levels[-1].name if spec is not None and spec.datasheet is not None else "DRAM"
    return Capacity(name, backend.memory_bytes(device))
