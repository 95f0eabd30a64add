"""The laws of fused attention on devices with matrix units: many query rows (prefill), and one a sequence (decode).

FlashAttention cuts attention into pieces for a device's units in two ways, by whether a library packs the query heads
that share keys into one tile:
- packed: FlashAttention 3 behind a paged cache (hopper/tile_size.h with paged_kv_non_TMA; hopper/heuristics.h;
  hopper/flash_prepare_scheduler.cu). It splits keys of prefill and decode, whatever the heads.
- apart: FlashAttention 2 behind one (csrc/flash_attn/src/flash_fwd_launch_template.h, run_mha_fwd_splitkv_dispatch):
  tiles of 64 rows of one head. Its mha_varlen_fwd splits keys of a single query row only where it has first copied the
  heads of a group together (seqlenq_ngroups_swapped): a library that pays for that copy splits nothing else.
"""

import numpy as np
from numpy.typing import NDArray

from roofline.laws.law import Constant, Dims, Facts, Floats, Values, blend
from roofline.laws.work import prefill_work

WIDEST = 256.0
"""Largest head dim whose float32 output of 128 rows fits in half of a unit's 256 KiB of registers; above it tiles have
fewer rows, and the same keys are loaded that much more often."""
WIDEST_NARROW = 192.0
"""Largest head dim for an fp8 cache: above it products and softmax no longer overlap (tile_size.h, IntraWGOverlap)."""
NARROW = 1.5
"""Bytes of a cached element below which the cache is fp8."""
ALMOST_FULL, FEW_BLOCKS = 0.8, 4.0
"""Keys are not split where one sequence's tiles fill this part of the units, or for few blocks
(num_splits_heuristic)."""
MARGIN = 1.1
"""Factor on the blocks of keys per unit (prepare_varlen_num_blocks_kernel)."""
SWAP_S = 1.5e-6
"""Seconds of the copy that brings heads of a group together: no kernel launches in less, so less means no copy."""
RESERVED = 32.0
"""Splits of a piece that are launched blindly: default of vLLM's flash_attn_max_num_splits_for_cuda_graph."""
CAPTURED = 512.0
"""Sequences up to which that is done: default of vLLM's largest captured graph."""
SEARCH_S = 1.2e-8
"""Seconds per sequence in which a blindly launched block finds its own: a third of a microsecond for each 31 that a
warp looks at together. Fitted to FlashAttention 4 at head dim 512 on an H200; few tables could tell it."""
JOINED = 128.0
"""Elements of output of a block that joins blind splits; fitted and held as `SEARCH_S` is."""


def tile_rows(head_dim: Floats, packed: bool) -> Floats:
    """Query rows of a tile."""
    if not packed:
        return np.full_like(head_dim, 64.0)
    return np.where(head_dim <= 96, 192.0, 128.0) / np.maximum(head_dim / WIDEST, 1.0)


def tile_keys(head_dim: Floats, kv_bytes: Floats, packed: bool) -> Floats:
    """Keys that a tile takes at a time, whole numbers."""
    if not packed:
        return np.where(head_dim <= 64, 256.0, np.where(head_dim <= 128, 128.0, 64.0))
    wide = np.where(head_dim <= 128, 128.0, np.where(head_dim <= 192, 96.0, 80.0))
    return np.where(kv_bytes < NARROW, np.where(head_dim <= 192, 160.0, 128.0), wide)


def may_split(blocks: Floats, tiles: Floats, units: int) -> Floats:
    """1 where keys may be split, else 0; `tiles` are those of one sequence (num_splits_heuristic)."""
    return np.where((tiles < ALMOST_FULL * units) & (blocks > FEW_BLOCKS), 1.0, 0.0)


def splits(blocks: Floats, tiles: Floats, units: int) -> Floats:
    """Pieces into which the `blocks` of keys of each of `tiles` are cut, so that all units get as many blocks."""
    return np.ceil(blocks / np.ceil(MARGIN * blocks * tiles / units))


