"""Kernel families: what a calibration has to know of an operator to make, run, check and count it.

To add a kernel, as one of a serving engine, write a file beside `eager.py` with a function that binds its sizes, and
add a row to `FAMILIES`. The profiler must see the kernel under one of `ops`, and the tracer must know the operator.

Example: ``family_of("aten::mm").operand_bytes(KernelShape("matmul", "float32", "aten::mm", {"m": 8, "n": 8, "k": 4}))``
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from profiler.kernels import eager
from profiler.kernels.eager import VOCABULARY, Draw, Make, Operands, Run
from roofline.laws.kinds import KernelShape

Elements = Callable[[Mapping[str, int]], int]
"""Elements of a kernel's tensors, from its sizes."""
TOLERANCE = {"float32": 4e-3, "float16": 1e-2, "bfloat16": 4e-2}
"""Share of the largest expected value by which a result may be off: roundings of the dtype (float32 products may run as
TF32, float16 2^-11, bfloat16 2^-8), and of what attention keeps in between."""


@dataclass(frozen=True, slots=True)
class KernelFamily:
    """Operators that take operands of the same kind."""

    ops: tuple[str, ...]
    """Operators, as the profiler names them: "aten::mm"."""
    bind: Callable[[KernelShape, Draw], tuple[Run, Make]]
    """Returns the function to run and the one that makes a set of its operands, at a kernel's sizes."""
    operands: Elements
    """Elements of one set of operands, about."""
    result: Elements
    """Elements of the result."""
    reference: Callable[[KernelShape, Operands, Tensor], tuple[Tensor, Tensor]] | None = None
    """A part of the result, and the same part computed in float64. None: the result is only looked at for NaN."""
    is_stream: bool = False
    """Whether it only streams: such kernels are asked for by rows × width, and small ones run in turn with others."""

    def operand_bytes(self, shape: KernelShape) -> int:
        """Return bytes of one set of operands, about."""
        return _width(shape) * self.operands(shape.dims)

    def moved_bytes(self, shape: KernelShape) -> int:
        """Return bytes that one call touches, about: operands and result."""
        return self.operand_bytes(shape) + _width(shape) * self.result(shape.dims)

    def check(self, shape: KernelShape, operands: Operands, result: Tensor) -> None:
        """Raise ArithmeticError where a result is not finite, or not what the reference says."""
        if not all(math.isfinite(float(end)) for end in torch.aminmax(result)):  # ten times as fast as isfinite
            raise ArithmeticError(f"the result of {shape.op} in {shape.dtype} is not finite")
        if self.reference is None:
            return
        part, expected = self.reference(shape, operands, result)
        off, scale = float((part.double() - expected).abs().max()), float(expected.abs().max())
        if not off <= TOLERANCE[shape.dtype] * scale:
            raise ArithmeticError(f"the result of {shape.op} in {shape.dtype} is off by {off:.2g} of {scale:.2g}")


def _width(shape: KernelShape) -> int:
    return int(getattr(torch, shape.dtype).itemsize)


PRODUCT: tuple[Elements, Elements] = (
    lambda d: d.get("batch", 1) * (d["m"] + d["n"]) * d["k"],
    lambda d: d.get("batch", 1) * d["m"] * d["n"],
)
"""Elements of a product's operands and of its result."""
ATTENTION: tuple[Elements, Elements] = (
    lambda d: d["batch"] * d["head_dim"] * (d["heads"] * d["query"] + 2 * d["kv_heads"] * d["kv"]),
    lambda d: d["batch"] * d["head_dim"] * d["heads"] * d["query"],
)


def _rows(times: int) -> Elements:
    return lambda d: times * math.prod(d.values())


STREAMS = tuple(op for op in eager.STREAMING if op != "aten::embedding")

FAMILIES: tuple[KernelFamily, ...] = (
    KernelFamily(("aten::mm", "aten::addmm"), eager.product, *PRODUCT, eager.product_part),
    KernelFamily(("aten::bmm",), eager.batched, *PRODUCT, eager.batched_part),
    KernelFamily(("aten::_grouped_mm",), eager.grouped, *PRODUCT, eager.grouped_part),
    KernelFamily(("aten::scaled_dot_product_attention",), eager.attention, *ATTENTION, eager.attention_part),
    KernelFamily(STREAMS, eager.stream, _rows(2), _rows(1), is_stream=True),
    KernelFamily(("aten::embedding",), eager.stream, _rows(VOCABULARY), _rows(1), is_stream=True),
)
"""All families that a calibration can run."""


def family_of(op: str) -> KernelFamily:
    """Return the family of an operator. Raises ValueError for an operator that none has."""
    for family in FAMILIES:
        if op in family.ops:
            return family
    raise ValueError(f"no kernel for {op}; known: {', '.join(op for family in FAMILIES for op in family.ops)}")


def streaming_operators() -> tuple[str, ...]:
    """Return operators of all families that only stream."""
    return tuple(op for family in FAMILIES if family.is_stream for op in family.ops)
