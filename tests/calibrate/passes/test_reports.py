import json
from pathlib import Path

import pytest

from calibrate.passes.reports import advice, document, load, sound
from profiler.record.folder import RunFolder
from profiler.record.run import CellResult, Run
from roofline.graph.op import OpGraph


def _kept(base: Path, run: Run, result: CellResult, graph: OpGraph) -> RunFolder:
    with RunFolder.create(base, run) as folder:
        folder.write_graph(result.cell, graph)
        folder.append(result)
    return folder


@pytest.fixture
def steady(result: CellResult) -> CellResult:
    """`result` with enough unprofiled passes, so that nothing but what a test changes is in doubt."""
    return result.model_copy(update={"wall_s": (5.5e-6,) * 20, "profiled_wall_s": (6e-6,) * 20})


def test_a_good_cell_is_sound(tmp_path: Path, run: Run, steady: CellResult, graph: OpGraph) -> None:
    folder = _kept(tmp_path, run, steady, graph)
    assert sound(folder) == {steady.cell.key}
    reports, without = load(folder)
    assert ([report.status for report in reports], without) == (["done"], [])


@pytest.mark.parametrize(
    "change",
    [
        {"status": "failed", "reason": "out of memory"},
        {"status": "invalid", "reason": "it throttled"},
        {"wall_s": (3e-6,) * 20},  # less than the 6 µs on the device: the report is invalid
        {"closure": None},
    ],
)
def test_what_failed_or_is_in_doubt_is_not_sound(
    change: dict[str, object], tmp_path: Path, run: Run, steady: CellResult, graph: OpGraph
) -> None:
    folder = _kept(tmp_path, run, steady.model_copy(update=change), graph)
    assert sound(folder) == frozenset()


@pytest.mark.parametrize("text", ["{", None])
def test_a_cell_whose_graph_is_bad_is_not_sound(
    text: str | None, tmp_path: Path, run: Run, steady: CellResult, graph: OpGraph
) -> None:
    folder = _kept(tmp_path, run, steady, graph)
    path = folder.path / str(steady.graph)
    path.unlink()
    if text is not None:
        path.write_text(text)
    assert sound(folder) == frozenset()
    reports, (without,) = load(folder)
    assert (reports, without.status) == ([], "failed")
    assert str(path) in str(without.reason)


def test_a_run_of_the_schema_before_is_read(tmp_path: Path, run: Run, steady: CellResult, graph: OpGraph) -> None:
    folder = _kept(tmp_path, run, steady, graph)
    path, journal = folder.path / "run.json", folder.path / "journal.jsonl"
    before = json.loads(path.read_text())
    for name in ("estimated_s", "spent_s"):
        del before[name]
    path.write_text(json.dumps(before | {"schema_version": 4}))
    kept = journal.read_text()
    assert '"reference":{}' in kept
    journal.write_text(kept.replace(',"reference":{}', ""))
    old = RunFolder.open(folder.path)
    assert old.run.schema_version == 4
    assert load(old)[0] == load(folder)[0]
    told = document(old, *load(old))
    assert (told["spent"], told["estimated"], told["passes"][0]["level"]) == ({}, {}, {})


def test_what_to_do_about_a_pass_in_doubt(tmp_path: Path, run: Run, steady: CellResult, graph: OpGraph) -> None:
    budget = run.model_copy(update={"options": {"seconds": 10.0}})
    folder = _kept(tmp_path / "good", budget, steady, graph)
    assert advice(folder, load(folder)[0]) is None
    noisy = steady.model_copy(update={"wall_s": tuple(5.5e-6 * (1 + i % 2) for i in range(20))})
    folder = _kept(tmp_path / "noisy", budget, noisy, graph)
    said = advice(folder, load(folder)[0])
    assert said is not None and said.startswith("1 of 1 passes cannot be relied on; measure them again")
    assert said.endswith(f"python -m profiler run --resume {folder.path} --seconds 20")
