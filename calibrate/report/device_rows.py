"""The figures of a characterisation as rows in groups, each with what its measurements add: the device's clock, lost
processes, the place of a point in its series.

A figure (a `Characteristic` of the spec) belongs to the measurements whose family, case and dtype are in its name.
All figures are in exactly one group; a family that is not known here comes last, never nowhere.

Example: ``[row.figure.value for group in groups(spec, measurements, run) for row in group.rows]``
"""

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from profiler.record.measurement import Measurement, Window, quantile_of
from profiler.record.run import Run
from roofline.hardware.spec import Characteristic, HardwareSpec
from roofline.record import Record
from roofline.units import UNKNOWN, binary, dtype, in_unit, percent, ratio

ONE_CORE = ".one core"
"""The end of the name of a figure that a single thread reached where others could have helped."""
FAMILIES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("main memory", ("memory",)),
    ("caches and levels", ("level", "cache")),
    ("working-set curve", ("curve",)),
    ("matrix products", ("matmul",)),
    ("skinny products", ("skinny",)),
    ("vector arithmetic", ("vector",)),
    ("pointwise work", ("pointwise",)),
    ("launch and host", ("launch", "host")),
    ("transfers", ("transfer",)),
    ("collectives", ("collective",)),
    ("energy", ("energy",)),
)
"""Title of each group and the families in it, in the order of a report."""
OTHER = "other figures"

