"""What about a GPU spoils a measurement: other work on it, its clock, heat and power, its memory, its mode.

Example: ``[f.what for f in gpu_findings(read_gpu("00000000:1B:00.0"))]``
"""

from profiler.findings.finding import Finding, Found
from profiler.nvml import GpuReading
from profiler.record.measurement import Severity

THERMAL_MARGIN_C = 10.0
"""A loaded GPU warms by more than this within a run's heat-up."""
POWER_MARGIN_W = 1.0
"""The driver rounds limits to a watt."""
MEMORY_MARGIN_BYTES = 2 << 30
"""What the driver keeps for itself and one CUDA context take less together."""

POWER_CAP = 0x04
REASONS: tuple[tuple[int, str, Severity, str], ...] = (
    (POWER_CAP, "the power cap holds the clock down", "warns", "raise it: nvidia-smi -pl WATTS"),
    (0x08, "hardware slowdown (heat, power brake or supply)", "invalidates", "check cooling and power supply"),
    (0x20, "the driver slows the clock for heat", "invalidates", "check cooling, let it cool down"),
    (0x40, "hardware thermal slowdown", "invalidates", "check cooling, let it cool down"),
    (0x80, "the power brake is asserted", "invalidates", "check the power supply"),
    (0x02, "an application clock is set", "note", "reset it: nvidia-smi -rac"),
    (0x10, "sync boost ties the clock to other GPUs", "warns", "take this GPU out of its sync boost group"),
)
"""Bit, meaning, severity, remedy, from NVML's nvmlClocksEventReason* (nvml.h)."""


def gpu_findings(gpu: GpuReading, own_context: bool = False, own_bytes: int = 0) -> tuple[Finding, ...]:
    """Findings about one GPU.

    `own_context`: this process already uses CUDA, so one unknown process may be itself; `own_bytes`: what its
    tensors hold.
    """
    found = Found()
    _use(gpu, own_context, own_bytes, found)
    _memory_errors(gpu, found)
    _clock(gpu, found)
    _heat_and_power(gpu, found)
    if gpu.unread:
        found.add(
            "note",
            f"the driver does not say: {'; '.join(gpu.unread)}",
            "nothing, if the GPU or the container forbids it",
        )
    return found.all()


def _use(gpu: GpuReading, own_context: bool, own_bytes: int, found: Found) -> None:
    foreign = gpu.foreign(own_context)
    if foreign and not gpu.mig:
        busy = gpu.utilization is not None and gpu.utilization > 0
        found.add(
            "invalidates" if busy else "warns",
            f"{len(foreign)} other process(es) on the GPU ({', '.join(process.label for process in foreign)})"
            + (f", busy {gpu.utilization:.0%} of the time" if busy else ""),
            "stop them: nvidia-smi lists them",
        )
    if gpu.mig:
        found.add(
            "warns",
            "MIG is on: this is a slice of the device, and the datasheet is the whole one's",
            "measure a whole GPU",
        )
    elif (used := gpu.memory_used_bytes - own_bytes) > MEMORY_MARGIN_BYTES:
        found.add(
            "warns",
            f"{used / 2**30:.1f} of {gpu.memory_bytes / 2**30:.1f} GiB of the GPU's memory are in use",
            "free it: a process that has ended badly may still hold it (nvidia-smi, fuser -v /dev/nvidia*)",
        )
    if gpu.compute_mode == "prohibited":
        found.add("invalidates", "compute mode prohibited: no process may use CUDA here", "nvidia-smi -c DEFAULT")
    elif gpu.compute_mode in ("exclusive process", "exclusive thread"):
        found.add(
            "note",
            f"compute mode {gpu.compute_mode}: two processes cannot use the GPU at once",
            "nvidia-smi -c DEFAULT where both sides of a comparison run at once",
        )


def _memory_errors(gpu: GpuReading, found: Found) -> None:
    if gpu.ecc is False:
        found.add("note", "ECC is off", "compare only with runs without it; nvidia-smi -e 1 turns it on after a reset")
    if gpu.ecc_uncorrected:
        found.add("invalidates", f"{gpu.ecc_uncorrected} uncorrected memory errors", "reset or replace the GPU")


def _clock(gpu: GpuReading, found: Found) -> None:
    for bit, what, severity, mend in REASONS:
        if (gpu.event_reasons or 0) & bit:
            found.add(severity, what, mend)
    if gpu.sm_clock_hz and gpu.sm_clock_max_hz and gpu.sm_clock_hz != gpu.sm_clock_max_hz:
        found.add(
            "note",
            f"the clock is not held: {gpu.sm_clock_hz / 1e6:.0f} MHz now, up to {gpu.sm_clock_max_hz / 1e6:.0f} MHz",
            "to compare runs closely, hold it: nvidia-smi -lgc MHZ",
        )
    if gpu.persistence is False:
        found.add("note", "persistence mode is off: the first call waits for the driver", "nvidia-smi -pm 1")


def _heat_and_power(gpu: GpuReading, found: Found) -> None:
    hot = gpu.slowdown_temperature_c
    if gpu.temperature_c is not None and hot is not None and gpu.temperature_c > hot - THERMAL_MARGIN_C:
        found.add(
            "warns", f"{gpu.temperature_c:.0f} °C; it slows down at {hot:.0f} °C", "let it cool down, check the airflow"
        )
    limit, default = gpu.power_limit_w, gpu.power_default_w
    if limit is not None and default is not None and limit < default - POWER_MARGIN_W:
        found.add(
            "warns",
            f"power is capped at {limit:.0f} W; the default is {default:.0f} W",
            f"nvidia-smi -pl {default:.0f}",
        )
