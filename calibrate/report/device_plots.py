"""The plots of a characterisation; a new one is a function here and a row in `calibrate.report.device.PLOTS`.

Each takes a `Characterisation` and gives None where its data is absent. A fit is a pair of figures: T = latency +
size ÷ bandwidth for a transfer, T = start + nodes × node for a graph.
"""

import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate, islice
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from calibrate.report import device_rows, theme
from calibrate.report.device_rows import FRESH, GIVEN, Characterisation, Row, call_s, ends, kind_of, place
from profiler.record.measurement import Measurement, Window
from roofline.hardware.spec import HardwareSpec
from roofline.units import binary, bytes_per_s, dtype, flops_per_s, in_unit, megahertz, number, percent, seconds

STATED = re.compile(r"(\d+) bytes stated by the system")
BAR = {"datasheet": theme.LIGHT, "burst": "#1f77b4", "sustained": theme.GREEN}
INSIDE = {"textposition": "inside", "insidetextanchor": "middle", "textangle": -90}
"""Place of the rate of a bar: upright, in its middle."""
SPREAD = ("memory", "level", "matmul", "launch", "host", "vector", "skinny", "pointwise", "energy")
MOST = 36
"""Figures whose spread is drawn: of the families above, in their order."""
POINTS = 1500
"""Samples drawn of one load; of more, evenly chosen ones."""
Point = tuple[float, float]
Line = tuple[str, Sequence[float], Sequence[float]]
"""Name, x and y of a fit."""
Panel = tuple[str, str, Callable[[Window], float | None]]
"""Title, unit, and the reading of a window that is drawn."""
PANELS: tuple[Panel, ...] = (
    ("SM clock", "MHz", lambda w: None if w.sm_clock_hz is None else w.sm_clock_hz / 1e6),
    ("CPU clock", "MHz", lambda w: None if w.cpu_clock_hz is None else w.cpu_clock_hz / 1e6),
    ("power", "W", lambda w: w.power_w),
    ("temperature", "°C", lambda w: w.temperature_c),
)


def curve(of: Characterisation) -> go.Figure | None:
    """Bandwidth over the working set, a line for each kernel with plateaus, knees and stated capacities."""
    lines = {kernel: sorted(line) for kernel, line in _points(of, "curve", Measurement.value).items()}
    if not lines:
        return None
    figure = theme.style(go.Figure(), "working set", "bandwidth (bytes read + written)", height=500)
    for i, (kernel, line) in enumerate(lines.items()):
        hover = [theme.plain(f"{kernel} {binary(x)}: {bytes_per_s(y)}") for x, y in line]
        theme.points(figure, kernel, [x for x, _ in line], [y for _, y in line], hover, i)
        _intervals(figure, kernel, of.rows("curve"), i)
    sizes, rates = zip(*(point for line in lines.values() for point in line), strict=True)
    theme.log_axis(figure, "x", sizes, binary, base=2)
    theme.log_axis(figure, "y", rates, bytes_per_s)
    marks = [(size, f"{name} {binary(size)}", theme.GREY, "dot") for name, size in capacities(of.spec, of.measurements)]
    for row in of.rows("curve"):
        if (value := row.figure.value) is None:
            continue
        if row.label.startswith("plateau") and row.span is not None:
            theme.line(figure, f"{row.label}: {bytes_per_s(value)}", row.span, (value, value), theme.DARK, "solid")
        if row.label.startswith("knee"):
            marks.append((value, f"{row.label} {binary(value)}", theme.RED, "dash"))
    low, high = min(sizes) / 1.25, max(sizes) * 1.25
    for level, (x, text, paint, dash) in enumerate(sorted(mark for mark in marks if low <= mark[0] <= high)):
        theme.upright(figure, x, text, paint, dash, level % 4)
    return figure


