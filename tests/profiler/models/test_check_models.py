"""A sample of model types through the script that checks them: what it writes, and that its checks can fail."""

import json
from pathlib import Path

import pytest
import torch

from profiler.models.build import build_meta
from scripts import check_models
from scripts.least_work import EXPLAINED, faults

KEYS = {"type", "parameters", "traced", "flops_exact", "parameters_accounted", "reason"}


@pytest.fixture(scope="module")
def rows() -> dict[str, check_models.Row]:
    types = ("llama", "bert", "xlm", "jetmoe", "xlnet", "dbrx", "musicgen")
    return {name: check_models.cover(name) for name in types}


def test_a_sample_of_types_is_good(rows: dict[str, check_models.Row]) -> None:
    for row in rows.values():
        assert check_models.is_good(row), row
        assert row["reason"] is None
        assert set(row) >= KEYS
    assert json.loads(json.dumps(rows)) == rows


def test_parameters_are_those_of_the_default_config(rows: dict[str, check_models.Row]) -> None:
    assert rows["llama"]["parameters"] == 6_738_415_616  # Llama-1-7B is the default config
    assert rows["bert"]["parameters"] == 109_514_298


def test_what_was_filled_and_what_has_no_decode_is_said(rows: dict[str, check_models.Row]) -> None:
    assert rows["dbrx"]["config"]["attn_config.clip_qkv"] == 8
    assert "keeps nothing" in rows["xlm"]["phases"]["decode"]["none"]
    assert "none" not in rows["llama"]["phases"]["chunk"]
    assert rows["xlnet"]["dtype"] == "float32"


def test_a_type_that_cannot_work_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_models, "FILLED", {})
    row = check_models.cover("dbrx")
    assert not row["traced"] and not check_models.is_good(row)
    assert "rope_theta" in row["reason"] and "\n" not in row["reason"]
    assert "rope_theta" in check_models.table([row])


def test_a_shrunk_config_keeps_the_classes_and_kinds_of_layers() -> None:
    whole = check_models.filled_config("qwen3_next", {})
    needed = {type(module).__name__ for module in build_meta(whole, "bfloat16").modules()}
    fewer = check_models.shrunk(whole, needed)
    assert 4 <= fewer.num_hidden_layers < whole.num_hidden_layers
    assert needed == {type(module).__name__ for module in build_meta(fewer, "bfloat16").modules()}
    assert check_models.shrunk(whole, needed | {"NoSuchModule"}) is whole


def test_a_filled_config_that_loses_modules_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_models, "FILLED", {"gpt2": {"activation_function": "relu"}})
    row = check_models.cover("gpt2")
    assert not row["traced"]
    assert "lost modules: NewGELUActivation" in row["reason"]


def test_the_check_sees_a_parameter_that_is_used_though_inactive() -> None:
    model = build_meta(check_models.filled_config("gpt2", {"n_layer": 1}), "float32")
    inputs = check_models.prepare(
        model, check_models.Workload(batch=1, query_tokens=3, context_tokens=0, dtype="float32")
    )
    model.spare = torch.nn.Linear(2, 2, device="meta")
    used = check_models.used_parameters(model, inputs)
    assert "transformer.h.0.mlp.c_fc.weight" in used
    assert not any(name.startswith("spare") for name in used)


def test_the_ideal_does_the_least(rows: dict[str, check_models.Row]) -> None:
    for name in ("llama", "jetmoe", "dbrx"):
        assert rows[name]["least"] == {
            "products": pytest.approx(1, abs=1e-3), "state_read": None, "state_written": None, "keys": 1,
        }  # fmt: skip
    assert rows["xlm"]["least"] is None
    assert rows["xlnet"]["least"]["products"] > 2 and "hidden states" in EXPLAINED["xlnet"]["products"]
    assert "1.000 / – / – / 1.000" in check_models.table([rows["jetmoe"]])


def test_an_ideal_that_does_more_than_the_least_is_a_fault(rows: dict[str, check_models.Row]) -> None:
    least = {"products": 1.004, "state_read": 2.0, "state_written": 1.0, "keys": 0.5}
    assert faults("minimax", least) == [
        "ideal products ÷ least is 1.004", "ideal state read ÷ least is 2", "ideal keys ÷ least is 0.5",
    ]  # fmt: skip
    assert not check_models.is_good(rows["llama"] | {"least": least})
    assert faults("xlnet", {"products": 2.8, "state_read": 1.0, "state_written": 0.0, "keys": 0.0}) == []


@pytest.mark.parametrize("name", ["minimax", "exaone4"])
def test_types_whose_ideal_did_too_much_or_kept_too_little(name: str) -> None:
    """MiniMax's state was read again as the new one; EXAONE 4 has a window in layers that see all keys."""
    row = check_models.cover(name)
    assert check_models.is_good(row), row
    assert {ratio for key, ratio in row["least"].items() if key != "products"} <= {None, 1.0}


def test_an_unknown_type_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert check_models.main(["--types", "llama,lama"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_script_writes_json_and_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "coverage.md"
    assert check_models.main(["--types", "gpt2", "--json", "--out", str(out), "--workers", "1"]) == 0
    captured = capsys.readouterr()
    (row,) = json.loads(captured.out)
    assert row["type"] == "gpt2" and check_models.is_good(row)
    assert captured.err.rstrip().endswith("1 of 1")
    assert "| gpt2 | 124,439,808 |" in out.read_text()
