"""How FlashAttention cuts work, and times of calls that can be counted by hand."""

import numpy as np
import pytest
from law_checks import columns, price

from roofline.laws import attention as flash
from roofline.laws.attention import DecodeAttention, PrefillAttention

FREE = {"memory": 1e30, "cache": 1e30, "ride": 1e30, "idle": 1e-30, "sequence": 1e-30, "join": 1e-30, "regroup": 1e-12,
        "apart": 0.0}  # fmt: skip
"""Of a decode, all but launch, start, draw and combine."""


def test_splits_share_blocks_over_all_units() -> None:
    # 64 blocks of 8 tiles on 132 units: 1.1 · 512 / 132 = 4.3, so 5 blocks each, 13 splits of a tile
    assert flash.splits(np.array([64.0, 64.0, 1.0]), np.array([8.0, 132.0, 1.0]), 132).tolist() == [13, 1, 1]
    blocks, tiles = (grid.ravel() for grid in np.meshgrid(np.arange(1.0, 200), np.arange(1.0, 300)))
    found = flash.splits(blocks, tiles, 132)
    assert ((found >= 1) & (found <= blocks)).all()
    assert (np.ceil(blocks / found) * found >= blocks).all()


def test_keys_are_split_where_one_sequence_leaves_units_idle_and_has_more_than_four_blocks() -> None:
    blocks, tiles = np.array([5.0, 4.0, 5.0]), np.array([105.0, 105.0, 106.0])
    assert flash.may_split(blocks, tiles, 132).tolist() == [1, 0, 0]


def test_tiles_are_those_of_flash_attention_3_and_2() -> None:
    head_dim = np.array([64.0, 128, 192, 256, 512])
    wide, narrow = np.full(5, 2.0), np.full(5, 1.0)
    assert flash.rows(head_dim, packed=True).tolist() == [192, 128, 128, 128, 64]
    assert flash.keys(head_dim, wide, packed=True).tolist() == [128, 128, 96, 80, 80]
    assert flash.keys(head_dim, narrow, packed=True).tolist() == [160, 160, 160, 128, 128]
    assert flash.rows(head_dim, packed=False).tolist() == [64] * 5
    assert flash.keys(head_dim, wide, packed=False).tolist() == [256, 128, 64, 64, 64]


def test_who_copies_heads_together_splits_no_others() -> None:
    assert flash.splits_everything(2e-7) == pytest.approx(1, abs=0.001)
    assert flash.splits_everything(8e-6) == pytest.approx(0, abs=0.002)


def test_wide_heads_are_split_blindly_within_a_captured_graph() -> None:
    batch, query, head_dim = np.array([512.0, 513, 1, 1]), np.array([1.0, 1, 2, 1]), np.array([512.0, 512, 512, 256])
    assert flash.blind(batch, query, head_dim).tolist() == [1, 0, 0, 0]


def decode(kv: float, heads: float, batch: float = 1, **instead: float) -> float:
    dims = columns(1, batch=batch, heads=heads, kv_heads=1, kv=kv, head_dim=128, window=0, kv_bytes=2)
    values = FREE | {"fixed": 1e-5, "start": 2e-6, "combine": 3e-6, "draw": 6.5536e12} | instead
    return float(price(DecodeAttention(), dims, **values)[0])


def test_a_split_decode_draws_one_block_in_each_unit_and_combines() -> None:
    # A block: 128 keys · 512 bytes at 6.5536e12 / 100 units = 1 µs. 1024 keys are 8 blocks: 8 splits of one.
    assert decode(kv=128, heads=8) == pytest.approx(1e-5 + 2e-6 + 1e-6, rel=1e-3)
    assert decode(kv=1024, heads=8) == pytest.approx(1e-5 + 2e-6 + 1e-6 + 3e-6, rel=1e-3)
    # 150 blocks: 75 splits of 2 would feed all units, but there are 32 at most, of 5
    assert decode(kv=150 * 128, heads=8) == pytest.approx(1e-5 + 2e-6 + 5e-6 + 3e-6, rel=1e-3)


def test_a_head_alone_is_not_split_by_who_copies_groups_together() -> None:
    assert decode(kv=1024, heads=1) == pytest.approx(1.6e-5, rel=1e-3)
    assert decode(kv=1024, heads=1, regroup=1e-5) == pytest.approx(1e-5 + 2e-6 + 8e-6, rel=1e-2)
    assert decode(kv=1024, heads=8, regroup=1e-5) == pytest.approx(1.6e-5, rel=1e-3)


def test_more_pieces_than_units_start_in_rounds() -> None:
    one, four = decode(kv=1, heads=8, batch=100), decode(kv=1, heads=8, batch=400)
    assert four - one == pytest.approx(3 * (2e-6 + 1e-6), rel=1e-3)


def prefill(query: float, kv_heads: float = 1, window: float = 0, **instead: float) -> float:
    dims = columns(1, batch=1000, heads=kv_heads, kv_heads=kv_heads, query=query, context=0, head_dim=128, kv_bytes=2)
    free = {"fixed": 1e-12, "start": 1e-12, "append": 1e-30, "fill": 1e30, "memory": 1e30, "exponentials": 1e30}
    free |= {"sustained": 0.0, "packed": 1.0, "rate": 1e14}
    return float(price(PrefillAttention(), dims | columns(1, window=window), **(free | instead))[0])


def test_prefill_multiplies_whole_blocks_of_whole_tiles() -> None:
    block_s = 128 * 128 * 4 * 128 / 1e14
    # 20,000 tiles of 128 rows, each sees one block of 128 keys, on 100 units; 2^⅛ where path and work are alike
    assert prefill(128, 20) == pytest.approx(20_000 * block_s, rel=0.1)
    assert prefill(100, 20) == pytest.approx(prefill(128, 20), rel=1e-3)
    # 8 tiles see 1, 2, … 8 blocks; with a window of one block 1, 2, … 2
    assert prefill(1024, 20) == pytest.approx(36 * 20_000 * block_s, rel=0.03)
    assert prefill(1024, 20, window=128) == pytest.approx(15 * 20_000 * block_s, rel=0.03)


def test_tiles_of_half_as_many_rows_make_as_much_work() -> None:
    assert prefill(1024, 20, packed=0.0) == pytest.approx(prefill(1024, 20), rel=0.02)


def test_a_kernel_that_may_split_is_slower() -> None:
    # one KV head: 8 tiles of a sequence on 100 units, 8 blocks; of 4 blocks keys are not split
    assert 20 * prefill(1024) == pytest.approx(1.15 * prefill(1024, 20), rel=0.03)
    assert 20 * prefill(512) == pytest.approx(prefill(512, 20), rel=0.03)


def test_long_busy_calls_are_slower_and_short_ones_are_not() -> None:
    assert prefill(64, sustained=0.1) == pytest.approx(prefill(64), rel=0.03)
    assert prefill(16384, sustained=0.1) == pytest.approx(1.1 * prefill(16384), rel=0.01)
