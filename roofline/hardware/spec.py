"""Figures of a device that its datasheet states, and figures that were measured of it: data, never mixed.

A `Peaks` holds figures of one origin; a `HardwareSpec` keeps the datasheet's and the measured ones apart. Devices with
a datasheet are JSON files in `roofline/devices`, one a device; a user's own file, and the spec.json of a run, are the
same record (`roofline.hardware.load` reads them). `facts_of` makes of a spec what laws need to know before anything is
measured; figures that neither origin has are assumed there, since priors need only be right to a factor.
"""

from collections.abc import Sequence
from typing import Literal, get_args

from pydantic import Field, field_validator

from roofline.dtypes import BITS
from roofline.laws.fitted import FittedLaw, ReferenceLevel
from roofline.laws.law import Facts
from roofline.record import Record

SPEC_SCHEMA = 4
"""Version of the record: 1 is without laws, 2 without times of the reference probes, 3 without doubts of figures."""
WIDE = 2.0
"""Factor between a figure and an end of its interval from which it is doubted."""
APART = 10.0
"""Factor by which the rate of a narrower dtype may lie below that of a wider one; beyond it, one of them is doubted."""


class Figure(Record):
    """One number of a device with its source."""

    value: float = Field(gt=0, allow_inf_nan=False)
    source: str
    """Document and section, or the measurement's conditions."""
    low: float | None = None
    """Lower end of a 90 % interval, where it was measured."""
    high: float | None = None
    doubt: str | None = None
    """The reason why it may not be the device's, as other work beside the measurement."""


class Level(Record):
    """One level of the memory hierarchy, the smallest first; the last one is main memory."""

    name: str
    """ "L2", "L3", "DRAM", "HBM"."""
    capacity_bytes: float = Field(gt=0, allow_inf_nan=False)
    """Bytes as the driver reports them, where it does."""
    capacity_source: str | None = None
    """Document or tool that states the capacity; None where it was measured."""
    bandwidth: Figure
    """Bytes/s, read and written bytes added."""


class Link(Record):
    """A way out of the device: to others of its kind, to the host, to the network."""

    bandwidth: Figure
    """Bytes/s that one device can send to all others together; it can receive as many at the same time."""
    latency_s: Figure | None = None
    """Seconds of one message and the wait for it; where not known, messages are priced by their bytes alone."""
    direct: bool = False
    """Whether each device reaches every other at once, so that a collective takes one step or two. Otherwise it goes
    around a ring, and the latency is that of one of its steps."""
    reduces: bool = False
    """Whether the switches between the devices add up what these send (NVIDIA's NVLS)."""
    joins: int | None = Field(default=None, ge=2)
    """Most devices that it joins: 2 for a bridge between cards. None where there is no such limit."""
    peers: int | None = Field(default=None, ge=1)
    """Other devices among which its wires are shared out evenly: a pair has 1 ÷ `peers` of the bandwidth. None where a
    switch gives any pair all of it."""
    topology: str = ""
    """Document that says so."""

    def bytes_per_s(self, ranks: int) -> float | None:
        """Bytes/s that one of `ranks` devices can send to the others; None where it does not join so many."""
        if self.joins is not None and ranks > self.joins:
            return None
        return self.bandwidth.value * (min(1.0, (ranks - 1) / self.peers) if self.peers else 1.0)


class Chip(Record):
    """Figures of a datasheet besides rates. Absent ones are None, never a guess."""

    units: Figure | None = None
    """Number of streaming multiprocessors, compute units or cores, as `unit` names them."""
    unit: str | None = None
    """ "SM", "CU", "core", "TPC", "TensorCore"."""
    base_clock_hz: Figure | None = None
    boost_clock_hz: Figure | None = None
    """The highest that the datasheet names; its peaks are usually at this clock."""
    matrix_clock_hz: Figure | None = None
    """The clock of the matrix peaks, where the datasheet names another one for them."""
    last_level_cache_bytes: Figure | None = None
    power_w: Figure | None = None
    """Board or socket power limit as sold."""
    released: int | None = None


class Peaks(Record):
    """Rates of one origin: a datasheet's, or a measurement's."""

    matrix: dict[str, Figure]
    """Dense FLOP/s of matrix work, by dtype of the inputs: torch's names, and "float4_e2m1fn_x2", "int4"."""
    vector: dict[str, Figure]
    """FLOP/s of everything else, by dtype of the arithmetic; "float32" at least, or empty if unknown."""
    levels: tuple[Level, ...] = Field(min_length=1)
    """Smallest cache first, main memory last."""
    links: dict[str, Link] = {}
    """Links by name: "nvlink", "nvlink-c2c" (to its CPU), "infinity-fabric", "ici", "neuronlink", "pcie" (the host),
    "network"."""
    host_s_per_op: Figure | None = None
    """Host time to issue one operation in eager mode; on a CPU this includes the operation's own fixed cost."""

    @field_validator("levels")
    @classmethod
    def _ordered(cls, levels: tuple[Level, ...]) -> tuple[Level, ...]:
        sizes = [level.capacity_bytes for level in levels]
        if sizes != sorted(sizes):
            raise ValueError("memory levels must go from the smallest to the largest")
        return levels


