import numpy as np
import pytest
from law_checks import FACTS, columns, fitted_to, one_by_one, price

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


def test_gathered_and_reduced_bytes_are_slower() -> None:
    big = np.array([1e10])
    plain = price(EMBEDDING, sizes(big))
    assert price(EMBEDDING, sizes(big, gathered=1), gathered=4.0) == pytest.approx(4 * plain, rel=0.01)
    assert price(EMBEDDING, sizes(big, reductions=1), reduced=5.0) == pytest.approx(5 * plain, rel=0.01)


def test_elements_that_no_vector_load_takes_cost_instructions_whatever_their_width() -> None:
    """600 instructions, two FLOPs of the peak each, outlast the bytes of 10¹⁰ elements of 16 and of 32 bits."""
    big = np.array([1e10])
    wide = sizes(big, strided=1) | {"bytes_read": 4 * big, "bytes_written": 4 * big}
    expected = 600 * 2 * 1e10 / FACTS.vector_flops_per_s
    for dims in (sizes(big, strided=1), wide):
        assert price(POINTWISE, dims, address=600.0) == pytest.approx(expected, rel=0.02)
    assert price(POINTWISE, sizes(big), address=600.0) < expected / 3


def test_columns_are_priced_as_each_alone() -> None:
    assert np.allclose(price(NORM, sizes(ELEMENTS)), one_by_one(NORM, sizes(ELEMENTS)), rtol=1e-12)


def test_constants_are_those_of_a_device_with_a_cache() -> None:
    """Kernels of up to 25 MB run from the cache at 7 TB/s, larger ones from memory at 2 TB/s, after 4 µs."""
    elements = np.geomspace(1e3, 1e9, 120)
    time_s = 4e-6 + 4 * elements / np.where(4 * elements < 25e6, 7e12, 2e12)
    found = fitted_to(POINTWISE, sizes(elements), time_s)
    expected = {"launch": 4e-6, "memory": 2e12, "cache": 7e12, "resident": 25e6 / FACTS.cache_bytes}
    assert {name: found.values[name] for name in expected} == pytest.approx(expected, rel=0.2)
    assert found.values["memory"] == pytest.approx(2e12, rel=0.03)
    assert {"gathered", "address", "reduce"} <= set(found.undetermined)
