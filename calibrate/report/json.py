"""Every report as one JSON document, for ``--json``, and predictions as CSV; keys are only ever added.

Values are in SI units, shares are fractions; what is not known is null. A CSV has the units in its header and an empty
cell for what is not known. The document of a run's passes is `calibrate.passes.reports.document`.
"""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO, get_args

from calibrate.report.device_rows import Row, ends, groups, one_line
from calibrate.report.prediction_rows import CLASSES, KindRow, kind_rows, phase
from profiler.record.folder import RunFolder
from profiler.record.kernel_table import Kernels
from profiler.record.measurement import Measurement
from profiler.record.run import Run
from roofline.graph.op import Kind
from roofline.hardware.spec import HardwareSpec
from roofline.paper.table import PaperCosts, PaperPhase, PaperResult, PaperRow
from roofline.predict.passes import OpPrediction, PassPrediction, Prediction
from roofline.record import Record

if TYPE_CHECKING:  # it loads pandas and the fits, for which `predict` has no use
    from calibrate.kernels.score import Calibrated, Calibration, Score

MATRIX = ("_proj", "_matmul", "lm_head", "fused_attention")
"""Names of the paper's rows that are products; LLM-Viewer itself does not tell them from the others."""

BY_LAW = ("low_s", "high_s", "without_law", "beyond_law")
TOTAL = ("count", "matrix_flops", "vector_flops", "bytes", "link_bytes", "time_s", *BY_LAW, "wall_s", "tokens_per_s",
         "missing", "uncounted", "uncounted_share")  # fmt: skip
WORK = ("matrix_flops", "vector_flops", "bytes", "link_bytes", "time_s", "bound", "intensity")
OP = ("path", "name", "kind", "count", "dtype", *WORK, "source", "low_s", "high_s", "dims", "also", "counted")
"""Fields of a pass and of an operation, in the order of the document."""

By = Literal["kind", "op", "workload"]


def device_json(path: Path | None, spec: HardwareSpec, measurements: Sequence[Measurement], run: Run) -> dict[str, Any]:
    """A characterisation, its figures in the order of the report; `path` is that of the spec, None while there is none.

    Fewer than three fresh processes give no interval: `low` and `high` are null.
    """
    return {
        "spec": None if path is None else str(path),
        "device": run.environment.device,
        "uuid": spec.uuid or run.environment.device_uuid,
        "started": run.started,
        "finished": run.finished,
        "versions": dict(run.environment.versions),
        "warnings": list(run.environment.notes),
        "figures": [_figure(row) for group in groups(spec, measurements, run) for row in group.rows],
        "missing": dict(spec.missing),
    }


def _figure(row: Row) -> dict[str, Any]:
    figure = row.figure
    low, high = ends(figure)
    return {
        **_pick(figure, ("name", "dtype", "value", "unit")),
        "low": low,
        "high": high,
        "datasheet": figure.datasheet,
        "datasheet_at_clock": row.datasheet_at_clock,
        **_pick(figure, ("typical", "variation", "replicates", "conditions")),
        "labels": [one_line(words) for words in row.marks],
        "reason": None if figure.reason is None else one_line(figure.reason),
    }


def prediction_json(prediction: Prediction) -> dict[str, Any]:
    """The whole prediction; `memory` is that of the workload with the largest peak."""
    largest = max(prediction.passes, key=lambda step: step.memory.peak, default=None)
    content = {
        **_pick(prediction, ("model", "hardware")),
        "accounting": "roofcal",
        **_pick(prediction, ("peaks", "form", "parameters", "options", "capacity_bytes")),
        **_pick(prediction, ("draft", "speculate", "acceptance", "decode_hardware")),
        **_pick(prediction, ("pipeline_stages", "micro_batches")),
        "workloads": [_pass(step) for step in prediction.passes],
        "requests": [request.model_dump() for request in prediction.requests],
        "memory": largest.memory.model_dump() if largest else None,
        **_pick(prediction, ("largest_batch", "largest_context", "cache_tokens", "budget_bytes", "notes")),
    }
    return {name: _finite(value) for name, value in content.items()}


def _pass(step: PassPrediction) -> dict[str, Any]:
    return {
        **_workloads(step),
        "total": _pick(step, TOTAL),
        "ops": [_pick(op, OP) for op in step.ops],
        "memory": step.memory.model_dump(),
        "fits": step.fits,
    }


def _pick(record: Record, names: Sequence[str]) -> dict[str, Any]:
    """Some fields and properties of a record in their order."""
    return {name: _plain(getattr(record, name)) for name in names}


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.model_dump()
    if isinstance(value, Kind):
        return value.value
    return list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, Mapping) else value