def splits_everything(regroup_s: float) -> float:
    """1 where a library splits keys of any heads, 0 where it splits only those whose heads it copies together first.
    The time of that copy decides, since a library that packs heads does not need it."""
    return 1 / (1 + (regroup_s / SWAP_S) ** 4)


def is_split_blindly(batch: Floats, query: Floats, head_dim: Floats) -> Floats:
    """1 where a call of single rows is split whatever the lengths: heads over `WIDEST` in a captured graph."""
    return np.where((query == 1) & (head_dim > WIDEST) & (batch <= CAPTURED), 1.0, 0.0)


def joining_s(batch: Floats, heads: Floats, head_dim: Floats, units: int) -> Floats:
    """Seconds in which the blocks that join blind splits search for their sequences."""
    return SEARCH_S * batch * (batch * heads * head_dim / JOINED) / units


EXPONENTIALS = 1 / 16
"""Exponentials ÷ float32 FLOP/s of a unit: 16 a clock beside 128 multiply-adds (CUDA C++ guide, throughputs)."""
ELEMENT = 2.0
"""Bytes of an element of queries and outputs."""
PARTIAL = 4.0
"""Bytes of an element of a split's partial output: float32."""
HEATED_S, HEATING = 5e-3, 4.0
"""Length of a repeated call that feels half of the sustained slowdown, and its power: power is regulated over
milliseconds, and rates fall between 4 and 6 ms on an H200."""
THREADS = 512.0
"""Most threads of the block that appends a token, one an element (vLLM, reshape_and_cache_flash)."""
RESIDENT = 2048.0
"""Threads that a unit holds (CUDA C++ guide, compute capabilities 8.0 to 10.0)."""
RAGGED = 0.15
"""Part of a longest tile by which units end apart: 0 where the longest come first, up to 1 where they come last."""
RANKS = (1, 2, 3, 4, 6, 8, 12)
"""Full rounds of the units after which the critical path is evaluated."""
PREFILL_SHARPNESS = 8.0
"""Power of the blend of work, path and traffic."""
MASK_S = 1e-6
"""Additional seconds of a causal call over one of single rows, half of it with less than `FULL` rows."""
FULL = 128.0
SPLITTING = 0.15
"""Slowdown of the tiles of a kernel that may split keys: 0.12 to 0.19 where it was fitted (one H200). Held, since
fitting it changes errors by less than a tenth of a point."""
COMBINE_S = 2e-6
"""Seconds of a second launch that joins splits: the prior of `combine` in decode attention."""


