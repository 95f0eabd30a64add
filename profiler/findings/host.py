"""What about the host spoils a measurement: its other work, its limits, its processors, its memory.

A GPU depends on the host too, which issues its kernels; what only matters for work on the CPU is left out for it.

Example: ``[f.what for f in host_findings(read_host()) if f.severity == "invalidates"]``
"""

from typing import Literal

from profiler.findings.finding import Finding, Found
from profiler.host import HostReading

OTHERS_WARN, OTHERS_INVALIDATE = 0.05, 0.5
"""Cores' worth of foreign CPU time ÷ cores. A parallel operation waits for its slowest thread, so that one part in 20
taken from one core already shows in a 5 % closure; at one half the scheduler's share is what is measured."""
LISTED_CORES = 0.05
"""Of one core; a process that takes less is not worth stopping, as `OTHERS_WARN`."""
STEAL_WARN, STEAL_INVALIDATE = 0.01, 0.10
"""Of all cores' time. 1 % is the size of a regression that is looked for; 10 % is twice the closure's tolerance."""


def host_findings(host: HostReading, device: Literal["cpu", "cuda"] = "cpu") -> tuple[Finding, ...]:
    """Findings about the host of measurements on a device."""
    found = Found()
    _other_work(host, found)
    _threads(host, found)
    _processor(host, device, found)
    _memory(host, found)
    if host.unread:
        found.add(
            "note",
            f"not known here: {', '.join(host.unread)}",
            "run on Linux with /proc and /sys visible for all checks",
        )
    return found.all()


def _other_work(host: HostReading, found: Found) -> None:
    if (others := host.busy_others_cores) is not None and others > OTHERS_WARN * host.cores:
        names = ", ".join(
            f"{p.name} ({p.pid}): {p.cores:.0%} of a core" for p in host.busiest[:3] if p.cores >= LISTED_CORES
        )
        found.add(
            "invalidates" if others >= OTHERS_INVALIDATE * host.cores else "warns",
            f"other work takes {others:.2f} of {host.cores} cores" + (f": {names}" if names else ""),
            "stop it, or measure when it is done",
        )
    if (steal := host.steal_fraction) is not None and steal > STEAL_WARN:
        found.add(
            "invalidates" if steal >= STEAL_INVALIDATE else "warns",
            f"the hypervisor takes {steal:.1%} of the cores' time (steal)",
            "use a machine with dedicated cores, or measure at another time",
        )
    if host.load_1min is not None and host.load_1min > host.host_cores:
        found.add(
            "note",
            f"load average {host.load_1min:.2f} on {host.host_cores} cores over the last minute",
            "wait until it falls if the work was not your own",
        )


def _threads(host: HostReading, found: Found) -> None:
    physical = host.processor.physical_cores
    if host.threads is not None and host.threads > host.cores:
        found.add(
            "invalidates",
            f"torch uses {host.threads} threads on {host.cores} cores",
            f"set OMP_NUM_THREADS={physical or host.cores}",
        )
    elif host.threads is not None and physical is not None and host.threads > physical:
        found.add(
            "warns",
            f"torch uses {host.threads} threads on {physical} physical cores: SMT siblings share a core's units",
            f"set OMP_NUM_THREADS={physical}",
        )
    elif host.threads is not None and host.threads < (physical or host.cores):
        cores = f"{host.cores} cores (often one a physical core)" if physical is None else f"{physical} physical cores"
        found.add(
            "note",
            f"torch uses {host.threads} threads of {cores}",
            f"set OMP_NUM_THREADS={physical or host.cores} to use them all",
        )
    if host.cores < host.host_cores:
        found.add(
            "note",
            f"this process may use {host.cores} of {host.host_cores} cores",
            "compare only with runs on as many; widen it with taskset or the container's cpuset",
        )
    if (quota := host.cpu_quota_cores) is not None and quota < host.cores:
        found.add(
            "warns",
            f"the control group grants {quota:g} cores' time on {host.cores} cores: threads are stopped in mid-pass",
            f"raise the quota, or set OMP_NUM_THREADS={max(1, int(quota))} and pin as many cores",
        )


def _processor(host: HostReading, device: Literal["cpu", "cuda"], found: Found) -> None:
    processor = host.processor
    if slow := [name for name in host.governors if name != "performance"]:
        found.add(
            "warns",
            f"frequency governor {', '.join(slow)}: the clock follows the load",
            "cpupower frequency-set -g performance",
        )
    if processor.boost is not None:
        found.add(
            "note",
            "boost is on: the clock depends on how many cores work, and on heat"
            if processor.boost
            else "boost is off: the clock stays below the processor's highest",
            "compare only with runs that have it so; cpufreq/boost or intel_pstate/no_turbo in sysfs sets it",
        )
    if processor.virtual:
        found.add(
            "note",
            "a virtual machine: cores, caches and clocks are what the hypervisor says",
            "read its figures with care, and compare only with machines of the same type",
        )
    if (nodes := processor.numa_nodes) is not None and nodes > 1:
        found.add(
            "note" if device == "cuda" else "warns",
            f"threads and memory may lie on {nodes} NUMA nodes, as each start happens to place them",
            "pin to the GPU's node (nvidia-smi topo -m): numactl --cpunodebind=N --membind=N"
            if device == "cuda"
            else "pin to one: numactl --cpunodebind=0 --membind=0",
        )
    if device == "cpu" and processor.huge_pages in ("madvise", "never"):
        found.add(
            "note",
            f"transparent huge pages: {processor.huge_pages}, so large tensors lie on small pages",
            "compare only with runs that have it so; "
            + ("THP_MEM_ALLOC_ENABLE=1 makes torch ask for them" if processor.huge_pages == "madvise" else _ALWAYS),
        )


_ALWAYS = "/sys/kernel/mm/transparent_hugepage/enabled sets it"


def _memory(host: HostReading, found: Found) -> None:
    if host.memory_limit_bytes is not None:
        found.add(
            "note",
            f"the control group allows {host.memory_limit_bytes / 2**30:.1f} GiB of memory",
            "choose models that fit, or raise the limit",
        )
    if host.swapped_bytes:
        found.add(
            "warns",
            f"{host.swapped_bytes / 2**20:.0f} MiB of this process are swapped out",
            "free memory and start again",
        )
    if host.swap_pages:
        found.add(
            "warns", f"the system swapped {host.swap_pages} pages while it was looked at", "free memory, or swapoff -a"
        )
