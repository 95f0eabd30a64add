"""Fused attention of many query rows: tiles of rows as work items on the device's units, as FlashAttention does it.

Each (batch, KV head) has its query rows, of all heads that share it, cut into tiles; a tile walks over the keys that
its rows see, block by block: two products and an exponential a pair. Tiles are independent and of different lengths
(causal, window); units take the next, the longest first, as they get free. So the time is the larger of the work shared
by all units and of the longest tiles that one unit must run, and of the traffic; plus what ends ragged, new tokens' way
into the cache where the measured call does that, and a fixed cost. Where tiles are few, their keys are split, by a
kernel that is slower (`flash_attention`).

    pair      = 4·head_dim / matrix rate + 1 / exponential rate          (FlashAttention-3, arXiv 2407.08608, §3.1)
    tile      = start + loads and stores / fill + rows · blocks of keys · pair
    time      = fixed + ‖(Σ tiles / units + ragged · longest, critical path, traffic / bandwidth)‖₈ + append

Long calls are slower by `sustained`, in proportion to how busy the matrix units are: power is held, clocks fall.

Example: ``PrefillAttention().time_s(dims, facts, "bfloat16", values)``, dims as in `PrefillAttention.dims`
"""

import numpy as np

from roofline.laws import flash_attention as flash
from roofline.laws.four_constant import blend
from roofline.laws.law import Constant, Dims, Facts, Floats, Values

EXPONENTIALS = 1 / 16
"""Of a unit's float32 FLOP/s: 16 exponentials a clock beside 128 multiply-adds (CUDA C++ guide, throughput table)."""
ELEMENT = 2.0
"""Bytes of an element of queries and outputs."""
PARTIAL = 4.0
"""Bytes of an element of a split's partial output: float32."""
HEATED_S, HEATING = 5e-3, 4.0
"""Length of a call, repeated, at which half of the sustained slowdown is felt, and how sharply: power is regulated over
milliseconds. Rates fall between 4 and 6 ms on an H200."""
THREADS = 512.0
"""Of the block that appends a token, at most: one an element (vLLM, reshape_and_cache_flash)."""
RESIDENT = 2048.0
"""Threads that a unit holds (CUDA C++ guide, compute capabilities 8.0 to 10.0)."""
RAGGED = 0.15
"""Part of a longest tile by which units end apart: 0 where the longest come first, up to 1 where they come last."""
RANKS = (1, 2, 3, 4, 6, 8, 12)
"""Full rounds of the units after which the critical path is looked at."""
SHARPNESS = 8.0
"""Of the larger of work, path and traffic."""
MASK_S = 1e-6
"""What a causal call does beyond one of single rows; half of it with less than `FULL` rows."""
FULL = 128.0
SPLITTING = 0.15
"""How much slower a kernel that may split keys runs its tiles: 0.12 to 0.19 where it was fitted (one H200). Held, since
letting it move changes errors by less than a tenth of a point."""
COMBINE_S = 2e-6
"""Second launch that joins splits: as `combine` of decode attention's prior."""


