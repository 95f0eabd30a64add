"""Names of number formats: other tools' to torch's.

Formats that torch has no one dtype for keep their tool's name: "fp8_block" (float8 with a scale a block, another kernel
than "float8_e4m3fn"), weights of 4 or 8 bits beside wider activations ("int4_wo", "w4a16_mxfp4").

Their widths are `roofline.laws.work.BITS`.

Example: ``dtype("fp8") == "float8_e4m3fn"``
"""

import pandas as pd

NAMES: dict[str, str] = {
    "float32": "float32",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float16": "float16",
    "fp16": "float16",
    "half": "float16",
    "fp8": "float8_e4m3fn",
    "fp8_e4m3": "float8_e4m3fn",
    "float8_e4m3fn": "float8_e4m3fn",
    "int8": "int8",
}
"""Another tool's name -> torch's."""

KEPT = (
    "fp8_block",
    "fp8_static",
    "fp8_ootb",
    "int8_wo",
    "int4_wo",
    "nvfp4",
    "mxfp4",
    "w4afp8",
    "w4a16_mxfp4",
    "w4a8_mxfp4_mxfp8",
)
"""Names that stay as they are."""

LIKE: dict[str, str] = {"fp8_block": "float8_e4m3fn", "fp8_static": "float8_e4m3fn", "fp8_ootb": "float8_e4m3fn"}
"""Kept name -> dtype whose datasheet peak bounds it; a name that is in neither is bounded by the device's best."""


def dtype(name: str) -> str | None:
    """Our name of a tool's number format; None where it is not known."""
    word = name.strip().lower().removeprefix("torch.")
    return NAMES.get(word) or (word if word in KEPT else None)


def dtypes(column: pd.Series) -> pd.Series:
    """`dtype` of a column of names."""
    return column.map({name: dtype(name) for name in column.unique()})
