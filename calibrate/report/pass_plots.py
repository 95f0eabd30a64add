"""The pictures of a pass as plotly figures: its waterfall, its layers on the roofline, and its layers as bars.

Times are seconds, rates FLOP/s and bytes/s; what is not known is not drawn. Flat roofs are labelled outside the plot at
its right end, slanted ones above their upper end, where no point can be that does not exceed the peaks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from calibrate.passes.pass_report import PassReport
from calibrate.report import run_rows
from calibrate.report.run_rows import LayerRow, meaning
from calibrate.report.theme import DARK, GREEN, HOVER, KIND, LIGHT, plain, points, style
from roofline.hardware.spec import Figure, HardwareSpec, Peaks
from roofline.units import bytes_per_s, dtype, flops_per_s, magnitude, number, percent, seconds, shortened

TERM = {
    "ideal": GREEN,
    "peak_derate": "#7fb069",
    "extra_work": "#e3b23c",
    "shape_loss": "#e08e45",
    "level": "#b5838d",
    "residual": "#c8553d",
    "idle": "#8d99ae",
}
ROOF = {"achieved": DARK, "datasheet": "#9aa5b8", "calibrated": "#b5838d"}
DASH = {"achieved": "solid", "datasheet": "dash", "calibrated": "dot"}
MARK = "#d00000"
"""Colours: of terms, of roofs by what they come from, and of an efficiency above 1."""
LABEL = 56
"""Most characters of a label beside a bar."""
NAMED = 3
"""Points above 1 with their efficiency beside them: the slowest; more would cover each other."""
PLOT, LINE = 540, 15
"""Pixels of the roofline plot without its margins, and of a line of a label."""
ROOM = 0.3
"""Height of the labels above the roofs ÷ that of all below them: a slanted label of 150 pixels in `PLOT`."""
ALIKE = 1.2
"""Roofs within this factor have one label: their lines cannot be told apart."""
_NAMES = {"autorange": "reversed", "ticks": "outside", "ticklen": 6, "tickcolor": "#ffffff"}


@dataclass(frozen=True)
class Point:
    """A layer kind on the roofline plot."""

    kind: str
    intensity: float
    """FLOP per byte, above 0."""
    flops_per_s: float
    """FLOP per second, above 0."""
    share: float
    """Share of the time, drawn as the area of the point."""
    hover: str
    """Lines of markup."""
    key: str = ""
    """Id of the mark; a page opens the details of the row with this key."""


def waterfall_chart(report: PassReport) -> go.Figure:
    """Signed terms from the ideal to the wall time, each starting where the one before it ends."""
    rows = [row for row in run_rows.waterfall_rows(report.waterfall, report.wall_s) if row.time_s is not None]
    labels = [*(row.label for row in rows), "wall"]
    lengths = [*(row.time_s or 0.0 for row in rows), report.wall_s]
    texts = [f"{seconds(row.time_s, signed=True)}  ({percent(row.share)})" for row in rows]
    meanings = [*(meaning(row) for row in rows), "wall time of a pass without the profiler"]
    ends = [0.0, *(row.start_s + (row.time_s or 0.0) for row in rows), report.wall_s]
    colours = [TERM[row.terms[-1] if row.terms[0] != "ideal" else "ideal"] for row in rows]
    bar = go.Bar(
        orientation="h",
        y=labels,
        x=[abs(length) for length in lengths],  # a text stands outside the end of its bar: for a loss its start
        base=[*(min(row.start_s, row.start_s + (row.time_s or 0.0)) for row in rows), 0.0],
        text=[*texts, seconds(report.wall_s)],
        textposition="outside",
        cliponaxis=False,
        customdata=meanings,
        hovertemplate="%{y}: %{text}<br>%{customdata}<extra></extra>",
        marker={"color": [*colours, DARK]},
    )
    span = max(ends) - min(ends)
    room = [min(ends) - 0.02 * span, max(ends) + 0.42 * span]  # for the text beside the bars
    figure = style(go.Figure(bar), "time of the pass", height=330, bargap=0.35)
    figure.update_xaxes(tickformat="~s", ticksuffix="s", range=room)
    figure.update_yaxes(_NAMES)
    return figure


def layer_chart(report: PassReport) -> go.Figure:
    """Measured, predicted and ideal time of the slowest layer kinds, one inside the other."""
    rows = run_rows.layer_rows(report)[: run_rows.BARS]
    kinds = [f" · {row.kind}" for row in rows]  # so that unlike rows have unlike labels, and plotly keeps them apart
    paths = shortened([row.label for row in rows], LABEL - max(map(len, kinds), default=0))
    labels = [path + kind for path, kind in zip(paths, kinds, strict=True)]
    series = (
        ("measured", [row.time_s for row in rows], LIGHT, 0.82),
        ("predicted", [row.predicted_s for row in rows], "#6d9dc5", 0.5),
        ("ideal", [row.ideal_s for row in rows], TERM["ideal"], 0.2),
    )
    keys = [row.key for row in rows]
    about = {"orientation": "h", "ids": keys, "customdata": [_hover(row) for row in rows], "hovertemplate": HOVER}
    bars = [
        go.Bar(name=name, y=labels, x=values, width=width, marker={"color": colour}, **about)
        for name, values, colour, width in series
        if any(value is not None for value in values)
    ]
    tops = [max(row.time_s, row.predicted_s or 0.0, row.ideal_s or 0.0) for row in rows]
    if any(row.efficiency is not None for row in rows):
        beside = ["" if row.efficiency is None else f" {run_rows.efficiency(row)}" for row in rows]
        text = {"mode": "text", "text": beside, "textposition": "middle right", "cliponaxis": False}
        bars.append(go.Scatter(x=tops, y=labels, showlegend=False, hoverinfo="skip", **text))
    legend = {"y": 1, "yanchor": "bottom", "traceorder": "normal"}
    figure = style(go.Figure(bars), "device time of one pass, all repeats", height=120 + 25 * len(rows))
    figure.update_layout(barmode="overlay", margin_t=36, legend=legend)
    figure.update_xaxes(tickformat="~s", ticksuffix="s", range=[0, 1.12 * max(tops, default=0.0)])
    figure.update_yaxes(_NAMES, tickfont={"family": "ui-monospace, monospace", "size": 11})
    return figure


def roofline_chart(report: PassReport, spec: HardwareSpec) -> go.Figure:
    """Achieved FLOP/s over FLOPs per byte, both logarithmic; a point a layer kind, its area the share of the wall."""
    rows = on_roofline(report)
    places = [
        Point(row.kind, row.flops / row.bytes, row.flops_per_s or 0.0, max(row.share or 0.0, 0.0), _hover(row), row.key)
        for row in rows
    ]
    calibrated = calibrated_peaks(spec, report.workload.dtype)
    origins = {"achieved": spec.measured, "datasheet": spec.datasheet, "calibrated": calibrated}
    known = {name: peaks for name, peaks in origins.items() if peaks is not None}
    figure = roofline_figure(places, known, (report.workload.dtype,))
    _mark_above_one(figure, rows)
    return figure


def roofline_figure(
    places: Sequence[Point], known: dict[str, Peaks], matrix_dtypes: Sequence[str], title: str = "achieved FLOP/s"
) -> go.Figure:
    """The points and the roofs of `known` peaks by origin ("achieved", "datasheet"); the first ones are labelled."""
    figure = go.Figure()
    x_range, y_range = ranges(places, list(known.values()), matrix_dtypes)
    for name, peaks in known.items():
        add_lines(figure, name, peaks, matrix_dtypes, x_range)
    for kind in dict.fromkeys(point.kind for point in places):
        some = [point for point in places if point.kind == kind]
        sizes = [7 + 30 * math.sqrt(point.share) for point in some]
        look = {"color": KIND.get(kind, "#000000"), "opacity": 0.75, "line": {"color": "#ffffff", "width": 1}}
        x, y = [point.intensity for point in some], [point.flops_per_s for point in some]
        hover, keys = [point.hover for point in some], [point.key for point in some]
        points(figure, kind, x, y, hover, marker={**look, "size": sizes}, mode="markers", ids=keys)
    if known:
        add_labels(figure, next(iter(known.values())), matrix_dtypes, y_range, PLOT)
    margin = {"r": 190 if known else 20, "t": 10, "b": 120}
    style(figure, "operational intensity, FLOP per byte", title, height=PLOT + 130, margin=margin, legend_y=-0.13)
    figure.update_xaxes(type="log", range=[math.log10(end) for end in x_range], exponentformat="power", dtick=1)
    figure.update_yaxes(type="log", range=[math.log10(end) for end in y_range], tickformat="~s", dtick=1)
    return figure


def calibrated_peaks(spec: HardwareSpec, dtype: str) -> Peaks | None:
    """The peaks in the law of this dtype's matrix products: the rate, and the bandwidth of memory and of the cache.

    Constants that the measured kernels do not determine are left out; None where nothing is left.
    """
    known = spec.measured or spec.datasheet
    law = next((law for law in spec.calibrated if (law.kind, law.dtype) == ("matmul", dtype)), None)
    if known is None or law is None or not law.is_usable:
        return None
    found = {one.name: Figure(value=one.value, source="calibrated") for one in law.constants if one.determined}
    places = {"cache": known.levels[:-1][-1:], "memory": known.levels[-1:]}
    levels = [
        level.model_copy(update={"bandwidth": found[name]})
        for name in places
        for level in places[name]
        if name in found
    ]
    if not levels or "rate" not in found:
        return None
    return Peaks(matrix={dtype: found["rate"]}, vector={}, levels=tuple(levels))


def _mark_above_one(figure: go.Figure, rows: Sequence[LayerRow]) -> None:
    """A red ring and, at the largest, the efficiency; it is on top of what it marks."""
    marked = [row for row in rows if row.above_one]
    if not marked:
        return
    sizes = [13 + 30 * math.sqrt(max(row.share or 0.0, 0.0)) for row in marked]
    figure.add_scatter(
        name="efficiency above 1",
        x=[row.flops / row.bytes for row in marked],
        y=[row.flops_per_s for row in marked],
        mode="markers+text",
        text=[f"! {percent(row.efficiency)}" if i < NAMED else "" for i, row in enumerate(marked)],
        textposition="bottom center",
        textfont={"color": MARK, "size": 11},
        hoverinfo="skip",
        marker={"symbol": "circle-open", "color": MARK, "size": sizes, "line": {"width": 2.5}},
    )


def on_roofline(report: PassReport) -> tuple[LayerRow, ...]:
    """Layer kinds that have a place on a logarithmic plot: copies, which do no FLOPs, have none."""
    return tuple(row for row in run_rows.layer_rows(report) if row.flops > 0 and row.bytes > 0 and row.time_s > 0)


def _hover(row: LayerRow) -> str:
    intensity = magnitude(row.flops / row.bytes) + " FLOP/B" if row.bytes > 0 else "–"
    return "<br>".join(
        (
            f"<b>{plain(row.label)}</b> {row.kind} × {number(row.count)}",
            f"measured {seconds(row.time_s)} ({percent(row.share)} of wall)",
            f"predicted {seconds(row.predicted_s)}, ideal {seconds(row.ideal_s)}",
            f"efficiency {run_rows.efficiency(row)}",
            f"{flops_per_s(row.flops_per_s)}, {bytes_per_s(row.bytes_per_s)}, {intensity}, bound: {row.bound}",
            *(plain(kernel[:90]) for kernel in row.kernels[:4]),
        )
    )


def ranges(
    places: Sequence[Point], known: Sequence[Peaks], matrix_dtypes: Sequence[str]
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Both axes: every point and every ridge, with a margin."""
    flat = [value for peaks in known for value in flats(peaks, matrix_dtypes).values()]
    slowest = [peaks.levels[-1].bandwidth.value for peaks in known]
    x = [point.intensity for point in places] + [max(flat) / value for value in slowest if flat]
    y = [point.flops_per_s for point in places] + flat
    low, high = min(y, default=1.0) / 4, max(y, default=1.0)
    above = (high / low) ** ROOM if known else 4
    return (min(x, default=1.0) / 4, max(x, default=1.0) * 6), (low, high * above)


