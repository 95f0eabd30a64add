"""Medians of rounds: their intervals hold what they are about."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from calibrate.passes.replicates import Median, by_round, difference, median_by_round, median_of, medians_by_round

Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]


def drifting(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    """Neighbours with a correlation of 0.6."""
    steps, found = rng.normal(size=count), np.zeros(count)
    found[0] = steps[0] / math.sqrt(1 - 0.6**2)
    for i in range(1, count):
        found[i] = 0.6 * found[i - 1] + steps[i]
    return found


@pytest.mark.parametrize(
    ("draw", "at_least"),
    [
        (lambda rng, count: rng.normal(size=count), 0.9),
        (lambda rng, count: rng.standard_t(3, size=count), 0.9),
        (lambda rng, count: np.exp(0.5 * rng.normal(size=count)) - 1, 0.9),
        (drifting, 0.78),  # a correlation estimated from a dozen values is too small
    ],
    ids=["normal", "heavy tails", "one-sided", "drift"],
)
@pytest.mark.parametrize("count", [3, 6, 12, 36])
def test_intervals_of_90_percent_hold_the_median(draw: Draw, at_least: float, count: int) -> None:
    rng = np.random.default_rng(count)
    held = []
    for _ in range(600):
        low, high = median_of(draw(rng, count)).interval() or (math.nan, math.nan)
        held.append(low <= 0 <= high)
    assert np.mean(held) > at_least


def test_a_drift_counts_as_fewer_replicates() -> None:
    values = np.linspace(0, 1, 12)
    shuffled = np.random.default_rng(0).permutation(values)
    assert median_of(values).half() > 2 * median_of(shuffled).half()


def test_one_replicate_has_no_interval_and_equal_ones_have_none_to_show() -> None:
    assert median_of([2.0]) == Median(2.0, math.inf, 1.0)
    assert median_of([2.0]).interval() is None
    assert median_of([2.0, 2.0, 2.0]).interval() == (2.0, 2.0)
    with pytest.raises(ValueError, match="at least one"):
        median_of([])


def test_rounds_have_the_mean_of_their_passes() -> None:
    assert by_round([1, 2, 9, 4, 5, 6], 2).tolist() == [4, 5]
    assert by_round([1, 2, 9, 4], 3).tolist() == [1, 2, 9, 4]  # no rounds of equal length
    assert by_round([], 3).tolist() == []
    assert by_round([[1, 2, 9], [4, 5, 6]], 1).tolist() == [[4], [5]]
    assert median_by_round([1, 2, 9, 4, 5, 6], 2) == 4.5
    assert median_by_round([], 2) == 0
    assert medians_by_round([(1, 2, 9, 4, 5, 6), (), (3, 4, 5)], 2).tolist() == [[4, 5], [0, 0], [4, 4]]


def test_a_difference_has_the_errors_of_both() -> None:
    one, other = Median(5.0, 3.0, 4.0), Median(2.0, 4.0, 9.0)
    found = difference(one, other)
    assert (found.value, found.error) == (3.0, 5.0)
    assert found.freedom == pytest.approx(5.0**4 / (3.0**4 / 4 + 4.0**4 / 9))
    assert math.isinf(difference(one, Median(2.0, math.inf, 1.0)).error)
    assert difference(Median(1.0, 0.0, 2.0), Median(1.0, 0.0, 3.0)) == Median(0.0, 0.0, 2.0)
