import json
from pathlib import Path

import pytest
from check_run import main

from calibrate.passes.reports import document, load
from profiler.record.folder import RunFolder
from profiler.record.run import CellResult, Run
from roofline.graph.op import OpGraph
from roofline.hardware.spec import HardwareSpec


def _written(base: Path, run: Run, result: CellResult, graph: OpGraph) -> Path:
    """A run of one cell with all its files, and the file that its JSON output went to."""
    with RunFolder.create(base, run.model_copy(update={"cells": (result.cell,)})) as folder:
        folder.write_spec(HardwareSpec(name="example", kind="cpu"))
        folder.write_graph(result.cell, graph)
        folder.append(result)
        folder.finish()
        folder.write_report("report.md", "# report")
        folder.write_report("report.html", "<html>")
    output = base / "output.json"
    output.write_text(json.dumps(document(folder, *load(folder))))
    return output


def test_a_whole_run_passes(tmp_path: Path, run: Run, result: CellResult, graph: OpGraph) -> None:
    assert main(_written(tmp_path, run, result, graph)) == 0


@pytest.mark.parametrize(
    ("closure", "line"),
    [
        ({"attributed": 0.98}, "98.00% of device time attributed, not 99%"),
        ({"spans_plus_gaps": 1.01}, "spans + gaps are 101.00% of the profiled wall"),
    ],
)
def test_a_closure_that_is_too_wide_is_named(
    closure: dict[str, float],
    line: str,
    tmp_path: Path,
    run: Run,
    result: CellResult,
    graph: OpGraph,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert result.closure is not None
    wide = result.model_copy(update={"closure": result.closure.model_copy(update=closure)})
    assert main(_written(tmp_path, run, wide, graph)) == 1
    assert line in capsys.readouterr().out


def test_a_failed_cell_and_missing_files_are_named(
    tmp_path: Path, run: Run, result: CellResult, graph: OpGraph, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = CellResult(cell=result.cell, status="failed", reason="out of memory")
    output = _written(tmp_path, run, failed, graph)
    next(tmp_path.glob("*/*/report.html")).unlink()
    assert main(output) == 1
    shown = capsys.readouterr().out
    assert "failed: out of memory" in shown
    assert "no report.html" in shown
    assert "0 passes printed for 1 cells" in shown


def test_an_invalid_cell_is_a_verdict_that_has_a_reason_and_figures(
    tmp_path: Path, run: Run, result: CellResult, graph: OpGraph, capsys: pytest.CaptureFixture[str]
) -> None:
    invalid = result.model_copy(update={"status": "invalid", "reason": "the device was throttled"})
    assert main(_written(tmp_path / "told", run, invalid, graph)) == 0
    assert "1 of them invalid" in capsys.readouterr().out
    for lacks, lines in (
        ({"reason": None}, ("invalid: None",)),
        ({"wall_s": ()}, ("no times", "0 passes printed for 1 cells")),
        ({"profiled_wall_s": ()}, ("no times",)),
        ({"ops": ()}, ("no times",)),
        ({"closure": None}, ("no closure", "0 passes printed for 1 cells")),
    ):
        assert main(_written(tmp_path / next(iter(lacks)), run, invalid.model_copy(update=lacks), graph)) == 1, lacks
        said = capsys.readouterr().out
        assert all(line in said for line in lines), (lacks, said)
    nothing = CellResult(cell=result.cell, status="invalid", reason="the device was throttled")
    assert main(_written(tmp_path / "nothing", run, nothing, graph)) == 1
    assert "no times" in capsys.readouterr().out


def test_an_invalid_cell_is_right_all_the_same(
    tmp_path: Path, run: Run, result: CellResult, graph: OpGraph, capsys: pytest.CaptureFixture[str]
) -> None:
    assert result.closure is not None
    invalid = result.model_copy(update={"status": "invalid", "reason": "the device was throttled"})
    wide = invalid.model_copy(update={"closure": result.closure.model_copy(update={"attributed": 0.9})})
    assert main(_written(tmp_path / "wide", run, wide, graph)) == 1
    assert "90.00% of device time attributed" in capsys.readouterr().out
    other = invalid.model_copy(update={"differences": ("mm, traced addmm",)})
    assert main(_written(tmp_path / "other", run, other, graph)) == 1
    assert "ran another sequence than its trace: mm, traced addmm" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["spec.json", "measurements.parquet", "graphs/*.json"])
def test_a_file_that_is_gone_is_named(
    name: str, tmp_path: Path, run: Run, result: CellResult, graph: OpGraph, capsys: pytest.CaptureFixture[str]
) -> None:
    output = _written(tmp_path, run, result, graph)
    gone = next(tmp_path.glob(f"*/*/{name}"))
    gone.unlink()
    assert main(output) == 1
    assert str(gone) in capsys.readouterr().out
