"""What a device is said to reach, and what it was measured to reach: data, never mixed.

A `Peaks` holds figures of one origin; a `HardwareSpec` keeps the datasheet's and the measured ones apart.
Devices with a datasheet are JSON files in `roofline/devices`, one a device; a user's own file, and the spec.json of a
run, are the same record. A file is refused in one line that names the field: unknown, impossible, in the wrong unit
(`roofline/plausible.py`).

Example: ``load_device("nvidia-h200-sxm").datasheet.matrix["bfloat16"].value``
"""

import json
import math
import os
import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, ValidationError, field_validator

from roofline.calibrated import CalibratedLaw
from roofline.level import ReferenceLevel
from roofline.plausible import DTYPES, Problem, implausible, inconsistent
from roofline.record import Record

SPEC_SCHEMA = 3
"""1: without laws. 2: without times of the reference probes."""
DEVICES = Path(__file__).parent / "devices"
SEE = "see roofline/devices/README.md for the layout of a device file"


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
    capacity_bytes: float = Field(gt=0, allow_inf_nan=False)
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
    matrix_clock_hz: Figure | None = None
    """The clock of the matrix peaks, where the datasheet names another one for them."""
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
    """By name: "nvlink", "nvlink-c2c" (to its CPU), "infinity-fabric", "ici", "pcie" (the host), "network"."""
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
    """One measured property of a device: what it is, how sure it is, under which conditions; or why it is not there."""

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
    """The same with the median of the samples, where `value` rests on the fastest tenth."""
    variation: float | None = None
    """Coefficient of variation over the processes, a fraction."""
    replicates: int = 0
    """Fresh processes that have a value."""
    conditions: str = ""
    """What was run, on what, in which state of the caches, by which clock."""
    labels: tuple[str, ...] = ()
    """What a reader has to know: "power cap in 83 % of the time, …"."""
    status: Literal["done", "inconclusive", "invalid", "failed"] = "done"
    """inconclusive: other work had the host, and the value is at most too low a rate; invalid: not this device's
    speed (throttled by heat, a foreign process), and there is no value; failed: nothing was measured."""
    datasheet: float | None = None
    """What the datasheet says of the same, in the same unit."""
    reason: str | None = None
    """Why there is no value, in one line."""


DeviceKind = Literal["cuda", "cpu", "other"]
"""As torch names the type of device: "cuda" is a GPU of NVIDIA or, with ROCm, of AMD."""
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
    """From the datasheet."""
    datasheet: Peaks | None = None
    measured: Peaks | None = None
    missing: dict[str, str] = {}
    """Figures that could not be measured, each with its reason."""
    characteristics: tuple[Characteristic, ...] = ()
    """Everything that was measured of it; `measured` holds those of them that price operations."""
    uuid: str | None = None
    """Unit that was measured."""
    calibrated: tuple[CalibratedLaw, ...] = ()
    """Laws with the constants fitted to kernels of this device."""
    reference: dict[str, ReferenceLevel] = {}
    """By probe (`roofline.level.PROBES`): its times while the kernels of those laws were timed."""

    @property
    def has_queue(self) -> bool:
        """Whether the host issues work ahead of the device, through a queue: on all devices but a CPU."""
        return self.kind != "cpu"

    @field_validator("calibrated")
    @classmethod
    def _one_law_each(cls, laws: tuple[CalibratedLaw, ...]) -> tuple[CalibratedLaw, ...]:
        pairs = [(law.kind, law.dtype) for law in laws]
        if twice := [pair for pair in pairs if pairs.count(pair) > 1]:
            raise ValueError(f"there are two laws of {' '.join(twice[0])}; keep one")
        return laws

    @field_validator("matches")
    @classmethod
    def _distinct(cls, matches: tuple[str, ...]) -> tuple[str, ...]:
        if twice := [name for name in matches if matches.count(name) > 1]:
            raise ValueError(f"{twice[0]!r} stands there twice; keep one")
        return matches


def device_names() -> tuple[str, ...]:
    """The names of the devices in `roofline/devices`, sorted."""
    return tuple(sorted(path.stem for path in DEVICES.glob("*.json")))


def load_device(name_or_path: str | Path) -> HardwareSpec:
    """A device by its name in `roofline/devices`, or by the path of a JSON file (the spec.json of a run as well).

    Raises ValueError, one line: no such device or file, or a file that is not one, which field, and what to do.
    """
    name, names = str(name_or_path), device_names()
    if name in names:
        return _read(DEVICES / f"{name}.json")
    path = Path(name_or_path)
    if path.suffix == ".json" or os.sep in name or path in Path().iterdir():
        return _read(path)
    near = _near(name.lower(), names)
    hint = f"did you mean {' or '.join(near)}?" if near else f"the devices are {', '.join(names)}"
    raise ValueError(f"no device or JSON file {name!r}; {hint}")


