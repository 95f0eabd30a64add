"""The results of a suite of serving kernels as one JSON document and as CSV; keys are only ever added."""

import csv
from collections.abc import Sequence
from typing import Any, TextIO

from calibrate.report.suite import FamilyRow, SuiteRow, family_rows, peaks_of
from profiler.record.run import Run
from roofline.hardware.spec import HardwareSpec


def suite_json(path: str, run: Run, rows: Sequence[SuiteRow], spec: HardwareSpec | None) -> dict[str, Any]:
    """All rows, with the figures of each process."""
    peaks = peaks_of(spec) if spec is not None else None
    return {
        "run": path,
        "device": run.environment.device,
        "started": run.started,
        "finished": run.finished,
        "versions": dict(run.environment.versions),
        "warnings": list(run.environment.notes),
        "peaks": None
        if peaks is None or spec is None
        else {
            "source": "measured" if spec.measured is not None else "datasheet",
            "matrix_flops_per_s": {name: rate.value for name, rate in peaks.matrix.items()},
            "memory_bytes_per_s": peaks.levels[-1].bandwidth.value,
        },
        "families": [_plain_family(row) for row in family_rows(rows)],
        "rows": [_plain(row) for row in rows],
    }


def _plain(row: SuiteRow) -> dict[str, Any]:
    return {
        "family": row.kernel.family,
        "provider": row.kernel.provider,
        "dtype": row.kernel.dtype,
        "dims": dict(row.kernel.dims),
        "status": row.status,
        "reason": row.reason,
        "time_s": row.time_s,
        "low_s": row.low_s,
        "high_s": row.high_s,
        "replicates_s": list(row.replicates),
        "variation": row.variation,
        "flops": row.flops,
        "bytes": row.bytes,
        "flops_per_s": row.flops_per_s,
        "bytes_per_s": row.bytes_per_s,
        "roofline_s": row.roofline_s,
        "bound": row.bound,
        "share": row.share,
        "predicted_s": row.predicted_s,
        "predicted_interval_s": list(row.predicted) if row.predicted else None,
        "predicted_ratio": row.ratio,
        "cache": row.cache,
        "best": row.best == "best",
        "tied": row.best == "tied",
        "labels": list(row.labels),
        "worst_error": row.worst,
        "tolerance": row.tolerance,
        "models": list(row.models),
        "versions": dict(row.versions or {}),
        "command": row.command,
    }


def _plain_family(row: FamilyRow) -> dict[str, Any]:
    return {
        "family": row.family,
        "shapes": row.kernels,
        "right": row.right,
        "wrong": row.wrong,
        "time_s": row.time_s,
        "roofline_s": row.roofline_s,
        "predicted_s": row.predicted_s,
        "predicted_time_s": row.priced_s,
        "spread": row.spread,
        "most_spread": row.most,
    }


def write_suite_csv(rows: Sequence[SuiteRow], file: TextIO) -> None:
    """One line a kernel; lists are joined by spaces."""
    writer = csv.writer(file, lineterminator="\n")
    plain = [_plain(row) | {"dims": row.kernel.shape} for row in rows]
    names = list(_plain(rows[0])) if rows else ["family"]
    writer.writerow(names)
    for row in plain:
        writer.writerow([_csv(row[name]) for name in names])


def _csv(value: Any) -> Any:
    if isinstance(value, dict):
        return " ".join(f"{name}={part}" for name, part in value.items())
    return " ".join(map(str, value)) if isinstance(value, list) else "" if value is None else value
