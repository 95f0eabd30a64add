"""The main job as a user runs it: on a folder with a config.json, killed, resumed, and asked for what cannot be."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny
from waiting import LAST_RESORT_S, until

from calibrate.passes.pass_report import TERMS
from calibrate.passes.reports import sound
from profiler.cli import measuring
from profiler.cli.app import main
from profiler.devices.environment import collect
from profiler.kernels import in_model
from profiler.record.folder import RunFolder
from profiler.record.kernel_table import has_kernels
from profiler.record.run import Run
from roofline.laws import kinds

ROOT = Path(__file__).parents[3]
HELD = """
import sys, time
from profiler.cli.app import main
from profiler.record.folder import RunFolder
kept, append = [], RunFolder.append
def held(folder, result):
    while kept:
        time.sleep(1)
    append(folder, result)
    kept.append(result)
RunFolder.append = held
sys.exit(main(sys.argv[1:]))
"""
"""The command line, which keeps one cell and goes on measuring, but keeps no second one: a signal that comes after
the first is kept always finds the run at work, whenever it comes."""
QUICK = (
    "--quick", "--no-calibrate", "--seconds", "0.1", "--prompt", "16", "--context", "16", "--dtype", "float32",
    "--device", "cpu",
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "small"
    config = tiny("llama")
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    return folder


def start(*arguments: str, held: bool = False) -> subprocess.Popen[str]:
    program = ["-c", HELD] if held else ["-m", "profiler"]
    return subprocess.Popen(
        [sys.executable, *program, "run", *arguments],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip


@dataclass(frozen=True)
class First:
    """A run that has measured the device too."""

    threads: int
    document: dict[str, Any]
    folder: Path
    told: str
    """What it wrote to stderr."""

    @property
    def spec(self) -> list[str]:
        """What spares another run of the same machine measuring the device again."""
        return ["--hardware", str(self.folder / "spec.json")]


@pytest.fixture(scope="module")
def first(model: Path, tmp_path_factory: pytest.TempPathFactory) -> First:
    threads = 2 if torch.get_num_threads() == 1 else 1  # other than without the option
    out = str(tmp_path_factory.mktemp("first"))
    process = start(str(model), *QUICK, "--threads", str(threads), "--out", out, "--json")
    told, err = process.communicate(timeout=LAST_RESORT_S)
    assert process.returncode in (0, 3, 4), err  # a pass of 5 ms on a busy machine may be called invalid
    document = json.loads(told)
    return First(threads, document, Path(document["run"]), err)


@pytest.mark.starts_product
def test_json_of_a_run_its_threads_and_what_it_leaves_on_disk(first: First) -> None:
    document, folder = first.document, first.folder
    prefill, decode = document["passes"]
    for one in (prefill, decode):
        assert sum(layer["measured_s"] for layer in one["layers"]) == pytest.approx(one["busy_s"])
        terms = [one["waterfall"][k] for k in (*TERMS, "idle")]
        merged = one["waterfall"]["merged"].values()
        assert sum(t for t in terms if t is not None) + sum(merged) == pytest.approx(one["wall_s"])
        assert one["attributed"] >= 0.99
        paths = {layer["path"] for layer in one["layers"]}
        assert {"lm_head", "model.layers.*.self_attn.q_proj", "model.layers.*.mlp"} <= paths
    assert (prefill["phase"], decode["phase"], decode["context_tokens"]) == ("prefill", "decode", 16)
    assert document["spent"].keys() == document["estimated"].keys() == {"device", "passes", "report"}
    words = [line.partition(" ")[0] for line in first.told.splitlines()]
    assert words.count("this") == words.count("took") == 1
    assert RunFolder.open(folder).run.spent_s == document["spent"]
    assert RunFolder.open(folder).run.environment.threads == first.threads
    left = {path.relative_to(folder).parts[0] for path in folder.rglob("*") if not path.name.startswith(".")}
    assert left == {"run.json", "graphs", "spec.json", "measurements.parquet", "report.md", "report.html"}
    assert main(["show", str(folder)]) == 0


def started_and_one_kept(model: Path, out: Path, spec: list[str]) -> tuple[subprocess.Popen[str], Path]:
    """A run of three cells at work after the first one, and its folder."""
    options = [
        "--quick", "--no-calibrate", "--seconds", "0.1", "--prompt", "16,24,32", "--phase", "prefill",
        "--dtype", "float32", "--device", "cpu",
    ]  # fmt: skip
    process = start(str(model), *options, *spec, "--out", str(out), held=True)
    until(lambda: any("\n" in path.read_text() for path in out.glob("*/*/journal.jsonl")), process)
    (folder,) = out.glob("*/*")
    return process, folder


@pytest.mark.starts_product
def test_killed_and_resumed(model: Path, first: First, tmp_path: Path) -> None:
    process, folder = started_and_one_kept(model, tmp_path, first.spec)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (kept,) = RunFolder.open(folder).results()
    assert kept.status == "done"
    assert main(["show", str(folder), "--json"]) == 0
    sound_before = sound(RunFolder.open(folder))
    assert main(["run", "--resume", str(folder)]) in (0, 3, 4)
    finished = RunFolder.open(folder)
    assert finished.run.finished is not None
    assert [r.cell.key for r in finished.results()] == [c.key for c in finished.run.cells]
    if kept.cell.key in sound_before:
        assert finished.results()[0] == kept  # not measured again


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler")
def test_a_compiled_run_tells_its_mode_and_its_kernels(
    model: Path, first: First, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*QUICK, *first.spec, "--phase", "decode", "--layers", "1", "--compile", "--out", str(tmp_path), "--json"]
    process = start(str(model), *options)
    out, err = process.communicate(timeout=LAST_RESORT_S)
    assert process.returncode in (0, 3, 4), err
    document = json.loads(out)
    (decode,) = document["passes"]
    assert decode["mode"] == "compile" and decode["ran"]["mode"] == "compile"
    assert decode["attributed"] >= 0.97
    fused = next(one for one in decode["kernels"] if "silu" in one["name"])
    assert fused["modules"] == ["model.layers.*.mlp.act_fn", "model.layers.*.mlp"] and fused["count"] == 2
    assert sum(layer["measured_s"] for layer in decode["layers"]) == pytest.approx(decode["busy_s"])
    folder = Path(document["run"])
    assert all(cell.key.endswith("-l1-compile") for cell in RunFolder.open(folder).run.cells)
    (result,) = RunFolder.open(folder).results()
    assert main(["show", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["passes"][0]["kernels"] == decode["kernels"]
    assert result.kernels and not result.ops


def test_another_machine_does_not_go_on(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunFolder.create(tmp_path, run.model_copy(update={"options": {"device": "cpu"}})) as folder:
        before = (folder.path / "run.json").read_text()
    assert main(["run", "--resume", str(folder.path)]) == 2
    shown = capsys.readouterr().err
    assert "device Example CPU @ 2.0 GHz, here " in shown and shown.count("\n") == 1
    assert (folder.path / "run.json").read_text() == before


def test_a_run_whose_options_were_edited_does_not_go_on(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = {"device": "cpu", "seconds": 1.0, "quick": True, "calibrate": False, "visits": 3, "seed": 0, "threads": 2}
    whole |= {"trust_remote_code": False}
    here = run.model_copy(update={"environment": collect("cpu"), "options": whole | {"threads": None}})
    with RunFolder.create(tmp_path, here) as folder:
        path = folder.path / "run.json"
        content = json.loads(path.read_text())
    for change, why in (
        ({"threads": -3}, "options: Value error, option threads: -3 is not from 1 to 4096"),
        ({"threads": True}, "option threads: True is no whole number"),
        ({"seconds": "6"}, "option seconds: '6' is no whole number or number"),
        ({"seconds": -1}, "option seconds: -1 is not from 0 to 86400"),
        ({"quick": "yes"}, "option quick: 'yes' is no true or false"),
        ({"visits": 10**6}, "option visits: 1e+06 is not from 1 to 1000"),
        ({"seed": 0.5}, "option seed: 0.5 is no whole number"),
        ({"device": 7}, "option device: 7 is no text"),
        ({"device": []}, "options.device"),
        ({"device": "cpu", "quick": None}, "option quick: None is no true or false"),
    ):
        path.write_text(json.dumps({**content, "options": content["options"] | change}))
        for arguments in (["run", "--resume"], ["hardware", "--resume"], ["show"]):
            assert main([*arguments, str(folder.path)]) == 2, change
            shown = capsys.readouterr().err
            assert why in shown and shown.count("\n") == 1, (change, shown)
    for name in ("device", "seconds", "quick", "seed", "trust_remote_code"):
        kept = {key: value for key, value in content["options"].items() if key != name}
        path.write_text(json.dumps({**content, "options": kept}))
        assert main(["run", "--resume", str(folder.path)]) == 2
        assert f"run.json states no option {name}; restore it, or start a new run" in capsys.readouterr().err


def test_a_damaged_cell_is_measured_again(
    model: Path, first: First, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(model), *QUICK, *first.spec, "--out", str(tmp_path), "--json"]) in (0, 3, 4)
    folder = Path(json.loads(capsys.readouterr().out)["run"])
    graph = next((folder / "graphs").glob("*prefill*"))
    graph.write_text(graph.read_text()[:100])
    main(["show", str(folder), "--json"])
    assert [one["phase"] for one in json.loads(capsys.readouterr().out)["failed"]] == ["prefill"]
    assert main(["run", "--resume", str(folder), "--seconds", "0.2", "--json"]) in (0, 3, 4)
    assert RunFolder.open(folder).run.options["seconds"] == 0.2
    again = json.loads(capsys.readouterr().out)
    assert again["failed"] == [] and {one["phase"] for one in again["passes"]} == {"prefill", "decode"}


@pytest.mark.starts_product
def test_interrupted_keeps_what_was_measured(model: Path, first: First, tmp_path: Path) -> None:
    process, folder = started_and_one_kept(model, tmp_path, first.spec)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=LAST_RESORT_S)
    assert process.returncode == 130
    # not always the last line: Python tells of a destructor of torch's that an interruption left half made
    assert any(line.startswith("interrupted; what was measured is in ") for line in err.splitlines())
    assert [result.status for result in RunFolder.open(folder).results()] == ["done"]


def test_a_run_calibrates_the_device_and_the_next_one_can_use_its_spec(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {name: replace(kind, points=min(6, kind.points)) for name, kind in kinds.KINDS.items()}
    monkeypatch.setattr(kinds, "KINDS", few)
    monkeypatch.setattr(in_model, "SIZES", ((1 / 1024, 2), (1 / 512, 2)))
    monkeypatch.setattr("profiler.kernels.family.streaming_operators", lambda: ("aten::mul",))
    monkeypatch.setattr(measuring, "DEVICE_S", 3.0)
    quick = [one for one in QUICK if one not in ("--no-calibrate", "--quick")]
    assert main(["run", str(model), *quick, "--out", str(tmp_path), "--json"]) in (0, 3, 4)
    document = json.loads(capsys.readouterr().out)
    folder = RunFolder.open(Path(document["run"]))
    spec = folder.read_spec()
    assert spec is not None and spec.measured is not None
    assert {law.kind for law in spec.calibrated} >= {
        "matmul",
        "matvec",
        "decode_attention",
        "aten::mul",
        "pointwise",
        "host_gap",
    }
    for one in document["passes"]:
        assert one["prediction"] == "calibrated"
        fall, rungs = one["waterfall"], one["rungs"]
        assert fall["shape_loss"] == pytest.approx(rungs["calibrated"] - rungs["executed"])
        at_level = rungs["calibrated_at_level"] or rungs["calibrated"]
        residual = fall["residual"] if one["level"] else fall["merged"]["level+residual"]
        assert residual == pytest.approx(rungs["measured"] - at_level)
        assert one["predicted_wall_s"] > one["predicted_busy_s"] == at_level
        assert one["predicted_busy_calibrated_s"] == rungs["calibrated"]
    assert main(["calibrate", str(folder.path), "--kind", "aten::mul", "--out", str(tmp_path / "again.json")]) == 0
    capsys.readouterr()

    kept = str(folder.path / "spec.json")
    assert main(["run", str(model), *quick, "--hardware", kept, "--out", str(tmp_path), "--json"]) in (0, 3, 4)
    document = json.loads(capsys.readouterr().out)
    again = RunFolder.open(Path(document["run"]))
    assert again.read_spec() == spec
    assert not has_kernels(again.path)
    assert {one["prediction"] for one in document["passes"]} == {"calibrated"}

    priced = []
    for options in ([], ["--hardware", kept]):
        assert main(["show", str(folder.path), *options, "--json"]) == 0
        priced.append(json.loads(capsys.readouterr().out)["passes"][0]["predicted_busy_s"])
    assert priced[0] == priced[1]

    arguments = ["predict", str(model), "--hardware", kept, "--dtype", "float32", "--prompt", "16", "--context", "16"]
    assert main([*arguments, "--peaks", "calibrated", "--form", "executed", "--json"]) == 0
    predicted = json.loads(capsys.readouterr().out)
    assert predicted["peaks"] == "calibrated"
    for one, told in zip(document["passes"], predicted["workloads"], strict=True):
        assert told["total"]["time_s"] == pytest.approx(one["predicted_busy_calibrated_s"], rel=1e-6)
    assert main([*arguments, "--results", str(folder.path.parents[1]), "--json"]) == 0  # laws of operators: the default
    assert json.loads(capsys.readouterr().out) == predicted
    for step in predicted["workloads"]:
        assert step["total"]["low_s"] < step["total"]["time_s"] < step["total"]["high_s"]
        assert step["total"]["without_law"] < 0.1
    request = [*arguments, "--peaks", "calibrated", "--form", "executed", "--output", "9", "--json"]
    assert main(request) == 0
    (asked,) = json.loads(capsys.readouterr().out)["requests"]
    prefill, decode = (told["total"]["time_s"] for told in predicted["workloads"])
    assert asked["ttft_s"] == pytest.approx(prefill, rel=1e-3)  # alike layers are priced as one, by their mean
    assert asked["tpot_s"] == pytest.approx(decode, rel=0.2)  # contexts of 16 to 23


def test_what_cannot_be_calibrated_is_said_and_the_models_are_measured(
    model: Path, first: First, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no such device")

    monkeypatch.setattr("profiler.kernels.in_model.InModelKernels.visit", fails)
    monkeypatch.setattr("profiler.kernels.measure.ProbedKernels.visit", fails)
    monkeypatch.setattr(measuring, "DEVICE_S", 3.0)
    quick = [one for one in QUICK if one not in ("--no-calibrate", "float32")]
    for dtype, key, says in (("float64", "calibrated", "no laws in float64"), ("float32", "eager.float32", "no such")):
        spec = first.spec if dtype == "float32" else []  # the first run knows nothing of the other type
        arguments = ["run", str(model), *quick, *spec, "--out", str(tmp_path), "--json"]
        arguments.insert(arguments.index("--dtype") + 1, dtype)
        assert main(arguments) in (0, 3, 4)
        document = json.loads(capsys.readouterr().out)
        folder = RunFolder.open(Path(document["run"]))
        kept = folder.read_spec()
        assert kept is not None and kept.calibrated == () and says in kept.missing[key]
        assert not has_kernels(folder.path)
        assert {one["prediction"] for one in document["passes"]} == {"executed"}


def test_what_does_not_fit_fails_and_the_rest_goes_on(
    model: Path, first: First, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", str(model), *QUICK, *first.spec, "--phase", "prefill", "--batch", "100000000,1"]
    arguments += ["--out", str(tmp_path), "--json"]
    assert main(arguments) in (3, 4)
    document = json.loads(capsys.readouterr().out)
    assert [one["batch"] for one in document["passes"]] == [1]
    assert "GB are free" in document["failed"][0]["reason"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["gpt3"], "nearest: gpt2"),
        (["no/such-model"], "not in the catalogue"),
        (["gpt2", "--dtype", "float8"], "--dtype takes float64, float32, bfloat16, float16"),
        (["gpt2", "--prompt", "4096"], "beyond the 1024"),
        (["gpt2", "--prompt", "many"], "whole numbers"),
        (["gpt2", "--batch", "0"], "from 1"),
        (["gpt2", "--phase", "training"], "takes prefill, decode, chunk"),
        (["gpt2", "--cache", "paged"], "takes dynamic, static"),
        (["gpt2", "--weights", "mine"], "takes random, pretrained"),
        (["gpt2", "--layers", "99"], "1 to 12"),
        (["gpt2", "--device", "toaster"], "use auto, cpu, cuda"),
        (["gpt2", "--device", "cpu", "--cuda-graph"], "--cuda-graph needs a CUDA device"),
        (["gpt2", "--device", "cpu", "--compile", "--cuda-graph"], "--cuda-graph needs a CUDA device"),
        (["gpt2", "--hardware", "nowhere.json"], "cannot read nowhere.json"),
        (["gpt2", "--hardware", "nvidia-h100-sxm"], "holds nothing measured"),
        (["--resume", "nowhere"], "no run folder at nowhere"),
        (["--resume", "nowhere", "gpt2"], "name none"),
        pytest.param(
            ["gpt2", "--device", "cuda"], "--device cpu",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA"),
        ),
    ],
)  # fmt: skip
def test_one_line_and_exit_code_2(
    arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main(["run", *arguments, "--out", str(tmp_path)]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1 and says in shown.err
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_is_not_a_causal_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertForMaskedLM"]}))
    assert main(["run", str(tmp_path)]) == 2
    assert "not a causal language model" in capsys.readouterr().err


def test_results_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["run", "gpt2", "--out", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
