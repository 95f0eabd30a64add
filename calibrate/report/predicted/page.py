"""A prediction as one HTML file with its pictures, that opens offline: plotly.js is inside, nothing is fetched.

Tables sort by a click on a header. Names are escaped.

Example: ``Path("prediction.html").write_text(render(prediction, spec.datasheet), encoding="utf-8")``
"""

from html import escape

from calibrate.report import markup
from calibrate.report.markup import Cell
from calibrate.report.predicted import drawing, kinds, plots, wording
from calibrate.report.predicted.block import blocks
from calibrate.report.units import number, percent, seconds, size
from roofline.hardware.spec import Peaks
from roofline.predict.passes import PassPrediction, Prediction

STYLE = """
.layers td:first-child { min-width: 190px; }
.layers th, .layers td { padding: 4px 5px; }
.layers table { font-size: 12px; }
@media (max-width: 1200px) { .layers td:first-child { min-width: 150px; }
                             .layers table { font-size: 10.5px; } .layers th, .layers td { padding: 3px 3px; } }
"""

BAR = "background:linear-gradient(90deg,#d8e3f4 {0},transparent {0})"


def render(prediction: Prediction, peaks: Peaks) -> str:
    """The whole document; `peaks` are those the prediction was made with."""
    said = "".join(f"<p>{escape(sentence)}</p>" for sentence in wording.summary(prediction))
    notes = "".join(f'<p class="warning">{escape(note)}</p>' for note in prediction.notes)
    detailed = [(i, step) for i, step in enumerate(prediction.passes) if step.ops]
    body = [
        f"<style>{STYLE}{drawing.STYLE}</style>",
        f"<header><h1>{escape(prediction.model)} on {escape(prediction.hardware)}</h1>{said}</header>{notes}",
        _workloads(prediction),
        _requests(prediction),
        *(
            markup.card(title, markup.chart(figure, name), _plot_notes(prediction))
            for name, title, figure in plots.sweep_plots(prediction)
        ),
        *(_pass(i, step, prediction, peaks) for i, step in detailed),
        _words() if detailed else "",
    ]
    return markup.document(f"{prediction.model} on {prediction.hardware}", body)


def _workloads(prediction: Prediction) -> str:
    rows = []
    for i, step in enumerate(prediction.passes):
        name = escape(wording.title(step))
        cells = [markup.figure(*cell) for cell in wording.sweep_row(step)]
        text, attributes = cells[-1]
        cells[-1] = (text, attributes + (' class="bad"' if step.fits is False else ""))
        waits = markup.plain(wording.bounds(step))
        rows.append([(f'<a href="#pass-{i}">{name}</a>' if step.ops else name, ""), *cells, waits])
    header: tuple[str, ...] = ("workload", *wording.SWEEP_COLUMNS, "waits for")
    if not any(step.ops for step in prediction.passes):
        header, rows = header[:-1], [row[:-1] for row in rows]
    table = markup.table(header, rows, left=(0, len(wording.SWEEP_COLUMNS) + 1), tall=True)
    return markup.card("Workloads", table) if rows else ""


def _requests(prediction: Prediction) -> str:
    rows = []
    for request, cells in zip(prediction.requests, wording.request_rows(prediction), strict=True):
        row = [markup.figure(*cell) for cell in cells]
        text, attributes = row[-1]
        row[-1] = (text, attributes + (' class="bad"' if request.fits is False else ""))
        rows.append(row)
    if not rows:
        return ""
    words = "TTFT: time to the first token; TPOT: mean time of each further one; tokens/s: output of the whole batch."
    table = markup.table(wording.REQUEST_COLUMNS, rows, left=())
    return markup.card("Requests", table, f'<p class="small">{words}</p>')


