"""What NVIDIA's driver says about one GPU, as one record: the only file that calls NVML.

A figure that this GPU or this permission does not give is None and named in `GpuReading.unread`; where there is no
NVML at all, `Gpu` and `read_gpu` raise `NvmlMissing` with the driver's words. Rules over a reading are in
`profiler.devices.findings`.

Example::

    read_gpu("00000000:1B:00.0").sm_clock_hz
    with Gpu("00000000:1B:00.0") as gpu:  # holds the driver open: a quick look takes no initialisation
        gpu.quick().power_w
"""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Self

import pynvml

from roofline.record import Record

MHZ, MILLI, PERCENT = 1e6, 1e-3, 1e-2
"""NVML gives clocks in MHz, power in mW, energy in mJ, utilisation in percent."""

ComputeMode = Literal["default", "exclusive thread", "prohibited", "exclusive process"]
COMPUTE_MODES: dict[int, ComputeMode] = {
    pynvml.NVML_COMPUTEMODE_DEFAULT: "default",
    pynvml.NVML_COMPUTEMODE_EXCLUSIVE_THREAD: "exclusive thread",
    pynvml.NVML_COMPUTEMODE_PROHIBITED: "prohibited",
    pynvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS: "exclusive process",
}


class NvmlMissing(RuntimeError):
    """NVML cannot be used here; the message says why."""


class GpuProcess(Record):
    """A process with a context on the GPU."""

    pid: int
    """As the driver numbers it: in a container this may be a number of the host."""
    memory_bytes: int | None = None
    visible: bool
    """Whether this system has a process of that number."""
    sm_utilization: float | None = None
    """Fraction of the driver's last sampling period in which its kernels ran; None where that is not said."""

    @property
    def label(self) -> str:
        """The process in a few words."""
        return f"pid {self.pid}" if self.visible else f"pid {self.pid}, outside this container"


class GpuState(Record):
    """What changes while a GPU works; None where the driver does not say."""

    processes: tuple[GpuProcess, ...] | None = None
    sm_clock_hz: float | None = None
    memory_clock_hz: float | None = None
    event_reasons: int | None = None
    """Bits of nvmlDeviceGetCurrentClocksEventReasons."""
    temperature_c: float | None = None
    power_w: float | None = None
    """On most GPUs the mean of the last second (nvmlDeviceGetPowerUsage)."""
    energy_j: float | None = None
    """Since the driver was loaded."""
    unread: tuple[str, ...] = ()

    def foreign(self, own_context: bool) -> tuple[GpuProcess, ...]:
        """Processes that are not this one.

        In a container the driver may list us under a number of the host: where this process has a context of its own
        (`own_context`), the busiest of those that this system does not know is taken for it.
        """
        processes = self.processes or ()
        hidden = [process for process in processes if not process.visible]
        if not (own_context and hidden):
            return processes
        own = max(hidden, key=lambda process: process.sm_utilization or 0.0)
        return tuple(process for process in processes if process is not own)


class GpuReading(GpuState):
    """One look at all of a GPU."""

    name: str
    uuid: str
    driver: str
    memory_bytes: int
    memory_used_bytes: int
    utilization: float | None = None
    """Fraction of the driver's last sampling period in which a kernel ran."""
    mig: bool | None = None
    ecc: bool | None = None
    ecc_uncorrected: int | None = None
    """Uncorrected memory errors since the driver was loaded."""
    compute_mode: ComputeMode | None = None
    """Who may create contexts."""
    sm_clock_max_hz: float | None = None
    memory_clock_max_hz: float | None = None
    persistence: bool | None = None
    slowdown_temperature_c: float | None = None
    power_limit_w: float | None = None
    """Enforced now."""
    power_default_w: float | None = None


