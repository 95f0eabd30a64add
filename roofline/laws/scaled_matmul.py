"""The law of a product in 8 bits whose activations arrive in 16: they are converted and scaled, then multiplied.

``time = fixed + conversion + blend(loops, traffic)`` differs from `roofline.laws.matmul` in three ways:
- Conversion reads the m × k activations in 16 bits and writes 8: rows × (a fixed part + k elements).
- k is not split, and the tile follows from m (and n) alone, as vLLM's `cutlass_scaled_mm` chooses it on Hopper
  (csrc/quantization/w8a8/cutlass/c3x/scaled_mm_sm90_fp8_dispatch.cuh).
- Rows missing from the last tile are fetched too, by every column of tiles and at main memory's rate, since nothing
  shares them: 513 rows take twice the time of 512 (DeepGEMM, csrc/jit_kernels/heuristics/sm90.hpp: "smaller block M can
  avoid TMA L2 OOB bound").
With a scale for each block of weights (`BlockScaledMatmul`) tiles are chosen by their time, nothing is fetched beyond
the last row, and the host's work for a call is a floor, higher for products whose k or n is not whole blocks.
"""

from collections.abc import Sequence

import numpy as np

from roofline.laws.blend import blend
from roofline.laws.law import Constant, Dims, Facts, Floats, Values
from roofline.laws.matmul import TOGETHER, Edge, Matmul, Product, loops_s, product_of, sustained_s, traffic_s

FEW_ROWS, SOME_ROWS, MORE_ROWS = 16.0, 64.0, 128.0
"""Limits of m that have kernels of their own; up to the second, operands are swapped."""
FEW_COLUMNS = 1280.0
"""Largest n whose tiles of some rows have `FEW_ROWS`."""
COLUMNS = (64.0, 128.0, 256.0)
"""Columns of a tile, where tiles are chosen by time."""
ROWS = (64.0, 256.0)
"""Least and most rows of such a tile; between them it has the next power of two of m."""
SWAPPED_ROWS = 32.0
"""Block-scaled products with fewer rows run a kernel with swapped operands, in one call."""
CONVERTED_BYTES = 3.0
"""Bytes of conversion per activation: 2 read and 1 written."""
CONVERTING = 0.4
"""Part of main memory's bandwidth at which such kernels convert: two tables of an H200 ask for 0.35 and 0.44."""
BLOCK_K, BLOCK_N = 128.0, 64.0
"""Sides of a block of weights: multiples of them take the fast path."""
FLOOR_POWER = 8.0
"""Power of the blend of the host's floor and the device's time: nearly a maximum."""


class ScaledMatmul(Matmul):
    """Activations scaled by tensor or row."""

    name = "scaled_matmul"

    def constants(self, facts: Facts, dtype: str) -> tuple[Constant, ...]:
        band = facts.bandwidth_bytes_per_s
        return (
            *super().constants(facts, dtype),
            Constant("row_s", "s", 1e-11, 1e-7, 2e-9, 1.5, "conversion of a row, besides its elements"),
            Constant("convert", "B/s", 0.02 * band, 10 * band, CONVERTING * band, 0.5, "conversion of elements"),
        )

    def time_s(self, dims: Dims, facts: Facts, dtype: str, values: Values) -> Floats:
        product = product_of(dims, dtype)
        rows, columns, filled = vllm_tiles(product)
        loops = loops_s(product, facts.units, values, [(rows, columns)], split=False)
        beyond = np.where(product.m <= FEW_ROWS, 0.0, np.ceil(product.m / filled) * filled - product.m)
        fetched = beyond * product.k * np.ceil(product.n / columns) * product.element_bytes
        return self._whole(product, loops + fetched / values["memory"], facts, values)

    def _whole(self, product: Product, loops: Floats, facts: Facts, values: Values) -> Floats:
        """Seconds of a product, given those of its loops."""
        conversion = product.m * (values["row_s"] + product.k * CONVERTED_BYTES / values["convert"])
        traffic = traffic_s(product, facts, values)
        return np.asarray(values["fixed"] + conversion + blend(sustained_s(loops, values), traffic, TOGETHER))


class BlockScaledMatmul(ScaledMatmul):
    """Weights scaled by block, activations by row and block of k; the host is a floor."""

    name = "block_scaled_matmul"

    def constants(self, facts: Facts, dtype: str) -> tuple[Constant, ...]:
        return (
            *super().constants(facts, dtype),
            Constant("host", "s", 1e-7, 1e-3, 1e-5, 1.5, "work on the host that the device waits for"),
            Constant("host_few", "1", 0.1, 2.0, 0.9, 0.3, f"factor on host where m < {SWAPPED_ROWS:.0f}"),
            Constant("host_whole", "1", 1.0, 10.0, 1.2, 0.7, "factor on host where k or n is not whole blocks"),
        )

    def time_s(self, dims: Dims, facts: Facts, dtype: str, values: Values) -> Floats:
        product = product_of(dims, dtype)
        rows = np.clip(2 ** np.ceil(np.log2(product.m)), *ROWS)
        tiles: Sequence[tuple[Edge, Edge]] = [(rows, columns) for columns in COLUMNS]
        loops = loops_s(product, facts.units, values, tiles, split=False)
        device = self._whole(product, loops, facts, values)
        broken = (product.k % BLOCK_K > 0) | (product.n % BLOCK_N > 0)
        few = np.where(product.m < SWAPPED_ROWS, values["host_few"], 1.0)
        host = values["host"] * np.where(broken, values["host_whole"], few)
        return blend(host, device, FLOOR_POWER)


def vllm_tiles(product: Product) -> tuple[Floats, Floats, Floats]:
    """Rows and columns of a tile, and rows that are filled up: those of a cluster of two tiles where m is large."""
    m = product.m
    few = (m <= FEW_ROWS) | ((m <= SOME_ROWS) & (product.n <= FEW_COLUMNS))
    rows = np.where(few, FEW_ROWS, np.where(m <= MORE_ROWS, SOME_ROWS, MORE_ROWS))
    return rows, np.where(m <= SOME_ROWS, SOME_ROWS, MORE_ROWS), np.where(m <= SOME_ROWS, rows, 2 * rows)
