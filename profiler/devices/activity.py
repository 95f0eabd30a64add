"""What the host is doing besides us: its load, CPU times, swapping and other processes.

These are always those of the real machine, also where `profiler.devices.host` reads a pretended one.

Example: ``read_host(interval_s=0.5).steal_fraction``
"""

import os
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import psutil
from pydantic import Field

from profiler.devices.host import (
    Processor,
    parse_kib,
    proc_root,
    read_governors,
    read_limits,
    read_processor,
    read_text,
    sys_root,
    usable_cpus,
    whole,
)
from roofline.record import Record


class CpuTimes(Record):
    """Seconds from /proc/stat, added up over the CPUs that were asked for."""

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
    """CPUs that this process may use."""
    host_cores: int = Field(gt=0)
    threads: int | None = None
    """Threads that torch uses within an operation; None where torch was not asked."""
    load_1min: float | None = None
    steal_fraction: float | None = None
    """Fraction of the time of the cores that this process may use, over the interval."""
    busy_others_cores: float | None = None
    """Cores' worth of CPU time on them that this process did not use."""
    busiest: tuple[Process, ...] = ()
    """Processes of this system beside this one that used the CPU, the busiest first."""
    governors: tuple[str, ...] = ()
    """Distinct frequency governors of the cores."""
    cpu_quota_cores: float | None = None
    """CPU time that the control group grants, in cores; None is no limit."""
    memory_limit_bytes: int | None = None
    """Limit of the control group; None is no limit."""
    swapped_bytes: int | None = None
    """Swapped out of this process."""
    swap_pages: int | None = None
    """Pages that the system swapped in or out over the interval."""
    processor: Processor = Processor()
    unread: tuple[str, ...] = ()
    """Files that could not be read."""


def parse_cpu_times(stat: str, ticks_per_s: float, cpus: Collection[int] = ()) -> CpuTimes:
    """The "cpuN" lines of /proc/stat: user nice system idle iowait irq softirq steal guest guest_nice (proc(5)).

    Guest time is already in user time, so it is left out of the sum. The "cpu" line, of all CPUs, stands for those
    that are not listed, and where none is asked for.
    """
    fields = {line.split()[0]: line.split()[1:9] for line in stat.splitlines() if line.startswith("cpu")}
    names = [f"cpu{cpu}" for cpu in cpus if f"cpu{cpu}" in fields]
    lines = [fields[name] for name in names] if names and len(names) == len(cpus) else [fields["cpu"]]
    user, nice, system, idle, iowait, irq, softirq, steal = (
        sum(map(int, state)) / ticks_per_s for state in zip(*lines, strict=True)
    )
    busy = user + nice + system + irq + softirq
    return CpuTimes(busy_s=busy, steal_s=steal, total_s=busy + steal + idle + iowait)


def parse_swap_pages(vmstat: str) -> int:
    """Pages swapped in and out since boot, from /proc/vmstat."""
    values = dict(line.split() for line in vmstat.splitlines())
    return int(values.get("pswpin", 0)) + int(values.get("pswpout", 0))


def process_times() -> dict[int, tuple[str, float]]:
    """Name and CPU seconds of every process that this one may look at, by its number."""
    known = [process.info for process in psutil.process_iter(["pid", "name", "cpu_times"]) if process.info["cpu_times"]]
    return {info["pid"]: (info["name"] or "?", sum(info["cpu_times"][:2])) for info in known}


def waited_s(proc: Path | None = None) -> float:
    """Seconds that threads of this process were ready to run and another one had their core, since they began, added
    up (the second number of /proc/PID/task/TID/schedstat, in ns); 0 where the kernel does not tell."""
    tasks = (proc or proc_root()) / "self" / "task"
    texts = [read_text(path) for path in tasks.glob("*/schedstat")]
    waits = [whole(text.split()[1]) for text in texts if text and len(text.split()) >= 2]
    return sum(wait for wait in waits if wait is not None) / 1e9


def read_host(
    threads: int | None = None,
    interval_s: float = 0.5,
    proc: Path | None = None,
    sys: Path | None = None,
    sleep: Callable[[float], None] = time.sleep,
    processes: Callable[[], Mapping[int, tuple[str, float]]] = process_times,
) -> HostReading:
    """Look at the host twice, `interval_s` apart; this process should be at rest meanwhile.

    `proc` and `sys` are the folders to read; None: counters of what happens now from /proc, the rest from this host's.
    """
    built_proc, built_sys = proc or proc_root(), sys or sys_root()
    proc = proc or Path("/proc")
    unread: dict[str, None] = {}

    def text(name: str) -> str:
        if (content := read_text(proc / name)) is None:
            unread[str(proc / name)] = None
        return content or ""

    cpus, ticks = usable_cpus(), float(os.sysconf("SC_CLK_TCK"))
    spent, own_s, start = processes(), time.process_time(), time.monotonic()
    stat, vmstat = text("stat"), text("vmstat")
    sleep(interval_s)
    stat_after, vmstat_after = text("stat"), text("vmstat")
    own_s, elapsed_s = time.process_time() - own_s, time.monotonic() - start or interval_s
    spent_after = processes()

    figures: dict[str, object] = {}
    if stat and stat_after:
        first, last = parse_cpu_times(stat, ticks, cpus), parse_cpu_times(stat_after, ticks, cpus)
        figures["steal_fraction"] = (last.steal_s - first.steal_s) / max(last.total_s - first.total_s, 1 / ticks)
        figures["busy_others_cores"] = max(0.0, last.busy_s - first.busy_s - own_s) / elapsed_s
    if vmstat and vmstat_after:
        figures["swap_pages"] = parse_swap_pages(vmstat_after) - parse_swap_pages(vmstat)
    if status := text("self/status"):
        figures["swapped_bytes"] = parse_kib(status, "VmSwap")
    if load := text("loadavg"):
        figures["load_1min"] = float(load.split()[0])
    try:
        figures["cpu_quota_cores"], figures["memory_limit_bytes"] = read_limits(built_proc, built_sys)
    except OSError:
        unread[str(built_sys / "fs/cgroup")] = None
    return HostReading.model_validate(
        {
            **figures,
            "cores": len(cpus),
            "host_cores": max(os.cpu_count() or 1, len(cpus)),
            "threads": threads,
            "busiest": _busiest(spent, spent_after, elapsed_s),
            "governors": read_governors(cpus, built_sys),
            "processor": read_processor(cpus, built_proc, built_sys),
            "unread": tuple(unread),
        }
    )


def _busiest(
    before: Mapping[int, tuple[str, float]], after: Mapping[int, tuple[str, float]], elapsed_s: float
) -> tuple[Process, ...]:
    """Processes beside this one that used CPU time; one that started meanwhile counts from its start."""
    spent = {pid: spent_s - before.get(pid, ("", 0.0))[1] for pid, (_, spent_s) in after.items() if pid != os.getpid()}
    used = [Process(pid=pid, name=after[pid][0], cores=s / elapsed_s) for pid, s in spent.items() if s > 0]
    return tuple(sorted(used, key=lambda process: -process.cores))
