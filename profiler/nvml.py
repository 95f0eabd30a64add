"""What NVIDIA's driver says about one GPU, as one record: the only file that calls NVML.

A figure that this GPU or this permission does not give is None and named in `GpuReading.unread`; where there is no
NVML at all, `read_gpu` raises `NvmlMissing` with the driver's words. Rules over a reading are in `profiler.findings`.

Example: ``read_gpu("00000000:1B:00.0").sm_clock_hz``
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pynvml

from roofline.record import Record

T = TypeVar("T")


class NvmlMissing(RuntimeError):
    """NVML cannot be used here; the message says why."""


class GpuProcess(Record):
    """A process with a context on the GPU."""

    pid: int
    """As the driver numbers it: in a container this may be a number of the host."""
    memory_bytes: int | None = None
    visible: bool
    """Whether this system has a process of that number."""


class GpuReading(Record):
    """One look at a GPU; None where the driver does not say."""

    name: str
    uuid: str
    driver: str
    memory_bytes: int
    memory_used_bytes: int
    processes: tuple[GpuProcess, ...] | None = None
    utilization: float | None = None
    """Fraction of the driver's last sampling period in which a kernel ran."""
    mig: bool | None = None
    ecc: bool | None = None
    ecc_uncorrected: int | None = None
    """Uncorrected memory errors since the driver was loaded."""
    sm_clock_hz: float | None = None
    sm_clock_max_hz: float | None = None
    memory_clock_hz: float | None = None
    memory_clock_max_hz: float | None = None
    event_reasons: int | None = None
    """Bits of nvmlDeviceGetCurrentClocksEventReasons."""
    persistence: bool | None = None
    temperature_c: float | None = None
    slowdown_temperature_c: float | None = None
    power_limit_w: float | None = None
    """Enforced now."""
    power_default_w: float | None = None
    unread: tuple[str, ...] = ()


def read_gpu(pci_bus_id: str) -> GpuReading:
    """Read the GPU at a PCI address, "domain:bus:device.0"; CUDA's own numbering need not be NVML's.

    Raises NvmlMissing where the library, the driver or the device is not there.
    """
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise NvmlMissing(f"NVML cannot be used: {error}") from error
    try:
        return _read(pynvml.nvmlDeviceGetHandleByPciBusId(pci_bus_id.encode()))
    except pynvml.NVMLError as error:
        raise NvmlMissing(f"NVML does not read the GPU at {pci_bus_id}: {error}") from error
    finally:
        pynvml.nvmlShutdown()


def _read(gpu: Any) -> GpuReading:
    unread: list[str] = []

    def ask(name: str, call: Callable[[], T]) -> T | None:
        try:
            return call()
        except pynvml.NVMLError as error:
            unread.append(f"{name}: {error}")
            return None

    def clock(name: str, call: Callable[..., int], kind: int) -> float | None:
        megahertz = ask(name, lambda: call(gpu, kind))
        return None if megahertz is None else megahertz * 1e6

    def watts(name: str, call: Callable[[Any], int]) -> float | None:
        milliwatts = ask(name, lambda: call(gpu))
        return None if milliwatts is None else milliwatts / 1e3

    memory = pynvml.nvmlDeviceGetMemoryInfo(gpu)
    use = ask("utilization", lambda: pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu)
    mig = ask("mig", lambda: pynvml.nvmlDeviceGetMigMode(gpu)[0])
    ecc = ask("ecc", lambda: pynvml.nvmlDeviceGetEccMode(gpu)[0])
    persistence = ask("persistence", lambda: pynvml.nvmlDeviceGetPersistenceMode(gpu))
    uncorrected = (pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC)
    slowdown = pynvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN
    return GpuReading(
        name=_text(pynvml.nvmlDeviceGetName(gpu)),
        uuid=_text(pynvml.nvmlDeviceGetUUID(gpu)),
        driver=_text(pynvml.nvmlSystemGetDriverVersion()),
        memory_bytes=int(memory.total),
        memory_used_bytes=int(memory.used),
        processes=ask("processes", lambda: _processes(gpu)),
        utilization=None if use is None else use / 100,
        mig=None if mig is None else bool(mig),
        ecc=None if ecc is None else bool(ecc),
        ecc_uncorrected=ask("ecc errors", lambda: pynvml.nvmlDeviceGetTotalEccErrors(gpu, *uncorrected)),
        sm_clock_hz=clock("sm clock", pynvml.nvmlDeviceGetClockInfo, pynvml.NVML_CLOCK_SM),
        sm_clock_max_hz=clock("sm clock max", pynvml.nvmlDeviceGetMaxClockInfo, pynvml.NVML_CLOCK_SM),
        memory_clock_hz=clock("memory clock", pynvml.nvmlDeviceGetClockInfo, pynvml.NVML_CLOCK_MEM),
        memory_clock_max_hz=clock("memory clock max", pynvml.nvmlDeviceGetMaxClockInfo, pynvml.NVML_CLOCK_MEM),
        event_reasons=ask("event reasons", lambda: pynvml.nvmlDeviceGetCurrentClocksEventReasons(gpu)),
        persistence=None if persistence is None else bool(persistence),
        temperature_c=ask("temperature", lambda: pynvml.nvmlDeviceGetTemperature(gpu, pynvml.NVML_TEMPERATURE_GPU)),
        slowdown_temperature_c=ask("slowdown", lambda: pynvml.nvmlDeviceGetTemperatureThreshold(gpu, slowdown)),
        power_limit_w=watts("power limit", pynvml.nvmlDeviceGetEnforcedPowerLimit),
        power_default_w=watts("default power limit", pynvml.nvmlDeviceGetPowerManagementDefaultLimit),
        unread=tuple(unread),
    )


def _processes(gpu: Any) -> tuple[GpuProcess, ...]:
    """Compute and graphics contexts, without this process."""
    found = [*pynvml.nvmlDeviceGetComputeRunningProcesses(gpu), *pynvml.nvmlDeviceGetGraphicsRunningProcesses(gpu)]
    memory = {process.pid: process.usedGpuMemory for process in found if process.pid != os.getpid()}
    return tuple(
        GpuProcess(pid=pid, memory_bytes=used, visible=Path(f"/proc/{pid}").exists()) for pid, used in memory.items()
    )


def _text(value: str | bytes) -> str:
    """nvidia-ml-py gives str; the bindings before it gave bytes."""
    return value.decode() if isinstance(value, bytes) else value