SERIES = ("cache", "curve", "transfer", "collective")
"""Families with a point for each size in bytes: "cache.read 2097152"."""
SIZES = ("working_set_bytes", "size_bytes", "message_bytes", "operand_bytes", "bytes")
"""Parameters that hold the size of a point, the first that is there."""
SIZE = re.compile(r"(\d[\d.]*(?:e[+-]?\d+)?)\s*(KiB|MiB|GiB|TiB|kB|MB|GB|TB|B|bytes)?\b")
FACTOR = {"kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30, "TiB": 2.0**40}
SMALLEST = 1024.0
"""Bytes: no working set is smaller; a smaller number in a plateau's conditions is something else."""
FEWEST = 3
"""Fresh processes that an interval needs; two can agree by chance."""
LOPSIDED = 0.15
"""Relative difference of the two sides of an interval from which both are shown."""
GIVEN, FRESH = ", given output", ", fresh output"

Key = tuple[str, str | None]
"""Name and dtype of a figure."""


class Row(Record):
    """One figure and what its measurements say of it."""

    figure: Characteristic
    label: str
    """The name within its group: "triad", "read 2 MiB"."""
    series: str | None = None
    """Name of the series, whose points differ in their size alone."""
    size_bytes: float | None = None
    """Size of the point in its series."""
    span: tuple[float, float] | None = None
    """The smallest and the largest working set of a plateau, in bytes."""
    clock_hz: float | None = None
    """Median SM clock while it was measured."""
    datasheet_at_clock: float | None = None
    """The datasheet's matrix peak at that clock, in the unit of the figure."""
    shape: str | None = None
    """m×n×k of a product."""
    operands: str | None = None
    """Size of an operand and the state of the caches: "256 MiB, cold"."""
    lost: str | None = None
    """"1 of 4 processes gave no result: …"."""
    flops_per_s: float | None = None
    bytes_per_s: float | None = None
    """Rates of a product whose figure is a time."""
    roofline_s: float | None = None
    """The same product at the measured main-memory bandwidth and the measured burst peak."""

    @property
    def one_core(self) -> bool:
        return self.figure.name.endswith(ONE_CORE)

    @property
    def family(self) -> str:
        return self.figure.name.partition(".")[0]

    @property
    def of_datasheet(self) -> float | None:
        return ratio(self.figure.value, self.figure.datasheet)

    @property
    def of_clock(self) -> float | None:
        """Share of the datasheet's peak at the clock that was seen."""
        return ratio(self.figure.value, self.datasheet_at_clock)

    @property
    def of_roofline(self) -> float | None:
        return ratio(self.roofline_s, self.figure.value)

    @property
    def above_one(self) -> bool:
        """Whether the figure is better than its bound: it is wrong, or a cache was not cold."""
        return any((share or 0) > 1 for share in (self.of_datasheet, self.of_clock, self.of_roofline))

    @property
    def marks(self) -> tuple[str, ...]:
        """Sentences that a reader of the figure has to know."""
        marks = [*self.figure.labels, *([self.lost] if self.lost else [])]
        if self.above_one:
            marks.append(
                "above 100 %: the datasheet, the clock or the measured peak is too low, or a cache held operands"
            )
        return tuple(map(one_line, marks))


@dataclass(frozen=True)
class Group:
    """Rows of one kind."""

    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Line:
    """A row and its label in a table."""

    row: Row
    label: str
    beside: Row | None = None
    """The row of the same figure on one core, or into a fresh output."""

    @property
    def figure(self) -> Characteristic:
        return self.row.figure


class Characterisation:
    """A device's figures in groups beside what they were made of."""

    def __init__(self, spec: HardwareSpec, measurements: Sequence[Measurement], run: Run) -> None:
        self.spec, self.measurements, self.run = spec, measurements, run
        self.groups = groups(spec, measurements, run)
        self.by_figure = by_figure(measurements, run)

    def rows(self, *families: str) -> list[Row]:
        """The rows of some families; all of them where none is named."""
        return [row for group in self.groups for row in group.rows if not families or row.family in families]

    def value(self, name: str) -> float | None:
        """The first figure of a name that is known."""
        known = (row.figure.value for row in self.rows() if row.figure.name == name and row.figure.value is not None)
        return next(known, None)


def groups(spec: HardwareSpec, measurements: Sequence[Measurement], run: Run) -> tuple[Group, ...]:
    """All figures of a spec, grouped; groups without a figure are left out."""
    measured = by_figure(measurements, run)
    rows = [_row(figure, measured.get((figure.name, figure.dtype), ()), spec) for figure in spec.characteristics]
    rows.sort(key=lambda row: row.series is not None)  # fits and plateaus before the many points behind them
    known = {family for _, families in FAMILIES for family in families}
    grouped = [Group(title, tuple(row for row in rows if row.family in families)) for title, families in FAMILIES]
    grouped.append(Group(OTHER, tuple(row for row in rows if row.family not in known)))
    return tuple(group for group in grouped if group.rows)


def by_figure(measurements: Iterable[Measurement], run: Run) -> dict[Key, tuple[Measurement, ...]]:
    """The measurements of each figure, in the order of their processes; a later one of a process replaces it."""
    threads = run.environment.threads if run.environment.device_kind == "cpu" else None
    by_key: dict[Key, dict[int, Measurement]] = {}
    for measurement in measurements:
        single = measurement.threads == 1 and threads is not None and threads > 1
        name = f"{measurement.benchmark}.{measurement.case}{ONE_CORE if single else ''}"
        by_key.setdefault((name, measurement.dtype), {})[measurement.process] = measurement
    return {key: tuple(by[process] for process in sorted(by)) for key, by in by_key.items()}


def place(measurement: Measurement) -> tuple[str, float | None]:
    """Series and size of a point: "pinned to device" and 1048576 of the case "pinned to device 1048576"."""
    series, size = split_size(measurement.case)
    parameter = next((measurement.parameters[name] for name in SIZES if name in measurement.parameters), None)
    return series, float(parameter) if isinstance(parameter, int | float) else size


def split_size(case: str) -> tuple[str, float | None]:
    """A case without the number at its end, and that number."""
    parts = re.fullmatch(r"(.*?) ?(\d+)", case)
    return (parts.group(1), float(parts.group(2))) if parts else (case, None)


def working_sets(conditions: str) -> tuple[float, float] | None:
    """The first two sizes that a plateau's conditions name, in bytes; None where there are not two."""
    every = [float(number) * FACTOR.get(unit, 1.0) for number, unit in SIZE.findall(conditions)]
    sizes = [size for size in every if size >= SMALLEST][:2]
    return (sizes[0], sizes[1]) if len(sizes) == 2 and sizes[0] < sizes[1] else None


def call_s(measurement: Measurement) -> float:
    """Seconds of one call, at the measurement's own quantile. Raises ValueError where there is no sample."""
    if not measurement.samples:
        raise ValueError(f"{measurement.benchmark} {measurement.case} has no result: {measurement.reason}")
    return quantile_of(measurement.samples, measurement.quantile)


def datasheet_clock(spec: HardwareSpec, dtype: str | None) -> float | None:
    """Hz at which the datasheet's matrix peak of a dtype holds; None where it names none.

    A matrix peak that is also the vector peak runs on the vector units, whose peaks are at the boost clock.
    """
    if spec.chip is None or spec.datasheet is None or not spec.has_queue or dtype is None:
        return None
    matrix, vector = spec.datasheet.matrix.get(dtype), spec.datasheet.vector.get(dtype)
    if matrix is None:
        return None
    on_vector_units = vector is not None and vector.value == matrix.value
    clock = (None if on_vector_units else spec.chip.matrix_clock_hz) or spec.chip.boost_clock_hz
    return clock.value if clock else None


def median_clock(alike: Iterable[Measurement]) -> float | None:
    """Median SM clock in Hz over the windows whose samples were kept; None where none was read."""
    windows = [window for measurement in alike if measurement.samples for window in kept_windows(measurement)]
    clocks = [window.sm_clock_hz for window in windows if window.sm_clock_hz is not None]
    return statistics.median(clocks) if clocks else None


def kept_windows(measurement: Measurement) -> tuple[Window, ...]:
    """The windows that hold the samples: the last ones, where a load's first samples were dropped."""
    windows = measurement.windows
    skip = sum(window.samples for window in windows) - len(measurement.samples)
    while len(windows) > 1 and skip >= windows[0].samples > 0:
        skip -= windows[0].samples
        windows = windows[1:]
    return windows


def one_line(words: str) -> str:
    """The words without line breaks."""
    return " ".join(words.split())


def _row(figure: Characteristic, alike: Sequence[Measurement], spec: HardwareSpec) -> Row:
    family, _, case = figure.name.partition(".")
    case = case.removesuffix(ONE_CORE)
    about: dict[str, object] = {"label": case or family}
    first = alike[0] if alike else None
    series, end = split_size(case)
    is_point = end is not None and end >= 1 and not case.startswith(("plateau", "knee"))
    if family in SERIES and figure.unit != "B" and is_point:
        series, end = place(first) if first else (series, end)
        level = first.parameters.get("level", "") if first else ""
        about |= {"series": f"{level} {series}".strip(), "size_bytes": end}
    if case.startswith("plateau"):
        about["span"] = working_sets(figure.conditions)
    if first:
        sides, size = [first.parameters.get(side) for side in "mnk"], first.parameters.get("operand_bytes")
        operands = [binary(size)] if isinstance(size, int | float) else []
        operands += [first.cache.declared] if first.cache else []
        about |= {
            "shape": None if None in sides else "×".join(map(str, sides)),
            "operands": ", ".join(operands) or None,
        }
    clock, stated = median_clock(alike), datasheet_clock(spec, figure.dtype)
    if family == "matmul" and clock and stated and figure.datasheet:
        about["datasheet_at_clock"] = figure.datasheet * clock / stated
    if family == "skinny" and first:
        about |= _product(first.parameters, figure, spec)
    return Row(figure=figure, clock_hz=clock, lost=_lost(figure, alike), **about)


def _product(parameters: Mapping[str, object], figure: Characteristic, spec: HardwareSpec) -> dict[str, float | None]:
    """Rates of a product whose figure is a time, and its time at the measured peaks."""
    flops, moved = parameters.get("flops"), parameters.get("bytes")
    if not isinstance(flops, int | float) or not isinstance(moved, int | float) or not figure.value:
        return {}
    peaks = spec.measured
    peak = peaks.matrix.get(figure.dtype or "") if peaks else None
    roofline_s = max(moved / peaks.levels[-1].bandwidth.value, flops / peak.value) if peaks and peak else None
    return {"flops_per_s": flops / figure.value, "bytes_per_s": moved / figure.value, "roofline_s": roofline_s}


def _lost(figure: Characteristic, alike: Sequence[Measurement]) -> str | None:
    bad = [measurement for measurement in alike if measurement.status != "done"]
    if figure.value is None or not bad:
        return None
    reasons = "; ".join(dict.fromkeys(one_line(measurement.reason or "no reason was recorded") for measurement in bad))
    return f"{len(bad)} of {len(alike)} processes gave no result: {reasons}"


def interval(figure: Characteristic) -> str:
    """ "± 0.8 %", "−12 % +20 %" where the sides differ; "n = 1" where too few processes measured it."""
    if figure.value is None:
        return UNKNOWN
    if 0 < figure.replicates < FEWEST:
        return f"n = {figure.replicates}"
    if figure.low is None or figure.high is None:
        return UNKNOWN
    down, up = 1 - figure.low / figure.value, figure.high / figure.value - 1
    if abs(up - down) <= LOPSIDED * max(abs(up), abs(down)):
        return f"± {percent((down + up) / 2)}"
    return f"{percent(-down, signed=True)} {percent(up, signed=True)}"


def ends(figure: Characteristic) -> tuple[float | None, float | None]:
    """The ends of the interval that is shown."""
    enough = figure.value is not None and not 0 < figure.replicates < FEWEST  # 0: a constant that was fitted
    return (figure.low, figure.high) if enough else (None, None)


def both_ends(figure: Characteristic) -> str:
    """ "4.15 to 4.18 TB/s", or "n = 1" where too few processes measured it."""
    low, high = ends(figure)
    if low is None or high is None:
        return interval(figure)
    first, last = in_unit(low, figure.unit), in_unit(high, figure.unit)
    return f"{first.removesuffix(' ' + last.partition(' ')[2])} to {last}"


def how(figure: Characteristic) -> str:
    """Conditions, or the reason why there is no value."""
    if figure.value is None:
        return f"no result: {one_line(figure.reason or 'no reason was recorded')}"
    return one_line(figure.conditions) or UNKNOWN


def value(figure: Characteristic) -> str:
    """The figure in its unit."""
    return in_unit(figure.value, figure.unit)


def typical(figure: Characteristic) -> str:
    """The median's figure, "same" where it reads as the value does."""
    text = in_unit(figure.typical, figure.unit)
    return "same" if figure.typical is not None and text == value(figure) else text


def name(row: Row) -> str:
    """ "triad, one core", "read 2 MiB": what tells a row from the others of its group."""
    core = ", one core" if row.one_core else ""
    if row.series is not None:
        return f"{row.series} {binary(row.size_bytes)}{core}"
    if row.span is not None:
        return f"{row.label}, {binary(row.span[0])} to {binary(row.span[1])}"
    if row.family == "skinny" and row.shape:
        return f"{row.shape}{core}"
    return row.label.replace(".bandwidth", ", bandwidth").replace(".latency", ", latency") + core


def kind_of(figure: Characteristic) -> str:
    """Short name of the dtype; "" where it does not matter."""
    return dtype(figure.dtype) if figure.dtype else ""
