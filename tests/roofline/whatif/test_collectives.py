"""Collectives against a ring that is simulated step by step."""

import math

import pytest
from graphs import GraphBuilder
from hypothesis import given, settings
from hypothesis import strategies as st

from roofline.graph.op import Access, Kind
from roofline.whatif.pipeline import all_gather, all_reduce, all_to_all, send

SIZES = st.integers(1, 10**9)
RANKS = st.integers(2, 64)


def like():  # type: ignore[no-untyped-def]
    b = GraphBuilder()
    b.op("pointwise", reads={"x": 8}, writes={"y": 8}, path="model.layers.3.mlp", count=4)
    return b.graph().ops[0]


def ring(ranks: int, chunk: float, rounds: int) -> tuple[float, int]:
    """(bytes, messages) that each rank sends when it passes one chunk to its neighbour in each step of each round."""
    sent, steps = 0.0, 0
    for _ in range(rounds):
        for _ in range(ranks - 1):  # until each chunk has been everywhere
            sent += chunk
            steps += 1
    return sent, steps


@settings(deadline=None, max_examples=40)
@given(SIZES, RANKS)
def test_all_reduce_goes_twice_round_the_ring_of_an_all_gather(size: int, ranks: int) -> None:
    op = all_reduce(Access(tensor=0, bytes=size), ranks=ranks, link="nvlink", like=like())
    sent, steps = ring(ranks, size / ranks, rounds=2)
    assert math.isclose(op.link_bytes, sent) and op.messages == steps
    data, part = Access(tensor=0, bytes=size), Access(tensor=1, bytes=size / ranks)
    half = all_gather(part, data, ranks=ranks, link="nvlink", like=like())
    sent, steps = ring(ranks, size / ranks, rounds=1)
    assert math.isclose(half.link_bytes, sent) and half.messages == steps


@settings(deadline=None, max_examples=40)
@given(SIZES, RANKS)
def test_all_to_all_keeps_the_own_share(size: int, ranks: int) -> None:
    held, received = Access(tensor=0, bytes=size), Access(tensor=1, bytes=size)
    op = all_to_all(held, received, ranks=ranks, link="nvlink", like=like())
    assert math.isclose(op.link_bytes + size / ranks, size) and op.messages == ranks - 1
    more = all_to_all(held, Access(tensor=1, bytes=2 * size), ranks=ranks, link="nvlink", like=like())
    assert math.isclose(more.link_bytes, 2 * op.link_bytes)  # it receives more than it sends


def test_they_touch_memory_and_take_the_place_of_their_model() -> None:
    op = send(Access(tensor=5, bytes=100), link="network", like=like())
    assert (op.kind, op.link_bytes, op.messages, op.link) == (Kind.TRANSFER, 100, 1, "network")
    assert (op.path, op.count, [a.tensor for a in op.reads]) == ("model.layers.3.mlp", 4, [5])
    reduced = all_reduce(Access(tensor=5, bytes=100), ranks=4, link="nvlink", like=like())
    assert (reduced.kind, reduced.dims) == (Kind.COLLECTIVE, {"bytes": 100, "ranks": 4})
    assert reduced.reads == reduced.writes == (Access(tensor=5, bytes=100),)
    assert type(reduced).model_validate(reduced.model_dump()) == reduced


def test_what_moves_nothing_is_refused() -> None:
    data = Access(tensor=0, bytes=8)
    with pytest.raises(ValueError, match="among 1 rank moves nothing"):
        all_reduce(data, ranks=1, link="nvlink", like=like())
    with pytest.raises(ValueError, match="ranks is -2; use a whole number of devices"):
        all_reduce(data, ranks=-2, link="nvlink", like=like())
    with pytest.raises(ValueError, match="needs the name of a link"):
        send(data, link="", like=like())
