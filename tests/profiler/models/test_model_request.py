"""Requests that a device or a model cannot serve are refused before anything is built."""

import pytest
import torch
from tiny import tiny

from profiler.models.request import DTYPES, check_request, context_limit, parse_dtype
from profiler.record.run import RequestError
from roofline.workload import Workload


def work(query: int = 1, context: int = 0) -> Workload:
    return Workload(batch=1, query_tokens=query, context_tokens=context, dtype="float32")


def refusal(**asked: object) -> str:
    defaults = {"device": "cpu", "dtype": "float32", "workload": work()}
    with pytest.raises(RequestError) as caught:
        check_request(tiny("llama"), **{**defaults, **asked})
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", torch.float16])
def test_what_a_cpu_can_do(dtype: str | torch.dtype) -> None:
    check_request(tiny("llama"), device="cpu", dtype=dtype, workload=work(6, 250))


def test_dtypes_that_no_model_is_built_in() -> None:
    assert refusal(dtype="float8_e4m3fn") == (
        f"--dtype float8_e4m3fn is not a type that models are built in; use {', '.join(DTYPES)}"
    )
    assert "--dtype bf16 is unknown" in refusal(dtype="bf16")
    assert "int8 is not a type" in refusal(dtype="int8")
    assert parse_dtype(torch.bfloat16) is torch.bfloat16


def test_devices_that_are_not_here() -> None:
    assert "is unknown" in refusal(device="gpu")
    assert "not measured" in refusal(device="meta")
    if not torch.cuda.is_available():
        assert "--device cpu" in refusal(device="cuda")


def test_a_context_beyond_the_models() -> None:
    assert refusal(workload=work(7, 250)).startswith("257 tokens (250 of context, 7 new) are beyond the 256")
    with pytest.raises(RequestError, match="256"):
        check_request(tiny("gpt2"), device="cpu", dtype="float32", workload=work(257))
    check_request(tiny("mamba"), device="cpu", dtype="float32", workload=work(1, 10**6))
    assert context_limit(tiny("mamba")) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_what_a_gpu_can_do() -> None:
    check_request(tiny("llama"), device="cuda", dtype="float16", workload=work())
    assert "GPUs here" in refusal(device="cuda:99")