class PrefillAttention:
    """Causal attention of `query` new tokens after `context` cached ones, in each of `batch` sequences.

    The query rows of each (batch, KV head), of all heads that share it, are cut into tiles; a tile walks over the keys
    that its rows see, block by block: two products and an exponential a pair. Tiles are independent and of different
    lengths (causal, window), and units that get free take the next, the longest first. So the time is the largest of
    the work shared by all units, the longest tiles that one unit must run, and the traffic; plus a ragged end, the
    writes of new tokens into the cache where the measured call does them, and a fixed cost. Where tiles are few, their
    keys are split by a slower kernel.

        pair      = 4·head_dim / matrix rate + 1 / exponential rate      (FlashAttention-3, arXiv 2407.08608, §3.1)
        tile      = start + loads and stores / fill + rows · blocks of keys · pair
        time      = fixed + ‖(Σ tiles / units + ragged · longest, critical path, traffic / bandwidth)‖₈ + append

    Long calls are slower by `sustained`, in proportion to how busy the matrix units are: the power limit lowers clocks.
    """

    name = "prefill_attention"
    dims = ("batch", "heads", "kv_heads", "query", "context", "head_dim", "window", "kv_bytes")
    """`window`: most keys that a query sees, 0 for all; `kv_bytes`: bytes of a cached element, 1 for fp8."""

    def constants(self, facts: Facts, dtype: str) -> tuple[Constant, ...]:
        """`narrow` is determined by an fp8 cache alone, `regroup` and `blind` by single query rows alone."""
        peak, band = facts.matrix_flops_per_s[dtype], facts.bandwidth_bytes_per_s
        exponentials = EXPONENTIALS * facts.vector_flops_per_s
        return (
            Constant("fixed", "s", 1e-6, 1e-3, 9e-6, 0.5, "launch and what a call does once"),
            Constant("rate", "FLOP/s", 0.1 * peak, peak, 0.85 * peak, 0.2, "matrix work of the two products"),
            Constant("exponentials", "1/s", 0.1 * exponentials, 20 * exponentials, exponentials, 0.4, "not overlapped"),
            Constant("start", "s", 5e-8, 2e-5, 1e-6, 0.7, "a tile's own latency"),
            Constant("fill", "B/s", 0.2 * band, 50 * band, 3 * band, 0.7, "into and out of the units, all together"),
            Constant("append", "s", 1e-9, 1e-4, 3e-6, 1.0, "the block of threads that writes a new token"),
            Constant("narrow", "1", 0.4, 3.0, 1.2, 0.3, "cost with an fp8 cache ÷ that without"),
            Constant("packed", "1", 0.0, 1.0, 1.0, 0.5, "1 where a group shares tiles, 0 where heads do not", False),
            Constant(
                "wide", "1", 0.0, 3.0, 1.25, 0.2, "power of head dim in the cost of pairs above the widest", False
            ),
            Constant("sustained", "1", 0.0, 1.0, 0.1, 0.1, "slowdown of calls of many milliseconds (power)", False),
            Constant("memory", "B/s", 0.2 * band, band, 0.85 * band, 0.1, "bandwidth of main memory"),
            Constant("regroup", "s", 1e-8, 3e-5, 1e-6, 1.5, "copies that regroup heads of single query rows"),
            Constant("blind", "1", 0.0, 1.0, 0.0, 0.1, "1 where widest heads of single rows are split blindly", False),
        )

    def time_s(self, dims: Dims, facts: Facts, dtype: str, values: Values) -> Floats:
        sizes = {name: np.asarray(dims[name], dtype=float) for name in self.dims}
        work = prefill_work(sizes, dtype)
        worked: Floats = np.zeros(np.broadcast(*sizes.values()).shape)
        for packed, part in ((True, values["packed"]), (False, 1 - values["packed"])):
            if part > 0:
                worked = worked + part * np.log(_tiles_s(sizes, packed, facts.units, values))
        busy = blend(np.exp(worked), work.bytes / values["memory"], PREFILL_SHARPNESS)
        busy = busy + _append_s(sizes, facts.units, values)
        heated = (busy / HEATED_S) ** HEATING
        heated = heated / (1 + heated) * np.minimum(work.flops / values["rate"] / busy, 1.0)
        return np.asarray(_once_s(sizes, facts.units, values) + busy * (1 + values["sustained"] * heated))


def _once_s(sizes: Dims, units: int, values: Values) -> Floats:
    """Seconds that do not depend on the tiles."""
    batch, heads, kv_heads, query, head_dim = (sizes[n] for n in ("batch", "heads", "kv_heads", "query", "head_dim"))
    once = values["fixed"] * np.where(sizes["kv_bytes"] < NARROW, values["narrow"], 1.0)
    once = once + np.where((query == 1) & (batch > 1) & (heads > kv_heads) & (kv_heads > 1), values["regroup"], 0.0)
    once = once + np.where(query > 1, MASK_S * (1 + np.minimum(query * heads / kv_heads / FULL, 1.0)) / 2, 0.0)
    blocks = batch * kv_heads * RESERVED / units
    blind_s = blocks * (SEARCH_S * batch) + np.maximum(blocks - 1, 0.0) * values["start"] * (0.5 + head_dim / WIDEST)
    blind_s = blind_s + joining_s(batch, heads, head_dim, units)
    return np.asarray(once + values["blind"] * is_split_blindly(batch, query, head_dim) * blind_s)


