"""The pictures of a pass as plotly figures: its waterfall, its layers on the roofline, and its layers as bars.

Times are seconds, rates FLOP/s and bytes/s; what is not known is not drawn. Figures hold data only: no network,
no fonts, no images.

Example: ``waterfall_chart(report).to_html(full_html=False, include_plotlyjs=False)``
"""

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from calibrate.passes.pass_report import PassReport
from calibrate.report import roofs, tables, wording
from calibrate.report.paths import shortened
from calibrate.report.units import bytes_per_s, flops_per_s, magnitude, number, percent, seconds
from roofline.hardware.spec import HardwareSpec, Peaks

TERM_COLOUR = {
    "ideal": "#2a7f62",
    "peak_derate": "#7fb069",
    "extra_work": "#e3b23c",
    "shape_loss": "#e08e45",
    "level": "#b5838d",
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
    "collective": "#ad494a",
    "transfer": "#8c6d31",
    "other": "#000000",
}
"""One colour a kind in every picture."""

BARS = 40
"""Layer kinds in the bar chart; the table below it has them all."""

NAMED = 3
"""Points above 1 with their efficiency beside them: the slowest; more would cover each other."""

PLOT = 540
"""Height of the roofline plot without its margins, in pixels."""

LABEL = 56
"""Characters of a label beside a bar."""

CHARACTER = 7
"""Pixels of a character of a label, at 11 px monospace."""

AXIS = {
    "gridcolor": "#e6e9ef",
    "zerolinecolor": "#b8c0cc",
    "linecolor": "#b8c0cc",
    "ticks": "outside",
    "title_standoff": 12,
}
_NAMES = {"autorange": "reversed", "ticks": "outside", "ticklen": 6, "tickcolor": "#ffffff"}
LAYOUT = {
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
    figure.update_layout(LAYOUT, height=330, margin={"l": 150, "r": 20, "t": 10, "b": 56}, bargap=0.35)
    figure.update_xaxes(
        AXIS,
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
        LAYOUT,
        height=120 + 25 * len(rows),
        barmode="overlay",
        margin={"l": 24 + CHARACTER * max(map(len, labels), default=0), "r": 20, "t": 36, "b": 56},
        legend={"orientation": "h", "y": 1, "yanchor": "bottom", "x": 0, "traceorder": "normal"},
    )
    figure.update_xaxes(
        AXIS, tickformat="~s", ticksuffix="s", range=[0, 1.12 * longest], title="device time of one pass, all repeats"
    )
    figure.update_yaxes(_NAMES, tickfont={"family": "ui-monospace, monospace", "size": 11})
    return figure


def roofline_chart(report: PassReport, spec: HardwareSpec) -> go.Figure:
    """Achieved FLOP/s over FLOPs per byte, both logarithmic; a point a layer kind, its area the share of the wall."""
    rows = on_roofline(report)
    points = [
        roofs.Point(row.kind, row.flops / row.bytes, row.flops_per_s or 0.0, max(row.share or 0.0, 0.0), _hover(row))
        for row in rows
    ]
    origins = {"achieved": spec.measured, "datasheet": spec.datasheet}
    known = {name: peaks for name, peaks in origins.items() if peaks is not None}
    figure = roofline_figure(points, known, (report.workload.dtype,))
    _mark_above_one(figure, rows)
    return figure


def roofline_figure(
    points: Sequence[roofs.Point], known: dict[str, Peaks], matrix_dtypes: Sequence[str], title: str = "achieved FLOP/s"
) -> go.Figure:
    """The points and the roofs of `known` peaks by origin ("achieved", "datasheet"); the first ones are labelled."""
    figure = go.Figure()
    x_range, y_range = roofs.ranges(points, list(known.values()), matrix_dtypes)
    for name, peaks in known.items():
        roofs.add_lines(figure, name, peaks, matrix_dtypes, x_range)
    for kind in dict.fromkeys(point.kind for point in points):
        some = [point for point in points if point.kind == kind]
        figure.add_scatter(
            name=kind,
            x=[point.intensity for point in some],
            y=[point.flops_per_s for point in some],
            mode="markers",
            marker={
                "color": KIND_COLOUR.get(kind, "#000000"),
                "size": [7 + 30 * math.sqrt(point.share) for point in some],
                "opacity": 0.75,
                "line": {"color": "#ffffff", "width": 1},
            },
            customdata=[point.hover for point in some],
            hovertemplate="%{customdata}<extra></extra>",
        )
    if known:
        roofs.add_labels(figure, next(iter(known.values())), matrix_dtypes, y_range, PLOT)
    figure.update_layout(
        LAYOUT,
        height=PLOT + 10 + 120,
        margin={"l": 76, "r": 190 if known else 20, "t": 10, "b": 120},
        legend={"orientation": "h", "y": -0.13, "yanchor": "top", "x": 0},
    )
    figure.update_xaxes(
        AXIS,
        type="log",
        range=[math.log10(end) for end in x_range],
        exponentformat="power",
        dtick=1,
        title="operational intensity, FLOP per byte",
    )
    figure.update_yaxes(
        AXIS, type="log", range=[math.log10(end) for end in y_range], tickformat="~s", dtick=1, title=title
    )
    return figure


def _mark_above_one(figure: go.Figure, rows: Sequence[tables.LayerRow]) -> None:
    """A red ring and, at the largest, the efficiency; it is on top of what it marks."""
    marked = [row for row in rows if row.above_one]
    if not marked:
        return
    figure.add_scatter(
        name="efficiency above 1",
        x=[row.flops / row.bytes for row in marked],
        y=[row.flops_per_s for row in marked],
        mode="markers+text",
        text=[f"! {percent(row.efficiency)}" if i < NAMED else "" for i, row in enumerate(marked)],
        textposition="bottom center",
        textfont={"color": "#d00000", "size": 11},
        hoverinfo="skip",
        marker={
            "symbol": "circle-open",
            "color": "#d00000",
            "size": [13 + 30 * math.sqrt(max(row.share or 0.0, 0.0)) for row in marked],
            "line": {"width": 2.5},
        },
    )


def on_roofline(report: PassReport) -> tuple[tables.LayerRow, ...]:
    """Layer kinds that have a place on a logarithmic plot: copies, which do no FLOPs, have none."""
    return tuple(row for row in tables.layer_rows(report) if row.flops > 0 and row.bytes > 0 and row.time_s > 0)


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
            f"<b>{plotly_text(row.label)}</b> {row.kind} × {number(row.count)}",
            f"measured {seconds(row.time_s)} ({percent(row.share)} of wall)",
            f"predicted {seconds(row.predicted_s)}, ideal {seconds(row.ideal_s)}, efficiency {percent(row.efficiency)}"
            + (" ! above 1" if row.above_one else ""),
            f"{flops_per_s(row.flops_per_s)}, {bytes_per_s(row.bytes_per_s)}, {intensity}, bound: {row.bound}",
            *(plotly_text(kernel[:90]) for kernel in row.kernels[:4]),
        )
    )


def plotly_text(text: str) -> str:
    """Names may hold what plotly reads as markup."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
