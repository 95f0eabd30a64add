import errno
import json
from pathlib import Path

import pytest

from profiler.record import folder, index
from profiler.record.folder import RunFolder, find_run, list_runs
from profiler.record.run import RequestError, Run
from roofline.hardware.spec import HardwareSpec

SPEC = HardwareSpec(name="example", kind="cpu")


@pytest.fixture
def results(tmp_path: Path, run: Run) -> Path:
    """A finished run, a later unfinished one, a half-written one, an empty folder, and a README."""
    base = tmp_path / "results"
    with RunFolder.create(base, run) as folder:
        folder.write_spec(SPEC)
        folder.finish()
    RunFolder.create(base, run.model_copy(update={"name": "second", "started": "2026-06-01T00:00:00Z"})).close()
    torn = RunFolder.create(base, run.model_copy(update={"name": "torn", "started": "2026-07-01T00:00:00Z"}))
    torn.close()
    (torn.path / "run.json").write_text('{"schema_version": 1,')
    (torn.path.parent / "20260801T000000Z-empty").mkdir()
    (torn.path.parent / "README.md").write_text("how it was taken")
    (base / "README.md").write_text("what this is")
    return base


def test_every_run_is_listed_and_a_bad_one_says_why(results: Path) -> None:
    runs = list_runs(results)
    assert [run.state for run in runs] == ["finished", "unfinished", "unreadable", "unreadable"]
    assert "half-written" in str(runs[2].why)
    assert "no run.json" in str(runs[3].why)
    assert (runs[0].cells, runs[0].models, runs[0].device) == (2, ("example",), "Example CPU @ 2.0 GHz")


@pytest.mark.parametrize("name", ["measurements.parquet", "spec.json"])
def test_a_finished_run_that_lost_a_file_is_unreadable(results: Path, name: str) -> None:
    (results / "example-cpu-2.0-ghz" / "20260509T101112Z-main" / name).unlink()
    summary = list_runs(results)[0]
    assert summary.state == "unreadable"
    assert f"{name} is missing from a finished run; restore it" in str(summary.why)


INDEXES = [
    "", "{", "[]", "null", '{"schema_version": 2, "runs": {}}', '{"schema_version": 1}',
    '{"schema_version": 1, "runs": {"example-cpu-2.0-ghz/20260509T101112Z-main": 5}}',
    '{"schema_version": 1, "runs": [1, 2]}', '{"schema_version": 1, "runs": {"a/b": ["", {"state": 7}]}}',
]  # fmt: skip


def test_an_index_spares_opening_runs_and_never_changes_what_is_said(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "WORTH_KEEPING", 1)
    device = results / "example-cpu-2.0-ghz"
    plain = list_runs(results)
    file = results / index.INDEX
    assert set(json.loads(file.read_text())["runs"]) == {"example-cpu-2.0-ghz/20260509T101112Z-main"}
    opened: list[Path] = []
    summary = folder._summary
    monkeypatch.setattr(folder, "_summary", lambda path: opened.append(path) or summary(path))
    assert list_runs(results) == plain and len(opened) == 3, "only a finished run is known"
    for content in INDEXES:
        file.write_text(content)
        assert list_runs(results) == plain
    tampered = json.loads(file.read_text())
    tampered["runs"]["example-cpu-2.0-ghz/20260509T101112Z-main"][1]["cells"] = "many"
    file.write_text(json.dumps(tampered))
    assert list_runs(results) == plain
    (device / "20260509T101112Z-main" / "spec.json").unlink()
    assert list_runs(results)[0].state == "unreadable", "a run that lost a file is looked at again"
    file.unlink()
    monkeypatch.setattr(index, "write_text", full_disk)
    assert len(list_runs(results)) == 4, "a folder that cannot be written is listed all the same"


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_no_results_folder_has_no_runs(tmp_path: Path) -> None:
    assert list_runs(tmp_path / "nothing") == []


def test_a_run_is_found_by_folder_by_end_of_name_and_as_the_last(results: Path) -> None:
    path = results / "example-cpu-2.0-ghz" / "20260601T000000Z-second"
    for word in (str(path), "second", "20260601T000000Z-second", "example-cpu-2.0-ghz/20260601T000000Z-second", "last"):
        assert find_run(word, results).path == path


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("seccond", "did you mean 20260601T000000Z-second"),
        ("zzzzzzzz", "no run 'zzzzzzzz' under .*; see: python -m profiler list"),
        ("n", "matches 2 runs: .*main, .*torn; name one of them"),
        ("torn", "half-written"),
        ("/nowhere/at/all", "no run folder at"),
    ],
)
def test_a_word_that_means_no_single_readable_run_is_refused(results: Path, word: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        find_run(word, results)


def test_no_last_run_where_none_can_be_read(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no readable runs"):
        find_run("last", tmp_path)
