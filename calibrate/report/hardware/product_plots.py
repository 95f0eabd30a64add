"""Plots of matrix products: those of few rows on their roofline, burst beside sustained, and the load over time.

Example: ``peaks(found)`` is None where no product was measured
"""

from collections.abc import Callable, Iterator, Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from calibrate.report.hardware import drawing
from calibrate.report.hardware.cost_plots import errors
from calibrate.report.hardware.rows import Group, Row, by_figure
from calibrate.report.units import bytes_per_s, dtype, flops_per_s, number, percent, seconds
from profiler.record.measurement import Measurement, Window
from profiler.record.run import Run

BAR = {"datasheet": drawing.LIGHT, "burst": "#1f77b4", "sustained": "#2a7f62"}


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
    """Burst and sustained of each dtype beside the datasheet and the datasheet at the clock seen; each on its scale."""
    rows = [r for group in found for r in group.rows if r.family == "matmul" and r.figure.value and not r.one_core]
    kinds = list(dict.fromkeys(row.figure.dtype or "" for row in rows))
    if not kinds:
        return None
    figure = make_subplots(rows=1, cols=len(kinds), subplot_titles=[dtype(kind) for kind in kinds])
    drawing.frame(figure, "", "")
    clocked = False
    for column, kind in enumerate(kinds, start=1):
        some = [row for row in rows if (row.figure.dtype or "") == kind]
        said = next((row.figure.datasheet for row in some if row.figure.datasheet), None)
        if said:
            _bar(figure, column, kind, ["datasheet"], [said], None)
        _bar(figure, column, kind, [row.label for row in some], [row.figure.value or 0.0 for row in some], errors(some))
        clocks = [row for row in some if row.datasheet_at_clock]
        if clocks:
            figure.add_scatter(
                name="datasheet at the SM clock seen",
                x=[row.label for row in clocks],
                y=[row.datasheet_at_clock for row in clocks],
                mode="markers",
                marker={"symbol": "line-ew", "size": 34, "line": {"width": 2.5, "color": "#c8553d"}},
                hovertext=[f"{flops_per_s(r.datasheet_at_clock)} at {(r.clock_hz or 0) / 1e6:.0f} MHz" for r in clocks],
                hoverinfo="text",
                showlegend=not clocked,
                row=1,
                col=column,
            )
            clocked = True
        top = max(
            rate or 0.0 for row in some for rate in (said, row.figure.high, row.figure.value, row.datasheet_at_clock)
        )
        figure.update_yaxes(tickformat="~s", range=[0, 1.08 * top], row=1, col=column)
    drawing.y_axis_title(figure, "FLOP/s", row=1, col=1)
    figure.update_layout(barmode="overlay", bargap=0.25, legend={"y": -0.12}, margin={"t": 40})
    return figure


def _bar(
    figure: go.Figure,
    column: int,
    kind: str,
    names: Sequence[str],
    rates: Sequence[float],
    whiskers: dict[str, object] | None,
) -> None:
    """Bars of one dtype, each with its rate in it."""
    figure.add_bar(
        x=names,
        y=rates,
        marker={"color": [BAR.get(name, drawing.GREY) for name in names]},
        text=[flops_per_s(rate) for rate in rates],
        textposition="inside",
        insidetextanchor="middle",
        textangle=-90,
        error_y=whiskers,
        hovertemplate="%{x}: %{text}<extra>" + dtype(kind) + "</extra>",
        showlegend=False,
        row=1,
        col=column,
    )


def sustained(measurements: Sequence[Measurement]) -> go.Figure | None:
    """Rate of each sample over time, and below it what was read of clock, power and temperature; None without load."""
    loads = [one for one in measurements if one.benchmark == "matmul" and one.case == "sustained" and one.samples]
    if not loads:
        return None
    kinds = list(dict.fromkeys(one.dtype or "" for one in loads))
    panels = [panel for panel in PANELS if any(panel[2](w) is not None for one in loads for w in one.windows)]
    count = len(kinds) + len(panels)
    figure = make_subplots(rows=count, cols=1, shared_xaxes=True, vertical_spacing=0.12 / count)
    drawing.frame(figure, "", "", height=120 + 140 * count)
    first = min(one.process for one in loads)
    for one in loads:
        _load(figure, one, kinds.index(one.dtype or ""), len(kinds), panels, first)
    for row, kind in enumerate(kinds, start=1):
        figure.update_yaxes(tickformat="~s", row=row, col=1)
        drawing.y_axis_title(figure, f"{dtype(kind)}, FLOP/s", row=row, col=1)
    for row, (title, unit, _) in enumerate(panels, start=1 + len(kinds)):
        drawing.y_axis_title(figure, f"{title}, {unit}", row=row, col=1)
    figure.update_xaxes(rangemode="tozero", zeroline=False)
    figure.update_xaxes(title="time under load, s", row=count, col=1)
    figure.update_layout(legend={"y": 1.0, "yanchor": "bottom"})
    return figure


def _load(
    figure: go.Figure, one: Measurement, i: int, kinds: int, panels: Sequence["Panel"], first_process: int
) -> None:
    """One process under load: its samples in the panel of its dtype, its windows below."""
    name = f"{dtype(one.dtype or '')}, process {one.process}"
    opacity = 1.0 if one.process == first_process else 0.45
    about = {"name": dtype(one.dtype or ""), "legendgroup": one.dtype, "opacity": opacity, "col": 1}
    paint = {"color": drawing.colour(i)}
    times = list(sample_times(one))
    kept = drawing.thinned(len(times))
    figure.add_scatter(
        x=[times[k] for k in kept],
        y=[one.work / one.samples[k] for k in kept],
        mode="markers",
        marker={**paint, "size": 4},
        hovertemplate="%{x:.2f} s: %{y:.4s}FLOP/s<extra>" + name + "</extra>",
        showlegend=one.process == first_process,
        row=1 + i,
        **about,
    )
    for row, (_, unit, read) in enumerate(panels, start=1 + kinds):
        known = [(w.start_s + w.duration_s, value) for w in one.windows if (value := read(w)) is not None]
        figure.add_scatter(
            x=[x for x, _ in known],
            y=[y for _, y in known],
            mode="lines+markers",
            line={**paint, "width": 1.4},
            marker={**paint, "size": 4},
            hovertemplate="%{x:.2f} s: %{y:.4g} " + unit + "<extra>" + name + "</extra>",
            showlegend=False,
            row=row,
            **about,
        )


Panel = tuple[str, str, Callable[[Window], float | None]]
"""Title, unit, and what is read of a window."""

PANELS: tuple[Panel, ...] = (
    ("SM clock", "MHz", lambda w: None if w.sm_clock_hz is None else w.sm_clock_hz / 1e6),
    ("CPU clock", "MHz", lambda w: None if w.cpu_clock_hz is None else w.cpu_clock_hz / 1e6),
    ("power", "W", lambda w: w.power_w),
    ("temperature", "°C", lambda w: w.temperature_c),
)


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
