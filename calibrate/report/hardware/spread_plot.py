"""How far the processes of a characterisation differ: each headline figure's values over its mean, a point a process.

Samples of one process share its luck; what a reader may expect of the next process is this spread.

Example: ``spread(found, measurements, run)`` is None where every figure has one process
"""

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from calibrate.report.hardware import drawing, table
from calibrate.report.hardware.rows import Group, Row, by_figure
from calibrate.report.units import in_unit, percent
from profiler.record.measurement import Measurement
from profiler.record.run import Run

FAMILIES = ("memory", "level", "matmul", "launch", "host", "vector", "skinny", "pointwise", "energy")
MOST = 36
"""Figures of the plot: of the families above, in their order."""


def spread(found: Sequence[Group], measurements: Sequence[Measurement], run: Run) -> go.Figure | None:
    """A line a figure with at least two processes; None where there is none."""
    measured = by_figure(measurements, run)
    rows = [row for group in found for row in group.rows if row.family in FAMILIES and row.figure.value is not None]
    rows.sort(key=lambda row: FAMILIES.index(row.family))
    lines: dict[str, list[tuple[int, float, str]]] = {}
    for row in rows:
        alike = [one for one in measured.get((row.figure.name, row.figure.dtype), ()) if one.status == "done"]
        values = [one.value() for one in alike]
        if len(values) < 2 or len(lines) == MOST:
            continue
        middle = math.exp(sum(map(math.log, values)) / len(values))
        lines[_label(row)] = [
            (one.process, v / middle - 1, in_unit(v, one.unit)) for one, v in zip(alike, values, strict=True)
        ]
    if not lines:
        return None
    figure = go.Figure()
    for i, process in enumerate(sorted({process for values in lines.values() for process, _, _ in values})):
        some = [(label, *point) for label, values in lines.items() for point in values if point[0] == process]
        figure.add_scatter(
            name=f"process {process}",
            x=[share for _, _, share, _ in some],
            y=[label for label, _, _, _ in some],
            mode="markers",
            marker={"color": drawing.colour(i), "size": 9, "opacity": 0.8, "line": {"color": "#ffffff", "width": 1}},
            customdata=[f"{text} ({percent(share, signed=True)})" for _, _, share, text in some],
            hovertemplate="%{y}, process " + str(process) + ": %{customdata}<extra></extra>",
        )
    drawing.frame(figure, "value ÷ mean over the processes − 1", "", height=130 + 24 * len(lines))
    widest = max(abs(share) for values in lines.values() for _, share, _ in values)
    figure.update_xaxes(tickformat="+.2~%", range=[-1.15 * widest - 1e-4, 1.15 * widest + 1e-4])
    figure.update_yaxes(
        autorange="reversed", automargin=True, gridcolor="#e6e9ef", tickmode="array",
        tickvals=list(lines), categoryorder="array", categoryarray=list(lines),
    )  # fmt: skip
    figure.update_layout(margin={"l": 24, "b": 64}, legend={"y": 1, "yanchor": "bottom"})
    return figure


def _label(row: Row) -> str:
    return f"{row.family} {table.name(row)} {table.kind(row.figure)}".strip()
