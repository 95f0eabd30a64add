"""What a device is said to reach, and what it was measured to reach: data, never mixed.

A `Peaks` holds figures of one origin; a `HardwareSpec` keeps the datasheet's and the measured ones apart.
Devices with a datasheet are JSON files in `roofline/devices`, one a device.

Example: ``load_device("nvidia-h200-sxm").datasheet.matrix["bfloat16"].value``
"""

import json
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from roofline.record import Record

SPEC_SCHEMA = 1
DEVICES = Path(__file__).parent / "devices"


class Figure(Record):
    """One number of a device with where it comes from."""

    value: float = Field(gt=0, allow_inf_nan=False)
    source: str
    """Document and section, or the measurement's conditions."""
    low: float | None = None
    """Lower end of a 90 % interval, where it was measured."""
    high: float | None = None


class Level(Record):
    """One level of the memory hierarchy, the smallest first; the last one is main memory."""

    name: str
    """ "L2", "L3", "DRAM", "HBM"."""
    capacity_bytes: float = Field(gt=0)
    bandwidth: Figure
    """Bytes/s, read and written bytes added."""


class Link(Record):
    """A way out of the device: to others of its kind, to the host, to the network."""

    bandwidth: Figure
    """Bytes/s that one device can send; it can receive as many at the same time."""
    latency_s: Figure | None = None
    """Of one message; where it is not known, messages are priced by their bytes alone."""


class Chip(Record):
    """What a datasheet says of a device besides its rates. Absent figures are None, never a guess."""

    units: Figure | None = None
    """Streaming multiprocessors, compute units, cores: what `unit` says."""
    unit: str | None = None
    """ "SM", "CU", "core", "TPC", "TensorCore"."""
    base_clock_hz: Figure | None = None
    boost_clock_hz: Figure | None = None
    """The highest that the datasheet names; its peaks are usually at this clock."""
    last_level_cache_bytes: Figure | None = None
    power_w: Figure | None = None
    """Board or socket power limit as sold."""
    released: int | None = None
    """Year."""


class Peaks(Record):
    """Rates of one origin: a datasheet's, or a measurement's."""

    matrix: dict[str, Figure]
    """Dense FLOP/s of matrix work, by dtype of the inputs: torch's names, and "float4_e2m1fn_x2", "int4"."""
    vector: dict[str, Figure]
    """FLOP/s of everything else, by dtype of the arithmetic; "float32" at least, or empty if unknown."""
    levels: tuple[Level, ...] = Field(min_length=1)
    """Smallest cache first, main memory last."""
    links: dict[str, Link] = {}
    """By name: "nvlink", "infinity-fabric", "ici", "pcie" (the host), "network"."""
    host_s_per_op: Figure | None = None
    """Host time to issue one operation in eager mode; on a CPU this includes the operation's own fixed cost."""

    @field_validator("levels")
    @classmethod
    def _ordered(cls, levels: tuple[Level, ...]) -> tuple[Level, ...]:
        sizes = [level.capacity_bytes for level in levels]
        if sizes != sorted(sizes):
            raise ValueError("memory levels must go from the smallest to the largest")
        return levels


class HardwareSpec(Record):
    """One device. Absent figures are None or missing, never a guess."""

    schema_version: int = SPEC_SCHEMA
    name: str
    """ "nvidia-h200-sxm": the file's name where it has one."""
    kind: Literal["cuda", "cpu", "other"]
    matches: tuple[str, ...] = ()
    """Names by which the driver reports exactly this device."""
    chip: Chip | None = None
    """From the datasheet."""
    datasheet: Peaks | None = None
    measured: Peaks | None = None
    missing: dict[str, str] = {}
    """Figures that could not be measured, each with its reason."""
    uuid: str | None = None
    """Unit that was measured."""


def load_device(name: str) -> HardwareSpec:
    """Read `devices/<name>.json`. Raises KeyError with the known names."""
    path = DEVICES / f"{name}.json"
    if not path.exists():
        raise KeyError(f"no device {name!r}; known: {', '.join(sorted(p.stem for p in DEVICES.glob('*.json')))}")
    return HardwareSpec.model_validate(json.loads(path.read_text()))


def find_device(driver_name: str) -> HardwareSpec | None:
    """The device file whose `matches` holds the driver's name, exactly; None where no file describes it."""
    for path in sorted(DEVICES.glob("*.json")):
        spec = load_device(path.stem)
        if driver_name in spec.matches:
            return spec
    return None
