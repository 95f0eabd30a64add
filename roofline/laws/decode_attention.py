"""Fused attention of one query row a sequence: a read of the KV cache, cut into pieces for the device's units.

Each (batch, KV head) is a piece; the heads that share it ride along in one tile of query rows, so it is read once.
Where pieces are fewer than units can hold, keys are split, and partial results combined by a second launch
(Flash-Decoding, 2023; FlashAttention 2 and 3, num_splits_heuristic). A unit alone cannot draw the whole bandwidth, so
few pieces are slow; and pieces come in rounds.

    piece     = start + blocks/splits · block bytes / a unit's bandwidth
    split     = combine + splits · (join + partial outputs / memory)
    time      = fixed + sequences + queries and outputs / ride + ‖(rounds · piece + split, bytes / memory)‖ₚ

Example: ``DecodeAttention().time_s(dims, facts, "bfloat16", values)``, dims as in `DecodeAttention.dims`
"""

import numpy as np

from roofline.laws.law import Constant, Dims, Facts, Floats, Values

BLOCK = 128.0
"""Keys that a piece takes at a time, at head dim 128; its bytes are bounded, so fewer where heads are wider."""
ROWS = 64.0
"""Query rows of a tile: the least that a matrix instruction of a unit's four schedulers takes together."""
ELEMENT = 2.0
"""Bytes of an element of queries and outputs."""
MOST_SPLITS = 32.0
"""Of one piece (FlashAttention, num_splits_heuristic's bound)."""
WIDEST = 256.0
"""Head dim up to which kernels know lengths before they start; wider ones split blindly."""
RESERVED = 32.0
"""Splits of a piece launched blindly (vLLM, flash_attn_max_num_splits_for_cuda_graph)."""
CAPTURED = 512.0
"""Sequences up to which that is done (vLLM, largest captured graph)."""
PARTIAL = 4.0
"""Bytes of an element of a split's partial output: float32."""
JOINED = 2048.0
"""Elements of output that a block of the combining launch takes."""


class DecodeAttention:
    """Attention of one new token to `kv` keys in each of `batch` sequences."""

    kind = "decode_attention"
    dims = ("batch", "heads", "kv_heads", "kv", "head_dim", "window", "kv_bytes")
    """`kv`: keys with the new one; `window`: keys seen at most, 0 for all; `kv_bytes`: an element's, 1 for fp8."""

    def constants(self, facts: Facts, dtype: str) -> tuple[Constant, ...]:
        del dtype
        """Fifteen; `narrow` moves with an fp8 cache alone, `search` with head dims over `WIDEST` alone."""
        band = facts.bandwidth_bytes_per_s
        return (
            Constant("fixed", "s", 1e-6, 1e-3, 9e-6, 0.5, "launch and what a call does once"),
            Constant("memory", "B/s", 0.2 * band, band, 0.85 * band, 0.15, "bandwidth of main memory"),
            Constant("draw", "B/s", 0.1 * band, 10 * band, 1.5 * band, 0.4, "what all units draw, one piece each"),
            Constant("idle", "s", 1e-10, 1e-6, 1e-8, 1.0, "of one more sequence where splits are reserved blindly"),
            Constant("start", "s", 5e-8, 2e-5, 1.5e-6, 0.7, "a piece's own latency: first loads, last store"),
            Constant("holds", "1", 0.5, 8.0, 1.5, 0.4, "pieces that a unit runs together"),
            Constant("combine", "s", 1e-8, 3e-5, 2e-6, 0.7, "second launch that joins splits"),
            Constant("join", "s", 1e-10, 1e-5, 1e-7, 1.0, "of it, each split of a piece"),
            Constant("ride", "B/s", 0.02 * band, 10 * band, 0.4 * band, 0.7, "of queries in and outputs out"),
            Constant("apart", "1", 0.0, 1.0, 0.5, 0.5, "1 where heads that share no keys are split too", False),
            Constant("sequence", "s", 1e-10, 1e-6, 5e-9, 1.0, "of one more sequence: its page table, its new token"),
            Constant("search", "s", 1e-10, 1e-6, 1.2e-8, 0.5, "a wide piece's walk over each sequence to find its own"),
            Constant("regroup", "s", 1e-8, 3e-5, 1e-6, 1.5, "copies that bring heads of a group together"),
            Constant("sharpness", "1", 1.0, 12.0, 3.0, 0.5, "of the larger of pieces and traffic"),
            Constant("narrow", "1", 0.3, 4.0, 1.3, 0.3, "cost with an fp8 cache, but for its bytes, to that without"),
        )

    def time_s(self, dims: Dims, facts: Facts, dtype: str, values: Values) -> Floats:
        """Seconds of each call; all dims of one shape."""
        del dtype
        batch, heads, kv_heads, kv, head_dim, window, kv_bytes = (np.asarray(dims[n], float) for n in self.dims)
        group = heads / kv_heads
        narrow = kv_bytes < ELEMENT
        seen = np.where(window > 0, np.minimum(window, kv), kv)
        pieces = batch * kv_heads * np.ceil(group / ROWS)
        block = np.minimum(BLOCK, BLOCK**2 / head_dim)
        blocks = np.ceil(seen / block) + ((window > 0) & (kv > window))
        key_bytes = 2 * head_dim * kv_bytes
        block_s = block * key_bytes * facts.units / values["draw"] * np.where(narrow, values["narrow"], 1.0)
        wide = head_dim > WIDEST
        captured = batch <= CAPTURED
        search_s = np.where(wide, values["search"] * batch, 0.0)
        start_s = values["start"] * (0.5 + head_dim / WIDEST) + search_s
        joined_s = 2 * PARTIAL * batch * heads * head_dim / values["memory"]
        slots = facts.units * values["holds"]
        splits = np.clip(np.floor(slots / pieces), 1.0, np.minimum(blocks, MOST_SPLITS))
        splits = np.where(wide, np.where(captured, RESERVED, 1.0), splits)
        whole_s = (start_s + blocks * block_s) * np.maximum(pieces / slots, 1.0)
        split_s = (start_s + np.ceil(blocks / splits) * block_s) * np.maximum(pieces * splits / slots, 1.0)
        split_s = split_s + np.where(splits > 1, values["combine"] + (values["join"] + joined_s) * splits, 0.0)
        apart = np.where(group > 1, 1.0, values["apart"])
        worked = whole_s ** (1 - apart) * split_s**apart
        idle_s = np.where(captured & ~wide, values["idle"] * batch * (1 + heads * head_dim / JOINED), 0.0)
        moved = batch * kv_heads * seen * key_bytes
        ridden_s = 2 * ELEMENT * batch * heads * head_dim / values["ride"]
        moved_s = moved / values["memory"]
        once = values["fixed"] * np.where(narrow, values["narrow"], 1.0)
        once = once + np.where((group > 1) & (kv_heads > 1) & (batch > 1), values["regroup"], 0.0)
        once = once + values["sequence"] * batch + idle_s + ridden_s
        return once + _blend(worked, moved_s, values["sharpness"])


def _blend(one: Floats, other: Floats, power: float) -> Floats:
    """The larger of two times, softly."""
    top = np.maximum(one, other)
    return top * ((one / top) ** power + (other / top) ** power) ** (1 / power)
