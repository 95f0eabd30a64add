"""The pictures of several runs: ratios with their intervals, times over the dates of runs, passes side by side."""

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from calibrate.regression.compare import Key, Result
from calibrate.regression.history import Change, Night
from calibrate.regression.statistics import Array
from calibrate.report import theme
from calibrate.report.comparison import Bar
from calibrate.report.terminal import shortened
from roofline.units import seconds

VERDICT = {"slower": theme.RED, "faster": theme.GREEN, "same": theme.GREY, "ambiguous": "#e3b23c"}
"""Colours of verdicts; those of all others are grey."""
MOST, SERIES = 40, 12
"""Rows of a picture of ratios, those that changed most, and lines of a history."""
LABEL = 60
"""Characters of a row's label."""


def forest(result: Result) -> go.Figure | None:
    """The ratio of each row, new ÷ base, with its interval; the tolerance is shaded."""
    known = [row for row in result.comparisons if row.ratio is not None]
    known = sorted(known, key=lambda row: -abs(np.log(row.ratio or 1.0)))[:MOST]
    if not known:
        return None
    labels = [theme.plain(name) for name in shortened([row.name for row in known], LABEL)]
    figure = theme.style(go.Figure(), "new ÷ base − 1; above 0 is slower", "", height=140 + 22 * len(known))
    places = {row.key: label for row, label in zip(known, labels, strict=True)}
    for verdict in dict.fromkeys(row.verdict for row in known):
        some = [row for row in known if row.verdict == verdict]
        paint = VERDICT.get(verdict, theme.GREY)
        ends = {
            "array": [_less(row.high, row.ratio) for row in some],
            "arrayminus": [_less(row.ratio, row.low) for row in some],
        }
        theme.points(
            figure,
            verdict,
            [(row.ratio or 1.0) - 1 for row in some],
            [places[row.key] for row in some],
            [theme.plain(f"{row.name}: {row.sentence}") for row in some],
            mode="markers",
            marker={"color": paint, "size": 9},
            error_x={"type": "data", "symmetric": False, "color": paint, "thickness": 1.4, **ends},
        )
    figure.add_vrect(-result.tolerance, result.tolerance, fillcolor=theme.GREY, opacity=0.18, line_width=0)
    figure.update_layout(legend_y=1, legend_yanchor="bottom", margin_t=50, showlegend=True)
    figure.update_xaxes(tickformat="+.0%")
    figure.update_yaxes(autorange="reversed", categoryorder="array", categoryarray=labels, tickvals=labels)
    return figure


def _less(more: float | None, less: float | None) -> float | None:
    return None if more is None or less is None else more - less


def history(nights: Sequence[Night], series: Mapping[Key, Array], changes: Sequence[Change]) -> go.Figure | None:
    """Each changed row's time over the dates of the runs, as a ratio to its first time; a mark where it changed."""
    keys = list(dict.fromkeys(change.key for change in changes if change.key in series))[:SERIES]
    if not keys:
        return None
    figure = theme.style(go.Figure(), "", "time ÷ first time − 1", showlegend=True)
    dates = [night.started for night in nights]
    for i, key in enumerate(keys):
        logs = series[key]
        first = logs[~np.isnan(logs)][0]
        y = [None if np.isnan(value) else float(np.exp(value - first) - 1) for value in logs]
        name = " ".join(value for _, value in key if value)
        hover = [theme.plain(f"{night.name}, {name}") for night in nights]
        theme.points(figure, name, dates, y, hover, i)
        at = [change.at for change in changes if change.key == key]
        marker = {"symbol": "x", "size": 11}
        x, y_at, words = [dates[n] for n in at], [y[n] for n in at], [hover[n] for n in at]
        theme.points(figure, f"{name} changed", x, y_at, words, i, marker=marker, mode="markers", showlegend=False)
    figure.update_yaxes(tickformat="+.1%")
    return figure


def walls(bars: Sequence[Bar]) -> go.Figure | None:
    """The wall time of each pass, a bar for each run, relative to the first run that has the pass."""
    if not bars:
        return None
    first = {bar.title: bar.wall_s for bar in reversed(bars)}
    figure = theme.style(go.Figure(), "", "wall ÷ that of the first run", barmode="group", showlegend=True)
    for i, run in enumerate(dict.fromkeys(bar.run for bar in bars)):
        some = [bar for bar in bars if bar.run == run]
        ends = [(_share(bar.high_s, bar.wall_s, first[bar.title]), _share(bar.wall_s, bar.low_s, first[bar.title]))
                for bar in some]  # fmt: skip
        figure.add_bar(
            name=theme.plain(run),
            x=[theme.plain(bar.title) for bar in some],
            y=[bar.wall_s / first[bar.title] for bar in some],
            text=[seconds(bar.wall_s) for bar in some],
            marker={"color": theme.colour(i)},
            error_y={"type": "data", "symmetric": False, "array": [high for high, _ in ends],
                     "arrayminus": [low for _, low in ends], "thickness": 1.2},
            hovertemplate="%{x}, " + theme.plain(run) + ": %{text} (%{y:.2f}×)<extra></extra>",
        )  # fmt: skip
    figure.update_yaxes(ticksuffix="×", rangemode="tozero")
    return figure


def _share(more: float | None, less: float | None, whole: float) -> float | None:
    return None if more is None or less is None else (more - less) / whole


def over_time(bars: Sequence[Bar]) -> go.Figure | None:
    """The wall time of each pass over the dates of its runs; None below three dates."""
    if len({bar.started for bar in bars}) < 3:
        return None
    figure = theme.style(go.Figure(), "", "wall time", showlegend=True)
    for i, title in enumerate(dict.fromkeys(bar.title for bar in bars)):
        some = sorted((bar for bar in bars if bar.title == title), key=lambda bar: bar.started)
        hover = [theme.plain(f"{bar.run}, {title}: {seconds(bar.wall_s)}") for bar in some]
        x, y = [bar.started for bar in some], [bar.wall_s for bar in some]
        whiskers = {
            "type": "data", "symmetric": False, "array": [_less(bar.high_s, bar.wall_s) for bar in some],
            "arrayminus": [_less(bar.wall_s, bar.low_s) for bar in some],
        }  # fmt: skip
        theme.points(figure, title, x, y, hover, i, error_y=whiskers)
    theme.log_axis(figure, "y", [bar.wall_s for bar in bars], seconds)
    return figure
