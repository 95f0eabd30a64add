"""What tests of verbs share: models and graphs to predict, and a device of one's own."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from graphs import peaks
from tiny import tiny

from profiler.cli.app import main
from profiler.models.graphs import ModelGraphs, Tracing
from roofline.hardware.spec import HardwareSpec
from roofline.workload import Workload

ARCHITECTURES = {
    "llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM",
    "mamba": "MambaForCausalLM", "gpt2": "GPT2LMHeadModel",
}  # fmt: skip
MODULE = "example_module:tiny_mlp"


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    found = {}
    for name, architecture in ARCHITECTURES.items():
        folder = tmp_path_factory.mktemp("models") / name
        config = tiny(name)
        config.architectures = [architecture]
        config.save_pretrained(folder)
        found[name] = str(folder)
    return found


@pytest.fixture(scope="session")
def llama(folders: dict[str, str]) -> str:
    return folders["llama"]


@pytest.fixture(scope="session")
def saved(llama: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("graphs") / "llama.json"
    assert main(["predict", llama, "--save-graph", str(path)]) == 0
    return str(path)


@pytest.fixture(scope="session")
def one_graph(tmp_path_factory: pytest.TempPathFactory) -> str:
    """As a run leaves it in graphs/*.json."""
    path = tmp_path_factory.mktemp("run") / "graph.json"
    asked = Workload(batch=2, query_tokens=16, context_tokens=0, dtype="float32")
    path.write_text(ModelGraphs(tiny("llama"), "llama", Tracing("float32")).whole(asked).model_dump_json())
    return str(path)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "example_module.py").write_text(
        "import torch\n"
        "def tiny_mlp():\n"
        "    layers = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 4))\n"
        "    return layers, (torch.ones(3, 8),)\n"
        "not_a_factory = 7\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield MODULE
    sys.modules.pop("example_module", None)


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run `predict … --json` and give the document."""

    def run(*arguments: str) -> dict[str, Any]:
        capsys.readouterr()
        assert main(["predict", *arguments, "--json"]) == 0
        shown = capsys.readouterr()
        document: dict[str, Any] = json.loads(shown.out, parse_constant=pytest.fail)
        return document

    return run


@pytest.fixture
def spec_file() -> Callable[..., str]:
    """Write a device file of one's own, with other fields where they are given."""

    def write(path: Path, **fields: Any) -> str:
        levels = (("L2", 2e5, 1.5e12), ("HBM", 1e11, 1e12))
        rates = peaks(matrix=1e14, vector=1e13, levels=levels, dtype="bfloat16", host_s=4e-6)
        spec = HardwareSpec(
            name="mine", kind="cuda", datasheet=peaks(1e15, 1e14, (("HBM", 1e11, 2e12),), dtype="bfloat16")
        )
        document = json.loads(spec.model_copy(update={"measured": rates}).model_dump_json()) | fields
        path.write_text(json.dumps(document))
        return str(path)

    return write
