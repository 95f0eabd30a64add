"""Norms and gated activations of other packages: FlashInfer, Liger, SGLang, AITER, and our own in Triton.

Example: ``[provider.name for provider in NORMS]``
"""

from typing import Any

import torch
from torch import Tensor

from profiler.kernels.serving.contract import Dims, Kernel, Provider, Result, Tensors
from profiler.kernels.serving.products import FLOATS
from profiler.kernels.serving.providers import in_library

EPS = 1e-6
"""Added to the mean of squares in a norm."""
HALVES = FLOATS[1:]
"""The dtypes that libraries for GPUs have."""
TRITON = ("triton", "profiler.kernels.serving.triton_rows")
"""The package and our module of its kernels."""


def _in_place(lib: Any, d: Dims, dtype: str, t: Tensors) -> Kernel:
    """Bind a norm that adds x to the residual in place and writes its result to x."""

    def kernel(t: Tensors) -> Result:
        lib.fused_add_rmsnorm(t["x"], t["residual"], t["weight"], EPS)
        return t["x"], t["residual"]

    return kernel


def _aiter_residual(lib: Any, d: Dims, dtype: str, t: Tensors) -> Kernel:
    def kernel(t: Tensors) -> Result:
        y, total = torch.empty_like(t["x"]), torch.empty_like(t["x"])
        lib.rmsnorm2d_fwd_with_add(y, t["x"], t["residual"], total, t["weight"], EPS)
        return y, total

    return kernel


def _flashinfer_gate(function: str) -> Provider:
    return in_library(
        "flashinfer-python",
        "flashinfer",
        lambda lib, d, dtype, t: lambda t: getattr(lib, function)(t["x"]),
        name="flashinfer",
        dtypes=HALVES,
    )


def _aiter_gate(function: str) -> Provider:
    def bind(lib: Any, d: Dims, dtype: str, t: Tensors) -> Kernel:
        gate = getattr(lib, function)

        def kernel(t: Tensors) -> Tensor:
            y = t["x"].new_empty(d["rows"], d["width"])
            gate(y, t["x"])
            return y

        return kernel

    return in_library("amd-aiter", "aiter", bind, name="aiter", dtypes=HALVES)


NORMS = (
    in_library(
        "flashinfer-python",
        "flashinfer",
        lambda lib, d, dtype, t: lambda t: lib.rmsnorm(t["x"], t["weight"], EPS),
        name="flashinfer",
        dtypes=HALVES,
    ),
    in_library(
        "liger-kernel",
        "liger_kernel.ops.rms_norm",
        lambda lib, d, dtype, t: lambda t: lib.LigerRMSNormFunction.apply(t["x"], t["weight"], EPS),
        name="liger",
    ),
    in_library(
        "amd-aiter",
        "aiter",
        lambda lib, d, dtype, t: lambda t: lib.rms_norm(t["x"], t["weight"], EPS),
        name="aiter",
        dtypes=HALVES,
    ),
    in_library(*TRITON, lambda lib, d, dtype, t: lambda t: lib.rms_norm(t["x"], t["weight"], EPS)),
)
NORMS_RESIDUAL = (
    in_library("flashinfer-python", "flashinfer", _in_place, name="flashinfer", writes=("x", "residual")),
    in_library("sglang-kernel", "sgl_kernel", _in_place, writes=("x", "residual")),
    in_library("amd-aiter", "aiter", _aiter_residual, name="aiter", dtypes=HALVES),
    in_library(
        *TRITON, lambda lib, d, dtype, t: lambda t: lib.rms_norm_residual(t["x"], t["residual"], t["weight"], EPS)
    ),
)
SWIGLU = (
    _flashinfer_gate("silu_and_mul"),
    _aiter_gate("silu_and_mul"),
    in_library(*TRITON, lambda lib, d, dtype, t: lambda t: lib.swiglu(t["x"])),
)
GEGLU = (_flashinfer_gate("gelu_tanh_and_mul"), _aiter_gate("gelu_tanh_and_mul"))
