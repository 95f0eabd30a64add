"""A measurement of a microbenchmark in one process: raw samples, and the conditions in which they were taken.

Values are derived when they are shown: `work ÷ sample` for a rate, `sample ÷ work` for a cost. Interference can only
make a sample slower, so that the value of a process is its fastest tenth of samples unless `quantile` says otherwise.
Conditions are a sequence of windows with the samples taken in each; a figure that was not read is None, never 0.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from roofline.record import Record

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

MEASUREMENT_SCHEMA = 1
FASTEST = 0.1
"""Quantile of the samples' times that gives a peak: the fastest sample would rest on one reading of the clock."""
Unit = Literal["B/s", "FLOP/s", "s", "J/FLOP", "J/B", "W"]
RATES = ("B/s", "FLOP/s")
"""Units in which more is better; in the others a sample is a cost."""
State = Literal["cold", "warm", "in place"]
Layout = Literal["k×n", "n×k"]
"""The layout of a product's second operand: as `torch.mm` takes it, or as `nn.Linear` keeps weights."""
CacheSource = Literal["stated", "measured", "assumed"]
"""The source of a last-level cache's size: the system, the behaviour of memory, or neither of them."""
Status = Literal["done", "inconclusive", "invalid", "failed"]
"""inconclusive: other work used the host, so that the device may be faster. invalid: not this device's speed."""
Severity = Literal["note", "warns", "invalidates"]
"""note: worth knowing. warns: usable, but noisier or slower than the device. invalidates: not this device's speed."""


class Window(Record):
    """A period of a measurement; figures of the device are read just after its last sample."""

    start_s: float = Field(ge=0)
    """Time since the measurement's start."""
    duration_s: float = Field(ge=0)
    samples: int = Field(ge=0)
    """Number of samples taken in it."""

    sm_clock_hz: float | None = None
    memory_clock_hz: float | None = None
    power_w: float | None = None
    """The driver's reading: on most GPUs the mean of the last second."""
    temperature_c: float | None = None
    event_reasons: int | None = None
    """Bits of nvmlDeviceGetCurrentClocksEventReasons."""
    energy_j: float | None = None
    """Difference of nvmlDeviceGetTotalEnergyConsumption; add up windows of a second or more before dividing."""
    foreign: tuple[str, ...] | None = None
    """Other processes on the device; () where there is none."""
    foreign_utilization: float | None = None
    """SM time that the busiest of them took, as a fraction of the driver's sampling period."""

    cores: int | None = Field(default=None, gt=0)
    """CPUs that this process may run on; the next two fields are about these."""
    steal_fraction: float | None = None
    """Share of their time that the hypervisor gave to other guests."""
    other_cores: float | None = None
    """CPU time of other processes, in cores. The system counts ticks of 10 ms, so it can be slightly below 0."""
    cpu_clock_hz: float | None = None
    """Mean clock over CPUs."""
    load_1min: float | None = None


class Label(Record):
    """A condition of a measurement that a reader has to know."""

    severity: Severity
    what: str
    """The condition with its figures, in one line."""
    share: float = Field(ge=0, le=1)
    """Share of the measurement's time in which it held."""


Key = tuple[str, str, str | None, int | None]
"""Family, case, dtype and threads, which identify a quantity across processes."""


class CacheState(Record):
    """The part of an operand that the caches held when it was used, as declared, and whether the bytes confirm that."""

    declared: State
    """cold: nothing of it; warm: all of it; in place: whatever the calls before left."""
    operand_bytes: int = Field(ge=0)
    """Distinct bytes that one call touches."""
    between_bytes: int = Field(ge=0)
    """Bytes touched between two uses of the same operand, those of the call itself included where it streams."""
    cache_bytes: int | None = None
    """Size of the last-level cache that had to be exceeded; None where it is unknown."""
    cache_source: CacheSource = "stated"
    holds: bool | None = None
    """Whether the declared state is confirmed; None where the size of the cache is unknown."""
    judged_by: Literal["bytes", "bytes and rate"] = "bytes"
    """`holds` follows from the bytes touched, or also from the rate compared with those of cache and main memory."""


class WarmUp(Record):
    """The calls before the first sample."""

    calls: int = Field(ge=0)
    seconds: float = Field(ge=0)
    steady: bool
    """Whether the time of a call had stopped falling when it ended."""


