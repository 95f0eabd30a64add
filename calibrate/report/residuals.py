"""How well the laws of a run predict its own kernels: residuals, coverage of the intervals, and errors held out.

The kernels are those that the laws were fitted to, so that residuals show where a law bends, not how accurate it is;
the error on kernels that a fit had not seen stands beside them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from calibrate.kernels.fit import Observations, observations
from calibrate.kernels.score import Interval, Score, scores
from calibrate.report.document import FILES, Column, Document, Figure, Section, Text, figure, table
from profiler.record.folder import RunFolder
from profiler.record.kernel_table import has_kernels, read_kernels
from roofline.hardware.spec import HardwareSpec, facts_of
from roofline.laws.fitted import FittedLaw
from roofline.laws.kinds import OPERATOR, work_of
from roofline.laws.law import Floats
from roofline.units import binary, number, percent, seconds

SEEN = "The laws were fitted to these kernels; “held out” is the mean error on kernels that a fit had not seen."
NOTE = (
    "A point is a kernel; within the dotted lines predictions are off by at most a quarter. Hover for its sizes; a "
    "whisker is the law's 90 % interval, drawn where there are few kernels."
)
ON_ROOFLINE = (
    "A point is a kernel of the calibration; those of kinds whose work is not counted, as gaps of the host, have no "
    "place on it, and of many, evenly chosen ones are drawn. Above a roof: operands that a cache held."
)
QUARTER = 0.25
DRAWN = 2000
"""Most kernels on the roofline, as many as a table of a page has rows."""
WHISKERS = 80
"""Kernels up to which their intervals are drawn: more hide the points."""


@dataclass(frozen=True, eq=False)
class Residuals:
    """The kernels of one kind and dtype with their predictions."""

    law: FittedLaw
    kernels: Observations
    predicted_s: Floats
    interval: Interval

    @property
    def score(self) -> Score:
        return scores(self.predicted_s, self.kernels.time_s, self.interval)


def calibration_sections(folder: RunFolder, spec: HardwareSpec) -> tuple[Section, ...]:
    """The section on a run's calibration; nothing where the run holds no kernels or no laws."""
    if not spec.calibrated or not has_kernels(folder.path):
        return ()
    found = residuals(observations(read_kernels(folder.path)), spec)
    columns: tuple[Column[Residuals], ...] = (
        Column("kind", lambda row: row.law.kind, words=True),
        Column("dtype", lambda row: row.law.dtype, words=True),
        Column("kernels", lambda row: figure(row.score.rows, number)),
        Column("held out", lambda row: figure(row.law.unseen, percent), strong=True),
        Column("mean error", lambda row: figure(row.score.mape, percent)),
        Column("bias", lambda row: figure(row.score.bias, partial(percent, signed=True))),
        Column("in 90 %", lambda row: figure(row.score.coverage, percent)),
    )
    plot = Figure("residuals", partial(_draw, found), NOTE)
    places = Figure("calibration-roofline", partial(roofline, found, spec), ON_ROOFLINE)
    parts = (Text(SEEN, "faint"), plot, places, table(columns, found))
    return (Section("Calibration", parts, "calibration", views=FILES),)


def residuals(tables: dict[tuple[str, str], Observations], spec: HardwareSpec) -> list[Residuals]:
    """The kernels of each law, the largest table first; laws whose sizes the table lacks are left out."""
    facts = facts_of(spec)
    found = []
    for law in spec.calibrated:
        kernels = tables.get((law.kind, law.dtype))
        if kernels is None:
            continue
        try:
            found.append(Residuals(law, kernels, law.time_s(kernels.dims, facts), law.interval(kernels.dims, facts)))
        except (ValueError, KeyError):  # a table of another roofcal, without a size that the law needs
            continue
    return sorted(found, key=lambda row: -len(row.kernels))


