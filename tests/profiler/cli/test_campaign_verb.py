"""`campaign`: what a plan, a shard, and a folder give, on the terminal and as JSON, and what is refused."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import hardware_samples
import pytest
from campaigns import RUN, Machine, passed, plan, suite
from each import each
from waiting import LAST_RESORT_S, until

from profiler.cli.app import main
from profiler.record.folder import RunFolder
from profiler.record.hardware_table import HardwareLog
from roofline.hardware.spec import HardwareSpec
from scripts import gpu_campaign

ROOT = Path(__file__).parents[3]
PLAN = (
    "device: cpu\nminutes: 60\nparts:\n  - {suite: a, command: list --results RUNS, estimate_s: 60, keeps_run: false}\n"
)


@pytest.fixture
def asked(tmp_path: Path) -> str:
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN.replace("RUNS", str(tmp_path / "runs")))
    return str(path)


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """Two of three shards of a pretended machine; the third has not begun."""
    machine = Machine(tmp_path)
    for shard in (1, 2):
        machine.run(plan("doctor", suite("a"), suite("b"), suite("c")), shard=shard, shards=3, uuid=f"GPU-{shard}")
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["campaign", *arguments])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def document(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    return json.loads(said(capsys, *arguments, "--json")[1])


def test_a_plan_runs_and_the_same_command_does_nothing_again(
    tmp_path: Path, asked: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    code, shown, told = said(capsys, asked, "--out", out)
    assert code == 0 and "1 of 1 parts have ended" in shown and "a: done after" in told
    code, _, told = said(capsys, asked, "--out", out, "--json")
    assert code == 0 and told == "a: done before\n"


def test_status_and_collect_say_what_is_missing(measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, shown, _ = said(capsys, "status", str(measured))
    assert code == 3 and "3 shards: 2 finished, 1 not begun" in shown
    assert "shard 3/3 has not begun, or its folder is not here" in shown and "Parts without a result" in shown
    found = document(capsys, "status", str(measured))
    assert found["absent"] == ["3/3"] and [s["state"] for s in found["shards"]] == ["finished", "finished"]
    assert {part["status"] for part in found["parts"]} == {"done", "not begun"}
    code, shown, _ = said(capsys, "collect", str(measured))
    assert code == 3 and "NVIDIA H200" in shown and "shard 3/3 has not begun" in shown


def test_what_is_collected_is_kept(measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logs = measured / "shards" / "1-of-3" / "logs"
    kind = {"kind": "matmul", "dtype": "bfloat16", "points": 20, "scored": 30, "mape": 0.0512, "noise": None}
    shard = json.loads((logs.parent / "shard.json").read_text())
    for path in measured.glob("shards/*/shard.json"):
        path.write_text(json.dumps({**shard, "shard": int(path.parent.name[0]), "unit": f"GPU-{path.parent.name[0]}",
                                    "parts": [*shard["parts"], {"name": "held-out", "shard": 1}]}))  # fmt: skip
    line = {"part": "held-out", "status": "done", "at": "2026-11-26T10:00:00+00:00", "estimate_s": 1.0}
    with (logs.parent / "journal.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    (logs / "held-out.json").write_text(json.dumps({"kinds": [kind]}))
    keep = tmp_path / "keep"
    _, shown, _ = said(capsys, "collect", str(measured), "--keep", str(keep), "--json")
    text = (keep / "README.md").read_text()
    assert "- **device**: NVIDIA H200" in text and "torch 2.11.0, driver 580.1" in text
    assert "power cap of 600 W (in 2 parts)" in text and "- **units**: 1: GPU-1" in text
    assert "| matmul | bfloat16 | 20 | 30 | 5.12 % | – |" in text
    assert "4.00 ms | 1.00 % | −10.0 % | 3.80 ms | −5.26 % | executed | 99.5 % | done |" in text
    assert "| `c` | not begun | 3 |" in text or "| `a` | not begun | 3 |" in text or "| `b` | not begun | 3 |" in text
    assert json.loads((keep / "summary.json").read_text()) == json.loads(shown)
    assert len(list(keep.glob("?.md"))) == 2


def test_nothing_measured_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Machine(tmp_path).run(plan(suite("a", 7000)))
    code, shown, _ = said(capsys, "collect", str(tmp_path))
    assert code == 3 and "No part has come far enough" in shown and "No pass has been measured" in shown


def test_a_cell_that_failed_is_there_with_its_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine = Machine(tmp_path)
    machine.run(plan(suite("a")))
    why = "llama needs 810.1 GB for its weights, 140.2 GB are free"
    failed = {"cell": "x", "model": "llama", "phase": "decode", "batch": 64, "query_tokens": 1, "context_tokens": 9,
              "dtype": "bfloat16", "mode": "eager", "status": "failed", "reason": why}  # fmt: skip
    log = tmp_path / "shards" / "1-of-1" / "logs" / "a.json"
    log.write_text(json.dumps({"passes": [passed("gpt2")], "failed": [failed]}))
    found = document(capsys, "collect", str(tmp_path))
    assert [row["status"] for row in found["passes"]] == ["done", "failed"]
    assert found["passes"][1]["reason"] == why


def hardware_of(base: Path, unit: int, scale: float) -> None:
    """A finished run of `hardware` of one unit, whose memory is so much faster than the others'."""
    spec, measurements, run = hardware_samples.cpu()
    machine = run.environment.model_copy(update={"device_uuid": f"GPU-{unit}", "hostname": f"node{unit}"})
    figures = []
    for at, figure in enumerate(spec.characteristics):
        factor = 1 + 0.001 * ((unit * 7 + at * 3) % 11)
        factor *= scale if figure.name.startswith("memory.") else 1.0
        value = None if figure.value is None else factor * figure.value
        figures.append(figure.model_copy(update={"value": value, "low": None, "high": None}))
    fresh = {"environment": machine, "name": f"unit{unit}", "finished": None, "cells": ()}
    with RunFolder.create(base, run.model_copy(update=fresh)) as folder:
        log = HardwareLog(folder.path)
        for measurement in measurements:
            log.append(measurement)
        log.finish(folder.run)
        folder.write_spec(spec.model_copy(update={"characteristics": tuple(figures)}))
        folder.finish()