class PrefillAttention:
    """Causal attention of `query` new tokens after `context` cached ones, in each of `batch` sequences."""

    kind = "prefill_attention"
    dims = ("batch", "heads", "kv_heads", "query", "context", "head_dim", "window", "kv_bytes")
    """`window`: keys that a query sees at most, 0 for all; `kv_bytes`: of a cached element, 2, or 1 for fp8."""

    def constants(self, facts: Facts, dtype: str) -> tuple[Constant, ...]:
        """Thirteen; `narrow` moves with an fp8 cache alone, `regroup` and `blind` with single query rows alone."""
        peak, band = facts.matrix_flops_per_s[dtype], facts.bandwidth_bytes_per_s
        exponentials = EXPONENTIALS * facts.vector_flops_per_s
        return (
            Constant("fixed", "s", 1e-6, 1e-3, 9e-6, 0.5, "launch and what a call does once"),
            Constant("rate", "FLOP/s", 0.1 * peak, peak, 0.85 * peak, 0.2, "matrix work of the two products"),
            Constant("exponentials", "1/s", 0.1 * exponentials, 20 * exponentials, exponentials, 0.4, "not hidden"),
            Constant("start", "s", 5e-8, 2e-5, 1e-6, 0.7, "a tile's own latency"),
            Constant("fill", "B/s", 0.2 * band, 50 * band, 3 * band, 0.7, "into and out of the units, all together"),
            Constant("append", "s", 1e-9, 1e-4, 3e-6, 1.0, "of the block of threads that writes a new token"),
            Constant("narrow", "1", 0.4, 3.0, 1.2, 0.3, "cost with an fp8 cache, to that without"),
            Constant("packed", "1", 0.0, 1.0, 1.0, 0.5, "1 where a group shares tiles, 0 where heads do not", False),
            Constant("wide", "1", 0.0, 3.0, 1.25, 0.2, "power of head dim at which pairs get dearer if wide", False),
            Constant("sustained", "1", 0.0, 1.0, 0.1, 0.1, "slowdown of calls of many milliseconds: clocks", False),
            Constant("memory", "B/s", 0.2 * band, band, 0.85 * band, 0.1, "bandwidth of main memory"),
            Constant("regroup", "s", 1e-8, 3e-5, 1e-6, 1.5, "copies that regroup heads of single query rows"),
            Constant("blind", "1", 0.0, 1.0, 0.0, 0.1, "1 where widest heads of single rows are split blindly", False),
        )

    def time_s(self, dims: Dims, facts: Facts, dtype: str, values: Values) -> Floats:
        """Seconds of each call; all dims of one shape."""
        del dtype
        sizes = {name: np.asarray(dims[name], dtype=float) for name in self.dims}
        worked: Floats = np.zeros(np.broadcast(*sizes.values()).shape)
        for packed, part in ((True, values["packed"]), (False, 1 - values["packed"])):
            if part > 0:
                worked = worked + part * np.log(_tiles_s(sizes, packed, facts.units, values))
        busy = blend(np.exp(worked), _traffic_s(sizes, values), SHARPNESS) + _append_s(sizes, facts.units, values)
        heated = (busy / HEATED_S) ** HEATING
        heated = heated / (1 + heated) * np.minimum(_products_s(sizes, values) / busy, 1.0)
        return np.asarray(_once_s(sizes, facts.units, values) + busy * (1 + values["sustained"] * heated))


def _once_s(sizes: Dims, units: int, values: Values) -> Floats:
    """Seconds that do not grow with tiles."""
    batch, heads, kv_heads, query, head_dim = (sizes[n] for n in ("batch", "heads", "kv_heads", "query", "head_dim"))
    once = values["fixed"] * np.where(sizes["kv_bytes"] < flash.NARROW, values["narrow"], 1.0)
    once = once + np.where((query == 1) & (batch > 1) & (heads > kv_heads) & (kv_heads > 1), values["regroup"], 0.0)
    once = once + np.where(query > 1, MASK_S * (1 + np.minimum(query * heads / kv_heads / FULL, 1.0)) / 2, 0.0)
    blocks = batch * kv_heads * flash.RESERVED / units
    each_s = flash.SEARCH_S * batch
    blind_s = blocks * each_s + np.maximum(blocks - 1, 0.0) * values["start"] * (0.5 + head_dim / flash.WIDEST)
    blind_s = blind_s + flash.joining_s(batch, heads, head_dim, units)
    return np.asarray(once + values["blind"] * flash.blind(batch, query, head_dim) * blind_s)


