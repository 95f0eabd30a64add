"""`gate` from the command line. Files of kernels bring a clock of their own, which their kernels advance: noise is
known, and no test depends on how busy this machine is."""

import json
from pathlib import Path
from xml.etree import ElementTree as Xml

import pytest

from profiler.cli.app import main

CLOCK = """
import random, time
now = 0.0
time.perf_counter = lambda: now
level = random.SystemRandom().gauss(1, {spread})
def take(seconds):
    global now
    now += seconds * level
def kernel_steady(): take(1e-3)
"""


@pytest.fixture
def file(tmp_path: Path) -> "Files":
    return Files(tmp_path)


class Files:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, name: str, spread: float = 0.002, **kernels: str) -> str:
        bodies = "".join(f"def kernel_{kernel}(): {body}\n" for kernel, body in kernels.items())
        path = self.folder / f"{name}.py"
        path.write_text(CLOCK.format(spread=spread) + bodies)
        return str(path)


def gate(*arguments: str) -> int:
    return main(["gate", *arguments, "--pairs", "4", "--seconds", "0.02", "--seed", "1"])


def test_a_kernel_that_does_more_is_found(file: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, new = file("base", other="take(1e-3)"), file("new", other="take(1.05e-3)")
    assert gate(base, new, "--json", "--write", f"junit={tmp_path}/out.xml") == 1
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert {row["name"]: row["verdict"] for row in document["rows"]} == {"steady": "same", "other": "slower"}
    other = next(row for row in document["rows"] if row["name"] == "other")
    assert other["ratio"] == pytest.approx(1.05, abs=0.005) and other["replicates"] == [8, 8]
    assert document["exit_code"] == 1 and document["drawn_again"] == ["other"]
    assert document["self_test"]["detectable"]["other"] < 0.03
    assert "python" in document["base"]["versions"]
    assert "self-test" in err and "drawn again" in err
    assert Xml.parse(tmp_path / "out.xml").getroot()[0].attrib["failures"] == "1"


def test_nothing_is_red_where_nothing_changed(file: Files, capsys: pytest.CaptureFixture[str]) -> None:
    base, new = file("base", other="take(1e-3)"), file("new", other="take(1e-3)")
    assert gate(base, new) == 0
    assert "smallest slowdown found" in capsys.readouterr().out


def test_a_noisy_machine_gets_no_verdict(file: Files, capsys: pytest.CaptureFixture[str]) -> None:
    assert gate(file("base", 0.2), file("new", 0.2, other="take(1)")) == 3
    assert "too noisy" in capsys.readouterr().out


def test_failing_and_missing_kernels_are_said(file: Files, capsys: pytest.CaptureFixture[str]) -> None:
    base = file("base", gone="take(1e-3)", broken="take(1e-3)")
    new = file("new", broken="1 / 0", fresh="take(1e-3)")
    assert gate(base, new, "--json") == 4
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert {name: row["verdict"] for name, row in rows.items()} == {
        "steady": "same", "gone": "missing", "broken": "failed", "fresh": "new",
    }  # fmt: skip
    assert rows["broken"]["reason"] == "new: ZeroDivisionError: division by zero"


def test_refusals_are_one_line(file: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = file("good")
    (tmp_path / "crash.py").write_text("def kernel_steady(): 1 / 0")
    (tmp_path / "other.py").write_text("def kernel_other(): pass")
    (tmp_path / "old.py").write_text("import a_package_that_is_gone")
    for arguments, why in (
        ([str(tmp_path / "crash.py"), good], "no kernel of the base runs"),
        ([str(tmp_path / "other.py"), good], "share no kernel"),
        ([str(tmp_path / "old.py"), good], "cannot be run"),
        ([good, good, "--ignore", "0.5"], "has to be below"),
        (["nowhere", good], "--kernels"),
        ([good, good, "--write", "x"], "--write takes"),
    ):
        assert gate(*arguments) == 2
        assert why in capsys.readouterr().err.splitlines()[-1]
