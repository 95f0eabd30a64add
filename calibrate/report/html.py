"""A run as one HTML file with its pictures, that opens offline: plotly.js is inside, nothing is fetched.

The same facts and tables as the Markdown report, sortable by a click on a header.

Example: ``Path("report.html").write_text(render(reports, run, spec, failed), encoding="utf-8")``
"""

from collections.abc import Iterable, Sequence
from html import escape

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from calibrate.efficiency import PassReport
from calibrate.report import charts, peaks, tables, wording
from calibrate.report.page import SCRIPT, STYLE
from calibrate.report.units import UNKNOWN, number, percent, seconds
from profiler.record.run import CellResult, Run
from roofline.hardware import HardwareSpec

FEW = 10
"""Inactive parameters that are named; the rest are counted."""

Cell = tuple[str, str]
"""(markup, attributes) of a table's cell."""


def render(reports: Sequence[PassReport], run: Run, spec: HardwareSpec, failed: Sequence[CellResult] = ()) -> str:
    """The whole document; plotly.js is in it once."""
    title = f"{run.name} on {run.environment.device}"
    body = [
        f"<header><h1>{escape(run.environment.device)}</h1><p>{escape(run.name)}, {escape(run.started)}</p></header>",
        _passes(reports, run) if reports else "<p>No pass has been measured in this run.</p>",
        _failed(failed),
        _device(run, spec),
        *(_pass(i, report, run, spec) for i, report in enumerate(reports)),
        _words(),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style><script>{get_plotlyjs()}</script></head>\n"
        f"<body><main>{''.join(body)}</main><script>{SCRIPT}</script></body></html>\n"
    )


def _passes(reports: Sequence[PassReport], run: Run) -> str:
    rows = [
        [
            (f'<a href="#pass-{i}">{escape(wording.title(report))}</a>', ""),
            _status(report),
            _figure(seconds(report.wall_s), report.wall_s),
            _figure(f"± {percent(report.noise)}", report.noise),
            _figure(seconds(report.busy_s), report.busy_s),
            _figure(seconds(tables.ideal_total_s(report)), tables.ideal_total_s(report)),
            _plain(report.ideal_peaks or UNKNOWN),
            _figure(seconds(report.predicted_busy_s), report.predicted_busy_s),
            _figure(seconds(report.predicted_wall_s), report.predicted_wall_s),
            _closes(report, run),
        ]
        for i, report in enumerate(reports)
    ]
    header = (
        "pass",
        "status",
        "wall",
        "noise",
        "busy",
        "could be",
        "at peaks",
        "predicted busy",
        "predicted wall",
        "closure",
    )
    return _card("Passes", _table(header, rows, left=(0, 1, 6, 9)))


def _status(report: PassReport) -> Cell:
    verdict = wording.verdict(report)
    return escape(report.status), f' class="bad" title="{escape(verdict)}"' if verdict else ""


def _pass(i: int, report: PassReport, run: Run, spec: HardwareSpec) -> str:
    facts = [
        wording.ideal_uses(report, spec),
        wording.predicted(report),
        wording.how_timed(report),
        *wording.notes(report),
        wording.what_ran(report),
    ]
    verdict = wording.verdict(report)
    warnings = "".join(f'<p class="warning">{escape(sentence)}</p>' for sentence in wording.warnings(report))
    absent = len(report.layers) - len(charts.on_roofline(report))
    shown = min(charts.BARS, len(report.layers))
    bars = f"the {shown} slowest of {len(report.layers)}" if shown < len(report.layers) else f"all {shown}"
    absent_note = f"; {absent} without FLOPs or bytes (copies, say) have no place on it" if absent else ""
    return "".join(
        (
            f'<section id="pass-{i}"><h2>{escape(wording.title(report))}</h2>',
            f'<p class="verdict">{escape(verdict)}</p>' if verdict else "",
            f'<p class="headline">{escape(wording.headline(report))}</p>{warnings}',
            f"<ul>{''.join(f'<li>{escape(fact)}</li>' for fact in facts)}</ul>",
            _card(
                "Where the wall time goes",
                '<div class="pair">',
                _chart(charts.waterfall_chart(report), f"waterfall-{i}"),
                f"<div>{_waterfall(report)}{_closure(report, run)}</div></div>",
            ),
            _card(
                "Roofline",
                _chart(charts.roofline_chart(report, spec), f"roofline-{i}"),
                f'<p class="small">A point is a layer kind, its area its share of the wall, a red rim '
                f"an efficiency above 1{absent_note}.</p>",
            ),
            _card(
                "Layer kinds",
                f'<p class="small">Measured with ideal ÷ measured beside it: {bars} layer kinds.</p>',
                _chart(charts.layer_chart(report), f"layers-{i}"),
            ),
            _card(f"All {len(report.layers)} layer kinds", _layers(report)),
            _details("Waterfall of each layer kind", _layer_waterfalls(report)),
            _listed(
                f"{len(report.differences)} differences between the meta trace and what the device ran",
                report.differences,
            ),
            _listed(f"{len(report.inactive)} parameters are not read in this phase", _first(report.inactive)),
            "</section>",
        )
    )