def _tiles_s(sizes: Dims, packed: bool, units: int, values: Values) -> Floats:
    """Seconds of all tiles, traffic aside."""
    head_dim, query, context, window = (sizes[n] for n in ("head_dim", "query", "context", "window"))
    narrow = sizes["kv_bytes"] < flash.NARROW
    widest = np.where(narrow, flash.WIDEST_NARROW, flash.WIDEST)
    pair_s = 4 * head_dim / values["rate"] + 1 / values["exponentials"]
    pair_s = pair_s * np.maximum(head_dim / widest, 1.0) ** values["wide"] * np.where(narrow, values["narrow"], 1.0)
    tall, block = flash.rows(head_dim, packed), flash.keys(head_dim, sizes["kv_bytes"], packed)
    joint = (
        sizes["heads"] / sizes["kv_heads"] if packed else np.where(query == 1, sizes["heads"] / sizes["kv_heads"], 1.0)
    )
    many = sizes["batch"] * sizes["heads"] / joint
    each, step, total = np.ceil(query * joint / tall), tall / joint, context + query
    key_s = tall * pair_s * units
    loaded = 2 * ELEMENT * np.minimum(tall, query * joint) + 2 * sizes["kv_bytes"] * np.minimum(total, block)
    start_s = values["start"] + loaded * head_dim * units / values["fill"]
    # A tile ends anywhere in a block of keys, so takes half a block more than its rows see; with a window, also begins.
    beyond = (block - np.gcd(np.maximum(np.rint(step), 1).astype(int), block.astype(int))) / 2
    slides = (window > 0) & (window < total)
    most = np.where(slides, np.minimum(window + step, total), total)
    # Tile i of `each` sees keys up to context + (i + 1)·step, `most` at the longest.
    ramp = np.clip(np.floor((most - context) / step), 0, each)
    seen = ramp * context + step * ramp * (ramp + 1) / 2 + (each - ramp) * (most + np.where(slides, beyond, 0.0))
    work_s = many * (each * start_s + key_s * np.maximum(seen + each * beyond, each * block))
    margin = beyond * np.where(slides, 2.0, 1.0)
    longest_s = start_s + key_s * np.maximum(most + margin, block)
    pieces: Floats = np.ones_like(work_s)
    after_s: Floats = np.zeros_like(work_s)
    if packed:
        blocks = np.ceil(np.where(slides, np.minimum(window + tall, total), total) / block)
        split = flash.may_split(blocks, each * many / sizes["batch"], units)
        pieces = np.where(split > 0, flash.splits(blocks, each * many, units), 1.0)
        partial = np.where(pieces > 1, 2 * PARTIAL * many * each * tall * head_dim * pieces, 0.0)
        work_s, longest_s = work_s * (1 + SPLITTING * split), longest_s * (1 + SPLITTING * split)
        after_s = split * COMBINE_S + partial / values["memory"]
    path_s = start_s + (longest_s - start_s) / pieces
    for rounds in (*RANKS, np.maximum(np.ceil(many * each / units) - 1, 1.0)):
        rank = np.floor(rounds * units / many)
        item_s = start_s + key_s * np.maximum(np.minimum(context + (each - rank) * step, most) + margin, block)
        path_s = np.maximum(path_s, np.where(rank < each, (rounds + 1.0) * item_s, 0.0) / pieces)
    over = np.clip(4 * (many * each / units - 1), 0.0, 1.0)
    shared_s = work_s / units + RAGGED * over * longest_s / pieces
    return np.asarray(blend(shared_s, path_s, SHARPNESS) + after_s)


def _products_s(sizes: Dims, values: Values) -> Floats:
    """Seconds of the two products of the pairs that are not masked, at the full rate."""
    query, context, window = sizes["query"], sizes["context"], sizes["window"]
    most = np.where(window > 0, np.minimum(window, context + query), context + query)
    ramp = np.clip(most - context, 0, query)
    pairs = ramp * context + ramp * (ramp + 1) / 2 + (query - ramp) * most
    return np.asarray(sizes["batch"] * sizes["heads"] * pairs * 4 * sizes["head_dim"] / values["rate"])


def _traffic_s(sizes: Dims, values: Values) -> Floats:
    """Seconds to move queries, outputs, keys and values once."""
    token = sizes["batch"] * sizes["head_dim"]
    moved = 2 * ELEMENT * token * sizes["heads"] * sizes["query"]
    moved = moved + 2 * sizes["kv_bytes"] * token * sizes["kv_heads"] * (sizes["query"] + sizes["context"])
    return np.asarray(moved / values["memory"])


def _append_s(sizes: Dims, units: int, values: Values) -> Floats:
    """Seconds to write the new tokens' keys and values into the cache."""
    elements = sizes["kv_heads"] * sizes["head_dim"]
    blocks_s = np.minimum(elements, THREADS) * values["append"] / (RESIDENT * units)
    moved_s = 2 * elements * (ELEMENT + sizes["kv_bytes"]) / values["memory"]
    return np.asarray(sizes["batch"] * sizes["query"] * blend(blocks_s, moved_s, SHARPNESS))
