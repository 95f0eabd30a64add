"""A characterisation as the one JSON document of ``hardware --json`` and ``show --json``; keys are only ever added.

SI units; what is not known is null. Fewer than three fresh processes give no interval: `low` and `high` are null.

Example: ``document(folder.path / "spec.json", spec, measurements, run)["figures"][0]["value"]``
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from calibrate.report.hardware.rows import Row, groups, one_line
from calibrate.report.hardware.table import ends
from profiler.record.measurement import Measurement
from profiler.record.run import Run
from roofline.hardware.spec import HardwareSpec


def document(path: Path | None, spec: HardwareSpec, measurements: Sequence[Measurement], run: Run) -> dict[str, Any]:
    """All figures in the order of the report; `path` is that of the spec, None while there is none."""
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
        "name": figure.name,
        "dtype": figure.dtype,
        "value": figure.value,
        "unit": figure.unit,
        "low": low,
        "high": high,
        "datasheet": figure.datasheet,
        "datasheet_at_clock": row.datasheet_at_clock,
        "typical": figure.typical,
        "variation": figure.variation,
        "replicates": figure.replicates,
        "conditions": figure.conditions,
        "labels": [one_line(words) for words in row.marks],
        "reason": None if figure.reason is None else one_line(figure.reason),
    }
