"""The pictures of a prediction as plotly figures: layer kinds on the roofline, and how workloads of a sweep compare.

Predicted points lie on the roof that bounds them. What is not known is not drawn. Figures hold data only.

Example: ``for name, figure in sweep_plots(prediction): …``
"""

import math
from collections.abc import Callable, Sequence

import plotly.graph_objects as go

from calibrate.report.charts import AXIS, LAYOUT, plotly_text, roofline_figure
from calibrate.report.predicted import wording
from calibrate.report.predicted.kinds import KindRow, kind_rows
from calibrate.report.roofs import Point
from calibrate.report.units import UNKNOWN, bytes_per_s, flops, flops_per_s, magnitude, number, percent, seconds, size
from roofline.hardware.spec import Peaks
from roofline.predict.passes import PassPrediction, Prediction

SERIES = 12
"""Lines of a plot that can be told apart; of more, so many evenly chosen ones are drawn."""

CROWD = 48
"""Points from which they are drawn small."""

NAMED = 6
"""Lines with their names beside them; more would cover each other."""

LEAST_CLOUD = 3
"""Workloads from which latency against throughput is a picture."""

LINES = (
    "#1f77b4", "#d62728", "#2ca02c", "#ff7f0e", "#9467bd", "#17becf",
    "#8c564b", "#e377c2", "#bcbd22", "#393b79", "#7f7f7f", "#000000",
)  # fmt: skip

WIDE = 400.0
"""Highest ÷ lowest from which an axis has powers of ten alone."""

SYMBOLS = {"prefill": "square", "decode": "circle", "chunk": "diamond", "mixed": "cross"}

ORIGIN = {"datasheet": "datasheet", "measured": "achieved"}
"""How the plot of the roofs names what the peaks come from."""

Series = dict[str, list[tuple[float, PassPrediction]]]
"""Passes by the name of their line, each with its place on the x axis."""


def roofline_chart(step: PassPrediction, prediction: Prediction, peaks: Peaks) -> go.Figure:
    """Attainable FLOP/s over FLOPs per byte: a point a layer kind, its area its share of the time."""
    rows = on_roofline(step)
    points = [
        Point(row.kind, row.intensity or 0.0, row.flops_per_s or 0.0, row.share or 0.0, _hover(row)) for row in rows
    ]
    dtypes = tuple(dict.fromkeys([step.workloads[0].dtype, *(row.dtype for row in rows if row.matrix_flops > 0)]))
    origin = ORIGIN.get(prediction.peaks, "datasheet")
    return roofline_figure(points, {origin: peaks}, dtypes, title="attainable FLOP/s")


def on_roofline(step: PassPrediction) -> tuple[KindRow, ...]:
    """Layer kinds with a place on a logarithmic plot."""
    return tuple(row for row in kind_rows(step) if row.flops > 0 and row.bytes.total > 0 and row.time_s)


def sweep_plots(prediction: Prediction) -> tuple[tuple[str, str, go.Figure], ...]:
    """(name, title, figure) of each picture that the workloads make; none for a single workload."""
    known = [step for step in prediction.passes if step.time_s and step.memory.peak]
    steps = [step for step in known if len(step.workloads) == 1]
    found = []
    batches = _series(steps, _line_of_lengths, lambda step: step.workloads[0].batch)
    if batches:
        figure = _lines(batches, "batch", "tokens/s", lambda step: step.tokens_per_s or 0.0)
        found.append(("batch-throughput", "Throughput over batch", figure))
    lengths = _series(steps, _line_of_batch, _length)
    if lengths:
        figure = _lines(lengths, "prompt or context, tokens", "time of the pass", lambda step: step.time_s or 0.0)
        found.append(("length-latency", "Latency over length", figure))
    if len(steps) >= LEAST_CLOUD:
        found.append(("latency-throughput", "Latency, throughput and memory", _cloud(steps)))
    return tuple(found)


