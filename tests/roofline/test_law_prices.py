"""T3 on a graph by hand: each operation by the law that the spec has for it, else by the price that is handed in."""

import numpy as np
import pytest
from calibrated_laws import at_priors
from graphs import GraphBuilder

from roofline.hardware.facts import facts_of
from roofline.hardware.spec import Chip, Figure, HardwareSpec, Level, Peaks
from roofline.laws.fitted import FittedLaw
from roofline.price import Prepared
from roofline.price_by_law import law_prices


def figure(value: float) -> Figure:
    return Figure(value=value, source="made up")


def spec(*laws: FittedLaw) -> HardwareSpec:
    levels = (
        Level(name="L3", capacity_bytes=4096, bandwidth=figure(4e9)),
        Level(name="DRAM", capacity_bytes=1e9, bandwidth=figure(1e9)),
    )
    peaks = Peaks(matrix={"float32": figure(1e11)}, vector={"float32": figure(1e10)}, levels=levels)
    return HardwareSpec(name="a", kind="cpu", chip=Chip(units=figure(2), unit="core"), measured=peaks, calibrated=laws)


def law(kind: str, high: float = 1e6) -> FittedLaw:
    return at_priors(kind, "float32", facts_of(spec()), bytes_read=(1, high))


def graph() -> Prepared:
    builder = GraphBuilder()
    builder.weight("w", 8000)
    builder.op("pointwise", reads={"x": 400}, writes={"y": 400}, vector=100, elements=100)
    builder.op("norm", reads={"y": 400}, writes={"z": 400}, vector=100, elements=100)
    builder.op("other", reads={"z": 400}, writes={"u": 400})
    return Prepared(builder.graph())


OTHERWISE = np.array([1.0, 2.0, np.nan])


def test_without_laws_prices_stay_as_they_are() -> None:
    found = law_prices(graph(), spec(), OTHERWISE)
    assert found.time_s == pytest.approx(OTHERWISE, nan_ok=True)
    assert not found.by_law.any()


def test_an_operation_with_a_law_has_the_law_s_time_and_the_others_keep_theirs() -> None:
    pointwise = law("pointwise")
    found = law_prices(graph(), spec(pointwise), OTHERWISE)
    one = np.ones(1)
    dims = {"bytes_read": 400 * one, "bytes_written": 400 * one, "kernels": one, "elements": 100 * one}
    # x was read one pass ago, 1,200 bytes: in the cache; y is read next; the others have touched 1,600 bytes since
    states = {"cold": 0 * one, "reach": 1600 * one}
    expected = pointwise.time_s({**dims, "flops": 100 * one, **states}, facts_of(spec()))[0]
    assert found.time_s == pytest.approx([expected, 2.0, np.nan], nan_ok=True)
    assert found.by_law.tolist() == [True, False, False]


def test_what_lies_beyond_the_sizes_of_a_law_is_said() -> None:
    assert law_prices(graph(), spec(law("pointwise", high=100)), OTHERWISE).outside.tolist() == [True, False, False]


def test_a_law_that_says_no_sizes_has_none_beyond_them() -> None:
    bare = law("pointwise").model_copy(update={"domain": {}})
    assert not law_prices(graph(), spec(bare), OTHERWISE).outside.any()


def test_a_spec_with_laws_but_without_any_rate_is_refused_in_one_line() -> None:
    one = spec(law("pointwise"))
    assert one.measured is not None
    lacking = one.model_copy(update={"measured": one.measured.model_copy(update={"vector": {}, "matrix": {}})})
    with pytest.raises(ValueError, match=r"vector\.float32"):
        law_prices(graph(), lacking, OTHERWISE)
