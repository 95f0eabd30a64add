"""Files that earlier roofcals wrote are still read: one of every schema is in tests/data/runs."""

import json
import shutil
from pathlib import Path

import pytest

from calibrate.passes.reports import load
from profiler.cli.app import main
from profiler.record.folder import RunFolder
from profiler.record.hardware_table import HardwareLog, read_measurements
from profiler.record.kernel_table import LATER, count_kernels, read_kernels
from profiler.record.run import RUN_SCHEMA
from roofline.hardware.spec import SPEC_SCHEMA

STORED = Path(__file__).parents[2] / "data" / "runs"
RUNS = sorted(STORED.glob("schema*"))


def test_there_is_a_file_of_every_schema() -> None:
    def schemas(name: str) -> set[int]:
        return {json.loads(path.read_text())["schema_version"] for path in STORED.glob(f"schema*/finished/{name}")}

    assert schemas("run.json") == set(range(1, RUN_SCHEMA + 1))
    assert schemas("spec.json") == set(range(1, SPEC_SCHEMA + 1))


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.name)
def test_a_run_of_an_earlier_schema_is_read_shown_and_resumed(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, unfinished = RunFolder.open(path / "finished"), RunFolder.open(path / "unfinished")
    assert folder.results() == unfinished.results()
    done, failed = folder.results()
    assert (done.status, failed.status, failed.reason) == ("done", "failed", "out of memory")
    assert [times.device_s for times in done.ops] == [(3e-6, 3e-6), (1e-6, 1e-6)]
    spec = folder.read_spec()
    assert spec is not None and spec.measured is not None and spec.measured.levels[-1].bandwidth.value == 320e9
    (report,), (without,) = load(folder)
    assert report.wall_s == pytest.approx(5.625e-6 * (6e-6 + 3.0e-6) / 6e-6)  # the addition stands for three
    assert report.busy_s == pytest.approx(3e-6 + 3 * 1e-6) and without == failed
    assert main(["show", str(folder.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["passes"][0]["busy_s"] == report.busy_s

    shutil.copytree(path, tmp_path / "copy")
    for name in ("finished", "unfinished"):
        resumed, keys = RunFolder.open_for_resume(tmp_path / "copy" / name)
        with resumed:
            assert keys == {done.cell.key} and resumed.results() == [done, failed]
        assert json.loads((resumed.path / "run.json").read_text())["schema_version"] == RUN_SCHEMA


def test_the_first_table_of_kernels_is_read() -> None:
    kernels = read_kernels(STORED / "kernels-schema1")
    assert kernels.counts() == count_kernels(STORED / "kernels-schema1") == {("matmul", "bfloat16"): 3}
    assert kernels.table["m"].to_pylist() == [1, 64, 64] and kernels.sources[0].kept == 3
    assert all(kernels.table[name].null_count == 3 for name in LATER)


def test_the_first_characterisation_is_read() -> None:
    finished, unfinished = STORED / "hardware-schema1" / "finished", STORED / "hardware-schema1" / "unfinished"
    assert RunFolder.open(finished).content == RunFolder.open(unfinished).content == "hardware"
    copied, failed = read_measurements(finished)
    assert read_measurements(unfinished) == [copied, failed]
    assert copied.value() == pytest.approx(1e9 / 0.0202) and failed.reason == "out of memory"
    log = HardwareLog(unfinished, mend=False)
    assert (log.shapes, log.layouts, log.done) == ({"float32": (512, 768, 256)}, {}, {(1, "memory")})
