"""The conditions of a machine at rest that spoil a measurement: rules over a reading of the host and one of a GPU.

The rules are functions of readings, so that recorded ones test them; `conditions` has severities, reasons and remedies.

Example: ``[f.what for f in host_findings(read_host()) if f.severity == "invalidates"]``
"""

from collections.abc import Iterable

from profiler.devices.conditions import (
    OTHERS_INVALIDATE,
    OTHERS_WARN,
    REASONS,
    SLOWER,
    STEAL_INVALIDATE,
    STEAL_WARN,
    Finding,
    finding,
    graded,
)
from profiler.devices.host import HostReading
from profiler.devices.watch import GpuReading

LISTED_CORES = 0.05
"""Fraction of one core; a process that takes less is not worth stopping, as `OTHERS_WARN`."""
THERMAL_MARGIN_C = 10.0
"""A loaded GPU warms by more than this within a run's heat-up."""
POWER_MARGIN_W = 1.0
"""The driver rounds limits to a watt."""
MEMORY_MARGIN_BYTES = 2 << 30
"""Bytes that exceed the driver's own memory and one CUDA context together."""


def host_findings(host: HostReading, on_host: bool = True) -> tuple[Finding, ...]:
    """Findings about the host of measurements on its own processors (`on_host`) or on an accelerator.

    An accelerator depends on the host too, which issues its kernels; what only matters to work on the CPU is left out.
    """
    return (*_other_work(host), *_threads(host), *_processor(host, on_host), *_host_memory(host))


def _other_work(host: HostReading) -> Iterable[Finding]:
    others, steal = host.busy_others_cores or 0.0, host.steal_fraction or 0.0
    if severity := graded(others / host.cores, OTHERS_WARN, OTHERS_INVALIDATE):
        listed = [process for process in host.busiest[:3] if process.cores >= LISTED_CORES]
        names = ", ".join(f"{p.name} ({p.pid}): {p.cores:.0%} of a core" for p in listed)
        what = f"other work takes {others:.2f} of {host.cores} cores" + (f": {names}" if names else "")
        yield finding("other work", what, severity)
    if severity := graded(steal, STEAL_WARN, STEAL_INVALIDATE):
        yield finding("steal", f"the hypervisor takes {steal:.1%} of the cores' time (steal)", severity)
    if host.load_1min is not None and host.load_1min > host.host_cores:
        what = f"the load average of the last minute is {host.load_1min:.2f} on {host.host_cores} cores"
        yield finding("load", what)


def _threads(host: HostReading) -> Iterable[Finding]:
    threads, physical = host.threads, host.processor.physical_cores
    cores = physical or host.cores
    if threads is not None and threads > host.cores:
        yield finding("threads > cores", f"torch uses {threads} threads on {host.cores} cores", cores=cores)
    elif threads is not None and threads > cores:
        yield finding("threads > physical", f"torch uses {threads} threads on {cores} physical cores", cores=cores)
    elif threads is not None and threads < cores:
        known = f"{cores} physical cores" if physical else f"{cores} cores (often one a physical core)"
        yield finding("threads < cores", f"torch uses {threads} threads of {known}", cores=cores)
    if host.cores < host.host_cores:
        yield finding("affinity", f"this process may use {host.cores} of {host.host_cores} cores")
    if (quota := host.cpu_quota_cores) is not None and quota < host.cores:
        what = f"the control group grants {quota:g} cores' time on {host.cores} cores"
        yield finding("cpu quota", what, cores=max(1, int(quota)))


def _processor(host: HostReading, on_host: bool) -> Iterable[Finding]:
    processor = host.processor
    if slow := [name for name in host.governors if name != "performance"]:
        yield finding("governor", f"the frequency governor is {', '.join(slow)}, not performance")
    if processor.boost is not None:
        yield finding("boost", f"boost is {'on' if processor.boost else 'off'}")
    if processor.virtual:
        yield finding("virtual", "this is a virtual machine")
    if (nodes := processor.numa_nodes) is not None and nodes > 1:
        name = "numa" if on_host else "numa, accelerator"
        yield finding(name, f"threads and memory may lie on {nodes} NUMA nodes")
    if on_host and processor.huge_pages in ("madvise", "never"):
        always = "/sys/kernel/mm/transparent_hugepage/enabled sets it"
        how = "THP_MEM_ALLOC_ENABLE=1 makes torch ask for them" if processor.huge_pages == "madvise" else always
        yield finding("huge pages", f"transparent huge pages: {processor.huge_pages}", how=how)


