"""The store of rows: made from runs, added to by one process, refused where it is damaged."""

import errno
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from calibrate.regression.compare import Row, Side
from calibrate.regression.store import MOST_FILES, PREFIX, STORE, add, read, refresh
from profiler.record.files import Lock
from profiler.record.folder import RunFolder
from profiler.record.run import CellResult, RequestError, Run
from roofline.graph.op import OpGraph
from roofline.hardware.spec import HardwareSpec

HOSTILE = "../<script>' ; drop table rows --\x1b"


def side(i: int, device: str = "NVIDIA H200") -> Side:
    rows = (Row((("kernel", HOSTILE),), (1.0 + i, 2.0 + i, 9.0)), Row((("kernel", "lost"),), failed="it crashed"))
    return Side(str(i), rows, {"device": device}, {"torch": f"2.{i}"}, "box", f"2026-01-{i + 1:02}")


def test_rows_come_back_in_the_order_of_their_runs(tmp_path: Path) -> None:
    base = tmp_path / STORE
    base.mkdir()
    add(base, [("d/2", side(2)), ("d/0", side(0))])
    add(base, [("d/1", side(1))])
    stored = read(tmp_path)
    assert [night.name for night in stored.nights] == ["d/0", "d/1", "d/2"]
    assert [night.made_of["torch"] for night in stored.nights] == ["2.0", "2.1", "2.2"]
    ((key, logs),) = stored.series.items()
    assert key == (("kernel", HOSTILE),) and np.exp(logs) == pytest.approx([2, 3, 4])


def test_devices_are_kept_apart(tmp_path: Path) -> None:
    base = tmp_path / STORE
    base.mkdir()
    add(base, [("d/0", side(0)), ("e/0", side(1, "NVIDIA A100"))])
    assert len(read(tmp_path, "a100").nights) == 1
    for device, why in ((None, "2 devices"), ("b200", "0 devices")):
        with pytest.raises(RequestError, match=why):
            read(tmp_path, device)


def test_many_files_become_one_and_nothing_is_lost(tmp_path: Path) -> None:
    base = tmp_path / STORE
    base.mkdir()
    for i in range(MOST_FILES + 3):
        add(base, [(f"d/{i:03}", side(i % 28))])
    assert len(list(base.glob(f"{PREFIX}*"))) <= 3
    assert len(read(tmp_path).nights) == MOST_FILES + 3


def finished(base: Path, run: Run, result: CellResult, graph: OpGraph, name: str) -> RunFolder:
    with RunFolder.create(base, run.model_copy(update={"name": name})) as folder:
        folder.write_spec(HardwareSpec(name="example", kind="cpu"))
        folder.write_graph(result.cell, graph)
        folder.append(result)
        folder.finish()
    return folder


def test_the_store_is_made_from_runs_again_and_again(
    tmp_path: Path, run: Run, result: CellResult, graph: OpGraph
) -> None:
    def rows_of(folder: RunFolder) -> Side:
        if folder.run.name == "bad":
            raise RequestError("its table is damaged")
        return Side(folder.path.name, (Row((("kernel", "k"),), (1.0,)),), {"device": "cpu"})

    with pytest.raises(RequestError, match="no finished runs"):
        read(tmp_path)
    for name in ("a", "b", "bad"):
        finished(tmp_path, run, result, graph, name)
    told: list[str] = []
    assert refresh(tmp_path, rows_of, told.append) == 2
    assert len(told) == 1 and "left out: its table is damaged" in told[0]
    assert refresh(tmp_path, rows_of) == 0
    finished(tmp_path, run, result, graph, "c")
    assert refresh(tmp_path, rows_of) == 1
    assert len(read(tmp_path).nights) == 3
    for file in (tmp_path / STORE).glob(f"{PREFIX}*"):
        file.unlink()
    assert refresh(tmp_path, rows_of) == 3


def test_one_process_adds_at_a_time(tmp_path: Path, run: Run, result: CellResult, graph: OpGraph) -> None:
    finished(tmp_path, run, result, graph, "a")
    (tmp_path / STORE).mkdir()
    lock = Lock(tmp_path / STORE / ".lock")
    try:
        with pytest.raises(RequestError, match="is being written by process"):
            refresh(tmp_path, lambda folder: side(0))
    finally:
        lock.release()


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"PAR1" * 9])
def test_a_damaged_file_is_refused_and_says_what_to_do(tmp_path: Path, damage: object) -> None:
    base = tmp_path / STORE
    base.mkdir()
    add(base, [("d/0", side(0))])
    (file,) = base.glob(f"{PREFIX}*")
    file.write_bytes(damage(file.read_bytes()))  # type: ignore[operator]
    with pytest.raises(RequestError, match="delete it; the rows are made again") as refusal:
        read(tmp_path)
    assert "\n" not in str(refusal.value)


def test_a_full_disk_harms_nothing_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tmp_path / STORE
    base.mkdir()
    add(base, [("d/0", side(0))])
    there = {file: file.read_bytes() for file in base.iterdir()}

    def full(table: object, path: Path, **_: object) -> None:
        path.write_bytes(b"PAR1, and no more")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(RequestError, match="No space left on device"):
        patched.setattr(pq, "write_table", full)
        add(base, [("d/1", side(1))])
    assert {file: file.read_bytes() for file in base.iterdir()} == there
    add(base, [("d/1", side(1))])
    assert [night.name for night in read(tmp_path).nights] == ["d/0", "d/1"]


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("key", "{", "no JSON of texts"), ("key", "[1]", "no JSON of texts"), ("key", None, "no JSON of texts"),
        ("made_of", "[]", "no JSON of texts"), ("middle", -1.0, "not positive"),
        ("middle", float("nan"), "not positive"),
        ("middle", None, "not positive"),
    ],
)  # fmt: skip
def test_a_tampered_file_is_refused(tmp_path: Path, column: str, value: object, words: str) -> None:
    base = tmp_path / STORE
    base.mkdir()
    add(base, [("d/0", side(0))])
    (file,) = base.glob(f"{PREFIX}*")
    table = pq.read_table(file)
    place = table.column_names.index(column)
    pq.write_table(table.set_column(place, column, pa.array([value], table.schema.field(column).type)), file)
    with pytest.raises(RequestError, match=f"{words}.*; delete it") as refusal:
        read(tmp_path)
    assert "\n" not in str(refusal.value)


def test_an_object_stores_address_is_read_by_duckdb(tmp_path: Path) -> None:
    base = tmp_path / STORE
    base.mkdir()
    add(base, [("d/0", side(0)), ("d/1", side(1))])
    assert [night.name for night in read(f"file://{tmp_path}").nights] == ["d/0", "d/1"]
    with pytest.raises(RequestError, match="cannot read file://"):
        read(f"file://{tmp_path}/nowhere")