def _series(
    steps: Sequence[PassPrediction], line: Callable[[PassPrediction], str], place: Callable[[PassPrediction], float]
) -> Series:
    """Lines of at least two points, from left to right."""
    found: Series = {}
    for step in steps:
        found.setdefault(line(step), []).append((place(step), step))
    lines = {name: sorted(points, key=lambda p: p[0]) for name, points in found.items()}
    lines = {name: points for name, points in lines.items() if len({x for x, _ in points}) > 1}
    if len(lines) <= SERIES:
        return lines
    names = list(lines)
    chosen = [names[round(i * (len(names) - 1) / (SERIES - 1))] for i in range(SERIES)]
    return {name: lines[name] for name in chosen}


def _line_of_lengths(step: PassPrediction) -> str:
    w = step.workloads[0]
    lengths = {"prefill": f"prompt {w.query_tokens}", "decode": f"context {w.context_tokens}"}
    return f"{w.phase}, {lengths.get(w.phase, f'{w.query_tokens} after {w.context_tokens}')}"


def _line_of_batch(step: PassPrediction) -> str:
    w = step.workloads[0]
    chunk = f" {w.query_tokens}" if w.phase == "chunk" else ""
    return f"{w.phase}{chunk}, batch {w.batch}"


def _length(step: PassPrediction) -> float:
    """Of the prompt, or of what is cached."""
    w = step.workloads[0]
    return w.context_tokens if w.context_tokens else w.query_tokens


def _lines(series: Series, x_title: str, y_title: str, value: Callable[[PassPrediction], float]) -> go.Figure:
    """A line a series on two logarithmic axes; what does not fit is hollow."""
    figure = go.Figure()
    for i, (name, points) in enumerate(series.items()):
        steps = [step for _, step in points]
        figure.add_scatter(
            name=name,
            x=[x for x, _ in points],
            y=[value(step) for step in steps],
            mode="lines+markers",
            line={"color": LINES[i % len(LINES)], "width": 1.6},
            marker={
                "symbol": [_symbol(step) for step in steps],
                "size": 8 if len(points) <= CROWD else 4,
                "color": LINES[i % len(LINES)],
                "line": {"width": 1.6, "color": LINES[i % len(LINES)]},
            },
            customdata=[_about(step) for step in steps],
            hovertemplate="%{customdata}<extra></extra>",
        )
    _framed(figure, x_title, y_title, [value(step) for points in series.values() for _, step in points])
    _hollow_in_legend(figure, [step for points in series.values() for _, step in points])
    ticks = sorted({x for points in series.values() for x, _ in points})
    if len(ticks) <= SERIES:  # the sizes that were asked for, not powers of ten
        figure.update_xaxes(tickvals=ticks, ticktext=[number(x) for x in ticks])
    else:
        figure.update_xaxes(**_ticks(ticks, number))
    return figure


def _cloud(steps: Sequence[PassPrediction]) -> go.Figure:
    """Throughput over latency, memory as colour, a line a length over the batch; what does not fit is hollow."""
    figure = go.Figure()
    peaks = [step.memory.peak for step in steps]
    lengths = _series(steps, _line_of_lengths, lambda step: step.workloads[0].batch)
    for name, points in lengths.items():
        figure.add_scatter(
            name=name,
            x=[step.time_s for _, step in points],
            y=[step.tokens_per_s for _, step in points],
            mode="lines",
            line={"color": "#c9d3e3", "width": 1.2},
            showlegend=False,
            hoverinfo="skip",
        )
        if len(lengths) > NAMED:
            continue
        last = points[-1][1]
        figure.add_annotation(
            text=plotly_text(name.partition(", ")[2]),
            x=math.log10(last.time_s or 1.0),
            y=math.log10(last.tokens_per_s or 1.0),
            showarrow=False,
            yanchor="bottom",
            yshift=7,
            font={"size": 11, "color": "#5b6675"},
        )
    for phase in dict.fromkeys(wording.phase(step) for step in steps):
        some = [step for step in steps if wording.phase(step) == phase]
        figure.add_scatter(
            name=phase,
            x=[step.time_s for step in some],
            y=[step.tokens_per_s for step in some],
            mode="markers",
            marker={
                "symbol": [_symbol(step) for step in some],
                "size": 11 if len(steps) <= CROWD else 6,
                "color": [math.log10(step.memory.peak) for step in some],
                "cmin": math.log10(min(peaks)),
                "cmax": math.log10(max(peaks)),
                "colorscale": "Viridis",
                "reversescale": True,
                "showscale": phase == wording.phase(steps[0]),
                "colorbar": {
                    "title": {"text": "memory", "side": "right"},
                    "thickness": 14,
                    **_sizes(min(peaks), max(peaks)),
                },
                "line": {"width": 1.8 if len(steps) <= CROWD else 0},
            },
            customdata=[_about(step) for step in some],
            hovertemplate="%{customdata}<extra></extra>",
        )
    _framed(figure, "time of the pass", "tokens/s", [step.tokens_per_s or 0.0 for step in steps])
    times = [step.time_s or 0.0 for step in steps]
    figure.update_xaxes(**_ticks(times, _seconds))
    _hollow_in_legend(figure, steps)
    return figure


