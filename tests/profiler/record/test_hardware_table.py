"""The journal and the table of a characterisation: nothing is lost, nothing is made up."""

import json
from dataclasses import replace
from pathlib import Path

import duckdb
import pytest
from microbench_samples import characterised, lost, measured

from profiler.record import hardware_table
from profiler.record.files import HARDWARE, HARDWARE_JOURNAL
from profiler.record.hardware_table import HardwareLog, count_measurements, read_measurements
from profiler.record.run import Environment, RequestError, Run

RUN = Run(
    name="hardware",
    started="2026-01-02T03:04:05+00:00",
    command=(),
    environment=Environment(
        device="CPU", device_kind="cpu", cores=2, threads=2, memory_bytes=1 << 34, hostname="h", os="o", python="3",
        versions={},
    ),
    cells=(),
)  # fmt: skip


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    log = HardwareLog(tmp_path)
    assert count_measurements(tmp_path) == 0 and read_measurements(tmp_path) == []
    for one in characterised():
        log.append(one)
    log.choose("bfloat16", (512, 768, 256), "n×k")
    log.close_part(1, "memory")
    again = HardwareLog(tmp_path)
    assert again.measurements == characterised()
    assert again.layouts == {"bfloat16": "n×k"}
    assert again.shapes == {"bfloat16": (512, 768, 256)} and again.done == {(1, "memory")}
    again.finish(RUN)
    assert not (tmp_path / HARDWARE_JOURNAL).exists() and count_measurements(tmp_path) == len(characterised())
    assert read_measurements(tmp_path) == characterised()


def test_a_line_that_was_cut_off_is_not_there_and_the_next_one_is_whole(tmp_path: Path) -> None:
    log = HardwareLog(tmp_path)
    log.append(measured("memory", "copy", 1e9))
    with (tmp_path / HARDWARE_JOURNAL).open("ab") as file:
        file.write(b'{"measurement": {"benchm')
    again = HardwareLog(tmp_path)
    assert len(again.measurements) == 1
    again.append(measured("memory", "read", 1e9))
    assert [one.case for one in HardwareLog(tmp_path).measurements] == ["copy", "read"]


@pytest.mark.parametrize("line", ["{", '{"measurement": {"benchmark": 1}}', '{"done": 3}', "[]"])
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / HARDWARE_JOURNAL).write_text(line + "\n")
    with pytest.raises(RequestError, match=r"line 1 is damaged .*delete the line"):
        HardwareLog(tmp_path)


def test_a_damaged_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / HARDWARE).write_bytes(b"not parquet")
    with pytest.raises(RequestError, match="measure again"):
        read_measurements(tmp_path)


def test_a_newer_table_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = HardwareLog(tmp_path)
    log.append(measured("memory", "copy", 1e9))
    monkeypatch.setattr(hardware_table, "TABLE", replace(hardware_table.TABLE, schema_version=99))
    log.finish(RUN)
    monkeypatch.undo()
    with pytest.raises(RequestError, match="newer roofcal"):
        read_measurements(tmp_path)


def test_a_full_disk_keeps_what_came_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = HardwareLog(tmp_path)
    log.append(measured("memory", "copy", 1e9))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("profiler.record.files.os.fsync", full)
    with pytest.raises(RequestError, match="No space left on device; what came before it is kept"):
        log.append(measured("memory", "read", 1e9))
    monkeypatch.undo()
    assert [one.case for one in HardwareLog(tmp_path).measurements] == ["copy"]


def test_duckdb_reads_values_and_samples(tmp_path: Path) -> None:
    log = HardwareLog(tmp_path)
    log.append(measured("memory", "copy", 2e9))
    log.append(lost("memory", "read", "out of memory"))
    log.finish(RUN)
    rows = duckdb.sql(
        f"""select "case", value, len(samples), status, reason from '{tmp_path / HARDWARE}' order by "case" """
    ).fetchall()
    assert rows[0][0] == "copy" and rows[0][1] == pytest.approx(2e9) and rows[0][2] == 20
    assert rows[1] == ("read", None, 0, "failed", "out of memory")


@pytest.mark.parametrize(
    "change",
    [
        {"samples": []},
        {"samples": [1.0, -1.0]},
        {"samples": [float("inf")]},
        {"status": "failed", "reason": None},
        {"work": 0},
        {"surprise": 1},
    ],
)
def test_a_measurement_that_cannot_be_is_refused(change: dict[str, object]) -> None:
    content = json.loads(measured("memory", "copy", 1e9).model_dump_json())
    with pytest.raises(ValueError, match="validation error"):
        type(measured("memory", "copy", 1e9)).model_validate(content | change)
