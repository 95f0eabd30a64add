"""A prediction as the JSON document of the command line: SI units, finite numbers or null, keys only ever added.

Example: ``json.dumps(document(prediction), allow_nan=False)``
"""

import math
from typing import Any

from calibrate.report.predicted.wording import phase
from roofline.predict.passes import OpPrediction, PassPrediction, Prediction, RequestPrediction
from roofline.workload import Workload

ACCOUNTING = "roofcal"


def document(prediction: Prediction) -> dict[str, Any]:
    """The whole prediction; `memory` is that of the workload with the largest peak."""
    largest = max(prediction.passes, key=lambda step: step.memory.peak, default=None)
    found: dict[str, Any] = {
        "model": prediction.model,
        "hardware": prediction.hardware,
        "accounting": ACCOUNTING,
        "peaks": prediction.peaks,
        "form": prediction.form,
        "parameters": prediction.parameters,
        "options": dict(prediction.options),
        "capacity_bytes": prediction.capacity_bytes,
        "workloads": [_pass(step) for step in prediction.passes],
        "requests": [_request(request) for request in prediction.requests],
        "memory": largest.memory.model_dump() if largest else None,
        "largest_batch": prediction.largest_batch,
        "largest_context": prediction.largest_context,
        "notes": list(prediction.notes),
    }
    cleaned: dict[str, Any] = _finite(found)
    return cleaned


def _pass(step: PassPrediction) -> dict[str, Any]:
    return {
        **_workloads(step),
        "total": {
            "count": step.count,
            "matrix_flops": step.matrix_flops,
            "vector_flops": step.vector_flops,
            "bytes": step.bytes.model_dump(),
            "link_bytes": step.link_bytes,
            "time_s": step.time_s,
            "wall_s": step.wall_s,
            "tokens_per_s": step.tokens_per_s,
            "missing": list(step.missing),
        },
        "ops": [_op(op) for op in step.ops],
        "memory": step.memory.model_dump(),
        "fits": step.fits,
    }


def _workloads(step: PassPrediction) -> dict[str, Any]:
    """The one workload; or all sequences of a mixed batch, whose lengths and dtypes are in its "parts"."""
    parts = [_workload(workload) for workload in step.workloads]
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


def _workload(workload: Workload) -> dict[str, Any]:
    return {**workload.model_dump(), "phase": workload.phase}


def _op(op: OpPrediction) -> dict[str, Any]:
    return {
        "path": op.path,
        "name": op.name,
        "kind": op.kind.value,
        "count": op.count,
        "dtype": op.dtype,
        "matrix_flops": op.matrix_flops,
        "vector_flops": op.vector_flops,
        "bytes": op.bytes.model_dump(),
        "link_bytes": op.link_bytes,
        "time_s": op.time_s,
        "bound": op.bound,
        "intensity": op.intensity,
        "dims": dict(op.dims),
        "also": list(op.also),
    }


def _request(request: RequestPrediction) -> dict[str, Any]:
    return request.model_dump()


def _finite(value: Any) -> Any:
    """JSON has no word for what is not finite but null: not known."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
