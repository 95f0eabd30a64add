"""`predict --workloads`: every row gets the time that `predict` gives it, sharded or not, and bad rows are named."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from each import each

from profiler.cli.app import main

DEVICES = "nvidia-l4,amd-mi300x"


def table(path: Path, **columns: Any) -> str:
    rows = {"batch": [1, 2, 3, 4, 1, 2, 3], "query_tokens": [1] * 7, "context_tokens": [9, 8, 7, 60, 50, 40, 30]}
    pq.write_table(pa.table({"id": list("abcdefg"), **rows, **columns}), path)
    return str(path)


def test_rows_have_the_times_of_predict_and_shards_make_the_whole(saved: str, tmp_path: Path, ask: Any) -> None:
    source, out = table(tmp_path / "in.parquet"), tmp_path / "out.parquet"
    asked = ["predict", "--graph", saved, "--hardware", DEVICES, "--workloads", source]
    assert main([*asked, "--out", str(out)]) == 0
    rows = pq.read_table(out).to_pylist()
    assert [row["id"] for row in rows] == list("abcdefg")
    for row in rows[:4:3]:
        sizes = ["--phase", "decode", "--batch", str(row["batch"]), "--context", str(row["context_tokens"])]
        for device in DEVICES.split(","):
            (found,) = ask("--graph", saved, "--hardware", device, *sizes)["workloads"]
            assert row[f"time_s {device}"] == pytest.approx(found["total"]["time_s"], rel=1e-9)
    parts = []
    for shard in ("1/3", "2/3", "3/3"):
        assert main([*asked, "--out", str(tmp_path / "part.parquet"), "--shard", shard]) == 0
        parts += pq.read_table(tmp_path / "part.parquet").to_pylist()
    for part, row in zip(parts, rows, strict=True):  # sums of blocks of other sizes differ in the last bit
        assert part == {name: pytest.approx(value, rel=1e-12) if name.startswith("time_s") else value
                        for name, value in row.items()}  # fmt: skip


@each(
    ("columns", "problem"),
    [
        ({"batch": [1, 2, 0, 4, 1, 2, 3]}, "row 3: batch is 0, not a whole number from 1"),
        ({"context_tokens": [1, None, 3, 4, 5, 6, 7]}, "context_tokens is"),
        ({"query_tokens": [1.0] * 7}, "there is no column query_tokens of whole numbers"),
        ({"query_tokens": [2**39] * 7}, "batch × tokens is beyond any memory"),
        ({"time_s x": [0.0] * 7}, "column 'time_s x' would be overwritten"),
    ],
)
def test_a_row_that_is_no_workload_is_named_and_nothing_is_written(
    columns: dict[str, Any], problem: str, saved: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = table(tmp_path / "in.parquet", **columns), tmp_path / "out.parquet"
    code = main(["predict", "--graph", saved, "--hardware", "nvidia-l4", "--workloads", source, "--out", str(out)])
    told = capsys.readouterr().err
    assert code == 2 and problem in told and told.count("\n") == 1 and not out.exists()


@each(
    ("arguments", "problem"),
    [
        (["--workloads", "SOURCE"], "name it with --out"),
        (["--workloads", "SOURCE", "--out", "OUT", "--batch", "4"], "--batch means nothing to --workloads"),
        (["--workloads", "SOURCE", "--out", "SOURCE"], "would overwrite"),
        (["--workloads", "nowhere", "--out", "OUT"], "no file nowhere of workloads"),
        (["--shard", "1/2"], "--shard means nothing without --workloads"),
        (["--workloads", "TEXT", "--out", "OUT"], "holds no workloads"),
    ],
)
def test_a_wrong_request_is_one_line(
    arguments: list[str], problem: str, saved: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = table(tmp_path / "in.parquet")
    (tmp_path / "text").write_text("batch,query_tokens")
    names = {"SOURCE": source, "OUT": str(tmp_path / "out.parquet"), "TEXT": str(tmp_path / "text")}
    given = [names.get(word, word) for word in arguments]
    assert main(["predict", "--graph", saved, "--hardware", "nvidia-l4", *given]) == 2
    told = capsys.readouterr().err
    assert problem in told and told.count("\n") == 1
