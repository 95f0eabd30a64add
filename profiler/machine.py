"""Where what is built into this machine is read from: the one place that a pretended host replaces.

Processors, caches, memory and the limits of control groups decide how large operands are and what counts as cold. A
developer who wants to see what happens on another host points `ROOFCAL_PRETEND_HOST` at a folder with `proc` and `sys`
trees (`tests/pretended_hosts.py` makes them); processes that are started inherit it. Counters of what happens now
(load, CPU times, other processes) are always those of the real machine.

Example: ``usable_cpus(), read_text(sys_root() / "devices/system/cpu/online")``
"""

import os
from pathlib import Path

VARIABLE = "ROOFCAL_PRETEND_HOST"
"""Environment variable with the folder of a pretended host; not set outside of development."""


def pretended_root() -> Path | None:
    """The folder of the pretended host; None on the real one."""
    folder = os.environ.get(VARIABLE)
    return Path(folder) if folder else None


def proc_root() -> Path:
    """Where /proc of this host is."""
    return (pretended_root() or Path("/")) / "proc"


def sys_root() -> Path:
    """Where /sys of this host is."""
    return (pretended_root() or Path("/")) / "sys"


def read_text(path: Path) -> str | None:
    """What a file says, stripped; None where it cannot be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """CPU numbers from a list like "0-3,8". Raises ValueError where it is none."""
    cpus: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        cpus.extend(range(int(first), int(last or first) + 1))
    return tuple(cpus)


def cpu_list(path: Path) -> tuple[int, ...] | None:
    """CPU numbers that a file lists; None where it cannot be read or lists none."""
    try:
        return parse_cpu_list(read_text(path) or "") or None
    except ValueError:
        return None


def usable_cpus() -> tuple[int, ...]:
    """CPU numbers that this process may run on; all of them where the system has no affinity."""
    if pretended_root() is not None:
        return _pretended_cpus()
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def _pretended_cpus() -> tuple[int, ...]:
    """As the kernel writes them: those that /proc/self/status allows, or those that /sys has online, or one."""
    for line in (read_text(proc_root() / "self/status") or "").splitlines():
        if line.startswith("Cpus_allowed_list:"):
            return parse_cpu_list(line.partition(":")[2])
    return cpu_list(sys_root() / "devices/system/cpu/online") or (0,)
