"""The pictures of several runs: ratios with their intervals, times over the dates of runs, passes side by side."""

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from calibrate.passes.pass_report import PassReport
from calibrate.regression.compare import Key, Result
from calibrate.regression.history import Change, Night
from calibrate.regression.statistics import Array
from calibrate.report import theme
from roofline.units import seconds, shortened

VERDICT = {"slower": theme.RED, "faster": theme.GREEN, "same": theme.GREY, "ambiguous": "#e3b23c"}
"""Colours of verdicts; those of all others are grey."""
MOST, SERIES = 40, 12
"""Rows of a picture of ratios, those that changed most, and lines of a history."""
LABEL = 60
"""Characters of a row's label."""


Ran = tuple[str, str, str, PassReport]
"""Name of a run, its start in ISO 8601, the title of one of its passes, and the report."""


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


def walls(passes: Sequence[Ran]) -> go.Figure | None:
    """The wall time of each pass, a bar for each run, relative to the first run that has the pass."""
    if not passes:
        return None
    first = {title: report.wall_s for _, _, title, report in reversed(passes)}
    figure = theme.style(go.Figure(), "", "wall ÷ that of the first run", barmode="group", showlegend=True)
    for i, run in enumerate(dict.fromkeys(name for name, *_ in passes)):
        titles, reports = zip(*((title, report) for name, _, title, report in passes if name == run), strict=True)
        figure.add_bar(
            name=theme.plain(run),
            x=list(map(theme.plain, titles)),
            y=[report.wall_s / first[title] for title, report in zip(titles, reports, strict=True)],
            text=[seconds(report.wall_s) for report in reports],
            marker={"color": theme.colour(i)},
            error_y=_whiskers(reports, [first[title] for title in titles]),
            hovertemplate="%{x}, " + theme.plain(run) + ": %{text} (%{y:.2f}×)<extra></extra>",
        )
    figure.update_yaxes(ticksuffix="×", rangemode="tozero")
    return figure


def over_time(passes: Sequence[Ran]) -> go.Figure | None:
    """The wall time of each pass over the dates of its runs; None below three dates."""
    if len({started for _, started, *_ in passes}) < 3:
        return None
    figure = theme.style(go.Figure(), "", "wall time", showlegend=True)
    for i, title in enumerate(dict.fromkeys(title for *_, title, _ in passes)):
        some = sorted((one for one in passes if one[2] == title), key=lambda one: one[1])
        hover = [theme.plain(f"{name}, {title}: {seconds(report.wall_s)}") for name, _, _, report in some]
        reports = [report for *_, report in some]
        x, y = [started for _, started, *_ in some], [report.wall_s for report in reports]
        theme.points(figure, title, x, y, hover, i, error_y=_whiskers(reports, [1.0] * len(reports)))
    theme.log_axis(figure, "y", [report.wall_s for *_, report in passes], seconds)
    return figure


def _whiskers(reports: Sequence[PassReport], whole: Sequence[float]) -> dict[str, object]:
    """Error bars to the ends of the wall times' intervals, which are divided by `whole`."""
    bars: dict[str, object] = {"type": "data", "symmetric": False, "thickness": 1.2}
    for side, ends in (
        ("array", [_less(report.wall_s_high, report.wall_s) for report in reports]),
        ("arrayminus", [_less(report.wall_s, report.wall_s_low) for report in reports]),
    ):
        bars[side] = [None if end is None else end / of for end, of in zip(ends, whole, strict=True)]
    return bars
