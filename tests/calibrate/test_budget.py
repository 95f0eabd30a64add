import numpy as np
import pytest

from calibrate.kernels.choose import design, design_within
from roofline.laws.kinds import laws
from roofline.laws.law import Facts

FACTS = Facts(132, 50e6, 4.8e12, {"bfloat16": 9.9e14}, 6e13)
LAW = laws()["matmul"]


def candidates() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {name: np.round(np.exp(generator.uniform(3, 9, 500))) for name in "mnk"}


def seconds_of(rows: np.ndarray) -> float:
    priors = {constant.name: constant.prior for constant in LAW.constants(FACTS, "bfloat16")}
    return float(LAW.time_s(candidates(), FACTS, "bfloat16", priors)[rows].sum())


def test_points_that_fit_are_those_of_the_design() -> None:
    whole = design(LAW, candidates(), FACTS, "bfloat16", 40)
    assert design_within(LAW, candidates(), FACTS, "bfloat16", 40, seconds=1e3).tolist() == whole.tolist()


@pytest.mark.parametrize("part", [0.7, 0.3, 0.1])
def test_fewer_points_are_chosen_where_seconds_are_few(part: float) -> None:
    whole = design(LAW, candidates(), FACTS, "bfloat16", 40)
    seconds = part * seconds_of(whole)
    rows = design_within(LAW, candidates(), FACTS, "bfloat16", 40, seconds)
    assert 1 <= len(rows) < 40
    assert seconds_of(rows) <= seconds
    assert len(rows) >= 2, "some fit"


def test_one_point_is_measured_whatever_it_takes() -> None:
    assert len(design_within(LAW, candidates(), FACTS, "bfloat16", 40, seconds=0.0)) == 1
