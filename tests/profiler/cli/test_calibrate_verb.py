"""`calibrate` as a user runs it, on runs with a made-up table of kernels."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from calibrate_samples import products

from profiler.cli.app import main
from profiler.record.folder import RunFolder
from profiler.record.kernel_table import COLUMNS, Kernels, Source, write_kernels
from profiler.record.run import Environment, Run
from roofline.hardware.load import load_device
from roofline.hardware.spec import HardwareSpec

KEYS = {"kind", "dtype", "points", "scored", "mape", "median", "p90", "time_weighted", "bias", "coverage",
        "datasheet_mape", "four_constant_mape"}  # fmt: skip


def make(base: Path, environment: Environment, name: str, spec: HardwareSpec, seed: int = 0) -> str:
    table = products(seed)
    rows = len(table)
    columns = {field.name: pa.nulls(rows, field.type) for field in COLUMNS}
    columns |= {dim: pa.array(np.asarray(column)) for dim, column in table.dims.items()}
    columns |= {name: pa.array([word] * rows) for name, word in (("kind", "matmul"), ("dtype", "bfloat16"))}
    columns |= {"time_s": pa.array(table.time_s), "group": pa.array(table.group.tolist())}
    source = Source(file="x", sha256="0", format="aiconfigurator", unit="ms", rows=rows, timed=rows, kept=rows)
    run = Run(
        name=name, started="2026-05-09T10:11:12+00:00", command=(), environment=environment, cells=(),
        options={"format": "aiconfigurator"},
    )  # fmt: skip
    with RunFolder.create(base, run) as folder:
        write_kernels(folder.path, Kernels(pa.table(columns, schema=COLUMNS), (source,)))
        folder.write_spec(spec)
        folder.finish()
    return str(folder.path.resolve())


@pytest.fixture
def run_path(tmp_path: Path, environment: Environment) -> str:
    return make(tmp_path, environment, "table", load_device("nvidia-a100-sxm-80gb"))


def test_json_and_the_spec(run_path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", run_path, "--points", "40", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (kind,) = found["kinds"]
    assert kind.keys() >= KEYS
    assert (kind["kind"], kind["dtype"], kind["scored"]) == ("matmul", "bfloat16", 90)
    assert kind["points"] <= 40 and 0 < kind["mape"] < 1
    (law,) = load_device(found["spec"]).calibrated
    assert (law.kind, law.points) == ("matmul", kind["points"])


def test_scoring_another_run(
    run_path: str, tmp_path: Path, environment: Environment, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make(tmp_path, environment, "other", load_device("nvidia-a100-sxm-80gb"), seed=1)
    out = tmp_path / "spec.json"
    asked = ["calibrate", run_path, "--score", other, "--points", "40", "--out", str(out)]
    assert main([*asked, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kinds"][0]["scored"] == 180
    assert main(asked) == 0
    assert "held out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--points", "5"], "constants, and 5 points"),
        (["--kind", "scan"], "--kind scan: the runs have no such kernels; they have matmul"),
        (["--hardware", "no-such"], "no device or JSON file"),
    ],
)
def test_a_wrong_request(run_path: str, more: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", run_path, *more]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_what_a_datasheet_does_not_say_is_told(run_path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", run_path, "--hardware", "nvidia-h200-nvl"]) == 0
    assert "assumed: chip.last_level_cache_bytes" in capsys.readouterr().err


def test_a_run_named_twice_and_one_without_kernels(
    run_path: str, tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["calibrate", run_path, "--score", run_path]) == 2
    assert "named twice" in capsys.readouterr().err
    with RunFolder.create(tmp_path, run) as folder:
        path = folder.path
    assert main(["calibrate", str(path)]) == 2
    assert "holds no measured kernels" in capsys.readouterr().err


def test_a_spec_never_overwrites_the_runs_own_tables(run_path: str, capsys: pytest.CaptureFixture[str]) -> None:
    table = Path(run_path) / "kernels.parquet"
    before = table.read_bytes()
    link = Path(run_path).parent / "link"
    link.symlink_to(table)
    for name, said in (
        (str(table), "would overwrite"),
        (str(link), "would overwrite"),
        (f"{run_path}/run.json", "would overwrite"),
        ("", "names no file"),
        (run_path, "is a folder"),
    ):
        assert main(["calibrate", run_path, "--points", "40", "--out", name]) == 2, name
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1, (name, err)
    assert table.read_bytes() == before
