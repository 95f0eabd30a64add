"""The working-set curve: bandwidth over the size of what is used again and again, with plateaus, knees and caches.

Plateaus and knees are figures ("curve.plateau 1", "curve.knee 1"); the stated capacities are those of the spec's
levels, of its datasheet and of the measurements themselves.

Example: ``curve(found, spec, measurements)`` is None where there is no curve
"""

import re
import statistics
from collections.abc import Iterable, Sequence

import plotly.graph_objects as go

from calibrate.report.hardware import drawing
from calibrate.report.hardware.rows import Group, Row
from calibrate.report.units import binary, bytes_per_s
from profiler.record.measurement import Measurement
from roofline.hardware.spec import HardwareSpec

STATED = re.compile(r"(\d+) bytes stated by the system")


def curve(found: Sequence[Group], spec: HardwareSpec, measurements: Sequence[Measurement]) -> go.Figure | None:
    """A line a kernel, log-log; None without points."""
    rows = [row for group in found for row in group.rows if row.family == "curve" and row.figure.value is not None]
    lines = curves(measurements)
    if not lines:
        return None
    figure = go.Figure()
    for i, (kernel, line) in enumerate(lines.items()):
        hover = [f"{kernel} {binary(x)}: {bytes_per_s(y)}" for x, y in line]
        drawing.points(figure, kernel, [x for x, _ in line], [y for _, y in line], hover, i)
    sizes, rates = zip(*(point for line in lines.values() for point in line), strict=True)
    drawing.frame(figure, "working set", "bandwidth (bytes read + written)", height=500)
    drawing.log_axis(figure, "x", sizes, binary, base=2)
    drawing.log_axis(figure, "y", rates, bytes_per_s)
    for row in rows:
        if row.label.startswith("plateau") and row.span is not None:
            value = row.figure.value or 0.0
            drawing.line(figure, f"{row.label}: {bytes_per_s(value)}", row.span, (value, value), drawing.DARK, "solid")
    marks = [(size, f"{name} {binary(size)}", drawing.GREY, "dot") for name, size in capacities(spec, measurements)]
    marks += [(k.figure.value or 0.0, _knee(k), "#c8553d", "dash") for k in rows if k.label.startswith("knee")]
    low, high = min(sizes) / 1.25, max(sizes) * 1.25
    for level, (x, text, paint, dash) in enumerate(sorted(mark for mark in marks if low <= mark[0] <= high)):
        drawing.upright(figure, x, text, paint, dash, level % 4)
    return figure


def curves(measurements: Iterable[Measurement]) -> dict[str, list[tuple[float, float]]]:
    """(working set in bytes, bytes/s) of each kernel, the smallest first."""
    found: dict[str, list[tuple[float, float]]] = {}
    for one in measurements:
        if one.benchmark == "curve" and one.has_value:
            point = float(one.parameters["working_set_bytes"]), one.value()
            found.setdefault(str(one.parameters["kernel"]), []).append(point)
    return {kernel: sorted(line) for kernel, line in found.items()}


def capacities(spec: HardwareSpec, measurements: Sequence[Measurement]) -> tuple[tuple[str, float], ...]:
    """Caches as the system or a datasheet states them, by name; the last-level cache that measurements were told of."""
    found: dict[float, str] = {}
    for peaks in (spec.measured, spec.datasheet):
        for level in peaks.levels[:-1] if peaks else ():
            stated = STATED.search(level.bandwidth.source)
            found.setdefault(float(stated.group(1)) if stated else level.capacity_bytes, f"{level.name}, stated")
    told = [one.cache.cache_bytes for one in measurements if one.cache and one.cache.cache_bytes]
    if told:
        found.setdefault(float(statistics.mode(told)), "last-level cache, stated")
    return tuple((name, size) for size, name in sorted(found.items()))


def _knee(row: Row) -> str:
    return f"{row.label} {binary(row.figure.value)}"
