"""The figures that NVIDIA's driver states of one GPU, as one record. Only this file calls NVML.

A figure that this GPU or this permission does not give is None and named in `unread`. Where NVML cannot be used at all,
`Gpu` and `read_gpu` raise `NvmlMissing` with the driver's words. This file is imported only where a GPU is looked at.

Example::

    read_gpu("00000000:1B:00.0").sm_clock_hz
    with Gpu("00000000:1B:00.0") as gpu:  # holds the driver open: a quick look takes no initialisation
        gpu.quick().power_w
"""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import pynvml

from profiler.devices.watch import ComputeMode, GpuProcess, GpuReading, GpuState, GpuWatch, HostWatch

MHZ, MILLI, PERCENT = 1e6, 1e-3, 1e-2
"""NVML gives clocks in MHz, power in mW, energy in mJ, utilisation in percent."""

COMPUTE_MODES: dict[int, ComputeMode] = {
    pynvml.NVML_COMPUTEMODE_DEFAULT: "default",
    pynvml.NVML_COMPUTEMODE_EXCLUSIVE_THREAD: "exclusive thread",
    pynvml.NVML_COMPUTEMODE_PROHIBITED: "prohibited",
    pynvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS: "exclusive process",
}


class NvmlMissing(RuntimeError):
    """NVML cannot be used here; the message says why."""


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
        """Read the figures that change while the GPU works; those of a driver that was lost are None."""
        ask = _Questions(self._gpu)
        return GpuState(**self._state(ask), unread=tuple(ask.unread))

    def read(self) -> GpuReading:
        """Read everything. Raises NvmlMissing where the driver refuses every figure of the GPU."""
        ask = _Questions(self._gpu)
        reading = self._read(ask)
        if not ask.answered:
            raise self._refused(ask.unread[0])
        return reading

    def _refused(self, error: object) -> NvmlMissing:
        return NvmlMissing(f"NVML does not read the GPU at {self._address}: {error}")

    def _state(self, ask: "_Questions") -> dict[str, Any]:
        return {
            "processes": self._processes(ask),
            "sm_clock_hz": ask("sm clock", pynvml.nvmlDeviceGetClockInfo, pynvml.NVML_CLOCK_SM, unit=MHZ),
            "memory_clock_hz": ask("memory clock", pynvml.nvmlDeviceGetClockInfo, pynvml.NVML_CLOCK_MEM, unit=MHZ),
            "event_reasons": ask("event reasons", pynvml.nvmlDeviceGetCurrentClocksEventReasons),
            "temperature_c": ask("temperature", pynvml.nvmlDeviceGetTemperature, pynvml.NVML_TEMPERATURE_GPU),
            "power_w": ask("power", pynvml.nvmlDeviceGetPowerUsage, unit=MILLI),
            "energy_j": ask("energy", pynvml.nvmlDeviceGetTotalEnergyConsumption, unit=MILLI),
        }

    def _read(self, ask: "_Questions") -> GpuReading:
        memory = ask("memory", pynvml.nvmlDeviceGetMemoryInfo)
        uncorrected = (pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC)
        slowdown = pynvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN
        max_clock = pynvml.nvmlDeviceGetMaxClockInfo
        figures = {
            **self._state(ask),
            "utilization": ask("utilization", lambda gpu: pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu, unit=PERCENT),
            "mig": ask("mig", lambda gpu: bool(pynvml.nvmlDeviceGetMigMode(gpu)[0])),
            "ecc": ask("ecc", lambda gpu: bool(pynvml.nvmlDeviceGetEccMode(gpu)[0])),
            "ecc_uncorrected": ask("ecc errors", pynvml.nvmlDeviceGetTotalEccErrors, *uncorrected),
            "remapped_rows": ask("remapped rows", lambda gpu: sum(pynvml.nvmlDeviceGetRemappedRows(gpu)[:2])),
            "compute_mode": ask("compute mode", lambda gpu: COMPUTE_MODES.get(pynvml.nvmlDeviceGetComputeMode(gpu))),
            "sm_clock_max_hz": ask("sm clock max", max_clock, pynvml.NVML_CLOCK_SM, unit=MHZ),
            "memory_clock_max_hz": ask("memory clock max", max_clock, pynvml.NVML_CLOCK_MEM, unit=MHZ),
            "persistence": ask("persistence", lambda gpu: bool(pynvml.nvmlDeviceGetPersistenceMode(gpu))),
            "slowdown_temperature_c": ask("slowdown", pynvml.nvmlDeviceGetTemperatureThreshold, slowdown),
            "power_limit_w": ask("power limit", pynvml.nvmlDeviceGetEnforcedPowerLimit, unit=MILLI),
            "power_default_w": ask("default power limit", pynvml.nvmlDeviceGetPowerManagementDefaultLimit, unit=MILLI),
        }
        return GpuReading(
            name=ask("name", lambda gpu: _text(pynvml.nvmlDeviceGetName(gpu))),
            uuid=ask("uuid", lambda gpu: _text(pynvml.nvmlDeviceGetUUID(gpu))),
            driver=ask.system("driver version", lambda: _text(pynvml.nvmlSystemGetDriverVersion())),
            memory_bytes=None if memory is None else int(memory.total),
            memory_used_bytes=None if memory is None else int(memory.used),
            **figures,
            unread=tuple(ask.unread),
        )

    def _processes(self, ask: "_Questions") -> tuple[GpuProcess, ...] | None:
        """Compute and graphics contexts, without this process; None where the driver lists neither."""
        lists = (
            ask("compute processes", pynvml.nvmlDeviceGetComputeRunningProcesses),
            ask("graphics processes", pynvml.nvmlDeviceGetGraphicsRunningProcesses),
        )
        if all(running is None for running in lists):
            ask.unread[-2:] = ["processes" + ask.unread[-1].removeprefix("graphics processes")]  # one figure
            return None
        running = [process for processes in lists for process in processes or ()]
        memory = {process.pid: process.usedGpuMemory for process in running if process.pid != os.getpid()}
        busy = self._utilization(self._gpu) if memory else {}
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
        self.unread: list[str] = []
        self.answered = 0
        """Figures of the GPU that the driver gave."""

    def __call__(self, name: str, call: Callable[..., Any], *of: int, unit: float | None = None) -> Any:
        value = self.system(name, lambda: call(self._gpu, *of))
        self.answered += value is not None
        return value if unit is None or value is None else value * unit

    def system(self, name: str, call: Callable[[], Any]) -> Any:
        """A figure of the driver itself, which does not show that the GPU answers."""
        try:
            return call()
        except pynvml.NVMLError as error:
            self.unread.append(f"{name}: {error}")
        except (AttributeError, TypeError, ValueError) as error:  # a binding or a driver that lacks the call
            self.unread.append(f"{name}: {type(error).__name__}: {error}")
        return None


def read_gpu(pci_bus_id: str) -> GpuReading:
    """Everything about the GPU at a PCI address, once. Raises NvmlMissing as `Gpu` does."""
    with Gpu(pci_bus_id) as gpu:
        return gpu.read()


def gpu_uuids() -> list[str]:
    """UUIDs of the GPUs of this host, in the driver's order. Raises NvmlMissing where the driver cannot be asked."""
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        uuids = [_text(pynvml.nvmlDeviceGetUUID(handle)) for handle in handles]
        pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        raise NvmlMissing(f"NVML cannot be used: {error}") from error
    return uuids


def gpu_watch(pci_bus_id: str) -> GpuWatch:
    """The watch of the GPU at a PCI address. Without NVML its figures are None and `unread` says why, once asked."""
    try:
        gpu = Gpu(pci_bus_id)
    except NvmlMissing as error:
        nothing = GpuState(unread=(str(error),))
        return GpuWatch(lambda: nothing, HostWatch())
    return GpuWatch(gpu.quick, HostWatch(), gpu.close)


def _text(value: str | bytes) -> str:
    """nvidia-ml-py gives str; the bindings before it gave bytes."""
    return value.decode() if isinstance(value, bytes) else value
