"""A fixed cost and a rate come back from simulated transfers, and a law that is no line is told."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrate.device.costs import fit

SIZES = [float(1 << i) for i in range(10, 31)]
"""1 KiB to 1 GiB."""
REPEATS = 10


def measured(
    sizes: list[float], times_s: np.ndarray, spread: float, outliers: float, seed: int, repeats: int = REPEATS
) -> tuple[list[float], list[float]]:
    generator = np.random.default_rng([11, seed])
    every = np.repeat(times_s, repeats) * np.exp(spread * generator.standard_normal(repeats * len(sizes)))
    slow = generator.random(len(every)) < outliers
    every[slow] *= generator.uniform(1.2, 3, int(slow.sum()))
    return list(np.repeat(sizes, repeats)), list(every)


@pytest.mark.parametrize("outliers", [0.0, 0.05])
@pytest.mark.parametrize(("latency_s", "bandwidth"), [(8e-6, 5.5e10), (2.5e-6, 3e12), (1e-4, 1e9)])
def test_the_constants_come_back(latency_s: float, bandwidth: float, outliers: float) -> None:
    truth = latency_s + np.array(SIZES) / bandwidth
    runs = [fit(*measured(SIZES, truth, 0.03, outliers, seed)) for seed in range(60)]
    close = [
        abs(f.latency_s / latency_s - 1) < 0.03 and abs(f.bandwidth_bytes_per_s / bandwidth - 1) < 0.03 for f in runs
    ]
    assert np.mean(close) >= 0.98
    assert max(f.worst_relative_error for f in runs) < 0.1
    for covered in (
        [f.latency_interval[0] <= latency_s <= f.latency_interval[1] for f in runs],
        [f.bandwidth_interval[0] <= bandwidth <= f.bandwidth_interval[1] for f in runs],
    ):
        assert 0.82 <= np.mean(covered) <= 0.97


def test_intervals_hold_nine_times_of_ten() -> None:
    sizes = SIZES[::2]
    truth = 8e-6 + np.array(sizes) / 5.5e10
    runs = [fit(*measured(sizes, truth, 0.03, 0.0, seed, repeats=3)) for seed in range(400)]
    assert 0.87 <= np.mean([f.latency_interval[0] <= 8e-6 <= f.latency_interval[1] for f in runs]) <= 0.93
    assert 0.87 <= np.mean([f.bandwidth_interval[0] <= 5.5e10 <= f.bandwidth_interval[1] for f in runs]) <= 0.93


def test_exact_times_give_exact_constants() -> None:
    found = fit(SIZES, [3e-6 + size / 2e10 for size in SIZES])
    assert found.latency_s == pytest.approx(3e-6, rel=1e-6)
    assert found.bandwidth_bytes_per_s == pytest.approx(2e10, rel=1e-6)
    assert found.worst_relative_error < 1e-6
    assert found.time_s(1e6) == pytest.approx(3e-6 + 1e6 / 2e10)


def test_small_sizes_weigh_as_much_as_large_ones() -> None:
    # Absolute squares would be ruled by the GiB: 3 % of it is 600 times the latency.
    found = fit([1 << 10, 1 << 11, 1 << 30, 1 << 30], [8e-6, 8.1e-6, 1.9e-2, 2.1e-2])
    assert found.latency_s == pytest.approx(8e-6, rel=0.05)


def test_a_protocol_that_switches_is_told() -> None:
    sizes = np.array(SIZES)
    switched = np.where(sizes < 256 << 10, 5e-6 + sizes / 5e9, 6e-5 + sizes / 5e10)
    for seed in range(20):
        assert fit(*measured(SIZES, switched, 0.03, 0.05, seed)).worst_relative_error > 0.3


def test_a_graph_s_replay_over_its_nodes() -> None:
    nodes = [1.0, 4.0, 16.0, 64.0, 256.0, 1024.0]
    found = fit(*measured(nodes, 4e-6 + 1.3e-6 * np.array(nodes), 0.02, 0.0, 0))
    assert 1 / found.bandwidth_bytes_per_s == pytest.approx(1.3e-6, rel=0.03)
    assert found.latency_s == pytest.approx(4e-6, rel=0.05)


def test_constants_that_the_sizes_do_not_show_are_open() -> None:
    no_latency = fit(*measured(SIZES[-8:], np.array(SIZES[-8:]) / 1e9, 0.02, 0.0, 0))
    assert no_latency.latency_interval[0] == 0.0
    assert no_latency.bandwidth_bytes_per_s == pytest.approx(1e9, rel=0.03)
    only_latency = fit(*measured(SIZES[:8], np.full(8, 1e-5), 0.02, 0.0, 3))
    assert only_latency.latency_s == pytest.approx(1e-5, rel=0.03)
    assert only_latency.bandwidth_interval[1] == math.inf
    with_zero = fit([0.0, 1.0, 2.0], [1.0, 2.0, 3.0])
    assert (with_zero.latency_s, with_zero.bandwidth_bytes_per_s) == (pytest.approx(1.0), pytest.approx(1.0))


@settings(max_examples=30, deadline=None)
@given(st.floats(1e-7, 1e-2), st.floats(1e6, 1e13), st.floats(1e-3, 1e3))
def test_units_do_not_matter(latency_s: float, bandwidth: float, unit: float) -> None:
    times = [latency_s + size / bandwidth for size in SIZES]
    one, other = fit(SIZES, times), fit(SIZES, [unit * time for time in times])
    assert other.bandwidth_bytes_per_s * unit == pytest.approx(one.bandwidth_bytes_per_s, rel=1e-3)
    assert one.worst_relative_error < 1e-3 and other.worst_relative_error < 1e-3
    assert 0 <= one.latency_interval[0] <= one.latency_s <= one.latency_interval[1]
    assert 0 < one.bandwidth_interval[0] <= one.bandwidth_bytes_per_s <= one.bandwidth_interval[1]


def test_what_no_line_can_be_drawn_through_is_refused() -> None:
    for sizes, times, match in (
        ([1.0, 2.0], [1.0, 2.0], "3 distinct sizes, not 2"),
        ([1.0, 2.0, 2.0, 1.0], [1.0, 2.0, 2.0, 1.0], "3 distinct sizes, not 2"),
        ([1.0, 2.0, 3.0], [1.0, 0.0, 2.0], "times are finite and positive"),
        ([1.0, 2.0, 3.0], [1.0, math.nan, 2.0], "times are finite and positive"),
        ([1.0, -2.0, 3.0], [1.0, 2.0, 3.0], "sizes are finite"),
        ([1.0, 2.0, 3.0], [1.0, 2.0], "a time for each size"),
    ):
        with pytest.raises(ValueError, match=match):
            fit(sizes, times)
