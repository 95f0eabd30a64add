"""What about this machine spoils a measurement, and how to mend it: rules over readings, with their reasons.

The rules are functions of a reading, so that recorded readings test them. Three severities:

- "note": worth knowing when figures are compared; nothing needs to be done,
- "warns": figures are usable, with more noise or a lower peak than the device can give,
- "invalidates": what is measured now is not this device's speed; `doctor` exits with 4.

Example: ``[f.what for f in host_findings(read_host()) if f.severity == "invalidates"]``
"""

from typing import Literal

from profiler.host import HostReading
from profiler.nvml import GpuReading
from roofline.record import Record

Severity = Literal["note", "warns", "invalidates"]

OTHERS_WARN, OTHERS_INVALIDATE = 0.05, 0.5
"""Cores' worth of foreign CPU time ÷ cores. A parallel operation waits for its slowest thread, so that one part in 20
taken from one core already shows in a 5 % closure; at one half the scheduler's share is what is measured."""
LISTED_CORES = 0.05
"""Of one core; a process that takes less is not worth stopping, as `OTHERS_WARN`."""
STEAL_WARN, STEAL_INVALIDATE = 0.01, 0.10
"""Of all cores' time. 1 % is the size of a regression that is looked for; 10 % is twice the closure's tolerance."""
THERMAL_MARGIN_C = 10.0
"""A loaded GPU warms by more than this within a run's heat-up."""
POWER_MARGIN_W = 1.0
"""The driver rounds limits to a watt."""
DISK_WARN_BYTES = 1 << 30
"""A run takes megabytes, a GPU campaign some hundred of them."""

REASONS: tuple[tuple[int, str, Severity, str], ...] = (
    (0x04, "the power cap holds the clock down", "warns", "raise it: nvidia-smi -pl WATTS"),
    (0x08, "hardware slowdown (heat, power brake or supply)", "invalidates", "check cooling and power supply"),
    (0x20, "the driver slows the clock for heat", "invalidates", "check cooling, let it cool down"),
    (0x40, "hardware thermal slowdown", "invalidates", "check cooling, let it cool down"),
    (0x80, "the power brake is asserted", "invalidates", "check the power supply"),
    (0x02, "an application clock is set", "note", "reset it: nvidia-smi -rac"),
    (0x10, "sync boost ties the clock to other GPUs", "warns", "take this GPU out of its sync boost group"),
)
"""Bit, meaning, severity, remedy, from NVML's nvmlClocksEventReason* (nvml.h)."""


class Finding(Record):
    """One thing that was noticed."""

    severity: Severity
    what: str
    """With its figure, in one line."""
    mend: str
    """What to do about it, in one line."""


def host_findings(host: HostReading) -> tuple[Finding, ...]:
    """Findings about the host's processors and memory, which a GPU measurement depends on too."""
    found: list[Finding] = []

    def add(severity: Severity, what: str, mend: str) -> None:
        found.append(Finding(severity=severity, what=what, mend=mend))

    if (others := host.busy_others_cores) is not None and others > OTHERS_WARN * host.cores:
        names = ", ".join(
            f"{p.name} ({p.pid}): {p.cores:.0%} of a core" for p in host.busiest[:3] if p.cores >= LISTED_CORES
        )
        add(
            "invalidates" if others >= OTHERS_INVALIDATE * host.cores else "warns",
            f"other work takes {others:.2f} of {host.cores} cores" + (f": {names}" if names else ""),
            "stop it, or measure when it is done",
        )
    if (steal := host.steal_fraction) is not None and steal > STEAL_WARN:
        add(
            "invalidates" if steal >= STEAL_INVALIDATE else "warns",
            f"the hypervisor takes {steal:.1%} of the cores' time (steal)",
            "use a machine with dedicated cores, or measure at another time",
        )
    if host.load_1min is not None and host.load_1min > host.host_cores:
        add(
            "note",
            f"load average {host.load_1min:.2f} on {host.host_cores} cores over the last minute",
            "wait until it falls if the work was not your own",
        )
    if slow := [name for name in host.governors if name != "performance"]:
        add(
            "warns",
            f"frequency governor {', '.join(slow)}: the clock follows the load",
            "cpupower frequency-set -g performance",
        )
    if host.threads is not None and host.threads > host.cores:
        add(
            "invalidates",
            f"torch uses {host.threads} threads on {host.cores} cores",
            f"set OMP_NUM_THREADS={host.cores}",
        )
    elif host.threads is not None and host.threads < host.cores:
        add(
            "note",
            f"torch uses {host.threads} threads of {host.cores} cores (often one a physical core)",
            f"set OMP_NUM_THREADS={host.cores} to use them all",
        )
    if host.cores < host.host_cores:
        add(
            "note",
            f"this process may use {host.cores} of {host.host_cores} cores",
            "compare only with runs on as many; widen it with taskset or the container's cpuset",
        )
    if (quota := host.cpu_quota_cores) is not None and quota < host.cores:
        add(
            "warns",
            f"the control group grants {quota:g} cores' time on {host.cores} cores: threads are stopped in mid-pass",
            f"raise the quota, or set OMP_NUM_THREADS={max(1, int(quota))} and pin as many cores",
        )
    if host.memory_limit_bytes is not None:
        add(
            "note",
            f"the control group allows {host.memory_limit_bytes / 2**30:.1f} GiB of memory",
            "choose models that fit, or raise the limit",
        )
    if host.swapped_bytes:
        add(
            "warns",
            f"{host.swapped_bytes / 2**20:.0f} MiB of this process are swapped out",
            "free memory and start again",
        )
    if host.swap_pages:
        add("warns", f"the system swapped {host.swap_pages} pages while it was looked at", "free memory, or swapoff -a")
    if host.unread:
        add(
            "note",
            f"not known here: {', '.join(host.unread)}",
            "run on Linux with /proc and /sys visible for all checks",
        )
    return tuple(found)


