import json
from pathlib import Path

import pytest

from profiler.cli.app import main
from profiler.record.run import Cell, CellResult, Run
from profiler.record.store import RunFolder
from roofline.op import OpGraph


@pytest.fixture
def results(tmp_path: Path, run: Run, result: CellResult, graph: OpGraph, decode_cell: Cell) -> Path:
    """A finished run with one measured and one failed cell, and an unreadable one."""
    base = tmp_path / "results"
    with RunFolder.create(base, run) as folder:
        folder.write_graph(result.cell, graph)
        folder.append(result)
        folder.append(CellResult(cell=decode_cell, status="failed", reason="out of memory: 3 GB wanted"))
        folder.finish()
    with RunFolder.create(base, run.model_copy(update={"name": "torn"})) as folder:
        (folder.path / "run.json").write_text("{")
    return base


def test_list_shows_every_run(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--results", str(results)]) == 0
    _, first, second = capsys.readouterr().out.splitlines()
    assert first.split() == ["example-cpu-2.0-ghz/20260509T101112Z-main", "finished", "2", "example"]
    assert "unreadable" in second and "half-written" in second


def test_list_as_json(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--results", str(results), "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)["runs"]
    assert (first["state"], first["cells"], first["models"]) == ("finished", 2, ["example"])
    assert second["state"] == "unreadable"


def test_nothing_to_list_says_how_to_make_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--results", str(tmp_path / "none")]) == 0
    assert "python -m profiler run" in capsys.readouterr().out


def test_show_has_the_layers_and_what_failed(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "last", "--results", str(results)]) == 0
    shown = capsys.readouterr().out
    assert "lin" in shown
    assert "out of memory: 3 GB wanted" in shown


def test_show_as_json_adds_up(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "main", "--results", str(results), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["device"] == "Example CPU @ 2.0 GHz"
    assert Path(document["run"]).is_dir()
    (measured,) = document["passes"]
    assert measured["phase"] == "prefill"
    assert measured["busy_s"] == pytest.approx(3e-6 + 3 * 1e-6)  # the addition stands for three executions
    assert measured["busy_s"] == pytest.approx(sum(layer["measured_s"] for layer in measured["layers"]))
    (failed,) = document["failed"]
    assert (failed["status"], failed["reason"]) == ("failed", "out of memory: 3 GB wanted")


def test_show_needs_no_spec_and_no_finished_run(
    tmp_path: Path, run: Run, result: CellResult, graph: OpGraph, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunFolder.create(tmp_path, run) as folder:
        folder.write_graph(result.cell, graph)
        folder.append(result)
    assert main(["show", str(folder.path)]) == 0
    assert "lin" in capsys.readouterr().out


def test_show_refuses_a_damaged_graph_in_one_line(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (graph,) = results.glob("*/*/graphs/*.json")
    graph.write_text(graph.read_text()[:50])
    assert main(["show", "main", "--results", str(results)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    assert str(graph) in err
