"""What the device and the host did while samples were taken: the conditions that belong beside raw samples.

A measurement is a sequence of windows, each with the samples that were taken within it. What was not read is None,
never 0, so that "not throttled" and "not known" stay apart. `profiler.devices.watch` fills windows in,
`profiler.devices.conditions` says what they mean.

Example: ``Window(start_s=0, duration_s=0.25, samples=12, power_w=694.0)``
"""

from typing import Literal

from pydantic import Field

from roofline.record import Record

Severity = Literal["note", "warns", "invalidates"]
"""Worth knowing · usable, with more noise or less speed than the device can give · not this device's speed."""


class Window(Record):
    """A stretch of a measurement; figures of the device are read just after its last sample."""

    start_s: float = Field(ge=0)
    """Since the measurement's start."""
    duration_s: float = Field(ge=0)
    samples: int = Field(ge=0)
    """Taken within it."""

    sm_clock_hz: float | None = None
    memory_clock_hz: float | None = None
    power_w: float | None = None
    """As the driver says: on most GPUs the mean of the last second."""
    temperature_c: float | None = None
    event_reasons: int | None = None
    """Bits of nvmlDeviceGetCurrentClocksEventReasons."""
    energy_j: float | None = None
    """Difference of nvmlDeviceGetTotalEnergyConsumption; add up windows of a second or more before dividing."""
    foreign: tuple[str, ...] | None = None
    """Other processes on the device, () where there is none."""
    foreign_utilization: float | None = None
    """SM time that the busiest of them took, as a fraction of the driver's sampling period."""

    cores: int | None = Field(default=None, gt=0)
    """CPUs that this process may run on; the next two are about these."""
    steal_fraction: float | None = None
    """Of their time, that a hypervisor gave to somebody else."""
    other_cores: float | None = None
    """Cores' worth of CPU time that others took. The system counts in ticks of 10 ms, so it can be a little below 0."""
    cpu_clock_hz: float | None = None
    """Mean over CPUs."""
    load_1min: float | None = None


class Label(Record):
    """One thing about a measurement's conditions that a reader has to know."""

    severity: Severity
    what: str
    """With its figures, in one line."""
    share: float = Field(ge=0, le=1)
    """Of the measurement's time in which it held."""
