"""Operands that take turns, and whether a cache may hold them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.timing.cache_state import PAST, Rotation, copies, state_of


def test_operands_take_turns() -> None:
    turns = Rotation("abc")
    assert [turns.next() for _ in range(7)] == list("abcabca") and len(turns) == 3
    with pytest.raises(ValueError, match="at least one"):
        Rotation([])


@given(st.integers(1, 1 << 30), st.integers(0, 1 << 30))
def test_enough_copies_to_be_cold(operand: int, cache: int) -> None:
    count = copies(operand, cache, limit_bytes=1 << 62)
    assert operand >= PAST * cache or (count - 1) * operand >= PAST * cache
    assert count == 1 or (count - 2) * operand < PAST * cache


def test_with_too_little_memory_there_are_as_many_copies_as_fit() -> None:
    assert copies(1 << 20, 1 << 30, limit_bytes=10 << 20) == 10
    assert copies(1 << 20, 1 << 30, limit_bytes=1 << 20) == 1
    with pytest.raises(ValueError, match="allow more memory"):
        copies(1 << 20, 1 << 30, limit_bytes=(1 << 20) - 1)


def test_too_few_calls_to_come_round_are_not_cold() -> None:
    state = state_of("cold", distinct=3, operand_bytes=100, cache_bytes=1000)  # as in a graph of three calls
    assert state.holds is False and state.between_bytes == 200


@pytest.mark.parametrize(
    ("declared", "size", "cache", "holds"),
    [("warm", 100, 1000, True), ("warm", 2000, 1000, False), ("warm", 100, None, None), ("in place", 9999, 10, True),
     ("cold", 2000, 1000, True), ("cold", 1400, 1000, False)],
)  # fmt: skip
def test_states_of_a_single_operand(declared: str, size: int, cache: int | None, holds: bool | None) -> None:
    assert state_of(declared, 1, size, cache).holds is holds  # type: ignore[arg-type]


@given(st.integers(1, 9), st.integers(0, 40))
def test_a_rotation_counts_what_was_used(operands: int, turns: int) -> None:
    rotation = Rotation(range(operands))
    used = [rotation.next() for _ in range(turns)]
    assert rotation.distinct == len(set(used))
    assert not used or rotation.current == used[-1]
    rotation.restart()
    assert rotation.distinct == 0 and rotation.next() == 0
