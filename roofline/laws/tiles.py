"""Time of the main loops of a tiled matrix product: tiles in waves over a device's units, k split where tiles are few.

A library cuts m × n into tiles, one unit runs one tile at a time along k, and it has a few tile shapes to choose from
(NVIDIA, "Matrix Multiplication Background User's Guide", tile and wave quantisation). Three ways to fill the units are
priced for each shape: whole tiles in waves, split-K (s units share the k of one tile and add their sums), stream-K
(all units share the k-steps of all tiles evenly; Osama et al., PPoPP 2023, arXiv:2301.03598). A library does not always
find its fastest: the result is a soft minimum, between the best of them and their mean.

Example: one tile of 128 × 128 along k takes ``2 · 128 · 128 · k / (rate / units) + tile_s`` seconds
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from roofline.laws.law import Floats, Values

STEP_BYTES = 128.0
"""Bytes along k of one step of a main loop: the width of a swizzled shared-memory row of current tensor-core loops."""
FEWEST_STEPS = 4.0
"""Steps that a part of a split k has at least: shorter ones do not fill the pipeline."""
PARTIAL_BYTES = 4.0
"""Of a partial sum: float32; written once and read once."""

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


def loops_s(product: Product, units: int, values: Values, tiles: Sequence[tuple[Edge, Edge]], split: bool) -> Floats:
    """Seconds of all main loops; `split` allows a library that shares one tile's k among units.

    Never less than ``flops / rate``. Needs the constants rate (FLOP/s of the device), narrow (rows or columns below
    which a tile takes no less time), tile_s, quantum, choice and, with `split`, split_s, stream_s (stream-K
    beyond one wave: large for a library without it) and memory.
    """
    m, n = product.m, product.n
    step_k = STEP_BYTES / product.element_bytes
    steps = np.ceil(product.k / step_k)
    partial_s = m * n * 2 * PARTIAL_BYTES / values["memory"] if split else np.zeros_like(m)
    most = np.maximum(1, steps / FEWEST_STEPS)
    found = []
    for rows, columns in tiles:
        grid = np.ceil(m / rows) * np.ceil(n / columns)
        width = np.maximum(rows, values["narrow"]) * np.maximum(columns, values["narrow"])
        step_s = 2 * width * step_k * units / values["rate"]
        found.append(_waves(grid / units, values["quantum"]) * (steps * step_s + values["tile_s"]))
        if split:
            parts = np.clip(np.floor(units / grid), 1, most)
            waves = _waves(grid * parts / units, values["quantum"])
            sums_s = np.where(parts > 1, values["split_s"] + parts * partial_s, 0.0)
            found.append(waves * (np.ceil(steps / parts) * step_s + values["tile_s"]) + sums_s)
            filled = np.minimum(units, np.maximum(1, grid * steps / FEWEST_STEPS))
            shared = grid * steps / filled * step_s + values["tile_s"] * np.maximum(1, grid / units)
            handover_s = np.where(grid < units, values["split_s"], values["stream_s"])
            found.append(shared + handover_s + partial_s * np.minimum(1, units / grid))
    return _soft_minimum(np.stack(found), values["choice"])


def _waves(filled: Floats, quantum: float) -> Floats:
    """Waves of tiles that fill the units `filled` times: between no rounding (quantum 0) and whole waves (1)."""
    least = np.maximum(filled, 1)
    return least + quantum * (np.ceil(filled) - least)


def _soft_minimum(times: Floats, choice: float) -> Floats:
    """At least the minimum along the first axis; `choice` is the relative difference that a library overlooks."""
    best = times.min(axis=0)
    excess = np.exp(-(times / best - 1) / choice).mean(axis=0)
    return best * (1 - choice * np.log(excess))
