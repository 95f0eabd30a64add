import statistics

import hardware_samples as samples
import pytest

from calibrate.report import device, device_rows
from calibrate.report.device_rows import Row, groups
from roofline.hardware.load import load_device
from roofline.hardware.spec import Characteristic


def row(sample: samples.Sample, name: str, dtype: str | None = None) -> Row:
    (found,) = (
        row
        for group in groups(*sample)
        for row in group.rows
        if row.figure.name == name and dtype in (None, row.figure.dtype)
    )
    return found


@pytest.mark.parametrize("make", [samples.cpu, samples.gpu])
def test_every_figure_is_in_exactly_one_group(make: object) -> None:
    spec, measurements, run = make()  # type: ignore[operator]
    found = [one.figure for group in groups(spec, measurements, run) for one in group.rows]
    assert len(found) == len(spec.characteristics)
    assert all(figure in found for figure in spec.characteristics)
    strange = spec.model_copy(update={"characteristics": (Characteristic(name="noise.floor", unit="W", value=1),)})
    (other,) = groups(strange, [], run)
    assert (other.title, other.rows[0].label) == (device_rows.OTHER, "floor")


def test_shares_of_the_datasheet_and_of_the_datasheet_at_the_clock_are_recomputed() -> None:
    sustained = row(samples.gpu(), "matmul.sustained", "bfloat16")
    value = sustained.figure.value
    assert value is not None
    # the second half of the windows: 1605, 1590, 1605, 1620, 1605 MHz; the tensor peak is stated at 1830 MHz
    assert sustained.clock_hz == 1605e6
    assert sustained.datasheet_at_clock == pytest.approx(989.4e12 * 1605 / 1830)
    assert sustained.of_datasheet == pytest.approx(value / 989.4e12)
    assert sustained.of_clock == pytest.approx(value / (989.4e12 * 1605 / 1830))
    burst = row(samples.gpu(), "matmul.burst", "bfloat16")
    assert burst.datasheet_at_clock == pytest.approx(989.4e12 * 1755 / 1830)


def test_a_product_on_the_vector_units_is_held_against_the_boost_clock() -> None:
    device = load_device("nvidia-h200-sxm")
    assert device_rows.datasheet_clock(device, "bfloat16") == 1.83e9
    assert device_rows.datasheet_clock(device, "float32") == 1.98e9
    assert device_rows.datasheet_clock(device, "int4") is None
    assert device_rows.datasheet_clock(samples.cpu()[0], "float32") is None
    single = row(samples.gpu(), "matmul.burst", "float32")
    assert single.datasheet_at_clock == pytest.approx(66.9e12 * 1755 / 1980)


def test_without_a_clock_nothing_is_adjusted() -> None:
    fp8 = row(samples.gpu(), "matmul.burst", "float8_e4m3fn")
    assert (fp8.clock_hz, fp8.datasheet_at_clock, fp8.of_clock) == (None, None, None)
    assert fp8.of_datasheet == pytest.approx(fp8.figure.value / 1978.9e12)  # type: ignore[operator]


def test_a_skinny_product_has_its_rates_and_its_roofline() -> None:
    one = row(samples.gpu(), "skinny.m16", "bfloat16")
    flops, moved = 2 * 16 * 4096 * 4096, 2 * (2 * 16 * 4096 + 4096 * 4096)
    assert one.flops_per_s == pytest.approx(flops / one.figure.value)  # type: ignore[operator]
    assert one.bytes_per_s == pytest.approx(moved / one.figure.value)  # type: ignore[operator]
    assert one.roofline_s == pytest.approx(max(moved / 4.52e12, flops / 861e12))
    assert one.of_roofline == pytest.approx(0.8, rel=0.01)
    assert one.shape == "16×4096×4096"


def test_a_process_without_a_result_is_told_at_the_figure() -> None:
    gelu = row(samples.gpu(), "vector.gelu")
    assert gelu.lost == "1 of 3 processes gave no result: CUDA error: out of memory"
    assert gelu.lost in gelu.marks
    assert device_rows.interval(gelu.figure) == "n = 2"
    assert device_rows.ends(gelu.figure) == (None, None)


def test_more_than_the_datasheet_is_marked() -> None:
    figure = Characteristic(name="memory.read", unit="B/s", value=5e12, datasheet=4.8e12, replicates=3)
    above = Row(figure=figure, label="read")
    assert above.above_one
    assert any(mark.startswith("above 100 %") for mark in above.marks)
    cells = [column.cell(device_rows.Line(above, "read")) for column in device._columns("t", "beside")]
    assert ("104 % !", True) in [(cell.text, cell.bad) for cell in cells if not isinstance(cell, str)]


def test_the_windows_of_dropped_samples_do_not_count() -> None:
    one = next(m for m in samples.gpu()[1] if m.case == "sustained")
    assert [window.start_s for window in device_rows.kept_windows(one)] == [5, 6, 7, 8, 9]
    whole = one.model_copy(update={"samples": one.samples * 2})
    assert device_rows.kept_windows(whole) == one.windows
    clocks = [window.sm_clock_hz for window in one.windows]
    assert device_rows.median_clock([whole]) == statistics.median(clocks)  # type: ignore[type-var]
    assert device_rows.median_clock([one.model_copy(update={"windows": ()})]) is None


@pytest.mark.parametrize(
    ("low", "high", "replicates", "shown"),
    [
        (0.98, 1.02, 3, "± 2.00 %"),
        (0.7, 1.42, 3, "−30.0 % +42.0 %"),
        (None, None, 3, "–"),
        (0.98, 1.02, 2, "n = 2"),
        (None, None, 0, "–"),
    ],
)
def test_intervals(low: float | None, high: float | None, replicates: int, shown: str) -> None:
    figure = Characteristic(name="memory.read", unit="B/s", value=1.0, low=low, high=high, replicates=replicates)
    assert device_rows.interval(figure) == shown


@pytest.mark.parametrize(
    ("case", "series", "size"),
    [("read 2097152", "read", 2097152), ("triad", "triad", None), ("graph 16", "graph", 16), ("m16", "m", 16)],
)
def test_the_size_at_the_end_of_a_case(case: str, series: str, size: float | None) -> None:
    assert device_rows.split_size(case) == (series, size)
