import json
import subprocess
import sys
from pathlib import Path

import hardware_samples as samples
import pytest

from profiler.cli.app import main
from profiler.record.hardware import JOURNAL, TABLE, HardwareLog
from profiler.record.index import list_runs
from profiler.record.store import RunFolder


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """One finished characterisation."""
    _write(tmp_path / "results", finish=True)
    return tmp_path / "results"


def _write(base: Path, finish: bool) -> Path:
    spec, measurements, run = samples.cpu()
    with RunFolder.create(base, run.model_copy(update={"finished": None})) as folder:
        log = HardwareLog(folder.path)
        for one in measurements:
            log.append(one)
        if finish:
            folder.write_spec(spec)
            log.finish(folder.run)
            folder.finish()
    return folder.path


def test_the_index_knows_a_characterisation(results: Path) -> None:
    (found,) = list_runs(results)
    assert (found.state, found.kind, found.measurements) == ("finished", "hardware", len(samples.cpu()[1]))
    RunFolder.open(found.path).require_whole()


def test_list_has_its_measurements_instead_of_cells(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--results", str(results)]) == 0
    line = capsys.readouterr().out.splitlines()[1]
    count = len(samples.cpu()[1])
    assert line.split()[1:] == ["finished", "–", "hardware,", str(count), "measurements"]
    assert main(["list", "--results", str(results), "--json"]) == 0
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    assert (run["kind"], run["measurements"], run["cells"]) == ("hardware", count, 0)


def test_show_prints_the_figures(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "last", "--results", str(results)]) == 0
    text = capsys.readouterr().out
    assert "main memory" in text and "52.0 GB/s" in text
    assert "no float8 product on this CPU" in text


def test_show_as_json(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "last", "--results", str(results), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert Path(document["spec"]).is_file()
    triad = next(one for one in document["figures"] if one["name"] == "memory.triad")
    assert triad["value"] == pytest.approx(49e9, rel=0.02)
    assert triad["low"] < triad["value"] < triad["high"]


def test_show_needs_no_torch(results: Path) -> None:
    code = (
        "import sys; from profiler.cli.app import main;"
        f"assert main(['show', 'last', '--results', {str(results)!r}]) == 0; assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_characterisation_can_be_looked_at_while_it_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _write(tmp_path, finish=False)
    torn = (path / JOURNAL).read_bytes() + b'{"measurement":{"bench'
    (path / JOURNAL).write_bytes(torn)
    assert main(["show", str(path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["spec"], document["finished"]) == (None, None)
    assert any(one["name"] == "memory.read" and one["value"] for one in document["figures"])
    assert (path / JOURNAL).read_bytes() == torn
    (found,) = list_runs(tmp_path)
    assert (found.state, found.kind, found.measurements) == ("unfinished", "hardware", len(samples.cpu()[1]))


@pytest.mark.parametrize("name", [TABLE, "spec.json"])
def test_a_damaged_characterisation_is_one_line(name: str, results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = next(results.glob(f"*/*/{name}"))
    path.write_text("{")
    assert main(["show", str(path.parent)]) == 2
    err = capsys.readouterr().err
    assert str(path) in err and err.count("\n") == 1
