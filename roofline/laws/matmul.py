"""The laws of dense matrix products, m × k activations by k × n weights: single, batched, or scaled 8-bit ones.

``time = fixed + blend(loops, traffic)``: a library cuts m × n into tiles, each run along k by one unit (NVIDIA, "Matrix
Multiplication Background User's Guide"). A step along k takes the longest of its arithmetic, its operands' way into the
unit, and the least time of any step; waves of tiles and split-K (several units share a tile's k and add their sums) are
priced for each tile shape. Activations and output stay in half of the last-level cache, weights where they and the same
part of all else fit in the part `kept` of it: a sixth in AIConfigurator's collector, which calls six layers in turn.
8-bit products whose activations arrive in 16 bits differ as `ScaledMatmul` and `BlockScaledMatmul` say.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from roofline.dtypes import BITS
from roofline.laws.law import FETCH, Constant, Dims, Facts, Floats, Values, blend, evicted_code, optional
from roofline.laws.work import OUTPUT_BYTES

STEP_BYTES = 128.0
"""Bytes along k of one step of a main loop on fast units: a swizzled shared-memory row of Hopper, whose cuBLAS kernels
are named tilesize128x256x64 (64 elements of 16 bits)."""
SHORT_STEP_BYTES = 64.0
"""Bytes along k of one step on slower units: cuBLAS kernels of Ampere and Ada are named … stages_32x5 (32 elements)."""
FAST_UNIT = 8e12
"""Arithmetic rate of a unit times bytes of an operand's element above which steps are long. Hopper has 15e12, A100
6e12, Ada 5e12: half a step keeps a slow unit busy long enough to hide the next one's loads."""
FEWEST_STEPS = 4.0
"""Least number of steps of a part of a split k: shorter parts do not fill the pipeline."""
PARTS_PER_UNIT = (1.0, 2.0)
"""Parts of a split k that a unit runs: two are resident where registers allow it."""
FEWEST_ROWS = 64.0
"""Least length of a tile's longer side: matrix instructions (64 × n on Hopper) compute as many, needed or not."""
PARTIAL_BYTES = 8.0
"""Bytes of a partial sum: float32, written once and read once."""
OVERLOOKED = 0.05
"""Relative difference of tile shapes that a library overlooks; 0.02 to 0.1 do as well on two devices."""
TOGETHER = 4.0
"""Power of the blends of what overlaps, within a step and in a product; 3 to 5 do as well."""
Edge = float | NDArray[np.float64]
"""Rows or columns of a tile: one for all products, or one for each."""


@dataclass(frozen=True, eq=False)
class Product:
    """Matrix products m × k by k × n as arrays of one shape."""

    m: Floats
    n: Floats
    k: Floats
    element_bytes: float
    """Bytes of an element of either input."""
    cold: Floats | float = 0.0
    """Share of the bytes that no cache holds beforehand."""

    @property
    def flops(self) -> Floats:
        return 2 * self.m * self.n * self.k

    @property
    def stored_bytes(self) -> float:
        """Bytes of an element of the output."""
        return max(OUTPUT_BYTES, self.element_bytes)


def loops_s(
    product: Product,
    units: int,
    values: Values,
    tiles: Sequence[tuple[Edge, Edge]],
    split: bool,
    step_bytes: float = STEP_BYTES,
) -> Floats:
    """Seconds of all main loops, at least ``flops / rate``; `split` allows several units to share one tile's k.

    `step_bytes` along k are one step (`step_bytes_of`). `step_s` is the least time of a step of `STEP_BYTES`, and of
    shorter ones in proportion. The other constants are rate (FLOP/s of the device), narrow (side of a square tile whose
    operands take as long as its arithmetic), store (B/s), quantum (how much of a partial last wave is waited for) and,
    with `split`, fixed and cache.
    """
    m, n = product.m, product.n
    step_k = step_bytes / product.element_bytes
    steps = np.ceil(product.k / step_k)
    flop_s = units / values["rate"]
    most = np.maximum(1, steps / FEWEST_STEPS)
    times = []
    for rows, columns in tiles:
        grid = np.ceil(m / rows) * np.ceil(n / columns)
        longer, shorter = np.maximum(rows, columns), np.minimum(rows, columns)
        arithmetic_s = 2 * np.maximum(longer, FEWEST_ROWS) * shorter * step_k * flop_s
        operands_s = values["narrow"] * (rows + columns) * step_k * flop_s
        step_s = blend(arithmetic_s, operands_s, TOGETHER)
        step_s = blend(step_s, values["step_s"] * step_bytes / STEP_BYTES, TOGETHER)
        store_s = rows * columns * product.stored_bytes * units / values["store"]
        times.append(_waves(grid / units, values["quantum"]) * (steps * step_s + store_s))
        for per_unit in PARTS_PER_UNIT if split else ():
            parts = np.clip(np.floor(per_unit * units / grid), 1, most)
            waves = _waves(grid * parts / units, values["quantum"])
            sums_s = values["fixed"] + parts * m * n * PARTIAL_BYTES / values["cache"]
            parts_s = waves * (np.ceil(steps / parts) * step_s + store_s)
            times.append(parts_s + np.where(parts > 1, sums_s, 0.0))
    return _soft_minimum(np.stack(times))


