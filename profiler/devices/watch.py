"""Watches the device and the host while samples are taken, one window after another, a few times a second.

What cannot be read is None in the window, and `unread` gives its reason once: nothing is raised into a measurement.

Example::

    with closing(backend_of(device).watch(device)) as watch:
        watch.begin()
        times = [clock.time(call, 10) for _ in range(20)]
        window = watch.end(samples=20)
"""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Protocol

from profiler.devices.activity import CpuTimes, parse_cpu_times
from profiler.devices.host import parse_clock_hz, read_processor, usable_cpus
from profiler.record.measurement import Window
from roofline.record import Record

CLOCKED_CPUS = 16
"""Most CPUs whose clock is read: on hosts with hundreds, reading each would take milliseconds."""


ComputeMode = Literal["default", "exclusive thread", "prohibited", "exclusive process"]


class GpuProcess(Record):
    """A process with a context on the GPU."""

    pid: int
    """Number that the driver gives it; in a container this may be a number of the host."""
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
    """The figures that change while a GPU works; None where the driver does not state them."""

    processes: tuple[GpuProcess, ...] | None = None
    sm_clock_hz: float | None = None
    memory_clock_hz: float | None = None
    event_reasons: int | None = None
    """Bits of nvmlDeviceGetCurrentClocksEventReasons."""
    temperature_c: float | None = None
    power_w: float | None = None
    """Power, on most GPUs the mean of the last second (nvmlDeviceGetPowerUsage)."""
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

    name: str | None = None
    uuid: str | None = None
    driver: str | None = None
    memory_bytes: int | None = None
    """None where the driver does not state it, as on a device that shares the host's memory."""
    memory_used_bytes: int | None = None
    utilization: float | None = None
    """Fraction of the driver's last sampling period in which a kernel ran."""
    mig: bool | None = None
    ecc: bool | None = None
    ecc_uncorrected: int | None = None
    """Uncorrected memory errors since the driver was loaded."""
    remapped_rows: int | None = None
    """Rows of memory that spare ones stand for, after errors that were corrected or not."""
    compute_mode: ComputeMode | None = None
    """The processes that may create contexts."""
    sm_clock_max_hz: float | None = None
    memory_clock_max_hz: float | None = None
    persistence: bool | None = None
    slowdown_temperature_c: float | None = None
    power_limit_w: float | None = None
    """Enforced now."""
    power_default_w: float | None = None


class Watch(Protocol):
    """The interface of a watch that a measurement needs; tests inject watches of their own."""

    @property
    def unread(self) -> tuple[str, ...]:
        """The figures that could not be read so far, with the reasons, each once."""

    def begin(self) -> None:
        """Open a window. The measurement starts with the first one."""

    def end(self, samples: int) -> Window:
        """Close it; call this right after the last of its samples. Raises RuntimeError where none is open."""

    def close(self) -> None:
        """Let go of what is held open."""


