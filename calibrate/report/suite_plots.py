"""The pictures of a suite of serving kernels: shares by family and provider, and the kernels on the roofline.

A point is a kernel of one provider; its id is the kernel's key, by which a page opens its row.
"""

from collections.abc import Sequence

import plotly.graph_objects as go

from calibrate.report import theme
from calibrate.report.pass_plots import Point, roofline_figure
from calibrate.report.suite_rows import SuiteRow
from roofline.hardware.spec import HardwareSpec
from roofline.laws.work import arithmetic
from roofline.units import bytes_per_s, flops_per_s, percent, plus_minus, seconds


def families(rows: Sequence[SuiteRow], spec: HardwareSpec | None = None) -> go.Figure | None:
    """The share of the roofline that each kernel reaches, a line for each family and provider."""
    known = [row for row in rows if row.share is not None]
    if not known:
        return None
    lines = list(dict.fromkeys(_line(row) for row in known))
    figure = theme.style(go.Figure(), "roofline ÷ measured time", "", height=140 + 24 * len(lines))
    for i, provider in enumerate(dict.fromkeys(row.kernel.provider for row in known)):
        some = [row for row in known if row.kernel.provider == provider]
        x, y = [row.share for row in some], [_line(row) for row in some]
        marker = {"size": 10, "opacity": 0.7, "line": {"color": "#ffffff", "width": 1}}
        hover, keys = [_hover(row) for row in some], [row.kernel.key for row in some]
        theme.points(figure, provider, x, y, hover, i, marker=marker, mode="markers", ids=keys)
    figure.add_vline(x=1, line={"color": theme.RED, "width": 1, "dash": "dash"})
    most = max(row.share or 0.0 for row in known)
    figure.update_layout(legend_y=1, legend_yanchor="bottom", margin_t=50, showlegend=True)
    figure.update_xaxes(tickformat=".0%", range=[0, 1.08 * max(1.0, most)])
    figure.update_yaxes(autorange="reversed", categoryorder="array", categoryarray=lines, tickvals=lines)
    return figure


def roofline(rows: Sequence[SuiteRow], spec: HardwareSpec | None) -> go.Figure | None:
    """The kernels under the roofs of the device, by family."""
    places = [
        Point(
            row.kernel.family, row.flops / row.bytes, row.flops_per_s or 0.0, 0.03, _hover(row), row.kernel.key
        )
        for row in rows
        if row.flops and row.bytes and row.flops_per_s
    ]  # fmt: skip
    if not places or spec is None:
        return None
    known = {name: peaks for name, peaks in (("achieved", spec.measured), ("datasheet", spec.datasheet)) if peaks}
    dtypes = dict.fromkeys(arithmetic(row.kernel.dtype, peaks.matrix) for row in rows for peaks in known.values())
    figure = roofline_figure(places, known, tuple(dtypes))
    for i, name in enumerate(dict.fromkeys(point.kind for point in places)):
        figure.update_traces(marker_color=theme.colour(i), selector={"name": theme.plain(name), "mode": "markers"})
    return figure


def _line(row: SuiteRow) -> str:
    return theme.plain(f"{row.kernel.family} {row.kernel.provider}")


def _hover(row: SuiteRow) -> str:
    return "<br>".join(
        (
            f"<b>{theme.plain(row.kernel.family)}</b> {theme.plain(f'{row.kernel.provider} {row.kernel.dtype}')}",
            theme.plain(row.kernel.shape),
            f"{seconds(row.time_s)} ± {plus_minus(row.low_s, row.high_s, row.time_s or 0.0)}",
            f"{percent(row.share)} of the roofline",
            f"{flops_per_s(row.flops_per_s)}, {bytes_per_s(row.bytes_per_s)}",
        )
    )
