"""Products with weights: dense in each number format that servers store weights in, and the router's.

Weights lie n × k, as `nn.Linear` and checkpoints keep them. All are scaled so that results have a deviation near 1:
then a tolerance is the same at every depth.
"""

from collections.abc import Iterable
from math import ceil

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
)
from profiler.kernels.serving.providers import in_library, onnx_kernel, torch_and_inductor
from roofline.dtypes import ELEMENT_BYTES
from roofline.laws.work import Work

CHECKS = tuple({"m": m, "n": n, "k": k} for m, n, k in ((1, 48, 96), (5, 33, 77), (17, 80, 160), (65, 130, 257)))
FLOATS = ("float32", "bfloat16", "float16")
BLOCK = 128
"""Rows and columns of weights, and columns of activations, that share a scale (DeepSeek-V3, arXiv 2412.19437, 3.3)."""
ZERO = 8
"""What is stored for 0 in 4 bits without a sign (GPTQ's and AWQ's symmetric form)."""
EPSILON = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
"""Distance from 1 to the next number: a rounding is off by half of it."""


def tolerance(dtype: str, roundings: float, terms: int, absolute: float = 0.0) -> Tolerance:
    """Limits for results near 1: so many roundings to the dtype, and sums of so many terms in float32."""
    sums = 4 * EPSILON["float32"] * terms**0.5
    limit = max(roundings / 2 * EPSILON[dtype], absolute) + sums
    what = f"{roundings:g} roundings to {dtype} and sums of {terms} terms in float32"
    return Tolerance(limit, roundings / 2 * EPSILON[dtype] + sums, what)


def _shapes(step: ModelStep) -> Iterable[dict[str, int]]:
    return ({"m": m, "n": n, "k": k} for m, n, k in step.products)


def _flops(d: Dims) -> int:
    return 2 * d["m"] * d["n"] * d["k"]


def _matmul(d: Dims, dtype: str) -> tuple[str, dict[str, float]]:
    del dtype
    return "matmul", {name: float(d[name]) for name in "mnk"}


def _returns_bfloat16(dtype: str) -> dict[str, torch.dtype]:
    del dtype
    return {"y": torch.bfloat16}


