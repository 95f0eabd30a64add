"""Operands out of one buffer: storages of their own, filled, and no bytes used again before all others were."""

import pytest
import torch

from profiler.microbench.arena import ALIGNED, Arena

CPU = torch.device("cpu")


def test_operands_are_tensors_of_their_own_with_random_values() -> None:
    arena = Arena(CPU, torch.float32, 1 << 16)
    first, second = arena.take((8, 16)), arena.take((16, 8))
    assert first.untyped_storage().data_ptr() != second.untyped_storage().data_ptr()
    assert first.untyped_storage().nbytes() == first.nbytes == 4 * 8 * 16
    assert first.std() > 0.1 and first.abs().max() <= 0.5
    assert not torch.equal(first, second.view(8, 16))


def test_the_buffer_is_used_up_before_any_of_it_is_used_again() -> None:
    arena = Arena(CPU, torch.bfloat16, 1 << 12)
    places = [arena.take((ALIGNED,)).data_ptr() for _ in range(64)]
    turn = arena.size_bytes // (2 * ALIGNED)
    assert len(set(places[:turn])) == turn
    assert places[turn : 2 * turn] == places[:turn]


@pytest.mark.parametrize("size", [0, 1 << 8])
def test_what_the_buffer_cannot_hold_is_allocated(size: int) -> None:
    arena = Arena(CPU, torch.float32, size)
    large = arena.take((64, 64))
    assert large.shape == (64, 64) and torch.isfinite(large).all()
    assert arena.take((0, 4)).numel() == 0
