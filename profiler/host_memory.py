"""Memory of the host that this process may have, in total and free: what the system has, or its control group allows.

Example: ``free_bytes() // 8`` is a modest share of what nobody uses now
"""

from pathlib import Path

import psutil

from profiler.cgroups import memory_groups
from profiler.machine import proc_root, read_text, sys_root


def total_bytes(proc: Path | None = None, sys: Path | None = None) -> int:
    """Bytes of the machine, or of the tightest control group."""
    limits = [group.limit_bytes for group in memory_groups(proc or proc_root(), sys or sys_root())]
    return min([_meminfo(proc, "MemTotal", "total"), *limits])


def free_bytes(proc: Path | None = None, sys: Path | None = None) -> int:
    """Bytes that may still be taken without anything being swapped out or killed."""
    left = [group.left_bytes for group in memory_groups(proc or proc_root(), sys or sys_root())]
    return max(0, min([_meminfo(proc, "MemAvailable", "available"), *left]))


def _meminfo(proc: Path | None, key: str, name: str) -> int:
    """From /proc/meminfo; from psutil on systems without it, and where it cannot be read."""
    text = read_text((proc or proc_root()) / "meminfo") or ""
    for line in text.splitlines():
        found, _, value = line.partition(":")
        if found == key and value.split() and value.split()[0].isdigit():
            return int(value.split()[0]) * 1024
    return int(getattr(psutil.virtual_memory(), name))
