"""Floor and ceiling of a law's time, by hand."""

import numpy as np
import pytest
from law_checks import FACTS, columns

from roofline.laws.bounds import FASTER, HEADROOM, Bounds, floor_s, roofline_s
from roofline.laws.kinds import work_of
from roofline.laws.work import Work

MEMORY = 3e12


def streams(*sizes: float) -> Work:
    moved = np.array(sizes)
    return Work(np.zeros_like(moved), moved, np.zeros_like(moved))


def test_the_floor_leaves_out_what_a_cache_can_hold() -> None:
    assert floor_s(streams(40e6, 350e6), FACTS, "bfloat16") == pytest.approx([0, 300e6 / MEMORY / FASTER])
    many = Work(np.zeros(1), np.array([350e6]), np.zeros(1), kernels=3.0)
    assert floor_s(many, FACTS, "bfloat16") == pytest.approx([200e6 / MEMORY / FASTER])


def test_a_kernel_of_few_pieces_occupies_few_units() -> None:
    sizes = columns(1, batch=1, heads=8, kv_heads=2, kv=1e6, head_dim=128, window=0, kv_bytes=2)
    one = work_of("decode_attention", sizes, "bfloat16")
    assert one.pieces == 2
    assert roofline_s(one, FACTS, "bfloat16") == pytest.approx(50 * one.bytes / MEMORY)


def test_a_bad_row_does_not_loosen_the_bounds() -> None:
    todo, law_s = streams(3e6, 3e9, 3e9), np.array([5e-6, 1.5e-3, 1.5e-3])
    clean = Bounds.of(todo, FACTS, "bfloat16", law_s, law_s)
    assert clean.overhead_s == 5e-6
    assert clean.most == pytest.approx(HEADROOM * 1.5e-3 / (1e-3 + 5e-6))
    spoilt = Bounds.of(todo, FACTS, "bfloat16", law_s * np.array([1, 1, 100]), law_s)
    assert spoilt == clean
    fast = Bounds.of(todo, FACTS, "bfloat16", law_s * np.array([1, 1, 0.01]), law_s)
    assert (fast.least, fast.overhead_s) == (clean.least, clean.overhead_s)


def test_a_law_is_held_and_otherwise_left() -> None:
    bounds, todo = Bounds(overhead_s=1e-6, most=4.0), streams(3e9, 3e9, 3e9)
    held = bounds.held(np.array([1e-9, 1.5e-3, 1.0]), todo, FACTS, "bfloat16")
    assert held == pytest.approx([(1e-3 - 50e6 / MEMORY) / FASTER, 1.5e-3, 4 * (1e-3 + 1e-6)])