def test_a_unit_that_is_not_like_its_sisters_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for unit in range(9):
        hardware_of(tmp_path / "runs", unit, 0.6 if unit == 4 else 1.0)
    keep = tmp_path / "keep"
    code, shown, _ = said(capsys, "fleet", str(tmp_path), "--keep", str(keep))
    assert code == 1 and "9 units; unlike their sisters: 1 for certain" in shown and "slow memory" in shown
    (device,) = document(capsys, "fleet", str(tmp_path))["devices"]
    (found,) = [outlier for outlier in device["outliers"] if outlier["differs"]]
    assert found["unit"] == "GPU-4" and found["hostname"] == "node4"
    assert all(figure["ratio"] == pytest.approx(0.6, rel=0.02) for figure in found["figures"])
    assert {figure["units"] for figure in device["figures"]} == {8}, "the spec is of those that are alike"
    (spec,) = keep.glob("*.spec.json")
    assert HardwareSpec.model_validate_json(spec.read_text()).uuid is None


def test_a_folder_without_runs_of_hardware_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, shown, told = said(capsys, "fleet", str(tmp_path))
    assert code == 2 and not shown and "no finished run of hardware" in told and told.count("\n") == 1


@each(
    ("arguments", "problem"),
    [
        (["gpuu"], "no plan 'gpuu'"),
        (["gpu", "--shard", "4/3"], "the number goes from 1 to the number of shards"),
        (["gpu", "--engine", "local", "--shard", "1/2"], "give one of them"),
        (["gpu", "--engine", "cloud"], "--engine"),
        (["gpu", "--engine", "ray", "--set", "x"], "--set takes NAME=VALUE"),
        (["gpu", "folder"], "folder is one word too many"),
        (["status", "nowhere"], "no folder nowhere"),
        (["collect", ".", "--shard", "1/2"], "only reads a folder"),
        (["gpu"], "the plan measures a GPU"),
        (["gpu", "--gpu", "GPU-0"], "GPU GPU-0 is not here; this host has GPU-7"),
        (["cpu", "--gpu", "0"], "the plan cpu measures a CPU"),
    ],
)
def test_a_wrong_request_is_one_line(
    arguments: list[str], problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("profiler.campaign.engines.host_gpus", lambda: ["GPU-7"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    code, shown, told = said(capsys, *arguments)
    assert code == 2 and not shown and problem in told and told.count("\n") == 1
    assert not (tmp_path / "results").exists()


def test_the_manifest_is_all_that_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["gpu", "--engine", "kubernetes", "--shards", "2", "--set", "image=i", "--set", "claim=c"]
    code, shown, told = said(capsys, *arguments)
    assert code == 0 and "completions: 2" in shown and not told


@pytest.mark.starts_product
def test_a_campaign_that_is_ended_ends_its_part_and_keeps_what_there_is(tmp_path: Path) -> None:
    works, out = tmp_path / "works", tmp_path / "out"
    part = "import signal, time; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    part += f"open({str(works)!r}, 'w').close(); time.sleep(3600)"
    (tmp_path / "plan.yaml").write_text(PLAN.replace("list --results RUNS", "slow"))
    script = (
        "import sys\nfrom profiler.campaign import shard\nfrom scripts import gpu_campaign as g\n"
        "shard.PROFILER = (sys.executable, '-c', sys.argv[1])\n"
        f"g.main(['--minutes', '5', '--out', {str(out)!r}, '--plan', {str(tmp_path / 'plan.yaml')!r}])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, part], cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),  # as in the background of a shell
    )  # fmt: skip
    until(works.exists, process)
    process.send_signal(signal.SIGTERM)
    process.wait(LAST_RESORT_S)
    (line,) = (out / "shards" / "1-of-1" / "journal.jsonl").read_text().splitlines()
    assert json.loads(line)["status"] == "cut off"
    assert "| `a` | begun |" in (out / "keep" / "README.md").read_text()


def test_what_a_machine_lacks_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    real = gpu_campaign.find_spec
    monkeypatch.setattr(gpu_campaign, "find_spec", lambda name: None if name in ("pydantic", "plotly") else real(name))
    assert gpu_campaign.main(["--minutes", "1", "--out", "nowhere", "--plan", "cpu"]) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1 and "pip install --no-index --find-links wheels pydantic plotly" in shown


def test_the_campaign_starts_without_any_package(tmp_path: Path) -> None:
    script = ROOT / "scripts" / "gpu_campaign.py"
    done = subprocess.run(
        [sys.executable, "-S", "-I", str(script), "--minutes", "1", "--out", str(tmp_path / "x")],
        capture_output=True, text=True, timeout=LAST_RESORT_S,
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.startswith("error: this machine lacks torch, transformers")
    assert not (tmp_path / "x").exists()


@each("minutes", ["0", "-1", "nan"])
def test_no_time_is_refused(minutes: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_campaign.main(["--minutes", minutes, "--out", "nowhere", "--plan", "cpu"]) == 2
    assert "minutes" in capsys.readouterr().err


def test_the_run_of_a_test_is_one_that_a_run_could_be() -> None:
    from profiler.record.run import Environment

    Environment.model_validate({"device_kind": "cuda", **RUN["environment"]})  # type: ignore[dict-item]
