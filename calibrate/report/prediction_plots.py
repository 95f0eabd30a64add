"""The pictures of a prediction as plotly figures: layer kinds on the roofline, and how workloads of a sweep compare.

Predicted points lie on the roof that bounds them. What is not known is not drawn. Figures hold data only.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import plotly.graph_objects as go

from calibrate.report import theme
from calibrate.report.pass_plots import Point, roofline_figure
from calibrate.report.prediction_rows import SERIES, KindRow, on_roofline, pass_title, phase, rate
from calibrate.report.theme import FAINT, LIGHT, colour, plain
from roofline.hardware.spec import Peaks
from roofline.predict.passes import PassPrediction, Prediction
from roofline.units import UNKNOWN, bytes_per_s, flops, flops_per_s, magnitude, number, percent, seconds, size

NAMED = 6
"""Lines with names beside them."""
CROWD = 48
"""Points from which they are drawn small."""

SYMBOLS = {"prefill": "square", "decode": "circle", "chunk": "diamond", "mixed": "cross"}

Series = dict[str, list[tuple[float, PassPrediction]]]
"""Passes by the name of their line, each with its place on the x axis."""


def roofline_chart(step: PassPrediction, prediction: Prediction, peaks: Peaks) -> go.Figure:
    """Attainable FLOP/s over FLOPs per byte: a point for each layer kind, its area the share of the time."""
    rows = on_roofline(step)
    places = [
        Point(row.kind, row.intensity or 0.0, row.flops_per_s or 0.0, row.share or 0.0, _hover(row)) for row in rows
    ]
    dtypes = tuple(dict.fromkeys([step.workloads[0].dtype, *(row.dtype for row in rows if row.matrix_flops > 0)]))
    origin = "datasheet" if prediction.peaks == "datasheet" else "achieved"
    return roofline_figure(places, {origin: peaks}, dtypes, title="attainable FLOP/s")


def batch_throughput(prediction: Prediction) -> go.Figure | None:
    """Tokens a second over the batch, a line for each length."""
    batches = _series(_single(prediction), _line_of_lengths, lambda step: step.workloads[0].batch)
    return _lines(batches, "batch", "tokens/s", lambda step: step.tokens_per_s or 0.0) if batches else None


def length_latency(prediction: Prediction) -> go.Figure | None:
    """Seconds over the length of the prompt or the context, a line for each batch."""

    lengths = _series(_single(prediction), _line_of_batch, _length)
    title = "prompt or context, tokens"
    return _lines(lengths, title, "time of the pass", lambda step: step.time_s or 0.0) if lengths else None


def latency_throughput(prediction: Prediction) -> go.Figure | None:
    """Throughput over latency, memory as colour, where there are workloads enough."""
    steps = _single(prediction)
    return _cloud(steps) if len(steps) >= 3 else None


def compared(
    named: Mapping[str, Prediction], over: Literal["batch", "length"], quantity: Literal["tokens/s", "time", "memory"]
) -> go.Figure | None:
    """A quantity of passes over their batch or their length, a line for each phase of each prediction.

    Args: predictions by the name that stands before their lines, "" for none.
    Returns: None where no line has two points; memory has the device's capacity as a line too.
    """
    series: Series = {}
    for name, prediction in named.items():
        if over == "batch":
            lines = _series(_single(prediction), _line_of_lengths, lambda step: step.workloads[0].batch)
        else:
            lines = _series(_single(prediction), _line_of_batch, _length)
        if quantity == "memory":  # the KV cache grows alike in all phases
            lines = {key: places for key, places in lines.items() if key.startswith("decode")} or lines
        series |= {f"{name}{key}": places for key, places in lines.items()}
    if not series:
        return None
    x_title = "batch" if over == "batch" else "prompt or context, tokens"
    if quantity == "tokens/s":
        return _lines(series, x_title, "tokens/s", lambda step: step.tokens_per_s or 0.0)
    if quantity == "time":
        return _lines(series, x_title, "time of the pass", lambda step: step.time_s or 0.0)
    figure = _lines(series, x_title, "memory", lambda step: step.memory.peak)
    ends = [min(ticks := [x for places in series.values() for x, _ in places]), max(ticks)]
    for held in dict.fromkeys(prediction.capacity_bytes for prediction in named.values()):
        theme.line(figure, f"capacity {size(held)}", ends, [held, held], theme.RED)
    return figure


def _single(prediction: Prediction) -> list[PassPrediction]:
    """Passes over one workload whose time is known."""
    return [step for step in prediction.passes if step.time_s and step.memory.peak and len(step.workloads) == 1]


def _series(
    steps: Sequence[PassPrediction], line: Callable[[PassPrediction], str], place: Callable[[PassPrediction], float]
) -> Series:
    """Lines of at least two points, from left to right."""
    every: Series = {}
    for step in sorted(steps, key=place):
        every.setdefault(line(step), []).append((place(step), step))
    lines = {name: points for name, points in every.items() if len({x for x, _ in points}) > 1}
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
    return f"{w.phase}{f' {w.query_tokens}' if w.phase == 'chunk' else ''}, batch {w.batch}"


def _length(step: PassPrediction) -> float:
    return step.workloads[0].context_tokens or step.workloads[0].query_tokens


def _lines(series: Series, x_title: str, y_title: str, value: Callable[[PassPrediction], float]) -> go.Figure:
    """A line for each series on two logarithmic axes; workloads that do not fit are hollow."""
    figure = theme.style(go.Figure(), x_title, y_title, height=460, showlegend=True)
    for i, (name, places) in enumerate(series.items()):
        steps = [step for _, step in places]
        marker = {
            "symbol": [_symbol(step) for step in steps],
            "size": 8 if len(places) <= CROWD else 4,
            "line": {"width": 1.6, "color": colour(i)},
        }
        x, y = [x for x, _ in places], [value(step) for step in steps]
        theme.points(figure, name, x, y, [_about(step) for step in steps], i, marker=marker)
    shown: dict[str, Callable[[float], str]] = {"time of the pass": seconds, "memory": size}
    show = shown.get(y_title, magnitude)
    every = [step for places in series.values() for _, step in places]
    theme.log_axis(figure, "y", [value(step) for step in every], show)
    _hollow_in_legend(figure, every)
    ticks = sorted({x for places in series.values() for x, _ in places})
    theme.log_axis(figure, "x", ticks, number)
    if len(ticks) <= SERIES:  # the sizes that were asked for, not powers of ten
        figure.update_xaxes(tickvals=ticks, ticktext=[number(x) for x in ticks])
    return figure


def _cloud(steps: Sequence[PassPrediction]) -> go.Figure:
    """Throughput over latency, memory as colour, lines of equal lengths; workloads that do not fit are hollow."""
    figure = theme.style(go.Figure(), "time of the pass", "tokens/s", height=460, showlegend=True)
    peaks = [step.memory.peak for step in steps]
    lengths = _series(steps, _line_of_lengths, lambda step: step.workloads[0].batch)
    for name, places in lengths.items():
        x, y = [step.time_s for _, step in places], [step.tokens_per_s for _, step in places]
        plain_line = {"mode": "lines", "line": {"color": LIGHT, "width": 1.2}}
        figure.add_scatter(name=name, x=x, y=y, showlegend=False, hoverinfo="skip", **plain_line)
        if len(lengths) <= NAMED:
            figure.add_annotation(
                text=plain(name.partition(", ")[2]),
                x=math.log10(x[-1] or 1.0),
                y=math.log10(y[-1] or 1.0),
                showarrow=False,
                yanchor="bottom",
                yshift=7,
                font={"size": 11, "color": FAINT},
            )
    colours = {
        "cmin": math.log10(min(peaks)),
        "cmax": math.log10(max(peaks)),
        "colorscale": "Viridis",
        "reversescale": True,
        "colorbar": {"title": {"text": "memory", "side": "right"}, "thickness": 14, **_sizes(min(peaks), max(peaks))},
        "size": 11 if len(steps) <= CROWD else 6,
        "line": {"width": 1.8 if len(steps) <= CROWD else 0},
    }
    for kind in dict.fromkeys(map(phase, steps)):
        some = [step for step in steps if phase(step) == kind]
        marker = {
            "symbol": [_symbol(step) for step in some],
            "color": [math.log10(step.memory.peak) for step in some],
            "showscale": kind == phase(steps[0]),
            **colours,
        }
        x, y = [step.time_s for step in some], [step.tokens_per_s for step in some]
        theme.points(figure, kind, x, y, [_about(step) for step in some], marker=marker, mode="markers")
    theme.log_axis(figure, "x", [step.time_s or 0.0 for step in steps], seconds)
    theme.log_axis(figure, "y", [step.tokens_per_s or 0.0 for step in steps], magnitude)
    _hollow_in_legend(figure, steps)
    return figure


def _sizes(low: float, high: float) -> dict[str, list[object]]:
    """Five ticks of a logarithmic colour scale."""
    values = [low * (high / low) ** (i / 4) for i in range(5)] if high > low else [low]
    return {"tickvals": [math.log10(value) for value in values], "ticktext": [size(value) for value in values]}


def _hollow_in_legend(figure: go.Figure, steps: Sequence[PassPrediction]) -> None:
    if any(step.fits is False for step in steps):
        marker = {"symbol": "circle-open", "color": FAINT, "size": 9}
        figure.add_scatter(name="does not fit", x=[None], y=[None], mode="markers", marker=marker)


def _symbol(step: PassPrediction) -> str:
    return SYMBOLS[phase(step)] + ("-open" if step.fits is False else "")


def _about(step: PassPrediction) -> str:
    fits = "" if step.fits is not False else "<br><b>! does not fit</b>"
    return (
        f"<b>{plain(pass_title(step))}</b><br>{seconds(step.time_s)}, {rate(step.tokens_per_s)}<br>"
        f"{flops(step.matrix_flops + step.vector_flops)}, {size(step.bytes.total)} moved<br>"
        f"memory {size(step.memory.peak)}{fits}"
    )


def _hover(row: KindRow) -> str:
    moved = bytes_per_s(row.bytes.total / row.time_s if row.time_s else None)
    return "<br>".join(
        (
            f"<b>{plain(row.label)}</b> {plain(row.kind)} × {number(row.count)}",
            f"{seconds(row.time_s)} ({percent(row.share)} of the pass)",
            f"{flops(row.flops)}, {size(row.bytes.total)}, {magnitude(row.intensity)} FLOP/B",
            f"{flops_per_s(row.flops_per_s)}, {moved}, bound: {plain(row.bound or UNKNOWN)}",
            *(plain(f"also {words}"[:90]) for words in row.also[:6]),
        )
    )
