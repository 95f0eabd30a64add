"""Products whose weights and activations are in one number format: 32, 16 or 8 bits, and the router's.

Weights lie n × k, as `nn.Linear` and checkpoints keep them. All are scaled so that results have a deviation near 1:
then a tolerance is the same at every depth.
"""

from collections.abc import Callable, Iterable
from math import ceil
from typing import TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor

from profiler.kernels.serving.contract import (
    Dims,
    Draw,
    Family,
    Kernel,
    ModelStep,
    Provider,
    Tensors,
    Tolerance,
    Unsupported,
    amount,
    in_own_dtype,
    points,
)
from profiler.kernels.serving.providers import in_library, torch_and_inductor
from roofline.dtypes import ELEMENT_BYTES
from roofline.laws.work import Work

SIZES = ("m", "n", "k")
CHECKS = points(SIZES, (1, 48, 96), (5, 33, 77), (17, 80, 160), (65, 130, 257))
FLOATS = ("float32", "bfloat16", "float16")
BLOCK = 128
"""Rows and columns of weights, and columns of activations, that share a scale (DeepSeek-V3, arXiv 2412.19437, 3.3)."""
EPSILON = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
"""Distance from 1 to the next number: a rounding is off by half of it."""


def tolerance(dtype: str, roundings: float, terms: int, absolute: float = 0.0) -> Tolerance:
    """Return limits for results near 1: so many roundings to the dtype, and sums of so many terms in float32."""
    sums = 4 * EPSILON["float32"] * terms**0.5
    limit = max(roundings / 2 * EPSILON[dtype], absolute) + sums
    what = f"{roundings:g} roundings to {dtype} and sums of {terms} terms in float32"
    return Tolerance(limit, roundings / 2 * EPSILON[dtype] + sums, what)


def of_step(step: ModelStep) -> Iterable[dict[str, int]]:
    """Return the sizes of the products of a model's step."""
    return points(SIZES, *step.products)


class Product(TypedDict):
    """The fields that all families of products with weights have in common."""

    outputs: tuple[str, ...]
    work: Callable[[Dims, str], Work]
    kind: Callable[[Dims, str], tuple[str, dict[str, float]]]
    weights: tuple[str, ...]


def product(moved: Callable[[Dims, float], float], *weights: str, out_bytes: float = 2.0) -> Product:
    """Return the common fields; `moved`: bytes of the operands, of sizes and the bytes of an element of the dtype.

    `weights`: operands that a provider may pack; `out_bytes`: of an element of the result, 0 for one of the dtype.
    """

    def work(d: Dims, dtype: str) -> Work:
        size = ELEMENT_BYTES.get(dtype, 1.0)
        return amount(2 * d["m"] * d["n"] * d["k"], moved(d, size) + (out_bytes or size) * d["m"] * d["n"])

    return {
        "outputs": ("y",),
        "work": work,
        "kind": lambda d, dtype: ("matmul", {name: float(d[name]) for name in SIZES}),
        "weights": weights,
    }


def returns_bfloat16(dtype: str) -> dict[str, torch.dtype]:
    """Return the dtype of the result of operands in 8 or 4 bits."""
    del dtype
    return {"y": torch.bfloat16}


def _linear_operands(d: Dims, dtype: str, draw: Draw) -> Tensors:
    kind = getattr(torch, dtype)
    return {
        "x": draw.normal(d["m"], d["k"], dtype=kind),
        "weight": draw.normal(d["n"], d["k"], dtype=kind, scale=d["k"] ** -0.5),
    }


def _both(d: Dims, size: float) -> float:
    return size * (d["m"] + d["n"]) * d["k"]


def _linear(d: Dims, t: Tensors) -> Tensor:
    return F.linear(t["x"], t["weight"])


def _linear_packed(d: Dims, dtype: str, t: Tensors) -> Kernel:
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported() and dtype == "bfloat16":
        raise Unsupported("oneDNN has no bfloat16 on this processor")
    if not torch.ops.mkldnn._is_mkldnn_fp16_supported() and dtype == "float16":
        raise Unsupported("oneDNN has no float16 on this processor")
    packed = torch.ops.mkldnn._reorder_linear_weight(t["weight"], d["m"])
    return lambda t: torch.ops.mkldnn._linear_pointwise(t["x"], packed, None, "none", [], "")


def _reference(d: Dims, t: Tensors) -> Tensors:
    return {"y": t["x"].double() @ t["weight"].double().T}