def _layers(report: PassReport) -> str:
    rows = tables.layer_rows(report)
    cells = [[*(_layer_cell(column, row) for column in tables.LAYER_COLUMNS), _kernels(row)] for row in rows]
    total = tables.busy_row(report)
    foot = [*((escape(column.cell(total)), "") for column in tables.LAYER_COLUMNS), ("", "")]
    left = [i for i, column in enumerate(tables.LAYER_COLUMNS) if column.text]
    header = [*(column.header for column in tables.LAYER_COLUMNS), "kernels"]
    return _table(header, cells, left=(*left, len(header) - 1), foot=foot, tall=True)


def _layer_cell(column: tables.Column, row: tables.LayerRow) -> Cell:
    text = escape(column.cell(row))
    if column.key == "path":
        return f"<code>{text}</code>", ""
    if column.text:
        return text, ""
    value = column.value(row)
    sort = f' data-v="{value}"' if value is not None else ' data-v=""'
    if column.key == "share" and row.share is not None:
        filled = f"{100 * min(max(row.share, 0.0), 1.0):.1f}%"
        return text, f'{sort} style="background:linear-gradient(90deg,#d8e3f4 {filled},transparent {filled})"'
    if column.key == "repeat":
        return text, f'{sort} class="repeat"'
    if column.key == "efficiency" and row.above_one:
        return text, f'{sort} class="bad"'
    return text, sort


def _kernels(row: tables.LayerRow) -> Cell:
    names = escape(", ".join(row.kernels) or UNKNOWN)
    more = f" and {len(row.kernels) - 1} more" if len(row.kernels) > 1 else ""
    return escape(row.kernels[0] if row.kernels else UNKNOWN) + more, f' class="kernels" title="{names}"'


def _waterfall(report: PassReport) -> str:
    rows = [
        [
            _plain(row.label),
            _figure(seconds(row.time_s, signed=True), row.time_s),
            _figure(percent(row.share, signed=True), row.share),
            _plain(wording.meaning(row)),
        ]
        for row in tables.waterfall_rows(report.waterfall, report.wall_s)
    ]
    foot = [("wall", ""), (seconds(report.wall_s), ""), (percent(1.0), ""), ("median of the unprofiled passes", "")]
    return _table(("term", "time", "of wall", "what it is"), rows, left=(0, 3), foot=foot)


def _layer_waterfalls(report: PassReport) -> str:
    terms, rows = tables.layer_terms(report)
    cells = [
        [
            (f"<code>{escape(label)}</code>", ""),
            _plain(kind),
            *(_figure(seconds(value, signed=True), value) for value in values),
        ]
        for label, kind, values in rows
    ]
    return _table(("layer kind", "kind", *terms), cells, left=(0, 1), tall=True)


def _closure(report: PassReport, run: Run) -> str:
    words = {None: UNKNOWN, True: "holds", False: "does not hold"}
    rows = [
        [
            _plain(fact.name),
            (escape(fact.value), ""),
            _plain(fact.asked),
            (
                ": ".join(filter(None, (words[fact.holds], escape(fact.implies)))),
                ' class="bad"' if fact.holds is False else "",
            ),
        ]
        for fact in wording.closure(report, run.environment.device_kind)
    ]
    return _table(("closure", "found", "asked", ""), rows, left=(0, 2, 3))