def _near(name: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """The device names with every word of `name` ("h200", "RTX 5090"), or else those spelt most like it."""
    words = set(re.findall("[a-z0-9]+", name))
    whole = tuple(known for known in names if words and words <= set(known.split("-")))
    part = tuple(known for known in names if words and all(word in known for word in words))
    return whole or part or tuple(get_close_matches(name, names, n=3, cutoff=0.6))


def find_device(driver_name: str) -> HardwareSpec | None:
    """The device file whose `matches` holds the driver's name, exactly; None where no file describes it."""
    for name in device_names():
        spec = load_device(name)
        if driver_name in spec.matches:
            return spec
    return None


def _read(path: Path) -> HardwareSpec:
    """A device file, checked. Raises ValueError: one line."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_twins)
    except IsADirectoryError as error:
        raise ValueError(f"{path} is a folder; name the JSON file of a device, such as {path / 'spec.json'}") from error
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}; give a JSON file or the name of a device") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); mend it") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__}, not a JSON object; {SEE}")
    version = content.get("schema_version", SPEC_SCHEMA)
    if isinstance(version, int) and version > SPEC_SCHEMA:
        raise ValueError(
            f"{path} is from a newer roofcal (schema {version}, this one reads {SPEC_SCHEMA}): update roofcal"
        )
    try:
        spec = HardwareSpec.model_validate(content)
    except ValidationError as error:
        raise ValueError(f"{path}: {_first_problem(error)}") from error
    if problem := next(iter(_problems(spec)), None):
        raise ValueError(f"{path}: {problem.field}: {problem.what}")
    return spec


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, in which no key stands twice: of two figures the reader would keep the last in silence."""
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice in one object")
    return content


def _first_problem(error: ValidationError) -> str:
    """The first field that is wrong, in one line: its path, what is wrong, what to do."""
    problem = error.errors(include_url=False)[0]
    place = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        known = _fields(problem["loc"][:-1])
        near = get_close_matches(str(problem["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
        return f"{place}: unknown field; {hint}"
    if problem["type"] == "missing":
        return f"{place}: missing; {SEE}"
    given = problem["input"]
    shown = f" (it is {given!r})" if isinstance(given, str | int | float | bool | None) else ""
    return f"{place}: {problem['msg'].removeprefix('Value error, ').replace(chr(10), ' ')}{shown}"


def _fields(place: tuple[int | str, ...]) -> tuple[str, ...]:
    """The fields of the record at a place in a device file."""
    record: type[Record] = HardwareSpec
    for part in place:
        if field := record.model_fields.get(str(part)):  # otherwise a key of a dict or an index of a tuple
            record = _record(field.annotation) or record
    return tuple(record.model_fields)


def _record(annotation: Any) -> type[Record] | None:
    """The record inside an annotation such as ``dict[str, Figure]`` or ``Chip | None``."""
    if isinstance(annotation, type) and issubclass(annotation, Record):
        return annotation
    return next((found for part in get_args(annotation) if (found := _record(part))), None)


def _problems(spec: HardwareSpec) -> Iterable[Problem]:
    """What cannot be true of any device, or cannot be true together."""
    if spec.datasheet is None and spec.measured is None:
        yield Problem("datasheet", f"missing, and so is measured; a device needs the one or the other: {SEE}")
    for origin, peaks in (("datasheet", spec.datasheet), ("measured", spec.measured)):
        if peaks is not None:
            yield from _peak_problems(origin, peaks)
    if spec.datasheet is not None:
        rates = {dtype: figure.value for dtype, figure in spec.datasheet.matrix.items()}
        yield from inconsistent("datasheet.matrix", rates, tensor_cores=spec.kind != "cpu")
    if spec.chip is not None:
        for name, value in spec.chip:
            if isinstance(value, Figure):
                yield from _figure_problems(f"chip.{name}", name, value)
            elif name == "released" and value is not None:
                yield from implausible("chip.released", "released", value)


def _peak_problems(origin: str, peaks: Peaks) -> Iterable[Problem]:
    for part, figures in (("matrix", peaks.matrix), ("vector", peaks.vector)):
        for dtype, figure in figures.items():
            if dtype not in DTYPES:
                near = get_close_matches(dtype, DTYPES, n=1)
                hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(DTYPES)}"
                yield Problem(f"{origin}.{part}.{dtype}", f"unknown dtype; {hint}")
            yield from _figure_problems(f"{origin}.{part}.{dtype}", "rate", figure)
    for i, level in enumerate(peaks.levels):
        place = f"{origin}.levels.{i}"
        kind = "main_capacity_bytes" if i == len(peaks.levels) - 1 else "capacity_bytes"
        yield from implausible(f"{place}.capacity_bytes", kind, level.capacity_bytes)
        yield from _figure_problems(f"{place}.bandwidth", "bandwidth", level.bandwidth)
    for name, link in peaks.links.items():
        yield from _figure_problems(f"{origin}.links.{name}.bandwidth", "link_bandwidth", link.bandwidth)
        if link.latency_s is not None:
            yield from _figure_problems(f"{origin}.links.{name}.latency_s", "time_s", link.latency_s)
    if peaks.host_s_per_op is not None:
        yield from _figure_problems(f"{origin}.host_s_per_op", "time_s", peaks.host_s_per_op)


def _figure_problems(place: str, quantity: str, figure: Figure) -> Iterable[Problem]:
    yield from implausible(f"{place}.value", quantity, figure.value)
    for end in ("low", "high"):
        # no bounds: on a busy machine the slowest samples may be slower than any device's figure is
        if (value := getattr(figure, end)) is not None and not 0 < value < math.inf:
            yield Problem(f"{place}.{end}", f"{value:g} is no end of an interval; give a finite number above 0")
    if figure.low is not None and figure.high is not None and figure.low > figure.high:
        yield Problem(f"{place}.low", f"{figure.low:g} lies above high, {figure.high:g}; swap them")
    if not figure.source.strip():
        yield Problem(f"{place}.source", "empty; say which document and section the figure is from")