def _workloads(step: PassPrediction) -> dict[str, Any]:
    """The one workload; or all sequences of a mixed batch, whose lengths and dtypes are in its "parts"."""
    parts = [{**workload.model_dump(), "phase": workload.phase} for workload in step.workloads]
    if len(parts) == 1:
        return parts[0]
    dtypes = {workload.dtype for workload in step.workloads}
    return {
        "batch": sum(workload.batch for workload in step.workloads),
        "query_tokens": None,
        "context_tokens": None,
        "dtype": dtypes.pop() if len(dtypes) == 1 else None,
        "phase": phase(step),
        "parts": parts,
    }


def _finite(value: Any) -> Any:
    """The value, or None where it is not finite, for which JSON has no word."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def paper_json(result: PaperResult, model: str, hardware: str) -> dict[str, Any]:
    """The paper's table in its own names; rows also have the keys of the default accounting, as totals over `count`."""
    phases = {"prefill": result.prefill, "decode": result.decode}
    largest = max(phases.values(), key=lambda costs: costs.total.memory_consumption).total
    return {
        "model": model,
        "hardware": hardware,
        "accounting": "paper",
        "batch": result.batch,
        "seqlen": result.seqlen,
        "bits": {"weights": result.w_bit, "activations": result.a_bit, "kv_cache": result.kv_bit},
        "flash": result.use_flash,
        "workloads": [_paper_phase(name, costs, result) for name, costs in phases.items()],
        "memory": {
            "weights": largest.memory_consumption_weight,
            "kv_cache": largest.memory_consumption_kv_cache,
            "activations": largest.memory_consumption_tmp_act,
        },
    }


def _paper_phase(name: str, costs: PaperPhase, result: PaperResult) -> dict[str, Any]:
    decodes = name == "decode"
    return {
        "phase": name,
        "batch": result.batch,
        "query_tokens": 1 if decodes else result.seqlen,
        "context_tokens": result.seqlen if decodes else 0,
        "total": costs.total.model_dump()
        | {"time_s": costs.total.inference_time, "bytes": _paper_bytes(costs.total, 1)},
        "ops": [_paper_op(row, result) for row in costs.rows],
    }


def _paper_op(row: PaperRow, result: PaperResult) -> dict[str, Any]:
    flops, is_product = row.OPs * row.count, row.name.endswith(MATRIX)
    return {
        "path": result.shape.paths.get(row.name, row.name),
        "kind": "matmul" if is_product else "pointwise",
        "matrix_flops": flops if is_product else 0.0,
        "vector_flops": 0.0 if is_product else flops,
        "bytes": _paper_bytes(row, row.count),
        "time_s": row.inference_time * row.count,
        **row.model_dump(),
    }


def _paper_bytes(costs: PaperCosts, count: int) -> dict[str, float]:
    return {
        "weight_read": costs.load_weight * count,
        "activation_read": costs.load_act * count,
        "activation_write": costs.store_act * count,
        "kv_read": costs.load_kv_cache * count,
        "kv_write": costs.store_kv_cache * count,
    }


def kernels_json(folder: RunFolder, kernels: Kernels) -> dict[str, Any]:
    """A table of kernels: what was kept by kind and dtype, and each file with what every rule took out of it."""
    environment, spec = folder.run.environment, folder.read_spec()
    return {
        "run": str(folder.path),
        "device": environment.device,
        "datasheet": spec.name if spec is not None and spec.datasheet is not None else None,
        "started": folder.run.started,
        "finished": folder.run.finished,
        "versions": dict(environment.versions),
        "warnings": list(environment.notes),
        "rows": sum(source.rows for source in kernels.sources),
        "timed": sum(source.timed for source in kernels.sources),
        "kept": len(kernels),
        "kinds": kernel_kinds(kernels),
        "sources": [source.model_dump(mode="json") for source in kernels.sources],
    }


def kernel_kinds(kernels: Kernels) -> list[dict[str, Any]]:
    """Rows, groups and seconds of each kind and dtype."""
    frame = kernels.table.select(["kind", "dtype", "group", "time_s"]).to_pandas(use_threads=False)
    kinds = frame.groupby(["kind", "dtype"], as_index=False).agg(
        rows=("time_s", "size"),
        groups=("group", "nunique"),
        least_s=("time_s", "min"),
        median_s=("time_s", "median"),
        most_s=("time_s", "max"),
    )
    ordered = kinds.sort_values(["rows", "kind", "dtype"], ascending=[False, True, True])
    records: list[dict[str, Any]] = ordered.to_dict("records")
    return records


