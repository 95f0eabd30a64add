"""Requests that become cells, and those that are refused before anything is measured."""

import pytest
import torch

from profiler.devices.backend import parse_device
from profiler.passes.job import Choices, Shapes, check_mode, plan
from profiler.record.run import RequestError

CPU = torch.device("cpu")


def test_each_combination_is_one_cell() -> None:
    shapes = Shapes(
        phases=("prefill", "decode", "chunk"), prompts=(16, 32), contexts=(8,), batches=(1, 2), dtypes=("float32",)
    )
    cells = plan(["gpt2", "opt-125m"], CPU, shapes, Choices())
    assert len(cells) == 2 * (2 + 1 + 2) * 2 == len({cell.key for cell in cells})
    assert {cell.workload.phase for cell in cells} == {"prefill", "decode", "chunk"}


def test_the_default_is_a_real_decoder_in_both_dtypes() -> None:
    cells = plan([], CPU, Shapes(), Choices())
    assert {cell.workload.dtype for cell in cells} == {"bfloat16", "float32"}
    assert {cell.workload.phase for cell in cells} == {"prefill", "decode"}


@pytest.mark.parametrize(
    ("models", "shapes", "choices", "says"),
    [
        (["gpt3"], Shapes(), Choices(), "gpt2"),
        (["gpt2"], Shapes(dtypes=("float33",)), Choices(), "float32"),
        (["gpt2"], Shapes(prompts=(2048,)), Choices(), "1024"),
        (["gpt2"], Shapes(contexts=(1024,)), Choices(), "1024"),
        (["gpt2"], Shapes(), Choices(layers=0), "1 to 12"),
        (["gpt2"], Shapes(), Choices(layers=13), "1 to 12"),
        (["gemma-2-2b"], Shapes(), Choices(attn="sdpa"), "eager"),
        (["gpt2"], Shapes(), Choices(attn="magic"), "use"),
        (["mixtral-8x7b"], Shapes(), Choices(experts="magic"), "grouped_mm"),
    ],
)
def test_what_cannot_be_had_is_refused_with_what_to_do(
    models: list[str], shapes: Shapes, choices: Choices, says: str
) -> None:
    with pytest.raises(RequestError, match=says) as refused:
        plan(models, CPU, shapes, choices)
    assert "\n" not in str(refused.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_without_a_gpu() -> None:
    with pytest.raises(RequestError, match="--device cpu"):
        plan(["gpt2"], parse_device("cuda"), Shapes(), Choices())
    with pytest.raises(RequestError, match="use auto, cpu, cuda"):
        parse_device("toaster")
    assert parse_device("auto") == CPU


def test_modes_are_refused_where_the_machine_lacks_what_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match="--cuda-graph needs a CUDA device, this is cpu"):
        check_mode("cuda-graph", CPU)
    with pytest.raises(RequestError, match="--cuda-graph needs"):
        check_mode("compile-cuda-graph", CPU)
    check_mode("cuda-graph", torch.device("cuda"))
    check_mode("eager", CPU)
    monkeypatch.setattr("profiler.devices.backend.find_spec", lambda name: None)
    with pytest.raises(RequestError, match="--compile needs Triton"):
        check_mode("compile", torch.device("cuda"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compiling_on_a_cpu_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder, exc

    def without() -> str:
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", without)
    with pytest.raises(RequestError, match=r"--compile needs a C\+\+ compiler"):
        check_mode("compile", CPU)
