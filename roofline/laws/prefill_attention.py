"""Fused attention of many query rows: tiles of rows as work items on the device's units, as FlashAttention does it.

Each (batch, KV head) has its query rows, of all heads that share it, cut into tiles; a tile walks over the keys that
its rows see, block by block: two products and an exponential a pair. Tiles are independent and of different lengths
(causal, window); units take the next as they get free. So the time is the larger of the work shared by all units, the
longest tiles that one unit must run, and the traffic; plus what ends ragged, new tokens' way into the cache where the
measured call does that, and a fixed cost.

    pair      = 4·head_dim / matrix rate + 1 / exponential rate          (FlashAttention-3, arXiv 2407.08608, §3.1)
    tile      = start + 4·rows·head_dim / fill + rows · keys · pair
    time      = fixed + ‖(Σ tiles / units + ragged · longest, critical path, traffic / bandwidth)‖ₚ

Example: ``PrefillAttention().time_s(dims, facts, "bfloat16", values)``, dims as in `PrefillAttention.dims`
"""

import numpy as np

from roofline.laws.law import Constant, Dims, Facts, Floats, Values

BLOCK = 128.0
"""Keys that a tile takes at a time: 64 to 176 in FlashAttention 2 and 3."""
WIDEST = 256.0
"""Head dim up to which the output of 128 rows in float32 fits in half of a unit's 256 KiB of registers; beyond it tiles
have fewer rows, and the same keys are loaded that much more often: pairs get dearer in proportion."""
EXPONENTIALS = 1 / 16
"""Of a unit's float32 FLOP/s: 16 exponentials a clock beside 128 multiply-adds (CUDA C++ guide, throughput table)."""
ELEMENT = 2.0
"""Bytes of an element of queries and outputs."""
ROWS = (64.0, 128.0, 256.0)
"""Rows of a tile between which `rows` interpolates: kernels have whole numbers of 64."""
BURST_S = 2e-3
"""Length of call at which half of the sustained slowdown is felt: power is regulated over milliseconds."""
THREADS = 512.0
"""Of the block that appends a token, at most: one an element (vLLM, reshape_and_cache_flash)."""
RESIDENT = 2048.0
"""Threads that a unit holds (CUDA C++ guide, compute capabilities 8.0 to 10.0)."""
RAGGED = 0.3
"""Part of a longest tile by which units end apart: between 0 (longest first) and 1 (longest last)."""
RANKS = (1, 2, 3, 4, 6, 8, 12)
"""Full rounds of the units after which the critical path is looked at."""


class PrefillAttention:
    """Causal attention of `query` new tokens after `context` cached ones, in each of `batch` sequences."""

    kind = "prefill_attention"
    dims = ("batch", "heads", "kv_heads", "query", "context", "head_dim", "window", "kv_bytes")
    """`window`: keys that a query sees at most, 0 for all; `kv_bytes`: of a cached element, 2, or 1 for fp8."""

    def constants(self, facts: Facts, dtype: str) -> tuple[Constant, ...]:
        """Fifteen; `narrow` moves with an fp8 cache alone, `regroup` with single query rows alone."""
        peak, band = facts.matrix_flops_per_s[dtype], facts.bandwidth_bytes_per_s
        exponentials = EXPONENTIALS * facts.vector_flops_per_s
        return (
            Constant("fixed", "s", 1e-6, 1e-3, 9e-6, 0.5, "launch and what a call does once"),
            Constant("rate", "FLOP/s", 0.1 * peak, peak, 0.85 * peak, 0.2, "matrix work of the two products"),
            Constant("exponentials", "1/s", 0.1 * exponentials, 20 * exponentials, exponentials, 0.4, "not hidden"),
            Constant("start", "s", 5e-8, 2e-5, 1e-6, 0.7, "a tile's own latency: first loads, last store"),
            Constant("fill", "B/s", 0.2 * band, 50 * band, 3 * band, 0.7, "into and out of the units, all together"),
            Constant("rows", "1", 64.0, 256.0, 128.0, 0.4, "query rows of a tile"),
            Constant("append", "s", 1e-9, 1e-4, 3e-6, 1.0, "of the block of threads that writes a new token"),
            Constant("split", "1", 0.0, 1.0, 0.3, 0.2, "how far idle units take keys off the longest tiles", False),
            Constant("narrow", "1", 0.4, 3.0, 1.2, 0.3, "cost with an fp8 cache, to that without"),
            Constant("packed", "1", 0.0, 1.0, 0.5, 0.5, "1 where a group shares tiles, 0 where heads do not", False),
            Constant("mask", "s", 1e-8, 2e-5, 1e-6, 1.0, "what a causal call does beyond one of single rows"),
            Constant("sustained", "1", 0.0, 1.0, 0.05, 0.1, "slowdown of calls of many milliseconds: clocks", False),
            Constant("memory", "B/s", 0.2 * band, 4 * band, 0.85 * band, 0.4, "bandwidth of main memory or cache"),
            Constant("sharpness", "1", 1.0, 12.0, 3.0, 0.5, "of the larger of work, path and traffic"),
            Constant("regroup", "s", 1e-8, 3e-5, 1e-6, 1.5, "copies that regroup heads of single query rows"),
        )

    def time_s(self, dims: Dims, facts: Facts, dtype: str, values: Values) -> Floats:
        """Seconds of each call; all dims of one shape."""
        del dtype
        sizes = {name: np.asarray(dims[name], dtype=float) for name in self.dims}
        worked: Floats = np.zeros(np.broadcast(*sizes.values()).shape)
        place = np.log2(values["rows"] / ROWS[0])
        for index, rows in enumerate(ROWS):
            share = max(0.0, 1.0 - abs(place - index))
            for packed, part in ((True, values["packed"]), (False, 1 - values["packed"])):
                if share * part > 0:
                    worked = worked + share * part * np.log(_tiles(sizes, rows, packed, facts.units, values))
        moved = _traffic_s(sizes, facts, values)
        power = values["sharpness"]
        narrow = sizes["kv_bytes"] < ELEMENT
        single = (sizes["query"] == 1) & (sizes["batch"] > 1) & (sizes["heads"] > sizes["kv_heads"])
        once = values["fixed"] * np.where(narrow, values["narrow"], 1.0)
        once = once + np.where(single & (sizes["kv_heads"] > 1), values["regroup"], 0.0)
        full = sizes["query"] * sizes["heads"] / sizes["kv_heads"] / ROWS[1]
        once = once + values["mask"] * np.where(sizes["query"] > 1, (1 + np.minimum(full, 1.0)) / 2, 0.0)
        busy = _blend(np.exp(worked), moved, power) + _append_s(sizes, facts.units, values)
        return once + busy * (1 + values["sustained"] * busy / (busy + BURST_S))


