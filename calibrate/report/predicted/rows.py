"""A prediction as CSV: a row an operation kind or an operation of each pass, or a row a workload.

Plain numbers in SI units, the unit in the header's name; an empty cell is not known.

Example: ``write_csv(prediction, sys.stdout, by="workload")``
"""

import csv
from collections.abc import Iterator
from typing import Any, Literal, TextIO, get_args

from calibrate.report.predicted.kinds import CLASSES, KindRow, kind_rows
from calibrate.report.predicted.wording import phase
from roofline.graph.op import Traffic
from roofline.predict.passes import OpPrediction, PassPrediction, Prediction

By = Literal["kind", "op", "workload"]


def write_csv(prediction: Prediction, file: TextIO, by: By = "kind") -> None:
    """Write the table with its header; open a file on disk with ``newline=""``.

    Raises: ValueError for another `by`, or by kind or operation where no pass of the prediction (a sweep) has any.
    """
    if by not in get_args(By):
        raise ValueError(f"no table by {by!r}; use {', '.join(get_args(By))}")
    if by != "workload" and prediction.passes and not any(step.ops for step in prediction.passes):
        raise ValueError(f"a sweep keeps no operations to list by {by}; use by workload, or fewer workloads")
    rows = list(_rows(prediction, by))
    writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else ["model", "hardware"])
    writer.writeheader()
    writer.writerows(rows)


def _rows(prediction: Prediction, by: By) -> Iterator[dict[str, Any]]:
    for step in prediction.passes:
        start = {"model": prediction.model, "hardware": prediction.hardware, **_workload(step)}
        if by == "workload":
            yield start | _pass(step)
        elif by == "kind":
            for row in kind_rows(step):
                yield start | _kind(row, step)
        else:
            for op in step.ops:
                yield start | _op(op, step)


def _workload(step: PassPrediction) -> dict[str, Any]:
    """A mixed batch has its parts' sizes in one cell: "1+8"."""
    fields = ("batch", "query_tokens", "context_tokens", "dtype")
    sizes = {name: "+".join(str(getattr(workload, name)) for workload in step.workloads) for name in fields}
    return {"phase": phase(step), **sizes}


def _kind(row: KindRow, step: PassPrediction) -> dict[str, Any]:
    work = _work(row.matrix_flops, row.vector_flops, row.bytes, row.link_bytes, row.time_s, step)
    about = {"path": row.path, "kind": row.kind, "count": row.count, "op_dtype": row.dtype}
    return about | work | {"bound": row.bound}


def _op(op: OpPrediction, step: PassPrediction) -> dict[str, Any]:
    work = _work(op.matrix_flops, op.vector_flops, op.bytes, op.link_bytes, op.time_s, step)
    about = {"path": op.path, "name": op.name, "kind": op.kind.value, "count": op.count, "op_dtype": op.dtype}
    dims = " ".join(f"{name}={value}" for name, value in op.dims.items())
    return about | work | {"bound": op.bound, "dims": dims, "also": "; ".join(op.also)}


def _pass(step: PassPrediction) -> dict[str, Any]:
    work = _work(step.matrix_flops, step.vector_flops, step.bytes, step.link_bytes, step.time_s, step)
    del work["share_of_pass"]
    return {
        "operations": step.count,
        **work,
        "wall_s": step.wall_s,
        "tokens_per_s": step.tokens_per_s,
        **{f"{name}_memory_bytes": value for name, value in step.memory.model_dump().items()},
        "fits": step.fits,
        "missing_peaks": "; ".join(step.missing),
    }


def _work(
    matrix_flops: float,
    vector_flops: float,
    traffic: Traffic,
    link_bytes: float,
    time_s: float | None,
    step: PassPrediction,
) -> dict[str, Any]:
    flops = matrix_flops + vector_flops
    return {
        "matrix_flops": matrix_flops,
        "vector_flops": vector_flops,
        **{f"{name}_bytes": getattr(traffic, name) for name in CLASSES},
        "link_bytes": link_bytes,
        "time_s": time_s,
        "share_of_pass": time_s / step.time_s if time_s is not None and step.time_s else None,
        "intensity_flop_per_byte": flops / traffic.total if traffic.total else None,
        "attainable_flop_per_s": flops / time_s if time_s else None,
    }