def _linear_operands(d: Dims, dtype: str, draw: Draw) -> Tensors:
    kind = getattr(torch, dtype)
    return {
        "x": draw.normal(d["m"], d["k"], dtype=kind),
        "weight": draw.normal(d["n"], d["k"], dtype=kind, scale=d["k"] ** -0.5),
    }


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
    sizes=("m", "n", "k"),
    dtypes=FLOATS,
    operands=_linear_operands,
    outputs=("y",),
    reference=_reference,
    returned=lambda dtype: {"y": getattr(torch, dtype)},
    tolerance=lambda d, dtype: {"y": tolerance(dtype, 2, d["k"])},
    work=lambda d, dtype: amount(
        _flops(d), ELEMENT_BYTES[dtype] * (d["m"] * d["k"] + d["n"] * d["k"] + d["m"] * d["n"])
    ),
    kind=_matmul,
    shapes=_shapes,
    checks=CHECKS,
    weights=("weight",),
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
    """Rows and weights of 8 bits, with a scale for each row and for each output."""
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
    """oneDNN's quantised linear: the weight's scales inside, those of the rows after it, since it takes one for all."""
    packed = torch.ops.onednn.qlinear_prepack(t["weight"].contiguous(), [d["m"], d["k"]])
    scales, zeros = t["weight_scale"].flatten(), torch.zeros(d["n"], dtype=torch.int32)

    def run(t: Tensors) -> Tensor:
        result = torch.ops.onednn.qlinear_pointwise(
            t["x"], 1.0, 0, packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        rounded: Tensor = result.mul_(t["x_scale"]).bfloat16()
        return rounded

    return run


def _scaled_work(d: Dims, dtype: str) -> Work:
    del dtype
    return amount(_flops(d), d["m"] * d["k"] + d["n"] * d["k"] + 4 * (d["m"] + d["n"]) + 2 * d["m"] * d["n"])


def _vllm_scaled(lib: object, d: Dims, dtype: str, t: Tensors) -> Kernel:
    scaled = lib.cutlass_scaled_mm  # type: ignore[attr-defined]
    return lambda t: scaled(t["x"], t["weight"].T, t["x_scale"], t["weight_scale"], torch.bfloat16)


def _of_8_bits(name: str, dtype: str, *own: Provider) -> Family:
    return Family(
        name=name,
        sizes=("m", "n", "k"),
        dtypes=(dtype,),
        operands=_scaled_operands,
        outputs=("y",),
        reference=_scaled_reference,
        returned=_returns_bfloat16,
        tolerance=lambda d, dtype: {"y": tolerance("bfloat16", 3, d["k"])},
        work=_scaled_work,
        kind=_matmul,
        shapes=_shapes,
        checks=CHECKS,
        weights=("weight", "weight_scale"),
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
    """Scales of blocks, one for each element."""
    row, column = (torch.arange(count, device=scales.device) for count in (rows, columns))
    return scales[(row // block_rows)[:, None], (column // BLOCK)[None]]


def _block(d: Dims, t: Tensors) -> Tensor:
    x = t["x"].float() * _spread(t["x_scale"], d["m"], d["k"], 1)
    weight = t["weight"].float() * _spread(t["weight_scale"], d["n"], d["k"], BLOCK)
    return F.linear(x.bfloat16(), weight.bfloat16())


def _block_reference(d: Dims, t: Tensors) -> Tensors:
    x = t["x"].double() * _spread(t["x_scale"].double(), d["m"], d["k"], 1)
    return {"y": x @ (t["weight"].double() * _spread(t["weight_scale"].double(), d["n"], d["k"], BLOCK)).T}


def _block_work(d: Dims, dtype: str) -> Work:
    del dtype
    m, n, k, blocks = d["m"], d["n"], d["k"], ceil(d["k"] / BLOCK)
    return amount(_flops(d), m * k + n * k + 4 * blocks * (m + ceil(n / BLOCK)) + 2 * m * n)


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
    sizes=("m", "n", "k"),
    dtypes=("fp8_block",),
    operands=_block_operands,
    outputs=("y",),
    reference=_block_reference,
    returned=_returns_bfloat16,
    tolerance=lambda d, dtype: {"y": tolerance("bfloat16", 4, d["k"])},
    work=_block_work,
    kind=_matmul,
    shapes=_shapes,
    checks=(*CHECKS[1:3], {"m": 3, "n": 130, "k": 300}, {"m": 33, "n": 200, "k": 256}),
    weights=("weight", "weight_scale"),
    providers=(
        TORCH_BLOCK,
        Provider("inductor", "torch", _inductor_block),
        in_library("sgl-deep-gemm", "deep_gemm", _deep_gemm_block),
    ),
    note="torch's blockwise F.scaled_mm is refused on a CPU: it knows no such scaling there",
)


def _int8_operands(d: Dims, dtype: str, draw: Draw) -> Tensors:
    unit = 3.0**0.5 / 127 * d["k"] ** -0.5
    return {
        "x": draw.normal(d["m"], d["k"], dtype=torch.bfloat16),
        "weight": draw.integers(-127, 128, d["n"], d["k"], dtype=torch.int8),
        "weight_scale": draw.uniform(0.7 * unit, 1.3 * unit, d["n"], dtype=torch.bfloat16),
    }


def _int8_weights(d: Dims, t: Tensors) -> Tensor:
    return F.linear(t["x"], t["weight"].bfloat16()) * t["weight_scale"]


def _int8_reference(d: Dims, t: Tensors) -> Tensors:
    return {"y": t["x"].double() @ t["weight"].double().T * t["weight_scale"].double()}


def _int8_pack(d: Dims, dtype: str, t: Tensors) -> Kernel:
    if d["k"] % 16 and d["m"] > 1:
        raise Unsupported(f"torch._weight_int8pack_mm reads beyond rows whose k 16 does not divide, such as {d['k']}")
    if any(operand.data_ptr() % 64 for operand in t.values()):
        raise Unsupported("torch._weight_int8pack_mm ends the process where operands begin at no multiple of 64 bytes")
    return lambda t: torch.ops.aten._weight_int8pack_mm(t["x"], t["weight"], t["weight_scale"])


def _n_bits(bits: int, level: int) -> Provider:
    """onnxruntime's product with weights of 4 or 8 bits; `level` 4 rounds activations to 8 bits, 0 to float32."""

    def bind(d: Dims, dtype: str, t: Tensors) -> Kernel:
        group = d.get("group", 32)
        if d["k"] % group:
            raise Unsupported(f"a group of {group} does not divide k {d['k']}")
        per_group = t["weight_scale"].float().reshape(d["n"], -1)
        scales = per_group.expand(-1, d["k"] // group).contiguous()
        weight = t["weight"] if bits == 4 else (t["weight"].to(torch.int16) + 128).to(torch.uint8)  # 128 stands for 0
        run = onnx_kernel(
            "MatMulNBits",
            {"K": d["k"], "N": d["n"], "bits": bits, "block_size": group, "accuracy_level": level},
            {"A": t["x"].float(), "B": None, "scales": None},
            {"B": weight.reshape(d["n"], d["k"] // group, -1), "scales": scales},
            {"Y": torch.empty(d["m"], d["n"])},
        )
        return lambda t: run({"A": t["x"].float()})[0].bfloat16()

    name = "onnxruntime" if level == 0 else "onnxruntime level 4"
    return Provider(name, "onnxruntime", bind, ("onnx", "onnxruntime"), devices=("cpu",))


LINEAR_INT8_WEIGHTS = Family(
    name="linear_int8_weights",
    sizes=("m", "n", "k"),
    dtypes=("int8_wo",),
    operands=_int8_operands,
    outputs=("y",),
    reference=_int8_reference,
    returned=_returns_bfloat16,
    tolerance=lambda d, dtype: {"y": tolerance("bfloat16", 3, d["k"])},
    work=lambda d, dtype: amount(_flops(d), 2 * d["m"] * d["k"] + d["n"] * d["k"] + 2 * d["n"] + 2 * d["m"] * d["n"]),
    kind=_matmul,
    shapes=_shapes,
    checks=CHECKS,
    weights=("weight", "weight_scale"),
    providers=(
        *torch_and_inductor(_int8_weights),
        Provider("torch._weight_int8pack_mm", "torch", _int8_pack, devices=("cpu",)),
        _n_bits(8, 0),
    ),
)


def _int4_operands(d: Dims, dtype: str, draw: Draw) -> Tensors:
    unit = 0.21 * d["k"] ** -0.5  # numbers of −8 … 7 have a deviation of 4.6
    return {
        "x": draw.normal(d["m"], d["k"], dtype=torch.bfloat16),
        "weight": draw.integers(0, 256, d["n"], d["k"] // 2, dtype=torch.uint8),
        "weight_scale": draw.uniform(0.7 * unit, 1.3 * unit, d["n"], d["k"] // d["group"], dtype=torch.bfloat16),
    }


def _unpacked(t: Tensors) -> Tensor:
    """Numbers of 0 … 15, n × k; the even columns are in the low halves of the bytes."""
    return torch.stack((t["weight"] & 15, t["weight"] >> 4), dim=-1).flatten(1)


def _int4_weights(d: Dims, t: Tensors) -> Tensor:
    weight = (_unpacked(t).to(torch.int8) - ZERO).bfloat16()
    return F.linear(t["x"], weight * t["weight_scale"].repeat_interleave(d["group"], 1))


def _int4_reference(d: Dims, t: Tensors) -> Tensors:
    weight = (_unpacked(t).double() - ZERO) * t["weight_scale"].double().repeat_interleave(d["group"], 1)
    return {"y": t["x"].double() @ weight.T}


def _int4_pack(d: Dims, dtype: str, t: Tensors) -> Kernel:
    if d["n"] % 16:
        raise Unsupported(f"torch._weight_int4pack_mm_for_cpu needs n that 16 divides, not {d['n']}")
    if d["group"] not in (32, 64, 128, 256):
        raise Unsupported(f"torch._weight_int4pack_mm_for_cpu has groups of 32, 64, 128 or 256, not {d['group']}")
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(_unpacked(t).int(), 1)  # 1: inner tiles, unused here
    scales = t["weight_scale"].T
    pairs = torch.stack((scales, torch.zeros_like(scales)), dim=-1).contiguous()
    return lambda t: torch.ops.aten._weight_int4pack_mm_for_cpu(t["x"], packed, d["group"], pairs)


LINEAR_INT4_WEIGHTS = Family(
    name="linear_int4_weights",
    sizes=("m", "n", "k", "group"),
    dtypes=("int4_wo",),
    operands=_int4_operands,
    outputs=("y",),
    reference=_int4_reference,
    returned=_returns_bfloat16,
    tolerance=lambda d, dtype: {
        "y": Tolerance(
            0.045,
            2 * EPSILON["bfloat16"],
            "activations may be rounded to 8 bits a group, as onnxruntime's accuracy_level 4 does: a deviation of "
            "3/127/√12 of 1, of which 6 are allowed",
        )
    },
    work=lambda d, dtype: amount(
        _flops(d),
        2 * d["m"] * d["k"] + d["n"] * d["k"] / 2 + 2 * d["n"] * d["k"] // d["group"] + 2 * d["m"] * d["n"],
    ),
    kind=_matmul,
    shapes=lambda step: (shape | {"group": BLOCK} for shape in _shapes(step) if shape["k"] % BLOCK == 0),
    checks=tuple(
        {"m": m, "n": n, "k": k, "group": group}
        for m, n, k, group in ((1, 48, 96, 32), (5, 33, 64, 32), (17, 80, 256, 128), (65, 144, 320, 64))
    ),
    weights=("weight", "weight_scale"),
    providers=(
        *torch_and_inductor(_int4_weights),
        Provider("torch._weight_int4pack_mm_for_cpu", "torch", _int4_pack, devices=("cpu",)),
        _n_bits(4, 0),
        _n_bits(4, 4),
    ),
)


def _router(d: Dims, t: Tensors) -> Tensor:
    return F.linear(t["x"].float(), t["weight"].float())


ROUTER = Family(
    name="router",
    sizes=("m", "n", "k"),
    dtypes=FLOATS,
    operands=_linear_operands,
    outputs=("y",),
    reference=_reference,
    returned=lambda dtype: {"y": torch.float32},
    tolerance=lambda d, dtype: {"y": tolerance("float32", 4, d["k"])},
    work=lambda d, dtype: amount(_flops(d), ELEMENT_BYTES[dtype] * (d["m"] + d["n"]) * d["k"] + 4 * d["m"] * d["n"]),
    kind=_matmul,
    shapes=lambda step: ({"m": m, "n": n, "k": k} for m, n, k, _ in step.routers),
    checks=CHECKS,
    weights=("weight",),
    providers=torch_and_inductor(_router),
    note="float32 logits: the choice of experts must not depend on the rounding of logits",
)

FAMILIES = (
    LINEAR,
    LINEAR_FP8,
    LINEAR_FP8_BLOCK,
    LINEAR_INT8,
    LINEAR_INT8_WEIGHTS,
    LINEAR_INT4_WEIGHTS,
    ROUTER,
)