class Gpu:
    """The driver, held open for one GPU."""

    def __init__(self, pci_bus_id: str) -> None:
        """Open the GPU at a PCI address, "domain:bus:device.0"; CUDA's own numbering need not be NVML's.

        Raises NvmlMissing where the library, the driver or the device is not there.
        """
        self._address = pci_bus_id
        self._seen_us = 0
        """The driver's time of the last sample of a process's utilisation that was read."""
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise NvmlMissing(f"NVML cannot be used: {error}") from error
        try:
            self._gpu = pynvml.nvmlDeviceGetHandleByPciBusId(pci_bus_id.encode())
        except pynvml.NVMLError as error:
            self.close()
            raise self._refused(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the driver go; afterwards readings say nothing. NVML counts its users, so others keep theirs."""
        with suppress(pynvml.NVMLError):  # a driver that was lost cannot be let go
            pynvml.nvmlShutdown()

    def quick(self) -> GpuState:
        """What changes while the GPU works; a driver that was lost gives a state in which nothing is known."""
        ask = _Questions(self._gpu)
        return GpuState(**self._state(ask), unread=ask.unread)

    def read(self) -> GpuReading:
        """Everything. Raises NvmlMissing where the driver does not even name the GPU."""
        try:
            return self._read(_Questions(self._gpu))
        except pynvml.NVMLError as error:
            raise self._refused(error) from error

    def _refused(self, error: pynvml.NVMLError) -> NvmlMissing:
        return NvmlMissing(f"NVML does not read the GPU at {self._address}: {error}")

    def _state(self, ask: "_Questions") -> dict[str, Any]:
        return {
            "processes": ask("processes", self._processes),
            "sm_clock_hz": ask("sm clock", pynvml.nvmlDeviceGetClockInfo, pynvml.NVML_CLOCK_SM, unit=MHZ),
            "memory_clock_hz": ask("memory clock", pynvml.nvmlDeviceGetClockInfo, pynvml.NVML_CLOCK_MEM, unit=MHZ),
            "event_reasons": ask("event reasons", pynvml.nvmlDeviceGetCurrentClocksEventReasons),
            "temperature_c": ask("temperature", pynvml.nvmlDeviceGetTemperature, pynvml.NVML_TEMPERATURE_GPU),
            "power_w": ask("power", pynvml.nvmlDeviceGetPowerUsage, unit=MILLI),
            "energy_j": ask("energy", pynvml.nvmlDeviceGetTotalEnergyConsumption, unit=MILLI),
        }

    def _read(self, ask: "_Questions") -> GpuReading:
        gpu = self._gpu
        memory = pynvml.nvmlDeviceGetMemoryInfo(gpu)
        uncorrected = (pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC)
        slowdown = pynvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN
        max_clock = pynvml.nvmlDeviceGetMaxClockInfo
        figures = {
            **self._state(ask),
            "utilization": ask("utilization", lambda gpu: pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu, unit=PERCENT),
            "mig": ask("mig", lambda gpu: bool(pynvml.nvmlDeviceGetMigMode(gpu)[0])),
            "ecc": ask("ecc", lambda gpu: bool(pynvml.nvmlDeviceGetEccMode(gpu)[0])),
            "ecc_uncorrected": ask("ecc errors", pynvml.nvmlDeviceGetTotalEccErrors, *uncorrected),
            "compute_mode": ask("compute mode", lambda gpu: COMPUTE_MODES.get(pynvml.nvmlDeviceGetComputeMode(gpu))),
            "sm_clock_max_hz": ask("sm clock max", max_clock, pynvml.NVML_CLOCK_SM, unit=MHZ),
            "memory_clock_max_hz": ask("memory clock max", max_clock, pynvml.NVML_CLOCK_MEM, unit=MHZ),
            "persistence": ask("persistence", lambda gpu: bool(pynvml.nvmlDeviceGetPersistenceMode(gpu))),
            "slowdown_temperature_c": ask("slowdown", pynvml.nvmlDeviceGetTemperatureThreshold, slowdown),
            "power_limit_w": ask("power limit", pynvml.nvmlDeviceGetEnforcedPowerLimit, unit=MILLI),
            "power_default_w": ask("default power limit", pynvml.nvmlDeviceGetPowerManagementDefaultLimit, unit=MILLI),
        }
        return GpuReading(
            name=_text(pynvml.nvmlDeviceGetName(gpu)),
            uuid=_text(pynvml.nvmlDeviceGetUUID(gpu)),
            driver=_text(pynvml.nvmlSystemGetDriverVersion()),
            memory_bytes=int(memory.total),
            memory_used_bytes=int(memory.used),
            unread=ask.unread,
            **figures,
        )

    def _processes(self, gpu: Any) -> tuple[GpuProcess, ...]:
        """Compute and graphics contexts, without this process."""
        found = [*pynvml.nvmlDeviceGetComputeRunningProcesses(gpu), *pynvml.nvmlDeviceGetGraphicsRunningProcesses(gpu)]
        memory = {process.pid: process.usedGpuMemory for process in found if process.pid != os.getpid()}
        busy = self._utilization(gpu) if memory else {}
        return tuple(
            GpuProcess(
                pid=pid,
                memory_bytes=used,
                visible=Path(f"/proc/{pid}").exists(),
                sm_utilization=None if busy is None else busy.get(pid, 0.0),
            )
            for pid, used in memory.items()
        )

    def _utilization(self, gpu: Any) -> dict[int, float] | None:
        """Process -> most SM time in a sampling period since the last look; the driver lists those that had any."""
        try:
            samples = pynvml.nvmlDeviceGetProcessUtilization(gpu, self._seen_us)
        except pynvml.NVMLError as error:
            return {} if error.value == pynvml.NVML_ERROR_NOT_FOUND else None
        self._seen_us = max((int(sample.timeStamp) for sample in samples), default=self._seen_us)
        busy: dict[int, float] = {}
        for sample in samples:
            busy[sample.pid] = max(busy.get(sample.pid, 0.0), sample.smUtil * PERCENT)
        return busy


class _Questions:
    """Asks the driver for one figure after another, and keeps what it refused."""

    def __init__(self, gpu: Any) -> None:
        self._gpu = gpu
        self._refused: list[str] = []

    @property
    def unread(self) -> tuple[str, ...]:
        return tuple(self._refused)

    def __call__(self, name: str, call: Callable[..., Any], *of: int, unit: float | None = None) -> Any:
        try:
            value = call(self._gpu, *of)
        except pynvml.NVMLError as error:
            self._refused.append(f"{name}: {error}")
            return None
        return value if unit is None else value * unit


def read_gpu(pci_bus_id: str) -> GpuReading:
    """Everything about the GPU at a PCI address, once. Raises NvmlMissing as `Gpu` does."""
    with Gpu(pci_bus_id) as gpu:
        return gpu.read()


def _text(value: str | bytes) -> str:
    """nvidia-ml-py gives str; the bindings before it gave bytes."""
    return value.decode() if isinstance(value, bytes) else value
