import numpy as np
import pytest
from law_checks import columns, one_by_one, price, recovered

from roofline.laws.law import FourConstant, blend

LAW = FourConstant("matmul")
GRID = np.geomspace(1e3, 1e15, 13)


def test_it_is_between_the_longer_roof_and_their_sum() -> None:
    dims = columns(13, flops=GRID, bytes=GRID[::-1])
    work = price(LAW, dims, fixed=1e-6, peak=5e14, bandwidth=2e12) - 1e-6
    compute, memory = dims["flops"] / 5e14, dims["bytes"] / 2e12
    assert (work >= np.maximum(compute, memory) * (1 - 1e-6)).all()
    assert (work <= (compute + memory) * (1 + 1e-6)).all()


def test_a_blend_of_nothing_is_nothing() -> None:
    none = np.zeros(2)
    assert (blend(none, none, 3.0) < 1e-300).all()
    assert np.allclose(blend(np.ones(2), none, 3.0), 1)


def test_columns_are_priced_as_each_alone() -> None:
    dims = columns(13, flops=GRID, bytes=GRID[::-1])
    assert np.allclose(price(LAW, dims), one_by_one(LAW, dims), rtol=1e-12)


def test_constants_are_recovered_from_times_of_the_law() -> None:
    generator = np.random.default_rng(0)
    dims = columns(200, flops=10 ** generator.uniform(6, 14, 200), bytes=10 ** generator.uniform(4, 10, 200))
    truth = {"fixed": 8e-6, "peak": 3e14, "bandwidth": 2e12, "sharpness": 2.0}
    assert recovered(LAW, dims, **truth).values == pytest.approx(truth, rel=0.1)
