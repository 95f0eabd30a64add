"""Responses of a law whose derivatives are known by hand."""

import numpy as np
import pytest
from law_checks import FACTS

from roofline.laws.law import Constant, Dims, Facts, Floats, Values
from roofline.laws.residuals import responses


class Powers:
    """x^power / rate."""

    kind = "powers"
    dims = ("x",)

    def constants(self, facts: Facts, dtype: str) -> tuple[Constant, ...]:
        return (
            Constant("rate", "1/s", 2.0, 100.0, 10.0, 1.0, "of all"),
            Constant("power", "1", 0.0, 4.0, 1.0, 0.5, "of x", False),
        )

    def time_s(self, dims: Dims, facts: Facts, dtype: str, values: Values) -> Floats:
        return dims["x"] ** values["power"] / values["rate"]


X = {"x": np.array([1.0, np.e, np.e**3])}


@pytest.mark.parametrize(("rate", "power"), [(10.0, 1.0), (2.0, 0.0)])
def test_responses_by_hand_also_at_a_bound(rate: float, power: float) -> None:
    """log time = power · log x − log rate; of the power by half a unit, its prior's spread."""
    log_time, response = responses(Powers(), X, FACTS, "bfloat16", {"rate": rate, "power": power})
    np.testing.assert_allclose(log_time, power * np.array([0, 1, 3]) - np.log(rate), atol=1e-12)
    np.testing.assert_allclose(response, [[-1, 0], [-1, 0.5], [-1, 1.5]], atol=1e-9)


def test_only_the_named_are_asked_for() -> None:
    values = {"rate": 10.0, "power": 1.0}
    assert responses(Powers(), X, FACTS, "bfloat16", values, ("power",))[1].shape == (3, 1)
    assert responses(Powers(), X, FACTS, "bfloat16", values, ())[1].shape == (3, 0)
