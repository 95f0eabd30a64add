"""The report of a characterisation in every view, its plots, and what a terminal shows shorter."""

import re
from typing import Any

import hardware_samples as samples
import pytest
from report_views import as_markdown, as_page, on_terminal

from calibrate.report import device_plots, device_rows
from calibrate.report.device import PLOTS, device_document
from calibrate.report.device_rows import Characterisation
from roofline.hardware.spec import Characteristic

SAMPLES = {"cpu": samples.cpu(), "gpu": samples.gpu()}
DRAWN = {
    "cpu": ["curve", "skinny", "peaks", "sustained", "pointwise", "spread"],
    "gpu": ["skinny", "peaks", "sustained", "pointwise", "graphs", "transfers", "collectives", "spread"],
}


def drawn(sample: samples.Sample) -> dict[str, Any]:
    of = Characterisation(*sample)
    plots = {name: getattr(device_plots, name)(of) for name, _, _ in PLOTS}
    return {name: plot for name, plot in plots.items() if plot is not None}


def shown(sample: samples.Sample, width: int = 120) -> str:
    return on_terminal(device_document(*sample), width)


def traces(figure: Any) -> dict[str, Any]:
    return {trace.name: trace for trace in figure.data}


@pytest.mark.parametrize("name", SAMPLES)
def test_markdown_has_every_figure_with_its_conditions_or_its_reason(name: str) -> None:
    text = as_markdown(device_document(*SAMPLES[name]))
    plain = text.replace("\\", "")
    for figure in SAMPLES[name][0].characteristics:
        assert " ".join((figure.reason or figure.conditions).split()) in plain
        assert all(label in plain for label in figure.labels)
    assert not re.search(r"\b(None|nan|inf)\b", plain)
    assert "Peaks that price operations" in text


def test_markdown_has_both_ends_of_an_interval() -> None:
    figure = next(f for f in SAMPLES["gpu"][0].characteristics if f.name == "memory.read")
    text = as_markdown(device_document(*SAMPLES["gpu"]))
    assert figure.low is not None and figure.high is not None
    assert f"{figure.low / 1e12:.2f} to {figure.high / 1e12:.2f} TB/s" in text


@pytest.mark.parametrize("name", SAMPLES)
def test_a_page_has_the_plots_of_its_data(name: str) -> None:
    page = as_page(device_document(*SAMPLES[name]))
    assert [one.removeprefix("plot-") for one in page.ids if one.startswith("plot-")] == DRAWN[name]
    words = " ".join("\n".join(page.words).split())
    for figure in SAMPLES[name][0].characteristics:
        if figure.reason:
            assert " ".join(figure.reason.split()) in words
    assert not re.search(r"\b(None|nan|NaN)\b", words)


def test_a_page_without_measurements_has_no_plot() -> None:
    spec, _, run = SAMPLES["gpu"]
    bare = spec.model_copy(update={"characteristics": ()}), [], run
    page = as_page(device_document(*bare))
    assert not any(name.startswith("plot-") for name in page.ids)
    assert "No figure has been measured in this run." in page.words
    assert "No figure has been measured in this run" in shown(bare)


def test_markup_in_labels_is_shown_not_obeyed() -> None:
    spec, measurements, run = SAMPLES["gpu"]
    first = spec.characteristics[0].model_copy(update={"labels": ("<script>alert(1)</script>|x",)})
    bad = spec.model_copy(update={"characteristics": (first, *spec.characteristics[1:])})
    document = device_document(bad, measurements, run)
    assert "<script>alert(1)</script>|x" in "".join(as_page(document).words)
    assert "\\<script\\>" in as_markdown(document)


def test_the_curve_has_its_points_plateaus_knees_and_capacities() -> None:
    spec, measurements, _ = SAMPLES["cpu"]
    figure = drawn(SAMPLES["cpu"])["curve"]
    found = traces(figure)
    assert len(found["read"].x) == len(found["triad"].x) == 13
    plateau = found["plateau 2: 90.0 GB/s"]
    assert (plateau.x, plateau.y) == ((4 << 20, 32 << 20), (90e9, 90e9))
    said = [note.text for note in figure.layout.annotations]
    assert said == ["knee 1 2.83 MiB", "L2, stated 4 MiB", "last-level cache, stated 32 MiB"]
    assert device_plots.capacities(spec, measurements) == (
        ("L2, stated", 4 << 20),
        ("last-level cache, stated", 32 << 20),
    )


