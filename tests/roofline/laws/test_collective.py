from dataclasses import replace

import numpy as np
import pytest
from law_checks import FACTS, columns, fitted_to, one_by_one, price

from roofline.laws.streams import Collective
from roofline.laws.work import OPERATIONS, factor, sent_bytes

COLLECTIVE = Collective()
SIZES = np.geomspace(1, 1e10, 41)


def test_bytes_sent_are_those_of_nccl_tests() -> None:
    for place, operation in enumerate(OPERATIONS):
        for ranks in (2, 8, 72):
            dims = columns(1, bytes=1e6, ranks=ranks, operation=place)
            assert sent_bytes(dims) == pytest.approx(1e6 * factor(operation, ranks)), (operation, ranks)


def test_stored_kernels_name_operations_by_their_place() -> None:
    """A correction in an old spec has them as numbers."""
    names = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "send_recv")
    assert OPERATIONS[: len(names)] == names


def test_longer_messages_take_longer() -> None:
    for place, operation in enumerate(OPERATIONS):
        time_s = price(COLLECTIVE, columns(41, bytes=SIZES, ranks=4, operation=place))
        assert np.isfinite(time_s).all(), operation
        assert (np.diff(time_s) > 0).all(), operation
        assert time_s[0] > 1e-6, operation


def test_more_ranks_take_longer() -> None:
    time_s = price(COLLECTIVE, columns(5, bytes=1e6, ranks=np.array([2.0, 4.0, 8.0, 16.0, 64.0]), operation=0))
    assert (np.diff(time_s) > 0).all()


def test_long_messages_reach_the_bus_bandwidth_and_short_ones_the_launch() -> None:
    dims = columns(2, bytes=np.array([1.0, 1e12]), ranks=8, operation=0)
    short, long = price(COLLECTIVE, dims, busbw=300e9, own=1e-2, launch=5e-6, step=1e-6)
    assert short == pytest.approx(19e-6, rel=0.01)
    assert long == pytest.approx(1.75e12 / 300e9, rel=0.01)


def test_ranks_on_several_nodes_wait_for_the_network() -> None:
    dims = columns(2, bytes=np.array([1.0, 1e12]), ranks=16, operation=0)
    within = price(COLLECTIVE, dims)
    assert price(COLLECTIVE, dims | columns(2, per_node=16)) == pytest.approx(within)
    short, long = price(COLLECTIVE, dims | columns(2, per_node=8), network=20e9, hop=1e-5, own=1e-2)
    assert short - within[0] == pytest.approx(2e-5, rel=0.01)  # two nodes: two messages between them
    assert long == pytest.approx(1.875e12 / 20e9, rel=0.01)


def test_it_takes_the_faster_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("roofline.laws.streams.OF_PROTOCOLS", 30.0)
    dims = columns(41, bytes=SIZES, ranks=4, operation=1)
    worked = (0.75 + 0.4 / 4) * SIZES
    latency = 5e-6 + 3e-6
    best = latency + np.minimum(worked / 50e9, 20e-6 + worked / 350e9)
    found = price(COLLECTIVE, dims, launch=5e-6, step=1e-6, slow=50e9, sync=20e-6, busbw=350e9, own=0.4)
    assert found == pytest.approx(best, rel=0.03)


def test_columns_are_priced_as_each_alone() -> None:
    dims = columns(41, bytes=SIZES, ranks=4, operation=np.arange(41) % 6)
    assert np.allclose(price(COLLECTIVE, dims), one_by_one(COLLECTIVE, dims), rtol=1e-12)


def test_constants_are_those_of_rings_and_pairs_with_two_protocols() -> None:
    """A launch of 9 µs and 2 µs a message; 60 GB/s at once (15 between pairs), or 250 GB/s after 30 µs (20)."""
    size, ranks = np.tile(np.geomspace(256, 5e8, 20), 8), np.repeat([2.0, 4.0], 80)
    operation = np.tile(np.repeat([0.0, 1.0, 2.0, 3.0], 20), 2)  # all-reduce, all-gather, reduce-scatter, all-to-all
    messages = np.select([operation == 0, operation == 3], [2 * (ranks - 1), 1], ranks - 1)
    sent = size * (ranks - 1) / ranks * np.where(operation == 0, 2, 1) + 0.4 * size / ranks
    pairs = operation == 3
    slow, late = np.where(pairs, 15e9, 60e9), np.where(pairs, 20e-6, 30e-6)
    time_s = 9e-6 + 2e-6 * messages + np.minimum(sent / slow, late + sent / 250e9)
    found = fitted_to(COLLECTIVE, columns(160, bytes=size, ranks=ranks, operation=operation), time_s)
    device = {"launch": 9e-6, "step": 2e-6, "slow": 60e9, "sync": 3e-5, "busbw": 250e9, "slow_pairs": 15e9}
    assert {name: found.values[name] for name in device} == pytest.approx(device, rel=0.1)
    assert {"network", "hop"} <= set(found.undetermined)


def test_a_device_without_a_link_has_none() -> None:
    with pytest.raises(ValueError, match="link"):
        COLLECTIVE.constants(replace(FACTS, link_bytes_per_s=None), "bfloat16")
