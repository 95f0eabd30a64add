"""The memory hierarchy as the system states it: what a measurement is held against, not what it found.

Example: ``cache_capacities(torch.device("cpu"))[-1].bytes`` is the last-level cache
"""

from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from profiler.environment import cpu_cache_levels
from profiler.host import read_limits, usable_cpus
from roofline.hardware import find_device


@dataclass(frozen=True, slots=True)
class Capacity:
    """A level of the hierarchy, all threads together."""

    name: str
    bytes: int


def cache_capacities(device: torch.device) -> tuple[Capacity, ...]:
    """Caches that the threads of one operation have together, the smallest first; empty where they are unknown."""
    if device.type == "cuda":
        return (Capacity("L2", int(torch.cuda.get_device_properties(device).L2_cache_size)),)
    cores, threads = len(usable_cpus()), torch.get_num_threads()
    return tuple(
        Capacity(level.name, level.bytes * max(1, min(threads, -(-cores // level.shared_by))))
        for level in cpu_cache_levels()
    )


def main_capacity(device: torch.device) -> Capacity:
    """Main memory of the device, named as in its datasheet where a file describes it; what a container may use."""
    if device.type == "cuda":
        spec = find_device(torch.cuda.get_device_name(device))
        name = spec.datasheet.levels[-1].name if spec is not None and spec.datasheet is not None else "DRAM"
        return Capacity(name, int(torch.cuda.get_device_properties(device).total_memory))
    total = int(psutil.virtual_memory().total)
    limit = read_limits()[1] if Path("/proc/self/cgroup").exists() else None
    return Capacity("DRAM", min(total, limit or total))