def _intervals(figure: go.Figure, kernel: str, rows: Sequence[Row], i: int) -> None:
    """Add the 90 % intervals over fresh processes of one kernel's points, where there are any."""
    some = [row for row in rows if row.series == kernel and row.size_bytes and row.figure.value]
    if (whiskers := _errors(some)) is None:
        return
    x, y = [row.size_bytes for row in some], [row.figure.value for row in some]
    look: dict[str, Any] = {"mode": "markers", "marker": {"size": 1, "color": theme.colour(i)}, "hoverinfo": "skip"}
    figure.add_scatter(name=f"{kernel}, 90 %", x=x, y=y, error_y=whiskers, showlegend=False, **look)


def capacities(spec: HardwareSpec, measurements: Sequence[Measurement]) -> tuple[tuple[str, float], ...]:
    """(name, bytes) of each cache as the system or a datasheet states it, and of the one that was to be exceeded."""
    names: dict[float, str] = {}
    for peaks in (spec.measured, spec.datasheet):
        for level in peaks.levels[:-1] if peaks else ():
            stated = STATED.search(level.bandwidth.source)
            names.setdefault(float(stated.group(1)) if stated else level.capacity_bytes, f"{level.name}, stated")
    last_level = [
        measurement.cache.cache_bytes
        for measurement in measurements
        if measurement.cache and measurement.cache.cache_bytes
    ]
    if last_level:
        names.setdefault(float(statistics.mode(last_level)), "last-level cache, stated")
    return tuple((name, size) for size, name in sorted(names.items()))


def skinny(of: Characterisation) -> go.Figure | None:
    """Measured time over the rows m, with the time at the measured peaks."""
    series: dict[str, list[tuple[float, Row]]] = {}
    for row in of.rows("skinny"):
        alike = of.by_figure.get((row.figure.name, row.figure.dtype))
        m = alike[0].parameters.get("m") if alike else None
        if isinstance(m, int | float) and row.figure.value and not row.one_core:
            series.setdefault(row.figure.dtype or "", []).append((float(m), row))
    if not series:
        return None
    figure = theme.style(go.Figure(), "rows m (sequences of a decode batch)", "time of the product")
    for i, (kind, points) in enumerate(series.items()):
        points.sort(key=lambda point: point[0])
        hover = [
            f"{kind_of(row.figure)} {row.shape or f'm {m:g}'}: {seconds(row.figure.value)}, "
            f"{flops_per_s(row.flops_per_s)}, {bytes_per_s(row.bytes_per_s)}, roofline {percent(row.of_roofline)}"
            for m, row in points
        ]
        whiskers = _errors([row for _, row in points])
        x, y = [m for m, _ in points], [row.figure.value for _, row in points]
        theme.points(figure, dtype(kind), x, y, hover, i, error_y=whiskers)
        bound = [(m, row.roofline_s) for m, row in points if row.roofline_s is not None]
        if bound:
            ms, times_s = zip(*bound, strict=True)
            theme.line(figure, f"{dtype(kind)} roofline", ms, times_s, theme.colour(i))
    every = [point for points in series.values() for point in points]
    times = [t for _, row in every for t in (row.figure.value, row.roofline_s) if t]
    theme.log_axis(figure, "x", [m for m, _ in every], number, base=2)
    theme.log_axis(figure, "y", times, seconds)
    return figure


