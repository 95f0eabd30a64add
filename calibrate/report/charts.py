"""The pictures of a pass as plotly figures: its waterfall, its layers on the roofline, and its layers as bars.

Times are seconds, rates FLOP/s and bytes/s; what is not known is not drawn. Figures hold data only: no network,
no fonts, no images.

Example: ``waterfall_chart(report).to_html(full_html=False, include_plotlyjs=False)``
"""

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from calibrate.efficiency import PassReport
from calibrate.report import tables, wording
from calibrate.report.paths import shortened
from calibrate.report.units import bytes_per_s, dtype, flops_per_s, magnitude, number, percent, seconds
from roofline.hardware import HardwareSpec, Peaks

TERM_COLOUR = {
    "ideal": "#2a7f62",
    "peak_derate": "#7fb069",
    "extra_work": "#e3b23c",
    "shape_loss": "#e08e45",
    "residual": "#c8553d",
    "idle": "#8d99ae",
}
WALL_COLOUR = "#33415c"

KIND_COLOUR = {
    "matmul": "#1f77b4",
    "grouped_matmul": "#17becf",
    "attention": "#d62728",
    "conv": "#8c564b",
    "softmax": "#e377c2",
    "norm": "#2ca02c",
    "pointwise": "#ff7f0e",
    "reduction": "#bcbd22",
    "copy": "#7f7f7f",
    "embedding": "#9467bd",
    "scan": "#393b79",
    "other": "#000000",
}
"""One colour a kind in every picture."""

ROOF_COLOUR = {"achieved": "#33415c", "datasheet": "#9aa5b8"}

BARS = 40
"""Layer kinds in the bar chart; the table below it has them all."""

LABEL = 56
"""Characters of a label beside a bar."""

CHARACTER = 7
"""Pixels of a character of a label, at 11 px monospace."""

_AXIS = {
    "gridcolor": "#e6e9ef",
    "zerolinecolor": "#b8c0cc",
    "linecolor": "#b8c0cc",
    "ticks": "outside",
    "title_standoff": 12,
}
_NAMES = {"autorange": "reversed", "ticks": "outside", "ticklen": 6, "tickcolor": "#ffffff"}
_LAYOUT = {
    "template": "none",
    "font": {"family": "system-ui, sans-serif", "size": 12, "color": "#1f2733"},
    "hoverlabel": {"align": "left"},
    "paper_bgcolor": "#ffffff",
    "plot_bgcolor": "#ffffff",
}


def waterfall_chart(report: PassReport) -> go.Figure:
    """Signed terms from the ideal to the wall time, each starting where the one before it ends."""
    rows = [row for row in tables.waterfall_rows(report.waterfall, report.wall_s) if row.time_s is not None]
    labels = [*(row.label for row in rows), "wall"]
    lengths = [*(row.time_s or 0.0 for row in rows), report.wall_s]
    texts = [f"{seconds(row.time_s, signed=True)}  ({percent(row.share)})" for row in rows]
    meanings = [*(wording.meaning(row) for row in rows), "median of the unprofiled passes"]
    ends = [0.0, *(row.start_s + (row.time_s or 0.0) for row in rows), report.wall_s]
    figure = go.Figure(
        go.Bar(
            orientation="h",
            y=labels,
            x=lengths,
            base=[*(row.start_s for row in rows), 0.0],
            text=[*texts, seconds(report.wall_s)],
            textposition="outside",
            cliponaxis=False,
            customdata=meanings,
            hovertemplate="%{y}: %{text}<br>%{customdata}<extra></extra>",
            marker={
                "color": [
                    *(TERM_COLOUR[row.terms[-1] if row.terms[0] != "ideal" else "ideal"] for row in rows),
                    WALL_COLOUR,
                ]
            },
        )
    )
    span = max(ends) - min(ends)
    figure.update_layout(_LAYOUT, height=330, margin={"l": 150, "r": 20, "t": 10, "b": 56}, bargap=0.35)
    figure.update_xaxes(
        _AXIS,
        tickformat="~s",
        ticksuffix="s",
        title="time of the pass",
        range=[min(ends) - 0.02 * span, max(ends) + 0.42 * span],  # room for the text beside the bars
    )
    figure.update_yaxes(_NAMES)
    return figure