def gpu_findings(gpu: GpuReading, own_context: bool = False) -> tuple[Finding, ...]:
    """Findings about one GPU. `own_context`: this process already uses CUDA, so one unknown process may be itself."""
    found: list[Finding] = []

    def add(severity: Severity, what: str, mend: str) -> None:
        found.append(Finding(severity=severity, what=what, mend=mend))

    foreign = _foreign(gpu, own_context)
    if foreign and not gpu.mig:
        busy = gpu.utilization is not None and gpu.utilization > 0
        add(
            "invalidates" if busy else "warns",
            f"{len(foreign)} other process(es) on the GPU ({', '.join(foreign)})"
            + (f", busy {gpu.utilization:.0%} of the time" if busy else ""),
            "stop them: nvidia-smi lists them",
        )
    if gpu.mig:
        add(
            "warns",
            "MIG is on: this is a slice of the device, and the datasheet is the whole one's",
            "measure a whole GPU",
        )
    if gpu.ecc is False:
        add("note", "ECC is off", "compare only with runs without it; nvidia-smi -e 1 turns it on after a reset")
    if gpu.ecc_uncorrected:
        add("invalidates", f"{gpu.ecc_uncorrected} uncorrected memory errors", "reset or replace the GPU")
    for bit, what, severity, mend in REASONS:
        if (gpu.event_reasons or 0) & bit:
            add(severity, what, mend)
    if gpu.sm_clock_hz and gpu.sm_clock_max_hz and gpu.sm_clock_hz != gpu.sm_clock_max_hz:
        add(
            "note",
            f"the clock is not held: {gpu.sm_clock_hz / 1e6:.0f} MHz now, up to {gpu.sm_clock_max_hz / 1e6:.0f} MHz",
            "to compare runs closely, hold it: nvidia-smi -lgc MHZ",
        )
    if gpu.persistence is False:
        add("note", "persistence mode is off: the first call waits for the driver", "nvidia-smi -pm 1")
    hot = gpu.slowdown_temperature_c
    if gpu.temperature_c is not None and hot is not None and gpu.temperature_c > hot - THERMAL_MARGIN_C:
        add(
            "warns", f"{gpu.temperature_c:.0f} °C; it slows down at {hot:.0f} °C", "let it cool down, check the airflow"
        )
    limit, default = gpu.power_limit_w, gpu.power_default_w
    if limit is not None and default is not None and limit < default - POWER_MARGIN_W:
        add(
            "warns",
            f"power is capped at {limit:.0f} W; the default is {default:.0f} W",
            f"nvidia-smi -pl {default:.0f}",
        )
    if gpu.unread:
        add(
            "note",
            f"the driver does not say: {'; '.join(gpu.unread)}",
            "nothing, if the GPU or the container forbids it",
        )
    return tuple(found)


def _foreign(gpu: GpuReading, own_context: bool) -> list[str]:
    """Processes that are not this one. Inside a container the driver may list us under a number of the host."""
    processes = gpu.processes or ()
    hidden = [process for process in processes if not process.visible]
    if own_context and hidden:
        processes = tuple(process for process in processes if process is not hidden[0])
    return [f"pid {p.pid}" if p.visible else f"pid {p.pid}, outside this container" for p in processes]


def disk_findings(free_bytes: int, folder: str) -> tuple[Finding, ...]:
    """Whether the results fit."""
    if free_bytes >= DISK_WARN_BYTES:
        return ()
    what = f"{free_bytes / 2**20:.0f} MiB free for results under {folder}"
    return (Finding(severity="warns", what=what, mend="free some space, or choose another folder with --results"),)