def _draw(found: Sequence[Residuals]) -> Any:
    import plotly.graph_objects as go  # takes long to import, and only pages draw

    from calibrate.report import theme

    if not found:
        return None
    chart = theme.style(go.Figure(), "measured time", "predicted ÷ measured − 1", height=480, showlegend=True)
    every = [time_s for row in found for time_s in row.kernels.time_s.tolist()]
    groups: dict[str, list[Residuals]] = {}
    for row in found:
        name = "streaming operators" if row.law.kind.startswith(OPERATOR) else row.law.kind.replace("_", " ")
        groups.setdefault(name, []).append(row)
    for i, (name, rows) in enumerate(groups.items()):
        x, y, hover, above, below = [], [], [], [], []
        for row in rows:
            time_s, predicted_s = row.kernels.time_s, row.predicted_s
            x += time_s.tolist()
            y += (predicted_s / time_s - 1).tolist()
            above += ((row.interval[1] - predicted_s) / time_s).tolist()
            below += ((predicted_s - row.interval[0]) / time_s).tolist()
            hover += [_about(row, n) for n in range(len(row.kernels))]
        whiskers = {
            "type": "data",
            "symmetric": False,
            "array": above,
            "arrayminus": below,
            "thickness": 0.8,
            "width": 0,
        }
        shown = {"error_y": whiskers} if len(every) <= WHISKERS else {}
        marker = {"size": 6, "opacity": 0.7}
        theme.points(chart, name, x, y, hover, i, marker=marker, mode="markers", **shown)
    theme.log_axis(chart, "x", every, seconds)
    for share in (-QUARTER, QUARTER):
        chart.add_hline(y=share, line={"color": theme.GREY, "width": 1, "dash": "dot"})
    chart.update_yaxes(tickformat="+.0%", range=[-1.05, 1.55])
    return chart


def roofline(found: Sequence[Residuals], spec: HardwareSpec) -> Any:
    """The kernels under the device's roofs by their compulsory work; None without a kernel whose work is counted."""
    from calibrate.report import pass_plots

    places: list[pass_plots.Point] = []
    every = max(1, -(-sum(len(row.kernels) for row in found) // DRAWN))
    for row in found:
        try:
            work = work_of(row.law.kind, row.kernels.dims, row.law.dtype)
        except ValueError:  # a kind without counted work
            continue
        kind = row.law.kind.removeprefix(OPERATOR).replace("_", " ")
        sizes = np.broadcast_arrays(work.flops, work.bytes, row.kernels.time_s)
        places += [
            pass_plots.Point(kind, flops / moved, flops / time_s, 0.0, _about(row, n))
            for n, (flops, moved, time_s) in enumerate(zip(*(size.tolist() for size in sizes), strict=True))
            if n % every == 0 and flops > 0 and moved > 0
        ]
    if not places:
        return None
    known = {name: peaks for name, peaks in (("achieved", spec.measured), ("datasheet", spec.datasheet)) if peaks}
    return pass_plots.roofline_figure(places, known, tuple(dict.fromkeys(row.law.dtype for row in found)))


def _about(row: Residuals, n: int) -> str:
    from calibrate.report.theme import plain

    sizes = ", ".join(
        f"{name} {binary(float(size[n])) if name == 'bytes' else number(float(size[n]))}"
        for name, size in row.kernels.dims.items()
    )
    times = (row.kernels.time_s, row.predicted_s, *row.interval)
    measured, predicted, low, high = (seconds(float(time_s[n])) for time_s in times)
    return (
        f"<b>{plain(row.law.kind)}</b> {plain(row.law.dtype)}: {plain(sizes)}<br>"
        f"measured {measured}, predicted {predicted} (90 %: {low} to {high})"
    )


def with_calibration(document: Document, folder: RunFolder, spec: HardwareSpec) -> Document:
    """The document of a run with the section on its calibration, where it has one, before the explanation of words."""
    titles = [part.title if isinstance(part, Section) else "" for part in document.parts]
    at = titles.index("Words") if "Words" in titles else len(titles)
    return replace(document, parts=(*document.parts[:at], *calibration_sections(folder, spec), *document.parts[at:]))
