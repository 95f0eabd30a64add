"""What-ifs of `predict`, alone, composed, over links given by hand, and as a list."""

import re
from typing import Any

import pytest
from each import each

from profiler.cli.app import main
from roofline.hardware.load import device_names
from roofline.whatif.registry import WHAT_IFS, usage

ON = ("--hardware", "nvidia-h200-sxm")
SHORT = ("--prompt", "24", "--context", "40")

WHAT_IF_OF = {
    "quantise": ("llama", "quantise:weights=4,kv=8"),
    "unfuse_attention": ("llama", "unfuse_attention"),
    "fuse_attention": ("llama", "fuse_attention"),
    "tensor_parallel": ("llama", "tensor_parallel:degree=2"),
    "pipeline_stage": ("llama", "pipeline_stage:stages=2,stage=1,link=nvlink"),
    "expert_parallel": ("qwen3_moe", "expert_parallel:degree=2"),
    "compress_kv": ("llama", "compress_kv:ratio=2"),
    "early_exit": ("llama", "early_exit:after_layers=1"),
    "remove_layers": ("llama", "remove_layers:layers=1"),
    "draft_head": ("llama", "draft_head"),
    "low_rank": ("llama", "low_rank:rank=4"),
    "sparsify_2_4": ("llama", "sparsify_2_4"),
    "lora": ("llama", "lora:rank=4,adapters=2"),
    "offload": ("llama", "offload:weights=0.5"),
    "skew_experts": ("qwen3_moe", "skew_experts:exponent=1"),
    "send_kv": ("llama", "send_kv:link=nvlink"),
}


def test_every_what_if_is_tried() -> None:
    assert set(WHAT_IF_OF) == set(WHAT_IFS)


PASS_OF = {
    "unfuse_attention": ("--phase", "prefill", "--form", "executed"),
    "fuse_attention": ("--phase", "prefill", "--form", "executed", "--attn", "eager"),
    "send_kv": ("--phase", "prefill"),
}
"""Where a what-if changes something that a decode of the ideal graph does not have."""


@each("name", WHAT_IF_OF)
def test_what_if(name: str, ask: Any, folders: dict[str, str]) -> None:
    model, text = WHAT_IF_OF[name]
    asked = (folders[model], *ON, *SHORT, *PASS_OF.get(name, ("--phase", "decode")))
    plain, changed = ask(*asked, "--batch", "4"), ask(*asked, "--batch", "4", "--what-if", text)
    (step,) = changed["workloads"]
    assert step["total"]["time_s"] == pytest.approx(sum(op["time_s"] for op in step["ops"]))
    assert step["total"] != plain["workloads"][0]["total"]
    swept = ask(*asked, "--batch", "2,3,4,5,6,7,8", "--what-if", text)["workloads"][2]
    assert swept["total"]["time_s"] == pytest.approx(step["total"]["time_s"], rel=1e-9)


@each(
    ("model", "texts"),
    [
        ("llama", ("quantise:weights=4", "tensor_parallel:degree=2")),
        ("llama", ("tensor_parallel:degree=2", "pipeline_stage:stages=2,stage=0,link=nvlink")),
        ("qwen3_moe", ("skew_experts:exponent=0.5", "expert_parallel:degree=2")),
        ("qwen3_moe", ("tensor_parallel:degree=2", "quantise:weights=8,kv=8")),
        ("llama", ("low_rank:rank=4", "offload:weights=1.0,kv=0.5")),
        ("llama", ("compress_kv:ratio=2", "quantise:kv=4")),
        ("llama", ("early_exit:after_layers=1", "lora:rank=4,adapters=2")),
        ("llama", ("remove_layers:layers=1", "sparsify_2_4")),
    ],
)
def test_what_ifs_compose(model: str, texts: tuple[str, str], ask: Any, folders: dict[str, str]) -> None:
    both = [part for text in texts for part in ("--what-if", text)]
    found = ask(folders[model], *ON, *SHORT, *both)
    assert all(step["total"]["time_s"] > 0 for step in found["workloads"])
    for text in texts:
        alone = ask(folders[model], *ON, *SHORT, "--what-if", text)
        assert alone["workloads"][1]["total"] != found["workloads"][1]["total"]


def test_links_by_hand_and_the_whole_pipeline(ask: Any, llama: str) -> None:
    asked = (llama, *ON, *SHORT, "--phase", "decode", "--batch", "2", "--output", "6", "--link", "network=1e9,1e-3")
    stages = [
        ask(*asked, "--what-if", f"pipeline_stage:stages=2,stage={i},link=network")["workloads"][0]["total"]
        for i in range(2)
    ]
    hidden_bytes = 2 * 32 * 2  # two sequences' hidden state of 32, in 16 bits
    assert [stage["link_bytes"] for stage in stages] == [hidden_bytes, 0]
    assert stages[0]["time_s"] > 1e-3 + hidden_bytes / 1e9
    pipeline = ask(*asked, "--what-if", "pipeline_stage:stages=2,link=network", "--draft", llama)
    assert (pipeline["pipeline_stages"], pipeline["micro_batches"]) == (2, 1)
    assert (pipeline["draft"], pipeline["speculate"], pipeline["acceptance"]) == (llama, 4, 0.8)
    whole = ask(*asked, "--what-if", "pipeline_stage:stages=2,link=network")["requests"][0]
    assert whole["tpot_s"] == pytest.approx(sum(stage["time_s"] for stage in stages), rel=0.05)
    parts = ask(*asked, "--what-if", "pipeline_stage:stages=2,link=network", "--micro-batches", "2")["requests"][0]
    assert whole["ttft_s"] < parts["ttft_s"] < 2.1 * whole["ttft_s"]  # the slower stage waits for its link twice


@each("option", [["--hardware", "list"], ["--what-if", "list"]])
def test_lists(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", *option]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    names = [line.partition(":")[0] for line in lines]
    assert tuple(names) == (device_names() if option[0] == "--hardware" else tuple(WHAT_IFS))


@each("width", [40, 80])
def test_lists_are_as_wide_as_the_terminal(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(["predict", "--what-if", "list"]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= width
    joined = re.sub(r"(?<=,)\n +", "", shown)
    assert all(usage(name) in joined for name in WHAT_IFS), "a form is broken at commas only"
