"""The law of a dense matrix product, m × k by k × n, in one dtype: n × k are weights, m × k activations.

``time = fixed + blend(loops, traffic)``: the main loops of the tiles (`roofline.laws.tiles`) beside the traffic of both
inputs and the output.
- Traffic comes from the last-level cache or from main memory, smoothly between. Activations and output stay where they
  fit in half of the cache. Weights stay where they fit in the part `kept` of it, beside the same part of what else the
  product touches: small where other weights are used in between. With six layers in turn and shared activations, six
  layers' weights and one product's activations fill the cache, so that `kept` is a sixth. (NVIDIA AIConfigurator's
  collector of vLLM products calls six layers in turn, with weights of their own and
  the same activations; inside a model no weights stay, and `kept` is its least.)
- First bytes of weights from main memory are waited for (`latency`): no loop starts without them.
- Loops that go on long run at the rate that the power limit leaves (`sustained`).
- k or n that are no whole 16-byte words take `UNALIGNED` times as long.

Output is 2 bytes an element (4 for float32 inputs), accumulation float32.

Example: ``Matmul().time_s({"m": m, "n": n, "k": k}, facts, "bfloat16", values)``
"""

import numpy as np

from roofline.laws.law import Constant, Dims, Facts, Floats, Values
from roofline.laws.tiles import Product, loops_s, step_bytes_of, together

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
"""Rows and columns of output that one unit makes at a time: sides of powers of two, up to the 128 × 256 sums that a
unit's registers hold."""

WORD_BYTES = 16.0
"""Of a vector load: rows that are a multiple of it are aligned (NVIDIA's guide, "Tensor Core Requirements")."""
UNALIGNED = 1.5
"""Slowdown of rows that are not: the guide shows one, without a number; none of the tables here holds such a row."""
ACTIVATIONS_KEPT = 0.5
"""Part of the last-level cache that activations and output may fill and stay: 0.35 to 0.7 do as well on two devices."""
CACHE_SHARPNESS = 4.0
"""Power by which bytes begin to miss as they outgrow the cache; ∞ is a cache that replaces the least recently used and
is run through in turn. 2 and 4 do alike on the public tables, whose memories are fast beside their caches; 4 is better
where memory is slow (tests/calibrate/test_unlike_device.py, splits 0 to 2: off by 6.3 %, with 2 by 6.8 %)."""
BURST_S = 3e-4
"""Loops up to about here run at the burst rate. Tables are taken with tens of calls one after another, so that this is
some 10 ms of work, in which a power limit acts. On one H200, 0.1 ms fits worse, and 1 ms as well kernel by kernel but
worse by time."""
ABOVE_DATASHEET = 1.1
"""Highest rate over the datasheet's peak: room for short products above the clock of that peak; assumed, no source."""


CACHE_PER_UNIT = 4e10
"""B/s between the last-level cache and one unit. The port belongs to the unit, so the whole rate grows with units and
not with main memory: fitted to two public tables, an A100 (HBM2e) has 34 to 42 GB/s a unit and an H200 (HBM3e) 42. A
device with many units and slow memory (GDDR) has a cache many times as fast as its memory."""
STORE_PER_UNIT = 2e10
"""B/s of output out of one unit, into the cache: 13 GB/s on that A100, 32 on that H200."""