def peaks(of: Characterisation) -> go.Figure | None:
    """Burst and sustained rates beside the datasheet and the datasheet at the clock seen; each dtype has its scale."""
    rows = [row for row in of.rows("matmul") if row.figure.value and not row.one_core]
    kinds = list(dict.fromkeys(row.figure.dtype or "" for row in rows))
    if not kinds:
        return None
    figure = make_subplots(rows=1, cols=len(kinds), subplot_titles=[dtype(kind) for kind in kinds])
    theme.style(figure, barmode="overlay", bargap=0.25, legend_y=-0.12, margin_t=40)
    for column, kind in enumerate(kinds, start=1):
        some = [row for row in rows if (row.figure.dtype or "") == kind]
        datasheet = next((row.figure.datasheet for row in some if row.figure.datasheet), None)
        bars: list[tuple[list[str], list[float], dict[str, object] | None]] = []
        bars += [(["datasheet"], [datasheet], None)] if datasheet else []
        bars.append(([row.label for row in some], [row.figure.value or 0.0 for row in some], _errors(some)))
        for names, rates, whiskers in bars:
            figure.add_bar(
                x=names,
                y=rates,
                marker={"color": [BAR.get(name, theme.GREY) for name in names]},
                text=[flops_per_s(rate) for rate in rates],
                error_y=whiskers,
                hovertemplate="%{x}: %{text}<extra>" + dtype(kind) + "</extra>",
                showlegend=False,
                row=1,
                col=column,
                **INSIDE,
            )
        clocks = [row for row in some if row.datasheet_at_clock]
        if clocks:
            name = "datasheet at the SM clock seen"
            hover = [f"{flops_per_s(row.datasheet_at_clock)} at {megahertz(row.clock_hz or 0)}" for row in clocks]
            x, y = [row.label for row in clocks], [row.datasheet_at_clock for row in clocks]
            dash = {"symbol": "line-ew", "size": 34, "line": {"width": 2.5, "color": theme.RED}}
            first = all(trace.name != name for trace in figure.data)
            theme.points(figure, name, x, y, hover, marker=dash, mode="markers", showlegend=first, row=1, col=column)
        tops = [rate or 0.0 for row in some for rate in (row.figure.high, row.figure.value, row.datasheet_at_clock)]
        figure.update_yaxes(tickformat="~s", range=[0, 1.08 * max(*tops, datasheet or 0.0)], row=1, col=column)
    figure.update_yaxes(title_text="FLOP/s", row=1, col=1)
    return figure


def sustained(of: Characterisation) -> go.Figure | None:
    """Rate of each sample over time, and below it what was read of clock, power and temperature."""
    loads = [m for m in of.measurements if (m.benchmark, m.case) == ("matmul", "sustained") and m.samples]
    if not loads:
        return None
    kinds = list(dict.fromkeys(load.dtype or "" for load in loads))
    panels = [panel for panel in PANELS if any(panel[2](w) is not None for load in loads for w in load.windows)]
    count = len(kinds) + len(panels)
    figure = make_subplots(rows=count, cols=1, shared_xaxes=True, vertical_spacing=0.12 / count)
    theme.style(figure, height=120 + 140 * count, legend_y=1.0, legend_yanchor="bottom")
    first = min(load.process for load in loads)
    for load in loads:
        _load(figure, load, kinds.index(load.dtype or ""), len(kinds), panels, first)
    for row, kind in enumerate(kinds, start=1):
        figure.update_yaxes(tickformat="~s", title_text=f"{dtype(kind)}, FLOP/s", row=row, col=1)
    for row, (title, unit, _) in enumerate(panels, start=1 + len(kinds)):
        figure.update_yaxes(title_text=f"{title}, {unit}", row=row, col=1)
    figure.update_xaxes(rangemode="tozero", zeroline=False)
    figure.update_xaxes(title="time under load, s", row=count, col=1)
    return figure


