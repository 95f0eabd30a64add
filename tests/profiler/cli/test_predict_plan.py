"""`predict` on several devices, and with a file of models × workloads × devices."""

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from profiler.cli.app import main
from profiler.cli.plan import read_plan
from roofline.hardware.load import load_device

DEVICES = ("nvidia-h100-sxm", "nvidia-l40s")


def test_devices_side_by_side_are_those_of_each_alone(
    llama: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [llama, "--phase", "decode", "--context", "40", "--batch=1,4", "--output=8", "--prompt=16"]
    alone = []
    for device in DEVICES:
        assert main(["predict", *asked, "--hardware", device, "--json"]) == 0
        alone.append(json.loads(capsys.readouterr().out))
    page, sheet = tmp_path / "both.html", tmp_path / "both.csv"
    assert main(["predict", *asked, "--hardware", ", ".join(DEVICES), "--json", "--csv", str(sheet)]) == 0
    assert json.loads(capsys.readouterr().out) == {"predictions": alone, "failed": {}}
    rows = list(csv.DictReader(io.StringIO(sheet.read_text())))
    assert [(row["hardware"], row["batch"]) for row in rows] == [(d, b) for d in DEVICES for b in ("1", "4")]
    assert [float(row["time_s"]) for row in rows] == [w["total"]["time_s"] for one in alone for w in one["workloads"]]
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["predict", *asked, "--hardware", ",".join(DEVICES), "--html", str(page)]) == 0
    shown = capsys.readouterr().out
    first, second = (one["workloads"][0]["total"]["time_s"] for one in alone)
    assert f"{second / first:.2f}×" in shown and max(map(len, shown.splitlines())) <= 80
    assert all(device in page.read_text() for device in DEVICES)


def test_a_plan_is_every_model_with_every_workload_on_every_device(
    llama: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        f"hardware: [{', '.join(DEVICES)}]\n"
        f"models:\n- {llama}\n- {{name: {llama}, what_if: ['quantise:weights=8'], dtype: fp16}}\n"
        "workloads:\n- {phase: decode, batch: [1, 16], context: 32}\n- {prompt: 16, output: 4}\n"
    )
    assert main(["predict", "--file", str(plan), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["predictions"]
    assert [one["hardware"] for one in found] == [*DEVICES, *DEVICES]
    assert [[w["batch"] for w in one["workloads"]] for one in found] == [[1, 16]] * 4
    assert [len(one["requests"]) for one in found] == [1] * 4
    assert [{w["dtype"] for w in one["workloads"]} for one in found] == [{"bfloat16"}] * 2 + [{"float16"}] * 2
    alone = ["--phase=decode", "--batch=1,16", "--context=32", "--hardware", DEVICES[1], "--json"]
    assert main(["predict", llama, "--what-if=quantise:weights=8", "--dtype=fp16", *alone]) == 0
    assert json.loads(capsys.readouterr().out)["workloads"] == found[3]["workloads"]
    assert main(["predict", "--file", str(plan), "--hardware", DEVICES[0]]) == 0
    shown = capsys.readouterr().out
    assert "fp16" in shown and DEVICES[1] not in shown


def test_what_one_device_cannot_do_costs_the_others_nothing(llama: str, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["predict", llama, "--phase", "decode", "--what-if", "tensor_parallel:degree=2,link=nvlink"]
    assert main([*asked, "--hardware", "nvidia-h100-sxm,nvidia-l40s"]) == 3
    shown = " ".join(capsys.readouterr().out.split())
    assert "could not be predicted" in shown and "on nvidia-l40s" in shown and "decode b1" in shown
    assert main([*asked, "--hardware", "nvidia-l4,nvidia-l40s"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


BAD: dict[str, Any] = {
    "hardware": ["nvidia-h100-sxn", "/nowhere.json"],
    "models": ["llama-3.1-8c", {"name": "gpt2", "what_if": ["quantize:weights=4"], "dtpe": 1}, {"dtype": "int3"}],
    "workloads": [{"phase": "decod"}, {"batch": True}, {"prompt": 0}, {"mix": "x"}],
    "more": 1,
}


def test_all_that_is_wrong_in_a_plan_is_said_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(yaml.safe_dump(BAD))
    assert main(["predict", "--file", str(plan)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    for words in (
        "did you mean nvidia-h100-sxm", "/nowhere.json", "models.0.name: no model 'llama-3.1-8c'; did you mean",
        "models.1.what_if.0: no what-if 'quantize'; did you mean quantise?", "models.1.dtpe: unknown field",
        "models.2.name: Field required", "models.2.dtype: dtype takes", "workloads.0: --phase takes",
        "workloads.1.batch: give a whole number", "workloads.2: --prompt takes whole numbers from 1",
        "workloads.3: --mix takes", "more: unknown field",
    ):  # fmt: skip
        assert words in err, words


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: &x [1]\nb: *x\n", "aliases"),
        ("models: [gpt2]\nmodels: [gpt2]\n", "the key 'models' stands twice"),
        ("[" * 100_000, "not valid YAML"),
        ("models: [gpt2]\nworkloads: [{batch: " + "9" * 5000 + "}]", "not valid YAML"),
        ("models: [gpt2]\nworkloads: [{batch: " + "9" * 4000 + "}]", "beyond any memory"),
        ("!!python/object/apply:os.system ['true']", "not valid YAML"),
        ("- gpt2", "holds list"),
        ("models: []", "models: give a list of at least one"),
        ("", "holds NoneType"),
        ("\x00", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_plan_is_one_line(
    text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(text)
    assert main(["predict", "--file", str(plan)]) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1 and len(err) < 3000


def test_a_plan_refuses_what_it_says_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text("models: [gpt2]")
    for arguments, says in (
        (["gpt2"], "MODEL: --file says that"),
        (["--phase", "decode"], "--phase: --file says that"),
        ([], "name a device with --hardware"),
        (["--hardware", "nvidia-l4", "--csv", str(plan)], "would overwrite"),
    ):
        assert main(["predict", "--file", str(plan), *arguments]) == 2, arguments
        assert says in capsys.readouterr().err


def test_the_examples_of_the_docs_are_read(tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "docs" / "predict.md").read_text()
    blocks = {kind: re.search(rf"```{kind}\n(.*?)```", text, re.DOTALL) for kind in ("yaml", "json")}
    assert all(blocks.values())
    for kind, block in blocks.items():
        (tmp_path / f"x.{kind}").write_text(block[1] if block else "")
    plan = read_plan(tmp_path / "x.yaml", tmp_path)
    assert len(plan.models) == 2 and len(plan.asked("bfloat16").workloads) == 3
    device = load_device(tmp_path / "x.json")
    assert device.datasheet is not None and device.datasheet.levels[-1].name == "HBM"
