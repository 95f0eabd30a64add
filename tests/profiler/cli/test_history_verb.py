"""`history` from the command line, over runs of a device that were stored one by one."""

import json
from pathlib import Path

import hardware_samples
import pytest

from profiler.cli.app import main
from profiler.record.folder import RunFolder
from profiler.record.hardware_table import HardwareLog


def night(base: Path, day: int, factor: float, torch: str) -> None:
    spec, measurements, run = hardware_samples.cpu()
    machine = run.environment.model_copy(update={"versions": {"torch": torch, "commit": torch}})
    changes = {"name": "n", "finished": None, "cells": (), "environment": machine,
               "started": f"2026-03-{day:02}T02:00:00+00:00"}  # fmt: skip
    with RunFolder.create(base, run.model_copy(update=changes)) as folder:
        log = HardwareLog(folder.path)
        for one in measurements:
            if one.benchmark == "memory" and one.has_value:
                slower = factor if one.case == "triad" else 1.0
                log.append(one.model_copy(update={"samples": tuple(slower * x for x in one.samples)}))
        log.finish(folder.run)
        folder.write_spec(spec)
        folder.finish()


@pytest.fixture
def nights(tmp_path: Path) -> str:
    for day in range(1, 11):
        night(tmp_path, day, 1.0 if day < 6 else 1.07, "2.11" if day < 6 else "2.13")
    return str(tmp_path)


def test_a_change_is_dated_and_named(nights: str, capsys: pytest.CaptureFixture[str]) -> None:
    page = Path(nights).parent / "page.html"
    assert main(["history", "--results", nights, "--html", str(page)]) == 0
    assert "History of" in page.read_text(encoding="utf-8")
    shown = capsys.readouterr().out
    assert "2026-03-06" in shown and "+7" in shown and "torch 2.11 → 2.13" in shown
    assert "profiler gate 2.11 2.13 --kernels FILE" in shown
    assert main(["history", "triad", "--results", nights, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    changes = [change for change in document["changes"] if change["key"]]
    assert changes and all("triad" in change["name"] for change in changes)
    assert {(change["at"], change["cause"], change["state"]) for change in changes} == {(5, "code", "lasting")}
    assert [round(change["ratio"], 2) for change in changes] == [1.07] * len(changes)
    assert len(document["runs"]) == 10


KERNELS = """
import random, time
from level import LEVEL
now, noise = 0.0, random.SystemRandom().gauss(1, 0.002)
time.perf_counter = lambda: now
def take(seconds):
    global now
    now += seconds * noise
def kernel_triad(): take(1e-3 * LEVEL)
"""


def test_changes_are_confirmed_by_a_gate_between_their_versions(
    nights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kernels = tmp_path / "bench.py"
    kernels.write_text(KERNELS)
    for tree, level in (("old", 1.0), ("new", 1.07)):
        (tmp_path / tree).mkdir()
        (tmp_path / tree / "level.py").write_text(f"LEVEL = {level}")
    asked = ["history", "triad", "--results", nights, "--confirm", str(kernels)]
    old, new = tmp_path / "old", tmp_path / "new"
    assert main([*asked, "--between", f"{old},{new}"]) == 1
    shown = capsys.readouterr().out
    assert "confirmed" in shown and "lasting" not in shown and "profiler gate" not in shown
    assert main([*asked, "--between", f"{old},{old}", "--json"]) == 0
    changes = json.loads(capsys.readouterr().out)["changes"]
    assert {change["gate"] for change in changes} == {"refuted"} == {change["state"] for change in changes}
    assert main(asked) == 2, "the runs' commits are not of this repository"
    told = capsys.readouterr().err
    assert "gate 2.11 2.13 is left out" in told and "nothing could be confirmed" in told.splitlines()[-1]


def test_refusals(nights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, why in (
        (["history", "--results", str(tmp_path / "nothing")], "no finished runs"),
        (["history", "no such kernel", "--results", nights], "no row has"),
        (["history", "--device", "h200", "--results", nights], "0 devices match"),
        (["history", "--between", "a,b", "--results", nights], "--between is for --confirm"),
        (["history", "--between", "a", "--confirm", __file__, "--results", nights], "--between takes BASE,NEW"),
        (["history", "--confirm", "b.py", "--results", nights], "there is no b.py"),
    ):
        assert main(arguments) == 2
        assert why in capsys.readouterr().err.splitlines()[-1]


def test_an_object_store_is_read_and_never_written(nights: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["history", "triad", "--results", nights, "--json"]) == 0
    known = capsys.readouterr().out
    assert main(["history", "triad", "--results", f"file://{nights}", "--json"]) == 0
    assert capsys.readouterr().out == known
    assert main(["history", "--results", f"file://{nights}/nowhere"]) == 2
    assert "cannot read file:///" in capsys.readouterr().err.splitlines()[-1]


def test_few_runs_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    night(tmp_path, 1, 1.0, "2.11")
    assert main(["history", "--results", str(tmp_path)]) == 0
    assert "too few" in capsys.readouterr().out
