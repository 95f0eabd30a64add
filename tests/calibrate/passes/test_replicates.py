import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from calibrate.passes.replicates import (
    Median,
    by_round,
    difference,
    level_ratio,
    levels,
    median_by_round,
    median_of,
    medians_by_round,
)
from roofline.laws.fitted import ReferenceLevel

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


def times(rng: np.random.Generator, count: int, level: float = 1.0, noise: float = 0.05) -> tuple[float, ...]:
    return tuple(0.01 * level * np.exp(noise * rng.normal(size=count)))


@pytest.mark.parametrize("varies", [0.02, 0.1, 0.3], ids=["quiet", "shared", "loaded"])
@pytest.mark.parametrize("rounds", [3, 6, 12])
def test_a_level_is_told_better_than_by_the_reading_alone_and_than_by_none(varies: float, rounds: int) -> None:
    """The machine's logarithmic level varies by `varies`, and each reading by 0.05 more."""
    rng = np.random.default_rng(rounds)
    told, read, none = [], [], []
    for _ in range(400):
        level = varies * rng.normal()
        beside = times(rng, rounds, math.exp(level))
        during = tuple(np.array(times(rng, 20)) * np.exp(varies * rng.normal(size=20)))
        found = level_ratio(beside, during, 0.01)
        assert found is not None
        told.append(math.log(found.ratio) - level)
        read.append(median_of(np.log(beside)).value - math.log(0.01) - level)
        none.append(-level)
    error, by_reading, by_none = (float(np.mean(np.square(off))) for off in (told, read, none))
    assert error < 1.02 * by_reading
    assert error < max(by_none, 0.05**2 / rounds)


def test_a_clear_level_is_left_nearly_as_it_is_and_the_interval_holds_it() -> None:
    rng = np.random.default_rng(1)
    found = [level_ratio(times(rng, 8, 1.4), times(rng, 20)) for _ in range(300)]
    assert np.mean([one.low <= 1.4 <= one.high for one in found if one]) > 0.88
    assert np.median([one.ratio for one in found if one]) == pytest.approx(1.4, rel=0.03)
    assert all(one.low <= one.ratio <= one.high for one in found if one)


def test_the_levels_of_two_machines_are_reciprocal() -> None:
    one, other = (0.010, 0.011, 0.0105, 0.0102), (0.014, 0.015, 0.0149, 0.0144)
    there, back = level_ratio(one, other), level_ratio(other, one)
    assert there is not None and back is not None
    assert there.ratio * back.ratio == pytest.approx(1)
    assert there.low * back.high == pytest.approx(1)


def test_probes_that_ran_on_one_side_or_once_have_no_level() -> None:
    steady = ReferenceLevel(seconds=(0.01, 0.01, 0.0101))
    found = levels(
        {"memory": (0.012, 0.012, 0.0121), "product": (0.01, 0.01), "host": (0.01,), "disk": ()},
        {"memory": steady, "host": steady, "disk": steady},
        "float32",
        3,
    )
    assert found.keys() == {"memory"}
    assert found["memory"].ratio == pytest.approx(1.2, rel=0.02)
    assert levels({}, {}, "float32", 3) == {}


def test_the_probe_of_the_passs_dtype_counts_and_else_the_one_without_a_dtype() -> None:
    steady, slow = (0.01, 0.01, 0.0101), (0.013, 0.013, 0.0131)
    calibration = {name: ReferenceLevel(seconds=steady) for name in ("product.float32", "product.bfloat16", "memory")}
    beside = {"product.float32": slow, "product.bfloat16": steady, "memory": slow}
    assert levels(beside, calibration, "float32", 3)["product"].ratio == pytest.approx(1.3, rel=0.02)
    assert levels(beside, calibration, "bfloat16", 3)["product"].ratio == pytest.approx(1.0, rel=0.02)
    assert levels(beside, calibration, "bfloat16", 3).keys() == {"memory", "product"}
    assert levels(beside, calibration, "float16", 3).keys() == {"memory"}


def test_a_round_counts_by_the_mean_of_its_readings_as_by_that_of_its_passes() -> None:
    beside = {"product": (0.010, 0.016, 0.010, 0.012, 0.013, 0.011, 0.012, 0.012, 0.012)}  # three a round
    brought = ReferenceLevel(seconds=(0.01, 0.02), centre_s=0.01)
    found = levels(beside, {"product": brought}, "float32", 3)["product"]
    assert (found.ratio, found.low, found.high) == pytest.approx((1.2, 1.2, 1.2))


def test_equal_times_are_level_1() -> None:
    found = level_ratio((0.01,) * 3, (0.01,) * 3)
    assert found is not None and (found.low, found.ratio, found.high) == (1, 1, 1)


def test_a_level_that_laws_were_brought_to_is_exact() -> None:
    bimodal = ReferenceLevel(seconds=(0.010, 0.010, 0.013, 0.013, 0.010, 0.013))
    beside = {"product.float32": (0.0130, 0.0131, 0.0129, 0.0130) * 2}  # before and after each of four rounds
    as_measured = levels(beside, {"product.float32": bimodal}, "float32", 4)["product"]
    brought = bimodal.model_copy(update={"centre_s": 0.010})
    at_centre = levels(beside, {"product.float32": brought}, "float32", 4)["product"]
    assert as_measured.ratio < 1.16 < 1.28 < at_centre.ratio < 1.32
    assert at_centre.high - at_centre.low < 0.05
