"""Pretrained weights that are there, missing, or damaged."""

from pathlib import Path

import pytest
import torch
from tiny import tiny

from profiler.models.resolve import resolve
from profiler.models.weights import build, require_weights
from profiler.plan import Choices, Shapes, plan
from profiler.record.run import RequestError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    build(tiny("llama"), "cpu", "float32").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_weights_of_a_folder(folder: Path) -> None:
    require_weights(str(folder))
    config = resolve(str(folder)).config
    model = build(config, "cpu", "float32", weights="pretrained", name=str(folder))
    want = build(tiny("llama"), "cpu", "float32")
    assert torch.equal(model.lm_head.weight, want.lm_head.weight)


def test_a_folder_without_weights_is_refused_before_anything_runs(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(RequestError, match=r"has no weights .* use --weights random"):
        plan([str(folder)], torch.device("cpu"), Shapes(dtypes=("float32",)), Choices(weights="pretrained"))


def test_damaged_weights_are_one_line(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(RequestError, match="are damaged") as refused:
        build(resolve(str(folder)).config, "cpu", "float32", weights="pretrained", name=str(folder))
    assert "\n" not in str(refused.value)


def test_too_few_layers_are_refused_before_anything_runs() -> None:
    with pytest.raises(RequestError, match="--layers 4 or more"):
        shapes = Shapes(phases=("decode",), contexts=(8,), dtypes=("bfloat16",))
        plan(["deepseek-v3"], torch.device("cpu"), shapes, Choices(layers=3))