class Characteristic(Record):
    """One measured property of a device with its uncertainty and conditions; or the reason why it is not there."""

    name: str
    """ "memory.triad", "matmul.burst", "launch.back to back"; with ".one core" where a single thread ran it."""
    dtype: str | None = None
    unit: str
    """ "B/s", "FLOP/s", "s", "B", "J/FLOP", "J/B", "W"."""
    value: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    low: float | None = None
    """Lower end of the 90 % interval over fresh processes; None where fewer than three measured it."""
    high: float | None = None
    typical: float | None = None
    """The value by the median of the samples, where `value` rests on their fastest tenth."""
    variation: float | None = None
    """Coefficient of variation over the processes, a fraction."""
    replicates: int = 0
    """Fresh processes that have a value."""
    conditions: str = ""
    """Work that was timed, on which units, in which state of the caches, by which clock."""
    labels: tuple[str, ...] = ()
    """Warnings for readers: "power cap in 83 % of the time, …"."""
    status: Literal["done", "inconclusive", "invalid", "failed"] = "done"
    """inconclusive: other work had the host, and the value is at most too low a rate; invalid: not this device's
    speed (throttled by heat, a foreign process), and there is no value; failed: nothing was measured."""
    datasheet: float | None = None
    """The datasheet's figure for the same, in the same unit."""
    reason: str | None = None
    """The reason why there is no value, in one line."""


DeviceKind = Literal["cuda", "cpu", "other"]
"""Type of a device, as torch names it: "cuda" is a GPU of NVIDIA or, with ROCm, of AMD."""
GPU: DeviceKind = "cuda"
"""The kind of a device that other tools have measured and no file describes."""


def spec_kind(device_type: str) -> DeviceKind:
    """The kind of a device by torch's type of it."""
    return next((kind for kind in get_args(DeviceKind) if kind == device_type), "other")


class HardwareSpec(Record):
    """One device. Absent figures are None or missing, never a guess."""

    schema_version: int = SPEC_SCHEMA
    name: str
    """ "nvidia-h200-sxm": the file's name where it has one."""
    kind: DeviceKind
    matches: tuple[str, ...] = ()
    """Names by which the driver reports exactly this device."""
    chip: Chip | None = None
    """Other figures of the datasheet."""
    datasheet: Peaks | None = None
    measured: Peaks | None = None
    missing: dict[str, str] = {}
    """Figures that could not be measured, each with its reason."""
    characteristics: tuple[Characteristic, ...] = ()
    """Everything that was measured of it; `measured` holds those of them that price operations."""
    uuid: str | None = None
    """UUID of the unit that was measured."""
    calibrated: tuple[FittedLaw, ...] = ()
    """Laws with the constants fitted to kernels of this device."""
    reference: dict[str, ReferenceLevel] = {}
    """Times of each probe (`roofline.laws.fitted.PROBES`) while the kernels of those laws were timed."""

    @property
    def has_queue(self) -> bool:
        """Return whether the host issues work ahead of the device, through a queue: on all devices but a CPU."""
        return self.kind != "cpu"

    @field_validator("calibrated")
    @classmethod
    def _one_law_each(cls, laws: tuple[FittedLaw, ...]) -> tuple[FittedLaw, ...]:
        if twice := _twice([f"{law.kind} {law.dtype}" for law in laws]):
            raise ValueError(f"there are two laws of {twice}; keep one")
        return laws

    @field_validator("matches")
    @classmethod
    def _distinct(cls, matches: tuple[str, ...]) -> tuple[str, ...]:
        if twice := _twice(matches):
            raise ValueError(f"{twice!r} appears twice; keep one")
        return matches


def _twice(names: Sequence[str]) -> str | None:
    return next((name for name in names if names.count(name) > 1), None)


def figures_of(peaks: Peaks) -> dict[str, Figure]:
    """Every figure of the peaks by its name: "matrix bfloat16", "HBM", "link nvlink", "host"."""
    named = {f"matrix {dtype}": figure for dtype, figure in peaks.matrix.items()}
    named |= {f"vector {dtype}": figure for dtype, figure in peaks.vector.items()}
    named |= {level.name: level.bandwidth for level in peaks.levels}
    named |= {f"link {name}": link.bandwidth for name, link in peaks.links.items()}
    return named | ({"host": peaks.host_s_per_op} if peaks.host_s_per_op else {})


def at_ends(peaks: Peaks) -> tuple[Peaks, Peaks] | None:
    """Return the peaks with all figures at the fast ends of their 90 % intervals, and at the slow ends; None where no
    figure has an interval. Times at both bound those at any peaks between, since a roofline falls with each rate."""
    figures = list(figures_of(peaks).values())
    if all(figure.low is None and figure.high is None for figure in figures):
        return None

    def moved(figure: Figure, end: Literal["low", "high"]) -> Figure:
        return figure.model_copy(update={"value": getattr(figure, end) or figure.value})

    def all_at(rate: Literal["low", "high"], time: Literal["low", "high"]) -> Peaks:
        host = peaks.host_s_per_op
        return peaks.model_copy(
            update={
                "matrix": {dtype: moved(figure, rate) for dtype, figure in peaks.matrix.items()},
                "vector": {dtype: moved(figure, rate) for dtype, figure in peaks.vector.items()},
                "levels": tuple(
                    level.model_copy(update={"bandwidth": moved(level.bandwidth, rate)}) for level in peaks.levels
                ),
                "links": {
                    name: link.model_copy(
                        update={
                            "bandwidth": moved(link.bandwidth, rate),
                            "latency_s": moved(link.latency_s, time) if link.latency_s else None,
                        }
                    )
                    for name, link in peaks.links.items()
                },
                "host_s_per_op": moved(host, time) if host else None,
            }
        )

    return all_at("high", "low"), all_at("low", "high")