def _closes(report: PassReport, run: Run) -> Cell:
    if wording.closes(report, run.environment.device_kind):
        return "holds", ""
    return "does not hold", ' class="bad"'


def _device(run: Run, spec: HardwareSpec) -> str:
    facts = [[_plain(fact.name), _plain(fact.value)] for fact in wording.environment(run)]
    facts += [[_plain("warning"), _plain(note)] for note in run.environment.notes]
    found = peaks.peak_rows(spec)
    rows = [
        [
            _plain(row.name),
            (row.show(row.datasheet.value if row.datasheet else None), ""),
            (row.show(row.measured.value if row.measured else None), ""),
            (row.interval() or UNKNOWN, ""),
            _plain(row.datasheet.source if row.datasheet else UNKNOWN),
            _plain(row.measured.source if row.measured else UNKNOWN),
        ]
        for row in found
    ]
    header = ("peak", "datasheet", "achieved", peaks.RANGE, "source of the datasheet's", "how it was achieved")
    rates = _table(header, rows, left=(0, 4, 5)) if found else "<p>No peaks of this device are known.</p>"
    warning = peaks.unsteady(found)
    said = f'<p class="warning">{escape(warning)}</p>' if warning else ""
    absent = "".join(f'<p class="small">{escape(line)}</p>' for line in peaks.missing(spec))
    return _card("Device", _table(("", ""), facts, left=(0, 1)), said, rates, absent)


def _words() -> str:
    words = {**wording.WORDS, **{term.replace("_", " "): wording.MEANING[term] for term in tables.TERMS}}
    return _card(
        "Words",
        "<dl>" + "".join(f"<dt>{escape(word)}</dt><dd>{escape(text)}</dd>" for word, text in words.items()) + "</dl>",
    )


def _failed(failed: Sequence[CellResult]) -> str:
    rows = [
        [_plain(what), (escape(status), ' class="bad"'), _plain(reason)]
        for what, status, reason in wording.failed_rows(failed)
    ]
    return _card("No result", _table(("what", "status", "reason"), rows, left=(0, 1, 2))) if rows else ""


def _first(names: Sequence[str]) -> list[str]:
    more = [f"… and {number(len(names) - FEW)} more"] if len(names) > FEW else []
    return [*names[:FEW], *more]


def _listed(title: str, items: Sequence[str]) -> str:
    return _details(title, f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>") if items else ""


def _details(title: str, content: str) -> str:
    return f'<details class="card"><summary>{escape(title)}</summary>{content}</details>'


def _card(title: str, *content: str) -> str:
    return f'<div class="card"><h3>{escape(title)}</h3>{"".join(content)}</div>'


def _chart(figure: go.Figure, name: str) -> str:
    markup: str = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=name,
        config={"displaylogo": False, "responsive": True, "displayModeBar": False},
    )
    return markup


def _plain(text: str) -> Cell:
    return escape(text), ""


def _figure(text: str, value: float | None) -> Cell:
    return escape(text), f' data-v="{"" if value is None else value}"'


def _table(
    header: Iterable[str],
    rows: Iterable[Sequence[Cell]],
    left: Sequence[int],
    foot: Sequence[Cell] | None = None,
    tall: bool = False,
) -> str:
    """A table; columns numbered in `left` hold words, the others figures."""
    head = "".join(f"<th{_side(i, left)}>{escape(name)}</th>" for i, name in enumerate(header))
    body = "".join(_row(cells, left) for cells in rows)
    end = f"<tfoot>{_row(foot, left)}</tfoot>" if foot else ""
    return (
        f'<div class="scroll{" tall" if tall else ""}"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody>{end}</table></div>"
    )


def _row(cells: Sequence[Cell], left: Sequence[int]) -> str:
    inside = "".join(f"<td{_side(i, left, attributes)}>{markup}</td>" for i, (markup, attributes) in enumerate(cells))
    return f"<tr>{inside}</tr>"


def _side(i: int, left: Sequence[int], attributes: str = "") -> str:
    """The attributes of a cell, which is of class "words" besides where its column holds words."""
    if i not in left:
        return attributes
    if ' class="' in attributes:
        return attributes.replace(' class="', ' class="words ')
    return attributes + ' class="words"'
