"""The law of a dense matrix product, m × k by k × n, in one dtype.

``time = fixed + (loops^p + memory^p)^(1/p)``: the main loops of the tiles (`roofline.laws.tiles`) beside the traffic of
both inputs and the output, blended as sharply as `sharpness` says. Bytes of a working set that the last-level cache
holds move at its bandwidth, those of larger ones at main memory's, smoothly between; what spills also slows the loops
(`spilled`: operands are fetched again, and long products run at the clock that the power limit leaves). Rows of k or n
that are not whole 16-byte words take `unaligned` times as long (CUTLASS and cuBLAS then load single elements).

Output is 2 bytes an element (4 for float32 inputs), accumulation float32.

Example: ``Matmul().time_s({"m": m, "n": n, "k": k}, facts, "bfloat16", values)``
"""

import numpy as np

from roofline.laws.law import Constant, Dims, Facts, Floats, Values
from roofline.laws.tiles import Product, loops_s

ELEMENT_BYTES = {
    "float32": 4.0,
    "tfloat32": 4.0,
    "bfloat16": 2.0,
    "float16": 2.0,
    "float8_e4m3fn": 1.0,
    "float8_e4m3fnuz": 1.0,
    "float8_e5m2": 1.0,
    "float8_e5m2fnuz": 1.0,
    "int8": 1.0,
}
"""Of an input of the product. tfloat32 is stored as float32."""

TILES = (
    (64, 32),
    (64, 64),
    (64, 128),
    (64, 256),
    (128, 32),
    (128, 64),
    (128, 128),
    (128, 256),
    (256, 128),
)
"""Rows and columns of output that one unit makes at a time: those that CUTLASS and cuBLAS ship for tensor cores."""

WORD_BYTES = 16.0
"""Of a vector load: rows that are a multiple of it are aligned."""


class Matmul:
    """A product of two unscaled matrices by a library that chooses tiles and splits k."""

    kind = "matmul"
    dims: tuple[str, ...] = ("m", "n", "k")

    def constants(self, facts: Facts, dtype: str) -> tuple[Constant, ...]:
        """Sixteen: those of any product, of sharing k (large where a library does not) and of alignment.

        Raises ValueError where the device's peak for the dtype is not known.
        """
        return (
            *core_constants(facts, dtype),
            Constant("split_s", "s", 1e-7, 1e-4, 2e-6, 0.8, "fixed cost of adding the sums of a split k"),
            Constant("stream_s", "s", 1e-7, 1e-2, 2e-6, 1.5, "fixed cost of sharing k beyond one wave of tiles"),
            Constant("unaligned", "1", 1.0, 8.0, 1.5, 0.3, "slowdown where rows are not whole 16-byte words"),
        )

    def time_s(self, dims: Dims, facts: Facts, dtype: str, values: Values) -> Floats:
        """Seconds of each product."""
        product = product_of(dims, dtype)
        loops = loops_s(product, facts.units, values, TILES, split=True)
        return values["fixed"] + blended_s(product, loops, facts, values) * alignment(product, values)


def core_constants(facts: Facts, dtype: str) -> tuple[Constant, ...]:
    """Constants that products have in common, scaled to the device's datasheet."""
    if dtype not in facts.matrix_flops_per_s:
        raise ValueError(f"no peak of {dtype} is known; known: {', '.join(sorted(facts.matrix_flops_per_s))}")
    peak, memory = facts.matrix_flops_per_s[dtype], facts.bandwidth_bytes_per_s
    return (
        Constant("fixed", "s", 2e-7, 1e-3, 3e-6, 1.0, "cost of a call that no size explains"),
        Constant("rate", "FLOP/s", 0.05 * peak, peak, 0.8 * peak, 0.25, "all units in their main loops"),
        Constant("memory", "B/s", 0.2 * memory, memory, 0.85 * memory, 0.15, "main memory, sustained"),
        Constant("cache", "B/s", 0.5 * memory, 10 * memory, 2.5 * memory, 0.5, "last-level cache"),
        Constant("resident", "1", 0.05, 2.0, 0.7, 0.5, "part of the last-level cache that a working set may fill"),
        Constant("latency", "s", 1e-8, 2e-5, 1e-6, 0.8, "first byte of the operands, before traffic flows"),
        Constant("store", "1", 0.1, 10.0, 1.0, 0.5, "cost of a byte written over that of a byte read"),
        Constant("sharpness", "1", 1.0, 12.0, 3.0, 0.5, "power of the blend of loops and traffic; ∞ is a sharp roof"),
        Constant("tile_s", "s", 5e-8, 1e-5, 1e-6, 0.8, "prologue and epilogue of a wave of tiles"),
        Constant("quantum", "1", 0.02, 1.0, 0.5, 0.5, "how much of a partial last wave is waited for"),
        Constant("narrow", "1", 16.0, 200.0, 64.0, 0.7, "rows or columns below which a tile takes no less time"),
        Constant("choice", "1", 0.005, 0.5, 0.05, 0.7, "relative difference of tiles that a library overlooks"),
        Constant("spilled", "1", 0.5, 1.0, 0.9, 0.1, "rate of the loops once operands exceed the last-level cache"),
    )


def product_of(dims: Dims, dtype: str) -> Product:
    """Sizes as a product. Raises ValueError for a dtype whose size is not known."""
    if dtype not in ELEMENT_BYTES:
        raise ValueError(f"size of {dtype} is not known; known: {', '.join(ELEMENT_BYTES)}")
    m, n, k = (np.asarray(dims[name], dtype=float) for name in ("m", "n", "k"))
    return Product(m, n, k, ELEMENT_BYTES[dtype], np.asarray(dims.get("cold", np.zeros_like(m)), dtype=float))


def blended_s(product: Product, loops: Floats, facts: Facts, values: Values) -> Floats:
    """Seconds of loops and traffic together; never less than either."""
    m, n, k, read = product.m, product.n, product.k, product.element_bytes
    moved = read * (m * k + k * n) + max(2.0, read) * m * n * values["store"]
    held = values["resident"] * facts.cache_bytes
    missing = 1 - (1 - moved**2 / (moved**2 + held**2)) * (1 - product.cold)
    traffic = moved * (missing / values["memory"] + (1 - missing) / values["cache"]) + values["latency"]
    loops = loops * (1 + (1 / values["spilled"] - 1) * missing)
    top, low = np.maximum(loops, traffic), np.minimum(loops, traffic)
    power = values["sharpness"]
    return np.asarray(top * (1 + (low / top) ** power) ** (1 / power))


def alignment(product: Product, values: Values) -> Floats:
    """1, or `unaligned` where k or n is not a whole number of words."""
    broken = (product.k * product.element_bytes % WORD_BYTES > 0) | (product.n * product.element_bytes % WORD_BYTES > 0)
    return np.where(broken, values["unaligned"], 1.0)
