"""Check what `python -m profiler run --json` wrote and printed: that it is all there, and that it adds up.

Timing is not judged: a pass may be inconclusive, or invalid for a reason that lies in the machine, but each cell must
have its times, and they must add up. Exit code 0, or 1 with a line for each thing that is wrong.

Example::

    python -m profiler run gpt2 --layers 2 --quick --out OUT --json > OUT/run.json
    python -P tests/check_run.py OUT/run.json
"""

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from calibrate.passes.pass_report import PassReport, Waterfall
from calibrate.passes.reports import load
from calibrate.passes.verdict import LEAST_ATTRIBUTED, SPANS_WITHIN
from profiler.record.folder import RunFolder
from profiler.record.run import RUN_SCHEMA, CellResult, RequestError

SUM_TOLERANCE = 1e-9
"""Relative: sums of the same numbers in another order."""


def main(output: Path) -> int:
    """Check the run whose JSON output is in a file; prints what is wrong."""
    document = json.loads(output.read_text(), parse_constant=_refuse)
    folder = RunFolder.open(Path(document["run"]))
    try:
        folder.require_whole()
        reports, without = load(folder)
    except RequestError as error:
        print(error)
        return 1
    wrong = [*_folder(folder), *_document(document, folder)]
    unread = {result.cell.key: result for result in without}
    for result in folder.results():
        wrong.extend(f"{result.cell.key}: {line}" for line in _cell(unread.get(result.cell.key, result)))
    for report in reports:
        wrong.extend(f"{report.model} {report.workload.key}: {line}" for line in _pass(report))
    invalid = sum(report.status == "invalid" for report in reports)
    verdicts = f", {invalid} of them invalid" if invalid else ""
    print("\n".join(wrong) or f"{folder.path}: {len(folder.run.cells)} cells{verdicts}; all is there and adds up")
    return 1 if wrong else 0


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _folder(folder: RunFolder) -> Iterator[str]:
    if folder.run.schema_version != RUN_SCHEMA:
        yield f"schema {folder.run.schema_version}, not {RUN_SCHEMA}"
    if folder.run.finished is None:
        yield "not finished"
    if folder.read_spec() is None:
        yield "no spec.json"
    for name in ("measurements.parquet", "report.md", "report.html"):
        if not (folder.path / name).exists() or not (folder.path / name).stat().st_size:
            yield f"no {name}"
    missing = {cell.key for cell in folder.run.cells} - {result.cell.key for result in folder.results()}
    yield from (f"{key}: no result" for key in sorted(missing))


def _document(document: dict[str, Any], folder: RunFolder) -> Iterator[str]:
    if not folder.run.cells or len(document["passes"]) != len(folder.run.cells):
        yield f"{len(document['passes'])} passes printed for {len(folder.run.cells)} cells"


def _cell(result: CellResult) -> Iterator[str]:
    if result.status == "failed" or not (result.status == "done" or result.reason):
        yield f"{result.status}: {result.reason}"
    if result.status == "invalid" and result.differences:
        yield f"ran another sequence than its trace: {result.differences[0]}"
    if not (result.wall_s and result.profiled_wall_s and (result.ops or result.kernels)):
        yield "no times"
    if result.closure is None:
        yield "no closure"
    elif result.closure.attributed < LEAST_ATTRIBUTED[result.cell.mode]:
        yield f"{result.closure.attributed:.2%} of device time attributed, not {LEAST_ATTRIBUTED[result.cell.mode]:.0%}"
    elif abs(result.closure.spans_plus_gaps - 1) > SPANS_WITHIN:
        yield f"spans + gaps are {result.closure.spans_plus_gaps:.2%} of the profiled wall"


def _pass(report: PassReport) -> Iterator[str]:
    if not _same(_total(report.waterfall), report.wall_s):
        yield f"the waterfall adds up to {_total(report.waterfall)} s, the wall is {report.wall_s} s"
    for name, layers, whole in (
        ("measured times", sum(layer.measured_s for layer in report.layers), report.busy_s),
        ("waterfalls", sum(_total(layer.waterfall) for layer in report.layers), report.wall_s),
    ):
        if not _same(layers, whole):
            yield f"the layers' {name} add up to {layers} s, not {whole} s"


def _total(waterfall: Waterfall) -> float:
    alone = waterfall.model_dump(exclude={"merged"}).values()
    return sum(term for term in alone if term is not None) + sum(waterfall.merged.values())


def _same(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=SUM_TOLERANCE)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
