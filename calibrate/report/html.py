"""A run as one HTML file with its pictures, that opens offline: plotly.js is inside, nothing is fetched.

The same facts and tables as the Markdown report, sortable by a click on a header.

Example: ``Path("report.html").write_text(render(reports, run, spec, failed), encoding="utf-8")``
"""

from collections.abc import Sequence
from html import escape

from calibrate.passes.pass_report import PassReport
from calibrate.report import charts, compiled, markup, peaks, tables, wording
from calibrate.report.markup import Cell
from calibrate.report.units import UNKNOWN, number, percent, plus_minus, seconds
from profiler.record.run import CellResult, Run
from roofline.hardware.spec import HardwareSpec

FEW = 10
"""Inactive parameters that are named; the rest are counted."""


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
    return markup.document(title, body)


def _passes(reports: Sequence[PassReport], run: Run) -> str:
    rows = [
        [
            (f'<a href="#pass-{i}">{escape(wording.title(report))}</a>', ""),
            _status(report),
            markup.figure(seconds(report.wall_s), report.wall_s),
            markup.figure(f"± {plus_minus(*ends, report.wall_s)}", tables.half_width(*ends)),
            markup.figure(seconds(report.busy_s), report.busy_s),
            markup.figure(seconds(tables.ideal_total_s(report)), tables.ideal_total_s(report)),
            markup.plain(report.ideal_peaks or UNKNOWN),
            markup.figure(seconds(report.predicted_busy_s), report.predicted_busy_s),
            markup.figure(seconds(report.predicted_wall_s), report.predicted_wall_s),
            _closes(report, run),
        ]
        for i, report in enumerate(reports)
        for ends in ((report.wall_s_low, report.wall_s_high),)
    ]
    header = (
        "pass",
        "status",
        "wall",
        "±",
        "busy",
        "could be",
        "at peaks",
        "predicted busy",
        "predicted wall",
        "closure",
    )
    return markup.card("Passes", markup.table(header, rows, left=(0, 1, 6, 9)))


def _status(report: PassReport) -> Cell:
    verdict = wording.verdict(report)
    return escape(report.status), f' class="bad" title="{escape(verdict)}"' if verdict else ""


