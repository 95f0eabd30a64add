"""What the host is doing besides us, read from Linux's /proc and /sys; parsing apart from reading.

Each parser is a function of text, so that recorded text tests it. Where a file is absent (another system, a container
that hides it) the figure is None and `HostReading.unread` names it.

Example: ``read_host(interval_s=0.5).steal_fraction``
"""

import os
import time
from collections.abc import Callable, Collection
from pathlib import Path

from pydantic import Field

from profiler.cgroups import read_limits
from profiler.machine import proc_root, read_text, sys_root, usable_cpus
from profiler.processor import Processor, read_processor
from roofline.record import Record


class CpuTimes(Record):
    """Lines of /proc/stat, in seconds over the CPUs that were asked for."""

    busy_s: float
    """Every state but idle, I/O wait and steal."""
    steal_s: float
    """The hypervisor ran somebody else."""
    total_s: float


class Process(Record):
    """A process beside this one, over an interval."""

    pid: int
    name: str
    cores: float
    """CPU time ÷ interval."""


class HostReading(Record):
    """One look at the host; None where the system does not say."""

    cores: int = Field(gt=0)
    """That this process may use."""
    host_cores: int = Field(gt=0)
    threads: int | None = None
    """That torch uses within an operation; None where torch was not asked."""
    load_1min: float | None = None
    steal_fraction: float | None = None
    """Of the time of the cores that this process may use, over the interval."""
    busy_others_cores: float | None = None
    """Cores' worth of CPU time on them that this process did not use."""
    busiest: tuple[Process, ...] = ()
    """Processes of this system beside this one that used the CPU, the busiest first."""
    governors: tuple[str, ...] = ()
    """Distinct frequency governors of the cores."""
    cpu_quota_cores: float | None = None
    """CPU time that the control group grants, in cores; None is no limit."""
    memory_limit_bytes: int | None = None
    """Of the control group; None is no limit."""
    swapped_bytes: int | None = None
    """Of this process."""
    swap_pages: int | None = None
    """Pages that the system swapped in or out over the interval."""
    processor: Processor = Processor()
    unread: tuple[str, ...] = ()


def parse_cpu_times(stat: str, ticks_per_s: float, cpus: Collection[int] = ()) -> CpuTimes:
    """The "cpuN" lines of /proc/stat: user nice system idle iowait irq softirq steal guest guest_nice (proc(5)).

    Guest time is already in user time, so it is left out of the sum. The "cpu" line, of all CPUs, stands for those
    that are not listed, and where none is asked for.
    """
    fields = {line.split()[0]: line.split()[1:9] for line in stat.splitlines() if line.startswith("cpu")}
    names = [f"cpu{cpu}" for cpu in cpus if f"cpu{cpu}" in fields]
    lines = [fields[name] for name in names] if names and len(names) == len(cpus) else [fields["cpu"]]
    states = [sum(int(line[i]) for line in lines) / ticks_per_s for i in range(8)]
    user, nice, system, idle, iowait, irq, softirq, steal = states
    busy = user + nice + system + irq + softirq
    return CpuTimes(busy_s=busy, steal_s=steal, total_s=busy + steal + idle + iowait)


def parse_process_times(stat: str, ticks_per_s: float) -> tuple[str, float]:
    """Name and user + system seconds from /proc/PID/stat; the name is in brackets and may hold brackets itself."""
    name = stat[stat.index("(") + 1 : stat.rindex(")")]
    fields = stat[stat.rindex(")") + 2 :].split()
    return name, (int(fields[11]) + int(fields[12])) / ticks_per_s


def parse_cpu_name(cpuinfo: str) -> str | None:
    """The model name in /proc/cpuinfo; None where the architecture does not give one."""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model", "cpu model") and value.strip():
            return " ".join(value.split())
    return None


def parse_kib(text: str, key: str) -> int | None:
    """Bytes of a line like "VmSwap:  12 kB" (/proc/meminfo, /proc/PID/status); None where there is no such line."""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    return None


