"""A characterisation as GitHub Markdown: every figure with its conditions; nothing is folded, null is "–".

Example: ``Path("report.md").write_text(render(spec, measurements, run), encoding="utf-8")``
"""

from collections.abc import Sequence

from calibrate.report import marks, peaks
from calibrate.report.hardware import table, wording
from calibrate.report.hardware.rows import Group, Row, groups, one_line
from calibrate.report.units import UNKNOWN, in_unit
from profiler.record.measurement import Measurement
from profiler.record.run import Run
from roofline.hardware.spec import HardwareSpec

INTERVAL = "90 % interval"
SHOWN = ("dtype", "value", "variation", "typical", "datasheet", "of", "at_clock", "flops", "bytes", "roofline")
"""Columns of the terminal's table that are here too, the interval apart."""


def render(spec: HardwareSpec, measurements: Sequence[Measurement], run: Run) -> str:
    """The whole characterisation as one document."""
    found = groups(spec, measurements, run)
    headline = wording.headline(found)
    parts = [
        f"# {marks.text(run.environment.device)}: characterisation",
        f"**{marks.text(headline)}**" if headline else "No figure has been measured in this run.",
        marks.facts(wording.facts(spec, measurements, run)),
        *marks.listed("Warnings", run.environment.notes),
    ]
    for group in found:
        parts += [f"## {group.title[0].upper()}{group.title[1:]}", _group(group)]
    parts += [*_peaks(spec), *marks.listed("Left out of the peaks", wording.left_out(spec))]
    meanings = [f"- **{word}**: {marks.text(text)}" for word, text in wording.words(found).items()]
    parts += ["## Words", "\n".join(meanings)]
    return "\n\n".join(part for part in parts if part) + "\n"


def interval(row: Row) -> str:
    """ "4.15 to 4.18 TB/s", or "n = 1" where too few processes measured it."""
    low, high = table.ends(row.figure)
    if low is None or high is None:
        return table.interval(row.figure)
    first, last = in_unit(low, row.figure.unit), in_unit(high, row.figure.unit)
    unit = last.partition(" ")[2]
    return f"{first.removesuffix(f' {unit}')} to {last}"


def how(row: Row) -> str:
    """Conditions, or the reason why there is no value."""
    if row.figure.value is None:
        return f"no result: {one_line(row.figure.reason or 'no reason was recorded')}"
    return one_line(row.figure.conditions) or UNKNOWN


def _group(group: Group) -> str:
    lines = [table.Line(row, table.name(row)) for row in group.rows]
    keys = {column.key for column in table.present(lines)}
    columns = [column for column in table.COLUMNS if column.key in keys and column.key in SHOWN]
    noted = any(row.marks for row in group.rows)
    header = ["", *(column.header for column in columns), INTERVAL, "processes", "how", *(["notes"] if noted else [])]
    align = "l" + "".join("l" if column.text else "r" for column in columns) + "rrl" + "l" * noted
    rows = [
        [
            marks.text(line.label),
            *(marks.text(column.cell(line)) for column in columns),
            interval(line.row),
            str(line.figure.replicates or UNKNOWN),
            marks.text(how(line.row)),
            *([marks.text("; ".join(line.row.marks))] if noted else []),
        ]
        for line in lines
    ]
    return marks.table(header, align, rows)


def _peaks(spec: HardwareSpec) -> list[str]:
    found = peaks.peak_rows(spec)
    if not found:
        return []
    rows = [
        (
            marks.text(row.name),
            row.show(row.datasheet.value if row.datasheet else None),
            row.show(row.measured.value if row.measured else None),
            row.interval() or UNKNOWN,
            marks.text(row.datasheet.source) if row.datasheet else UNKNOWN,
            marks.text(row.measured.source) if row.measured else UNKNOWN,
        )
        for row in found
    ]
    header = ("", "datasheet", "measured", INTERVAL, "source of the datasheet's", "how it was measured")
    return ["## Peaks that price operations", marks.table(header, "lrrrll", rows)]
