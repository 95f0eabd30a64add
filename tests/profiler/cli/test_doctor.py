import json
from pathlib import Path

import pytest

from profiler.cli.app import main
from profiler.devices import environment
from profiler.devices.conditions import Finding


def test_doctor_describes_this_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["doctor", "--device", "cpu", "--results", str(tmp_path), "--json"])
    document = json.loads(capsys.readouterr().out)
    worst = {finding["severity"] for finding in document["findings"]}
    assert code == (4 if "invalidates" in worst else 0)
    assert document["environment"]["device_kind"] == "cpu"


@pytest.mark.parametrize(
    ("severities", "code"),
    [((), 0), (("note", "warns"), 0), (("invalidates", "note"), 4)],
)
def test_only_what_invalidates_is_an_exit_code(
    severities: tuple[str, ...], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = tuple(
        Finding.model_validate({"severity": s, "what": f"a {s}", "why": "it matters", "mend": "mend it"})
        for s in severities
    )
    monkeypatch.setattr(environment, "findings", lambda *_: found)
    assert main(["doctor", "--device", "cpu"]) == code
    shown = capsys.readouterr().out
    assert shown.splitlines().count("  do:  mend it") == len(severities)
    assert shown.splitlines().count("  why: it matters") == len(severities)
    assert all(f"{severity}: a {severity}" in shown for severity in severities)
    assert ("nothing on this machine would spoil" in shown) == (not severities)


def test_its_lines_are_as_wide_as_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finding = Finding(severity="warns", what="a b" * 30, why="it matters " * 12, mend="mend it " * 12)
    monkeypatch.setattr(environment, "findings", lambda *_: (finding,))
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["doctor", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 60
    assert sum(line.startswith(("       it", "       m")) for line in lines) >= 3, lines


def test_a_device_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--device", "cuda:99"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: --device cuda:99") and err.count("\n") == 1
