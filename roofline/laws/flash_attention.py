"""How FlashAttention cuts attention into pieces for a device's units: rows and keys of a tile, and when keys are split.

Two ways, by whether a library packs the query heads that share keys into one tile:

- packed: FlashAttention 3 behind a paged cache (hopper/tile_size.h with paged_kv_non_TMA; hopper/heuristics.h;
  hopper/flash_prepare_scheduler.cu). It splits keys of prefill and decode, whatever the heads.
- apart: FlashAttention 2 behind one (csrc/flash_attn/src/flash_fwd_launch_template.h, run_mha_fwd_splitkv_dispatch):
  tiles of 64 rows of one head. Its mha_varlen_fwd splits keys of a single query row only where it has first copied the
  heads of a group together (seqlenq_ngroups_swapped): who pays for that copy does not split anything else.

Example: ``splits(blocks=np.array(64.0), tiles=np.array(8.0), units=132)`` → 13 splits of 5 blocks
"""

import numpy as np

from roofline.laws.law import Floats

WIDEST = 256.0
"""Head dim up to which the float32 output of 128 rows fits in half of a unit's 256 KiB of registers; above it tiles
have fewer rows, and the same keys are loaded that much more often."""
WIDEST_NARROW = 192.0
"""The same for an fp8 cache: above it products and softmax no longer overlap (tile_size.h, IntraWGOverlap)."""
NARROW = 1.5
"""Bytes of a cached element below which the cache is fp8."""
ALMOST_FULL, FEW_BLOCKS = 0.8, 4.0
"""Keys are not split where the tiles of one sequence fill this part of the units, or with so few blocks of keys
(num_splits_heuristic)."""
MARGIN = 1.1
"""Of blocks for each unit, when they are shared out (prepare_varlen_num_blocks_kernel)."""
SWAP_S = 1.5e-6
"""Of a copy that brings heads of a group together: a kernel cannot be launched for less, so less is none."""

RESERVED = 32.0
"""Splits of a piece that are launched blindly: vLLM's flash_attn_max_num_splits_for_cuda_graph, by default."""
CAPTURED = 512.0
"""Sequences up to which that is done: vLLM's largest captured graph, by default."""
SEARCH_S = 1.2e-8
"""A blindly launched block's walk over one sequence to find its own: a third of a microsecond for each 31 that a warp
looks at together. As fitted to FlashAttention 4 at head dim 512 on an H200; held, since few tables could tell."""
JOINED = 128.0
"""Elements of output of a block that joins blind splits: as `SEARCH_S`."""


def rows(head_dim: Floats, packed: bool) -> Floats:
    """Query rows of a tile."""
    if not packed:
        return np.full_like(head_dim, 64.0)
    return np.where(head_dim <= 96, 192.0, 128.0) / np.maximum(head_dim / WIDEST, 1.0)


def keys(head_dim: Floats, kv_bytes: Floats, packed: bool) -> Floats:
    """Keys that a tile takes at a time; whole numbers."""
    if not packed:
        return np.where(head_dim <= 64, 256.0, np.where(head_dim <= 128, 128.0, 64.0))
    wide = np.where(head_dim <= 128, 128.0, np.where(head_dim <= 192, 96.0, 80.0))
    return np.where(kv_bytes < NARROW, np.where(head_dim <= 192, 160.0, 128.0), wide)


def may_split(blocks: Floats, tiles: Floats, units: int) -> Floats:
    """1 where keys may be split, else 0; `tiles` are those of one sequence (num_splits_heuristic, asked for one)."""
    return np.where((tiles < ALMOST_FULL * units) & (blocks > FEW_BLOCKS), 1.0, 0.0)


def splits(blocks: Floats, tiles: Floats, units: int) -> Floats:
    """Pieces that the `blocks` of keys of each of `tiles` are cut into, so that all units get as many blocks."""
    return np.ceil(blocks / np.ceil(MARGIN * blocks * tiles / units))


def splits_everything(regroup_s: float) -> float:
    """1 where a library splits keys of any heads, 0 where it splits those alone whose heads it copies together first.

    By the time of that copy, which a library that packs does not need.
    """
    return 1 / (1 + (regroup_s / SWAP_S) ** 4)


def blind(batch: Floats, query: Floats, head_dim: Floats) -> Floats:
    """1 where a call of single rows is split without a look at lengths: heads over `WIDEST`, in a captured graph."""
    return np.where((query == 1) & (head_dim > WIDEST) & (batch <= CAPTURED), 1.0, 0.0)


def joining_s(batch: Floats, heads: Floats, head_dim: Floats, units: int) -> Floats:
    """Seconds that the blocks that join blind splits search for their sequences."""
    return SEARCH_S * batch * (batch * heads * head_dim / JOINED) / units