LINEAR = Family(
    name="linear",
    sizes=SIZES,
    dtypes=FLOATS,
    operands=_linear_operands,
    reference=_reference,
    returned=in_own_dtype("y"),
    tolerance=lambda d, dtype: {"y": tolerance(dtype, 2, d["k"])},
    **product(_both, "weight", out_bytes=0),
    shapes=of_step,
    checks=CHECKS,
    providers=(
        *torch_and_inductor(_linear),
        Provider("oneDNN packed", "torch", _linear_packed, devices=("cpu",)),
        in_library(
            "sgl-deep-gemm",
            "deep_gemm",
            lambda lib, d, dtype, t: lambda t: _into(lib.bf16_gemm_nt, d, t["x"], t["weight"]),
            dtypes=("bfloat16",),
        ),
    ),
)


def _into(function: object, d: Dims, x: object, weight: object) -> Tensor:
    """Call a library's product that writes its result into an operand."""
    first = x[0] if isinstance(x, tuple) else x
    assert isinstance(first, Tensor) and callable(function)
    result = torch.empty((d["m"], d["n"]), dtype=torch.bfloat16, device=first.device)
    function(x, weight, result)
    return result


def _scaled_operands(d: Dims, dtype: str, draw: Draw) -> Tensors:
    """Return rows and weights of 8 bits, with a scale for each row and for each output."""
    m, n, k = d["m"], d["n"], d["k"]
    if dtype == "int8":
        x, weight = (draw.integers(-127, 128, rows, k, dtype=torch.int8) for rows in (m, n))
        unit = 3.0 / 127**2  # 127² / 3 is the variance of such a number
    else:
        x, weight = (draw.normal(rows, k, dtype=torch.float8_e4m3fn) for rows in (m, n))
        unit = 1.0
    return {
        "x": x,
        "weight": weight,
        "x_scale": draw.uniform(0.7, 1.3, m, 1, dtype=torch.float32),
        "weight_scale": draw.uniform(0.7 * unit * k**-0.5, 1.3 * unit * k**-0.5, n, 1, dtype=torch.float32),
    }


def _scaled(d: Dims, t: Tensors) -> Tensor:
    product = F.linear(t["x"].bfloat16(), t["weight"].bfloat16()).float()
    return (product * t["x_scale"] * t["weight_scale"].T).bfloat16()


def _scaled_reference(d: Dims, t: Tensors) -> Tensors:
    product = t["x"].double() @ t["weight"].double().T
    return {"y": product * t["x_scale"].double() * t["weight_scale"].double().T}


def _scaled_mm(d: Dims, dtype: str, t: Tensors) -> Kernel:
    def run(t: Tensors) -> Tensor:
        result: Tensor = torch._scaled_mm(
            t["x"], t["weight"].T, t["x_scale"], t["weight_scale"].T, out_dtype=torch.bfloat16
        )
        return result

    return run


def _int_mm(d: Dims, dtype: str, t: Tensors) -> Kernel:
    if t["x"].is_cuda and (d["m"] <= 16 or d["n"] % 8 or d["k"] % 8):
        raise Unsupported("torch._int_mm on CUDA needs more than 16 rows, and n and k that 8 divides")
    return lambda t: (torch._int_mm(t["x"], t["weight"].T) * t["x_scale"] * t["weight_scale"].T).bfloat16()