def _host_memory(host: HostReading) -> Iterable[Finding]:
    if host.memory_limit_bytes is not None:
        what = f"the control group allows {host.memory_limit_bytes / 2**30:.1f} GiB of memory"
        yield finding("memory limit", what)
    if host.swapped_bytes:
        yield finding("swapped", f"{host.swapped_bytes / 2**20:.0f} MiB of this process are swapped out")
    if host.swap_pages:
        yield finding("swapping", f"the system swapped {host.swap_pages} pages while it was looked at")
    if host.unread:
        yield finding("host unread", f"not known here: {', '.join(host.unread)}")


def gpu_findings(gpu: GpuReading, own_context: bool = False, own_bytes: int = 0) -> tuple[Finding, ...]:
    """Findings about one GPU.

    `own_context`: this process already uses CUDA, so one unknown process may be itself; `own_bytes`: what its
    tensors hold.
    """
    return (*_gpu_use(gpu, own_context, own_bytes), *_gpu_state(gpu))


def _gpu_use(gpu: GpuReading, own_context: bool, own_bytes: int) -> Iterable[Finding]:
    foreign, used = gpu.foreign(own_context), gpu.memory_used_bytes - own_bytes
    if foreign and not gpu.mig:
        busy, names = gpu.utilization or 0.0, ", ".join(process.label for process in foreign)
        what = f"{len(foreign)} other process(es) on the GPU ({names})"
        yield (
            finding("foreign, busy", f"{what}, busy {busy:.0%} of the time") if busy else finding("foreign, idle", what)
        )
    if gpu.mig:
        yield finding("mig", "MIG is on")
    elif used > MEMORY_MARGIN_BYTES:
        what = f"{used / 2**30:.1f} of {gpu.memory_bytes / 2**30:.1f} GiB of the GPU's memory are in use"
        yield finding("memory in use", what)
    if gpu.compute_mode is not None and gpu.compute_mode != "default":
        name = "prohibited" if gpu.compute_mode == "prohibited" else "exclusive"
        yield finding(name, f"the compute mode is {gpu.compute_mode}")


def _gpu_state(gpu: GpuReading) -> Iterable[Finding]:
    if gpu.ecc is False:
        yield finding("ecc off", "ECC is off")
    if gpu.ecc_uncorrected:
        yield finding("memory errors", f"{gpu.ecc_uncorrected} uncorrected memory errors since the driver was loaded")
    for bit, what, severity, mend in REASONS:
        if (gpu.event_reasons or 0) & bit:
            yield Finding(severity=severity, what=what, why=SLOWER, mend=mend)
    clock, highest = gpu.sm_clock_hz, gpu.sm_clock_max_hz
    if clock and highest and clock != highest:
        yield finding("clock", f"the clock is not held: {clock / 1e6:.0f} MHz now, up to {highest / 1e6:.0f} MHz")
    if gpu.persistence is False:
        yield finding("persistence", "persistence mode is off")
    hot, limit, default = gpu.slowdown_temperature_c, gpu.power_limit_w, gpu.power_default_w
    if gpu.temperature_c is not None and hot is not None and gpu.temperature_c > hot - THERMAL_MARGIN_C:
        yield finding("hot", f"{gpu.temperature_c:.0f} °C; it slows down at {hot:.0f} °C")
    if limit is not None and default is not None and limit < default - POWER_MARGIN_W:
        what = f"power is capped at {limit:.0f} W; the default is {default:.0f} W"
        yield finding("power limit", what, watts=default)
    if gpu.unread:
        yield finding("gpu unread", f"the driver does not say: {'; '.join(gpu.unread)}")
