"""All plots of a characterisation, in the order of the page: a new plot is a function and a row here.

Each function gives None where its data is absent; then the plot is left out. Figures hold data only.

Example: ``for plot in plots(found, spec, measurements, run): markup.chart(plot.figure, plot.name)``
"""

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from calibrate.report.hardware import cost_plots, memory_plot, product_plots, spread_plot
from calibrate.report.hardware.rows import Group
from profiler.record.measurement import Measurement
from profiler.record.run import Run
from roofline.hardware.spec import HardwareSpec


@dataclass(frozen=True)
class Plot:
    """One picture."""

    name: str
    """Of its element in the page."""
    title: str
    note: str
    """How it is to be read."""
    figure: go.Figure


def plots(
    found: Sequence[Group], spec: HardwareSpec, measurements: Sequence[Measurement], run: Run
) -> tuple[Plot, ...]:
    """Those whose data is there."""
    drawn = (
        (
            "curve",
            "Bandwidth over the working set",
            "The same operands again and again; black: plateaus, red: knees (the capacity that a level shows), dotted: "
            "capacities as stated.",
            memory_plot.curve(found, spec, measurements),
        ),
        (
            "skinny",
            "Products of few rows",
            "Dashed: the time at the measured main-memory bandwidth and the measured burst peak.",
            product_plots.skinny(found, measurements, run),
        ),
        (
            "peaks",
            "Matrix products: burst and sustained",
            "Red lines: the datasheet's peak at the median SM clock that was seen; whiskers: 90 % intervals.",
            product_plots.peaks(found),
        ),
        (
            "sustained",
            "Under lasting load",
            "Each sample's rate, and what the driver or the system said at the end of each window; processes after the "
            "first are pale. The figure is the median of the second half, and only its samples are kept.",
            product_plots.sustained(measurements),
        ),
        (
            "pointwise",
            "Pointwise work into given and fresh outputs",
            "A fresh output is made by the allocator in every call; whiskers: 90 % intervals.",
            cost_plots.pointwise(found),
        ),
        ("graphs", "Replay of a graph over its nodes", "", cost_plots.graphs(found, measurements)),
        ("transfers", "Transfers between host and device", "", cost_plots.transfers(found, measurements)),
        ("collectives", "Collectives", "", cost_plots.collectives(found, measurements)),
        (
            "spread",
            "Spread over fresh processes",
            "A point is what one process gives; costs are times, so that slower is to the right there.",
            spread_plot.spread(found, measurements, run),
        ),
    )
    return tuple(Plot(name, title, note, figure) for name, title, note, figure in drawn if figure is not None)
