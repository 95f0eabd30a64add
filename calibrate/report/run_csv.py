"""Measured results as CSV: a row for each layer kind of each pass, each figure of a device, or each kernel of a table.

Units are in the header, shares are fractions, and a cell is empty where something is not known. A pass without a result
is one row with its reason.
"""

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from calibrate.passes.pass_report import LayerEfficiency, PassReport
from profiler.record.files import replacing
from profiler.record.kernel_table import Kernels
from profiler.record.run import CellResult
from roofline.workload import Workload

PASS = ("model", "phase", "batch", "query_tokens", "context_tokens", "dtype", "mode", "status", "reason",
        "wall_s", "wall_s_low", "wall_s_high", "busy_s", "predicted_busy_s", "predicted_wall_s")  # fmt: skip
LAYER = ("path", "kind", "count", "measured_s", "measured_s_low", "measured_s_high", "share_of_wall", "ideal_s",
         "predicted_s", "predicted_s_low", "predicted_s_high", "error", "efficiency", "bound", "matrix_flops",
         "vector_flops", "bytes", "kernels")  # fmt: skip
FIGURE = ("name", "dtype", "value", "unit", "low", "high", "datasheet", "datasheet_at_clock", "typical", "variation",
          "replicates", "reason", "labels", "conditions")  # fmt: skip
STEP = ("model", "dtype", "mode", "prefill_sequences", "prefill_tokens", "prefill_context", "decode_sequences",
        "decode_context", "all_logits", "measured_s", "low_s", "high_s", "predicted_s", "status")  # fmt: skip
"""Columns in their order."""


def write_passes(path: Path, reports: Sequence[PassReport], failed: Sequence[CellResult]) -> None:
    """Write a run's passes, those that have no result at the end. Raises RequestError where the disk refuses."""
    _write(path, (*PASS, *LAYER), layer_rows(reports, failed))


def write_figures(path: Path, figures: Iterable[Mapping[str, Any]]) -> None:
    """Write a device's figures, as `calibrate.report.json.device_json` lists them."""
    _write(path, FIGURE, ({name: _cell(figure.get(name)) for name in FIGURE} for figure in figures))


def write_steps(path: Path, reports: Sequence[PassReport]) -> None:
    """Write a step-time table, as simulators of serving engines take it: a row for each pass of the model as it is.

    A step has sequences with new tokens of a prompt, sequences that decode one token each, or both; times are seconds.
    """
    _write(path, STEP, (_step(report) for report in reports if not report.change and report.status != "invalid"))


def _step(report: PassReport) -> dict[str, Any]:
    parts = [part for part in (report.workload, report.beside) if part is not None]
    decoding = next((part for part in parts if part.phase == "decode"), None)
    prefill = next((part for part in parts if part.phase != "decode"), None)
    return {
        "model": report.model,
        "dtype": report.workload.dtype,
        "mode": report.mode,
        "prefill_sequences": prefill.batch if prefill else 0,
        "prefill_tokens": prefill.query_tokens if prefill else 0,
        "prefill_context": prefill.context_tokens if prefill else 0,
        "decode_sequences": decoding.batch if decoding else 0,
        "decode_context": decoding.context_tokens if decoding else 0,
        "all_logits": int(report.workload.logits == "all"),
        "measured_s": report.wall_s,
        "low_s": report.wall_s_low,
        "high_s": report.wall_s_high,
        "predicted_s": report.predicted_wall_s,
        "status": report.status,
    }


def write_kernels(path: Path, kernels: Kernels) -> None:
    """Write a table of kernels, its columns as they are stored."""
    table = kernels.table
    _write(path, table.column_names, table.to_pylist())


def layer_rows(reports: Sequence[PassReport], failed: Sequence[CellResult]) -> Iterator[dict[str, Any]]:
    """A row for each layer kind of each pass, by names of `PASS` and `LAYER`; what is not known is absent or None."""
    for report in reports:
        start = _about(report.model, report.workload) | {
            name: getattr(report, name) for name in PASS if name not in ("model", *Workload.model_fields, "phase")
        }
        for layer in report.layers:
            yield start | _layer(layer, report.wall_s)
    for result in failed:
        about = _about(result.cell.model, result.cell.workload)
        yield about | {"mode": result.cell.mode, "status": result.status, "reason": result.reason}


def _about(model: str, workload: Workload) -> dict[str, Any]:
    sizes = ("batch", "query_tokens", "context_tokens", "dtype")
    return {"model": model, "phase": workload.phase} | {name: getattr(workload, name) for name in sizes}


def _layer(layer: LayerEfficiency, wall_s: float) -> dict[str, Any]:
    predicted, measured = layer.predicted_s, layer.measured_s
    return {name: _cell(getattr(layer, name, None)) for name in LAYER} | {
        "share_of_wall": measured / wall_s if wall_s else None,
        "error": predicted / measured - 1 if predicted is not None and measured else None,
    }


def _cell(value: Any) -> Any:
    """A value in one cell: lists with "; " between, pairs as name=value."""
    if isinstance(value, Mapping):
        return " ".join(f"{name}={part}" for name, part in value.items())
    return "; ".join(map(str, value)) if isinstance(value, list | tuple) else value


def _write(path: Path, header: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(header))
        writer.writeheader()
        writer.writerows(rows)
