import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import hardware_samples
import pytest

from profiler.cli.app import main
from profiler.record.files import HARDWARE, HARDWARE_JOURNAL, KERNELS
from profiler.record.folder import RunFolder, list_runs
from profiler.record.hardware_table import HardwareLog
from profiler.record.run import Cell, CellResult, Run
from roofline.graph.op import OpGraph
from roofline.hardware.spec import HardwareSpec


@pytest.fixture
def results(tmp_path: Path, run: Run, result: CellResult, graph: OpGraph, decode_cell: Cell) -> Path:
    """A finished run with one measured and one failed cell, and an unreadable one."""
    base = tmp_path / "results"
    with RunFolder.create(base, run) as folder:
        folder.write_spec(HardwareSpec(name="example", kind="cpu"))
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
    assert first.split() == ["example-cpu-2.0-ghz/20260509T101112Z-main", "finished", "–", "2", "example"]
    assert "unreadable" in second and "half-written" in second


def test_no_name_of_a_run_moves_the_cursor(
    tmp_path: Path, run: Run, result: CellResult, graph: OpGraph, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = "\x1b]0;title\x07\x1b[2J\u202e\x9bx"
    cell = result.cell.model_copy(update={"model": bad})
    environment = run.environment.model_copy(update={"device": bad, "notes": (bad,), "versions": {bad: bad}})
    named = run.model_copy(update={"name": bad, "cells": (cell,), "environment": environment})
    with RunFolder.create(tmp_path, named) as folder:
        name = folder.write_graph(cell, graph)
        timed = [times.model_copy(update={"kernels": (bad,)}) for times in result.ops]
        folder.append(
            result.model_copy(update={"cell": cell, "graph": name, "ops": tuple(timed), "differences": (bad,)})
        )
        folder.append(CellResult(cell=run.cells[1], status="failed", reason=bad))
        folder.finish()
    folder.path.rename(folder.path.with_name(f"a{bad}"))
    for arguments in (["list"], ["show", "last"], ["show", "nothing"]):
        main([*arguments, "--results", str(tmp_path)])
        shown = "".join(capsys.readouterr())
        assert shown and all(c.isprintable() for line in shown.splitlines() for c in line), (arguments, shown)


def test_list_has_the_verdict_of_each_run(
    tmp_path: Path, run: Run, decode_cell: Cell, capsys: pytest.CaptureFixture[str]
) -> None:
    for verdicts in ({}, {"done": 2}, {"done": 1, "inconclusive": 2}, {"invalid": 1, "failed": 1, "inconclusive": 4}):
        with RunFolder.create(tmp_path, run) as folder:
            folder.write_spec(HardwareSpec(name="example", kind="cpu"))
            folder.append(CellResult(cell=decode_cell, status="failed", reason="out of memory: 3 GB wanted"))
            folder.finish()
            folder.note(verdicts=verdicts)
    assert main(["list", "--results", str(tmp_path)]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    at = head.index("verdict")
    assert [line[at : at + 14].strip() for line in lines] == ["–", "done", "2 inconclusive", "1 invalid"]
    assert main(["list", "--results", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"][1]["verdicts"] == {"done": 2}


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
    about = ("model", "phase", "batch", "query_tokens", "context_tokens", "dtype")
    assert [failed[key] for key in about] == ["example", "decode", 1, 1, 4, "float32"]
    assert (failed["status"], failed["reason"]) == ("failed", "out of memory: 3 GB wanted")


def test_show_needs_no_spec_and_no_finished_run(
    tmp_path: Path, run: Run, result: CellResult, graph: OpGraph, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunFolder.create(tmp_path, run) as folder:
        folder.write_graph(result.cell, graph)
        folder.append(result)
    assert main(["show", str(folder.path)]) == 0
    assert "lin" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["torn", "missing", "another"])
def test_one_bad_graph_leaves_the_other_cells_readable(
    damage: str, results: Path, run: Run, result: CellResult, graph: OpGraph, capsys: pytest.CaptureFixture[str]
) -> None:
    (path,) = results.glob("*/*/graphs/*.json")
    second = result.model_copy(update={"cell": run.cells[1]})
    resumed, _ = RunFolder.open_for_resume(path.parents[1])
    with resumed:
        kept = resumed.write_graph(second.cell, graph)
        resumed.append(second.model_copy(update={"graph": kept}))
        resumed.finish()
    if damage == "torn":
        path.write_text(path.read_text()[:50])
    elif damage == "missing":
        path.unlink()
    else:
        path.write_text(graph.model_copy(update={"ops": graph.ops[:1]}).model_dump_json())
    assert main(["show", "main", "--results", str(results), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [one["phase"] for one in document["passes"]] == ["decode"]
    (failed,) = document["failed"]
    assert (failed["cell"], failed["status"]) == (result.cell.key, "failed")
    assert str(path) in failed["reason"] and "run --resume" in failed["reason"]
    assert main(["show", "main", "--results", str(results)]) == 0
    assert "measure its cell again" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", ["measurements.parquet", "spec.json"])
def test_a_run_that_lost_a_file_is_not_shown_as_empty(
    name: str, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    next(results.glob(f"*/*/{name}")).unlink()
    assert main(["show", "main", "--results", str(results)]) == 2
    err = capsys.readouterr().err
    assert f"{name} is missing" in err and err.count("\n") == 1


def test_notes_about_the_machine_are_in_the_json(tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    note = "other work takes 1.06 of 2 cores"
    noted = run.model_copy(update={"environment": run.environment.model_copy(update={"notes": (note,)})})
    with RunFolder.create(tmp_path, noted) as folder:
        pass
    assert main(["show", str(folder.path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert note in document["warnings"]
    assert document["environment"]["notes"] == [note]
    assert {"device", "versions", "threads", "cores"} <= set(document["environment"])


def _show(results: Path, **more: Any) -> tuple[int, str, str]:
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"} | more.pop("env", {})
    command = [sys.executable, "-m", "profiler", "show", "main", "--results", str(results)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "check": False} | more
    done = subprocess.run(command, env=environment, **options)
    return done.returncode, (done.stdout or b"").decode("latin-1"), done.stderr.decode()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_signs_that_the_output_lacks_do_not_lose_the_report(results: Path, encoding: str) -> None:
    code, out, err = _show(results, env={"PYTHONIOENCODING": encoding})
    assert (code, err) == (0, "")
    assert "lin" in out and "?" in out


def test_nobody_reading_the_report_is_quiet(results: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert _show(results, stdout=writer) == (141, "", "")
    finally:
        os.close(writer)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line(results: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        code, _, err = _show(results, stdout=full)
    assert code == 2
    assert err.startswith("error: cannot write the output: No space left") and err.count("\n") == 1


def test_a_pipe_is_120_wide_unless_columns_says(results: Path) -> None:
    widths = [
        max(map(len, _show(results, env={"PYTHONIOENCODING": "ascii"} | columns)[1].splitlines()))
        for columns in ({}, {"COLUMNS": "90"})
    ]
    assert widths == [120, 90]


@pytest.fixture
def characterised(tmp_path: Path) -> Path:
    """One finished characterisation."""
    _write(tmp_path / "results", finish=True)
    return tmp_path / "results"


def _write(base: Path, finish: bool) -> Path:
    spec, measurements, run = hardware_samples.cpu()
    with RunFolder.create(base, run.model_copy(update={"finished": None})) as folder:
        log = HardwareLog(folder.path)
        for one in measurements:
            log.append(one)
        if finish:
            folder.write_spec(spec)
            log.finish(folder.run)
            folder.finish()
    return folder.path


def test_the_index_knows_a_characterisation(characterised: Path) -> None:
    (found,) = list_runs(characterised)
    assert (found.state, found.kind, found.measurements) == ("finished", "hardware", len(hardware_samples.cpu()[1]))
    RunFolder.open(found.path).require_whole()


def test_list_has_its_measurements_instead_of_cells(characterised: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--results", str(characterised)]) == 0
    line = capsys.readouterr().out.splitlines()[1]
    count = len(hardware_samples.cpu()[1])
    assert line.split()[1:] == ["finished", "–", "–", "hardware,", str(count), "measurements"]
    assert main(["list", "--results", str(characterised), "--json"]) == 0
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    assert (run["kind"], run["measurements"], run["cells"]) == ("hardware", count, 0)


def test_show_prints_the_figures(characterised: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "last", "--results", str(characterised)]) == 0
    text = capsys.readouterr().out
    assert "main memory" in text and "52.0 GB/s" in text
    assert "no float8 product on this CPU" in text


def test_show_as_json(characterised: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "last", "--results", str(characterised), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert Path(document["spec"]).is_file()
    triad = next(one for one in document["figures"] if one["name"] == "memory.triad")
    assert triad["value"] == pytest.approx(49e9, rel=0.02)
    assert triad["low"] < triad["value"] < triad["high"]


def test_a_characterisation_that_was_calibrated_too_is_shown_as_one(
    characterised: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (summary,) = list_runs(characterised)
    (summary.path / KERNELS).write_bytes(b"kernels that its laws were fitted to")
    assert list_runs(characterised) == [summary]
    assert main(["show", "last", "--results", str(characterised)]) == 0
    assert "main memory" in capsys.readouterr().out


def test_show_needs_no_torch(characterised: Path) -> None:
    code = (
        "import sys; from profiler.cli.app import main;"
        f"assert main(['show', 'last', '--results', {str(characterised)!r}]) == 0; assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_characterisation_can_be_looked_at_while_it_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _write(tmp_path, finish=False)
    torn = (path / HARDWARE_JOURNAL).read_bytes() + b'{"measurement":{"bench'
    (path / HARDWARE_JOURNAL).write_bytes(torn)
    assert main(["show", str(path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["spec"], document["finished"]) == (None, None)
    assert any(one["name"] == "memory.read" and one["value"] for one in document["figures"])
    assert (path / HARDWARE_JOURNAL).read_bytes() == torn
    (found,) = list_runs(tmp_path)
    assert (found.state, found.kind, found.measurements) == ("unfinished", "hardware", len(hardware_samples.cpu()[1]))


@pytest.mark.parametrize("name", [HARDWARE, "spec.json"])
def test_a_damaged_characterisation_is_one_line(
    name: str, characterised: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = next(characterised.glob(f"*/*/{name}"))
    path.write_text("{")
    assert main(["show", str(path.parent)]) == 2
    err = capsys.readouterr().err
    assert str(path) in err and err.count("\n") == 1


def test_models_and_devices_are_listed_as_tables_and_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    for verb, name, words in (
        ("devices", "nvidia-h100-sxm", ("989 T", "3,35")),
        ("models", "llama-3.1-8b", ("8.03 G", "meta-llama/")),
    ):
        assert main([verb]) == 0
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.split()[0] == name]
        assert all(word in line for word in words), line
        assert main([verb, "--json"]) == 0
        names = [entry["name"] for entry in json.loads(capsys.readouterr().out)[verb]]
        assert name in names and len(names) == len(set(names))


def test_a_run_and_a_characterisation_as_csv_hold_what_their_json_does(
    results: Path, characterised: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for base, name in ((results, "main"), (characterised, "last")):
        path = tmp_path / f"{name}.csv"
        assert main(["show", name, "--results", str(base), "--json", "--csv", str(path)]) == 0
        document, rows = json.loads(capsys.readouterr().out), list(csv.DictReader(path.read_text().splitlines()))
        if "passes" in document:
            layers = [layer for one in document["passes"] for layer in one["layers"]]
            assert [row["reason"] for row in rows[len(layers) :]] == [one["reason"] for one in document["failed"]]
            assert [float(row["measured_s"]) for row in rows[: len(layers)]] == [
                layer["measured_s"] for layer in layers
            ]
            assert [row["path"] for row in rows[: len(layers)]] == [layer["path"] for layer in layers]
        else:
            figures = document["figures"]
            assert [row["name"] for row in rows] == [figure["name"] for figure in figures]
            assert [row["value"] for row in rows] == ["" if f["value"] is None else str(f["value"]) for f in figures]
    kept = next(results.glob("*/*main/measurements.parquet"))
    assert main(["show", "main", "--results", str(results), "--csv", str(kept)]) == 2
    assert "would overwrite" in capsys.readouterr().err
