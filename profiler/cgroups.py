"""Limits that control groups set for this process, on either version of the hierarchy.

A container sees the memory and the processors of the whole machine; what it may use of them stands in its control group
and in those above, of which the tightest counts. Files that are missing or unreadable limit nothing.

Example: ``read_limits(proc_root(), sys_root())`` is (2.0, 4294967296) in a container with two cores and 4 GiB
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from profiler.machine import read_text

UNLIMITED_BYTES = 1 << 60
"""cgroup v1 says "no limit" with a number near 2^63; no machine has this much memory."""


@dataclass(frozen=True, slots=True)
class MemoryGroup:
    """A control group that limits memory."""

    limit_bytes: int
    used_bytes: int
    """Without file pages that the kernel gives up when memory is short."""

    @property
    def left_bytes(self) -> int:
        return max(0, self.limit_bytes - self.used_bytes)


def parse_cgroups(text: str) -> dict[str, str]:
    """Controller -> group's path from /proc/self/cgroup; the unified hierarchy (v2) is under ""."""
    groups = {}
    for line in text.splitlines():
        if line.count(":") < 2:
            continue
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            groups[controller] = path
    return groups


def parse_quota_v2(cpu_max: str) -> float | None:
    """Cores from cpu.max, "quota period" or "max period" in microseconds; None is no limit, or no such text."""
    quota, _, period = cpu_max.strip().partition(" ")
    return _ratio(quota, period)


def parse_quota_v1(quota_us: str, period_us: str) -> float | None:
    """Cores from cpu.cfs_quota_us and cpu.cfs_period_us; a quota of -1 is no limit."""
    return _ratio(quota_us, period_us)


def parse_memory_limit(text: str) -> int | None:
    """Bytes from memory.max (v2) or memory.limit_in_bytes (v1); None is no limit, or no such text."""
    found = _whole(text)
    return None if found is None or found >= UNLIMITED_BYTES else found


def read_limits(proc: Path, sys: Path) -> tuple[float | None, int | None]:
    """(cores, bytes) that the control groups grant this process, the tightest of the group and those above it.

    Raises OSError where the system has no control groups.
    """
    groups = parse_cgroups((proc / "self/cgroup").read_text(errors="replace"))
    root = sys / "fs/cgroup"
    quotas = [parse_quota_v2(read_text(f / "cpu.max") or "") for f in _group_and_above(root, groups.get("", "/"))]
    for folder in _group_and_above(root / "cpu", groups.get("cpu", "/")):
        quota, period = read_text(folder / "cpu.cfs_quota_us"), read_text(folder / "cpu.cfs_period_us")
        quotas.append(parse_quota_v1(quota or "", period or ""))
    granted = [quota for quota in quotas if quota is not None]
    limits = [group.limit_bytes for group in memory_groups(proc, sys)]
    return min(granted, default=None), min(limits, default=None)


def memory_groups(proc: Path, sys: Path) -> tuple[MemoryGroup, ...]:
    """Every control group that limits this process's memory; empty where none does or the system has none."""
    groups = parse_cgroups(read_text(proc / "self/cgroup") or "")
    root = sys / "fs/cgroup"
    return (
        *_limited(_group_and_above(root, groups.get("", "/")), "memory.max", "memory.current", "inactive_file"),
        *_limited(
            _group_and_above(root / "memory", groups.get("memory", "/")),
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
        ),
    )


def _limited(folders: list[Path], limit: str, usage: str, reclaimable: str) -> Iterator[MemoryGroup]:
    for folder in folders:
        limit_bytes = parse_memory_limit(read_text(folder / limit) or "")
        if limit_bytes is None:
            continue
        used_bytes = _whole(read_text(folder / usage) or "") or 0
        for line in (read_text(folder / "memory.stat") or "").splitlines():
            name, _, value = line.partition(" ")
            if name == reclaimable:
                used_bytes -= _whole(value) or 0
        yield MemoryGroup(limit_bytes, max(0, used_bytes))


def _group_and_above(root: Path, group: str) -> list[Path]:
    own = root / group.strip("/")
    return [own, *(parent for parent in own.parents if parent == root or root in parent.parents)]


def _ratio(quota: str, period: str) -> float | None:
    above, below = _whole(quota), _whole(period)
    return above / below if above and below else None


def _whole(text: str) -> int | None:
    """A whole number, not negative; None for anything else."""
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() else None