def layer_chart(report: PassReport) -> go.Figure:
    """Measured, predicted and ideal time of the slowest layer kinds, one inside the other."""
    rows = tables.layer_rows(report)[:BARS]
    labels = _labels(rows)
    measured, predicted, ideal = "measured", "predicted", "ideal"
    series = (
        (measured, [row.time_s for row in rows], "#c9d3e3", 0.82),
        (predicted, [row.predicted_s for row in rows], "#6d9dc5", 0.5),
        (ideal, [row.ideal_s for row in rows], TERM_COLOUR["ideal"], 0.2),
    )
    hovers = [_hover(row) for row in rows]
    figure = go.Figure(
        [
            go.Bar(
                name=name,
                orientation="h",
                y=labels,
                x=values,
                width=width,
                marker={"color": colour},
                customdata=hovers,
                hovertemplate="%{customdata}<extra></extra>",
                **({"text": [_beside(row) for row in rows], "textposition": "outside"} if name == measured else {}),
            )
            for name, values, colour, width in series
            if any(value is not None for value in values)
        ]
    )
    longest = max((max(row.time_s, row.predicted_s or 0.0, row.ideal_s or 0.0) for row in rows), default=0.0)
    figure.update_layout(
        _LAYOUT,
        height=120 + 25 * len(rows),
        barmode="overlay",
        margin={"l": 24 + CHARACTER * max(map(len, labels), default=0), "r": 20, "t": 36, "b": 56},
        legend={"orientation": "h", "y": 1, "yanchor": "bottom", "x": 0, "traceorder": "normal"},
    )
    figure.update_xaxes(
        _AXIS, tickformat="~s", ticksuffix="s", range=[0, 1.12 * longest], title="device time of one pass, all repeats"
    )
    figure.update_yaxes(_NAMES, tickfont={"family": "ui-monospace, monospace", "size": 11})
    return figure


def roofline_chart(report: PassReport, spec: HardwareSpec) -> go.Figure:
    """Achieved FLOP/s over FLOPs per byte, both logarithmic; a point a layer kind, its area the share of the wall."""
    rows = on_roofline(report)
    kinds = list(dict.fromkeys(row.kind for row in rows))
    figure = go.Figure()
    origins = {"achieved": spec.measured, "datasheet": spec.datasheet}
    known = {name: peaks for name, peaks in origins.items() if peaks is not None}
    x_range, y_range = _ranges(rows, list(known.values()), report.workload.dtype)
    for name, peaks in known.items():
        _add_roofs(figure, name, peaks, report.workload.dtype, x_range, labelled=name == next(iter(known)))
    for kind in kinds:
        some = [row for row in rows if row.kind == kind]
        figure.add_scatter(
            name=kind,
            x=[row.flops / row.bytes for row in some],
            y=[row.flops_per_s for row in some],
            mode="markers",
            marker={
                "color": KIND_COLOUR.get(kind, "#000000"),
                "size": [7 + 30 * math.sqrt(max(row.share or 0.0, 0.0)) for row in some],
                "opacity": 0.75,
                "line": {
                    "color": ["#d00000" if row.above_one else "#ffffff" for row in some],
                    "width": [2 if row.above_one else 1 for row in some],
                },
            },
            customdata=[_hover(row) for row in some],
            hovertemplate="%{customdata}<extra></extra>",
        )
    figure.update_layout(
        _LAYOUT,
        height=640,
        margin={"l": 76, "r": 20, "t": 10, "b": 56},
        legend={"orientation": "h", "y": -0.12, "yanchor": "top", "x": 0},
    )
    figure.update_xaxes(
        _AXIS,
        type="log",
        range=[math.log10(end) for end in x_range],
        exponentformat="power",
        dtick=1,
        title="operational intensity, FLOP per byte",
    )
    figure.update_yaxes(
        _AXIS, type="log", range=[math.log10(end) for end in y_range], tickformat="~s", dtick=1, title="achieved FLOP/s"
    )
    return figure


def on_roofline(report: PassReport) -> tuple[tables.LayerRow, ...]:
    """Layer kinds that have a place on a logarithmic plot: copies, which do no FLOPs, have none."""
    return tuple(row for row in tables.layer_rows(report) if row.flops > 0 and row.bytes > 0 and row.time_s > 0)


