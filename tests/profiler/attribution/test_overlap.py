"""Shared instants: the shares add up to the busy time, on any intervals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from intervals import union_s

from profiler.attribution.overlap import idle, shares

intervals = st.lists(
    st.tuples(st.integers(0, 10_000), st.integers(0, 3_000)).map(lambda p: (p[0] * 1e-6, (p[0] + p[1]) * 1e-6)),
    max_size=40,
)


def arrays(pairs: list[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([a for a, _ in pairs]), np.array([b for _, b in pairs])


def covered(pairs: list[tuple[float, float]]) -> float:
    """Union by merging, one interval after another."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(pairs):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


@given(intervals)
def test_shares_add_up_to_the_union(pairs: list[tuple[float, float]]) -> None:
    starts, ends = arrays(pairs)
    assert shares(starts, ends).sum() == pytest.approx(covered(pairs), abs=1e-12)
    assert union_s(starts, ends) == pytest.approx(covered(pairs), abs=1e-12)


@given(intervals)
def test_a_share_is_at_most_the_interval_and_at_least_its_part(pairs: list[tuple[float, float]]) -> None:
    starts, ends = arrays(pairs)
    got = shares(starts, ends)
    assert np.all(got <= ends - starts + 1e-12)
    assert np.all(got >= (ends - starts) / max(1, len(pairs)) - 1e-12)


@given(intervals)
def test_shares_and_idle_fill_the_window(pairs: list[tuple[float, float]]) -> None:
    starts, ends = arrays(pairs)
    window = (-1e-3, 20e-3)
    gaps = idle(starts, ends, window)
    assert shares(starts, ends).sum() + gaps.before_s.sum() + gaps.tail_s == pytest.approx(21e-3, abs=1e-12)
    assert np.all(gaps.before_s >= 0) and gaps.tail_s >= 0


def test_by_hand() -> None:
    # [0, 4] alone for 1, with one other for 1, with two for 1, with one for 1: 1 + 1/2 + 1/3 + 1/2
    starts, ends = np.array([0.0, 1.0, 2.0, 6.0]), np.array([4.0, 3.0, 5.0, 7.0])
    assert shares(starts, ends) == pytest.approx([1 + 1 / 2 + 1 / 3 + 1 / 2, 1 / 2 + 1 / 3, 1 / 3 + 1 / 2 + 1, 1])
    gaps = idle(starts, ends, (-1.0, 9.0))
    assert gaps.before_s == pytest.approx([1, 0, 0, 1])
    assert gaps.tail_s == pytest.approx(2)


def test_refuses_what_is_no_interval() -> None:
    with pytest.raises(ValueError, match="ends before it starts"):
        shares(np.array([1.0]), np.array([0.5]))
    with pytest.raises(ValueError, match="one shape"):
        shares(np.array([1.0]), np.array([1.5, 2.0]))
    with pytest.raises(ValueError, match="within the window"):
        idle(np.array([1.0]), np.array([2.0]), (1.5, 3.0))
