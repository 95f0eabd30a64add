"""How every plot looks: one plotly template, colours, logarithmic axes with readable ticks, whiskers, series."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

SERIES = (
    "#1f77b4", "#d62728", "#2ca02c", "#ff7f0e", "#9467bd", "#17becf",
    "#8c564b", "#e377c2", "#bcbd22", "#393b79", "#7f7f7f", "#000000",
)  # fmt: skip
KIND = {
    "matmul": "#1f77b4", "grouped_matmul": "#17becf", "attention": "#d62728", "conv": "#8c564b", "softmax": "#e377c2",
    "norm": "#2ca02c", "pointwise": "#ff7f0e", "reduction": "#bcbd22", "copy": "#7f7f7f", "embedding": "#9467bd",
    "scan": "#393b79", "collective": "#ad494a", "transfer": "#8c6d31", "other": "#000000",
}  # fmt: skip
"""Colour of a kind of operation in every picture."""
GREY, DARK, LIGHT, GREEN, RED = "#8d99ae", "#33415c", "#c9d3e3", "#2a7f62", "#c8553d"
TEXT, FAINT = "#1f2733", "#5b6675"

_AXIS: dict[str, object] = {
    "gridcolor": "#e6e9ef", "zerolinecolor": "#b8c0cc", "linecolor": "#b8c0cc", "ticks": "outside",
    "title": {"standoff": 14}, "automargin": True,
}  # fmt: skip
TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": TEXT},
        "hoverlabel": {"align": "left"},
        "paper_bgcolor": "#ffffff",
        "plot_bgcolor": "#ffffff",
        "colorway": SERIES,
        "margin": {"l": 84, "r": 30, "t": 24, "b": 60},
        "height": 440,
        "legend": {"orientation": "h", "y": -0.2, "yanchor": "top", "x": 0, "itemsizing": "constant"},
        "xaxis": _AXIS,
        "yaxis": _AXIS,
    }
)

TICKS = 14
"""Most ticks of a logarithmic axis; of more, every second or third power is named."""
LONGEST = 160
"""Characters of a name in a label."""
STEPS = ((1.0,), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0))
"""Ticks within a power of ten, from coarse to fine."""
HOVER = "%{customdata}<extra></extra>"
"""Hovering shows the text of the point alone."""


def style(figure: go.Figure, x_title: str = "", y_title: str = "", **layout: Any) -> go.Figure:
    """The figure with titles at its axes; `layout` replaces what the template says."""
    figure.update_layout(template=TEMPLATE, **layout)
    for axes, title in ((figure.select_xaxes, x_title), (figure.select_yaxes, y_title)):
        for axis in axes() if title else ():
            axis.title.text = title
    return figure


def colour(i: int) -> str:
    """The colour of the i-th series."""
    return SERIES[i % len(SERIES)]


def log_axis(
    figure: go.Figure, axis: str, values: Sequence[float], show: Callable[[float], str], base: int = 10
) -> None:
    """A logarithmic axis ("x" or "y") around positive values, with ticks at powers of the base."""
    low, high = min(values) / 1.25, max(values) * 1.25
    powers = range(math.floor(math.log(low, base)), math.ceil(math.log(high, base)) + 1)
    every = -(-len(powers) // TICKS)
    ticks: list[float] = []
    for steps in STEPS if base == 10 else STEPS[:1]:  # the coarsest that has enough of them
        every_tick = [step * float(base) ** power for power in powers if power % every == 0 for step in steps]
        ticks = [tick for tick in every_tick if low <= tick <= high]
        if len(ticks) >= 3:
            break
    update = figure.update_xaxes if axis == "x" else figure.update_yaxes
    names = [short(show(tick)) for tick in ticks]
    update(type="log", range=[math.log10(low), math.log10(high)], tickvals=ticks, ticktext=names)


def points(
    figure: go.Figure,
    name: str,
    x: Iterable[object],
    y: Iterable[object],
    hover: Sequence[str],
    i: int = 0,
    *,
    marker: Mapping[str, object] | None = None,
    **trace: Any,
) -> None:
    """Add a series in the i-th colour with a text for each point; `marker` and `trace` replace its defaults.

    The texts are markup: use `plain` for the names in them.
    """
    trace = {"mode": "lines+markers", "line": {"color": colour(i), "width": 1.8}, **trace}
    marker = {"color": colour(i), "size": 7, **(marker or {})}
    figure.add_scatter(
        name=plain(name), x=list(x), y=list(y), marker=marker, customdata=hover, hovertemplate=HOVER, **trace
    )


def line(figure: go.Figure, name: str, x: Sequence[float], y: Sequence[float], paint: str, dash: str = "dash") -> None:
    """Add a line that is computed, not measured."""
    style = {"color": paint, "width": 1.6, "dash": dash}
    figure.add_scatter(name=plain(name), x=list(x), y=list(y), mode="lines", line=style, hoverinfo="name")


def upright(figure: go.Figure, x: float, text: str, paint: str, dash: str, level: int = 0) -> None:
    """A named vertical line on a logarithmic x axis; `level` moves the name down a line."""
    figure.add_vline(x=x, line={"color": paint, "width": 1.2, "dash": dash})
    font = {"size": 11, "color": paint}
    place = {"x": math.log10(x), "y": 1, "yref": "paper", "xanchor": "left", "yanchor": "top", "xshift": 3}
    figure.add_annotation(
        text=plain(text), **place, yshift=-14 * level, showarrow=False, font=font, bgcolor="#ffffffd8"
    )


def short(text: str) -> str:
    """ "5.00 ms" as "5 ms"."""
    figure, space, unit = text.partition(" ")
    return (figure.rstrip("0").rstrip(".") if "." in figure else figure) + space + unit


def plain(text: str) -> str:
    """Names may hold what plotly reads as markup, and more characters than a label has room for."""
    shown = text if len(text) <= LONGEST else f"{text[: LONGEST * 2 // 3]}…{text[-(LONGEST // 3) :]}"
    return shown.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