def _add_roofs(
    figure: go.Figure, origin: str, peaks: Peaks, matrix_dtype: str, x_range: tuple[float, float], labelled: bool
) -> None:
    """Slanted roofs of the memory levels up to the highest flat one; flat ones from the fastest slanted one on."""
    style = {"color": ROOF_COLOUR[origin], "width": 1.6, "dash": "solid" if origin == "achieved" else "dash"}
    flats = _flats(peaks, matrix_dtype)
    fastest = max(level.bandwidth.value for level in peaks.levels)
    top = max(flats.values(), default=fastest * x_range[1])
    lines = [(f"{level.name} {bytes_per_s(level.bandwidth.value)}", level.bandwidth.value) for level in peaks.levels]
    for label, bandwidth in lines:
        _line(figure, origin, label, [x_range[0], top / bandwidth], [x_range[0] * bandwidth, top], style)
        if labelled:  # above the fastest level's roof and below the others', whose slopes are the same
            side = "bottom" if bandwidth == fastest else "top"
            _note(
                figure,
                label,
                x_range[0] * 1.1,
                x_range[0] * 1.1 * bandwidth,
                "left",
                side,
                yshift=14 if side == "bottom" else -2,
                bgcolor="#ffffffd8" if side == "bottom" else None,
            )
    for label, value in flats.items():
        _line(figure, origin, label, [value / fastest, x_range[1]], [value, value], style)
        if labelled:
            _note(figure, label, x_range[1], value, "right", "top")


def _line(figure: go.Figure, origin: str, label: str, x: list[float], y: list[float], style: dict[str, object]) -> None:
    first = all(trace.name != f"{origin} peaks" for trace in figure.data)
    figure.add_scatter(
        name=f"{origin} peaks",
        legendgroup=origin,
        showlegend=first,
        x=x,
        y=y,
        mode="lines",
        line=style,
        hovertemplate=f"{origin}: {label}<extra></extra>",
    )


def _note(figure: go.Figure, text: str, x: float, y: float, xanchor: str, yanchor: str, **more: object) -> None:
    """Words at a point; plotly wants the logarithm of a place on a logarithmic axis."""
    figure.add_annotation(
        text=text,
        x=math.log10(x),
        y=math.log10(y),
        xanchor=xanchor,
        yanchor=yanchor,
        showarrow=False,
        font={"size": 11, "color": ROOF_COLOUR["achieved"]},
        **more,
    )


def _flats(peaks: Peaks, matrix_dtype: str) -> dict[str, float]:
    """Rates of work that bound this pass, by label."""
    flats = {}
    if matrix_dtype in peaks.matrix:
        value = peaks.matrix[matrix_dtype].value
        flats[f"matrix {dtype(matrix_dtype)} {flops_per_s(value)}"] = value
    for name, figure in peaks.vector.items():
        flats[f"vector {dtype(name)} {flops_per_s(figure.value)}"] = figure.value
    return flats


def _ranges(
    rows: Sequence[tables.LayerRow], known: Sequence[Peaks], matrix_dtype: str
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Both axes: every point and every ridge, with a margin."""
    flats = [value for peaks in known for value in _flats(peaks, matrix_dtype).values()]
    slowest = [peaks.levels[-1].bandwidth.value for peaks in known]
    x = [row.flops / row.bytes for row in rows] + [max(flats) / value for value in slowest if flats]
    y = [row.flops_per_s or 1.0 for row in rows] + flats
    return (min(x, default=1.0) / 4, max(x, default=1.0) * 6), (min(y, default=1.0) / 4, max(y, default=1.0) * 4)


def _labels(rows: Sequence[tables.LayerRow]) -> list[str]:
    """Unlike for unlike rows, so that plotly keeps their bars apart."""
    kinds = [f" · {row.kind}" for row in rows]
    room = LABEL - max(map(len, kinds), default=0)
    return [path + kind for path, kind in zip(shortened([row.label for row in rows], room), kinds, strict=True)]


def _beside(row: tables.LayerRow) -> str:
    return "" if row.efficiency is None else percent(row.efficiency) + (" !" if row.above_one else "")


def _hover(row: tables.LayerRow) -> str:
    intensity = magnitude(row.flops / row.bytes) + " FLOP/B" if row.bytes > 0 else "–"
    return "<br>".join(
        (
            f"<b>{_plain(row.label)}</b> {row.kind} × {number(row.count)}",
            f"measured {seconds(row.time_s)} ({percent(row.share)} of wall)",
            f"predicted {seconds(row.predicted_s)}, ideal {seconds(row.ideal_s)}, efficiency {percent(row.efficiency)}"
            + (" ! above 1" if row.above_one else ""),
            f"{flops_per_s(row.flops_per_s)}, {bytes_per_s(row.bytes_per_s)}, {intensity}, bound: {row.bound}",
            *(_plain(kernel[:90]) for kernel in row.kernels[:4]),
        )
    )


def _plain(text: str) -> str:
    """Names may hold what plotly reads as markup."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