def _sizes(low: float, high: float) -> dict[str, list[object]]:
    """Five ticks of a logarithmic colour scale."""
    values = [low * (high / low) ** (i / 4) for i in range(5)] if high > low else [low]
    return {"tickvals": [math.log10(value) for value in values], "ticktext": [size(value) for value in values]}


def _framed(figure: go.Figure, x_title: str, y_title: str, y: Sequence[float]) -> None:
    figure.update_layout(
        LAYOUT,
        height=460,
        margin={"l": 80, "r": 20, "t": 10, "b": 60},
        showlegend=True,
        legend={"orientation": "h", "y": -0.2, "yanchor": "top", "x": 0},
    )
    figure.update_xaxes(AXIS, type="log", title=x_title, tickformat="~s")
    text = _seconds if y_title.startswith("time") else _tokens
    figure.update_yaxes(AXIS, type="log", title=y_title, **_ticks(y, text))


def _ticks(values: Sequence[float], text: Callable[[float], str]) -> dict[str, list[object]]:
    """Powers of ten that the values span; 2 and 5 between them where there are few."""
    low, high = min(values) / 1.3, max(values) * 1.3
    steps = (1.0, 2.0, 5.0) if high / low < WIDE else (1.0,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]
    return {"tickvals": [*found], "ticktext": [text(value) for value in found]}


def _seconds(value: float) -> str:
    return _short(seconds(value))


def _tokens(value: float) -> str:
    return _short(magnitude(value))


def _short(text: str) -> str:
    """ "5.00 ms" as "5 ms"."""
    figure, space, unit = text.partition(" ")
    return (figure.rstrip("0").rstrip(".") if "." in figure else figure) + space + unit


def _hollow_in_legend(figure: go.Figure, steps: Sequence[PassPrediction]) -> None:
    if any(step.fits is False for step in steps):
        figure.add_scatter(
            name="does not fit", x=[None], y=[None], mode="markers",
            marker={"symbol": "circle-open", "color": "#5b6675", "size": 9},
        )  # fmt: skip


def _symbol(step: PassPrediction) -> str:
    return SYMBOLS[wording.phase(step)] + ("-open" if step.fits is False else "")


def _about(step: PassPrediction) -> str:
    fits = "" if step.fits is not False else "<br><b>! does not fit</b>"
    return (
        f"<b>{plotly_text(wording.title(step))}</b><br>{seconds(step.time_s)}, {wording.rate(step.tokens_per_s)}<br>"
        f"{flops(step.matrix_flops + step.vector_flops)}, {size(step.bytes.total)} moved<br>"
        f"memory {size(step.memory.peak)}{fits}"
    )


def _hover(row: KindRow) -> str:
    moved = bytes_per_s(row.bytes.total / row.time_s if row.time_s else None)
    return "<br>".join(
        (
            f"<b>{plotly_text(row.label)}</b> {plotly_text(row.kind)} × {number(row.count)}",
            f"{seconds(row.time_s)} ({percent(row.share)} of the pass)",
            f"{flops(row.flops)}, {size(row.bytes.total)}, {magnitude(row.intensity)} FLOP/B",
            f"{flops_per_s(row.flops_per_s)}, {moved}, bound: {plotly_text(row.bound or UNKNOWN)}",
            *(plotly_text(f"also {words}"[:90]) for words in row.also[:6]),
        )
    )
