import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roofline import units

PRINTED = {"n": 1e-9, "µ": 1e-6, "m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}


def value_of(text: str, unit: str) -> float:
    number, prefixed = text.replace(units.MINUS, "-").split(" ")
    return float(number) * PRINTED[prefixed.removesuffix(unit)]


def test_seconds() -> None:
    for value, text in (
        (0.0821, "82.1 ms"), (999.6e-6, "1.00 ms"), (99.96e-6, "100 µs"), (12.3456, "12.3 s"), (1234.0, "1230 s"),
        (0.0, "0 s"), (None, "–"), (4.2e-7, "420 ns"), (1e-3, "1.00 ms"), (1e-6, "1.00 µs"),
    ):  # fmt: skip
        assert units.seconds(value) == text


def test_signed_seconds_carry_their_sign() -> None:
    assert units.seconds(0.0123, signed=True) == "+12.3 ms"
    assert units.seconds(-0.0123, signed=True) == "−12.3 ms"
    assert units.seconds(-0.0123) == "−12.3 ms"


def test_rates_and_sizes_are_powers_of_1000() -> None:
    assert units.size(16.5e9) == "16.5 GB"
    assert units.size(1024) == "1.02 kB"
    assert units.bytes_per_s(4.8e12) == "4.80 TB/s"
    assert units.flops_per_s(989e12) == "989 TFLOP/s"
    assert units.flops(2e9) == "2.00 GFLOP"
    assert units.magnitude(5.0) == "5.00"


def test_percent() -> None:
    for value, text in (
        (0.873, "87.3 %"), (1.32, "132 %"), (0.0123, "1.23 %"), (0.9996, "100 %"), (0.00532, "0.53 %"),
        (0.0, "0 %"), (0.00001, "<0.01 %"), (-0.00001, "−<0.01 %"), (-0.004, "−0.40 %"), (None, "–"),
    ):  # fmt: skip
        assert units.percent(value) == text


def test_null_is_unknown_and_not_a_number_is_refused() -> None:
    for name in ("seconds", "size", "flops", "flops_per_s", "bytes_per_s", "magnitude", "percent", "number", "binary"):
        show = getattr(units, name)
        assert show(None) == "–", name
        assert "–" not in show(0.0), name
        for broken in (math.nan, math.inf):
            with pytest.raises(ValueError, match="None"):
                show(broken)


def test_figures_of_papers_have_five_digits_and_clocks_are_in_megahertz() -> None:
    assert units.precise(28.7512e12, "OPs") == "28.751 TOPs"
    assert units.precise(226.876e-3, "s") == "226.88 ms"
    assert units.precise(4096.0) == "4.0960 k"
    assert units.megahertz(1.605e9) == "1605 MHz"


@given(st.floats(min_value=1e-9, max_value=9e2) | st.floats(min_value=-9e2, max_value=-1e-9))
def test_three_significant_digits_survive(value: float) -> None:
    assert value_of(units.seconds(value), "s") == pytest.approx(value, rel=0.005001)


@given(st.floats(min_value=1.0, max_value=9e17))
def test_rates_survive(value: float) -> None:
    text = units.flops_per_s(value)
    assert value_of(text, "FLOP/s") == pytest.approx(value, rel=0.005001)
    assert len(text.split(" ")[0].replace(".", "")) == 3


@given(st.lists(st.floats(min_value=1e-9, max_value=900) | st.none()))
def test_aligned_cells_are_equally_wide_and_keep_their_words(values: list[float | None]) -> None:
    cells = [units.seconds(value) for value in values]
    padded = units.aligned(cells)
    assert [cell.strip() for cell in padded] == cells
    assert len({len(cell) for cell in padded}) <= 1
    assert len({cell.rstrip().find(" ", len(cell) - len(cell.lstrip())) for cell in padded if " " in cell.strip()}) <= 1


def test_capacities_are_powers_of_two() -> None:
    for value, text in (
        (None, "–"), (0, "0 B"), (64, "64 B"), (1536, "1.5 KiB"), (1023 * 1024, "1023 KiB"), (2**20, "1 MiB"),
        (3e9, "2.79 GiB"),
    ):  # fmt: skip
        assert units.binary(value) == text


def test_figures_in_the_unit_they_are_recorded_in() -> None:
    for value, unit, text in (
        (None, "s", "–"), (2.5e-6, "s", "2.50 µs"), (4.52e12, "B/s", "4.52 TB/s"),
        (861e12, "FLOP/s", "861 TFLOP/s"), (8e-13, "J/FLOP", "800 fJ/FLOP"), (2.1e-11, "J/B", "21.0 pJ/B"),
        (694.0, "W", "694 W"), (2**21, "B", "2 MiB"),
    ):  # fmt: skip
        assert units.in_unit(value, unit) == text


def test_whole_percent_has_no_digits_that_are_noise() -> None:
    for fraction, text in ((0.124, "12 %"), (1.5, "150 %"), (0, "0 %"), (0.004, "<1 %"), (-0.06, "−6 %"), (1, "100 %")):
        assert units.whole_percent(fraction) == text
    assert units.whole_percent(0.05, signed=True) == "+5 %" and units.whole_percent(-0.004) == "−<1 %"
