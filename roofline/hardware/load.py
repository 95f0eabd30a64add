"""Reads a device file, or refuses it in one line that names every wrong field and says what to do.

A file is refused for unknown or missing fields, for figures in the wrong unit, and for figures that contradict each
other. The bounds are so wide that only a wrong unit crosses them: each holds every device and every measurement of one
with room on both sides. `inconsistent` refuses only what no hardware does, such as 8 bits slower than 16, or a sparse
figure among dense ones.
"""

import math
import os
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, get_args

from pydantic import ValidationError

from roofline.dtypes import DEVICE_DTYPES
from roofline.hardware.spec import GPU, SPEC_SCHEMA, Figure, HardwareSpec, Peaks
from roofline.reading import Unreadable, entry, one_line, own_errors, parse_json, read_bytes, schema_version, together
from roofline.record import Record

DEVICES = Path(__file__).parent.parent / "devices"
SEE = "see roofline/devices/README.md for the layout of a device file"


class Problem(NamedTuple):
    """A field that cannot be right."""

    field: str
    """Path of the field: "datasheet.matrix.bfloat16.value"."""
    what: str
    """The reason why the field cannot be right, and what to do."""


def device_names() -> tuple[str, ...]:
    """The names of the devices in `roofline/devices`, sorted."""
    return tuple(sorted(path.stem for path in DEVICES.glob("*.json")))


def load_device(name_or_path: str | Path) -> HardwareSpec:
    """A device by its name in `roofline/devices`, or by the path of a JSON file (the spec.json of a run as well).

    Raises Unreadable, one line: no such device or file, or a file that is not one, which field, and what to do.
    """
    name, names = str(name_or_path), device_names()
    if name in names:
        return _shipped(DEVICES / f"{name}.json")
    path = Path(name_or_path)
    if path.suffix == ".json" or os.sep in name or entry(name) is not None:
        return _read(path)
    near = _near(name.lower(), names)
    hint = f"did you mean {' or '.join(near)}?" if near else f"the devices are {', '.join(names)}"
    raise Unreadable(f"no device or JSON file {name!r:.60}; {hint}")


