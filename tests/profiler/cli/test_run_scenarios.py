"""`run --scenario` as a user runs it, on small real models on the CPU.

Times of a busy machine prove little: only the fastest of several passes are compared, and only where one has several
times the work of the other. The shape of a curve is asserted of its prediction, and of what is counted.
"""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from graphs import peaks
from transformers import AutoConfig

from profiler.cli.app import main
from profiler.devices.environment import collect
from profiler.record.folder import RunFolder
from roofline.hardware.spec import HardwareSpec

SIZES = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 2048, "bos_token_id": 0, "eos_token_id": 1,
    "pad_token_id": None, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
}  # fmt: skip


@dataclass(frozen=True)
class Ran:
    code: int
    document: dict[str, Any]

    @property
    def folder(self) -> RunFolder:
        return RunFolder.open(Path(self.document["run"]))

    def answer(self, name: str) -> dict[str, Any]:
        return next(one for one in self.document["scenarios"] if one["scenario"] == name)

    def curve(self, name: str, title: str) -> list[dict[str, Any]]:
        return next(curve["rows"] for curve in self.answer(name)["curves"] if curve["title"] == title)

    def fastest_s(self, end: str) -> float:
        """The fastest pass of the cell whose key ends so."""
        (wall_s,) = [result.wall_s for result in self.folder.results() if result.cell.key.endswith(end)]
        return min(wall_s)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("scenarios")
    config = AutoConfig.for_model("qwen3_moe", **SIZES)
    config.architectures = ["Qwen3MoeForCausalLM"]
    config.save_pretrained(folder / "small")
    name = collect(torch.device("cpu")).device
    levels = (("L2", 1e6, 4e10), ("DRAM", 1e10, 1e10))
    spec = HardwareSpec(name=name, kind="cpu", measured=peaks(matrix=5e10, vector=1e10, levels=levels, host_s=5e-6))
    (folder / "spec.json").write_text(spec.model_dump_json())
    asked = (
        "verify:tokens=8,context=32,draft_layers=1,acceptance=0.8",
        "prefix:prompt=1024,shared=0.9375",
        "mixed:chunk=64,sequences=1,context=32",
        "experts:batch=1|8,context=32",
        "early_exit:layers=5,context=32",
    )
    names = [word for text in asked for word in ("--scenario", text)]
    written = folder / "document.json"
    common = ["--device", "cpu", "--dtype", "float32", "--seconds", "0.1", "--no-calibrate", "--json"]
    with pytest.MonkeyPatch.context() as patch, written.open("w") as out:
        patch.setattr("sys.stdout", out)
        code = main(
            [
                "run",
                str(folder / "small"),
                *names,
                *common,
                "--hardware",
                str(folder / "spec.json"),
                "--out",
                str(folder),
            ]
        )
    return Ran(code, json.loads(written.read_text()))


def test_what_a_model_cannot_do_is_refused_and_the_others_go_on(ran: Ran) -> None:
    assert ran.code == 2
    assert ran.answer("early_exit")["refused"] == "leaving after 5 layers: the model has 2; use fewer"
    assert [one["scenario"] for one in ran.document["scenarios"] if one["refused"]] == ["early_exit"]
    assert not [line for one in ran.document["scenarios"] for line in one["lost"]]
    assert ran.folder.run.finished


def test_a_verification_grows_slower_than_its_tokens(ran: Ran) -> None:
    (ratio,) = ran.curve("verify", "verification ÷ decode step, T(k)/T(1)")
    assert ratio["x"] == 8 and 1 < ratio["predicted"] < 9
    assert ran.fastest_s("chunk-b1-q9-c32-float32-all-logits-default") < 9 * ran.fastest_s(
        "decode-b1-q1-c32-float32-default"
    )
    (faster,) = ran.curve("verify", "tokens a second ÷ without drafts")
    assert (faster["x"], faster["series"]) == (0.8, "k = 8") and faster["predicted"] > 0


