"""Fused attention of one query row a sequence: a read of the KV cache, cut into pieces for the device's units.

Each (batch, KV head) is a piece; the heads that share it ride along in one tile of query rows, so it is read once.
Where pieces are fewer than units, keys are split, and partial results joined by a second launch (`flash_attention`). A
unit alone cannot draw the whole bandwidth, so few pieces are slow; pieces come in rounds, and every round pays for its
start on top of the traffic. What the last level of cache holds from the call before does not come from main memory.
A library of another kind may read keys once more for each head that shares them (`apart`), and one splits the keys of
its widest heads without a look at their number (`blind`): both are held not to happen until kernels show it.

    rounds    = pieces · splits / units
    time      = fixed + sequences + queries and outputs / ride + rounds · start
                + ‖(rounds · blocks/splits · block bytes / a unit's draw, bytes / memory or cache)‖₃
                + combine + splits · (join + partial outputs / memory), where there are splits

Example: ``DecodeAttention().time_s(dims, facts, "bfloat16", values)``, dims as in `DecodeAttention.dims`
"""

import numpy as np
from numpy.typing import NDArray

from roofline.laws import flash_attention as flash
from roofline.laws.four_constant import blend
from roofline.laws.law import Constant, Dims, Facts, Floats, Values

BLOCK = 128.0
"""Keys that a piece takes at a time, at head dim 128; its bytes are bounded, so fewer where heads are wider."""
ROWS = 64.0
"""Query rows of a tile: the least that a matrix instruction of a unit's four schedulers takes together."""
ELEMENT = 2.0
"""Bytes of an element of queries and outputs."""
MOST_SPLITS = 32.0
"""Of one piece: what vLLM reserves (`flash_attention.RESERVED`)."""
PARTIAL = 4.0
"""Bytes of an element of a split's partial output: float32."""
COMBINED = 2048.0
"""Elements of output that a block of the combining launch takes: 8 to 16 rows (flash_fwd_combine_launch_template.h)."""
RESIDENT = 0.8
"""Part of the last-level cache that holds keys and values from one call to the next."""
KNEE = 8.0
"""How sharply that is outgrown, as a power of size: read in turns, the least recently used first out, all is lost."""
SHARPNESS = 3.0
"""Of the larger of what units draw and what memory gives."""


