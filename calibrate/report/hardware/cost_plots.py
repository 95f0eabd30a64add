"""Plots of pointwise work, of launches, of transfers and of collectives, with the fits that the spec has of them.

A fit is a pair of figures: T = latency + size ÷ bandwidth for a transfer, T = start + nodes × node for a graph.
Points are seconds of one call at the measurement's own quantile; of several processes, each has its own.

Example: ``transfers(found, measurements)`` is None where nothing was transferred
"""

from collections.abc import Callable, Sequence

import plotly.graph_objects as go

from calibrate.report.hardware import drawing
from calibrate.report.hardware.rows import Group, Row, call_s, place
from calibrate.report.hardware.table import FRESH, GIVEN, ends
from calibrate.report.units import binary, bytes_per_s, dtype, number, seconds
from profiler.record.measurement import Measurement

Points = dict[str, list[tuple[float, float]]]
"""Of each series, (size or nodes, value)."""


def pointwise(found: Sequence[Group]) -> go.Figure | None:
    """Bytes/s of each operation into a given and into a fresh output; None without such operations."""
    rows = [r for group in found for r in group.rows if r.family == "pointwise" and r.figure.value and not r.one_core]
    if not rows:
        return None
    several = len({row.figure.dtype for row in rows}) > 1
    figure = go.Figure()
    for name, ending, paint in (("given output", GIVEN, "#2a7f62"), ("fresh output", FRESH, "#e08e45")):
        some = [row for row in rows if row.label.endswith(ending)]
        if some:
            figure.add_bar(
                name=name,
                x=[_operation(row, ending, several) for row in some],
                y=[row.figure.value for row in some],
                marker={"color": paint},
                text=[drawing.short(bytes_per_s(row.figure.value)) for row in some],
                textposition="inside",
                insidetextanchor="middle",
                textangle=-90,
                error_y=errors(some),
                hovertemplate="%{x}, " + name + ": %{text}<extra></extra>",
            )
    if not figure.data:
        return None
    drawing.frame(figure, "", "bytes read + written per second")
    figure.update_layout(barmode="group", bargap=0.3, legend={"y": -0.14})
    figure.update_yaxes(tickformat="~s", ticksuffix="B/s", rangemode="tozero")
    return figure


def graphs(found: Sequence[Group], measurements: Sequence[Measurement]) -> go.Figure | None:
    """Time of a replay over the nodes of a graph, with its fit; None without graphs."""
    points: Points = {}
    for one in measurements:
        series, nodes = place(one)
        if one.benchmark == "launch" and series == "graph" and nodes and one.status == "done":
            points.setdefault("graph replay", []).append((nodes, call_s(one)))
    if not points:
        return None
    figure, every = go.Figure(), [x for values in points.values() for x, _ in values]
    _scatter(figure, points, lambda x: f"{number(x)} nodes", seconds)
    node, start = (_value(found, f"launch.graph {part}") for part in ("node", "start"))
    if node is not None and start is not None:
        x = drawing.spaced(min(every), max(every))
        name = f"fit: {seconds(start)} + {seconds(node)} a node"
        drawing.line(figure, name, x, [start + node * nodes for nodes in x], drawing.DARK)
    drawing.frame(figure, "nodes of the graph", "time of a replay")
    _axes(figure, points, number, seconds, base=2)
    return figure


def transfers(found: Sequence[Group], measurements: Sequence[Measurement]) -> go.Figure | None:
    """Time over size of each kind of memory and direction, with its fit; None without transfers."""
    points: Points = {}
    for one in measurements:
        series, size = place(one)
        if one.benchmark == "transfer" and size and one.status == "done":
            points.setdefault(series, []).append((size, call_s(one)))
    if not points:
        return None
    figure = go.Figure()
    _scatter(figure, points, binary, seconds)
    for i, (series, values) in enumerate(points.items()):
        bandwidth = _value(found, f"transfer.{series}.bandwidth")
        latency = _value(found, f"transfer.{series}.latency")
        if bandwidth is not None and latency is not None:
            x = drawing.spaced(min(size for size, _ in values), max(size for size, _ in values))
            name = f"{series} fit: {seconds(latency)} + size ÷ {bytes_per_s(bandwidth)}"
            drawing.line(figure, name, x, [latency + size / bandwidth for size in x], drawing.colour(i))
    drawing.frame(figure, "size", "time of a transfer")
    _axes(figure, points, binary, seconds, base=2)
    return figure


def collectives(found: Sequence[Group], measurements: Sequence[Measurement]) -> go.Figure | None:
    """busbw over size of each operation, the fitted bandwidth as its ceiling; None without collectives."""
    points: Points = {}
    for one in measurements:
        series, size = place(one)
        if one.benchmark == "collective" and size and one.status == "done" and one.unit == "B/s":
            points.setdefault(series, []).append((size, one.value()))
    if not points:
        return None
    figure = go.Figure()
    _scatter(figure, points, binary, bytes_per_s)
    for i, (series, values) in enumerate(points.items()):
        if (bandwidth := _value(found, f"collective.{series}.bandwidth")) is not None:
            sizes = [size for size, _ in values]
            name = f"{series}: fitted {bytes_per_s(bandwidth)}"
            drawing.line(figure, name, (min(sizes), max(sizes)), (bandwidth, bandwidth), drawing.colour(i), "dot")
    drawing.frame(figure, "size, as nccl-tests counts it", "busbw")
    _axes(figure, points, binary, bytes_per_s, base=2)
    return figure


def errors(rows: Sequence[Row | None]) -> dict[str, object] | None:
    """Error bars of the intervals that are known; None where none is."""
    known = [(row.figure.value or 0.0, *ends(row.figure)) if row else (0.0, None, None) for row in rows]
    if all(low is None or high is None for _, low, high in known):
        return None
    return {
        "type": "data",
        "symmetric": False,
        "array": [None if high is None else high - value for value, _, high in known],
        "arrayminus": [None if low is None else value - low for value, low, _ in known],
        "thickness": 1.2,
    }


def _scatter(figure: go.Figure, points: Points, show_x: Callable[[float], str], show_y: Callable[[float], str]) -> None:
    for i, (series, values) in enumerate(points.items()):
        values.sort()
        hover = [f"{series} {show_x(x)}: {show_y(y)}" for x, y in values]
        mode = "lines+markers" if len({x for x, _ in values}) == len(values) else "markers"
        drawing.points(figure, series, [x for x, _ in values], [y for _, y in values], hover, i, mode=mode)


def _axes(
    figure: go.Figure, points: Points, show_x: Callable[[float], str], show_y: Callable[[float], str], base: int
) -> None:
    every = [point for values in points.values() for point in values]
    drawing.log_axis(figure, "x", [x for x, _ in every], show_x, base=base)
    drawing.log_axis(figure, "y", [y for _, y in every], show_y)


def _operation(row: Row, ending: str, several: bool) -> str:
    return row.label.removesuffix(ending) + (f" {dtype(row.figure.dtype or '')}" if several else "")


def _value(found: Sequence[Group], name: str) -> float | None:
    rows = [row for group in found for row in group.rows if row.figure.name == name and row.figure.value is not None]
    return rows[0].figure.value if rows else None
