"""Modules of one model calibrated, those of another scored: as a user runs it, on made-up tables of LLMServingSim."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from profiler.cli.app import main
from roofline.hardware.load import load_device
from roofline.hardware.spec import facts_of
from roofline.laws.eager_modules import MODULES, SIZES
from roofline.laws.kinds import law_named

SMALL = {"hidden": 2048, "inner": 5632, "heads": 32, "kv_heads": 4, "head_dim": 64, "vocab": 32000}
OTHER = {"hidden": 5120, "inner": 17408, "heads": 40, "kv_heads": 8, "head_dim": 128, "vocab": 151936}
DEVICE = "nvidia-h100-sxm"


def table(path: Path, sizes: dict[str, int], tokens: list[int], noise: float = 0.03) -> Path:
    """layers.csv of a model, timed by the law with other constants than its priors."""
    facts, law = facts_of(load_device(DEVICE)), law_named("module")
    changed = {"pointwise.launch": 1.6, "pointwise.memory": 0.8, "matmul.peak": 0.8}
    values = {c.name: c.prior * changed.get(c.name, 1.0) for c in law.constants(facts, "bfloat16")}
    rows = [(name, count, context) for name in MODULES for count in tokens for context in (0, 256)]
    dims = {name: np.full(len(rows), float(sizes.get(name, 1))) for name in SIZES} | {
        "module": np.array([float(list(MODULES).index(name)) for name, _, _ in rows]),
        "tokens": np.array([float(count) for _, count, _ in rows]),
        "context": np.array([float(context) for _, _, context in rows]),
    }
    time_s = law.time_s(dims, facts, "bfloat16", values)
    time_s = time_s * np.exp(noise * np.random.default_rng(0).normal(size=len(rows)))
    frame = pd.DataFrame(rows, columns=["layer_name", "input", "kv_cache"]).assign(tp_size=1)
    frame["latency(ns)"] = np.maximum(time_s * 1e9, 1).round().astype(int)
    frame.to_csv(path, index=False)
    return path


def config(folder: Path, sizes: dict[str, int]) -> str:
    """A folder with the config of a Llama-like decoder of these sizes."""
    folder.mkdir()
    content = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2,
        "hidden_size": sizes["hidden"], "intermediate_size": sizes["inner"], "num_attention_heads": sizes["heads"],
        "num_key_value_heads": sizes["kv_heads"], "head_dim": sizes["head_dim"], "vocab_size": sizes["vocab"],
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(content))
    return str(folder)


def imported(
    base: Path, name: str, sizes: dict[str, int], tokens: list[int], capsys: pytest.CaptureFixture[str]
) -> str:
    path = table(base / f"{name}.csv", sizes, tokens)
    asked = ["import", "llmservingsim", str(path), "--device", DEVICE, "--name", name, "--out", str(base), "--json"]
    assert main([*asked, "--model", config(base / f"config-{name}", sizes)]) == 0
    return str(json.loads(capsys.readouterr().out)["run"])


def test_modules_of_another_model_are_predicted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen = imported(tmp_path, "small", SMALL, [1, 8, 64, 500, 4096], capsys)
    other = imported(tmp_path, "other", OTHER, [1, 16, 200, 2048], capsys)
    assert main(["calibrate", seen, "--score", other, "--points", "120", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (kind,) = found["kinds"]
    assert (kind["kind"], kind["points"], kind["scored"]) == ("module", 120, 15 * 4 * 2)
    assert kind["mape"] < 0.08 < kind["four_constant_mape"]
    *parts, law = load_device(found["spec"]).calibrated
    part = {part.kind: part for part in parts}
    prior = {c.name: c.prior for c in law_named("pointwise").constants(facts_of(load_device(DEVICE)), "bfloat16")}
    assert part["pointwise"].values["launch"] == pytest.approx(1.6 * prior["launch"], rel=0.15)
    product = {"m": np.array([500.0]), "n": np.array([2048.0]), "k": np.array([2048.0])}
    module = {
        "module": np.array([list(MODULES).index("o_proj")], dtype=float),
        "context": np.zeros(1),
        "tp": np.ones(1),
    }
    module |= {name: np.array([float(size)]) for name, size in SMALL.items()} | {"tokens": np.array([500.0])}
    facts = facts_of(load_device(DEVICE))
    assert part["matmul"].time_s(product, facts) == pytest.approx(law.time_s(module, facts), rel=0.15)
    assert (law.kind, law.law, law.domain["hidden"].high) == ("module", "module", SMALL["hidden"])
    dims = {
        name: np.full(1, float({"tokens": 64, "context": 0, "tp": 1}.get(name, OTHER.get(name, 0))))
        for name in law.domain
    }
    low, high = law.interval(dims, facts_of(load_device(DEVICE)))
    assert low < law.time_s(dims, facts_of(load_device(DEVICE))) < high
    assert law.outside(dims).all()
