"""Conditions that spoil a measurement: rules over readings of the host, a GPU, environment variables and versions.

The rules are functions of readings, so that recorded ones test them; `conditions` has severities, reasons and remedies.
A variable that is not set, or set to what it means anyway, is no finding. Each kind of device has its own list.

Example: ``[f.what for f in host_findings(read_host()) if f.severity == "invalidates"]``
"""

import importlib.metadata
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.version import Version

from profiler.devices.activity import HostReading
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
from profiler.devices.watch import GpuReading
from profiler.record.measurement import Severity
from roofline.units import percent, whole_percent

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
        names = ", ".join(f"{p.name} ({p.pid}): {whole_percent(p.cores)} of a core" for p in listed)
        what = f"other work takes {others:.2f} of {host.cores} cores" + (f": {names}" if names else "")
        yield finding("other work", what, severity)
    if severity := graded(steal, STEAL_WARN, STEAL_INVALIDATE):
        yield finding("steal", f"the hypervisor takes {percent(steal)} of the cores' time (steal)", severity)
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
    foreign = gpu.foreign(own_context)
    used = None if gpu.memory_used_bytes is None else gpu.memory_used_bytes - own_bytes
    if foreign and not gpu.mig:
        busy, names = gpu.utilization or 0.0, ", ".join(process.label for process in foreign)
        what = f"{len(foreign)} other process(es) on the GPU ({names})"
        used_by = f"{what}, busy {whole_percent(busy)} of the time"
        yield finding("foreign, busy", used_by) if busy else finding("foreign, idle", what)
    if gpu.mig:
        yield finding("mig", "MIG is on")
    elif used is not None and used > MEMORY_MARGIN_BYTES:
        whole = "" if gpu.memory_bytes is None else f" of {gpu.memory_bytes / 2**30:.1f}"
        what = f"{used / 2**30:.1f}{whole} GiB of the GPU's memory are in use"
        yield finding("memory in use", what)
    if gpu.compute_mode is not None and gpu.compute_mode != "default":
        name = "prohibited" if gpu.compute_mode == "prohibited" else "exclusive"
        yield finding(name, f"the compute mode is {gpu.compute_mode}")


def _gpu_state(gpu: GpuReading) -> Iterable[Finding]:
    if gpu.ecc is False:
        yield finding("ecc off", "ECC is off")
    if gpu.ecc_uncorrected:
        yield finding("memory errors", f"{gpu.ecc_uncorrected} uncorrected memory errors since the driver was loaded")
    if gpu.remapped_rows:
        yield finding("remapped", f"{gpu.remapped_rows} rows of the memory are remapped")
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


DISTRIBUTION = "roofcal"
DISK_WARN_BYTES = 1 << 30
"""A run takes megabytes, a GPU campaign some hundred of them."""


class Variable(NamedTuple):
    """A variable and what it does."""

    name: str
    severity: Severity
    does: str
    harmless: tuple[str, ...] = ()
    """Values, in lower case, with which it changes nothing."""


OFF = ("0", "false", "off", "no")
ISA = "kernels may not use instructions that this processor has"

