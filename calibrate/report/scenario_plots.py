"""The plot of a scenario's curve: measured points with their intervals, and predictions as dashed lines."""

from collections.abc import Callable

import plotly.graph_objects as go

from calibrate.report.theme import HOVER, colour, log_axis, plain, style
from calibrate.scenarios.scenario import Curve, Row
from roofline.units import number

WIDE = 10.0
"""Largest ÷ smallest value from which an axis is logarithmic."""


def curve_chart(curve: Curve, show: Callable[[float | None], str]) -> go.Figure | None:
    """Measured and predicted figures over x; None where neither is known."""
    figure = go.Figure()
    series = list(dict.fromkeys(row.series for row in curve.rows))
    for i, name in enumerate(series):
        rows = [row for row in curve.rows if row.series == name]
        measured = [row for row in rows if row.quantity.measured is not None]
        predicted = [row for row in rows if row.quantity.predicted is not None]
        if measured:
            figure.add_scatter(
                name=plain(name or "measured"),
                x=[row.x for row in measured],
                y=[row.quantity.measured for row in measured],
                error_y={"array": [row.quantity.half or 0.0 for row in measured], "thickness": 1.2, "width": 4},
                mode="lines+markers",
                line={"color": colour(i), "width": 1.8},
                marker={"color": colour(i), "size": 7},
                customdata=[_hover(curve, row, row.quantity.measured, "measured", show) for row in measured],
                hovertemplate=HOVER,
            )
        if predicted:
            figure.add_scatter(
                name=plain(f"{name}, predicted" if name else "predicted"),
                x=[row.x for row in predicted],
                y=[row.quantity.predicted for row in predicted],
                mode="lines+markers",
                line={"color": colour(i), "width": 1.4, "dash": "dash"},
                marker={"color": colour(i), "size": 6, "symbol": "x-thin", "line": {"width": 1.5, "color": colour(i)}},
                customdata=[_hover(curve, row, row.quantity.predicted, "predicted", show) for row in predicted],
                hovertemplate=HOVER,
            )
    if not figure.data:
        return None
    style(figure, curve.x, curve.title, height=380)
    _axes(figure, curve, show)
    return figure


def _hover(curve: Curve, row: Row, value: float | None, what: str, show: Callable[[float | None], str]) -> str:
    x = row.x if isinstance(row.x, str) else f"{curve.x}: {number(row.x)}"
    return plain(", ".join(filter(None, (x, row.series, f"{what} {show(value)}", row.note))))


def _axes(figure: go.Figure, curve: Curve, show: Callable[[float | None], str]) -> None:
    y = [value for trace in figure.data for value in trace.y]
    x = [row.x for row in curve.rows]
    places = [place for place in x if not isinstance(place, str)]
    if len(places) == len(x) and min(places) > 0 and max(places) >= WIDE * min(places):
        log_axis(figure, "x", places, number, base=2)
    elif len(places) < len(x):
        figure.update_xaxes(type="category")
    if min(y) > 0 and max(y) >= WIDE * min(y):
        log_axis(figure, "y", y, show)
    elif curve.unit in ("s", "B", "B/s", "J"):
        figure.update_yaxes(tickformat="~s", ticksuffix=curve.unit, rangemode="tozero")
    else:
        figure.update_yaxes(rangemode="tozero")
