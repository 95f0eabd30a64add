"""The check catches kernels that are wrong in ways that real ones have been, and calls none wrong that is right."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from profiler.kernels.serving.check import Subject, check_kernel
from profiler.kernels.serving.contract import NotInstalled, Provider, Unsupported
from profiler.kernels.serving.registry import Registry
from profiler.record.suite_table import Check

PLANTED = Path(__file__).parents[2] / "data" / "planted_kernels.py"
CPU = torch.device("cpu")
STATUSES = {
    "input_mutation": {"writes its input"},
    "view_of_input": {"writes its input"},
    "wrong_dtype": {"wrong dtype"},
    "race": {"non-deterministic"},
    "past_valid_length": {"not finite"},
    "fp16_overflow": {"not finite"},
    "uninitialised_memory": {"not finite"},
    "nan_for_masked_row": {"not finite"},
    "one_buffer": {"writes its input"},
    "returns_early": {"non-deterministic"},
}
"""What the check calls a planted kernel; "wrong numbers" where it is not listed."""
REGISTRY = Registry.of([str(PLANTED)])
REAL = [
    (family.name, provider.name)
    for family in Registry.of(()).families.values()
    for provider in family.providers
    if provider.name != "inductor" and "cpu" in provider.devices
]
"""Inductor takes seconds for each size; `kernels --check-only` compares it too."""


def checked(family: str, provider: str, dtype: str | None = None, seed: int = 0, draws: int = 2) -> Check:
    chosen = REGISTRY.family(family)
    with torch.no_grad():
        subject = Subject(chosen, chosen.provider(provider), dtype or chosen.dtypes[0], CPU)
        return check_kernel(subject, None, seed=seed, draws=draws)


def own(family: str, function: Callable[..., object]) -> Check:
    """Check a function of a dict of operands."""
    chosen = REGISTRY.family(family)
    with torch.no_grad():
        subject = Subject(chosen, Provider("own", "torch", lambda d, dtype, t: function), "float32", CPU)  # type: ignore[arg-type, return-value]
        return check_kernel(subject, None)


@pytest.mark.parametrize(("family", "provider"), sorted(REGISTRY.listed), ids=lambda name: name.split(":")[-1])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_each_planted_kernel_is_caught(family: str, provider: str, dtype: str) -> None:
    dtypes = REGISTRY.family(family).dtypes
    check = checked(family, provider, dtype if dtype in dtypes else dtypes[0])
    assert check.status in STATUSES.get(provider.partition(":")[2], {"wrong numbers"})
    assert check.reason and "\n" not in check.reason


@pytest.mark.parametrize(("family", "provider"), REAL)
def test_no_real_provider_is_called_wrong(family: str, provider: str) -> None:
    chosen = REGISTRY.family(family)
    for i, dtype in enumerate(chosen.dtypes):
        try:
            chosen.provider(provider).check("cpu", dtype)
        except (Unsupported, NotInstalled):
            continue
        check = checked(family, provider, dtype, seed=100 + i, draws=1)
        assert check.status in ("passed", "unsupported"), check.reason
        assert check.worst is None or check.worst <= 1


def norm(t: dict[str, Tensor]) -> Tensor:
    x = t["x"]
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * t["weight"]


def test_what_a_kernel_returns_is_named() -> None:
    assert own("rms_norm", norm).status == "passed"
    assert own("rms_norm", lambda t: None).status == "wrong shape"
    assert own("rms_norm", lambda t: (norm(t), norm(t))).status == "wrong shape"
    shape = own("rms_norm", lambda t: norm(t)[:, :-1])
    assert shape.status == "wrong shape" and "expected: [" in (shape.reason or "")
    off = own("rms_norm", lambda t: norm(t).index_fill(1, torch.tensor([3]), 7.0))
    assert off.status == "wrong numbers" and off.where is not None and ", 3] is 7 instead of" in off.where
    assert off.worst is not None and off.worst > 1


def test_whatever_a_kernel_raises_is_a_status() -> None:
    def fails(error: Exception) -> Callable[..., object]:
        def run(t: dict[str, Tensor]) -> object:
            raise error

        return run

    assert own("rms_norm", fails(RuntimeError("first line\nsecond"))).status == "runtime error"
    assert own("rms_norm", fails(NotImplementedError("only of 64"))) == Check(
        status="unsupported", reason="only of 64", notes=own("rms_norm", fails(NotImplementedError("only of 64"))).notes
    )

    def bind(d: object, dtype: str, t: object) -> object:
        raise SyntaxError("line 1")

    family = REGISTRY.family("rms_norm")
    subject = Subject(family, Provider("own", "torch", bind), "float32", CPU)  # type: ignore[arg-type]
    assert check_kernel(subject, None).status == "compile error"


def test_writing_beyond_an_operand_is_seen() -> None:
    def run(t: dict[str, Tensor]) -> Tensor:
        y = norm(t)
        x = t["x"]
        x.as_strided((1,), (1,), x.storage_offset() + x.numel()).zero_()
        return y

    check = own("rms_norm", run)
    assert check.status == "writes its input" and "beyond the end of x" in (check.reason or "")


def test_reading_beyond_an_operand_is_seen() -> None:
    def run(t: dict[str, Tensor]) -> Tensor:
        x = t["x"]
        after = x.as_strided((1,), (1,), x.storage_offset() + x.numel())
        return norm(t) + 0 * after

    assert own("rms_norm", run).status == "not finite"


def test_a_kernel_that_needs_even_addresses_is_right_with_a_note() -> None:
    def run(t: dict[str, Tensor]) -> Tensor:
        if t["x"].storage_offset() % 4:
            raise RuntimeError("misaligned address")
        return norm(t)

    check = own("rms_norm", run)
    assert check.status == "passed" and any("odd addresses" in note for note in check.notes)


@pytest.mark.parametrize(
    ("family", "provider", "dims"),
    [
        ("linear_int8_weights", "torch._weight_int8pack_mm", {"m": 2, "n": 32, "k": 64}),
        ("grouped_product", "torch.grouped_mm", {"experts": 2, "topk": 1, "tokens": 3, "n": 16, "k": 16, "skew": 0}),
    ],
)
def test_kernels_that_need_aligned_operands_run_at_their_own_sizes(
    family: str, provider: str, dims: dict[str, int]
) -> None:
    chosen = REGISTRY.family(family)
    subject = Subject(chosen, chosen.provider(provider), "bfloat16" if family == "grouped_product" else "int8_wo", CPU)
    with torch.no_grad():
        check = check_kernel(subject, dims, draws=1)
    assert check.status == "passed" and check.compared >= 2, check.reason


def test_kernels_in_triton_are_right_by_its_interpreter() -> None:
    """In a process of its own, since Triton looks for the interpreter when it is first imported."""
    pytest.importorskip("triton")
    code = """
        from dataclasses import replace
        import torch
        from profiler.kernels.serving.check import Subject, check_kernel
        from profiler.kernels.serving.families import family_named
        for name in ("rms_norm", "rms_norm_residual", "swiglu"):
            family = family_named(name)
            provider = replace(family.provider("triton"), devices=("cpu",))
            with torch.no_grad():
                check = check_kernel(Subject(family, provider, "bfloat16", torch.device("cpu")), None, draws=1)
            assert check.status == "passed", check.reason
    """
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, env=environment)


def test_a_slow_compiler_leaves_sizes_out_and_says_so() -> None:
    family = REGISTRY.family("rms_norm")
    seconds = iter(range(1000))
    subject = Subject(family, Provider("own", "torch", lambda d, dtype, t: norm), "float32", CPU)
    check = check_kernel(subject, None, draws=2, longest_s=2.5, now=lambda: float(next(seconds)))
    assert check.status == "passed" and check.compared == 3 * 2  # three sizes began before 2.5 s
    assert any("small draws were left out" in note for note in check.notes)


def test_an_output_in_place_is_no_mutation() -> None:
    family = REGISTRY.family("kv_append")
    assert family.mutates
    assert checked("kv_append", "torch").status == "passed"
    strict = replace(family, mutates=())
    subject = Subject(strict, family.provider("torch"), "float32", CPU)
    assert check_kernel(subject, None).status != "passed"