def _pass(i: int, report: PassReport, run: Run, spec: HardwareSpec) -> str:
    facts = [
        wording.ideal_uses(report, spec),
        wording.predicted(report),
        *wording.level(report),
        wording.compared(report),
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
            markup.card(
                "Where the wall time goes",
                '<div class="pair">',
                markup.chart(charts.waterfall_chart(report), f"waterfall-{i}"),
                f"<div>{_waterfall(report)}{_closure(report, run)}</div></div>",
            ),
            markup.card(
                "Roofline",
                markup.chart(charts.roofline_chart(report, spec), f"roofline-{i}"),
                f'<p class="small">A point is a layer kind, its area its share of the wall, a red rim '
                f"an efficiency above 1{absent_note}.</p>",
            ),
            markup.card(
                "Layer kinds",
                f'<p class="small">Measured with ideal ÷ measured beside it: {bars} layer kinds.</p>',
                markup.chart(charts.layer_chart(report), f"layers-{i}"),
            ),
            markup.card(f"All {len(report.layers)} layer kinds", _layers(report)),
            _compiled(report),
            markup.details("Waterfall of each layer kind", _layer_waterfalls(report)),
            markup.listed(
                f"{len(report.differences)} differences between the meta trace and what the device ran",
                report.differences,
            ),
            markup.listed(f"{len(report.inactive)} parameters are not read in this phase", _first(report.inactive)),
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
    return markup.table(header, cells, left=(*left, len(header) - 1), foot=foot, tall=True)


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


def _compiled(report: PassReport) -> str:
    """Of a compiled pass."""
    if not report.kernels:
        return ""
    rows = []
    for kernel in report.kernels:
        name, modules, count, time, share, predicted = compiled.cells(kernel, report)
        rows.append([
            markup.plain(name),
            markup.plain(modules),
            markup.figure(count, kernel.count),
            markup.figure(time, kernel.measured_s),
            markup.figure(share, kernel.measured_s),
            markup.figure(predicted, kernel.predicted_s),
        ])  # fmt: skip
    return markup.card(compiled.TITLE, markup.table(compiled.HEADER, rows, left=(0, 1)))


def _waterfall(report: PassReport) -> str:
    rows = [
        [
            markup.plain(row.label),
            markup.figure(seconds(row.time_s, signed=True), row.time_s),
            markup.figure(seconds(row.half_s), row.half_s),
            markup.figure(percent(row.share, signed=True), row.share),
            markup.plain(wording.meaning(row)),
        ]
        for row in tables.pass_terms(report)
    ]
    wall = ("wall", seconds(report.wall_s), wording.half_wall(report), percent(1.0), "median of the unprofiled passes")
    foot = [(text, "") for text in wall]
    return markup.table(("term", "time", "±", "of wall", "what it is"), rows, left=(0, 4), foot=foot)


def _layer_waterfalls(report: PassReport) -> str:
    terms, rows = tables.layer_terms(report)
    cells = [
        [
            (f"<code>{escape(label)}</code>", ""),
            markup.plain(kind),
            *(markup.figure(seconds(value, signed=True), value) for value in values),
        ]
        for label, kind, values in rows
    ]
    return markup.table(("layer kind", "kind", *terms), cells, left=(0, 1), tall=True)


def _closure(report: PassReport, run: Run) -> str:
    words = {None: UNKNOWN, True: "holds", False: "does not hold"}
    rows = [
        [
            markup.plain(fact.name),
            (escape(fact.value), ""),
            markup.plain(fact.asked),
            (
                ": ".join(filter(None, (words[fact.holds], escape(fact.implies)))),
                ' class="bad"' if fact.holds is False else "",
            ),
        ]
        for fact in wording.closure(report, run.environment.device_kind)
    ]
    return markup.table(("closure", "found", "asked", ""), rows, left=(0, 2, 3))


def _closes(report: PassReport, run: Run) -> Cell:
    if wording.closes(report, run.environment.device_kind):
        return "holds", ""
    return "does not hold", ' class="bad"'


def _device(run: Run, spec: HardwareSpec) -> str:
    facts = [[markup.plain(fact.name), markup.plain(fact.value)] for fact in wording.environment(run)]
    facts += [[markup.plain("warning"), markup.plain(note)] for note in run.environment.notes]
    found = peaks.peak_rows(spec)
    rows = [
        [
            markup.plain(row.name),
            (row.show(row.datasheet.value if row.datasheet else None), ""),
            (row.show(row.measured.value if row.measured else None), ""),
            (row.interval() or UNKNOWN, ""),
            markup.plain(row.datasheet.source if row.datasheet else UNKNOWN),
            markup.plain(row.measured.source if row.measured else UNKNOWN),
        ]
        for row in found
    ]
    header = ("peak", "datasheet", "achieved", peaks.RANGE, "source of the datasheet's", "how it was achieved")
    rates = markup.table(header, rows, left=(0, 4, 5)) if found else "<p>No peaks of this device are known.</p>"
    warning = peaks.unsteady(found)
    said = f'<p class="warning">{escape(warning)}</p>' if warning else ""
    more = [*peaks.missing(spec), *([laws] if (laws := peaks.laws(spec)) is not None else [])]
    absent = "".join(f'<p class="small">{escape(line)}</p>' for line in more)
    return markup.card("Device", markup.table(("", ""), facts, left=(0, 1)), said, rates, absent)


def _words() -> str:
    words = {**wording.WORDS, **{term.replace("_", " "): wording.MEANING[term] for term in tables.TERMS}}
    return markup.card(
        "Words",
        "<dl>" + "".join(f"<dt>{escape(word)}</dt><dd>{escape(text)}</dd>" for word, text in words.items()) + "</dl>",
    )


def _failed(failed: Sequence[CellResult]) -> str:
    rows = [
        [markup.plain(what), (escape(status), ' class="bad"'), markup.plain(reason)]
        for what, status, reason in wording.failed_rows(failed)
    ]
    return markup.card("No result", markup.table(("what", "status", "reason"), rows, left=(0, 1, 2))) if rows else ""


def _first(names: Sequence[str]) -> list[str]:
    more = [f"… and {number(len(names) - FEW)} more"] if len(names) > FEW else []
    return [*names[:FEW], *more]