def step_bytes_of(peak_flops_per_s: float, units: int, element_bytes: float) -> float:
    """Bytes along k of a step, from a device's peak for a dtype and the number of its units."""
    fast = peak_flops_per_s / units * element_bytes > FAST_UNIT
    return STEP_BYTES if fast else SHORT_STEP_BYTES


def _waves(filled: Floats, quantum: float) -> Floats:
    """Waves of tiles that fill the units `filled` times: not rounded (quantum 0) up to whole waves (1)."""
    least = np.maximum(filled, 1)
    return least + quantum * (np.ceil(filled) - least)


def _soft_minimum(times: Floats) -> Floats:
    """A soft minimum along the first axis: between the minimum and the mean of times within `OVERLOOKED` of it."""
    best = times.min(axis=0)
    excess = np.exp(-(times / best - 1) / OVERLOOKED).mean(axis=0)
    return np.asarray(best * (1 - OVERLOOKED * np.log(excess)))


TILES = ((64, 32), (64, 64), (64, 128), (64, 256), (128, 32), (128, 64), (128, 128), (128, 256), (256, 128))
"""Rows and columns of output that a unit makes at a time: powers of two, up to the 128 × 256 sums in its registers."""
WORD_BYTES = 16.0
"""Bytes of a vector load: rows that are a multiple of it are aligned (NVIDIA's guide, "Tensor Core Requirements")."""
UNALIGNED = 1.5
"""Slowdown of unaligned rows: the guide shows one, without a number; none of the tables here holds such a row."""
ACTIVATIONS_KEPT = 0.5
"""Part of the last-level cache that activations and output may fill; 0.35 to 0.7 do as well on two devices."""
CACHE_SHARPNESS = 4.0
"""Power of (bytes ÷ cache) with which bytes begin to miss; ∞ is an LRU cache that is run through in turn. 2 and 4 do
alike on the public tables, whose memories are fast beside their caches; 4 is better where memory is slow
(tests/calibrate/kernels/test_correct.py, splits 0 to 2: off by 6.3 %, with 2 by 6.8 %)."""
BURST_S = 3e-4
"""Loops up to about here run at the burst rate: tables are measured with tens of calls in a row, some 10 ms of work, in
which a power limit acts. On one H200, 0.1 ms fits worse, and 1 ms worse by time."""
ABOVE_DATASHEET = 1.1
"""Highest rate ÷ datasheet's peak, for short products above the clock of that peak; assumed, no source."""
CACHE_PER_UNIT = 4e10
"""B/s between the last-level cache and one unit. The port belongs to the unit, so the rate grows with units and not
with main memory: in two public tables an A100 (HBM2e) has 34 to 42 GB/s a unit and an H200 (HBM3e) 42."""
STORE_PER_UNIT = 2e10
"""B/s of output out of one unit, into the cache: 13 GB/s on that A100, 32 on that H200."""


