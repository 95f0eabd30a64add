import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import get_args

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from profiler.record import pass_table
from profiler.record.folder import RunFolder, slug
from profiler.record.parquet import METADATA_KEY
from profiler.record.run import RUN_SCHEMA, Cell, CellResult, KernelTimes, Mode, RequestError, Run
from roofline.graph.op import OpGraph
from roofline.hardware.spec import HardwareSpec


def _filled(base: Path, run: Run, result: CellResult, graph: OpGraph) -> RunFolder:
    folder = RunFolder.create(base, run)
    assert folder.write_graph(result.cell, graph) == result.graph
    folder.append(result)
    return folder


def test_a_run_is_under_its_device_and_time(tmp_path: Path, run: Run) -> None:
    first, second = RunFolder.create(tmp_path, run), RunFolder.create(tmp_path, run)
    assert first.path == tmp_path / "example-cpu-2.0-ghz" / "20260509T101112Z-main"
    assert second.path == first.path.with_name("20260509T101112Z-main-2")
    assert RunFolder.open(first.path).run == run


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("NVIDIA H200 SXM", "nvidia-h200-sxm"),
        ("../../etc", "etc"),
        ("a/b\\c", "a-b-c"),
        ("", "unnamed"),
        ("…", "unnamed"),
    ],
)
def test_slug(text: str, expected: str) -> None:
    assert slug(text) == expected


def test_results_survive_finishing_exactly(
    tmp_path: Path, run: Run, result: CellResult, graph: OpGraph, decode_cell: Cell
) -> None:
    failed = CellResult(cell=decode_cell, status="failed", reason="out of memory")
    with _filled(tmp_path, run, result, graph) as folder:
        folder.append(failed)
        assert folder.results() == [result, failed]
        folder.finish()
    names = {path.name for path in folder.path.iterdir()}
    assert names == {"run.json", "graphs", "measurements.parquet"}
    again = RunFolder.open(folder.path)
    assert again.results() == [result, failed]
    assert again.run.finished is not None
    assert again.run.tables.keys() == {"measurements.parquet"}
    assert again.run.model_copy(update={"finished": None, "tables": {}}) == run
    assert again.read_graph(str(result.graph)) == graph


def test_a_run_without_any_result_can_be_finished(tmp_path: Path, run: Run) -> None:
    with RunFolder.create(tmp_path, run) as folder:
        folder.finish()
    assert RunFolder.open(folder.path).results() == []


def test_finishing_is_cut_off_before_the_journal_goes(
    tmp_path: Path, run: Run, result: CellResult, graph: OpGraph
) -> None:
    with _filled(tmp_path, run, result, graph) as folder:
        (folder.path / "measurements.parquet").write_bytes(b"PAR1 half")
        assert RunFolder.open(folder.path).results() == [result]


def test_the_spec_is_kept(tmp_path: Path, run: Run) -> None:
    spec = HardwareSpec(name="example", kind="cpu")
    with RunFolder.create(tmp_path, run) as folder:
        assert folder.read_spec() is None
        folder.write_spec(spec)
        folder.finish()
    assert RunFolder.open(folder.path).read_spec() == spec