def calibration_json(spec: Path, calibration: "Calibration") -> dict[str, Any]:
    """Scores of laws on kernels that they were not fitted to; percentages as fractions."""
    return {
        "spec": str(spec),
        "kinds": [_calibrated(kind) for kind in calibration.fitted],
        "skipped": [asdict(kind) for kind in calibration.skipped],
    }


def _calibrated(kind: "Calibrated") -> dict[str, Any]:
    return {
        "kind": kind.kind,
        "dtype": kind.dtype,
        "points": kind.points,
        **_scores(kind.scores),
        "datasheet_mape": kind.datasheet.mape,
        "four_constant_mape": kind.four_constant.mape,
        "noise": kind.noise,
        "datasheet": _scores(kind.datasheet),
        "four_constant": _scores(kind.four_constant),
        "regions": {name: _scores(scores) for name, scores in kind.regions.items()},
        "undetermined": list(kind.law.undetermined),
        "doubts": list(kind.law.doubts),
    }


def _scores(scores: "Score") -> dict[str, Any]:
    content = asdict(scores)
    return {"scored": content.pop("rows"), **content}


def write_csv(predictions: Sequence[Prediction], file: TextIO, by: By = "kind") -> None:
    """Write the table of one or several predictions with its header; open a file on disk with ``newline=""``.

    Raises ValueError as `rows_by`.
    """
    rows = rows_by(by, predictions)
    writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else ["model", "hardware"])
    writer.writeheader()
    writer.writerows(rows)


def rows_by(by: By, predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    """A row for each layer kind, operation or workload of predictions, by the names of the columns.

    Raises: ValueError for another `by`, or by kind or operation where no pass of the prediction (a sweep) has any.
    """
    if by not in get_args(By):
        raise ValueError(f"no table by {by!r}; use {', '.join(get_args(By))}")
    passes = [step for prediction in predictions for step in prediction.passes]
    if by != "workload" and passes and not any(step.ops for step in passes):
        raise ValueError(f"a sweep keeps no operations to list by {by}; use by workload, or fewer workloads")
    return [row for prediction in predictions for row in _rows(prediction, by)]


def _rows(prediction: Prediction, by: By) -> Iterator[dict[str, Any]]:
    for step in prediction.passes:
        sizes = ("batch", "query_tokens", "context_tokens", "dtype")  # of a mixed batch in one cell: "1+8"
        start = {"model": prediction.model, "hardware": prediction.hardware, "phase": phase(step)}
        start |= {name: "+".join(str(getattr(workload, name)) for workload in step.workloads) for name in sizes}
        if by == "workload":
            yield start | _csv_pass(step)
        elif by == "kind":
            for row in kind_rows(step):
                about = {"path": row.path, "kind": row.kind, "count": row.count, "op_dtype": row.dtype}
                yield start | about | _work(row, step) | {"bound": row.bound, "source": row.source}
        else:
            for op in step.ops:
                about = {"path": op.path, "name": op.name, "kind": op.kind.value, "count": op.count}
                dims = " ".join(f"{name}={value}" for name, value in op.dims.items())
                ends = {"source": op.source, "low_s": op.low_s, "high_s": op.high_s}
                end = {"bound": op.bound, **ends, "dims": dims, "also": "; ".join(op.also), "counted": op.counted}
                yield start | about | {"op_dtype": op.dtype} | _work(op, step) | end


def _csv_pass(step: PassPrediction) -> dict[str, Any]:
    work = _work(step, step)
    del work["share_of_pass"]
    return {
        "operations": step.count,
        **work,
        **{name: getattr(step, name) for name in BY_LAW},
        "wall_s": step.wall_s,
        "tokens_per_s": step.tokens_per_s,
        **{f"{name}_memory_bytes": value for name, value in step.memory.model_dump().items()},
        "fits": step.fits,
        "missing_peaks": "; ".join(step.missing),
        "uncounted": "; ".join(step.uncounted),
        "uncounted_share": step.uncounted_share,
    }


def _work(part: KindRow | OpPrediction | PassPrediction, step: PassPrediction) -> dict[str, Any]:
    flops, time_s = part.matrix_flops + part.vector_flops, part.time_s
    return {
        "matrix_flops": part.matrix_flops,
        "vector_flops": part.vector_flops,
        **{f"{name}_bytes": getattr(part.bytes, name) for name in CLASSES},
        "link_bytes": part.link_bytes,
        "time_s": time_s,
        "share_of_pass": time_s / step.time_s if time_s is not None and step.time_s else None,
        "intensity_flop_per_byte": flops / part.bytes.total if part.bytes.total else None,
        "attainable_flop_per_s": flops / time_s if time_s else None,
    }
