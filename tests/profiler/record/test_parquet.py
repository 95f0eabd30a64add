"""Tables that are other than run.json counts, of other types, or larger unpacked than memory should be given for."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from profiler.record import parquet
from profiler.record.files import MEASUREMENTS, RUN_FILE
from profiler.record.folder import RunFolder
from profiler.record.parquet import METADATA_KEY, read_parquet
from profiler.record.pass_table import COLUMNS, read_results
from profiler.record.run import CellResult, RequestError, Run
from roofline.graph.op import OpGraph


@pytest.fixture
def finished(tmp_path: Path, run: Run, result: CellResult, graph: OpGraph) -> Path:
    with RunFolder.create(tmp_path, run) as folder:
        folder.write_graph(result.cell, graph)
        folder.append(result)
        folder.finish()
    return folder.path


def bytes_of(table: pa.Table, path: Path) -> bytes:
    pq.write_table(table, path, compression="zstd")
    return path.read_bytes()


def test_a_table_that_lost_rows_or_is_lost_is_noticed(finished: Path) -> None:
    path, whole = finished / MEASUREMENTS, (finished / MEASUREMENTS).read_bytes()
    table = pq.read_table(path)
    assert json.loads((finished / RUN_FILE).read_text())["tables"][MEASUREMENTS]["rows"] == len(table)
    for lost in (table.slice(0, len(table) - 1), table.slice(0, 0), pa.concat_tables([table, table])):
        pq.write_table(lost, path)
        with pytest.raises(RequestError, match=r"no whole table of results \(its checksum in run\.json is another one"):
            read_results(finished)
        with pytest.raises(RequestError, match=f"it has {len(lost)} rows, and run.json counts {len(table)}"):
            parquet.Table(MEASUREMENTS, "table of results", 6, COLUMNS, "restore it").rows(finished)
    path.unlink()
    with pytest.raises(RequestError, match=r"measurements\.parquet is missing from a finished run"):
        RunFolder.open(finished).results()
    path.write_bytes(whole)
    tables = json.loads((finished / RUN_FILE).read_text())
    tables["tables"]["kernels.parquet"] = {"rows": 3, "sha256": ""}
    (finished / RUN_FILE).write_text(json.dumps(tables))
    with pytest.raises(RequestError, match=r"kernels\.parquet is missing, which run\.json counts the rows of"):
        RunFolder.open(finished).results()


def test_a_column_of_another_type_is_refused_by_its_name(finished: Path) -> None:
    path = finished / MEASUREMENTS
    table = pq.read_table(path)
    run = json.loads((finished / RUN_FILE).read_text())
    (finished / RUN_FILE).write_text(json.dumps({**run, "tables": {}}))
    rows = len(table)
    for column, values in (
        ("samples", pa.array([{"a": 1.0}] * rows)),
        ("samples", pa.array([["1.0"]] * rows)),
        ("samples", pa.array([[True]] * rows)),
        ("samples", pa.array([1.0] * rows)),
        ("op", pa.array([0.5] * rows)),
        ("what", pa.array([b"wall"] * rows)),
        ("kernels", pa.array([[("a", "b")]] * rows, pa.map_(pa.string(), pa.string()))),
    ):
        pq.write_table(table.set_column(table.column_names.index(column), column, values), path)
        with pytest.raises(RequestError, match=f"column {column} holds "):
            read_results(finished)
    header = json.loads(table.schema.metadata[METADATA_KEY])
    for version in (True, 5.9, "5", 0, -1, None, [5], 10**20):
        changed = json.dumps({**header, "schema_version": version}).encode()
        pq.write_table(table.replace_schema_metadata({METADATA_KEY: changed}), path)
        with pytest.raises(RequestError, match=r"schema|beyond 64 bits"):
            read_results(finished)


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    big = pa.array(["x" * (1 << 20)])
    many = pa.DictionaryArray.from_arrays(pa.array([0] * 200_000, pa.int32()), big)
    lists = pa.ListArray.from_arrays(pa.array(range(200_001), pa.int32()), many)
    path = tmp_path / "bomb.parquet"
    for column in (many, lists):
        content = bytes_of(pa.table({"a": column}), path)
        assert len(content) < 1 << 20
        with pytest.raises(ValueError, match="its texts unpack to 209,715,200,000 bytes"):
            read_parquet(content)
    few = pa.DictionaryArray.from_arrays(pa.array([0] * 5, pa.int32()), big)
    content = bytes_of(pa.table({"a": few, "n": ["x", "y", None, "x", "x"]}), path)
    whole = read_parquet(content)
    monkeypatch.setattr(parquet, "MOST_DECODED", 6 << 20)  # now the texts are measured first
    assert read_parquet(content).equals(whole)
    with pytest.raises(ValueError, match="it unpacks to 8,000,"):
        read_parquet(bytes_of(pa.table({"a": pa.array([0.0] * 1_000_000)}), path))
    monkeypatch.setattr(parquet, "MOST_ROWS", 4)
    with pytest.raises(ValueError, match="5 rows of 2 columns are more than any table has"):
        read_parquet(content)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads as Linux lists them")
def test_reading_a_table_leaves_no_thread_behind(finished: Path) -> None:
    """A thread of Arrow that gives back bytes of Python while the interpreter ends aborts the process."""
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from profiler.record.pass_table import read_results\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        f"read_results(Path({str(finished)!r}))\n"
        "sys.exit(len(os.listdir('/proc/self/task')) - before)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