def _pass(i: int, step: PassPrediction, prediction: Prediction, peaks: Peaks) -> str:
    misfit = wording.misfit(step, prediction)
    absent = len(kinds.kind_rows(step)) - len(plots.on_roofline(step))
    note = f"; {absent} without FLOPs, bytes or a known time have no place on it" if absent else ""
    return "".join(
        (
            f'<section id="pass-{i}"><h2>{escape(wording.title(step))}</h2>',
            f'<p class="headline">{escape(wording.headline(step, prediction))}</p>',
            f'<p class="verdict">{escape(misfit)}</p>' if misfit else "",
            _memory(step, prediction),
            markup.card(f"All {len(kinds.kind_rows(step))} layer kinds", _layers(step)),
            markup.card(
                "Roofline",
                markup.chart(plots.roofline_chart(step, prediction, peaks), f"roofline-{i}"),
                f'<p class="small">A point is a layer kind, its area its share of the time; it lies on the roof that '
                f"bounds it, or below where several levels of memory or kinds of work share its time{note}.</p>",
            ),
            _blocks(i, step),
            "</section>",
        )
    )


def _memory(step: PassPrediction, prediction: Prediction) -> str:
    found = step.memory
    parts = (
        ("weights", found.weights, "all parameters and buffers"),
        ("KV cache", found.kv_cache, "after the pass"),
        ("activations", found.activations, "most that is held at one time"),
        ("peak", found.peak, "most that is held at one time in all: the parts need not peak together"),
    )
    capacity = prediction.capacity_bytes
    rows = [
        [
            markup.plain(name),
            markup.figure(size(value), value),
            _bar(percent(value / capacity), value / capacity),
            markup.plain(meaning),
        ]
        for name, value, meaning in parts
    ]
    header = ("memory", "size", f"of {size(capacity)}", "")
    return markup.card("Memory", markup.table(header, rows, left=(0, 3)))


def _layers(step: PassPrediction) -> str:
    rows = kinds.kind_rows(step)
    shown = kinds.shown_columns(rows)
    used = tuple(column for column in kinds.CLASS_COLUMNS if any(column.value(row) for row in rows))
    columns = (*shown, *used)
    cells = [[_cell(column, row) for column in columns] for row in rows]
    total = kinds.total_row(rows, "total", step.time_s)
    foot = [("" if column.key in ("bound", "dtype") else escape(column.cell(total)), "") for column in columns]
    left = [i for i, column in enumerate(columns) if column.text]
    table = markup.table([column.header for column in columns], cells, left=left, foot=foot, tall=True)
    return f'<div class="layers">{table}</div>'


def _cell(column: kinds.Column, row: kinds.KindRow) -> Cell:
    text = escape(column.cell(row))
    if column.key == "path":
        also = escape("\n".join((", ".join(row.names), *(f"also {words}" for words in row.also[:12]))))
        return f"<code>{text.replace('.', '.<wbr>')}</code>", f' title="{also}"'
    if column.text:
        return text, ""
    value = column.value(row)
    if column.key == "share" and row.share is not None:
        return _bar(text, row.share)
    return text, f' data-v="{"" if value is None else value}"'


def _bar(text: str, share: float) -> Cell:
    style = BAR.format(f"{100 * min(max(share, 0.0), 1.0):.1f}%")
    return text, f' data-v="{share}" style="{style}"'


def _blocks(i: int, step: PassPrediction) -> str:
    found = blocks(step)
    parts = []
    for n, block in enumerate(found):
        what = f"<code>{escape(block.path)}</code>" if block.path else "the model"
        alike = f", one of {number(block.layers)} alike" if block.layers > 1 else ""
        time = seconds(block.time_s)
        parts.append(f"<p><b>{what}</b>{alike}: {time} a layer; the numbers are of one layer.</p>")
        parts.append(drawing.svg(block, f"block-{i}-{n}"))
    return markup.card("What one block does", drawing.LEGEND, *parts) if parts else ""


def _plot_notes(prediction: Prediction) -> str:
    said = f"At most {plots.SERIES} lines, evenly chosen."
    if any(step.fits is False for step in prediction.passes):
        said += f" Hollow: needs more than the device's {size(prediction.capacity_bytes)}."
    return f'<p class="small">{said}</p>'


def _words() -> str:
    entries = "".join(f"<dt>{escape(word)}</dt><dd>{escape(text)}</dd>" for word, text in wording.WORDS.items())
    return markup.card("Words", f"<dl>{entries}</dl>")
