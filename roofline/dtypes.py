"""Number formats: one table of their sizes, their arithmetic and the names that other tools have for them.

Names are torch's, and two that torch has none for: "tfloat32" and "int4". Formats of other tools that are no one dtype
keep their tool's name: "fp8_block" (float8 with a scale a block, another kernel than "float8_e4m3fn"), weights of 4 or
8 bits with wider activations ("int4_wo", "w4a16_mxfp4").
"""

from typing import NamedTuple


class Dtype(NamedTuple):
    """One number format."""

    name: str
    bits: int
    """Bits of a stored weight or cached element, without scales; of "float4_e2m1fn_x2" one of the two in a byte."""
    short: str = ""
    """Colloquial name, where that is another one."""
    aliases: tuple[str, ...] = ()
    """Other tools' names of it, in lower case."""
    arithmetic: tuple[str, ...] = ()
    """dtypes that can compute it; the first that the device has is taken. Empty where it computes in itself."""
    of_tool: bool = False
    """Whether the name is another tool's: no device has a peak of that name."""


_8, _16 = ("float8_e4m3fn", "bfloat16"), ("bfloat16",)
_4 = ("float4_e2m1fn_x2", *_8)

DTYPES = (
    Dtype("float64", 64, "fp64", aliases=("fp64", "double")),
    Dtype("float32", 32, "fp32", aliases=("fp32", "float")),
    Dtype("tfloat32", 32, aliases=("tf32",)),  # stored as float32
    Dtype("float16", 16, "fp16", aliases=("fp16", "half")),
    Dtype("bfloat16", 16, "bf16", aliases=("bf16",)),
    Dtype("float8_e4m3fn", 8, "fp8 e4m3", aliases=("fp8", "fp8_e4m3"), arithmetic=_8),
    Dtype("float8_e4m3fnuz", 8),
    Dtype("float8_e5m2", 8, "fp8 e5m2"),
    Dtype("float8_e5m2fnuz", 8),
    Dtype("float4_e2m1fn_x2", 4),
    Dtype("int8", 8),
    Dtype("uint8", 8),
    Dtype("int4", 4),
    Dtype("fp8_block", 8, arithmetic=_8, of_tool=True),
    Dtype("fp8_static", 8, arithmetic=_8, of_tool=True),
    Dtype("fp8_ootb", 8, arithmetic=_8, of_tool=True),
    Dtype("int8_wo", 8, arithmetic=_16, of_tool=True),
    Dtype("int4_wo", 4, arithmetic=_16, of_tool=True),
    Dtype("nvfp4", 4, arithmetic=_4, of_tool=True),
    Dtype("mxfp4", 4, arithmetic=_4, of_tool=True),
    Dtype("w4afp8", 4, arithmetic=_8, of_tool=True),
    Dtype("w4a16_mxfp4", 4, arithmetic=_16, of_tool=True),
    Dtype("w4a8_mxfp4_mxfp8", 4, arithmetic=_8, of_tool=True),
)
"""Weights in fewer bits than their arithmetic are unpacked, and a device without 8 or 4 bits computes in 16."""
BITS = {dtype.name: dtype.bits for dtype in DTYPES}
ELEMENT_BYTES = {dtype.name: dtype.bits / 8 for dtype in DTYPES if dtype.bits >= 8 and not dtype.of_tool}
"""Bytes of an element of the types whose elements fill bytes."""
SHORT = {dtype.name: dtype.short for dtype in DTYPES if dtype.short}
ARITHMETIC = {dtype.name: dtype.arithmetic for dtype in DTYPES if dtype.arithmetic}
BOUNDED_BY = {name: first for name, (first, *_) in ARITHMETIC.items() if BITS[first] == BITS[name]}
"""Format -> dtype whose datasheet peak bounds it; a format that is neither is bounded by the device's best."""
DEVICE_DTYPES = tuple(dtype.name for dtype in DTYPES if not dtype.of_tool)
"""Names that a device file can have peaks for."""
MODEL_DTYPES = ("float64", "float32", "bfloat16", "float16")
"""Types that `transformers` can build and run a model in."""
IMPORTED = ("float32", "bfloat16", "float16", "float8_e4m3fn", "int8")
"""Types that a table of another tool can be said to be in."""
_BY_ALIAS = {alias: dtype.name for dtype in DTYPES for alias in (dtype.name, *dtype.aliases)}


def dtype_named(name: str) -> str | None:
    """This package's name of a tool's number format; None where it is not known."""
    return _BY_ALIAS.get(name.strip().lower().removeprefix("torch."))


def element_bits(dtype: str) -> int:
    """Bits of one element. Raises: ValueError for a type whose size is not known."""
    if dtype not in BITS:
        raise ValueError(f"the size of {dtype} is not known; trace the model in one of {', '.join(MODEL_DTYPES)}")
    return BITS[dtype]
