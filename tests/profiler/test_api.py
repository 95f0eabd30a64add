"""The notebook's calls: docs/api.md as it is written, and the command line, which must say the same."""

import importlib.util
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hardware_samples
import pandas as pd
import pytest
import report_samples
import yaml
from each import each

from profiler.api import RequestError, load, predict, price
from profiler.cli.app import main
from profiler.record.folder import RunFolder
from profiler.record.hardware_table import HardwareLog
from profiler.record.run import CellResult, Run
from roofline.graph.op import OpGraph
from roofline.hardware.load import load_device

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def run_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run, result: CellResult, graph: OpGraph) -> Path:
    """A finished run with one measured and one failed cell."""
    monkeypatch.chdir(tmp_path)
    with RunFolder.create(tmp_path / "results", run) as folder:
        folder.write_spec(report_samples.CPU)
        folder.write_graph(result.cell, graph)
        folder.append(result)
        folder.append(CellResult(cell=run.cells[1], status="failed", reason="out of memory: 3 GB wanted"))
        folder.finish()
    return folder.path


def test_the_documents_code_runs(run_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space: dict[str, Any] = {}
    assert len(BLOCKS) == 4
    for block in BLOCKS:
        exec(block, space)
    shown = capsys.readouterr().out
    assert "lm_head" in shown and "mkl" not in shown
    assert space["table"].groupby(["hardware", "batch"]).ngroups == 4
    assert space["sweep"].tokens_per_s.is_monotonic_increasing and len(space["sweep"]) == 8
    assert 0.5 <= float(shown.split()[-1]) < 1, "twice the bandwidth saves up to half"
    assert (space["changed"].measured_s == space["own"].measured_s).all()


def csv_of(arguments: list[str], path: Path) -> pd.DataFrame:
    assert main([*arguments, "--csv", str(path)]) == 0
    return pd.read_csv(io.StringIO(path.read_text()))


def same(one: pd.DataFrame, other: pd.DataFrame) -> None:
    """Equal when both have been through CSV."""
    pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(one.to_csv(index=False))), other)


def test_predict_says_what_the_command_says(tmp_path: Path) -> None:
    asked = ["predict", "gpt2", "--hardware", "nvidia-l4", "--phase", "decode", "--context", "64", "--batch", "2"]
    table = csv_of([*asked, "--what-if", "quantise:weights=4"], tmp_path / "a.csv")
    how: dict[str, Any] = {"phase": "decode", "context": 64, "batch": 2, "what_if": "quantise:weights=4"}
    same(predict("gpt2", load_device("nvidia-l4"), by="op", **how), table)
    whole = predict("gpt2", "nvidia-l4", by="workload", **how)
    kinds = predict("gpt2", "nvidia-l4", **how)
    assert kinds.time_s.sum() == pytest.approx(whole.time_s.item()) == pytest.approx(table.time_s.sum())


def test_load_says_what_the_command_says(run_path: Path, tmp_path: Path) -> None:
    layers = load("last")
    same(layers, csv_of(["show", "last"], tmp_path / "b.csv"))
    assert list(layers.status)[-1] == "failed" and "3 GB" in list(layers.reason)[-1]
    assert load(run_path, hardware="nvidia-l4").predicted_s.isna().all(), "a datasheet has no measured peaks"


def test_a_characterisation_is_loaded_as_its_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec, measurements, run = hardware_samples.gpu()
    with RunFolder.create(tmp_path, run.model_copy(update={"finished": None})) as folder:
        log = HardwareLog(folder.path)
        for one in measurements:
            log.append(one)
        folder.write_spec(spec)
        log.finish(folder.run)
        folder.finish()
    assert main(["show", str(folder.path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["figures"]
    figures = load(folder.path)
    assert list(figures.name) == [figure["name"] for figure in told]
    assert figures.value.sum() == pytest.approx(sum(figure["value"] or 0 for figure in told))


def test_price_has_each_operation_as_often_as_the_pass_adds_up(run_path: Path, graph: OpGraph) -> None:
    table = price("last")
    assert list(table.path) == [op.path for op in graph.ops] and list(table["count"]) == [1, 3]
    assert list(table.measured_s) == [3e-6, 1e-6] and list(table.gap_s) == [1e-6, 0.5e-6]
    measured = load("last").dropna(subset="measured_s")
    assert (table.measured_s * table["count"]).sum() == pytest.approx(measured.measured_s.sum())
    assert (table.executed_s * table["count"]).sum() == pytest.approx(measured.predicted_s.sum())
    assert table.ideal_s.isna().all() and price("last", "nvidia-l4").ideal_s.notna().all()
    matmul = table.iloc[0]
    peaks = report_samples.CPU_MEASURED
    assert matmul.executed_s >= matmul.matrix_flops / peaks.matrix["float32"].value > 0


@each(
    ("call", "said"),
    [
        (lambda: predict("graphs.json", "nvidia-l4"), "cannot read graphs.json"),
        (lambda: predict("gpt2", "nvidia-l5"), "did you mean"),
        (lambda: predict("gpt2", []), "name a device"),
        (lambda: predict("gpt2", "nvidia-l4", batch=0), "--batch"),
        (lambda: predict("gpt2", "nvidia-l4", phase="decode", by="row"), "no table by 'row'"),
        (lambda: predict("gpt2", "nvidia-l4", phase="decode", batch=range(1, 9)), "by workload"),
        (lambda: load("nothing"), "no run 'nothing'"),
        (lambda: price("nothing"), "no run 'nothing'"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    call: Callable[[], object], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError) as refusal:
        call()
    assert said in str(refusal.value) and "\n" not in str(refusal.value)


def test_runs_are_read_without_torch(run_path: Path) -> None:
    program = (
        "import sys\n"
        "from profiler.api import load, price\n"
        "assert len(load('last')) and len(price('last'))\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_site_has_every_document_and_documents_modules_that_there_are(tmp_path: Path) -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    pages = [page for entry in site["nav"] for page in entry.values()]
    assert sorted(pages) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))
    modules = re.findall(r"^::: (\S+)$", (ROOT / "docs" / "reference.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(modules) > 5 and all((ROOT / f"{name.replace('.', '/')}.py").is_file() for name in modules)
    if any(importlib.util.find_spec(name) is None for name in ("mkdocs", "mkdocstrings")):
        return  # an optional extra
    built = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(built, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