def test_a_finished_run_without_its_files_is_no_empty_success(
    tmp_path: Path, run: Run, result: CellResult, graph: OpGraph
) -> None:
    with _filled(tmp_path, run, result, graph) as folder:
        folder.finish()
    again = RunFolder.open(folder.path)
    with pytest.raises(RequestError, match=r"spec\.json is missing from a finished run; .* measures the device again"):
        again.read_spec()
    resumed, done = RunFolder.open_for_resume(folder.path)
    with resumed:
        assert resumed.read_spec() is None
        assert done == {result.cell.key}
        resumed.finish()
    (folder.path / "measurements.parquet").unlink()
    with pytest.raises(RequestError, match=r"measurements\.parquet is missing from a finished run; restore it"):
        RunFolder.open(folder.path).results()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("spec.json", '{"schema_version": 99}', "newer roofcal"),
        ("spec.json", "{", "half-written or damaged"),
        ("measurements.parquet", "PAR1 half", "restore it, or measure in a new run"),
        ("measurements.parquet", None, "is missing"),
        ("journal.jsonl", "garbage\n", "line 1 is damaged"),
    ],
)
def test_a_refused_resume_changes_nothing(
    name: str, content: str | None, message: str, tmp_path: Path, run: Run, result: CellResult, graph: OpGraph
) -> None:
    with _filled(tmp_path, run, result, graph) as folder:
        folder.write_spec(HardwareSpec(name="example", kind="cpu"))
        folder.finish()
    if content is None:
        (folder.path / name).unlink()
    else:
        (folder.path / name).write_text(content)
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    with pytest.raises(RequestError, match=message):
        RunFolder.open_for_resume(folder.path)
    assert {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("run.json", "restore it from a copy"),
        ("spec.json", "run --resume .* measures the device again"),
        ("graphs/{key}.json", "restore it, or measure its cell again: python -m profiler run --resume"),
    ],
)
def test_advice_for_one_damaged_file_keeps_the_others(
    name: str, advice: str, tmp_path: Path, run: Run, result: CellResult, graph: OpGraph
) -> None:
    with _filled(tmp_path, run, result, graph) as folder:
        folder.write_spec(HardwareSpec(name="example", kind="cpu"))
    path = folder.path / name.format(key=result.cell.key)
    path.write_text("{")
    with pytest.raises(RequestError, match=advice) as refusal:
        again = RunFolder.open(folder.path)
        again.read_spec()
        again.read_graph(str(result.graph))
    assert str(refusal.value).startswith(str(path))
    assert "delete its folder" not in str(refusal.value)


def test_a_very_long_name_of_a_model_still_makes_a_file(tmp_path: Path, run: Run, cell: Cell, graph: OpGraph) -> None:
    long = cell.model_copy(update={"model": "a" * 300})
    other = cell.model_copy(update={"model": "a" * 301})
    with RunFolder.create(tmp_path, run) as folder:
        names = {folder.write_graph(long, graph), folder.write_graph(other, graph)}
        assert len(names) == 2
        assert all(folder.read_graph(name) == graph for name in names)


def test_only_the_writer_writes(tmp_path: Path, run: Run, result: CellResult) -> None:
    with RunFolder.create(tmp_path, run) as folder:
        with pytest.raises(RuntimeError, match="opened to read"):
            RunFolder.open(folder.path).append(result)
        with pytest.raises(RequestError, match=f"being written by process {os.getpid()}"):
            RunFolder.open_for_resume(folder.path)
    with pytest.raises(RuntimeError, match="or closed"):
        folder.append(result)
    assert not (folder.path / ".lock").exists()


def test_resume_knows_what_is_done_and_what_failed(
    tmp_path: Path, run: Run, result: CellResult, graph: OpGraph, decode_cell: Cell
) -> None:
    with _filled(tmp_path, run, result, graph) as folder:
        folder.append(CellResult(cell=decode_cell, status="failed", reason="out of memory"))
    resumed, done = RunFolder.open_for_resume(folder.path)
    with resumed:
        assert done == {result.cell.key}
        better = CellResult(cell=decode_cell, status="done")
        resumed.append(better)
        assert resumed.results() == [result, better]


def test_a_finished_run_can_be_resumed(
    tmp_path: Path, run: Run, result: CellResult, graph: OpGraph, decode_cell: Cell
) -> None:
    with _filled(tmp_path, run, result, graph) as folder:
        folder.finish()
    resumed, done = RunFolder.open_for_resume(folder.path)
    with resumed:
        assert done == {result.cell.key}
        assert RunFolder.open(folder.path).run.finished is None
        more = CellResult(cell=decode_cell, status="done")
        resumed.append(more)
        resumed.finish()
    assert RunFolder.open(folder.path).results() == [result, more]