class Matmul:
    """A product of two unscaled matrices by a library that chooses tiles and splits k."""

    name = "matmul"
    dims: tuple[str, ...] = ("m", "n", "k")

    def constants(self, facts: Facts, dtype: str) -> tuple[Constant, ...]:
        peak, memory = peak_of(facts, dtype), facts.bandwidth_bytes_per_s
        highest = ABOVE_DATASHEET * peak
        cache, store = max(CACHE_PER_UNIT * facts.units, memory), STORE_PER_UNIT * facts.units
        return (
            Constant("fixed", "s", 2e-7, 1e-3, 2.5e-6, 1.0, "cost of a call that no size explains"),
            Constant("rate", "FLOP/s", 0.05 * peak, highest, 0.85 * peak, 0.25, "all units in their main loops"),
            Constant("memory", "B/s", 0.2 * memory, memory, 0.85 * memory, 0.15, "main memory, sustained"),
            Constant("cache", "B/s", 0.5 * memory, 5 * cache, cache, 0.5, "last-level cache"),
            Constant("kept", "1", 0.01, 1.0, 0.2, 0.7, "part of the last-level cache that weights may fill and stay"),
            Constant("latency", "s", 1e-8, 2e-5, 1.5e-6, 0.8, "first bytes of weights, which all loops wait for"),
            Constant("step_s", "s", 5e-9, 2e-6, 1e-7, 0.8, "least time of a step of 128 bytes along k"),
            Constant("narrow", "1", 8.0, 400.0, 64.0, 0.5, "side of a tile whose operands take as long as its loop"),
            Constant("store", "B/s", 0.05 * store, 20 * store, store, 0.7, "tiles' output out of all units"),
            Constant("quantum", "1", 0.02, 1.0, 0.5, 0.7, "how much of a partial last wave is waited for"),
            Constant("sustained", "1", 0.5, 1.0, 0.9, 0.1, "rate of long loops over that of short ones (power)"),
        )

    def time_s(self, dims: Dims, facts: Facts, dtype: str, values: Values) -> Floats:
        product = product_of(dims, dtype)
        step_bytes = step_bytes_of(facts.matrix_flops_per_s[dtype], facts.units, product.element_bytes)
        loops = sustained_s(loops_s(product, facts.units, values, TILES, split=True, step_bytes=step_bytes), values)
        return values["fixed"] + blend(loops, traffic_s(product, facts, values), TOGETHER) * alignment(product)


def peak_of(facts: Facts, dtype: str) -> float:
    """FLOP/s of the matrix units. Raises ValueError where the dtype's peak is not known."""
    if dtype not in facts.matrix_flops_per_s:
        raise ValueError(f"no peak of {dtype} is known; known: {', '.join(sorted(facts.matrix_flops_per_s))}")
    return facts.matrix_flops_per_s[dtype]


def product_of(dims: Dims, dtype: str) -> Product:
    """Sizes as a product. Raises ValueError for a dtype whose size is not known."""
    if dtype not in BITS:
        raise ValueError(f"size of {dtype} is not known; known: {', '.join(BITS)}")
    m, n, k = (np.asarray(dims[name], dtype=float) for name in ("m", "n", "k"))
    return Product(m, n, k, BITS[dtype] / 8, optional(dims, "cold", m))


def traffic_s(product: Product, facts: Facts, values: Values) -> Floats:
    """Seconds of both inputs and the output, each from the cache or from main memory. Bytes that no cache holds
    beforehand are weights first: in a model, activations have just been written."""
    weights = product.element_bytes * product.k * product.n
    others = product.element_bytes * product.m * product.k + product.stored_bytes * product.m * product.n
    outside = product.cold * (weights + others)
    kept = values["kept"]
    cold = _either(_missing(weights + kept * others, kept * facts.cache_bytes), np.minimum(outside / weights, 1.0))
    evicted = np.maximum(outside - weights, 0.0) / others
    others_cold = _either(_missing(others, ACTIVATIONS_KEPT * facts.cache_bytes), evicted)
    return weights * _byte_s(cold, values) + others * _byte_s(others_cold, values) + cold * values["latency"]


def sustained_s(loops: Floats, values: Values) -> Floats:
    """Seconds of loops under the power limit."""
    long = loops**2 / (loops**2 + BURST_S**2)
    return np.asarray(loops * (1 + (1 / values["sustained"] - 1) * long))


def alignment(product: Product) -> Floats:
    """1, or `UNALIGNED` where k or n is not a whole number of words."""
    broken = sum(size * product.element_bytes % WORD_BYTES > 0 for size in (product.k, product.n))
    return np.where(broken, UNALIGNED, 1.0)