def doubted(peaks: Peaks) -> dict[str, str]:
    """The figures that may not be the device's, by name, and why: measured beside other work, or with an interval that
    reaches to half or twice the figure."""
    doubts = {}
    for name, figure in figures_of(peaks).items():
        low, high = figure.low or figure.value, figure.high or figure.value
        if figure.doubt is not None:
            doubts[name] = figure.doubt
        elif figure.value > WIDE * low or high > WIDE * figure.value:
            doubts[name] = (
                f"its measurements lie between {low / figure.value:.2g} and {high / figure.value:.2g} times it"
            )
    return doubts


def far_below(peaks: Peaks) -> dict[str, str]:
    """Rates far below that of a wider dtype, and why they are suspect: narrower types are slower only if emulated."""
    doubts = {}
    for what, rates in (("matrix", peaks.matrix), ("vector", peaks.vector)):
        for dtype, figure in rates.items():
            wider = [other for other in rates if BITS.get(other, 0) > BITS.get(dtype, 0)]
            slowest = min(wider, key=lambda other: rates[other].value, default=None)
            if slowest is not None and rates[slowest].value > APART * figure.value:
                times = rates[slowest].value / figure.value
                doubts[f"{what} {dtype}"] = f"it is {times:.0f} times below that of {slowest}: emulated, or disturbed"
    return doubts


OUTWARD = ("nvlink", "infinity-fabric", "ici", "neuronlink")
"""Links of a device to others of its kind."""
CACHE_S = 26e-6
"""Size of a last-level cache in seconds of main memory's bandwidth: median of the device files that name both."""
UNIT_FLOPS_PER_S = 500e9
"""float32 vector rate of a unit: median of the GPUs among the device files."""
MATRIX_PER_VECTOR = 8.0
"""16-bit matrix rate ÷ float32 vector rate: median of the device files."""


def facts_of(spec: HardwareSpec) -> Facts:
    """The facts of a device; `assumed` names those that its datasheet does not say.

    Raises ValueError, one line: a spec without peaks, or without any rate of arithmetic.
    """
    peaks = spec.datasheet or spec.measured
    if peaks is None:
        raise ValueError(f"{spec.name} has no datasheet and no measured peaks; name a device file with --hardware")
    bandwidth = peaks.levels[-1].bandwidth.value
    assumed: list[str] = []
    vector = peaks.vector["float32"].value if "float32" in peaks.vector else None
    if vector is None:
        matrix = next((peaks.matrix[dtype].value for dtype in ("bfloat16", "float16") if dtype in peaks.matrix), None)
        if matrix is None:
            raise ValueError(f"{spec.name} does not say vector.float32, which laws need; add it to its device file")
        vector = matrix / MATRIX_PER_VECTOR
        assumed.append(f"vector.float32 {vector:.3g} FLOP/s")
    cache = _cache_bytes(spec, peaks)
    if cache is None:
        cache = CACHE_S * bandwidth
        assumed.append(f"chip.last_level_cache_bytes {cache:.3g} B")
    units = spec.chip.units.value if spec.chip and spec.chip.units else None
    if units is None:
        units = max(1, round(vector / UNIT_FLOPS_PER_S))
        assumed.append(f"chip.units {units:.0f}")
    link = next((peaks.links[name] for name in OUTWARD if name in peaks.links), None)
    return Facts(
        units=int(units),
        cache_bytes=cache,
        bandwidth_bytes_per_s=bandwidth,
        matrix_flops_per_s={dtype: figure.value for dtype, figure in peaks.matrix.items()},
        vector_flops_per_s=vector,
        link_bytes_per_s=link.bandwidth.value if link else None,
        cores=spec.kind == "cpu",
        assumed=tuple(assumed),
    )


def _cache_bytes(spec: HardwareSpec, peaks: Peaks) -> float | None:
    """Size of the last level before main memory.

    On a CPU the measured size comes first: a virtual machine states, and a datasheet names, the cache of the whole
    processor, of which a process gets a part. A level that is not in `measured` is not faster than main memory, so that
    laws need not know of it.
    """
    chip = spec.chip.last_level_cache_bytes if spec.chip else None
    sizes = [p.levels[-2].capacity_bytes if p and len(p.levels) > 1 else None for p in (peaks, spec.measured)]
    if spec.kind == "cpu" and sizes[1] is not None:
        return sizes[1]
    return chip.value if chip else next((size for size in sizes if size is not None), None)
