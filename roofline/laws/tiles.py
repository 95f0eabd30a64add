"""Time of the main loops of a tiled matrix product: tiles in waves over a device's units, k split where tiles are few.

A library cuts m × n into tiles, one unit runs one tile at a time along k, and it has a few tile shapes to choose from
(NVIDIA, "Matrix Multiplication Background User's Guide", tile and wave quantisation). A step along k takes the longest
of three: its arithmetic, its operands' way into the unit (rows + columns of them for rows × columns of arithmetic, so
that small tiles wait for theirs), and the least time that any step takes. A tile ends by storing its output. Two ways
to fill the units are priced for each shape: whole tiles in waves, and split-K (several units share the k of one tile
and add their sums, for as much as another call costs; one part a unit, or two). A library does not always find its
fastest: the result is a soft minimum, between the best of them and their mean.

Example: one tile of 128 × 128 along k takes about ``2 · 128 · 128 · k / (rate / units)`` seconds and its store
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from roofline.laws.law import Floats, Values

STEP_BYTES = 128.0
"""Bytes along k of one step of a main loop on fast units: the width of a swizzled shared-memory row of Hopper's loops,
whose cuBLAS kernels are named tilesize128x256x64 (64 elements of 16 bits)."""
SHORT_STEP_BYTES = 64.0
"""The same on slower units: Ampere's and Ada's cuBLAS kernels are named 128x256 … stages_32x5 (32 elements)."""
FAST_UNIT = 8e12
"""Arithmetic rate of a unit times bytes of an operand's element, above which steps are long. Hopper has 15e12 in 16 as
in 8 bits, A100 6e12, Ada 5e12: a slow unit is busy long enough with half a step to hide the next one's loads."""
FEWEST_STEPS = 4.0
"""Steps that a part of a split k has at least: shorter ones do not fill the pipeline."""
PARTS_PER_UNIT = (1.0, 2.0)
"""Parts of a split k that a unit runs: two are resident at once where registers allow it."""
FEWEST_ROWS = 64.0
"""Of the longer side of a tile: matrix instructions (64 × n on Hopper) compute as many, whether they are needed or not.
"""
OUTPUT_BYTES = 2.0
"""Of an element of the output, or an input's where that is wider."""
PARTIAL_BYTES = 8.0
"""Of a partial sum: float32, written once and read once."""
OVERLOOKED = 0.05
"""Relative difference of tile shapes that a library overlooks: 0.02 to 0.1 do as well on two devices."""
SHARPNESS = 4.0
"""Power of the blends of what goes on at once, within a step and in a product; ∞ is a sharp roof. 3 to 5 do as well."""

Edge = float | NDArray[np.float64]
"""Rows or columns of a tile: the same for all products, or one for each."""


@dataclass(frozen=True, eq=False)
class Product:
    """Matrix products m × k by k × n as arrays of one shape."""

    m: Floats
    n: Floats
    k: Floats
    element_bytes: float
    """Of both inputs."""
    cold: Floats | float = 0.0
    """Share of the bytes that no cache holds beforehand."""

    @property
    def flops(self) -> Floats:
        """Multiplications and additions: 2 m n k."""
        return 2 * self.m * self.n * self.k

    @property
    def stored_bytes(self) -> float:
        """Of an element of the output."""
        return max(OUTPUT_BYTES, self.element_bytes)


def loops_s(
    product: Product,
    units: int,
    values: Values,
    tiles: Sequence[tuple[Edge, Edge]],
    split: bool,
    step_bytes: float = STEP_BYTES,
) -> Floats:
    """Seconds of all main loops; `split` allows a library that shares one tile's k among units.

    `step_bytes` along k are one step (`step_bytes_of` says how many on a device); `step_s` is the least time of one of
    `STEP_BYTES`, and of a shorter one in proportion. Never less than ``flops / rate``.
    Needs the constants rate (FLOP/s of the device), narrow (side of a square tile
    whose operands take as long as its arithmetic), step_s, store (B/s) and quantum (how much of a partial last wave is
    waited for) and, with `split`, fixed and cache.
    """
    m, n = product.m, product.n
    step_k = step_bytes / product.element_bytes
    steps = np.ceil(product.k / step_k)
    flop_s = units / values["rate"]
    most = np.maximum(1, steps / FEWEST_STEPS)
    found = []
    for rows, columns in tiles:
        grid = np.ceil(m / rows) * np.ceil(n / columns)
        longer, shorter = np.maximum(rows, columns), np.minimum(rows, columns)
        arithmetic_s = 2 * np.maximum(longer, FEWEST_ROWS) * shorter * step_k * flop_s
        operands_s = values["narrow"] * (rows + columns) * step_k * flop_s
        step_s = together(together(arithmetic_s, operands_s), values["step_s"] * step_bytes / STEP_BYTES)
        store_s = rows * columns * product.stored_bytes * units / values["store"]
        found.append(_waves(grid / units, values["quantum"]) * (steps * step_s + store_s))
        for per_unit in PARTS_PER_UNIT if split else ():
            parts = np.clip(np.floor(per_unit * units / grid), 1, most)
            waves = _waves(grid * parts / units, values["quantum"])
            sums_s = values["fixed"] + parts * m * n * PARTIAL_BYTES / values["cache"]
            parts_s = waves * (np.ceil(steps / parts) * step_s + store_s)
            found.append(parts_s + np.where(parts > 1, sums_s, 0.0))
    return _soft_minimum(np.stack(found))


def step_bytes_of(peak_flops_per_s: float, units: int, element_bytes: float) -> float:
    """Bytes along k of a step, from a device's peak for a dtype and the number of its units."""
    fast = peak_flops_per_s / units * element_bytes > FAST_UNIT
    return STEP_BYTES if fast else SHORT_STEP_BYTES


def together(one: Edge, other: Edge) -> Floats:
    """Seconds of two things that go on at once: at least the longer, at most 2^(1/SHARPNESS) of it."""
    top, low = np.maximum(one, other), np.minimum(one, other)
    return np.asarray(top * (1 + (low / top) ** SHARPNESS) ** (1 / SHARPNESS))


def _waves(filled: Floats, quantum: float) -> Floats:
    """Waves of tiles that fill the units `filled` times: between no rounding (quantum 0) and whole waves (1)."""
    least = np.maximum(filled, 1)
    return least + quantum * (np.ceil(filled) - least)


def _soft_minimum(times: Floats) -> Floats:
    """At least the minimum along the first axis: between it and the mean of times within `OVERLOOKED` of it."""
    best = times.min(axis=0)
    excess = np.exp(-(times / best - 1) / OVERLOOKED).mean(axis=0)
    return np.asarray(best * (1 - OVERLOOKED * np.log(excess)))
