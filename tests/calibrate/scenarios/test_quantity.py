"""Figures that follow from measured and predicted ones, and their intervals."""

import math

import numpy as np
import pytest

from calibrate.scenarios.quantity import UNKNOWN, Quantity, derived, interpolated


def test_an_interval_is_that_of_a_simulation_with_independent_errors() -> None:
    rng, z90 = np.random.default_rng(0), 1.6449
    some, one = Quantity(3.0, 0.12), Quantity(2.0, 0.05)
    drawn = [of.measured + rng.standard_normal(200_000) * of.half / z90 for of in (some, one)]  # type: ignore[operator]
    ratio = derived(lambda a, b: a / b, some, one)
    assert ratio.measured == 1.5
    assert ratio.half == pytest.approx(z90 * float(np.std(drawn[0] / drawn[1])), rel=0.03)
    same = derived(lambda a: a / a, some)  # one figure in both places is off alike
    assert (same.measured, same.half) == (1.0, 0.0)


def test_what_is_not_known_stays_unknown() -> None:
    known = Quantity(2.0, None, 3.0)
    assert derived(lambda a, b: a + b, known, UNKNOWN) == UNKNOWN
    assert derived(lambda a: 2 * a, known) == Quantity(4.0, None, 6.0)
    assert derived(lambda a: 1 / (a - 2), known) == Quantity(None, None, 1.0)  # no finite value
    assert derived(lambda a: math.inf * a, known) == UNKNOWN
    assert known.error == 0.5 and UNKNOWN.error is None and Quantity(0.0, 0.0, 1.0).error is None


def test_interpolation_is_exact_on_lines_and_keeps_the_known_places() -> None:
    places, values = [0.0, 2.0, 10.0], [1.0, 5.0, 21.0]  # 1 + 2x
    assert [interpolated(x, places, values) for x in (-1.0, 0.0, 1.0, 2.0, 7.0, 10.0, 12.0)] == [
        -1.0, 1.0, 3.0, 5.0, 15.0, 21.0, 25.0,
    ]  # fmt: skip
    assert interpolated(5.0, [3.0], [7.0]) == 7.0
    assert interpolated(4.0, [0.0, 4.0, 5.0], [0.0, 8.0, 0.0]) == 8.0
