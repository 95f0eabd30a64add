"""The host: its processors and memory, and the limits that control groups set.

Everything is read from Linux's /proc and /sys. What is built into the machine is read below `proc_root` and `sys_root`:
a developer may point them at a pretended host, a folder with `proc` and `sys` trees, with `ROOFCAL_PRETEND_HOST`.

Example: ``usable_cpus()``, ``free_bytes() // 8``
"""

import ctypes
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from roofline.record import Record

VARIABLE = "ROOFCAL_PRETEND_HOST"
"""Environment variable with the folder of a pretended host; not set outside of development."""
UNLIMITED_BYTES = 1 << 60
"""cgroup v1 says "no limit" with a number near 2^63; no machine has this much memory."""


def pretended_root() -> Path | None:
    """The folder of the pretended host; None on the real one."""
    folder = os.environ.get(VARIABLE)
    return Path(folder) if folder else None


def proc_root() -> Path:
    """Return the path of this host's /proc."""
    return (pretended_root() or Path("/")) / "proc"


def sys_root() -> Path:
    """Return the path of this host's /sys."""
    return (pretended_root() or Path("/")) / "sys"


def read_text(path: Path) -> str | None:
    """The stripped text of a file; None where it cannot be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None


def _entries(text: str) -> Iterator[tuple[str, str]]:
    """Key and value of each line "key : value"."""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        yield key.strip(), value.strip()


def whole(text: str) -> int | None:
    """A whole number, not negative; None for anything else."""
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() else None


# CPUs


class Processor(Record):
    """The processors that this process may run on; None where the system does not say."""

    physical_cores: int | None = None
    """Cores to which its CPUs belong; fewer than CPUs where SMT siblings share one."""
    numa_nodes: int | None = None
    """Memory nodes to which its CPUs belong."""
    virtual: bool | None = None
    """Whether a hypervisor says what this machine is; x86 only."""
    clock_is_real: bool | None = None
    """Whether /proc/cpuinfo's "cpu MHz" is measured; a guest without the counters sees a nominal clock. x86 only."""
    boost: bool | None = None
    """Whether the clock may exceed its base."""
    huge_pages: str | None = None
    """Transparent huge pages: "always", "madvise" (for memory that asks for them) or "never"."""


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
    if pretended_root() is None:
        affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
        return tuple(sorted(affinity))
    for key, value in _entries(read_text(proc_root() / "self/status") or ""):
        if key == "Cpus_allowed_list":
            return parse_cpu_list(value)
    return cpu_list(sys_root() / "devices/system/cpu/online") or (0,)


def parse_flags(cpuinfo: str) -> frozenset[str]:
    """Flags of the first CPU in an x86's /proc/cpuinfo; empty on other architectures."""
    return frozenset(next((value for key, value in _entries(cpuinfo) if key == "flags"), "").split())


def parse_cpu_name(cpuinfo: str) -> str | None:
    """The model name in /proc/cpuinfo; None where the architecture does not give one."""
    names = (value for key, value in _entries(cpuinfo) if key in ("model name", "Model", "cpu model") and value)
    return next((" ".join(name.split()) for name in names), None)


def parse_clock_hz(cpuinfo: str) -> float | None:
    """Mean of the "cpu MHz" lines of /proc/cpuinfo; None where there are none."""
    megahertz = [float(value) for key, value in _entries(cpuinfo) if key == "cpu MHz"]
    return sum(megahertz) / len(megahertz) * 1e6 if megahertz else None


def parse_chosen(text: str) -> str | None:
    """The choice in brackets of sysfs's "always [madvise] never"."""
    return next((word[1:-1] for word in text.split() if word.startswith("[") and word.endswith("]")), None)


def read_processor(cpus: Sequence[int], proc: Path | None = None, sys: Path | None = None) -> Processor:
    """Describe the processors of these CPU numbers; `proc` and `sys`: None for those of this host."""
    proc, sys = proc or proc_root(), sys or sys_root()
    system = sys / "devices/system/cpu"
    siblings = {read_text(system / f"cpu{cpu}/topology/thread_siblings_list") for cpu in cpus}
    nodes = {node.name for cpu in cpus for node in (system / f"cpu{cpu}").glob("node[0-9]*")}
    flags = parse_flags(read_text(proc / "cpuinfo") or "")
    boost, no_turbo = read_text(system / "cpufreq/boost"), read_text(system / "intel_pstate/no_turbo")
    return Processor(
        physical_cores=None if None in siblings else len(siblings),
        numa_nodes=len(nodes) or None,
        virtual="hypervisor" in flags if flags else None,
        clock_is_real="hypervisor" not in flags or "aperfmperf" in flags if flags else None,
        boost=boost == "1" if boost is not None else no_turbo == "0" if no_turbo is not None else None,
        huge_pages=parse_chosen(read_text(sys / "kernel/mm/transparent_hugepage/enabled") or ""),
    )


def read_governors(cpus: Sequence[int], sys: Path | None = None) -> tuple[str, ...]:
    """Distinct frequency governors of these CPU numbers; () where there are none. `sys`: None for that of this host."""
    policies = [(sys or sys_root()) / f"devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor" for cpu in cpus]
    return tuple(sorted({governor for policy in policies if (governor := read_text(policy))}))


# Memory and control groups


@dataclass(frozen=True, slots=True)
class MemoryGroup:
    """A control group that limits memory."""

    limit_bytes: int
    used_bytes: int
    """Use without file pages that the kernel gives up when memory is short."""

    @property
    def left_bytes(self) -> int:
        return max(0, self.limit_bytes - self.used_bytes)