def _tiles_s(sizes: Dims, packed: bool, units: int, values: Values) -> Floats:
    """Seconds of all tiles without their traffic."""
    head_dim, query, context, window = (sizes[n] for n in ("head_dim", "query", "context", "window"))
    narrow = sizes["kv_bytes"] < NARROW
    widest = np.where(narrow, WIDEST_NARROW, WIDEST)
    pair_s = 4 * head_dim / values["rate"] + 1 / values["exponentials"]
    pair_s = pair_s * np.maximum(head_dim / widest, 1.0) ** values["wide"] * np.where(narrow, values["narrow"], 1.0)
    tall, block = tile_rows(head_dim, packed), tile_keys(head_dim, sizes["kv_bytes"], packed)
    group = sizes["heads"] / sizes["kv_heads"]
    joint = group if packed else np.where(query == 1, group, 1.0)
    many = sizes["batch"] * sizes["heads"] / joint
    tiles, step, total = np.ceil(query * joint / tall), tall / joint, context + query
    key_s = tall * pair_s * units
    loaded = 2 * ELEMENT * np.minimum(tall, query * joint) + 2 * sizes["kv_bytes"] * np.minimum(total, block)
    start_s = values["start"] + loaded * head_dim * units / values["fill"]
    # A tile ends anywhere in a block of keys and takes half a block more than its rows see; a window also begins so.
    beyond = (block - np.gcd(np.maximum(np.rint(step), 1).astype(int), block.astype(int))) / 2
    slides = (window > 0) & (window < total)
    most = np.where(slides, np.minimum(window + step, total), total)
    # Tile i of `tiles` sees keys up to context + (i + 1)·step, `most` at the longest.
    ramp = np.clip(np.floor((most - context) / step), 0, tiles)
    seen = ramp * context + step * ramp * (ramp + 1) / 2 + (tiles - ramp) * (most + np.where(slides, beyond, 0.0))
    work_s = many * (tiles * start_s + key_s * np.maximum(seen + tiles * beyond, tiles * block))
    margin = beyond * np.where(slides, 2.0, 1.0)
    longest_s = start_s + key_s * np.maximum(most + margin, block)
    pieces: Floats = np.ones_like(work_s)
    after_s: Floats = np.zeros_like(work_s)
    if packed:
        blocks = np.ceil(np.where(slides, np.minimum(window + tall, total), total) / block)
        split = may_split(blocks, tiles * many / sizes["batch"], units)
        pieces = np.where(split > 0, splits(blocks, tiles * many, units), 1.0)
        partial = np.where(pieces > 1, 2 * PARTIAL * many * tiles * tall * head_dim * pieces, 0.0)
        work_s, longest_s = work_s * (1 + SPLITTING * split), longest_s * (1 + SPLITTING * split)
        after_s = split * COMBINE_S + partial / values["memory"]
    path_s = start_s + (longest_s - start_s) / pieces
    for rounds in (*RANKS, np.maximum(np.ceil(many * tiles / units) - 1, 1.0)):
        rank = np.floor(rounds * units / many)
        item_s = start_s + key_s * np.maximum(np.minimum(context + (tiles - rank) * step, most) + margin, block)
        path_s = np.maximum(path_s, np.where(rank < tiles, (rounds + 1.0) * item_s, 0.0) / pieces)
    over = np.clip(4 * (many * tiles / units - 1), 0.0, 1.0)
    shared_s = work_s / units + RAGGED * over * longest_s / pieces
    return np.asarray(blend(shared_s, path_s, PREFILL_SHARPNESS) + after_s)


def _append_s(sizes: Dims, units: int, values: Values) -> Floats:
    """Seconds to write the new tokens' keys and values into the cache."""
    elements = sizes["kv_heads"] * sizes["head_dim"]
    blocks_s = np.minimum(elements, THREADS) * values["append"] / (RESIDENT * units)
    moved_s = 2 * elements * (ELEMENT + sizes["kv_bytes"]) / values["memory"]
    return np.asarray(sizes["batch"] * sizes["query"] * blend(blocks_s, moved_s, PREFILL_SHARPNESS))