class DecodeAttention:
    """Attention of one new token to `kv` keys in each of `batch` sequences."""

    kind = "decode_attention"
    dims = ("batch", "heads", "kv_heads", "kv", "head_dim", "window", "kv_bytes")
    """`kv`: keys with the new one; `window`: keys seen at most, 0 for all; `kv_bytes`: an element's, 1 for fp8."""

    def constants(self, facts: Facts, dtype: str) -> tuple[Constant, ...]:
        """Fifteen; `narrow` and `unhidden` move with an fp8 cache alone, `blind` with heads over `flash.WIDEST`."""
        del dtype
        band = facts.bandwidth_bytes_per_s
        return (
            Constant("fixed", "s", 1e-6, 1e-3, 9e-6, 0.5, "launch and what a call does once"),
            Constant("memory", "B/s", 0.2 * band, band, 0.85 * band, 0.1, "bandwidth of main memory"),
            Constant("cache", "B/s", 0.5 * band, 10 * band, 2 * band, 0.4, "bandwidth of the last-level cache"),
            Constant("draw", "B/s", 0.1 * band, 10 * band, 1.5 * band, 0.4, "what all units draw, one piece each"),
            Constant("idle", "s", 1e-10, 1e-6, 1e-8, 1.0, "of one more sequence in a launch that joins no splits"),
            Constant("start", "s", 5e-8, 2e-5, 1.5e-6, 0.7, "a piece's own latency: first loads, last store"),
            Constant("combine", "s", 1e-8, 3e-5, 2e-6, 0.7, "second launch that joins splits"),
            Constant("join", "s", 1e-10, 1e-5, 1e-7, 1.0, "of it, each split of a piece"),
            Constant("ride", "B/s", 0.02 * band, 10 * band, 0.4 * band, 0.7, "of queries in and outputs out"),
            Constant("sequence", "s", 1e-10, 1e-6, 5e-9, 1.0, "of one more sequence: its page table, its new token"),
            Constant("regroup", "s", 1e-8, 3e-5, 1e-6, 1.5, "copies that bring heads of a group together"),
            Constant("narrow", "1", 0.3, 4.0, 1.3, 0.3, "cost with an fp8 cache, but for its bytes, to that without"),
            Constant("unhidden", "1", 0.0, 3.0, 1.0, 0.5, "power of head dim at which an fp8 cache is slower", False),
            Constant("apart", "1", 1e-4, 1.5, 5e-3, 0.7, "draw of one more head that shares keys, to the first's"),
            Constant("blind", "1", 0.0, 1.0, 0.0, 0.1, "1 where widest heads are split blindly, 0 as others", False),
        )

    def time_s(self, dims: Dims, facts: Facts, dtype: str, values: Values) -> Floats:
        """Seconds of each call; all dims of one shape."""
        del dtype
        batch, heads, kv_heads, kv, head_dim, window, kv_bytes = (np.asarray(dims[n], float) for n in self.dims)
        group = heads / kv_heads
        narrow = kv_bytes < flash.NARROW
        windowed = (window > 0) & (kv > window)
        pieces = batch * kv_heads * np.ceil(group / ROWS)
        block = np.minimum(BLOCK, BLOCK**2 / head_dim)
        seen = np.where(windowed, window, kv)
        # A window begins anywhere in a block.
        blocks = np.maximum(np.ceil(seen / block), 1.0) + windowed
        key_bytes = 2 * head_dim * kv_bytes
        moved = batch * kv_heads * seen * key_bytes
        block_s = block * key_bytes * facts.units / values["draw"] * (1 + values["apart"] * (group - 1))
        unhidden = np.maximum(head_dim / flash.WIDEST_NARROW, 1.0) ** values["unhidden"]
        block_s = block_s * np.where(narrow, values["narrow"] * unhidden, 1.0)
        start_s = values["start"] * (0.5 + head_dim / flash.WIDEST)
        outputs = batch * heads * head_dim
        joined_s = values["join"] + 2 * PARTIAL * outputs / values["memory"]

        def worked_s(splits: Floats, start_s: Floats, joining_s: Floats | float) -> Floats:
            rounds = np.maximum(pieces * splits / facts.units, 1.0)
            drawn_s = rounds * np.ceil(blocks / splits) * block_s
            after_s = np.where(splits > 1, joining_s + joined_s * splits, 0.0)
            return rounds * start_s + blend(drawn_s, _traffic_s(moved, facts, values), SHARPNESS) + after_s

        most = np.minimum(flash.splits(blocks, pieces, facts.units), MOST_SPLITS)
        any_heads = np.where(group > 1, 1.0, flash.splits_everything(values["regroup"]))
        worked = worked_s(np.ones_like(most), start_s, 0.0) ** (1 - any_heads)
        worked = worked * worked_s(most, start_s, values["combine"]) ** any_heads
        if values["blind"] > 0 and (wide := head_dim > flash.WIDEST).any():
            blind = flash.blind(batch, np.ones_like(batch), head_dim)
            joining_s = values["combine"] + blind * flash.joining_s(batch, heads, head_dim, facts.units)
            blindly = worked_s(np.where(blind > 0, flash.RESERVED, 1.0), start_s + flash.SEARCH_S * batch, joining_s)
            worked = np.where(wide, worked ** (1 - values["blind"]) * blindly ** values["blind"], worked)
        return np.asarray(_once_s(batch, heads, kv_heads, head_dim, narrow, values) + worked)


def _once_s(
    batch: Floats, heads: Floats, kv_heads: Floats, head_dim: Floats, narrow: NDArray[np.bool_], values: Values
) -> Floats:
    """Seconds that do not grow with keys."""
    outputs = batch * heads * head_dim
    copied = (heads > kv_heads) & (kv_heads > 1) & (batch > 1)
    captured = (batch <= flash.CAPTURED) & (head_dim <= flash.WIDEST)
    once = values["fixed"] * np.where(narrow, values["narrow"], 1.0) + np.where(copied, values["regroup"], 0.0)
    once = once + values["sequence"] * batch + 2 * ELEMENT * outputs / values["ride"]
    return np.asarray(once + np.where(captured, values["idle"] * (batch + outputs / COMBINED), 0.0))


def _traffic_s(moved: Floats, facts: Facts, values: Values) -> Floats:
    """Seconds to move bytes that were moved by the call before as well."""
    outgrown = (moved / (RESIDENT * facts.cache_bytes)) ** KNEE
    missed = outgrown / (1 + outgrown)
    return np.asarray(moved * (missed / values["memory"] + (1 - missed) / values["cache"]))