def _missing(used: Floats, room: float) -> Floats:
    """Part of `used` bytes that main memory serves where the cache has `room` for them."""
    return np.asarray(1 / (1 + (room / used) ** CACHE_SHARPNESS))


def _either(first: Floats, second: Floats) -> Floats:
    """Shares that miss for either of two independent reasons."""
    return np.asarray(1 - (1 - first) * (1 - second))


def _byte_s(missing: Floats, values: Values) -> Floats:
    """Seconds of a byte, of which the share `missing` is not in the cache."""
    return missing / values["memory"] + (1 - missing) / values["cache"]


BATCHED_SHARPNESS = 1.5
"""Power of the blend of loops and traffic, of which little overlaps (1 adds them)."""


@dataclass(frozen=True, slots=True)
class BatchedMatmul:
    """Many small products in one call: `bmm`, and the experts of a mixture as `_grouped_mm` runs them.

    ``time = fixed + batch · piece + ((loops^p + traffic^p)^(1/p))``: each product has a start of its own (`piece`),
    loops reach half of their rate at `half_m`, `half_n` and `half_k` (Hockney's n½), and the share "cold" of the
    operands comes from main memory. Weights of all "batch" products, each of sizes m, n and k, are read once.
    """

    name: str = "batched_matmul"
    dims: tuple[str, ...] = ("batch", "m", "n", "k")

    def constants(self, facts: Facts, dtype: str) -> tuple[Constant, ...]:
        peak, memory = facts.matrix_flops_per_s[dtype], facts.bandwidth_bytes_per_s
        return (
            Constant("fixed", "s", 2e-7, 1e-3, 5e-6, 1.0, "cost of a call"),
            Constant("piece", "s", 1e-9, 1e-4, 5e-7, 1.5, "start of one of its products"),
            Constant("rate", "FLOP/s", 0.01 * peak, 1.2 * peak, 0.6 * peak, 0.6, "long loops on all units"),
            Constant("half_m", "1", 0.1, 300.0, 4.0, 1.0, "rows at which half of the rate is reached"),
            Constant("half_n", "1", 0.1, 1000.0, 10.0, 1.0, "columns at which it is"),
            Constant("half_k", "1", 0.1, 1000.0, 10.0, 1.0, "depth at which it is"),
            Constant("memory", "B/s", 0.02 * memory, 1.2 * memory, 0.5 * memory, 0.6, "operands out of main memory"),
            Constant("cache", "B/s", 0.05 * memory, 20 * memory, 1.5 * memory, 0.7, "operands in a cache"),
            FETCH,
        )

    def time_s(self, dims: Dims, facts: Facts, dtype: str, values: Values) -> Floats:
        batch = np.asarray(dims["batch"], dtype=float)
        product = product_of(dims, dtype)
        m, n, k = product.m, product.n, product.k
        loops = 2 * batch * m * n * k / values["rate"]
        for size, half in ((m, "half_m"), (n, "half_n"), (k, "half_k")):
            loops = loops * (1 + values[half] / size)
        moved = product.element_bytes * batch * (m * k + k * n + m * n)
        traffic = moved * (product.cold / values["memory"] + (1 - product.cold) / values["cache"])
        once = values["fixed"] + batch * values["piece"] + values["fetch"] * evicted_code(dims, facts)
        return np.asarray(once + blend(loops, traffic, BATCHED_SHARPNESS))


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
    """The law of a product in 8 bits, scaled by tensor or row, whose activations arrive in 16: converted, then
    multiplied.

    ``time = fixed + conversion + blend(loops, traffic)``. Conversion reads the m × k activations in 16 bits and writes
    8: rows × (a fixed part + k elements). k is not split; the tile follows from m (and n) alone, as vLLM's
    `cutlass_scaled_mm` chooses it on Hopper (csrc/quantization/w8a8/cutlass/c3x/scaled_mm_sm90_fp8_dispatch.cuh). Rows
    missing from the last tile are fetched too, by every column of tiles and at main memory's rate, since nothing shares
    them: 513 rows take twice the time of 512 (DeepGEMM, csrc/jit_kernels/heuristics/sm90.hpp: "smaller block M can
    avoid TMA L2 OOB bound").
    """

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
    """Weights scaled by block, activations by row and block of k, without fetches beyond the last row.

    Tiles are chosen by their time; the host's work for a call is a floor, higher where k or n is not whole blocks.
    """

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