def _near(name: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """The device names with every word of `name` ("h200", "RTX 5090"), or else those spelt most like it."""
    words = set(re.findall("[a-z0-9]+", name))
    whole = [known for known in names if words and words <= set(known.split("-"))]
    part = [known for known in names if words and all(word in known for word in words)]
    return tuple(whole or part or get_close_matches(name, names, n=3, cutoff=0.6))


def find_device(driver_name: str) -> HardwareSpec | None:
    """The device file whose `matches` holds the driver's name, exactly; None where no file describes it."""
    specs = (_shipped(DEVICES / f"{name}.json") for name in device_names())
    return next((spec for spec in specs if driver_name in spec.matches), None)


@cache
def _shipped(path: Path) -> HardwareSpec:
    """A file of `roofline/devices`, read once: it does not change while the process runs."""
    return _read(path)


def _read(path: Path) -> HardwareSpec:
    """A device file, checked. Raises Unreadable: one line."""
    if entry(path) == "folder":
        raise Unreadable(f"{path} is a folder; name the JSON file of a device, such as {path / 'spec.json'}")
    text = read_bytes(path, mend="give a JSON file or the name of a device")
    try:
        content = parse_json(text, finite=False)  # the record names the field of NaN
    except ValueError as error:
        raise Unreadable(f"{path} is not valid JSON ({one_line(error)}); correct it") from error
    if not isinstance(content, dict):
        raise Unreadable(f"{path} holds {type(content).__name__}, not a JSON object; {SEE}")
    if "schema_version" in content:
        schema_version(content, path, SPEC_SCHEMA, "device file", SEE)
    try:
        spec = HardwareSpec.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise Unreadable(f"{path}: {together([_problem(one) for one in own_errors(error)])}") from error
    if problems := [f"{problem.field}: {problem.what}" for problem in _problems(spec)]:
        raise Unreadable(f"{path}: {together(problems)}")
    return spec


def _problem(problem: Mapping[str, Any]) -> str:
    """A field that is wrong, in one line: its path, what is wrong, what to do."""
    place = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        hint = _hint(str(problem["loc"][-1]), _fields(problem["loc"][:-1]), "known here")
        return f"{place}: unknown field; {hint}"
    if problem["type"] == "missing":
        return f"{place}: missing; {SEE}"
    value = problem["input"]
    shown = f" (it is {value!r:.60})" if isinstance(value, str | int | float | bool | None) else ""
    return f"{place}: {problem['msg'].removeprefix('Value error, ').replace(chr(10), ' ')}{shown}"


def _hint(name: str, known: tuple[str, ...], words: str) -> str:
    near = get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"{words}: {', '.join(known)}"


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
    return next((record for part in get_args(annotation) if (record := _record(part))), None)


def _problems(spec: HardwareSpec) -> Iterable[Problem]:
    """Figures that a device file lacks, and `impossible` ones."""
    if spec.datasheet is None and spec.measured is None:
        yield Problem("datasheet", f"missing, and so is measured; a device needs one of them: {SEE}")
    yield from impossible(spec)


def impossible(spec: HardwareSpec) -> Iterable[Problem]:
    """Figures, of those that a spec has, that no device can have, alone or together."""
    for origin, peaks in (("datasheet", spec.datasheet), ("measured", spec.measured)):
        if peaks is not None:
            yield from _peak_problems(origin, peaks)
    if spec.datasheet is not None:
        rates = {dtype: figure.value for dtype, figure in spec.datasheet.matrix.items()}
        yield from inconsistent("datasheet.matrix", rates, tensor_cores=spec.kind == GPU)
    if spec.chip is not None:
        for name, value in spec.chip:
            if isinstance(value, Figure):
                yield from _figure_problems(f"chip.{name}", name, value)
            elif name == "released" and value is not None:
                yield from implausible("chip.released", "released", value)


def _peak_problems(origin: str, peaks: Peaks) -> Iterable[Problem]:
    for part, figures in (("matrix", peaks.matrix), ("vector", peaks.vector)):
        for dtype, figure in figures.items():
            if dtype not in DEVICE_DTYPES:
                hint = _hint(dtype, DEVICE_DTYPES, "known")
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


class Bounds(NamedTuple):
    """Values between which every device lies, and the reason."""

    low: float
    high: float
    unit: str
    reason: str


_CLOCK = Bounds(1e7, 2e10, "Hz", "no chip has such a clock; 1980 MHz is 1.98e9")
BOUNDS: dict[str, Bounds] = {
    # 16-bit products emulated by one slow core reach 1e9 FLOP/s; B300 in GFLOPS is 1.35e7. A rack of 72 is 7e17.
    "rate": Bounds(1e8, 1e18, "FLOP/s", "no processor computes at such a rate; 989.4 TFLOPS is 989.4e12"),
    # one channel of DDR3 is 1e10; 22 TB/s in MB/s is 2.2e7. Caches of a whole GPU reach some 1e14.
    "bandwidth": Bounds(1e8, 1e15, "bytes/s", "no memory has such a bandwidth; 4800 GB/s is 4.8e12"),
    # 100 Mbit Ethernet is 1.25e7; NVLink in MB/s is 9e5.
    "link_bandwidth": Bounds(1e6, 1e14, "bytes/s", "no link has such a bandwidth; 450 GB/s is 450e9, 400 Gbit/s 50e9"),
    "capacity_bytes": Bounds(1024, 1e14, "bytes", "no cache is of such a size; 50 MB is 50e6"),
    # a container may be held to some 100 MB; 141 GB in MB is 1.41e5
    "main_capacity_bytes": Bounds(1e7, 1e15, "bytes", "no main memory is of such a size; 141 GB is 141e9"),
    "time_s": Bounds(1e-9, 1.0, "s", "no operation or message costs that; 5 µs is 5e-6"),
    "base_clock_hz": _CLOCK,
    "boost_clock_hz": _CLOCK,
    "matrix_clock_hz": _CLOCK,
    "last_level_cache_bytes": Bounds(1e4, 1e12, "bytes", "no last-level cache is of such a size; 50 MB is 50e6"),
    "power_w": Bounds(1.5, 1e5, "W", "no such device draws that; 0.7 kW is 700"),
    "units": Bounds(1, 1e6, "units", "no chip has that many"),
    "released": Bounds(1970, 2100, "(a year)", "no device is of that year"),
}


def implausible(field: str, quantity: str, value: float) -> Iterable[Problem]:
    """The problem of a value that lies outside the `BOUNDS` of its quantity, or is not a number."""
    bounds = BOUNDS[quantity]
    if not math.isfinite(value):
        yield Problem(field, f"{value:g} is not a finite number; give {bounds.unit}, or leave the figure out")
    elif not bounds.low <= value <= bounds.high:
        side, bound = ("below", bounds.low) if value < bounds.low else ("above", bounds.high)
        yield Problem(field, f"{value:g} is {side} {bound:g} {bounds.unit}: {bounds.reason}; give {bounds.unit}")


LARGEST_STEP = 2.2
"""From TF32 to 16 bits, and from 16 bits to FP8, the dense rate at most doubles on every tensor core so far; with one
sparse figure in a pair it is four times. 10 % for rounded figures."""
_NARROW = ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "int8")
FASTER_OR_EQUAL = (
    ("float32", "tfloat32"),
    *(("tfloat32", half) for half in ("float16", "bfloat16")),
    *((half, narrow) for half in ("float16", "bfloat16") for narrow in _NARROW),
)
"""(wide, narrow): where both exist, the narrow dtype is at least as fast."""


def inconsistent(field: str, rates: Mapping[str, float], *, tensor_cores: bool) -> Iterable[Problem]:
    """Pairs of matrix rates, by dtype in FLOP/s, that cannot both be dense peaks of one device.

    A CPU (not `tensor_cores`) may have a matrix unit for some dtypes alone, and other accelerators double at steps of
    their own (Trainium 3 computes FP8 3.75 times as fast as BF16), so that only their order is checked.
    """
    for wide, narrow in FASTER_OR_EQUAL:
        if wide not in rates or narrow not in rates:
            continue
        place, step = f"{field}.{narrow}.value", rates[narrow] / rates[wide]
        if step < 0.98:
            yield Problem(
                place,
                f"{rates[narrow]:g} is slower than {wide} ({rates[wide]:g}); is {wide} a sparse figure? "
                "Give both dense, in FLOP/s",
            )
        if tensor_cores and step > LARGEST_STEP and wide != "float32" and narrow != "int8":
            yield Problem(
                place,
                f"{rates[narrow]:g} is {step:.1f} times {wide} ({rates[wide]:g}), no tensor core more than doubles it; "
                "a figure with sparsity? Give half of it",
            )