def _load(
    figure: go.Figure, load: Measurement, i: int, kinds: int, panels: Sequence[Panel], first_process: int
) -> None:
    """Draw one process under load: its samples in the panel of its dtype, its windows below."""
    name = f"{dtype(load.dtype or '')}, process {load.process}"
    first = load.process == first_process
    about: dict[str, Any] = {"legendgroup": load.dtype, "opacity": 1.0 if first else 0.45, "col": 1}
    times = list(sample_times(load))
    kept = range(0, len(times), max(1, -(-len(times) // POINTS)))
    x, rates = [times[k] for k in kept], [load.work / load.samples[k] for k in kept]
    hover = [f"{t:.2f} s: {flops_per_s(rate)}, {name}" for t, rate in zip(x, rates, strict=True)]
    draw = partial(theme.points, figure, dtype(load.dtype or ""), i=i, marker={"size": 4}, **about)
    draw(x=x, y=rates, hover=hover, mode="markers", showlegend=first, row=1 + i)
    for row, (_, unit, read) in enumerate(panels, start=1 + kinds):
        known = [(w.start_s + w.duration_s, value) for w in load.windows if (value := read(w)) is not None]
        hover = [f"{t:.2f} s: {value:.4g} {unit}, {name}" for t, value in known]
        draw(x=[t for t, _ in known], y=[value for _, value in known], hover=hover, showlegend=False, row=row)


def sample_times(load: Measurement) -> Iterator[float]:
    """Seconds since the start of the load at which each sample was taken.

    Where windows count more samples than were kept, those kept are the last ones. Without windows samples follow one
    another without a pause.
    """
    counted = sum(window.samples for window in load.windows)
    if counted < len(load.samples):
        yield from accumulate(sample * load.repeats for sample in load.samples)
        return
    starts = (w.start_s + (j + 0.5) / w.samples * w.duration_s for w in load.windows for j in range(w.samples))
    yield from islice(starts, counted - len(load.samples), None)


def pointwise(of: Characterisation) -> go.Figure | None:
    """Bytes/s of each operation into a given and into a fresh output."""
    rows = [row for row in of.rows("pointwise") if row.figure.value and not row.one_core]
    several = len({row.figure.dtype for row in rows}) > 1
    figure = theme.style(go.Figure(), "", "bytes read + written per second", barmode="group", bargap=0.3)
    for output, ending, paint in (("given output", GIVEN, theme.GREEN), ("fresh output", FRESH, "#e08e45")):
        some = [row for row in rows if row.label.endswith(ending)]
        if some:
            figure.add_bar(
                name=output,
                x=[row.label.removesuffix(ending) + (f" {kind_of(row.figure)}" if several else "") for row in some],
                y=[row.figure.value for row in some],
                marker={"color": paint},
                text=[theme.short(bytes_per_s(row.figure.value)) for row in some],
                error_y=_errors(some),
                hovertemplate="%{x}, " + output + ": %{text}<extra></extra>",
                **INSIDE,
            )
    figure.update_layout(legend_y=-0.14, showlegend=True)
    figure.update_yaxes(tickformat="~s", ticksuffix="B/s", rangemode="tozero")
    return figure if figure.data else None


def graphs(of: Characterisation) -> go.Figure | None:
    """Time of a replay over the nodes of a graph, with its fit."""
    points = _points(of, "launch", call_s, {"graph": "graph replay"}.get)
    node, start = of.value("launch.graph node"), of.value("launch.graph start")

    def fit(_: str, x: list[float]) -> Line | None:
        if node is None or start is None:
            return None
        return f"fit: {seconds(start)} + {seconds(node)} a node", x, [start + node * nodes for nodes in x]

    return _over_size(points, ("nodes of the graph", "time of a replay"), (number, seconds), fit)


def transfers(of: Characterisation) -> go.Figure | None:
    """Time over size of each kind of memory and direction, with its fit."""

    def fit(series: str, x: list[float]) -> Line | None:
        bandwidth, latency = of.value(f"transfer.{series}.bandwidth"), of.value(f"transfer.{series}.latency")
        if bandwidth is None or latency is None:
            return None
        name = f"{series} fit: {seconds(latency)} + size ÷ {bytes_per_s(bandwidth)}"
        return name, x, [latency + size / bandwidth for size in x]

    return _over_size(_points(of, "transfer", call_s), ("size", "time of a transfer"), (binary, seconds), fit)


def collectives(of: Characterisation) -> go.Figure | None:
    """busbw over size of each operation, the fitted bandwidth as its ceiling."""

    def fit(series: str, x: list[float]) -> Line | None:
        bandwidth = of.value(f"collective.{series}.bandwidth")
        if bandwidth is None:
            return None
        return f"{series}: fitted {bytes_per_s(bandwidth)}", (x[0], x[-1]), (bandwidth, bandwidth)

    points = _points(of, "collective", lambda measurement: measurement.value() if measurement.unit == "B/s" else None)
    return _over_size(points, ("size, as nccl-tests counts it", "busbw"), (binary, bytes_per_s), fit)


def _points(
    of: Characterisation,
    benchmark: str,
    read: Callable[[Measurement], float | None],
    rename: Callable[[str], str | None] = str,
) -> dict[str, list[Point]]:
    """(size or nodes, value) of each series; of several processes, each has its own points."""
    points: dict[str, list[Point]] = {}
    for measurement in of.measurements:
        if measurement.benchmark == benchmark and measurement.status == "done":
            series, size = place(measurement)
            if (label := rename(series)) and size and (value := read(measurement)) is not None:
                points.setdefault(label, []).append((size, value))
    return points


def _over_size(
    points: dict[str, list[Point]],
    titles: tuple[str, str],
    shows: tuple[Callable[[float], str], Callable[[float], str]],
    fit: Callable[[str, list[float]], Line | None],
) -> go.Figure | None:
    """Points on two logarithmic axes, each series with its fit; None without points."""
    if not points:
        return None
    figure = theme.style(go.Figure(), *titles, showlegend=True)
    show_x, show_y = shows
    for i, (series, values) in enumerate(points.items()):
        x, y = zip(*sorted(values), strict=True)
        hover = [theme.plain(f"{series} {show_x(size)}: {show_y(value)}") for size, value in sorted(values)]
        theme.points(figure, series, x, y, hover, i, mode="lines+markers" if len(set(x)) == len(x) else "markers")
        if (line := fit(series, np.geomspace(x[0], x[-1], 60).tolist())) is not None:
            theme.line(figure, *line, theme.colour(i) if len(points) > 1 else theme.DARK)
    every = [point for values in points.values() for point in values]
    theme.log_axis(figure, "x", [x for x, _ in every], show_x, base=2)
    theme.log_axis(figure, "y", [y for _, y in every], show_y)
    return figure


def spread(of: Characterisation) -> go.Figure | None:
    """How far the processes differ: each figure's values over their geometric mean, a point for each process.

    Samples of one process share its luck; what a reader may expect of the next process is this spread.
    """
    lines: dict[str, list[tuple[int, float, str]]] = {}
    for row in sorted(of.rows(*SPREAD), key=lambda row: SPREAD.index(row.family)):
        alike = of.by_figure.get((row.figure.name, row.figure.dtype), ())
        values = {m.process: m.value() for m in alike if m.status == "done"}
        if row.figure.value is None or len(values) < 2 or len(lines) == MOST:
            continue
        middle = statistics.geometric_mean(values.values())
        lines[f"{row.family} {device_rows.name(row)} {kind_of(row.figure)}".strip()] = [
            (process, value / middle - 1, in_unit(value, row.figure.unit)) for process, value in values.items()
        ]
    if not lines:
        return None
    layout: dict[str, Any] = {"height": 130 + 24 * len(lines), "legend_y": 1, "legend_yanchor": "bottom"}
    figure = theme.style(go.Figure(), "value ÷ mean over the processes − 1", **layout)
    marker = {"size": 9, "opacity": 0.8, "line": {"color": "#ffffff", "width": 1}}
    for i, process in enumerate(sorted({process for values in lines.values() for process, _, _ in values})):
        some = [(share, label, text) for label, values in lines.items() for n, share, text in values if n == process]
        hover = [
            theme.plain(f"{label}, process {process}: {text} ({percent(share, signed=True)})")
            for share, label, text in some
        ]
        x, y = [share for share, _, _ in some], [label for _, label, _ in some]
        theme.points(figure, f"process {process}", x, y, hover, i, marker=marker, mode="markers")
    widest = max(abs(share) for values in lines.values() for _, share, _ in values)
    figure.update_xaxes(tickformat="+.2~%", range=[-1.15 * widest - 1e-4, 1.15 * widest + 1e-4])
    figure.update_yaxes(autorange="reversed", tickvals=list(lines), categoryorder="array", categoryarray=list(lines))
    return figure


def _errors(rows: Sequence[Row]) -> dict[str, object] | None:
    """Error bars to both ends of the intervals; None where no interval is known."""
    known = [(*ends(row.figure), row.figure.value or 0.0) for row in rows]
    if all(low is None or high is None for low, high, _ in known):
        return None
    above = [None if high is None else high - value for _, high, value in known]
    below = [None if low is None else value - low for low, _, value in known]
    return {
        "type": "data",
        "symmetric": False,
        "array": above,
        "arrayminus": below,
        "thickness": 1.2,
        "color": theme.FAINT,
    }