def test_a_reused_prefix_saves(ran: Ran) -> None:
    (saved,) = ran.curve("prefix", "saved part of the prefill")
    assert saved["x"] == 960 and 0.5 < saved["predicted"] < 1
    assert ran.fastest_s("chunk-b1-q64-c960-float32-default") < ran.fastest_s("prefill-b1-q1024-c0-float32-default")
    (even,) = ran.curve("prefix", "break-even bandwidth")
    kv_bytes = 2 * 2 * 960 * 2 * 16 * 4  # keys and values, layers, tokens, heads, width, bytes
    load, again = ran.curve("prefix", "load or compute the prefix")
    assert again["series"] == "compute again" and even["predicted"] == pytest.approx(kv_bytes / again["predicted"])
    assert load["predicted"] < again["predicted"]


def test_a_mixed_step_reads_the_weights_once_for_all_its_sequences(ran: Ran) -> None:
    (mixed,) = [result for result in ran.folder.results() if result.cell.beside]
    graph = ran.folder.read_graph(mixed.graph or "")
    assert [op.dims["m"] for op in graph.ops if op.path.endswith("q_proj")] == [64 + 1] * 2
    attention = [op for op in graph.ops if op.kind == "attention"]
    assert [(op.dims["query"], op.dims["kv"]) for op in attention][:1] == [(64, 64)] and len(attention) == 4
    (added,) = ran.curve("mixed", "time that the chunk adds ÷ its time alone")
    assert 0 < added["predicted"] < 1  # weights are read once instead of twice


def test_the_step_table_has_each_step_of_the_model_as_it_is(ran: Ran) -> None:
    with (ran.folder.path / "steps.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    passes = [one for one in ran.document["passes"] if not one["change"] and one["status"] != "invalid"]
    assert [float(row["measured_s"]) for row in rows] == [one["wall_s"] for one in passes]
    sizes = (
        "prefill_sequences",
        "prefill_tokens",
        "prefill_context",
        "decode_sequences",
        "decode_context",
        "all_logits",
    )
    steps = {tuple(int(row[name]) for name in sizes) for row in rows}
    assert steps <= {
        (0, 0, 0, 1, 32, 0), (1, 9, 32, 0, 0, 1), (1, 1024, 0, 0, 0, 0), (1, 64, 960, 0, 0, 0), (1, 64, 0, 0, 0, 0),
        (1, 64, 0, 1, 32, 0), (0, 0, 0, 8, 32, 0),
    }  # fmt: skip
    assert len(steps) == len(rows)


def test_experts_follow_the_routing(ran: Ran) -> None:
    distinct = {row["x"]: row for row in ran.curve("experts", "distinct experts of a layer")}
    assert distinct[1]["measured"] == distinct[1]["predicted"] == 2  # a token chooses two
    assert 2 <= distinct[8]["measured"] <= 8
    assert distinct[8]["predicted"] == pytest.approx(8 * (1 - (1 - 2 / 8) ** 8))
    times = {row["x"]: row["predicted"] for row in ran.curve("experts", "products of all experts")}
    assert times[1] < times[8]


def test_the_run_is_shown_again_as_it_was(ran: Ran, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(ran.folder.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["scenarios"] == ran.document["scenarios"]
    assert main(["show", str(ran.folder.path)]) == 0
    shown = capsys.readouterr().out
    assert "verification ÷ decode step, T(k)/T(1)" in shown and "not measured: leaving after 5 layers" in shown
    page = (ran.folder.path / "report.html").read_text()
    assert "break-even bandwidth" in page


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--scenario", "verfy"], "no scenario 'verfy'; did you mean verify?"),
        (["--scenario", "verify", "--prompt", "128"], "--prompt: a scenario chooses its own passes"),
        (["--scenario", "verify", "--scenario", "verify:tokens=2"], "scenario verify is given twice"),
        (["--scenario", "verify", "--resume", "x"], "--resume continues with the scenarios of its run"),
    ],
)
def test_requests_that_cannot_be_meant(
    arguments: list[str], why: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["run", *arguments, "--device", "cpu", "--out", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert why in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_scenarios_are_listed_with_their_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--scenario", "list", "--json"]) == 0
    listed = {row["name"]: row for row in json.loads(capsys.readouterr().out)["scenarios"]}
    assert listed["prefix"]["usage"].startswith("prefix:prompt=512,shared=") and len(listed) == 13
    assert main(["run", "--scenario", "list"]) == 0
    shown = capsys.readouterr().out
    assert all(f"{name}:" in shown for name in listed)