class Measurement(Record):
    """Samples of one case in one process, or the reason why there are none."""

    schema_version: int = MEASUREMENT_SCHEMA
    benchmark: str
    """Family: "memory", "matmul", "launch", …"""
    case: str
    """Member of the family: "triad", "1024×4096×8192"; unique within a family, dtype and number of threads."""
    dtype: str | None = None
    """Torch's name, or "tfloat32"; None where the type does not matter."""
    threads: int | None = None
    """Threads of an operation on a CPU; None on a GPU."""
    process: int = 0
    """Number of the fresh process; samples of one process are not independent."""
    parameters: dict[str, int | float | str] = {}
    """Sizes and other parameters of the case."""
    unit: Unit
    work: float = Field(gt=0, allow_inf_nan=False)
    """Bytes, FLOPs or calls of one sample; a cost is the sample divided by it."""
    status: Status
    reason: str | None = None
    """The reason why there is no result, or why the result cannot be trusted, in one line."""
    samples: tuple[float, ...] = ()
    """Seconds a call (joules for J/…, watts for W), mean of `repeats` in a row, in the order they were taken."""
    repeats: int = Field(default=1, ge=1)
    quantile: float = Field(default=FASTEST, ge=0, le=1)
    """Quantile of the samples, from the fastest, that gives the value; 0.5 under sustained load."""
    placements: int = Field(default=1, ge=1)
    """Sets of operands that took turns, one a sample. The value is the median over sets, whose pages may be lucky."""
    clock: str = ""
    floor_s: float | None = None
    """Time of a call that does nothing, by this clock."""
    stop_reason: str = ""
    warm_up: WarmUp | None = None
    cache: CacheState | None = None
    windows: tuple[Window, ...] = ()
    """Clocks, power, temperature and other work while the samples were taken."""
    labels: tuple[Label, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> "Measurement":
        if self.status in ("done", "inconclusive") and not self.samples:
            raise ValueError("a measurement with a result has samples")
        if self.status != "done" and not self.reason:
            raise ValueError("a measurement without a good result says why")
        if any(not math.isfinite(sample) or sample <= 0 for sample in self.samples):
            raise ValueError("a sample is a finite positive number")
        return self

    @property
    def key(self) -> Key:
        """Identifies the quantity across processes."""
        return self.benchmark, self.case, self.dtype, self.threads

    @property
    def has_value(self) -> bool:
        """Return whether its samples describe the device; those from a busy host are a bound."""
        return self.status in ("done", "inconclusive")

    def value(self, quantile: float | None = None) -> float:
        """Value in `unit`, at a quantile of the samples from the fastest (None: its own). Raises ValueError if none."""
        if not self.samples:
            raise ValueError(f"{self.benchmark} {self.case} has no result: {self.reason}")
        q = self.quantile if quantile is None else quantile
        sets = [self.samples[i :: self.placements] for i in range(self.placements)]
        sample = statistics.median(quantile_of(samples, q) for samples in sets if samples)
        return self.work / sample if self.unit in RATES else sample / self.work


def middle_mean(samples: "ArrayLike") -> "NDArray[np.float64]":
    """Mean of the middle half of samples along the first axis; of three, the middle one.

    It summarises passes of a model and visits to a calibrated kernel: unlike medians, such means add up where the same
    samples are left out of each.
    """
    import numpy as np

    ordered = np.sort(np.asarray(samples, dtype=float), axis=0)
    cut = round(len(ordered) / 4)
    return np.asarray(ordered[cut : len(ordered) - cut].mean(axis=0))


def quantile_of(values: tuple[float, ...], q: float) -> float:
    """Linearly interpolated quantile, 0 ≤ q ≤ 1."""
    return quantile_of_sorted(sorted(values), q)


def quantile_of_sorted(ordered: Sequence[float], q: float) -> float:
    """The same of values in ascending order."""
    position = q * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


UNKNOWN_LINK = "unknown"
"""Name of the link between ranks where the driver could not be read."""
DISTINCT = 1.15
"""Least ratio of the bandwidths of two neighbouring levels of memory: it exceeds the variation from run to run."""


class Capacity(Record):
    """A level of the memory hierarchy as the system states it, for all threads of an operation together."""

    name: str
    bytes: int = Field(ge=0)


class MemoryHierarchy(Record):
    """The levels of a device's memory, as the system states them."""

    main: Capacity
    caches: tuple[Capacity, ...] = ()
    """Caches from the smallest on; empty where the system describes none."""


def grouped(measurements: Iterable[Measurement]) -> dict[Key, list[Measurement]]:
    """Measurements by key, in the order of their processes; a later measurement of a process replaces an earlier."""
    groups: dict[Key, dict[int, Measurement]] = {}
    for measurement in measurements:
        groups.setdefault(measurement.key, {})[measurement.process] = measurement
    return {key: [alike[process] for process in sorted(alike)] for key, alike in groups.items()}