COMMON_VARIABLES = (Variable("LD_PRELOAD", "note", "a library comes first: often another memory allocator"),)
CUDA_VARIABLES = (
    Variable("CUDA_LAUNCH_BLOCKING", "warns", "every launch waits for its kernel, so passes are slower", ("0",)),
    Variable("PYTORCH_NO_CUDA_MEMORY_CACHING", "warns", "every tensor is a cudaMalloc"),
    Variable("PYTORCH_CUDA_ALLOC_CONF", "note", "it changes how torch takes memory"),
    Variable("PYTORCH_ALLOC_CONF", "note", "it changes how torch takes memory"),
    Variable("NVIDIA_TF32_OVERRIDE", "warns", "it sets TF32 for fp32 matmuls, whatever the program asks for"),
    Variable("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "warns", "it turns on TF32 for fp32 matmuls", OFF),
    Variable("CUBLAS_WORKSPACE_CONFIG", "warns", "it limits the algorithms that cuBLAS can choose"),
    Variable("CUBLASLT_WORKSPACE_SIZE", "note", "it changes the algorithms that cuBLASLt can choose"),
    Variable("CUDA_DEVICE_MAX_CONNECTIONS", "note", "it changes which streams can run at once"),
    Variable("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "warns", "this process has a part of the SMs only", ("100",)),
)
CPU_VARIABLES = (
    Variable("OMP_DYNAMIC", "warns", "the number of threads may change within a pass", OFF),
    Variable("OMP_WAIT_POLICY", "warns", "threads sleep between operations and must be woken", ("active",)),
    Variable("KMP_BLOCKTIME", "warns", "it sets how long Intel's OpenMP threads stay awake between operations",
             ("200", "200ms")),
    Variable("OMP_PROC_BIND", "note", "it binds threads to places", ("false",)),
    Variable("OMP_PLACES", "note", "it says where threads may be bound"),
    Variable("GOMP_CPU_AFFINITY", "note", "it binds threads to CPUs"),
    Variable("KMP_AFFINITY", "note", "it binds Intel's OpenMP threads to CPUs", ("none", "disabled")),
    Variable("MKL_CBWR", "warns", f"{ISA}, for the same bits everywhere", ("off",)),
    Variable("MKL_ENABLE_INSTRUCTIONS", "warns", ISA),
    Variable("MKL_DEBUG_CPU_TYPE", "warns", "MKL takes this processor for another"),
    Variable("ONEDNN_MAX_CPU_ISA", "warns", ISA, ("all", "default")),
    Variable("DNNL_MAX_CPU_ISA", "warns", ISA, ("all", "default")),
    Variable("ATEN_CPU_CAPABILITY", "warns", ISA),
    Variable("ONEDNN_DEFAULT_FPMATH_MODE", "warns", "fp32 is computed in a smaller type", ("strict",)),
    Variable("MKL_VERBOSE", "warns", "a line is printed for every call", OFF),
    Variable("ONEDNN_VERBOSE", "warns", "a line is printed for every call", (*OFF, "none")),
)  # fmt: skip


def variable_findings(
    environ: Mapping[str, str], variables: Sequence[Variable], threads: int | None = None
) -> tuple[Finding, ...]:
    """Findings about the environment; `threads` is what torch uses within an operation on the host's processors."""
    findings = []
    for name, severity, does, harmless in (*variables, *COMMON_VARIABLES):
        value = environ.get(name, "").strip()
        if value and value.lower() not in harmless:
            mend = f"unset {name}" + ("" if severity == "warns" else ", or compare only with runs that set it so")
            findings.append(Finding(severity=severity, what=f"{name}={value} is set", why=does, mend=mend))
    mkl = environ.get("MKL_NUM_THREADS", "").strip()
    if threads is not None and mkl.isdigit() and int(mkl) != threads:
        findings.append(finding("mkl threads", f"MKL_NUM_THREADS={mkl}, while torch uses {threads} threads"))
    return tuple(findings)


def disk_findings(free_bytes: int, folder: str) -> tuple[Finding, ...]:
    """A finding where there is little space under the folder of results, else none."""
    if free_bytes >= DISK_WARN_BYTES:
        return ()
    return (finding("disk", f"{free_bytes / 2**20:.0f} MiB are free for results under {folder}"),)


def installed(name: str) -> str | None:
    """The installed version of a distribution."""
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)
    return None


def requirements() -> list[str]:
    """Return the requirements of this distribution's own metadata; empty in a checkout that is not installed."""
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.requires(DISTRIBUTION) or []
    return []


def version_findings(requirements: Sequence[str], versions: Mapping[str, str | None]) -> tuple[Finding, ...]:
    """Requirements, as in a distribution's metadata, that the installed versions do not meet; extras are left out."""
    if not requirements:
        return (finding("not installed", f"{DISTRIBUTION} is not installed"),)
    findings = []
    for needed in map(Requirement, requirements):
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        have = versions.get(needed.name)
        if have is None or not needed.specifier.contains(Version(have), prereleases=True):
            what = f"{needed.name} {have or 'is missing'}; {DISTRIBUTION} needs {needed.specifier}"
            findings.append(finding("versions", what, requirement=needed))
    return tuple(findings)