def _tiles(sizes: Dims, rows: float, packed: bool, units: int, values: Values) -> Floats:
    """Seconds of the tiles of `rows` query rows, traffic aside."""
    head_dim, query, context, window = (sizes[n] for n in ("head_dim", "query", "context", "window"))
    pairs_s = 4 * head_dim / values["rate"] + 1 / values["exponentials"]
    pairs_s = pairs_s * np.maximum(head_dim / WIDEST, 1.0)
    pairs_s = pairs_s * np.where(sizes["kv_bytes"] < ELEMENT, values["narrow"], 1.0)
    tall = rows / np.maximum(head_dim / WIDEST, 1.0)
    block = np.minimum(BLOCK, BLOCK**2 / head_dim)
    block_s = tall * pairs_s * units
    start_s = values["start"] + 2 * ELEMENT * tall * head_dim * units / values["fill"]
    group = sizes["heads"] / sizes["kv_heads"]
    joint = np.where(packed | (query == 1), group, 1.0)
    many = sizes["batch"] * sizes["heads"] / joint
    each = np.ceil(query * joint / tall)
    step = query / each
    most = np.where(window > 0, np.minimum(window + step, context + query), context + query)
    # tile i of `each` ends at key context + (i + 1)·step and sees `most` at the longest
    ramp = np.clip(np.floor((most - context) / step), 0, each)
    keys = ramp * context + step * ramp * (ramp + 1) / 2 + (each - ramp) * most
    total = many * (each * (start_s + block_s * block / 2) + block_s * np.maximum(keys, each * block / 2))
    longest = start_s + block_s * np.maximum(most + block / 2, block)
    room = np.clip(units / (many * each), 1.0, np.maximum(most / block, 1.0))
    path = start_s + (longest - start_s) / room ** values["split"]
    for rounds in (*RANKS, np.maximum(np.ceil(many * each / units) - 1, 1.0)):
        rank = np.floor(rounds * units / many)
        seen = np.minimum(context + (each - rank) * step, most) + block / 2
        item = start_s + block_s * np.maximum(seen, block)
        path = np.maximum(path, np.where(rank < each, (rounds + 1.0) * item, 0.0))
    over = np.clip(4 * (many * each / units - 1), 0.0, 1.0)
    shared = total / units + RAGGED * over * longest
    return _blend(shared, path, values["sharpness"])


def _traffic_s(sizes: Dims, facts: Facts, values: Values) -> Floats:
    """Seconds to move queries, outputs, keys and values once: from the cache as far as they fit in it."""
    token = sizes["batch"] * sizes["head_dim"]
    moved = 2 * ELEMENT * token * sizes["heads"] * sizes["query"]
    moved = moved + 2 * sizes["kv_bytes"] * token * sizes["kv_heads"] * (sizes["query"] + sizes["context"])
    return moved / values["memory"]


def _append_s(sizes: Dims, units: int, values: Values) -> Floats:
    """Seconds to write the new tokens' keys and values into the cache."""
    elements = sizes["kv_heads"] * sizes["head_dim"]
    blocks_s = np.minimum(elements, THREADS) * values["append"] / (RESIDENT * units)
    moved_s = 2 * elements * (ELEMENT + sizes["kv_bytes"]) / values["memory"]
    return sizes["batch"] * sizes["query"] * _blend(blocks_s, moved_s, values["sharpness"])


def _blend(one: Floats, other: Floats, power: float) -> Floats:
    """The larger of two times, softly."""
    top = np.maximum(one, other)
    return top * ((one / top) ** power + (other / top) ** power) ** (1 / power)