class HostWatch:
    """Frequency, load, steal and the work of others on the CPUs that this process may use."""

    def __init__(
        self,
        proc: Path = Path("/proc"),
        sys: Path = Path("/sys"),
        now: Callable[[], float] = time.monotonic,
        own: Callable[[], float] = time.process_time,
        cpus: Sequence[int] | None = None,
    ) -> None:
        """`own` gives the CPU seconds of this process."""
        self._proc, self._now, self._own = proc, now, own
        self._cpus = tuple(usable_cpus() if cpus is None else cpus)
        self._ticks = float(os.sysconf("SC_CLK_TCK"))
        self._start_s: float | None = None
        self._opened: tuple[float, float, CpuTimes | None] | None = None
        """Time, CPU seconds of this process and CPU times when the window was opened."""
        self._unread: dict[str, None] = {}
        clocked = self._cpus[:: -(-len(self._cpus) // CLOCKED_CPUS)]
        files = [sys / f"devices/system/cpu/cpu{cpu}/cpufreq/scaling_cur_freq" for cpu in clocked]
        self._frequencies = [file for file in files if file.exists()]
        self._cpuinfo_is_nominal = read_processor(self._cpus, proc, sys).clock_is_real is False

    @property
    def unread(self) -> tuple[str, ...]:
        return tuple(self._unread)

    def begin(self) -> None:
        times = self._times()
        self._opened = self._now(), self._own(), times
        if self._start_s is None:
            self._start_s = self._opened[0]

    def end(self, samples: int) -> Window:
        if self._opened is None or self._start_s is None:
            raise RuntimeError("end() closes a window that begin() has opened")
        (opened_s, own_before_s, before), self._opened = self._opened, None
        at_s, own_s = self._now(), self._own()
        duration_s = max(0.0, at_s - opened_s)
        times = self._times()
        steal, others = _taken(before, times, own_s - own_before_s, duration_s)
        if before and times and steal is None:
            self._unread["CPU times: the system's counters did not move within a window"] = None
        load = self._text(self._proc / "loadavg")
        return Window(
            start_s=max(0.0, opened_s - self._start_s),
            duration_s=duration_s,
            samples=samples,
            cores=len(self._cpus),
            steal_fraction=steal,
            other_cores=others,
            cpu_clock_hz=self._clock_hz(),
            load_1min=float(load.split()[0]) if load else None,
        )

    def close(self) -> None:
        pass

    def _times(self) -> CpuTimes | None:
        stat = self._text(self._proc / "stat")
        return parse_cpu_times(stat, self._ticks, self._cpus) if stat else None

    def _clock_hz(self) -> float | None:
        if self._frequencies:
            kilohertz = [float(text) for file in self._frequencies if (text := self._text(file))]
            return sum(kilohertz) / len(kilohertz) * 1e3 if kilohertz else None
        if self._cpuinfo_is_nominal:
            self._unread["CPU clock: a virtual machine without its counters, which shows a nominal one"] = None
            return None
        cpuinfo = self._text(self._proc / "cpuinfo")
        clock_hz = parse_clock_hz(cpuinfo) if cpuinfo else None
        if cpuinfo and clock_hz is None:
            self._unread["CPU clock: neither cpufreq nor cpuinfo gives it"] = None
        return clock_hz

    def _text(self, path: Path) -> str | None:
        try:
            return path.read_text()
        except OSError as error:
            self._unread[f"{path}: {error.strerror}"] = None
            return None


def _taken(
    before: CpuTimes | None, after: CpuTimes | None, own_s: float, duration_s: float
) -> tuple[float | None, float | None]:
    """(steal as a fraction, cores that others took); None where the system's clock has not ticked in between."""
    if before is None or after is None or (total_s := after.total_s - before.total_s) <= 0 or duration_s <= 0:
        return None, None
    steal = min(1.0, max(0.0, after.steal_s - before.steal_s) / total_s)  # steal may be set back (proc(5))
    return steal, (after.busy_s - before.busy_s - own_s) / duration_s


class GpuWatch:
    """A GPU's clocks, power, heat, throttle reasons and foreign processes, with the host that issues its kernels."""

    def __init__(self, read: Callable[[], GpuState], host: HostWatch, close: Callable[[], None] = lambda: None) -> None:
        """`read` gives a quick look: `Gpu.quick`, or a recorded sequence."""
        self._read, self._host, self._close = read, host, close
        self._unread: dict[str, None] = {}
        self._energy_j: float | None = None

    @property
    def unread(self) -> tuple[str, ...]:
        return (*self._unread, *self._host.unread)

    def begin(self) -> None:
        self._energy_j = self._state().energy_j
        self._host.begin()

    def end(self, samples: int) -> Window:
        state = self._state()  # first: the clock falls when the work has ended
        window = self._host.end(samples)
        foreign = None if state.processes is None else state.foreign(own_context=True)
        used = [process.sm_utilization for process in foreign or () if process.sm_utilization is not None]
        energy_j = None
        if state.energy_j is not None and self._energy_j is not None and state.energy_j >= self._energy_j:
            energy_j = state.energy_j - self._energy_j  # the counter starts again where the driver is loaded again
        return window.model_copy(
            update={
                "sm_clock_hz": state.sm_clock_hz,
                "memory_clock_hz": state.memory_clock_hz,
                "power_w": state.power_w,
                "temperature_c": state.temperature_c,
                "event_reasons": state.event_reasons,
                "energy_j": energy_j,
                "foreign": None if foreign is None else tuple(process.label for process in foreign),
                "foreign_utilization": max(used, default=None),
            }
        )

    def close(self) -> None:
        self._close()

    def _state(self) -> GpuState:
        try:
            state = self._read()
        except Exception as error:  # noqa: BLE001 - whatever a driver raises, the samples are worth more than its figures
            state = GpuState(unread=(f"{type(error).__name__}: {error}",))
        self._unread.update(dict.fromkeys(state.unread))
        return state
