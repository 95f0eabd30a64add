import json
import re

import hardware_samples as samples
import pytest
from html_page import Page

from calibrate.report.hardware import document, html, markdown, memory_plot, product_plots, rows
from calibrate.report.hardware.plots import plots
from calibrate.report.hardware.rows import groups

SAMPLES = {"cpu": samples.cpu(), "gpu": samples.gpu()}
PLOTS = {
    "cpu": ["curve", "skinny", "peaks", "sustained", "pointwise", "spread"],
    "gpu": ["skinny", "peaks", "sustained", "pointwise", "graphs", "transfers", "collectives", "spread"],
}


def drawn(sample: samples.Sample) -> dict[str, object]:
    return {plot.name: plot.figure for plot in plots(groups(*sample), *sample)}


def traces(figure: object) -> dict[str, object]:
    return {trace.name: trace for trace in figure.data}  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", SAMPLES)
def test_markdown_has_every_figure_with_its_conditions_or_its_reason(name: str) -> None:
    text = markdown.render(*SAMPLES[name])
    plain = text.replace("\\", "")
    for figure in SAMPLES[name][0].characteristics:
        assert " ".join((figure.reason or figure.conditions).split()) in plain
        assert all(label in plain for label in figure.labels)
    for block in re.findall(r"(?:^\|.*\n?)+", text, flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1, block
    assert not re.search(r"\b(None|nan|inf)\b", plain)
    assert "Peaks that price operations" in text


def test_markdown_has_both_ends_of_an_interval() -> None:
    figure = next(f for f in SAMPLES["gpu"][0].characteristics if f.name == "memory.read")
    text = markdown.render(*SAMPLES["gpu"])
    assert figure.low is not None and figure.high is not None
    assert f"{figure.low / 1e12:.2f} to {figure.high / 1e12:.2f} TB/s" in text


@pytest.mark.parametrize("name", SAMPLES)
def test_html_is_whole_fetches_nothing_and_has_the_plots_of_its_data(name: str) -> None:
    text = html.render(*SAMPLES[name])
    page = Page()
    page.feed(text)
    page.close()
    assert page.open == []
    assert page.fetched == []
    assert not re.search(r"@import|url\(", "".join(page.styles))
    outside = re.sub(r"<script[^>]*>.*?</script>", "", text, flags=re.DOTALL)
    assert "http" not in outside
    assert text.count("plotly.js v") == 1
    assert [one.removeprefix("plot-") for one in page.ids if one.startswith("plot-")] == PLOTS[name]
    words = " ".join("\n".join(page.words).split())
    for figure in SAMPLES[name][0].characteristics:
        if figure.reason:
            assert " ".join(figure.reason.split()) in words
    assert not re.search(r"\b(None|nan|NaN)\b", words)


def test_a_page_without_measurements_has_no_plot() -> None:
    spec, _, run = SAMPLES["gpu"]
    empty = spec.model_copy(update={"characteristics": ()})
    assert plots((), empty, [], run) == ()
    page = Page()
    page.feed(html.render(empty, [], run))
    assert not any(one.startswith("plot-") for one in page.ids)
    assert "No figure has been measured in this run." in "\n".join(page.words)


def test_markup_in_labels_is_shown_not_obeyed() -> None:
    spec, measurements, run = SAMPLES["gpu"]
    first = spec.characteristics[0].model_copy(update={"labels": ("<script>alert(1)</script>|x",)})
    bad = spec.model_copy(update={"characteristics": (first, *spec.characteristics[1:])})
    page = Page()
    page.feed(html.render(bad, measurements, run))
    assert "<script>alert(1)</script>|x" in "".join(page.words)
    assert "\\<script\\>" in markdown.render(bad, measurements, run)


def test_the_curve_has_its_points_plateaus_knees_and_capacities() -> None:
    spec, measurements, _ = SAMPLES["cpu"]
    figure = drawn(SAMPLES["cpu"])["curve"]
    found = traces(figure)
    assert len(found["read"].x) == len(found["triad"].x) == 13  # type: ignore[attr-defined]
    plateau = found["plateau 2: 90.0 GB/s"]
    assert (plateau.x, plateau.y) == ((4 << 20, 32 << 20), (90e9, 90e9))  # type: ignore[attr-defined]
    said = [note.text for note in figure.layout.annotations]  # type: ignore[attr-defined]
    assert said == ["knee 1 2.83 MiB", "L2, stated 4 MiB", "last-level cache, stated 32 MiB"]
    assert memory_plot.capacities(spec, measurements) == (
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
    assert rows.working_sets(conditions) == ends


def test_fits_are_drawn_from_the_figures() -> None:
    found = drawn(SAMPLES["gpu"])
    transfers = traces(found["transfers"])
    fit = transfers["pinned to device fit: 8.00 µs + size ÷ 55.0 GB/s"]
    assert fit.y[-1] == pytest.approx(8e-6 + 2**30 / 55e9)  # type: ignore[attr-defined]
    measured = transfers["pinned to device"]
    assert measured.y[0] == pytest.approx(8e-6 + 1024 / 55e9, rel=0.01)  # type: ignore[attr-defined]
    graphs = traces(found["graphs"])
    assert graphs["fit: 4.00 µs + 1.30 µs a node"].y[0] == pytest.approx(5.3e-6)  # type: ignore[attr-defined]
    assert len(graphs["graph replay"].x) == 15  # type: ignore[attr-defined]
    busbw = traces(found["collectives"])["all_reduce"]
    assert busbw.y[-1] == pytest.approx(1.75 * 2**30 / (30e-6 + 1.75 * 2**30 / 400e9), rel=0.01)  # type: ignore[attr-defined]


def test_products_are_held_against_the_datasheet_at_the_clock() -> None:
    figure = drawn(SAMPLES["gpu"])["peaks"]
    bars = [trace for trace in figure.data if trace.type == "bar"]  # type: ignore[attr-defined]
    assert [list(bar.x) for bar in bars[:2]] == [["datasheet"], ["burst", "sustained"]]
    assert bars[0].y[0] == 989.4e12
    marks = next(trace for trace in figure.data if trace.type == "scatter")  # type: ignore[attr-defined]
    assert marks.y == pytest.approx((989.4e12 * 1755 / 1830, 989.4e12 * 1605 / 1830))
    cpu = drawn(SAMPLES["cpu"])["peaks"]
    assert [list(bar.x) for bar in cpu.data] == [["burst", "sustained"]]  # type: ignore[attr-defined]


def test_samples_under_load_stand_where_they_were_taken() -> None:
    one = next(m for m in SAMPLES["gpu"][1] if m.case == "sustained")
    times = list(product_plots.sample_times(one))
    assert len(times) == len(one.samples) == 100
    assert (times[0], times[-1]) == pytest.approx((5 + 0.5 / 20, 9 + 19.5 / 20))
    bare = one.model_copy(update={"windows": ()})
    assert list(product_plots.sample_times(bare))[-1] == pytest.approx(sum(one.samples))
    titles = [axis.title.text for axis in drawn(SAMPLES["gpu"])["sustained"].select_yaxes()]  # type: ignore[attr-defined]
    assert titles == ["bf16, FLOP/s", "fp32, FLOP/s", "SM clock, MHz", "power, W", "temperature, °C"]


def test_the_spread_is_that_of_the_processes() -> None:
    figure = drawn(SAMPLES["gpu"])["spread"]
    by = traces(figure)
    label = "memory read fp32"
    shares = [by[f"process {i}"].x[by[f"process {i}"].y.index(label)] for i in (1, 2, 3)]  # type: ignore[attr-defined]
    middle = (1.0 * 0.99 * 1.012) ** (1 / 3)
    assert shares == pytest.approx([1 / middle - 1, 0.99 / middle - 1, 1.012 / middle - 1], abs=2e-3)
    spec, measurements, run = SAMPLES["gpu"]
    alone = (spec, [one for one in measurements if one.process in (0, 1)], run)
    assert "spread" not in drawn(alone)


@pytest.mark.parametrize("name", SAMPLES)
def test_the_document_has_every_figure_and_is_json(name: str, tmp_path: object) -> None:
    spec, measurements, run = SAMPLES[name]
    made = document.document(tmp_path / "spec.json", spec, measurements, run)  # type: ignore[operator]
    text = json.dumps(made, allow_nan=False)
    assert {"spec", "device", "uuid", "figures"} <= set(made)
    assert {"name", "dtype", "value", "unit", "low", "high", "datasheet"} <= set(made["figures"][0])
    assert len(made["figures"]) == len(spec.characteristics)
    by = {(one["name"], one["dtype"]): one for one in json.loads(text)["figures"]}
    for figure in spec.characteristics:
        one = by[figure.name, figure.dtype]
        assert (one["value"], one["unit"], one["datasheet"]) == (figure.value, figure.unit, figure.datasheet)
        if figure.replicates < 3:
            assert one["low"] is one["high"] is None
        if figure.value is None:
            assert one["reason"] == " ".join(str(figure.reason).split())
