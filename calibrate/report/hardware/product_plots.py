"""Plots of matrix products: those of few rows on their roofline, burst beside sustained, and the load over time.

Example: ``peaks(found)`` is None where no product was measured
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from calibrate.report.charts import AXIS
from calibrate.report.hardware import drawing
from calibrate.report.hardware.cost_plots import errors
from calibrate.report.hardware.rows import Group, Row, by_figure
from calibrate.report.units import bytes_per_s, dtype, flops_per_s, number, percent, seconds
from profiler.record.conditions import Window
from profiler.record.measurement import Measurement
from profiler.record.run import Run

WIDTH = 0.2
"""Of a bar, in places of a dtype."""


def skinny(found: Sequence[Group], measurements: Sequence[Measurement], run: Run) -> go.Figure | None:
    """Achieved time over the rows m, with the time at the measured peaks; None without such products."""
    measured = by_figure(measurements, run)
    rows = [r for group in found for r in group.rows if r.family == "skinny" and r.figure.value and not r.one_core]
    series: dict[str, list[tuple[float, Row]]] = {}
    for row in rows:
        alike = measured.get((row.figure.name, row.figure.dtype))
        m = alike[0].parameters.get("m") if alike else None
        if isinstance(m, int | float):
            series.setdefault(row.figure.dtype or "", []).append((float(m), row))
    if not series:
        return None
    figure = go.Figure()
    for i, (kind, points) in enumerate(series.items()):
        points.sort(key=lambda point: point[0])
        x, times = [m for m, _ in points], [row.figure.value or 0.0 for _, row in points]
        drawing.points(figure, dtype(kind), x, times, [_skinny_hover(m, row) for m, row in points], i)
        bound = [(m, row.roofline_s) for m, row in points if row.roofline_s is not None]
        if bound:
            ms, least = zip(*bound, strict=True)
            drawing.line(figure, f"{dtype(kind)} roofline", ms, least, drawing.colour(i))
    every = [m for points in series.values() for m, _ in points]
    times = [t for points in series.values() for _, row in points for t in (row.figure.value, row.roofline_s) if t]
    drawing.frame(figure, "rows m (sequences of a decode batch)", "time of the product")
    drawing.log_axis(figure, "x", every, number, base=2)
    drawing.log_axis(figure, "y", times, seconds)
    return figure


def peaks(found: Sequence[Group]) -> go.Figure | None:
    """Burst and sustained of each dtype beside the datasheet and the datasheet at the clock seen."""
    rows = [r for group in found for r in group.rows if r.family == "matmul" and r.figure.value and not r.one_core]
    kinds = list(dict.fromkeys(row.figure.dtype or "" for row in rows))
    if not kinds:
        return None
    by = {(row.label, row.figure.dtype or ""): row for row in rows}
    bars: list[tuple[str, str, list[float | None]]] = [
        ("datasheet", drawing.LIGHT, [_first(by, kind, lambda row: row.figure.datasheet) for kind in kinds]),
        ("burst", "#1f77b4", [_value(by.get(("burst", kind))) for kind in kinds]),
        ("sustained", "#2a7f62", [_value(by.get(("sustained", kind))) for kind in kinds]),
    ]
    bars = [bar for bar in bars if any(bar[2])]
    figure = go.Figure()
    for i, (name, paint, values) in enumerate(bars):
        some = [by.get((name, kind)) for kind in kinds]
        place = (i - (len(bars) - 1) / 2) * WIDTH * 1.1
        at = [position + place for position in range(len(kinds))]
        figure.add_bar(
            name=name,
            x=at,
            y=values,
            width=WIDTH,
            marker={"color": paint},
            text=["" if value is None else drawing.short(flops_per_s(value)) for value in values],
            textposition="outside",
            cliponaxis=False,
            error_y=errors(some),
            hovertemplate="%{text}<extra>" + name + "</extra>",
        )
        clocks = [(x, r) for x, r in zip(at, some, strict=True) if r is not None and r.datasheet_at_clock]
        if clocks:
            figure.add_scatter(
                name=f"datasheet at the clock of {name}",
                x=[x for x, _ in clocks],
                y=[row.datasheet_at_clock for _, row in clocks],
                mode="markers",
                marker={"symbol": "line-ew", "size": 34, "line": {"width": 2.5, "color": "#c8553d"}},
                hovertext=[
                    f"{flops_per_s(r.datasheet_at_clock)} at {(r.clock_hz or 0) / 1e6:.0f} MHz" for _, r in clocks
                ],
                hoverinfo="text",
                showlegend=name == "burst" or len(bars) == 1,
            )
    drawing.frame(figure, "", "FLOP/s")
    figure.update_xaxes(tickvals=list(range(len(kinds))), ticktext=[dtype(kind) for kind in kinds])
    tops = [value for _, _, values in bars for value in values if value]
    figure.update_yaxes(tickformat="~s", range=[0, 1.12 * max(tops)])
    figure.update_layout(barmode="overlay")
    for trace in figure.data:
        if trace.name == "datasheet at the clock of burst":
            trace.name = "datasheet at the SM clock seen"
    return figure


def sustained(measurements: Sequence[Measurement]) -> go.Figure | None:
    """Rate of each sample over time, and below it what was read of clock, power and temperature; None without load."""
    loads = [one for one in measurements if one.benchmark == "matmul" and one.case == "sustained" and one.samples]
    if not loads:
        return None
    panels = [panel for panel in PANELS if any(panel[2](w) is not None for one in loads for w in one.windows)]
    figure = make_subplots(
        rows=1 + len(panels), cols=1, shared_xaxes=True, vertical_spacing=0.04,
        row_heights=[2.0, *[1.0] * len(panels)],
    )  # fmt: skip
    first = min(one.process for one in loads)
    kinds = list(dict.fromkeys(one.dtype or "" for one in loads))
    for one in loads:
        i = kinds.index(one.dtype or "")
        name = f"{dtype(one.dtype or '')}, process {one.process}"
        times = list(sample_times(one))
        kept = drawing.thinned(len(times))
        about = {"legendgroup": one.dtype, "name": dtype(one.dtype or ""), "showlegend": one.process == first}
        paint = {"color": drawing.colour(i)}
        opacity = 1.0 if one.process == first else 0.45
        figure.add_scatter(
            x=[times[k] for k in kept], y=[one.work / one.samples[k] for k in kept], mode="markers",
            marker={**paint, "size": 4}, opacity=opacity,
            hovertemplate="%{x:.2f} s: %{y:.4s}FLOP/s<extra>" + name + "</extra>", row=1, col=1, **about,
        )  # fmt: skip
        for row, (_, unit, read) in enumerate(panels, start=2):
            known = [(w.start_s + w.duration_s, value) for w in one.windows if (value := read(w)) is not None]
            figure.add_scatter(
                x=[x for x, _ in known], y=[y for _, y in known], mode="lines+markers", line={**paint, "width": 1.4},
                marker={**paint, "size": 4}, opacity=opacity, row=row, col=1,
                hovertemplate="%{x:.2f} s: %{y:.4g} " + unit + "<extra>" + name + "</extra>",
                **about | {"showlegend": False},
            )  # fmt: skip
    drawing.frame(figure, "", "", height=320 + 130 * len(panels))
    figure.update_layout(legend={"y": -0.12})
    figure.update_yaxes(AXIS, title="FLOP/s", tickformat="~s", row=1, col=1)
    for row, (title, unit, _) in enumerate(panels, start=2):
        figure.update_yaxes(AXIS, title=f"{title}, {unit}", row=row, col=1)
    figure.update_xaxes(title="time under load, s", row=1 + len(panels), col=1)
    return figure


PANELS: tuple[tuple[str, str, Callable[[Window], float | None]], ...] = (
    ("SM clock", "MHz", lambda w: None if w.sm_clock_hz is None else w.sm_clock_hz / 1e6),
    ("CPU clock", "MHz", lambda w: None if w.cpu_clock_hz is None else w.cpu_clock_hz / 1e6),
    ("power", "W", lambda w: w.power_w),
    ("temperature", "°C", lambda w: w.temperature_c),
)
"""Title, unit, and what is read of a window."""


def sample_times(one: Measurement) -> Iterator[float]:
    """Seconds since the start of the load at which each sample was taken.

    Where windows count more samples than were kept, those kept are the last ones. Without windows samples follow one
    another without a pause.
    """
    counted = sum(window.samples for window in one.windows)
    if counted < len(one.samples):
        now = 0.0
        for sample in one.samples:
            now += sample * one.repeats
            yield now
        return
    skip = counted - len(one.samples)
    for window in one.windows:
        for j in range(window.samples):
            if skip > 0:
                skip -= 1
                continue
            yield _within(window, j)


def _within(window: Window, j: int) -> float:
    return window.start_s + (j + 0.5) / window.samples * window.duration_s


def _skinny_hover(m: float, row: Row) -> str:
    rates = (
        f"{flops_per_s(row.flops_per_s)}, {bytes_per_s(row.bytes_per_s)}, {percent(row.of_roofline)} of the roofline"
    )
    return f"{dtype(row.figure.dtype or '')} {row.shape or f'm {m:g}'}: {seconds(row.figure.value)}, {rates}"


def _value(row: Row | None) -> float | None:
    return row.figure.value if row is not None else None


def _first(by: Mapping[tuple[str, str], Row], kind: str, read: Callable[[Row], float | None]) -> float | None:
    return next((value for (_, k), row in by.items() if k == kind and (value := read(row)) is not None), None)
