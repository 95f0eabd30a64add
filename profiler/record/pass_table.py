"""measurements.parquet: a row per measurement with its raw samples, from which the results can be read back.

A row is one quantity of one cell; `op`, `path`, `name`, `kind`, `count` and `kernels` are null where `what` is not
about one operation or kernel. The other fields of a `CellResult` (status, closure, implementations) are JSON in the
file's header, so that `read_results` returns exactly what `write_results` wrote.

| what | samples, seconds |
|---|---|
| device | time on the device of one operation |
| gap | idle before it |
| kernel | time on the device of one kernel of a compiled pass; `path` names all modules that it came from |
| kernel_gap | idle before it |
| wall | unprofiled passes |
| profiled_wall | profiled passes |
| tail | idle after the last operation |
| unattributed | device time of no operation |

Example, across all runs, with the embedded DuckDB::

    duckdb.sql("SELECT device, model, phase, kind, sum(count * list_aggregate(samples, 'median')) AS seconds "
               "FROM read_parquet('results/*/*/measurements.parquet') WHERE what = 'device' GROUP BY ALL")
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from profiler.record.files import MEASUREMENTS
from profiler.record.parquet import Table, schema
from profiler.record.run import RUN_SCHEMA, CellResult, OpTimes, Run
from roofline.graph.op import OpGraph
from roofline.reading import record_from

COLUMNS = schema(
    ("run device cell model phase", pa.string()),
    ("batch query_tokens context_tokens", pa.int64()),
    ("dtype", pa.string()),
    ("op", pa.int64()),
    ("path name kind", pa.string()),
    ("count", pa.float64()),
    ("what cache_state clock", pa.string()),
    ("kernels", pa.list_(pa.string())),
    ("samples", pa.list_(pa.float64())),
)

TABLE = Table(MEASUREMENTS, "table of results", RUN_SCHEMA, COLUMNS, mend="restore it, or measure in a new run")

WHOLE_PASS = {
    "wall": "wall_s",
    "profiled_wall": "profiled_wall_s",
    "tail": "tail_gap_s",
    "unattributed": "unattributed_s",
}
"""`what` of a row that is about the whole pass -> field of CellResult."""


TIMED = ("device", "gap", "kernel", "kernel_gap")
"""`what` of a row that is about one operation, or one kernel of a compiled pass."""


def write_results(folder: Path, run: Run, results: Sequence[CellResult], graphs: Mapping[str, OpGraph]) -> None:
    """Write the results of a run; `graphs` holds each `CellResult.graph` that has measured operations.

    Raises ValueError where a measured operation is not in its graph, RequestError where the file cannot be written.
    """
    rows = [row for result in results for row in _rows(run, result, graphs)]
    samples: dict[str, Any] = dict.fromkeys(("ops", *WHOLE_PASS.values()), True)
    samples["kernels"] = {"__all__": {"device_s", "gap_s"}}
    heads = [result.model_dump(mode="json", exclude=samples) for result in results]
    TABLE.write(folder, pa.Table.from_pylist(rows, schema=COLUMNS), cells=heads)


def _rows(run: Run, result: CellResult, graphs: Mapping[str, OpGraph]) -> list[dict[str, Any]]:
    cell, workload = result.cell, result.cell.workload
    shared = {
        **{name: getattr(workload, name) for name in ("phase", "batch", "query_tokens", "context_tokens", "dtype")},
        "run": run.name,
        "device": run.environment.device,
        "cell": cell.key,
        "model": cell.model,
        "cache_state": result.cache_state,
        "clock": result.clock,
    }
    whole = {what: getattr(result, field) for what, field in WHOLE_PASS.items()}
    rows = [{**shared, "what": what, "samples": samples} for what, samples in whole.items() if samples]
    for times in result.ops:
        about = {**shared, **_operation(result, times.op, graphs)}
        rows.append({**about, "what": "device", "kernels": times.kernels, "samples": times.device_s})
        rows.append({**about, "what": "gap", "samples": times.gap_s})
    for kernel in result.kernels:
        members = [_operation(result, op, graphs) for op in kernel.ops]
        paths = " + ".join(dict.fromkeys(member["path"] or "(model)" for member in members))
        about = {**shared, "path": paths, "name": kernel.name, "count": members[0]["count"]}
        rows.append({**about, "what": "kernel", "samples": kernel.device_s})
        rows.append({**about, "what": "kernel_gap", "samples": kernel.gap_s})
    return rows


def _operation(result: CellResult, index: int, graphs: Mapping[str, OpGraph]) -> dict[str, Any]:
    if result.graph is None:
        raise ValueError(f"{result.cell.key} has measured operations but names no graph")
    ops = graphs[result.graph].ops
    if not 0 <= index < len(ops):
        raise ValueError(f"{result.cell.key} measured operation {index}; its graph has {len(ops)}")
    op = ops[index]
    return {"op": index, "path": op.path, "name": op.name, "kind": op.kind.value, "count": op.count}


def read_results(folder: Path) -> list[CellResult]:
    """Read the results. Raises RequestError for a file that is damaged, not roofcal's, or from a newer roofcal."""
    return TABLE.read(folder, _results)


def _results(table: Any, header: Mapping[str, Any]) -> list[CellResult]:
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in table.select(["cell", "op", "what", "kernels", "samples"]).to_pylist():
        rows.setdefault(row["cell"], []).append(row)
    results = [_result(head, rows) for head in header["cells"]]
    if unknown := rows.keys() - {result.cell.key for result in results}:
        raise ValueError(f"rows of {min(map(str, unknown))}, which no cell of its header is")
    return results


def _result(head: dict[str, Any], rows: Mapping[str, list[dict[str, Any]]]) -> CellResult:
    no_samples = {"device_s": (), "gap_s": ()}
    kernels = [{**about, **no_samples} for about in head.get("kernels", ())]
    result = record_from(CellResult, {**head, "kernels": kernels})
    own = rows.get(result.cell.key, [])
    if unknown := {row["what"] for row in own} - {*WHOLE_PASS, *TIMED}:
        raise ValueError(f"a row of {result.cell.key} is {min(map(str, unknown))}, which is none of its quantities")
    whole = {WHOLE_PASS[row["what"]]: row["samples"] for row in own if row["what"] in WHOLE_PASS}
    device, gap, kernel, kernel_gap = ([row for row in own if row["what"] == what] for what in TIMED)
    ops = [
        OpTimes(op=timed["op"], device_s=timed["samples"], gap_s=idle["samples"], kernels=timed["kernels"])
        for timed, idle in zip(device, gap, strict=True)
    ]
    kernels = [
        {**about, "device_s": timed["samples"], "gap_s": idle["samples"]}
        for about, timed, idle in zip(head.get("kernels", ()), kernel, kernel_gap, strict=True)
    ]
    return CellResult.model_validate({**head, **whole, "ops": ops, "kernels": kernels})