BLOCK = 128.0
"""Keys that a piece takes at a time, at head dim 128; fewer where heads are wider, since its bytes are bounded."""
ROWS = 64.0
"""Query rows of a tile: the least that the matrix instructions of a unit's four schedulers take together."""
MOST_SPLITS = 32.0
"""Largest number of splits of a piece: vLLM reserves as many (`RESERVED`)."""
COMBINED = 2048.0
"""Elements of output of a block of the combining launch: 8 to 16 rows (flash_fwd_combine_launch_template.h)."""
CACHE_PART = 0.8
"""Part of the last-level cache that holds keys and values from one call to the next."""
KNEE = 8.0
"""Power of (size ÷ capacity) with which it is outgrown: an LRU cache that is read in turns loses everything."""
DECODE_SHARPNESS = 3.0
"""Power of the blend of the units' draw and the memory's bandwidth."""


class DecodeAttention:
    """Attention of one new token to `kv` keys in each of `batch` sequences: a read of the KV cache.

    Each (batch, KV head) is a piece, read once, since the heads that share it are rows of one tile. Where pieces are
    fewer than units, keys are split and partial results joined by a second launch. A unit alone cannot draw the whole
    bandwidth, so few pieces are slow; pieces come in rounds, each of which pays for its start. Data of the call before
    that the last-level cache holds does not come from main memory. Another library may read keys again for each head
    that shares them (`apart`), or split the keys of its widest heads whatever their number (`blind`); the priors of
    both are that it does not.

        rounds    = pieces · splits / units
        time      = fixed + sequences + queries and outputs / ride + rounds · start
                    + ‖(rounds · blocks/splits · block bytes / a unit's draw, bytes / memory or cache)‖₃
                    + combine + splits · (join + partial outputs / memory), where there are splits
    """

    name = "decode_attention"
    dims = ("batch", "heads", "kv_heads", "kv", "head_dim", "window", "kv_bytes")
    """`kv`: keys with the new one; `window`: most keys seen, 0 for all; `kv_bytes`: an element's, 1 for fp8."""

    def constants(self, facts: Facts, dtype: str) -> tuple[Constant, ...]:
        """`narrow` and `unhidden` are determined by an fp8 cache alone, `blind` by heads over `WIDEST`."""
        band = facts.bandwidth_bytes_per_s
        return (
            Constant("fixed", "s", 1e-6, 1e-3, 9e-6, 0.5, "launch and what a call does once"),
            Constant("memory", "B/s", 0.2 * band, band, 0.85 * band, 0.1, "bandwidth of main memory"),
            Constant("cache", "B/s", 0.5 * band, 10 * band, 2 * band, 0.4, "bandwidth of the last-level cache"),
            Constant("draw", "B/s", 0.1 * band, 10 * band, 1.5 * band, 0.4, "draw of all units with one piece each"),
            Constant("idle", "s", 1e-10, 1e-6, 1e-8, 1.0, "one more sequence in a launch that joins no splits"),
            Constant("start", "s", 5e-8, 2e-5, 1.5e-6, 0.7, "a piece's own latency: first loads, last store"),
            Constant("combine", "s", 1e-8, 3e-5, 2e-6, 0.7, "second launch that joins splits"),
            Constant("join", "s", 1e-10, 1e-5, 1e-7, 1.0, "each split of a piece in that launch"),
            Constant("ride", "B/s", 0.02 * band, 10 * band, 0.4 * band, 0.7, "queries in and outputs out"),
            Constant("sequence", "s", 1e-10, 1e-6, 5e-9, 1.0, "one more sequence: its page table, its new token"),
            Constant("regroup", "s", 1e-8, 3e-5, 1e-6, 1.5, "copies that bring heads of a group together"),
            Constant("narrow", "1", 0.3, 4.0, 1.3, 0.3, "cost with an fp8 cache, bytes aside, ÷ that without"),
            Constant("unhidden", "1", 0.0, 3.0, 1.0, 0.5, "power of head dim at which an fp8 cache is slower", False),
            Constant("apart", "1", 1e-4, 1.5, 5e-3, 0.7, "draw of one more head that shares keys ÷ the first's"),
            Constant("blind", "1", 0.0, 1.0, 0.0, 0.1, "1 where widest heads are split blindly, 0 as others", False),
        )

    def time_s(self, dims: Dims, facts: Facts, dtype: str, values: Values) -> Floats:
        batch, heads, kv_heads, kv, head_dim, window, kv_bytes = (np.asarray(dims[n], float) for n in self.dims)
        group = heads / kv_heads
        narrow = kv_bytes < NARROW
        windowed = (window > 0) & (kv > window)
        pieces = batch * kv_heads * np.ceil(group / ROWS)
        block = np.minimum(BLOCK, BLOCK**2 / head_dim)
        seen = np.where(windowed, window, kv)
        blocks = np.maximum(np.ceil(seen / block), 1.0) + windowed  # a window begins anywhere in a block
        key_bytes = 2 * head_dim * kv_bytes
        moved = batch * kv_heads * seen * key_bytes
        block_s = block * key_bytes * facts.units / values["draw"] * (1 + values["apart"] * (group - 1))
        unhidden = np.maximum(head_dim / WIDEST_NARROW, 1.0) ** values["unhidden"]
        block_s = block_s * np.where(narrow, values["narrow"] * unhidden, 1.0)
        start_s = values["start"] * (0.5 + head_dim / WIDEST)
        outputs = batch * heads * head_dim
        joined_s = values["join"] + 2 * PARTIAL * outputs / values["memory"]

        outgrown = (moved / (CACHE_PART * facts.cache_bytes)) ** KNEE
        missed = outgrown / (1 + outgrown)
        cached_s = moved * (missed / values["memory"] + (1 - missed) / values["cache"])

        def worked_s(splits: Floats, start_s: Floats, joining_s: Floats | float) -> Floats:
            rounds = np.maximum(pieces * splits / facts.units, 1.0)
            drawn_s = rounds * np.ceil(blocks / splits) * block_s
            after_s = np.where(splits > 1, joining_s + joined_s * splits, 0.0)
            return rounds * start_s + blend(drawn_s, cached_s, DECODE_SHARPNESS) + after_s

        most = np.minimum(splits(blocks, pieces, facts.units), MOST_SPLITS)
        any_heads = np.where(group > 1, 1.0, splits_everything(values["regroup"]))
        worked = worked_s(np.ones_like(most), start_s, 0.0) ** (1 - any_heads)
        worked = worked * worked_s(most, start_s, values["combine"]) ** any_heads
        if values["blind"] > 0 and (wide := head_dim > WIDEST).any():
            blind = is_split_blindly(batch, np.ones_like(batch), head_dim)
            joined_after_s = values["combine"] + blind * joining_s(batch, heads, head_dim, facts.units)
            blindly = worked_s(np.where(blind > 0, RESERVED, 1.0), start_s + SEARCH_S * batch, joined_after_s)
            worked = np.where(wide, worked ** (1 - values["blind"]) * blindly ** values["blind"], worked)
        return np.asarray(_decode_once_s(batch, heads, kv_heads, head_dim, narrow, values) + worked)


def _decode_once_s(
    batch: Floats, heads: Floats, kv_heads: Floats, head_dim: Floats, narrow: NDArray[np.bool_], values: Values
) -> Floats:
    """Seconds that do not depend on the keys."""
    outputs = batch * heads * head_dim
    copied = (heads > kv_heads) & (kv_heads > 1) & (batch > 1)
    captured = (batch <= CAPTURED) & (head_dim <= WIDEST)
    once = values["fixed"] * np.where(narrow, values["narrow"], 1.0) + np.where(copied, values["regroup"], 0.0)
    once = once + values["sequence"] * batch + 2 * ELEMENT * outputs / values["ride"]
    return np.asarray(once + np.where(captured, values["idle"] * (batch + outputs / COMBINED), 0.0))


class LatentPrefillAttention(PrefillAttention):
    """Prompts of multi-head latent attention, unpacked; the head dim is the mean of keys' and values'."""

    name = "latent_prefill_attention"


class LatentDecodeAttention(DecodeAttention):
    """Decoding with one latent vector that is key and value of all heads: the head dim is half of what is cached."""

    name = "latent_decode_attention"
