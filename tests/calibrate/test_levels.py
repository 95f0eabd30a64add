"""The level of the machine from the times of its reference probes."""

import numpy as np
import pytest

from calibrate.passes.replicates import level_ratio, levels
from roofline.laws.fitted import ReferenceLevel


def times(rng: np.random.Generator, count: int, level: float = 1.0, noise: float = 0.05) -> tuple[float, ...]:
    return tuple(0.01 * level * np.exp(noise * rng.normal(size=count)))


def test_noise_is_not_taken_for_a_level() -> None:
    rng = np.random.default_rng(0)
    ratios = [found.ratio for _ in range(300) if (found := level_ratio(times(rng, 6), times(rng, 20)))]
    assert len(ratios) == 300
    assert np.mean(np.array(ratios) == 1) > 0.85  # 90 % by the interval's meaning


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
    )
    assert found.keys() == {"memory"}
    assert found["memory"].ratio == pytest.approx(1.2, rel=0.02)
    assert levels({}, {}) == {}


def test_equal_times_are_level_1() -> None:
    found = level_ratio((0.01,) * 3, (0.01,) * 3)
    assert found is not None and (found.low, found.ratio, found.high) == (1, 1, 1)
