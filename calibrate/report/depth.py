"""Shows a measured pass from its operations: each layer over the model's depth, and the block's graph.

Example: ``depth_chart(passes[0])``, with `passes` from `calibrate.passes.reports.load_measured`
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrate.passes.reports import MeasuredPass
from calibrate.passes.table import RUNGS, layer_kind
from calibrate.report.document import PAGE, Figure, Section
from calibrate.report.run_rows import key_of
from roofline.graph.op import layer_of
from roofline.hardware.spec import HardwareSpec
from roofline.units import UNKNOWN, percent, seconds, shortened

Array = NDArray[np.float64]

NOTES = (
    "A column is a layer, a row an operation in it; click one for its details. The metric holds for every such figure.",
    "Click an operation for its details.",
)
LABEL = 44
"""Characters of a row's label."""
Row = tuple[str, str, str]
"""Key, path inside the layer, and kind."""


def depth_sections(i: int, measured: MeasuredPass, spec: HardwareSpec) -> tuple[Section, ...]:
    """The figures of the i-th pass of a page."""
    depth = Figure(f"depth-{i}", partial(depth_chart, measured), NOTES[0])
    graph = Figure(f"blocks-{i}", partial(_draw_blocks, measured, spec, f"block-{i}"), NOTES[1])
    return (
        Section("Over the depth of the model", (depth,), views=PAGE),
        Section("What one block does", (graph,), views=PAGE),
    )


def depth_chart(measured: MeasuredPass) -> Any:
    """A heat map for each metric, of which a page shows one; None where fewer than two layers ran one by one."""
    import plotly.graph_objects as go  # takes long to import, and only pages draw

    from calibrate.report import theme

    rows, layers, cells = _grid(measured)
    if len(layers) < 2:
        return None
    paths = shortened([f"{path or '(layer)'}" for _, path, _ in rows], LABEL - max(len(kind) for *_, kind in rows))
    labels = [f"{theme.plain(path)} · {kind}" for path, (*_, kind) in zip(paths, rows, strict=True)]
    figure = go.Figure()
    for metric, values in _metrics(measured, rows, layers, cells).items():
        is_share = metric in ("efficiency", "error")
        show = partial(percent, signed=metric == "error") if is_share else seconds
        words = [[UNKNOWN if np.isnan(value) else show(float(value)) for value in line] for line in values]
        diverging = {"colorscale": "RdBu", "reversescale": True, "zmid": 0.0}
        scale = diverging if metric == "error" else {"colorscale": "Viridis"}
        bar = {"thickness": 12, "tickformat": ".0%" if is_share else "~s", "ticksuffix": "" if is_share else "s"}
        figure.add_heatmap(
            x=layers,
            y=labels,
            z=[[None if np.isnan(value) else float(value) for value in line] for line in values],
            customdata=words,
            hovertemplate="layer %{x}, %{y}<br>" + metric + " %{customdata}<extra></extra>",
            hoverongaps=False,
            colorbar=bar,
            meta={"metric": metric, "keys": [key for key, *_ in rows]},
            visible=metric == "measured",
            **scale,
        )
    theme.style(figure, "layer", "", height=130 + 22 * len(rows), margin_t=10)
    figure.update_xaxes(dtick=max(1, len(layers) // 20))
    figure.update_yaxes(autorange="reversed", tickfont={"family": "ui-monospace, monospace", "size": 11})
    return figure


def _grid(measured: MeasuredPass) -> tuple[list[Row], list[int], dict[tuple[int, int], list[int]]]:
    """Rows in the order they first run, numbers of layers, and the operations of each (row, column)."""
    places: dict[Row, int] = {}
    numbers: set[int] = set()
    found: list[tuple[int, int, int]] = []
    ops = measured.graph.ops
    several = len({place.prefix for op in ops if (place := layer_of(op.path))}) > 1
    for i, op in enumerate(ops):
        if (place := layer_of(op.path)) is None:
            continue
        inner = layer_kind(place.inner or "")
        path = ".".join(filter(None, (place.prefix, inner))) if several else inner
        row = places.setdefault((key_of(op.path, op.kind.value), path, op.kind.value), len(places))
        numbers.add(place.layer)
        found.append((row, place.layer, i))
    columns = {layer: n for n, layer in enumerate(sorted(numbers))}
    cells: dict[tuple[int, int], list[int]] = {}
    for row_number, layer, i in found:
        cells.setdefault((row_number, columns[layer]), []).append(i)
    return list(places), list(columns), cells


def _metrics(
    measured: MeasuredPass, rows: Sequence[Row], layers: Sequence[int], cells: dict[tuple[int, int], list[int]]
) -> dict[str, Array]:
    """Values of each metric, shape (rows, layers), in seconds of one layer or as shares; NaN without the operation."""

    def spread(times_s: Array) -> Array:
        out = np.full((len(rows), len(layers)), np.nan)
        for place, ops in cells.items():
            out[place] = times_s[ops].sum() / stands_for[place[1]]
        return out

    count = np.array([op.count for op in measured.graph.ops], dtype=float)
    stands_for = [
        min(count[i] for place, ops in cells.items() if place[1] == n for i in ops) for n in range(len(layers))
    ]
    """Layers that each measured one stands for: more than one where only some ran."""
    known = {name: times_s * count for name, times_s in measured.table.rungs.items() if not np.isnan(times_s).all()}
    metrics = {"measured": spread(known["measured"])}
    if predicted := [name for name in reversed(RUNGS) if name in known and name not in RUNGS[:2]]:
        metrics["predicted"] = spread(known[predicted[0]])
    if ideal := [name for name in RUNGS[:2] if name in known]:
        metrics["ideal"] = spread(known[ideal[0]])
    with np.errstate(divide="ignore", invalid="ignore"):
        whole = np.where(metrics["measured"] > 0, metrics["measured"], np.nan)
        if "ideal" in metrics:
            metrics["efficiency"] = metrics["ideal"] / whole
        if "predicted" in metrics:
            metrics["error"] = metrics["predicted"] / whole - 1
    return metrics


def _draw_blocks(measured: MeasuredPass, spec: HardwareSpec, name: str) -> str | None:
    from calibrate.report.block import RanOperation
    from calibrate.report.block_drawing import drawings
    from roofline.predict.passes import predict_pass

    peaks = spec.measured or spec.datasheet
    if peaks is None:
        return None
    step = predict_pass(measured.graph, spec, peaks, with_laws=bool(spec.calibrated))
    times_s = (measured.table.measured_s * [op.count for op in step.ops]).tolist()
    ran = [
        RanOperation.model_construct(**dict(op), measured_s=time_s)
        for op, time_s in zip(step.ops, times_s, strict=True)
    ]
    return drawings(step.model_copy(update={"ops": tuple(ran)}), name)