def add_lines(
    figure: go.Figure, origin: str, peaks: Peaks, matrix_dtypes: Sequence[str], x_range: tuple[float, float]
) -> None:
    """Slanted roofs of the memory levels up to the highest flat one; flat ones from the fastest slanted one on."""
    rates = flats(peaks, matrix_dtypes)
    slopes = {level.name: level.bandwidth.value for level in peaks.levels}
    fastest = max(slopes.values())
    top = max(rates.values(), default=fastest * x_range[1])
    lines = [
        (f"{name} {bytes_per_s(slope)}", [x_range[0], top / slope], [x_range[0] * slope, top])
        for name, slope in slopes.items()
    ]
    lines += [
        (f"{name} {flops_per_s(rate)}", [rate / fastest, x_range[1]], [rate, rate]) for name, rate in rates.items()
    ]
    look = {"color": ROOF[origin], "width": 1.6, "dash": DASH[origin]}
    about = {"name": f"{origin} peaks", "legendgroup": origin, "mode": "lines", "line": look}
    for i, (label, x, y) in enumerate(lines):
        hover = f"{origin}: {label}<extra></extra>"
        figure.add_scatter(x=x, y=y, showlegend=i == 0, hovertemplate=hover, **about)


def add_labels(
    figure: go.Figure, peaks: Peaks, matrix_dtypes: Sequence[str], y_range: tuple[float, float], height: float
) -> None:
    """Names and rates of the roofs; `height` is the plot's in pixels."""
    rates = flats(peaks, matrix_dtypes)
    look = {"showarrow": False, "font": {"size": 11, "color": ROOF["achieved"]}}
    pixel = math.log10(y_range[1] / y_range[0]) / height
    below = math.inf
    for names, low, high in alike(rates):
        words = [*(f"{name} {flops_per_s(rates[name])}" for name in names)]
        half = LINE * len(words) / 2 * pixel
        place = min((math.log10(low) + math.log10(high)) / 2, below - half)
        below = place - half
        beside = {"xref": "paper", "x": 1.005, "xanchor": "left", "yanchor": "middle", "align": "left"}
        figure.add_annotation(text="<br>".join(words), y=place, **beside, **look)
    if not rates:
        return
    top = max(rates.values())
    slopes = {level.name: level.bandwidth.value for level in peaks.levels}
    for names, _, high in alike(slopes):
        text = " / ".join(f"{name} {bytes_per_s(slopes[name])}" for name in names)
        end = {"x": math.log10(top / high), "y": math.log10(top)}
        above = {"xanchor": "left", "yanchor": "bottom", "textangle": -35, "bgcolor": "#ffffffd8"}
        figure.add_annotation(text=text, **end, **above, **look)


def alike(values: dict[str, float]) -> list[tuple[tuple[str, ...], float, float]]:
    """(names, lowest, highest) of values within `ALIKE` of the highest of them, the highest group first."""
    groups: list[list[str]] = []
    for name in sorted(values, key=lambda name: -values[name]):
        if groups and values[groups[-1][0]] <= ALIKE * values[name]:
            groups[-1].append(name)
        else:
            groups.append([name])
    return [(tuple(names), values[names[-1]], values[names[0]]) for names in groups]


def flats(peaks: Peaks, matrix_dtypes: Sequence[str]) -> dict[str, float]:
    """FLOP/s of work that bounds a pass in these dtypes, by label."""
    rates = {f"matrix {dtype(name)}": peaks.matrix[name].value for name in matrix_dtypes if name in peaks.matrix}
    return rates | {f"vector {dtype(name)}": figure.value for name, figure in peaks.vector.items()}