def parse_swap_pages(vmstat: str) -> int:
    """Pages swapped in and out since boot, from /proc/vmstat."""
    values = dict(line.split() for line in vmstat.splitlines())
    return int(values.get("pswpin", 0)) + int(values.get("pswpout", 0))


def read_host(
    threads: int | None = None,
    interval_s: float = 0.5,
    proc: Path | None = None,
    sys: Path | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> HostReading:
    """Look at the host twice, `interval_s` apart; this process should be at rest meanwhile.

    `proc` and `sys` are the folders to read; None: counters of what happens now from /proc, the rest from where
    `profiler.machine` says.
    """
    built_proc, built_sys = proc or proc_root(), sys or sys_root()
    proc = proc or Path("/proc")
    unread: list[str] = []

    def text(path: Path) -> str | None:
        try:
            return path.read_text()
        except OSError:
            unread.append(str(path))
            return None

    cpus = usable_cpus()
    ticks = float(os.sysconf("SC_CLK_TCK"))
    before, swaps, spent = text(proc / "stat"), text(proc / "vmstat"), _process_times(proc, ticks)
    start = time.monotonic()
    sleep(interval_s)
    after, swaps_after, spent_after = text(proc / "stat"), text(proc / "vmstat"), _process_times(proc, ticks)
    elapsed = time.monotonic() - start or interval_s

    figures: dict[str, object] = {}
    if before and after:
        first, last = parse_cpu_times(before, ticks, cpus), parse_cpu_times(after, ticks, cpus)
        own = sum(spent_after.get(os.getpid(), ("", 0.0))[1:]) - sum(spent.get(os.getpid(), ("", 0.0))[1:])
        figures["steal_fraction"] = (last.steal_s - first.steal_s) / max(last.total_s - first.total_s, 1 / ticks)
        figures["busy_others_cores"] = max(0.0, last.busy_s - first.busy_s - own) / elapsed
    if swaps and swaps_after:
        figures["swap_pages"] = parse_swap_pages(swaps_after) - parse_swap_pages(swaps)
    if status := text(proc / "self/status"):
        figures["swapped_bytes"] = parse_kib(status, "VmSwap")
    if load := text(proc / "loadavg"):
        figures["load_1min"] = float(load.split()[0])
    try:
        figures["cpu_quota_cores"], figures["memory_limit_bytes"] = read_limits(built_proc, built_sys)
    except OSError:
        unread.append(str(built_sys / "fs/cgroup"))
    governors = {
        governor
        for cpu in cpus
        if (governor := read_text(built_sys / f"devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor"))
    }
    return HostReading.model_validate(
        {
            **figures,
            "cores": len(cpus),
            "host_cores": max(os.cpu_count() or 1, len(cpus)),
            "threads": threads,
            "busiest": _busiest(spent, spent_after, elapsed),
            "governors": tuple(sorted(governors)),
            "processor": read_processor(cpus, built_proc, built_sys),
            "unread": tuple(dict.fromkeys(unread)),
        }
    )


def _process_times(proc: Path, ticks_per_s: float) -> dict[int, tuple[str, float]]:
    times = {}
    for folder in proc.glob("[0-9]*"):
        try:
            times[int(folder.name)] = parse_process_times((folder / "stat").read_text(), ticks_per_s)
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it ended between the listing and the reading, or it is hidden from us
    return times


def _busiest(
    before: dict[int, tuple[str, float]], after: dict[int, tuple[str, float]], elapsed_s: float
) -> tuple[Process, ...]:
    """Processes beside this one that used CPU time; one that started meanwhile counts from its start."""
    used = [
        Process(pid=pid, name=name, cores=(spent - before.get(pid, ("", 0.0))[1]) / elapsed_s)
        for pid, (name, spent) in after.items()
        if pid != os.getpid() and spent > before.get(pid, ("", 0.0))[1]
    ]
    return tuple(sorted(used, key=lambda process: -process.cores))