@pytest.mark.parametrize(
    ("conditions", "ends"),
    [
        ("triad; working sets from 262144 to 2097152 bytes", (262144, 2097152)),
        ("3 sizes, 256 KiB to 2 MiB", (262144, 2097152)),
        ("from 1.5 MiB", None),
        ("", None),
    ],
)
def test_the_ends_of_a_plateau(conditions: str, ends: tuple[float, float] | None) -> None:
    assert device_rows.working_sets(conditions) == ends


def test_fits_are_drawn_from_the_figures() -> None:
    found = drawn(SAMPLES["gpu"])
    transfers = traces(found["transfers"])
    fit = transfers["pinned to device fit: 8.00 µs + size ÷ 55.0 GB/s"]
    assert fit.y[-1] == pytest.approx(8e-6 + 2**30 / 55e9)
    measured = transfers["pinned to device"]
    assert measured.y[0] == pytest.approx(8e-6 + 1024 / 55e9, rel=0.01)
    graphs = traces(found["graphs"])
    assert graphs["fit: 4.00 µs + 1.30 µs a node"].y[0] == pytest.approx(5.3e-6)
    assert len(graphs["graph replay"].x) == 15
    busbw = traces(found["collectives"])["all_reduce"]
    assert busbw.y[-1] == pytest.approx(1.75 * 2**30 / (30e-6 + 1.75 * 2**30 / 400e9), rel=0.01)


def test_products_are_held_against_the_datasheet_at_the_clock() -> None:
    figure = drawn(SAMPLES["gpu"])["peaks"]
    bars = [trace for trace in figure.data if trace.type == "bar"]
    assert [list(bar.x) for bar in bars[:2]] == [["datasheet"], ["burst", "sustained"]]
    assert bars[0].y[0] == 989.4e12
    marks = next(trace for trace in figure.data if trace.type == "scatter")
    assert marks.y == pytest.approx((989.4e12 * 1755 / 1830, 989.4e12 * 1605 / 1830))
    cpu = drawn(SAMPLES["cpu"])["peaks"]
    assert [list(bar.x) for bar in cpu.data] == [["burst", "sustained"]]


def test_samples_under_load_stand_where_they_were_taken() -> None:
    one = next(m for m in SAMPLES["gpu"][1] if m.case == "sustained")
    times = list(device_plots.sample_times(one))
    assert len(times) == len(one.samples) == 100
    assert (times[0], times[-1]) == pytest.approx((5 + 0.5 / 20, 9 + 19.5 / 20))
    bare = one.model_copy(update={"windows": ()})
    assert list(device_plots.sample_times(bare))[-1] == pytest.approx(sum(one.samples))
    titles = [axis.title.text for axis in drawn(SAMPLES["gpu"])["sustained"].select_yaxes()]
    assert titles == ["bf16, FLOP/s", "fp32, FLOP/s", "SM clock, MHz", "power, W", "temperature, °C"]


def test_the_spread_is_that_of_the_processes() -> None:
    figure = drawn(SAMPLES["gpu"])["spread"]
    by = traces(figure)
    label = "memory read fp32"
    shares = [by[f"process {i}"].x[by[f"process {i}"].y.index(label)] for i in (1, 2, 3)]
    middle = (1.0 * 0.99 * 1.012) ** (1 / 3)
    assert shares == pytest.approx([1 / middle - 1, 0.99 / middle - 1, 1.012 / middle - 1], abs=2e-3)
    spec, measurements, run = SAMPLES["gpu"]
    alone = (spec, [one for one in measurements if one.process in (0, 1)], run)
    assert "spread" not in drawn(alone)


def line(text: str, start: str, has: str = "") -> str:
    return next(line for line in text.splitlines() if line.startswith(start) and has in line)


@pytest.mark.parametrize("name", SAMPLES)
def test_no_line_exceeds_the_console(name: str) -> None:
    for width in (40, 60, 80, 100, 120, 200):
        on_terminal(device_document(*SAMPLES[name]), width)


@pytest.mark.parametrize("name", SAMPLES)
def test_every_failure_has_its_reason_and_nothing_reads_as_python(name: str) -> None:
    spec = SAMPLES[name][0]
    text = " ".join(shown(SAMPLES[name]).split())
    reasons = [figure.reason for figure in spec.characteristics if figure.value is None]
    assert reasons
    for reason in (*reasons, *spec.missing.values()):
        assert " ".join(str(reason).split()) in text
    assert not re.search(r"\b(None|nan|inf)\b", text)