class Matmul:
    """A product of two unscaled matrices by a library that chooses tiles and splits k."""

    kind = "matmul"
    dims: tuple[str, ...] = ("m", "n", "k")

    def constants(self, facts: Facts, dtype: str) -> tuple[Constant, ...]:
        """Eleven, scaled to the device's datasheet. Raises ValueError where its peak for the dtype is not known."""
        if dtype not in facts.matrix_flops_per_s:
            raise ValueError(f"no peak of {dtype} is known; known: {', '.join(sorted(facts.matrix_flops_per_s))}")
        peak, memory = facts.matrix_flops_per_s[dtype], facts.bandwidth_bytes_per_s
        highest = ABOVE_DATASHEET * peak
        cache, store = max(CACHE_PER_UNIT * facts.units, memory), STORE_PER_UNIT * facts.units
        return (
            Constant("fixed", "s", 2e-7, 1e-3, 2.5e-6, 1.0, "cost of a call that no size explains"),
            Constant("rate", "FLOP/s", 0.05 * peak, highest, 0.85 * peak, 0.25, "all units in their main loops"),
            Constant("memory", "B/s", 0.2 * memory, memory, 0.85 * memory, 0.15, "main memory, sustained"),
            Constant("cache", "B/s", 0.5 * memory, 5 * cache, cache, 0.5, "last-level cache"),
            Constant("kept", "1", 0.01, 1.0, 0.2, 0.7, "part of the last-level cache that weights may fill and stay"),
            Constant("latency", "s", 1e-8, 2e-5, 1.5e-6, 0.8, "first bytes of weights from main memory"),
            Constant("step_s", "s", 5e-9, 2e-6, 1e-7, 0.8, "least time of a step of 128 bytes along k"),
            Constant("narrow", "1", 8.0, 400.0, 64.0, 0.5, "side of a tile whose operands take as long as its loop"),
            Constant("store", "B/s", 0.05 * store, 20 * store, store, 0.7, "tiles' output out of all units"),
            Constant("quantum", "1", 0.02, 1.0, 0.5, 0.7, "how much of a partial last wave is waited for"),
            Constant("sustained", "1", 0.5, 1.0, 0.9, 0.1, "rate of long loops over that of short ones (power)"),
        )

    def time_s(self, dims: Dims, facts: Facts, dtype: str, values: Values) -> Floats:
        """Seconds of each product."""
        product = product_of(dims, dtype)
        step_bytes = step_bytes_of(facts.matrix_flops_per_s[dtype], facts.units, product.element_bytes)
        loops = sustained_s(loops_s(product, facts.units, values, TILES, split=True, step_bytes=step_bytes), values)
        return values["fixed"] + together(loops, traffic_s(product, facts, values)) * alignment(product)


def product_of(dims: Dims, dtype: str) -> Product:
    """Sizes as a product. Raises ValueError for a dtype whose size is not known."""
    if dtype not in ELEMENT_BYTES:
        raise ValueError(f"size of {dtype} is not known; known: {', '.join(ELEMENT_BYTES)}")
    m, n, k = (np.asarray(dims[name], dtype=float) for name in ("m", "n", "k"))
    return Product(m, n, k, ELEMENT_BYTES[dtype], np.asarray(dims.get("cold", np.zeros_like(m)), dtype=float))


def traffic_s(product: Product, facts: Facts, values: Values) -> Floats:
    """Seconds of both inputs and the output, each from the cache or from main memory.

    What no cache holds beforehand is weights first, as in a model: activations have just been written.
    """
    weights = product.element_bytes * product.k * product.n
    others = product.element_bytes * product.m * product.k + product.stored_bytes * product.m * product.n
    outside = product.cold * (weights + others)
    kept = values["kept"]
    cold = _either(_missing(weights + kept * others, kept * facts.cache_bytes), np.minimum(outside / weights, 1.0))
    others_cold = _either(
        _missing(others, ACTIVATIONS_KEPT * facts.cache_bytes), np.maximum(outside - weights, 0.0) / others
    )
    return weights * _byte_s(cold, values) + others * _byte_s(others_cold, values) + cold * values["latency"]


def sustained_s(loops: Floats, values: Values) -> Floats:
    """Seconds of loops under the power limit."""
    long = loops**2 / (loops**2 + BURST_S**2)
    return np.asarray(loops * (1 + (1 / values["sustained"] - 1) * long))


def alignment(product: Product) -> Floats:
    """1, or `UNALIGNED` where k or n is not a whole number of words."""
    broken = (product.k * product.element_bytes % WORD_BYTES > 0) | (product.n * product.element_bytes % WORD_BYTES > 0)
    return np.where(broken, UNALIGNED, 1.0)


def _missing(used: Floats, room: float) -> Floats:
    """Part of `used` bytes that main memory serves where the cache has `room` for them."""
    return np.asarray(1 / (1 + (room / used) ** CACHE_SHARPNESS))


def _either(one: Floats, other: Floats) -> Floats:
    """Shares that miss for either of two reasons, independent of each other."""
    return np.asarray(1 - (1 - one) * (1 - other))


def _byte_s(missing: Floats, values: Values) -> Floats:
    """Seconds of a byte, of which the part `missing` is not in the cache."""
    return missing / values["memory"] + (1 - missing) / values["cache"]
