"""`import` end to end: a run that `list` and `show` know, and one line for every bad request."""

import json
from dataclasses import replace
from pathlib import Path

import exchange_samples as samples
import pyarrow.parquet as pq
import pytest
from each import each

from profiler.cli.app import main
from profiler.record import kernel_table
from profiler.record.files import KERNELS, RUN_FILE
from profiler.record.folder import RunFolder
from profiler.record.kernel_table import read_kernels
from profiler.record.run import RequestError


@pytest.fixture
def table(tmp_path: Path) -> Path:
    frame = samples.gemm()
    frame.loc[2, "latency"] = -1.0
    return samples.saved(frame, tmp_path / "gemm_perf.parquet")


def test_a_run_like_any_other(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results"
    assert main(["import", "aiconfigurator", str(table), "--out", str(out), "--name", "h200", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["device"], document["datasheet"]) == ("NVIDIA H200", "nvidia-h200-sxm")
    assert (document["rows"], document["kept"]) == (24, 23)
    assert document["sources"][0]["cleaned"] == {"latency zero or negative": 1}
    folder = RunFolder.open(Path(document["run"]))
    environment = folder.run.environment
    assert folder.run.finished and (environment.cores, environment.hostname) == (None, "imported")
    assert environment.versions["VLLM"] == "0.24.0"
    assert read_kernels(folder.path).counts() == {("matmul", "fp8_block"): 12, ("matmul", "bfloat16"): 11}

    assert main(["list", "--results", str(out)]) == 0
    assert "kernels: 23 matmul" in capsys.readouterr().out
    assert main(["show", "last", "--results", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "1 left out: latency zero or negative" in shown and "fp8_block" in shown and "note: " in shown
    assert main(["show", "last", "--results", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == document


@each(
    ("arguments", "message"),
    [
        (["aiconf", "TABLE"], "did you mean aiconfigurator?"),
        (["aiconfigurator", "nothing.parquet"], "no file nothing.parquet"),
        (["aiconfigurator", "BARE"], "holds no table (none of .parquet, .csv"),
        (["aiconfigurator", "FOREIGN"], "none of 1 files is a table of aiconfigurator, the first: "),
        (["aiconfigurator", "DAMAGED"], "is damaged"),
        (["aiconfigurator", "EMPTY"], "is empty"),
        (["aiconfigurator", "TABLE", "TABLE"], "named twice"),
        (["aiconfigurator", "TABLE", "--device", "nvidia-l4"], "leave --device out"),
        (["aiconfigurator", "TABLE", "--dtype", "float16"], "--dtype"),
        (["vidur", "TABLE", "--model", "gpt2"], "--model"),
    ],
)
def test_a_bad_request_is_one_line(
    table: Path, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged, empty = tmp_path / "damaged.parquet", tmp_path / "empty.csv"
    damaged.write_bytes(table.read_bytes()[:-50])
    empty.write_text("")
    (tmp_path / "bare").mkdir(exist_ok=True)
    (tmp_path / "foreign").mkdir(exist_ok=True)
    (tmp_path / "foreign" / "x.csv").write_text("a,b\n1,2\n")
    folders = {"BARE": str(tmp_path / "bare"), "FOREIGN": str(tmp_path / "foreign")}
    given = folders | {"TABLE": str(table), "DAMAGED": str(damaged), "EMPTY": str(empty)}
    assert main(["import", *(given.get(word, word) for word in arguments), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_lost_damaged_or_newer_table_is_refused(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "results"
    assert main(["import", "aiconfigurator", str(table), "--out", str(out), "--json"]) == 0
    folder = Path(json.loads(capsys.readouterr().out)["run"])
    with monkeypatch.context() as older:
        older.setattr(kernel_table, "TABLE", replace(kernel_table.TABLE, schema_version=0))
        with pytest.raises(RequestError, match="newer roofcal"):
            read_kernels(folder)
    content = (folder / KERNELS).read_bytes()
    table_before = pq.read_table(folder / KERNELS)
    pq.write_table(table_before.drop_columns(["rows", "reach", "modules"]), folder / KERNELS)
    with pytest.raises(RequestError, match=r"checksum in run\.json is another one.*; restore it, or import it again"):
        read_kernels(folder)
    earlier = json.loads((folder / RUN_FILE).read_text()) | {"schema_version": 5}
    del earlier["tables"]
    (folder / RUN_FILE).write_text(json.dumps(earlier))
    assert read_kernels(folder).table.equals(table_before.replace_schema_metadata(None))  # an older one lacks sizes
    for lost in ("time_s", "m"):
        pq.write_table(table_before.drop_columns([lost]), folder / KERNELS)
        with pytest.raises(RequestError, match="is no whole table of kernels"):
            read_kernels(folder)
    (folder / KERNELS).write_bytes(content[:-20])
    with pytest.raises(RequestError, match=r"kernels\.parquet.*; restore it, or import it again"):
        read_kernels(folder)
    (folder / KERNELS).unlink()
    assert main(["list", "--results", str(out)]) == 0
    assert "unreadable" in capsys.readouterr().out


def test_a_folder_is_its_tables_and_what_else_lies_in_it_is_said(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "data" / "below"
    folder.mkdir(parents=True)
    table.rename(folder / table.name)
    (tmp_path / "data" / "other.csv").write_text("a,b\n1,2\n")
    (tmp_path / "data" / "README.md").write_text("no table")
    arguments = ["import", "aiconfigurator", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--json"]
    assert main(arguments) == 0
    document = json.loads(capsys.readouterr().out)
    assert [Path(source["file"]) for source in document["sources"]] == [folder / table.name]
    assert document["kept"] == 23
    (left_out,) = [words for words in document["warnings"] if "left out" in words]
    assert "other.csv" in left_out
