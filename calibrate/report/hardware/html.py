"""A characterisation as one HTML file with its plots, that opens offline: plotly.js is inside, nothing is fetched.

The same figures as the Markdown report, sortable by a click on a header. Names are escaped.

Example: ``Path("report.html").write_text(render(spec, measurements, run), encoding="utf-8")``
"""

from collections.abc import Sequence
from html import escape

from calibrate.report import markup, peaks
from calibrate.report.hardware import markdown, table, wording
from calibrate.report.hardware.plots import plots
from calibrate.report.hardware.rows import Group, groups
from calibrate.report.markup import Cell
from calibrate.report.units import UNKNOWN
from profiler.record.measurement import Measurement
from profiler.record.run import Run
from roofline.hardware.spec import HardwareSpec

STYLE = """
.figures td:first-child { min-width: 90px; white-space: nowrap; }
.figures th, .figures td { padding: 4px 6px; }
.figures td.how { min-width: 190px; max-width: 520px; white-space: normal; font-size: 11px; color: #5b6675;
                  overflow-wrap: anywhere; }
.figures td.notes { min-width: 220px; white-space: normal; font-size: 11px; color: #8a5a00; }
.figures td.bad { white-space: normal; }
"""


def render(spec: HardwareSpec, measurements: Sequence[Measurement], run: Run) -> str:
    """The whole document; plotly.js is in it once."""
    found = groups(spec, measurements, run)
    device = run.environment.device
    headline = wording.headline(found) or "No figure has been measured in this run."
    body = [
        f"<style>{STYLE}</style>",
        f"<header><h1>{escape(device)}</h1><p>characterisation, {escape(run.name)}, {escape(run.started)}</p></header>",
        f'<p class="headline">{escape(headline)}</p>',
        *(f'<p class="warning">{escape(note)}</p>' for note in run.environment.notes),
        _device(spec, measurements, run),
        *(
            markup.card(plot.title, markup.chart(plot.figure, f"plot-{plot.name}"), _small(plot.note))
            for plot in plots(found, spec, measurements, run)
        ),
        *(_group(group) for group in found),
        _peaks(spec),
        _words(found),
    ]
    return markup.document(f"{device}: characterisation", body)


def _device(spec: HardwareSpec, measurements: Sequence[Measurement], run: Run) -> str:
    facts = wording.facts(spec, measurements, run)
    rows = [[markup.plain(fact.name), markup.plain(fact.value)] for fact in facts]
    return markup.card("Device and conditions", markup.table(("", ""), rows, left=(0, 1)))


def _group(group: Group) -> str:
    lines = [table.Line(row, table.name(row)) for row in group.rows]
    keys = {column.key for column in table.present(lines)}
    columns = [column for column in table.COLUMNS if column.key in keys and column.key in markdown.SHOWN]
    noted = any(row.marks for row in group.rows)
    header = ("", *(column.header for column in columns), markdown.INTERVAL, "processes", "how", *(["notes"] * noted))
    left = [0, *(i for i, column in enumerate(columns, start=1) if column.text), *range(len(columns) + 3, len(header))]
    rows = [
        [
            markup.plain(line.label),
            *(_cell(column, line) for column in columns),
            (escape(markdown.interval(line.row)), ""),
            markup.figure(str(line.figure.replicates or UNKNOWN), line.figure.replicates),
            (escape(markdown.how(line.row)), f' class="{"how" if line.figure.value is not None else "bad"}"'),
            *([(escape("; ".join(line.row.marks)), ' class="notes"')] if noted else []),
        ]
        for line in lines
    ]
    title = f"{group.title[0].upper()}{group.title[1:]}"
    return f'<div class="figures">{markup.card(title, markup.table(header, rows, left=left, tall=True))}</div>'


def _cell(column: table.Column, line: table.Line) -> Cell:
    text = column.cell(line)
    if column.text:
        return markup.plain(text)
    row, figure = line.row, line.figure
    sort = {
        "value": figure.value,
        "variation": figure.variation,
        "typical": figure.typical,
        "datasheet": figure.datasheet,
        "of": row.of_datasheet,
        "at_clock": row.of_clock,
        "flops": row.flops_per_s,
        "bytes": row.bytes_per_s,
        "roofline": row.of_roofline,
    }
    markup_, attributes = markup.figure(text, sort[column.key])
    return markup_, attributes + (' class="bad"' if text.endswith(" !") else "")


def _peaks(spec: HardwareSpec) -> str:
    found = peaks.peak_rows(spec)
    rows = [
        [
            markup.plain(row.name),
            (row.show(row.datasheet.value if row.datasheet else None), ""),
            (row.show(row.measured.value if row.measured else None), ""),
            (escape(row.interval() or UNKNOWN), ""),
            markup.plain(row.datasheet.source if row.datasheet else UNKNOWN),
            markup.plain(row.measured.source if row.measured else UNKNOWN),
        ]
        for row in found
    ]
    header = ("", "datasheet", "measured", markdown.INTERVAL, "source of the datasheet's", "how it was measured")
    absent = "".join(_small(line) for line in wording.left_out(spec))
    if not rows and not absent:
        return ""
    shown = markup.table(header, rows, left=(0, 4, 5)) if rows else ""
    said = f'<p class="small">Left out of these peaks:</p>{absent}' if absent else ""
    return markup.card("Peaks that price operations", shown, said)


def _words(found: Sequence[Group]) -> str:
    words = wording.words(found)
    return markup.card(
        "Words",
        "<dl>" + "".join(f"<dt>{escape(word)}</dt><dd>{escape(text)}</dd>" for word, text in words.items()) + "</dl>",
    )


def _small(text: str) -> str:
    return f'<p class="small">{escape(text)}</p>' if text else ""
