"""LLMServingSim's layers: nanoseconds, modules by name, the model's sizes."""

from pathlib import Path

import exchange_samples as samples
import pytest

from calibrate.exchange.formats import import_tables
from calibrate.exchange.from_llmservingsim import model_of
from calibrate.exchange.tables import ImportOptions
from calibrate.kernels.fit import observations
from profiler.record.run import RequestError
from roofline.laws.eager_modules import MODULES

SIZES = {"hidden": 4096.0, "inner": 14336.0, "heads": 32.0, "kv_heads": 8.0, "head_dim": 128.0, "vocab": 128256.0}


def test_modules_with_sizes(tmp_path: Path) -> None:
    path = samples.saved(samples.layers(), tmp_path / "layers.csv")
    asked = ImportOptions(device="nvidia-h100-sxm", model="llama-3.1-8b", sizes=SIZES)
    one = observations(import_tables("llmservingsim", [path], asked).kernels)["module", "bfloat16"]
    assert one.time_s == pytest.approx([1e-5, 4e-5] * 3)  # 5 µs a token
    assert [list(MODULES)[int(place)] for place in one.dims["module"][::2]] == ["q_proj", "input_layernorm", "attn"]
    assert {name: one.dims[name][1] for name in ("tokens", "context", "tp", *SIZES)} == {
        "tokens": 8, "context": 0, "tp": 1, **SIZES
    }  # fmt: skip
    assert one.group.tolist() == ["llama-3.1-8b 2 tokens", "llama-3.1-8b 8 tokens"] * 3


def test_the_folders_name_the_model(tmp_path: Path) -> None:
    assert model_of(tmp_path / "H100/meta-llama/Llama-3.1-8B/tp1/layers.csv") == "meta-llama/Llama-3.1-8B"
    assert model_of(tmp_path / "layers.csv") is None


def test_unknown_modules_are_counted_and_nothing_known_is_refused(tmp_path: Path) -> None:
    frame = samples.layers()
    frame.loc[0, "layer_name"] = "conv"
    asked = ImportOptions(device="nvidia-h100-sxm")
    done = import_tables("llmservingsim", [samples.saved(frame, tmp_path / "a.csv")], asked)
    assert done.kernels.sources[0].cleaned == {"unknown module": 1}
    with pytest.raises(RequestError, match="no layer_name is known"):
        import_tables("llmservingsim", [samples.saved(frame.head(1), tmp_path / "b.csv")], asked)


def test_a_wrong_unit_is_refused(tmp_path: Path) -> None:
    frame = samples.layers()
    frame["latency(ns)"] = frame["latency(ns)"] / 1e3
    path = samples.saved(frame, tmp_path / "a.csv")
    with pytest.raises(RequestError, match="looks like µs, not ns"):
        import_tables("llmservingsim", [path], ImportOptions(device="nvidia-h100-sxm"))
