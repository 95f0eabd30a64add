import numpy as np
import pytest
from law_checks import columns, fitted_to, one_by_one, price

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


def test_constants_are_those_of_a_device_whose_work_overlaps_wholly_or_not_at_all() -> None:
    generator = np.random.default_rng(0)
    flops, moved = 10 ** generator.uniform(6, 14, 200), 10 ** generator.uniform(4, 10, 200)
    device = {"fixed": 8e-6, "peak": 3e14, "bandwidth": 2e12}
    for work_s, sharp in ((np.maximum(flops / 3e14, moved / 2e12), True), (flops / 3e14 + moved / 2e12, False)):
        found = fitted_to(LAW, columns(200, flops=flops, bytes=moved), 8e-6 + work_s).values
        assert {name: found[name] for name in device} == pytest.approx(device, rel=0.03)
        assert found["sharpness"] > 4 if sharp else found["sharpness"] == pytest.approx(1, rel=0.05)
