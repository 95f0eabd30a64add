import numpy as np
import pytest
from law_checks import columns, one_by_one, price, recovered

from roofline.laws.streams import Streaming

POINTWISE, NORM, EMBEDDING = (Streaming(name) for name in ("pointwise", "norm", "embedding"))
ELEMENTS = np.geomspace(1, 1e11, 45)


def sizes(elements: np.ndarray, kernels: float = 1, **more: float) -> dict[str, np.ndarray]:
    base = {"bytes_read": 2 * elements, "bytes_written": 2 * elements, "elements": elements, "flops": elements}
    return columns(len(elements), kernels=kernels, **base, **more)


@pytest.mark.parametrize("law", [POINTWISE, NORM, EMBEDDING])
def test_more_bytes_take_longer_and_none_take_the_launch(law) -> None:
    time_s = price(law, sizes(ELEMENTS), launch=3e-6)
    assert np.isfinite(time_s).all()
    assert (np.diff(time_s) > 0).all()
    assert time_s[0] == pytest.approx(3e-6, rel=1e-3)


def test_small_operands_come_from_the_cache_and_large_from_memory() -> None:
    constants = {"launch": 1e-8, "cache": 6e12, "memory": 2e12, "resident": 1.0}
    small, large = price(POINTWISE, sizes(np.array([1e6, 1e10])), **constants) - 1e-8
    assert small == pytest.approx(4e6 / 6e12, rel=0.01)
    assert large == pytest.approx(4e10 / 2e12, rel=0.01)


def test_many_kernels_pay_a_launch_each_and_reductions_more() -> None:
    tiny = np.array([16.0])
    one, eight = (price(NORM, sizes(tiny, kernels)) for kernels in (1, 8))
    assert eight == pytest.approx(8 * one, rel=1e-3)
    assert price(NORM, sizes(tiny, reductions=1), reduce=5e-6) - one == pytest.approx(5e-6, rel=1e-3)


def test_gathered_strided_and_reduced_bytes_are_slower() -> None:
    big = np.array([1e10])
    plain = price(EMBEDDING, sizes(big))
    assert price(EMBEDDING, sizes(big, gathered=1), gathered=4.0) == pytest.approx(4 * plain, rel=0.01)
    assert price(EMBEDDING, sizes(big, strided=1), strided=2.0) == pytest.approx(2 * plain, rel=0.01)
    assert price(EMBEDDING, sizes(big, reductions=1), reduced=5.0) == pytest.approx(5 * plain, rel=0.01)


def test_columns_are_priced_as_each_alone() -> None:
    assert np.allclose(price(NORM, sizes(ELEMENTS)), one_by_one(NORM, sizes(ELEMENTS)), rtol=1e-12)


def test_constants_are_recovered_from_times_of_the_law() -> None:
    truth = {"launch": 4e-6, "memory": 2e12, "cache": 7e12, "resident": 0.5}
    found = recovered(POINTWISE, sizes(np.geomspace(1e3, 1e9, 120)), **truth)
    assert {name: found.values[name] for name in truth} == pytest.approx(truth, rel=0.1)
    assert "gathered" in found.undetermined
