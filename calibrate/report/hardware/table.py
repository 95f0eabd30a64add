"""The columns of a characterisation's tables, and how a terminal shortens long lists: as text, laid out elsewhere.

In a terminal a series over sizes (caches) and the operations of one dtype (vector) are one row with the best of them,
curves are a sentence, and what is measured twice (all cores and one core, given and fresh outputs) is one row; files
have every row.

Example: ``[column.cell(line) for column in COLUMNS for line in shortened(group).lines]``
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from calibrate.report.hardware.rows import ONE_CORE, Group, Row, one_line
from calibrate.report.units import UNKNOWN, binary, dtype, in_unit, magnitude, percent
from calibrate.report.wording import some as first_few
from roofline.hardware.spec import Characteristic

FEWEST = 3
"""Fresh processes for an interval; of two it would say only that two numbers were alike by chance."""
LOPSIDED = 0.15
"""Relative difference of the two sides of an interval from which both are shown."""
ROWS = 3
"""Skinny products of a dtype on the terminal: the first, the middle and the last."""
GIVEN, FRESH = ", given output", ", fresh output"


@dataclass(frozen=True)
class Line:
    """A row as it is shown."""

    row: Row
    label: str
    beside: Row | None = None
    """The same on one core, or into a fresh output."""
    notes: str = ""
    """Letters of its footnotes."""

    @property
    def figure(self) -> Characteristic:
        return self.row.figure


@dataclass(frozen=True)
class Column:
    """One column; a column that no line of a group has anything in is left out there."""

    key: str
    header: str
    cell: Callable[[Line], str]
    text: bool = False
    style: str = ""


@dataclass(frozen=True)
class Shortened:
    """What a terminal shows of a group."""

    lines: tuple[Line, ...]
    sentences: tuple[str, ...]
    """Series that are not rows."""
    failed: tuple[tuple[str, str], ...]
    """What has no value, and the reason."""
    beside: str
    """Header of the column of what is measured twice."""


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


def kind(figure: Characteristic) -> str:
    """Short name of the dtype; "" where it does not matter."""
    return dtype(figure.dtype) if figure.dtype else ""


def _share(share: float | None) -> str:
    return percent(share) + (" !" if share is not None and share > 1 else "")


def _at_clock(line: Line) -> str:
    """ "90.3 % 1605 MHz"."""
    if line.row.of_clock is None or line.row.clock_hz is None:
        return UNKNOWN
    return f"{percent(line.row.of_clock)} {line.row.clock_hz / 1e6:.0f} MHz{' !' * (line.row.of_clock > 1)}"


def _beside(line: Line) -> str:
    return value(line.beside.figure) if line.beside else UNKNOWN


COLUMNS = (
    Column("figure", "", lambda line: line.label, text=True, style="cyan"),
    Column("dtype", "dtype", lambda line: kind(line.figure), text=True, style="dim"),
    Column("value", "value", lambda line: value(line.figure), style="bold"),
    Column("interval", "90 %", lambda line: interval(line.figure)),
    Column("variation", "CV", lambda line: percent(line.figure.variation)),
    Column("typical", "median", lambda line: typical(line.figure)),
    Column("datasheet", "datasheet", lambda line: in_unit(line.figure.datasheet, line.figure.unit)),
    Column("of", "of it", lambda line: _share(line.row.of_datasheet)),
    Column("at_clock", "at SM clock", _at_clock),
    Column("flops", "FLOP/s", lambda line: magnitude(line.row.flops_per_s)),
    Column("bytes", "bytes/s", lambda line: magnitude(line.row.bytes_per_s)),
    Column("roofline", "of roofline", lambda line: _share(line.row.of_roofline)),
    Column("beside", "beside", _beside),
    Column("notes", "notes", lambda line: line.notes, text=True, style="yellow"),
)
"""In reading order."""

ALWAYS = ("figure", "value", "interval")


def present(lines: Sequence[Line]) -> tuple[Column, ...]:
    """The columns that have something to say of some line."""
    return tuple(
        column for column in COLUMNS if column.key in ALWAYS or {column.cell(line) for line in lines} - {"", UNKNOWN}
    )


def shortened(group: Group) -> Shortened:
    """A group as a terminal shows it."""
    failed = tuple(
        (f"{name(row)} {kind(row.figure)}".strip(), one_line(row.figure.reason or "no reason was recorded"))
        for row in group.rows
        if row.figure.value is None
    )
    rows = [row for row in group.rows if row.figure.value is not None]
    points = [row for row in rows if row.series is not None]
    plain = [row for row in rows if row.series is None]
    lines, sentences = _paired(plain)
    if group.title == "vector arithmetic":
        lines, sentences = _best_of_each_dtype(plain)
    elif group.title == "skinny products":
        lines, sentences = _some_of_each_dtype(plain)
    for series in _by(points, lambda row: (row.series or "", row.figure.dtype, row.one_core)):
        if series[0].family == "cache":
            lines.append(_best(series))
        else:
            sentences.append(_sentence(series))
    sentences = [*_how(rows), *sentences]
    beside = "fresh output" if any(line.beside and FRESH in line.beside.label for line in lines) else "one core"
    return Shortened(tuple(lines), tuple(sentences), failed, beside)


def _paired(rows: Sequence[Row]) -> tuple[list[Line], list[str]]:
    """What is measured twice in one line."""
    by_name = {(row.figure.name, row.figure.dtype): row for row in rows}
    lines, used = [], set()
    for row in rows:
        key = row.figure.name, row.figure.dtype
        twin = row.figure.name.replace(GIVEN, FRESH) if GIVEN in row.label else f"{row.figure.name}{ONE_CORE}"
        beside = by_name.get((twin, row.figure.dtype)) if not row.one_core else None
        if beside is not None:
            used.add((twin, row.figure.dtype))
        if key not in used:
            label = name(row).removesuffix(GIVEN) if beside is not None else name(row)
            lines.append(Line(row, label, beside))
    return [line for line in lines if (line.figure.name, line.figure.dtype) not in used], []


def _best_of_each_dtype(rows: Sequence[Row]) -> tuple[list[Line], list[str]]:
    lines, sentences = [], []
    for alike in _by(rows, lambda row: (row.figure.dtype, row.one_core)):
        ordered = sorted(alike, key=lambda row: -(row.figure.value or 0))
        lines.append(Line(ordered[0], name(ordered[0])))
        if len(ordered) > 1:
            others = ", ".join(f"{name(row)} {value(row.figure)}" for row in ordered[1:])
            sentences.append(f"{kind(ordered[0].figure)} besides: {others}".strip())
    return lines, sentences


def _some_of_each_dtype(rows: Sequence[Row]) -> tuple[list[Line], list[str]]:
    lines, left = [], 0
    for alike in _by(rows, lambda row: (row.figure.dtype, row.one_core)):
        kept = alike if len(alike) <= ROWS else [alike[0], alike[len(alike) // 2], alike[-1]]
        left += len(alike) - len(kept)
        lines += [Line(row, name(row)) for row in kept]
    return lines, [f"{left} more sizes are in report.md and report.html"] if left else []


def _best(series: Sequence[Row]) -> Line:
    """The fastest of a series of rates."""
    best = max(series, key=lambda row: row.figure.value or 0)
    of = f", best of {len(series)} sizes" if len(series) > 1 else ""
    return Line(best, f"{name(best)}{of}")


def _sentence(series: Sequence[Row]) -> str:
    ordered = sorted(series, key=lambda row: row.size_bytes or 0)
    first, last = ordered[0], ordered[-1]
    words = f"{first.series}{', one core' if first.one_core else ''} {kind(first.figure)}".strip()
    if len(ordered) == 1:
        return f"{words}: {value(first.figure)} at {binary(first.size_bytes)}"
    shown = [f"{value(row.figure)} at {binary(row.size_bytes)}" for row in (first, last)]
    text = f"{words}: {len(ordered)} sizes, {shown[0]} to {shown[1]}"
    if first.figure.unit == "B/s":
        best = max(ordered, key=lambda row: row.figure.value or 0)
        text += f", most {value(best.figure)} at {binary(best.size_bytes)}"
    return text


def _how(rows: Sequence[Row]) -> list[str]:
    """Shapes of products, size and cache state of operands: what the figures of a group depend on."""
    said = []
    if any(row.shape for row in rows):
        shapes = dict.fromkeys((kind(row.figure), row.shape) for row in rows if row.shape and row.family != "skinny")
        named = [f"{what} {shape}".strip() for what, shape in shapes]
        said += [f"m×n×k: {', '.join(named)}"] if named else []
    for operands in dict.fromkeys(row.operands for row in rows if row.operands):
        some = [row for row in rows if row.operands == operands]
        what = "" if len(some) == len(rows) else f"{first_few([name(row) for row in some])}: "
        said.append(f"{what}operands {operands}")
    return said


def _by(rows: Sequence[Row], key: Callable[[Row], object]) -> list[list[Row]]:
    """Rows that are alike, in the order of the first of them."""
    found: dict[object, list[Row]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return list(found.values())
