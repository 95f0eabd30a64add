"""`predict --find` as a user runs it."""

import csv
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny

from profiler.cli.app import main

ON = ("--hardware", "nvidia-h100-sxm,nvidia-b200")
LENGTHS = ("--prompt", "64", "--output", "16")
OVER = ("--over", "tp=1,2,3", "--over", "pp=1", "--over", "ep=1,2", "--over", "batch=1,8")


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "mixture"
    tiny("qwen3_moe").save_pretrained(folder)
    return str(folder)


def test_the_best_configuration(ask: Any, mixture: str, tmp_path: Path) -> None:
    table, page = tmp_path / "found.csv", tmp_path / "found.html"
    more = ("--cost", "nvidia-b200=4", "--csv", str(table), "--html", str(page))
    found = ask(mixture, "--find", "ttft=500ms,tpot=0.1", *ON, *LENGTHS, *OVER, *more)
    assert found["configurations"] == 2 * 2 * 3 * 2 * 2 == found["can_run"] + sum(found["left_out"].values())
    assert found["target"] == {"prompt_tokens": 64, "output_tokens": 16, "ttft_s": 0.5, "tpot_s": 0.1}
    best = found["best"]
    assert best["meets"] and best["tpot_low_s"] < best["tpot_s"] < best["tpot_high_s"] <= 1.0
    assert best["tokens_per_s_per_device"] == max(row["tokens_per_s_per_device"] for row in found["meeting"])
    assert found["best_for_cost"]["device"] == "nvidia-b200" and any("no law" in note for note in found["notes"])
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert len(rows) == found["can_run"] and {row["device"] for row in rows} == {"nvidia-h100-sxm", "nvidia-b200"}
    assert "plotly" in page.read_text() and "not beaten" in page.read_text()


def test_the_report(capsys: pytest.CaptureFixture[str], mixture: str) -> None:
    assert main(["predict", mixture, "--find", "tpot=0.001ms", *ON, *LENGTHS, *OVER]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "no configuration meets the target; the shortest TPOT is" in shown
    assert main(["predict", mixture, "--find", "tpot=1s", *ON, *LENGTHS, *OVER]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for words in ("best:", "TPOT ≤ 1.00 s", "TP·PP·EP", "4 query heads do not divide by 3", "a device"):
        assert words in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--find", "fast"), "--find takes the longest times"),
        (("--find", "tpot=0"), "--find takes the longest times"),
        (("--find", "tpot=30ms,tpot=40ms"), "--find takes the longest times"),
        (("--find", "tpot=30ms", "--over", "dp=1"), "--over takes NAME=VALUES"),
        (("--find", "tpot=30ms", "--over", "tp=a"), "--over tp takes whole numbers"),
        (("--find", "tpot=30ms", "--over", "dtype=float7"), "'float7' is not known"),
        (("--find", "tpot=30ms", "--over", "dtype=checkpoint"), "not quantised"),
        (("--find", "tpot=30ms", "--over", "batch=9000"), "at most 8192"),
        (("--find", "tpot=30ms", "--over", f"batch={','.join(map(str, range(1, 5000)))}"), "use fewer values"),
        (("--find", "tpot=30ms", "--cost", "nvidia-l4=1"), "of a device of --hardware"),
        (("--find", "tpot=30ms", "--cost", "nvidia-b200=free"), "--cost takes DEVICE=COST"),
        (("--find", "tpot=30ms", "--batch", "4"), "--batch means nothing to --find"),
        (("--find", "tpot=30ms", "--prompt", "1,2"), "one --prompt and one --output"),
        (("--find", "tpot=30ms", "--engine", "tgi"), "no engine 'tgi'"),
        (("--over", "tp=1"), "--find"),
    ],
)
def test_refusals_are_one_line(
    capsys: pytest.CaptureFixture[str], mixture: str, arguments: tuple[str, ...], words: str
) -> None:
    assert main(["predict", mixture, *ON, *arguments]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert words in told[-1]
