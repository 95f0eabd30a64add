"""Reads single fields of a checkpoint's quantisation settings; ValueError says which one cannot be read."""

import re
from collections.abc import Sequence
from typing import Any

from profiler.models.checkpoint import Rule
from profiler.models.config import Settings
from roofline.whatif.quantise import ARITHMETIC, Format
from roofline.whatif.scheme import Scheme


def whole_of(settings: Settings, key: str, default: int, least: int = 1, most: int = 2**20) -> int:
    """Return a whole number of the settings, or its default."""
    value = settings.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{key} is {value!r}, not a whole number from {least}")
    return value


def group_of(settings: Settings, default: int, key: str = "group_size") -> int:
    """Return how many weights share a scale; -1 for whole columns."""
    value = whole_of(settings, key, default, least=-1)
    return -1 if value == 0 else value


def bits_of(settings: Settings) -> int | None:
    """Return the whole bits of a weight; None where the settings do not say. Raises ValueError for a part of a bit."""
    bits = mean_bits_of(settings)
    if bits is not None and bits != int(bits):
        raise ValueError(f"bits is {bits}, not a whole number")
    return None if bits is None else int(bits)


def mean_bits_of(settings: Settings) -> float | None:
    """Return the bits of a weight as the settings have them, which may be a mean; None where they do not say."""
    keys = ("bits", "w_bit", "nbits", "weight_bits", "num_bits")
    value = next((settings[key] for key in keys if settings.get(key) is not None), None)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= 32:
        raise ValueError(f"bits is {value!r}, not a number from 1 to 32")
    return value


def block_of(settings: Settings, key: str) -> tuple[int, int] | None:
    """Return the rows and columns of the block that shares a scale; None where the settings name none."""
    sides = settings.get(key)
    if not sides:
        return None
    if not isinstance(sides, Sequence) or len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
        raise ValueError(f"{key} is {sides!r}, not two whole numbers from 1")
    return sides[0], sides[1]


def kept_of(settings: Settings, *keys: str) -> tuple[Rule, ...]:
    """Return rules for the modules that the settings leave as they are."""
    rules = []
    for key in keys or ("modules_to_not_convert", "ignore", "ignored_layers", "exclude_modules", "skip_modules"):
        names = settings.get(key) or ()
        if isinstance(names, str):
            names = (names,)
        if not isinstance(names, Sequence) or not all(isinstance(part, str) for part in names):
            raise ValueError(f"{key} is no list of module names")
        rules += [Rule(part, None) for part in names]
    return tuple(rules)


def scheme_of(
    bits: int, group: int, *, scale: float = 16, zero: float = 0, form: Format = "int", inputs: int | None = None,
    columns: int = 1, input_group: int = -1,
) -> Scheme | None:  # fmt: skip
    """Return a scheme of stored weights; None from 16 bits on. Inputs stay wide where no kernel takes them narrow."""
    if bits >= 16:
        return None
    dtype = ARITHMETIC.get((form, bits, inputs)) if inputs and inputs < 16 else None
    return Scheme(
        bits, group, scale, zero, columns, activations=inputs if dtype else None, dtype=dtype,
        activation_group=input_group, activation_scale_bits=8 if 0 < input_group <= 32 else 32,
    )  # fmt: skip


def digits_of(text: Any) -> int:
    """Return the first number in a name, as 4 of "qint4"."""
    match = re.search(r"\d+", str(text))
    if match is None:
        raise ValueError(f"{text!r} names no number of bits")
    return int(match[0])
