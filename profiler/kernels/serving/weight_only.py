"""Products with bfloat16 activations and weights of 8 or 4 bits, which have a scale for each output or group.

A decode step reads each weight once, so that fewer bits save time although the products are in the wider format.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from profiler.kernels.serving.contract import (
    Dims,
    Draw,
    Family,
    Kernel,
    Provider,
    Tensors,
    Tolerance,
    Unsupported,
    points,
)
from profiler.kernels.serving.products import CHECKS, EPSILON, SIZES, of_step, product, returns_bfloat16, tolerance
from profiler.kernels.serving.providers import onnx_kernel, torch_and_inductor

GROUP = 128
"""Columns that share a scale in a suite: the default of AutoGPTQ's and AutoAWQ's checkpoints."""
ZERO = 8
"""The number that stands for 0 in 4 bits without a sign (GPTQ's and AWQ's symmetric form)."""


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
    """Return onnxruntime's product with weights of `bits`; `level` 4 rounds activations to 8 bits, 0 to float32."""

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
    sizes=SIZES,
    dtypes=("int8_wo",),
    operands=_int8_operands,
    reference=_int8_reference,
    returned=returns_bfloat16,
    tolerance=lambda d, dtype: {"y": tolerance("bfloat16", 3, d["k"])},
    **product(lambda d, size: 2 * d["m"] * d["k"] + d["n"] * (d["k"] + 2), "weight", "weight_scale"),
    shapes=of_step,
    checks=CHECKS,
    providers=(
        *torch_and_inductor(_int8_weights),
        Provider("torch._weight_int8pack_mm", "torch", _int8_pack, devices=("cpu",), alignment_bytes=64),
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
    """Return numbers of 0 … 15, n × k; the even columns are in the low halves of the bytes."""
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
    sizes=(*SIZES, "group"),
    dtypes=("int4_wo",),
    operands=_int4_operands,
    reference=_int4_reference,
    returned=returns_bfloat16,
    tolerance=lambda d, dtype: {
        "y": Tolerance(
            0.045,
            2 * EPSILON["bfloat16"],
            "activations may be rounded to 8 bits a group, as onnxruntime's accuracy_level 4 does: a deviation of "
            "3/127/√12 of 1, of which 6 are allowed",
        )
    },
    **product(
        lambda d, size: 2 * d["m"] * d["k"] + d["n"] * d["k"] / 2 + 2 * d["n"] * d["k"] // d["group"],
        "weight",
        "weight_scale",
    ),
    shapes=lambda step: (shape | {"group": GROUP} for shape in of_step(step) if shape["k"] % GROUP == 0),
    checks=points((*SIZES, "group"), (1, 48, 96, 32), (5, 33, 64, 32), (17, 80, 256, 128), (65, 144, 320, 64)),
    providers=(
        *torch_and_inductor(_int4_weights),
        Provider("torch._weight_int4pack_mm_for_cpu", "torch", _int4_pack, devices=("cpu",)),
        _n_bits(4, 0),
        _n_bits(4, 4),
    ),
)

FAMILIES = (LINEAR_INT8_WEIGHTS, LINEAR_INT4_WEIGHTS)
