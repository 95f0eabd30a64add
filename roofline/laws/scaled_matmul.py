"""The law of a product in 8 bits of inputs that arrive in 16: converted and scaled first, then multiplied.

``time = fixed + conversion + (loops^p + memory^p)^(1/p)``, as `roofline.laws.matmul` with two differences.
- Conversion reads the m × k activations in 16 bits and writes 8: rows × (a fixed part + k elements).
- The kernels that serving engines ship for it choose rows of a tile by m alone and do not split k (vLLM's
  `cutlass_scaled_mm` dispatches on the next power of two of m); a last tile with few rows costs more than its share.

With a scale for each block of weights (`BlockScaledMatmul`) the call's own work on the host can take longer than the
device: it is a floor, higher for products whose k or n is not whole blocks.

Example: ``ScaledMatmul().time_s({"m": m, "n": n, "k": k}, facts, "float8_e4m3fn", values)``
"""

import numpy as np

from roofline.laws.law import Constant, Dims, Facts, Floats, Values
from roofline.laws.matmul import blended_s, core_constants, product_of
from roofline.laws.tiles import Edge, Product, loops_s

COLUMNS = (64.0, 128.0, 256.0)
"""Of a tile."""
ROWS = (64.0, 256.0)
"""Least and most rows of a tile."""
FEW_ROWS = 16.0
"""Products with at most these rows have kernels of their own, in which a tile that is not full costs nothing."""
SWAPPED_ROWS = 32.0
"""Block-scaled products with fewer rows go to a kernel with the operands swapped, in one call."""
CONVERTED_BYTES = 4.0
"""Per activation: 2 read to find its scale (or with its scale), 2 more to read it again or write it in 8 bits."""
BLOCK_K, BLOCK_N = 128.0, 64.0
"""Of a block of weights: k and n that are multiples take the fast path (DeepGEMM)."""
FLOOR_POWER = 8.0
"""Of the blend of the host's floor and the device's time: a maximum with a rounded corner."""


class ScaledMatmul:
    """Activations scaled by tensor or row."""

    kind = "scaled_matmul"
    dims: tuple[str, ...] = ("m", "n", "k")

    def constants(self, facts: Facts, dtype: str) -> tuple[Constant, ...]:
        """Those of a product, and the conversion's. Raises ValueError where the dtype's peak is not known."""
        memory = facts.bandwidth_bytes_per_s
        return (
            *core_constants(facts, dtype),
            Constant("conversion", "B/s", 0.01 * memory, 2 * memory, 0.5 * memory, 0.7, "bytes that conversion moves"),
            Constant("row_s", "s", 1e-11, 1e-7, 2e-9, 1.5, "conversion of a row, besides its elements"),
            Constant("partial", "1", 0.002, 5.0, 0.1, 1.2, "extra cost of a missing row of the last tile, in rows"),
        )

    def time_s(self, dims: Dims, facts: Facts, dtype: str, values: Values) -> Floats:
        """Seconds of each product, conversion included."""
        product = product_of(dims, dtype)
        rows = np.clip(2 ** np.ceil(np.log2(product.m)), *ROWS)
        tiles: list[tuple[Edge, Edge]] = [(rows, columns) for columns in COLUMNS]
        loops = loops_s(product, facts.units, values, tiles, split=False) * _partial(product, rows, values)
        conversion = product.m * (values["row_s"] + product.k * CONVERTED_BYTES / values["conversion"])
        return values["fixed"] + conversion + blended_s(product, loops, facts, values)


class BlockScaledMatmul(ScaledMatmul):
    """Weights scaled by block, activations by row and block of k; the host is a floor."""

    kind = "block_scaled_matmul"

    def constants(self, facts: Facts, dtype: str) -> tuple[Constant, ...]:
        """Those of a scaled product, and the host's."""
        return (
            *super().constants(facts, dtype),
            Constant("host", "s", 1e-7, 1e-3, 1e-5, 1.5, "work on the host that the device waits for"),
            Constant("host_few", "1", 0.1, 2.0, 0.9, 0.3, f"of it where m < {SWAPPED_ROWS:.0f}"),
            Constant("host_whole", "1", 1.0, 10.0, 1.2, 0.7, "of it where k or n is not whole blocks"),
        )

    def time_s(self, dims: Dims, facts: Facts, dtype: str, values: Values) -> Floats:
        """Seconds of each product, never less than the host's."""
        device = super().time_s(dims, facts, dtype, values)
        m, n, k = (np.asarray(dims[name], dtype=float) for name in ("m", "n", "k"))
        broken = (k % BLOCK_K > 0) | (n % BLOCK_N > 0)
        few = np.where(m < SWAPPED_ROWS, values["host_few"], 1.0)
        host = values["host"] * np.where(broken, values["host_whole"], few)
        top, low = np.maximum(host, device), np.minimum(host, device)
        return np.asarray(top * (1 + (low / top) ** FLOOR_POWER) ** (1 / FLOOR_POWER))


def _partial(product: Product, rows: Floats, values: Values) -> Floats:
    """Factor of the loops where the last tile has fewer rows than it could."""
    full = np.ceil(product.m / rows) * rows
    missing = np.where(product.m <= FEW_ROWS, 0.0, full - product.m)
    return np.asarray(1 + values["partial"] * missing / full)
