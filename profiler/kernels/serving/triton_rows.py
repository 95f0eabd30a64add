"""Norms and gated activations in Triton, one program a row, as the usual kernels of serving engines have them.

This module imports Triton, so that it is imported only when one of its kernels is bound.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _rms_norm(x, residual, weight, y, total, width, eps, ADDS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    at = tl.program_id(0) * width + columns
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if ADDS:
        value += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(total + at, value.to(total.dtype.element_ty), mask=inside)
    scale = tl.rsqrt(tl.sum(value * value, 0) / width + eps)
    result = value * scale * tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + at, result.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _swiglu(x, y, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row, columns = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    gate = tl.load(x + row * 2 * width + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x + row * 2 * width + width + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row * width + columns, (gate * tl.sigmoid(gate) * up).to(y.dtype.element_ty), mask=inside)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return the RMSNorm of rows × width."""
    y, (rows, width) = torch.empty_like(x), x.shape
    _rms_norm[rows,](x, x, weight, y, y, width, eps, ADDS=False, BLOCK=triton.next_power_of_2(width))
    return y


def rms_norm_residual(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the RMSNorm of x + residual, rows × width, and that sum."""
    y, total, (rows, width) = torch.empty_like(x), torch.empty_like(x), x.shape
    _rms_norm[rows,](x, residual, weight, y, total, width, eps, ADDS=True, BLOCK=triton.next_power_of_2(width))
    return y, total


def swiglu(x: Tensor) -> Tensor:
    """Return SiLU of the first half of each row × the second, rows × width of rows × 2 width."""
    rows, width = x.shape[0], x.shape[1] // 2
    y = torch.empty(rows, width, dtype=x.dtype, device=x.device)
    block = min(1024, triton.next_power_of_2(width))
    _swiglu[rows, triton.cdiv(width, block)](x, y, width, BLOCK=block)
    return y
