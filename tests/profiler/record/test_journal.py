import json
import resource
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.record import journal
from profiler.record.errors import InvalidMeasurement, RequestError
from profiler.record.run import Cell, CellResult, OpTimes
from roofline.workload import Workload

CELL = Cell(
    model="m",
    workload=Workload(batch=1, query_tokens=1, context_tokens=1, dtype="float32"),
    attn="sdpa",
    experts="default",
    cache="dynamic",
)
SECONDS = st.floats(min_value=0, max_value=1e6, allow_nan=False)
SAMPLES = st.lists(SECONDS, max_size=4).map(tuple)
RESULTS = st.builds(
    CellResult,
    cell=st.just(CELL),
    status=st.sampled_from(["done", "failed", "invalid"]),
    reason=st.none() | st.text(),
    wall_s=SAMPLES,
    ops=st.lists(st.builds(OpTimes, op=st.integers(0, 9), device_s=SAMPLES, gap_s=SAMPLES), max_size=3).map(tuple),
)


@given(results=st.lists(RESULTS, max_size=4))
@settings(max_examples=50, deadline=None)
def test_what_is_appended_is_read_back_exactly(
    results: list[CellResult], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    for result in results:
        journal.append(path, result)
    assert journal.read(path) == results


def test_no_journal_is_no_results(tmp_path: Path) -> None:
    assert journal.read(tmp_path / "journal.jsonl") == []


def test_killed_at_any_byte_of_a_line_the_lines_before_it_stay(tmp_path: Path, result: CellResult) -> None:
    path = tmp_path / "journal.jsonl"
    line = journal.encode(result)
    for cut in range(0, len(line), 7):
        path.write_bytes(line + line[:cut])
        assert journal.read(path) == [result]
        journal.drop_torn_line(path)
        journal.append(path, result)
        assert journal.read(path) == [result, result]


@pytest.mark.parametrize("garbage", [b"{}\n", b"not json\n", b"\x00\x00\n", b"\n"])
def test_garbage_in_a_whole_line_is_refused_with_its_number(tmp_path: Path, result: CellResult, garbage: bytes) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(journal.encode(result) + garbage + journal.encode(result))
    with pytest.raises(RequestError, match=r"journal\.jsonl line 2 is damaged"):
        journal.read(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_time_that_is_not_finite_is_not_kept(tmp_path: Path, result: CellResult, value: float) -> None:
    path = tmp_path / "journal.jsonl"
    with pytest.raises(InvalidMeasurement, match=r"example-prefill.*not a finite"):
        journal.append(path, result.model_copy(update={"wall_s": (1.0, value)}))
    assert not path.exists()


def test_a_write_that_the_disk_cuts_short_is_taken_back(tmp_path: Path, result: CellResult) -> None:
    path = tmp_path / "journal.jsonl"
    journal.append(path, result)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, limits[1]))
    try:
        with pytest.raises(RequestError, match="File too large; the cells before this one are kept"):
            journal.append(path, result)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == journal.encode(result)
    journal.append(path, result)
    assert journal.read(path) == [result, result]


def test_the_latest_result_of_a_cell_counts(result: CellResult, decode_cell: Cell) -> None:
    failed = result.model_copy(update={"status": "failed"})
    other = result.model_copy(update={"cell": decode_cell})
    assert journal.latest([failed, other, result]) == [result, other]


def test_rewrite_replaces_everything(tmp_path: Path, result: CellResult) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text("garbage")
    journal.rewrite(path, [result])
    assert json.loads(path.read_text())["status"] == "done"
    assert [file.name for file in tmp_path.iterdir()] == ["journal.jsonl"]