def test_resume_after_a_torn_line_measures_that_cell_again(
    tmp_path: Path, run: Run, result: CellResult, graph: OpGraph
) -> None:
    with _filled(tmp_path, run, result, graph) as folder:
        pass
    journal = folder.path / "journal.jsonl"
    journal.write_bytes(journal.read_bytes() + b'{"cell": {"mod')
    resumed, done = RunFolder.open_for_resume(folder.path)
    with resumed:
        assert done == {result.cell.key}
        better = result.model_copy(update={"wall_s": (1.0,)})
        resumed.append(better)
        assert resumed.results() == [better]


def test_a_resume_that_fails_leaves_the_folder_free(
    tmp_path: Path, run: Run, result: CellResult, graph: OpGraph
) -> None:
    with _filled(tmp_path, run, result, graph) as folder:
        pass
    journal = folder.path / "journal.jsonl"
    whole = journal.read_bytes()
    journal.write_bytes(b"garbage\n" + whole)
    with pytest.raises(RequestError, match="line 1 is damaged"):
        RunFolder.open_for_resume(folder.path)
    journal.write_bytes(whole)
    resumed, done = RunFolder.open_for_resume(folder.path)
    with resumed:
        assert done == {result.cell.key}


@pytest.mark.starts_product
def test_kill_9_keeps_what_was_measured_and_frees_the_lock(
    tmp_path: Path, run: Run, result: CellResult, graph: OpGraph
) -> None:
    (tmp_path / "run").write_text(run.model_dump_json())
    (tmp_path / "result").write_text(result.model_dump_json())
    (tmp_path / "graph").write_text(graph.model_dump_json())
    program = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from profiler.record.run import CellResult, Run
        from profiler.record.folder import RunFolder
        from roofline.graph.op import OpGraph
        from profiler.record.folder import RunFolder
        from roofline.graph.op import OpGraph
        base = Path(sys.argv[1])
        result = CellResult.model_validate_json((base / "result").read_text())
        folder = RunFolder.create(base, Run.model_validate_json((base / "run").read_text()))
        folder.write_graph(result.cell, OpGraph.model_validate_json((base / "graph").read_text()))
        folder.append(result)
        print(folder.path, flush=True)
        time.sleep(600)
    """)
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        path = Path(child.stdout.readline().strip())
        with pytest.raises(RequestError, match=f"being written by process {child.pid}"):
            RunFolder.open_for_resume(path)
        child.send_signal(signal.SIGKILL)
        child.wait()
    resumed, done = RunFolder.open_for_resume(path)
    with resumed:
        assert done == {result.cell.key}
        resumed.finish()
    assert RunFolder.open(path).results() == [result]


@pytest.mark.parametrize("below", ["file", "file/deeper"])
def test_unwritable_results_are_a_wrong_request(tmp_path: Path, run: Run, below: str) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RequestError, match=r"cannot write results under .*; choose another folder with --out"):
        RunFolder.create(tmp_path / below, run)


def test_what_is_no_run_folder_is_refused(tmp_path: Path, run: Run) -> None:
    with pytest.raises(RequestError, match="no run folder at"):
        RunFolder.open(tmp_path / "nothing")
    with pytest.raises(RequestError, match=r"has no run\.json"):
        RunFolder.open(tmp_path)
    with pytest.raises(RequestError, match=r"has no run\.json"):
        RunFolder.open_for_resume(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_or_newer_table_is_refused(
    tmp_path: Path, run: Run, result: CellResult, graph: OpGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _filled(tmp_path, run, result, graph) as folder:
        folder.finish()
    with monkeypatch.context() as later:
        later.setattr(pass_table, "TABLE", replace(pass_table.TABLE, schema_version=0))
        with pytest.raises(RequestError, match="newer roofcal"):
            folder.results()
    table = folder.path / "measurements.parquet"
    table.write_bytes(table.read_bytes()[:-20])
    with pytest.raises(RequestError, match=r"measurements\.parquet.*; restore it, or measure in a new run"):
        folder.results()
    empty = pa.table({"x": [1]}).replace_schema_metadata(
        {METADATA_KEY: json.dumps({"schema_version": 1, "cells": [{}]})}
    )
    pq.write_table(empty, table)
    with pytest.raises(RequestError, match="is no whole table of results"):
        folder.results()
    duckdb.sql(f"COPY (SELECT 1 AS x) TO '{table}' (FORMAT parquet)")
    with pytest.raises(RequestError, match=r"measurements\.parquet.*; restore it, or measure in a new run"):
        folder.results()


def test_an_operation_that_is_not_in_the_graph_is_refused(
    tmp_path: Path, run: Run, result: CellResult, graph: OpGraph
) -> None:
    extra = result.ops[0].model_copy(update={"op": 2})
    with _filled(tmp_path, run, result, graph) as folder:
        folder.append(result.model_copy(update={"ops": (*result.ops, extra)}))
        with pytest.raises(ValueError, match="measured operation 2; its graph has 2"):
            folder.finish()
        assert RunFolder.open(folder.path).run.finished is None


def test_duckdb_reads_across_runs(tmp_path: Path, run: Run, result: CellResult, graph: OpGraph) -> None:
    for name in ("one", "two"):
        with _filled(tmp_path, run.model_copy(update={"name": name}), result, graph) as folder:
            folder.finish()
    documented = str(pass_table.__doc__)
    example = documented[documented.index("duckdb.sql(") :].replace("results/*", f"{tmp_path}/*")
    rows = {row[:-1]: row[-1] for row in eval(example).fetchall()}
    about = (run.environment.device, "example", "prefill")
    # two runs; the addition stands for three executions
    assert rows == pytest.approx({(*about, "matmul"): 2 * 3e-6, (*about, "pointwise"): 2 * 3 * 1e-6})


def test_run_json_is_readable_by_people(tmp_path: Path, run: Run) -> None:
    with RunFolder.create(tmp_path, run) as folder:
        text = (folder.path / "run.json").read_text()
    assert text.count("\n") > 10
    assert json.loads(text)["schema_version"] == RUN_SCHEMA


def test_kernels_of_a_compiled_pass_survive_finishing(
    tmp_path: Path, run: Run, result: CellResult, graph: OpGraph
) -> None:
    cell = result.cell.model_copy(update={"mode": "compile"})
    kernels = (
        KernelTimes(name="triton_poi_0", ops=(0, 1), device_s=(1e-6, 2e-6), gap_s=(0.0, 1e-7)),
        KernelTimes(name="aten::mm", ops=(0,), device_s=(3e-6, 4e-6), gap_s=(0.0, 0.0)),
    )
    compiled = result.model_copy(
        update={"cell": cell, "graph": f"graphs/{cell.key}.json", "ops": (), "kernels": kernels}
    )
    with RunFolder.create(tmp_path, run) as folder:
        for one in (result, compiled):
            folder.write_graph(one.cell, graph)
            folder.append(one)
        folder.finish()
    assert RunFolder.open(folder.path).results() == [result, compiled]
    found = duckdb.sql(
        f"SELECT path, name, len(samples) FROM read_parquet('{folder.path}/measurements.parquet') WHERE what = 'kernel'"
    ).fetchall()
    assert found == [("lin + (model)", "triton_poi_0", 2), ("lin", "aten::mm", 2)]


def test_cells_of_different_modes_have_keys_of_their_own(cell: Cell) -> None:
    keys = {cell.model_copy(update={"mode": mode}).key for mode in get_args(Mode)}
    assert len(keys) == 4 and cell.key in keys and f"{cell.key}-cuda-graph" in keys


def test_the_latest_result_of_a_cell_counts(tmp_path: Path, run: Run, result: CellResult, decode_cell: Cell) -> None:
    failed = result.model_copy(update={"status": "failed"})
    other = result.model_copy(update={"cell": decode_cell})
    with RunFolder.create(tmp_path, run) as folder:
        for each in (failed, other, result):
            folder.append(each)
        assert folder.results() == [result, other]
