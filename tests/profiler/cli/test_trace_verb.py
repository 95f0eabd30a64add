"""`trace` from the command line: its outputs, and one line for each file that it refuses."""

import csv
import gzip
import json
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from profiler.attribution import nsys, timeline
from profiler.cli.app import main

TIMELINES = Path(__file__).parents[2] / "data" / "timelines"
QWEN, GRAPH, NSYS = (
    str(TIMELINES / n) for n in ("h100_eager_qwen.json.gz", "vllm_decode_graph.json.gz", "nsys_2gpu.sqlite")
)


def test_ranks_files_and_outputs_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, page = tmp_path / "kernels.csv", tmp_path / "page.html"
    assert main(["trace", GRAPH, NSYS, "--json", "--csv", str(table), "--html", str(page)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [(rank["file"], rank["device"]) for rank in document["ranks"]] == [
        ("vllm_decode_graph.json.gz", 2), ("nsys_2gpu.sqlite", 0), ("nsys_2gpu.sqlite", 1),
    ]  # fmt: skip
    for rank in document["ranks"]:
        window_s = rank["closure"]["window_s"]
        assert sum(row["total_s"] for row in rank["kernels"]) == pytest.approx(rank["closure"]["kernel_s"])
        assert sum(row["total_s"] for row in rank["kinds"]) == pytest.approx(window_s)
        assert rank["compute_s"] + rank["exposed_collective_s"] + rank["exposed_memory_s"] == pytest.approx(
            rank["busy_s"]
        )
        assert 0 <= rank["idle"] < 1 and rank["busy_s"] <= rank["span_s"] * (1 + 1e-9)
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(len(rank["kernels"]) for rank in document["ranks"])
    assert "kernel_unified_attention_3d" in page.read_text(encoding="utf-8")


def test_the_terminal_says_what_lies_before_the_window(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", QWEN]) == 0
    shown = capsys.readouterr().out
    assert "launched before the window" in shown and "40 kernels" in shown and "Qwen2DecoderLayer" in shown


def test_layers_and_steps_are_compared_with_a_device(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", QWEN, "--hardware", "nvidia-h100-sxm"]) == 0
    shown = capsys.readouterr().out
    assert "Layers, measured against nvidia-h100-sxm" in shown and "has a price" in shown
    assert main(["trace", GRAPH, "--hardware", "amd-mi300x", "--model", "gpt-oss-20b", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    (rank,) = document["ranks"]
    assert (document["hardware"], document["model"]) == ("amd-mi300x", "gpt-oss-20b")
    assert {row["part"] for row in rank["parts"]} >= {"experts", "attention", "products with weights"}
    assert all(set(row) >= {"measured_s", "predicted_s", "error"} for row in (*rank["parts"], *rank["layers"]))
    measured = sum(row["measured_s"] for row in rank["parts"])
    assert measured == pytest.approx(sum(sum(step["kinds"].values()) for step in rank["steps"]))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((GRAPH, "--model", "gpt-oss-20b"), "name one with --hardware"),
        ((GRAPH, "--hardware", "nvidia-h1000"), "nvidia-h100"),
        ((GRAPH, "--hardware", "amd-mi300x", "--model", "gpt-oss-21b"), "gpt-oss-20b"),
        ((GRAPH, "--hardware", "amd-mi300x", "--model", "gpt-oss-20b", "--engine", "vlm"), "vllm"),
        ((QWEN, "--hardware", "nvidia-h100-sxm", "--model", "qwen3-8b"), "no step states its sizes"),
        (
            (GRAPH, "--hardware", "amd-mi300x", "--model", "gpt-oss-20b", "--what-if", "tensor_parallel:degree=7"),
            "7",
        ),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["trace", *arguments]) == 2
    shown = capsys.readouterr()
    assert said in shown.err and len(shown.err.strip().splitlines()) <= 2 and shown.out == ""


def event(name: str = "ncclDevKernel_AllReduce_Sum_bf16_RING_LL", **changes: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": "kernel", "name": name, "pid": 0, "tid": 7, "ts": 1.5, "dur": 2.0,
            "args": {"device": 0, "stream": 7, "correlation": 3}} | changes  # fmt: skip


def test_metadata_and_control_characters_never_come_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "t.json"
    spans = [event("\x1b[31mred\x07", args={"device": 0, "stream": 7, "env": "SECRET"}), event(ts=9.0),
             event("cudaLaunchKernel", cat="cuda_runtime", ts=1.0, dur=0.1, args={"correlation": 3, "x": "SECRET"}),
             event("my annotation SECRET", cat="user_annotation", ts=0.5, dur=99.0)]  # fmt: skip
    path.write_text(
        json.dumps({"HF_TOKEN": "SECRET", "traceEvents": [{"ph": "M", "args": {"name": "SECRET"}}, *spans]})
    )
    page, table = tmp_path / "p.html", tmp_path / "k.csv"
    assert main(["trace", str(path), "--html", str(page), "--csv", str(table)]) == 0
    assert main(["trace", str(path), "--json"]) == 0
    out, err = capsys.readouterr()
    for text in (out, err, page.read_text(encoding="utf-8"), table.read_text(encoding="utf-8")):
        assert "SECRET" not in text and "\x1b[31m" not in text and "\x07" not in text
    assert json.loads(out[out.index("{\n") :])["ranks"][0]["kinds"][0]["kind"] == "collective"


def database(path: Path, *statements: str) -> None:
    with sqlite3.connect(path) as made:
        for statement in statements:
            made.execute(statement)
    made.close()


KERNEL = (
    'CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL(start, "end", deviceId, streamId, correlationId, globalPid, shortName)'
)
ENDLESS = (
    "CREATE VIEW StringIds AS WITH RECURSIVE n(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n) "
    "SELECT id, id value FROM n"
)
HEAVY = "CREATE TABLE StringIds(id, value AS (zeroblob(900000000)))"


def test_each_bad_file_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Path(QWEN).read_bytes()
    monkeypatch.setattr(timeline, "MOST_BYTES", 1 << 20)
    contents: dict[str, bytes] = {
        "empty": b"",
        "cut.json.gz": whole[: len(whole) // 2],
        "cut.json": gzip.decompress(whole)[:5000],
        "bomb.json.gz": gzip.compress(b" " * (2 << 20)),
        "foreign.json": b'{"cells": []}',
        "list.json": b"[1, 2]",
        "image": b"\x89PNG\r\n\x1a\n",
        "deep.json": b"[" * 100_000,
        "digits.json": b'{"traceEvents": [' + b"9" * 5000 + b"]}",
        "no_kernels.json": b'{"traceEvents": []}',
        "no_time.json": json.dumps({"traceEvents": [{k: v for k, v in event().items() if k != "dur"}]}).encode(),
        "nan.json": json.dumps({"traceEvents": [event(ts=float("nan"))]}).encode(),
        "strings.json": json.dumps({"traceEvents": [event(ts="1", args=[])]}).encode(),
        "cut.sqlite": Path(NSYS).read_bytes()[:9000],
        "magic.sqlite": nsys.MAGIC,
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    database(tmp_path / "other.sqlite", "CREATE TABLE t(a)")
    database(tmp_path / "view.sqlite", KERNEL, ENDLESS)
    database(tmp_path / "heavy.sqlite", KERNEL, HEAVY, "INSERT INTO StringIds VALUES(1)")
    database(tmp_path / "text.sqlite", KERNEL, "CREATE TABLE StringIds(id, value)",
             "INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL VALUES('a', 'b', 0, 0, 0, 0, 0)")  # fmt: skip
    os.mkfifo(tmp_path / "pipe")
    for name in (*contents, "other.sqlite", "view.sqlite", "heavy.sqlite", "text.sqlite", "pipe", "missing", "."):
        assert main(["trace", str(tmp_path / name)]) == 2, name
        out, err = capsys.readouterr()
        lines = [line for line in err.splitlines() if not line.startswith("[")]
        assert out == "" and len(lines) == 1 and lines[0].startswith("error: "), (name, err)
        assert len(lines[0]) < 500
        assert "when unpacked" in err or name != "bomb.json.gz"


def test_rows_without_end_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nsys, "MOST_ROWS", 10)
    assert main(["trace", NSYS]) == 2
    assert "above 10 rows" in capsys.readouterr().err
    assert main(["trace", NSYS, "--csv", NSYS]) == 2
    assert "would overwrite" in capsys.readouterr().err
