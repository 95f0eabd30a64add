"""`compare` from the command line: exit codes, outputs, refusals."""

import json
from pathlib import Path
from xml.etree import ElementTree as Xml

import hardware_samples
import pytest

from profiler.cli.app import main
from profiler.record.folder import RunFolder
from profiler.record.hardware_table import HardwareLog


def hardware(base: Path, name: str, factor: float = 1.0, device: str | None = None, case: str = "") -> str:
    _, measurements, run = hardware_samples.cpu()
    machine = run.environment.model_copy(update={"device": device or run.environment.device})
    changes = {"name": name, "finished": None, "cells": (), "environment": machine}
    with RunFolder.create(base, run.model_copy(update=changes)) as folder:
        log = HardwareLog(folder.path)
        for one in measurements:
            if one.benchmark == "memory" and one.has_value:
                more = {"samples": tuple(factor * x for x in one.samples), "case": one.case + case}
                log.append(one.model_copy(update=more))
    return str(folder.path)


def test_exit_codes_say_what_was_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, same, slow, fast = (hardware(tmp_path, name, x) for name, x in (("a", 1), ("b", 1), ("c", 1.5), ("d", 0.5)))
    assert main(["compare", base, same, "--tolerance", "0.2"]) == 0
    page = tmp_path / "page.html"
    assert main(["compare", base, slow, "--html", str(page)]) == 1
    shown = page.read_text(encoding="utf-8")
    assert "slower" in shown and "Plotly" in shown
    shown = capsys.readouterr().out
    assert "slower by 50" in shown and "memory" in shown
    assert main(["compare", base, fast]) == 0
    assert main(["compare", base, f"{slow},{fast}", "--tolerance", "0"]) == 3


def test_one_json_document_and_files_for_dashboards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, slow = hardware(tmp_path, "a"), hardware(tmp_path, "b", 1.5)
    files = [f"junit={tmp_path}/out.xml", f"markdown={tmp_path}/out.md", f"bencher={tmp_path}/out.json"]
    assert main(["compare", base, slow, "--json", *(x for file in files for x in ("--write", file))]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["counts"]["slower"] == len(document["rows"]) == document["base"]["rows"]
    assert document["rows"][0]["ratio"] == pytest.approx(1.5, rel=0.01)
    assert Xml.parse(tmp_path / "out.xml").getroot()[0].attrib["failures"] == str(document["counts"]["slower"])
    assert len(json.loads((tmp_path / "out.json").read_text())) == len(document["rows"])
    assert "slower by 50" in (tmp_path / "out.md").read_text()


@pytest.mark.parametrize(
    ("new", "more", "why"),
    [
        ({"device": "another"}, [], "cannot be compared: device"),
        ({"case": "x"}, [], "share no row"),
        ({}, ["--write", "pdf=x"], "--write takes FORMAT=FILE"),
        ({}, ["--write", "junit="], "--write takes FORMAT=FILE"),
        ({}, ["--write", "junit=same", "--write", "gha=same"], "would overwrite"),
        ({}, ["--tolerance", "nan"], "--tolerance"),
    ],
)
def test_refusals_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], new: dict[str, str], more: list[str], why: str
) -> None:
    base, other = hardware(tmp_path, "a"), hardware(tmp_path, "b", **new)  # type: ignore[arg-type]
    assert main(["compare", base, other, *more]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert why in line


def test_other_devices_are_shown_when_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, other = hardware(tmp_path, "a"), hardware(tmp_path, "b", 2, device="evil \x1b[2J <script>")
    assert main(["compare", base, other, "--allow"]) == 3
    shown = "".join(capsys.readouterr())
    assert "incomparable" in shown and all(c.isprintable() for line in shown.splitlines() for c in line)


def test_a_run_that_is_not_finished_is_compared_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, other = hardware(tmp_path, "a"), hardware(tmp_path, "b")
    folder, _ = RunFolder.open_for_resume(Path(base))
    with folder:
        folder.write_spec(hardware_samples.cpu()[0])
        folder.finish()
    assert main(["compare", base, other, "--tolerance", "0.2"]) == 0
    warned = [line for line in capsys.readouterr().err.splitlines() if "is not finished" in line]
    assert len(warned) == 1 and other in warned[0]


def test_a_tampered_run_is_refused_and_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, other = hardware(tmp_path, "a"), hardware(tmp_path, "b")
    journal = Path(other) / "hardware.jsonl"
    journal.write_bytes(before := journal.read_bytes().replace(b'"samples"', b'"sumples"', 1))
    assert main(["compare", base, other]) == 2
    assert "damaged" in capsys.readouterr().err and journal.read_bytes() == before