def test_the_device_and_its_conditions() -> None:
    text = " ".join(shown(SAMPLES["gpu"]).split())
    assert "NVIDIA H200, 132 SMs, 141 GB" in text
    assert "UUID: GPU-3f2a-77" in text
    assert "driver 580.82" in text and "torch 2.13.0" in text
    assert "SM clock 1590 MHz to 1980 MHz, median 1650 MHz; power 540 W to 700 W" in text
    assert "temperature 44 °C to 63 °C" in text
    cpu = " ".join(shown(SAMPLES["cpu"]).split())
    assert "2 cores, 2 threads, 16.0 GB" in cpu
    assert "CPU clock 2600 MHz; taken by a hypervisor 1.00 %" in cpu
    assert "warning: the CPU governor is not set to performance" in cpu


def test_figures_of_the_gpu_stand_beside_the_datasheet() -> None:
    text = shown(SAMPLES["gpu"])
    # 4.52 TB/s × the geometric mean of 1, 0.99 and 1.012; of 4.8 TB/s
    assert " ".join(line(text, "read").split()) == "read fp32 4.52 TB/s ± 1.87 % 1.11 % 4.49 TB/s 4.80 TB/s 94.2 %"
    assert "90.7 % 1605 MHz" in line(text, "sustained", "bf16")
    assert line(text, "burst", "fp8").split()[-3:] == ["73.4", "%", "–"]
    assert "n = 2" in line(text, "gelu", "fp32")


def test_what_a_reader_has_to_know_stands_below_its_table() -> None:
    text = shown(SAMPLES["gpu"])
    table, after = text[text.index("\nmatrix products") :], text[text.index("\nskinny products") :]
    note = " ".join(table[: len(table) - len(after)].split())
    assert "sustained bf16, sustained fp32: power cap in 81 % of the time, SM clock 1,410–1,980 MHz" in note
    lost = "gelu fp32: 1 of 3 processes gave no result: CUDA error: out of memory"
    assert lost in " ".join(after.split())


def test_one_core_and_fresh_outputs_stand_beside() -> None:
    text = shown(SAMPLES["cpu"])
    assert line(text, "main memory  ").split()[-2:] == ["one", "core"]
    assert line(text, "read").split()[-2:] == ["32.3", "GB/s"]  # 52.04 × 0.62
    assert line(text, "pointwise work").split()[-2:] == ["fresh", "output"]
    assert line(text, "add ").split()[-2:] == ["14.0", "GB/s"]
    assert not any(row.startswith("read, one core") for row in text.splitlines())


def test_long_lists_are_short() -> None:
    text = shown(SAMPLES["gpu"])
    assert "6 more sizes are in report.md" in text
    assert "pinned to device: 11 sizes, 128 MB/s at 1 KiB to 55.0 GB/s at 1 GiB" in text
    cpu = shown(SAMPLES["cpu"])
    assert "L2 read 1 MiB, best of 2 sizes" in cpu
    assert "read fp32: 13 sizes, 150 GB/s at 256 KiB to 50.0 GB/s at 1 GiB" in cpu
    assert "fp32 besides: silu 17.0 GFLOP/s, softmax 9.0" in cpu


def test_what_the_words_mean_is_there_where_they_are_used() -> None:
    text = " ".join(shown(SAMPLES["gpu"]).split())
    for words in ("as in STREAM", "median of the second half of the load", "10th percentile", "a multiply-add is 2"):
        assert words in text
    assert "with a single thread" not in text
    assert "with a single thread" in " ".join(shown(SAMPLES["cpu"]).split())


def test_an_unknown_figure_is_a_dash_and_no_zero() -> None:
    spec, _, run = SAMPLES["cpu"]
    figures = (
        Characteristic(name="memory.read", unit="B/s", value=1e9, replicates=3, low=9e8, high=1.1e9, datasheet=2e9),
        Characteristic(name="memory.triad", unit="B/s", value=2e9, replicates=3),
    )
    text = shown((spec.model_copy(update={"characteristics": figures}), [], run))
    assert line(text, "triad").split() == ["triad", "2.00", "GB/s", "–", "–", "–"]