def parse_cgroups(text: str) -> dict[str, str]:
    """Controller -> group's path from /proc/self/cgroup; the unified hierarchy (v2) is under ""."""
    lines = [line.split(":", 2) for line in text.splitlines() if line.count(":") >= 2]
    return {controller: path for _, controllers, path in lines for controller in controllers.split(",")}


def parse_quota(quota: str, period: str) -> float | None:
    """Cores from a quota and its period in microseconds, as in cpu.max (v2) and cpu.cfs_*_us (v1).

    None is no limit ("max", -1), or no such text.
    """
    above, below = whole(quota), whole(period)
    return above / below if above and below else None


def parse_memory_limit(text: str) -> int | None:
    """Bytes from memory.max (v2) or memory.limit_in_bytes (v1); None is no limit, or no such text."""
    limit = whole(text)
    return None if limit is None or limit >= UNLIMITED_BYTES else limit


def read_limits(proc: Path, sys: Path) -> tuple[float | None, int | None]:
    """(cores, bytes) that the control groups grant this process, the tightest of the group and those above it.

    Files that are missing or unreadable limit nothing. Raises OSError where the system has no control groups.
    """
    groups, root = parse_cgroups((proc / "self/cgroup").read_text(errors="replace")), sys / "fs/cgroup"
    unified, older = _group_and_above(root, groups.get("", "/")), _group_and_above(root / "cpu", groups.get("cpu", "/"))
    quotas = [
        *(parse_quota(*(read_text(folder / "cpu.max") or "").partition(" ")[::2]) for folder in unified),
        *(
            parse_quota(read_text(folder / "cpu.cfs_quota_us") or "", read_text(folder / "cpu.cfs_period_us") or "")
            for folder in older
        ),
    ]
    limits = [group.limit_bytes for group in memory_groups(proc, sys)]
    return min((quota for quota in quotas if quota is not None), default=None), min(limits, default=None)


def memory_groups(proc: Path, sys: Path) -> tuple[MemoryGroup, ...]:
    """Every control group that limits this process's memory; empty where none does or the system has none."""
    groups, root = parse_cgroups(read_text(proc / "self/cgroup") or ""), sys / "fs/cgroup"
    unified = _group_and_above(root, groups.get("", "/"))
    older = _group_and_above(root / "memory", groups.get("memory", "/"))
    return (
        *_limited(unified, "memory.max", "memory.current", "inactive_file"),
        *_limited(older, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    )


def _limited(folders: list[Path], limit: str, usage: str, reclaimable: str) -> Iterator[MemoryGroup]:
    for folder in folders:
        limit_bytes = parse_memory_limit(read_text(folder / limit) or "")
        if limit_bytes is None:
            continue
        lines = (line.partition(" ") for line in (read_text(folder / "memory.stat") or "").splitlines())
        given_up = sum(whole(value) or 0 for name, _, value in lines if name == reclaimable)
        yield MemoryGroup(limit_bytes, max(0, (whole(read_text(folder / usage) or "") or 0) - given_up))


def _group_and_above(root: Path, group: str) -> list[Path]:
    own = root / group.strip("/")
    return [own, *(parent for parent in own.parents if parent == root or root in parent.parents)]


def parse_kib(text: str, key: str) -> int | None:
    """Bytes of a line like "VmSwap:  12 kB" (/proc/meminfo, /proc/PID/status); None where there is no such line."""
    sizes = (whole(value.removesuffix("kB")) for name, value in _entries(text) if name == key)
    return next((1024 * size for size in sizes if size is not None), None)


def total_bytes(proc: Path | None = None, sys: Path | None = None) -> int:
    """Bytes of the machine's memory, or those that the tightest control group allows."""
    limits = [group.limit_bytes for group in memory_groups(proc or proc_root(), sys or sys_root())]
    return min([_memory(proc, "MemTotal", "total"), *limits])


def free_bytes(proc: Path | None = None, sys: Path | None = None) -> int:
    """Bytes that may still be taken without anything being swapped out or killed."""
    left = [group.left_bytes for group in memory_groups(proc or proc_root(), sys or sys_root())]
    return max(0, min([_memory(proc, "MemAvailable", "available"), *left]))


def _memory(proc: Path | None, key: str, name: str) -> int:
    """Bytes from /proc/meminfo; from psutil on systems without it, and where it cannot be read."""
    size = parse_kib(read_text((proc or proc_root()) / "meminfo") or "", key)
    return int(getattr(psutil.virtual_memory(), name)) if size is None else size


MALLOPT = ((-1, (1 << 31) - 1), (-3, 32 << 20))
"""Parameters of glibc's mallopt (malloc.h) with their largest values: M_TRIM_THRESHOLD, free bytes at the top of the
heap above which they go back to the system; M_MMAP_THRESHOLD, bytes from which a block is mapped by itself."""


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, where its allocator is glibc's; whether it does.

    By default glibc gives large blocks back to the system, or does not, by rules that depend on what the process freed
    before. Memory that comes back is mapped page by page when it is first written: on a virtual EPYC the same float32
    prefill took 842 to 891 ms in three fresh processes, and 699 to 749 ms where freed memory was kept. Servers keep it
    too; PyTorch's tuning guide recommends allocators that do (tcmalloc, jemalloc) for inference on CPUs.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False  # another C library
    return all(mallopt(parameter, value) == 1 for parameter, value in MALLOPT)
