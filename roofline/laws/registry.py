"""Which law prices which kind of operation, in which arithmetic: a list to read, nothing registers itself.

A table's dtype may name more than arithmetic: "fp8_block" is float8 with a scale for each block of weights, another
kernel than a plain product. `subject` says which law prices it and in which dtype of the datasheet it computes.

Example: ``subject("matmul", "fp8_block", facts)`` → (law "block_scaled_matmul", "float8_e4m3fn")
"""

from collections.abc import Iterable, Mapping

from roofline.laws.batched_matmul import BatchedMatmul
from roofline.laws.collective import COLLECTIVE
from roofline.laws.core_attention import DECODE, CoreAttention
from roofline.laws.core_matmul import CoreMatmul
from roofline.laws.decode_attention import DecodeAttention
from roofline.laws.eager_modules import EagerModules
from roofline.laws.experts import EXPERTS
from roofline.laws.host_gap import HostGap
from roofline.laws.law import Facts, Law
from roofline.laws.matmul import Matmul
from roofline.laws.matvec import Matvec
from roofline.laws.prefill_attention import PrefillAttention
from roofline.laws.scaled_matmul import BlockScaledMatmul, ScaledMatmul
from roofline.laws.streaming import EMBEDDING, NORM, POINTWISE

MATMUL, PREFILL_ATTENTION = Matmul(), PrefillAttention()

LAWS: dict[str, Law] = {
    law.kind: law
    for law in (
        MATMUL,
        CoreMatmul(),
        BatchedMatmul("batched_matmul"),
        BatchedMatmul("grouped_matmul"),
        CoreAttention(),
        CoreAttention(DECODE),
        ScaledMatmul(),
        BlockScaledMatmul(),
        PREFILL_ATTENTION,
        DecodeAttention(),
        EXPERTS,
        Matvec(),
        POINTWISE,
        NORM,
        EMBEDDING,
        COLLECTIVE,
        HostGap(),
        EagerModules({law.kind: law for law in (MATMUL, POINTWISE, PREFILL_ATTENTION)}),
    )
}
"""By name; most are the law of the kind of that name."""

SPECIAL: dict[tuple[str, str], str] = {
    ("matmul", "float8_e4m3fn"): "scaled_matmul",
    ("matmul", "fp8_static"): "scaled_matmul",
    ("matmul", "fp8_ootb"): "scaled_matmul",
    ("matmul", "int8"): "scaled_matmul",
    ("matmul", "fp8_block"): "block_scaled_matmul",
}
"""(kind, dtype) -> law, where it is not the kind's own."""

OF_CORES: dict[str, str] = {
    "matmul": "core_matmul",
    "scaled_matmul": "core_matmul",
    "prefill_attention": "core_prefill_attention",
    "decode_attention": DECODE,
}
"""Law -> that of the same kind on general-purpose cores, where it is another."""

ROW_MAJOR = "_row_major"
"""Ends the kind of products whose weights lie k × n: the same law, constants of their own."""

OPERATOR = "aten::"
"""How the kinds begin that are one streaming operator each: "aten::mul"."""

FOUR_BITS, EIGHT_BITS, SIXTEEN_BITS = "float4_e2m1fn_x2", "float8_e4m3fn", "bfloat16"

ARITHMETIC: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("fp8_block", "fp8_static", "fp8_ootb", "float8_e4m3fn"), (EIGHT_BITS, SIXTEEN_BITS)),
    **dict.fromkeys(("w4afp8", "w4a8_mxfp4_mxfp8"), (EIGHT_BITS, SIXTEEN_BITS)),
    **dict.fromkeys(("nvfp4", "mxfp4"), (FOUR_BITS, EIGHT_BITS, SIXTEEN_BITS)),
    **dict.fromkeys(("int4_wo", "int8_wo", "w4a16_mxfp4"), (SIXTEEN_BITS,)),
}
"""A table's dtype -> what computes it: the first that the device has. Weights in fewer bits than their arithmetic are
unpacked, and a device without 8 or 4 bits computes in 16. Any other dtype is its own arithmetic."""


def law_named(name: str, laws: Mapping[str, Law] = LAWS) -> Law:
    """Raises ValueError: no law of that name."""
    if name not in laws:
        raise ValueError(f"no law is known for {name!r}; known: {', '.join(laws)}")
    return laws[name]


def subject(kind: str, dtype: str, facts: Facts) -> tuple[Law, str]:
    """The law of a kind and dtype, and the dtype of its arithmetic. Raises ValueError: no law for that kind."""
    plain = kind.removesuffix(ROW_MAJOR)
    name = POINTWISE.kind if kind.startswith(OPERATOR) else SPECIAL.get((plain, dtype), plain)
    law = law_named(OF_CORES.get(name, name) if facts.cores else name)
    return law, arithmetic(dtype, facts.matrix_flops_per_s)


def arithmetic(dtype: str, known: Iterable[str]) -> str:
    """The first of `ARITHMETIC` that is `known` to the device, else the last of them; `dtype` itself if it is there."""
    choices, has = ARITHMETIC.get(dtype, (dtype,)), set(known)
    return next((name for name in choices if name in has), choices[-1])
