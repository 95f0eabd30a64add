from pathlib import Path

import pytest

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