def _qlinear(d: Dims, dtype: str, t: Tensors) -> Kernel:
    """Bind oneDNN's quantised linear; it takes one scale for all rows, so those of each row are applied after it."""
    packed = torch.ops.onednn.qlinear_prepack(t["weight"].contiguous(), [d["m"], d["k"]])
    scales, zeros = t["weight_scale"].flatten(), torch.zeros(d["n"], dtype=torch.int32)

    def run(t: Tensors) -> Tensor:
        result = torch.ops.onednn.qlinear_pointwise(
            t["x"], 1.0, 0, packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        rounded: Tensor = result.mul_(t["x_scale"]).bfloat16()
        return rounded

    return run


def _vllm_scaled(lib: object, d: Dims, dtype: str, t: Tensors) -> Kernel:
    scaled = lib.cutlass_scaled_mm  # type: ignore[attr-defined]
    return lambda t: scaled(t["x"], t["weight"].T, t["x_scale"], t["weight_scale"], torch.bfloat16)


def _of_8_bits(name: str, dtype: str, *own: Provider) -> Family:
    return Family(
        name=name,
        sizes=SIZES,
        dtypes=(dtype,),
        operands=_scaled_operands,
        reference=_scaled_reference,
        returned=returns_bfloat16,
        tolerance=lambda d, dtype: {"y": tolerance("bfloat16", 3, d["k"])},
        **product(lambda d, size: _both(d, 1) + 4 * (d["m"] + d["n"]), "weight", "weight_scale"),
        shapes=of_step,
        checks=CHECKS,
        providers=(*torch_and_inductor(_scaled), *own, in_library("vllm", "vllm._custom_ops", _vllm_scaled)),
    )


LINEAR_FP8 = _of_8_bits("linear_fp8", "float8_e4m3fn", Provider("torch._scaled_mm", "torch", _scaled_mm))
LINEAR_INT8 = _of_8_bits(
    "linear_int8",
    "int8",
    Provider("torch._int_mm", "torch", _int_mm),
    Provider("oneDNN qlinear", "torch", _qlinear, devices=("cpu",)),
)


def _block_operands(d: Dims, dtype: str, draw: Draw) -> Tensors:
    m, n, k = d["m"], d["n"], d["k"]
    x, weight = (draw.normal(rows, k, dtype=torch.float8_e4m3fn) for rows in (m, n))
    blocks, unit = ceil(k / BLOCK), k**-0.5
    return {
        "x": x,
        "weight": weight,
        "x_scale": draw.uniform(0.5, 1.5, m, blocks, dtype=torch.float32),
        "weight_scale": draw.uniform(0.5 * unit, 1.5 * unit, ceil(n / BLOCK), blocks, dtype=torch.float32),
    }


def _spread(scales: Tensor, rows: int, columns: int, block_rows: int) -> Tensor:
    """Return scales of blocks, one for each element."""
    row, column = (torch.arange(count, device=scales.device) for count in (rows, columns))
    return scales[(row // block_rows)[:, None], (column // BLOCK)[None]]


def _block(d: Dims, t: Tensors) -> Tensor:
    x = t["x"].float() * _spread(t["x_scale"], d["m"], d["k"], 1)
    weight = t["weight"].float() * _spread(t["weight_scale"], d["n"], d["k"], BLOCK)
    return F.linear(x.bfloat16(), weight.bfloat16())


def _block_reference(d: Dims, t: Tensors) -> Tensors:
    x = t["x"].double() * _spread(t["x_scale"].double(), d["m"], d["k"], 1)
    return {"y": x @ (t["weight"].double() * _spread(t["weight_scale"].double(), d["n"], d["k"], BLOCK)).T}


def _block_bytes(d: Dims, size: float) -> float:
    return _both(d, 1) + 4 * ceil(d["k"] / BLOCK) * (d["m"] + ceil(d["n"] / BLOCK))


def _inductor_block(d: Dims, dtype: str, t: Tensors) -> Kernel:
    if d["k"] % BLOCK:
        raise Unsupported(
            f"Inductor of torch 2.13 takes wrong scales in the last block where {BLOCK} does not divide k"
        )
    return INDUCTOR_BLOCK.bind(d, dtype, t)


TORCH_BLOCK, INDUCTOR_BLOCK = torch_and_inductor(_block)


def _deep_gemm_block(lib: object, d: Dims, dtype: str, t: Tensors) -> Kernel:
    if d["k"] % BLOCK:
        raise Unsupported(f"deep_gemm needs k that {BLOCK} divides, not {d['k']}")
    gemm = lib.fp8_gemm_nt  # type: ignore[attr-defined]
    return lambda t: _into(gemm, d, (t["x"], t["x_scale"]), (t["weight"], t["weight_scale"]))


LINEAR_FP8_BLOCK = Family(
    name="linear_fp8_block",
    sizes=SIZES,
    dtypes=("fp8_block",),
    operands=_block_operands,
    reference=_block_reference,
    returned=returns_bfloat16,
    # 4 roundings; scales of up to 1.5 on both sides make results twice as large
    tolerance=lambda d, dtype: {"y": tolerance("bfloat16", 8, d["k"])},
    **product(_block_bytes, "weight", "weight_scale"),
    shapes=of_step,
    checks=(*CHECKS[1:3], *points(SIZES, (3, 130, 300), (33, 200, 256))),
    providers=(
        TORCH_BLOCK,
        Provider("inductor", "torch", _inductor_block),
        in_library("sgl-deep-gemm", "deep_gemm", _deep_gemm_block),
    ),
    note="torch's blockwise F.scaled_mm is refused on a CPU: it knows no such scaling there",
)


def _router(d: Dims, t: Tensors) -> Tensor:
    return F.linear(t["x"].float(), t["weight"].float())


ROUTER = Family(
    name="router",
    sizes=SIZES,
    dtypes=FLOATS,
    operands=_linear_operands,
    reference=_reference,
    returned=lambda dtype: {"y": torch.float32},
    tolerance=lambda d, dtype: {"y": tolerance("float32", 4, d["k"])},
    **product(_both, "weight", out_bytes=4),
    shapes=lambda step: points(SIZES, *(router[:3] for router in step.routers)),
    checks=CHECKS,
    providers=torch_and_inductor(_router),
    note="float32 logits: the choice of experts must not depend on the rounding of logits",
)

FAMILIES = (
    LINEAR,
    LINEAR_FP8,
    LINEAR_FP8_BLOCK,
    LINEAR_INT8,
    ROUTER,
)
