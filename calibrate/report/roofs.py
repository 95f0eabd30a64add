"""The roofs of a device on the roofline plot, with labels where nothing else is drawn.

Flat roofs are labelled outside the plot at its right end, slanted ones above their upper end, where no point can be
that does not exceed the peaks. Roofs within 20 % of each other share a label.

Example: ``add_lines(figure, "achieved", peaks, ("bfloat16",), (0.1, 1000)); add_labels(figure, peaks, …)``
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from calibrate.report.units import bytes_per_s, dtype, flops_per_s
from roofline.hardware.spec import Peaks

COLOUR = {"achieved": "#33415c", "datasheet": "#9aa5b8"}

ALIKE = 1.2
"""Roofs within this factor have one label: their lines cannot be told apart."""

LINE = 15
"""Pixels that a line of a label needs."""


@dataclass(frozen=True)
class Point:
    """A layer kind on the roofline plot."""

    kind: str
    intensity: float
    """FLOP per byte, above 0."""
    flops_per_s: float
    """Above 0."""
    share: float
    """Of the time: the area of the point."""
    hover: str
    """Lines of markup."""


def ranges(
    points: Sequence[Point], known: Sequence[Peaks], matrix_dtypes: Sequence[str]
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Both axes: every point and every ridge, with a margin."""
    flat = [value for peaks in known for value in flats(peaks, matrix_dtypes).values()]
    slowest = [peaks.levels[-1].bandwidth.value for peaks in known]
    x = [point.intensity for point in points] + [max(flat) / value for value in slowest if flat]
    y = [point.flops_per_s for point in points] + flat
    return (min(x, default=1.0) / 4, max(x, default=1.0) * 6), (
        min(y, default=1.0) / 4,
        max(y, default=1.0) * (30 if known else 4),
    )


def add_lines(
    figure: go.Figure, origin: str, peaks: Peaks, matrix_dtypes: Sequence[str], x_range: tuple[float, float]
) -> None:
    """Slanted roofs of the memory levels up to the highest flat one; flat ones from the fastest slanted one on."""
    found = flats(peaks, matrix_dtypes)
    fastest = max(level.bandwidth.value for level in peaks.levels)
    top = max(found.values(), default=fastest * x_range[1])
    for level in peaks.levels:
        bandwidth = level.bandwidth.value
        ends = [x_range[0], top / bandwidth], [x_range[0] * bandwidth, top]
        _line(figure, origin, f"{level.name} {bytes_per_s(bandwidth)}", *ends)
    for name, value in found.items():
        _line(figure, origin, f"{name} {flops_per_s(value)}", [value / fastest, x_range[1]], [value, value])


def add_labels(
    figure: go.Figure, peaks: Peaks, matrix_dtypes: Sequence[str], y_range: tuple[float, float], height: float
) -> None:
    """Names and rates of the roofs; `height` is the plot's in pixels."""
    found = flats(peaks, matrix_dtypes)
    pixel = math.log10(y_range[1] / y_range[0]) / height
    below = math.inf
    for names, low, high in alike(found):
        words = [*(f"{name} {flops_per_s(found[name])}" for name in names)]
        half = LINE * len(words) / 2 * pixel
        place = min((math.log10(low) + math.log10(high)) / 2, below - half)
        below = place - half
        _note(
            figure, "<br>".join(words), xref="paper", x=1.005, y=place, xanchor="left", yanchor="middle", align="left"
        )
    if not found:
        return
    top = max(found.values())
    rates = {level.name: level.bandwidth.value for level in peaks.levels}
    for names, _, high in alike(rates):
        text = " / ".join(f"{name} {bytes_per_s(rates[name])}" for name in names)
        end = {"x": math.log10(top / high), "y": math.log10(top)}
        _note(figure, text, **end, xanchor="left", yanchor="bottom", textangle=-35, bgcolor="#ffffffd8")


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
    found = {f"matrix {dtype(name)}": peaks.matrix[name].value for name in matrix_dtypes if name in peaks.matrix}
    return found | {f"vector {dtype(name)}": figure.value for name, figure in peaks.vector.items()}


def _line(figure: go.Figure, origin: str, label: str, x: list[float], y: list[float]) -> None:
    first = all(trace.name != f"{origin} peaks" for trace in figure.data)
    figure.add_scatter(
        name=f"{origin} peaks",
        legendgroup=origin,
        showlegend=first,
        x=x,
        y=y,
        mode="lines",
        line={"color": COLOUR[origin], "width": 1.6, "dash": "solid" if origin == "achieved" else "dash"},
        hovertemplate=f"{origin}: {label}<extra></extra>",
    )


def _note(figure: go.Figure, text: str, **place: object) -> None:
    """Words at a point; plotly wants the logarithm of a place on a logarithmic axis."""
    figure.add_annotation(text=text, showarrow=False, font={"size": 11, "color": COLOUR["achieved"]}, **place)
