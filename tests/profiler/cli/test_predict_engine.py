"""`predict --engine` as a user runs it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny

from profiler.cli.app import main

ON = ("--hardware", "nvidia-h100-sxm")


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "mixture"
    tiny("qwen3_moe").save_pretrained(folder)
    return str(folder)


def test_a_model_on_an_engine(ask: Any, mixture: str) -> None:
    more = ("--phase", "decode", "--batch", "4", "--context", "64", "--prompt", "32", "--output", "16")
    found = ask(mixture, "--engine", "vllm:0.18.0", *ON, *more, "--what-if", "tensor_parallel:degree=2")
    assert (found["engine"]["name"], found["ranks"], found["parallel"]["moe_tp"]) == ("vllm", 2, 2)
    (step,) = found["workloads"]
    assert step["time_s"] == pytest.approx(
        sum(step["kernels_s"].values()) + sum(own["time_s"] for own in step["engine_s"].values())
    )
    assert {name for name, seconds in step["kernels_s"].items() if seconds} == {
        "products", "experts", "decode_attention", "moved",
    }  # fmt: skip
    assert step["without_law"] == pytest.approx(1)
    assert any("no law of nvidia-h100-sxm" in note for note in found["notes"])
    assert found["requests"][0]["ttft_s"] > 0
    spread = ask(mixture, "--engine", "trtllm:1.1.0", *ON, *more, "--what-if", "expert_parallel:degree=4")
    assert (spread["ranks"], spread["parallel"]["attention_dp"], spread["parallel"]["moe_ep"]) == (1, 4, 4)


def test_the_report_names_what_priced_each_part(capsys: pytest.CaptureFixture[str], mixture: str) -> None:
    assert main(["predict", mixture, "--engine", "sglang", *ON, "--mix", "1x32@0,4x1@64", "--phase", "decode"]) == 0
    shown = capsys.readouterr().out
    for words in ("host: a step", "near experts bfloat16", "the engine's estimate", "without a version"):
        assert words in " ".join(shown.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--engine", "tgi"), "no engine 'tgi'; known: sglang, trtllm, vllm"),
        (("--engine", "vllm:new"), "a version is a number"),
        (("--engine", "vllm", "--what-if", "tensor_parallel:degree=3"), "4 query heads do not divide by 3 ranks"),
        (("--engine", "vllm", "--what-if", "expert_parallel:degree=3"), "4 experts do not divide by 3 ranks"),
        (("--engine", "vllm", "--what-if", "tensor_parallel:degree=0"), "use 1 or more"),
        (("--engine", "vllm", "--what-if", "offload:weights=0.5"), "--engine knows no what-if offload"),
        (("--engine", "vllm", "--what-if", "quantise:weights=3"), "no kernel for that what-if quantise"),
        (("--engine", "vllm", "--csv", "x.csv"), "--csv means nothing to --engine"),
        (("--engine", "vllm", "--batch", "9000"), "more than an engine holds"),
    ],
)
def test_what_an_engine_does_not_do_is_one_line(
    capsys: pytest.CaptureFixture[str], mixture: str, arguments: tuple[str, ...], words: str
) -> None:
    assert main(["predict", mixture, *ON, *arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words in line


def test_an_engine_needs_one_gpu_with_a_link(
    capsys: pytest.CaptureFixture[str], mixture: str, spec_file: Callable[..., str], tmp_path: Path
) -> None:
    own = spec_file(tmp_path / "own.json")
    two = ("--what-if", "tensor_parallel:degree=2", "--link", "nvlink=1e11,1e-6")
    for hardware, more in (("nvidia-h100-sxm,nvidia-l40s", ()), (own, two[:2]), (own, two)):
        assert main(["predict", mixture, "--engine", "vllm", "--hardware", hardware, *more]) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
