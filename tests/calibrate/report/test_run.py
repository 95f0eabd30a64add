"""The report of a run: nothing is lost in any view, times add up, and what cannot be trusted says so."""

import re
from itertools import pairwise

import pytest
import report_samples as samples
from report_views import as_markdown, as_page, every_view, on_terminal

from calibrate.passes.pass_report import PassReport
from calibrate.report import pass_plots, run_rows
from calibrate.report.document import Document
from calibrate.report.run import headline, run_document, verdict
from calibrate.report.run_tables import LAYER_COLUMNS
from profiler.record.run import Run
from roofline.hardware.spec import HardwareSpec

Case = tuple[list[PassReport], Run, HardwareSpec]

CASES: dict[str, Case] = {
    "gpu": ([samples.gpu(), samples.gpu_calibrated()], samples.run(), samples.GPU),
    "cpu": ([samples.cpu()], samples.run("cpu"), samples.CPU),
    "bare": ([samples.no_peaks()], samples.run("cpu"), samples.BARE),
    "many": ([samples.many_layers()], samples.run(), samples.GPU),
    "unattributed": ([samples.with_unattributed()], samples.run(), samples.GPU),
    "none": ([], samples.run(), samples.GPU),
}
UNIT_S = {"ns": 1e-9, "µs": 1e-6, "ms": 1e-3, "s": 1.0}


def document(name: str) -> Document:
    return run_document(*CASES[name], samples.failed())


def one(report: PassReport, spec: HardwareSpec = samples.GPU) -> Document:
    return run_document([report], samples.run(), spec)


def seconds_in(cell: str) -> float:
    number, unit = re.fullmatch(r"[+−]?([\d.]+) (\w+)", cell.strip()).groups()  # type: ignore[union-attr]
    return float(number) * UNIT_S[unit]


@pytest.mark.parametrize("name", CASES)
def test_no_line_exceeds_the_console(name: str) -> None:
    for width in (20, 33, 47, 60, 80, 100, 110, 132, 160, 220):
        on_terminal(document(name), width)


def test_times_in_the_terminal_add_up() -> None:
    for name in ("gpu", "cpu", "bare"):
        lines = on_terminal(document(name), 160).splitlines()
        start = next(i for i, line in enumerate(lines) if line.startswith("layer kind"))
        end = next(i for i, line in enumerate(lines) if i > start and line.startswith("busy"))
        times = [re.search(r" (\d\S* [nµm]?s)\b", line) for line in lines[start + 2 : end - 1]]
        assert len(times) > 5 and all(times), name
        total = sum(seconds_in(time.group(1)) for time in times if time)
        assert total == pytest.approx(CASES[name][0][0].busy_s, rel=0.01), name
        assert any("others" in line for line in lines), name


def test_narrow_consoles_lose_columns_in_order_and_keep_path_and_time() -> None:
    def header(width: int, case: Document = document("gpu")) -> str:  # noqa: B008
        return next(line for line in on_terminal(case, width).splitlines() if line.startswith("layer kind"))

    every = {column.header for column in LAYER_COLUMNS if "terminal" in column.views}
    assert all(word in header(160) for word in every)
    wide = ("time", "ideal", "predicted", "error", "efficiency", "FLOP/s", "bytes/s")
    for case in (document("gpu"), document("cpu"), one(samples.gpu_calibrated())):
        assert all(word in header(120, case) for word in wide), case.title
    shown = {100: ("predicted", "error"), 80: ("time", "predicted", "error"), 47: ("time",)}
    for width, words in shown.items():
        assert all(word in header(width) for word in words), width
    assert "per repeat" not in header(100)
    for width in range(70, 161):  # columns go before a path becomes unreadable
        assert header(width).index("kind", len("layer kind")) >= 20, width


def test_every_view_says_what_matters() -> None:
    report = CASES["gpu"][0][0]
    for view, text in every_view(document("gpu"), 100).items():
        for words in (headline(report), "114 %", "wrong peak", "mixtral-8x7b", "out of memory: needs 93.4 GB",
                      "achieved", "781 TFLOP/s to 803 TFLOP/s", "1 pass gave no result",
                      "machine was slower than while it was calibrated"):  # fmt: skip
            assert words in text, (view, words)
    for view, text in every_view(document("cpu"), 80).items():
        for words in ("achieved peaks: no datasheet describes this device", "4 of 32 repeated layers", "−1.44 ms",
                      "7 parameters that this phase does not read", "the CPU governor is not set"):  # fmt: skip
            assert words in text, (view, words)
    assert "and 4 more" in " ".join(on_terminal(document("cpu"), 80).split())
    written = as_markdown(run_document([samples.gpu_calibrated(), samples.cpu()], samples.run(), samples.GPU))
    assert "device times: kernel timeline; caches: in situ; passes: 12 unprofiled, 12 profiled" in written
    assert "1 difference between the planned graph and what the device ran" in written
    assert "op 17: aten::copy\\_ ran" in written and "model.layers.6.self\\_attn.unused\\_bias" in written
    assert CASES["gpu"][1].environment.versions["torch"] in written


def test_bars_of_the_waterfall_start_where_the_one_before_ends() -> None:
    lines = on_terminal(one(samples.gpu_calibrated()), 120).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("waterfall"))
    bars = [line[re.search(r"%", line).end() + 2 :] for line in lines[start + 2 : start + 9]]  # type: ignore[union-attr]
    assert all("█" in bar for bar in bars)
    for before, after in pairwise(bars):
        assert abs(len(before) - (len(after) - len(after.lstrip()))) <= 1
    assert lines[start + 10].endswith("█" * 40)
    assert "░" in on_terminal(one(samples.cpu(), samples.CPU)), "a term that takes away is drawn light"


@pytest.mark.parametrize("name", CASES)
def test_files_have_every_layer(name: str) -> None:
    reports, run, _ = CASES[name]
    text, page = as_markdown(document(name)).replace("\\", ""), as_page(document(name))
    words = "\n".join(page.words)
    assert "others" not in text
    for view, shown in every_view(document(name)).items():
        for said in ("mixtral-8x7b", "out of memory: needs 93.4 GB, the device has", run.environment.versions["torch"]):
            assert said in shown, (view, said)
    for report in reports:
        assert headline(report) in words
        assert all(check.value in words for check in run_rows.closure(report, run.environment.device_kind))
        for layer in report.layers:
            assert f"| `{layer.path or '(model)'}` | {layer.kind} |" in text
            assert [layer.path or "(model)", layer.kind] in [row[:2] for row in page.rows]
    assert sum(name.startswith("roofline-") for name in page.ids) == len(reports)


def test_markdown_times_add_up_and_nulls_are_dashes() -> None:
    report = samples.no_peaks()
    text = as_markdown(run_document([report], samples.run("cpu"), samples.BARE))
    lines = text[text.index("### Layer kinds") :].splitlines()
    rows = [line.split(" | ") for line in lines if line.startswith("| `")][: len(report.layers)]
    assert sum(seconds_in(row[3]) for row in rows) == pytest.approx(report.busy_s, rel=0.005)
    assert {(row[6], row[7], row[8], row[9]) for row in rows} == {("–",) * 4}
    assert "No peaks of this device are known" in text


@pytest.mark.parametrize("status", ["inconclusive", "invalid"])
def test_a_pass_that_cannot_be_trusted_says_so_first_and_gives_no_factor(status: str) -> None:
    report = samples.gpu().model_copy(update={"status": status, "reason": "single passes vary by ± 40 %"})
    for view, text in every_view(one(report)).items():
        assert f"{status}: single passes vary by ± 40 %" in text, view
        assert text.index(f"{status}: single") < text.index("4.65 ms wall ± 1.2 %"), view
        assert "could take" not in text and "× less" not in text, view
    assert verdict(samples.gpu()) == ""


def test_the_headline_compares_device_work_with_device_work() -> None:
    report = samples.gpu()
    assert report.rungs.ideal is not None
    assert f"({report.busy_s / report.rungs.ideal:.2f}× less)" in headline(report)
    fast = report.model_copy(update={"busy_s": 0.5 * report.rungs.ideal})
    assert "above the measured time: the peaks are too low" in headline(fast)
    assert "× less" not in headline(fast)
    assert "could take" in headline(samples.cpu()) and "unknown" in headline(samples.no_peaks())


def spread(low: float, high: float) -> HardwareSpec:
    """The range of the matrix rate as multiples of its value, and a figure that is missing."""
    measured = samples.GPU_MEASURED
    figure = measured.matrix["bfloat16"]
    wide = figure.model_copy(update={"low": low * figure.value, "high": high * figure.value})
    measured = measured.model_copy(update={"matrix": {"bfloat16": wide}})
    return samples.GPU.model_copy(update={"measured": measured, "missing": {"level.L1": "merged into L2: slower"}})


def test_peaks_beside_other_work_are_warned_of_and_their_ranges_are_in_every_view() -> None:
    warning = "samples of the peaks vary (matrix bf16 by 80.0 %): other work, or a clock that changes"
    for view, text in every_view(one(samples.gpu(), spread(0.3, 1.1))).items():
        assert warning in text, view
    for view, text in every_view(one(samples.gpu(), spread(0.8, 1.2))).items():
        assert "samples of the peaks vary" not in text, view
    for view, text in every_view(one(samples.gpu(), spread(0.9, 1.01))).items():
        assert "samples of the peaks vary" not in text, view
        assert "5–95 % of samples" in text and "715 TFLOP/s to 802 TFLOP/s" in text, view
        assert "level.L1: merged into L2: slower" in text, view


def ratio(value: float) -> PassReport:
    report = samples.gpu()
    return report.model_copy(
        update={"closure": report.closure.model_copy(update={"instrumented_ratio": value}), "layers": report.layers}
    )


def test_a_profiled_time_that_does_not_match_says_what_follows() -> None:
    implied = {
        1.08: "operation times carry up to 8.00 % of instrumentation",
        0.93: "the machine changed between passes",
    }
    for value, words in implied.items():
        for view, text in every_view(one(ratio(value))).items():
            assert words in text and "DOES NOT HOLD" in text, (view, value)
    for text in every_view(one(ratio(1.03))).values():
        assert not any(words in text for words in implied.values()) and "DOES NOT HOLD" not in text


def test_the_first_markdown_table_has_the_closure() -> None:
    for value, held in ((1.0, "holds"), (1.08, "**DOES NOT HOLD**")):
        lines = as_markdown(one(ratio(value))).splitlines()
        start = next(i for i, line in enumerate(lines) if line.startswith("| pass "))
        assert lines[start].endswith("| every check |")
        assert lines[start + 2].endswith(f"| {held} |")


def test_the_device_comes_before_the_passes() -> None:
    page = as_page(one(samples.gpu())).outside_scripts
    assert 0 < page.index(">Device<") < page.index('<section id="pass-0"')


def test_markup_in_names_is_shown_not_obeyed() -> None:
    report = samples.gpu().model_copy(update={"model": "<script>alert(1)</script>|x"})
    assert "<script>alert(1)</script>|x" in "".join(as_page(one(report)).words)
    assert "\\<script\\>" in as_markdown(one(report))


def test_waterfall_chart_closes_on_the_wall() -> None:
    for report in (samples.gpu(), samples.gpu_calibrated(), samples.cpu(), samples.no_peaks()):
        bar = pass_plots.waterfall_chart(report).data[0]
        assert bar.x[-1] == report.wall_s and min(bar.x) >= 0, "a negative bar's text would cover its name"
        end = 0.0
        for start, length in zip(bar.base[:-1], bar.x[:-1], strict=True):
            grows = start == pytest.approx(end, abs=1e-15)
            assert grows or start + length == pytest.approx(end)
            end = start + length if grows else start
        assert end == pytest.approx(report.wall_s)


def test_roofline_chart_has_the_roofs_of_the_spec_and_no_point_without_work() -> None:
    report = samples.gpu()
    figure = pass_plots.roofline_chart(report, samples.GPU)
    roofs = [trace for trace in figure.data if trace.mode == "lines"]
    heights = {max(trace.y) for trace in roofs}
    assert {989e12, 794e12, 67e12, 55e12} <= heights
    slopes = {round(trace.y[0] / trace.x[0] / 1e12, 6) for trace in roofs if trace.y[0] != trace.y[1]}
    assert slopes == {12.0, 4.8, 7.1, 4.16}
    points = sum(len(trace.x) for trace in figure.data if trace.mode == "markers")
    assert points == sum(layer.matrix_flops + layer.vector_flops > 0 for layer in report.layers) < len(report.layers)
    bare = pass_plots.roofline_chart(samples.no_peaks(), samples.BARE)
    assert all(trace.mode == "markers" for trace in bare.data)


def test_labels_of_roofs_are_apart_and_outside_the_plot() -> None:
    figure = pass_plots.roofline_chart(samples.cpu(), samples.CPU)
    beside = [note for note in figure.layout.annotations if note.xref == "paper"]
    assert [note.x > 1 for note in beside] == [True] * 2
    low, high = figure.layout.yaxis.range
    pixels = sorted(note.y * pass_plots.PLOT / (high - low) for note in beside)
    assert all(above - below >= pass_plots.LINE for below, above in pairwise(pixels))
    close = {"a": 100.0, "b": 85.0, "c": 50.0}
    assert pass_plots.alike(close) == [(("a", "b"), 85.0, 100.0), (("c",), 50.0, 50.0)]


def test_points_above_one_are_ringed_and_named() -> None:
    def rings(report: PassReport) -> list[str]:
        traces = pass_plots.roofline_chart(report, samples.GPU).data
        return [text for trace in traces if trace.name == "efficiency above 1" for text in trace.text]

    assert rings(samples.gpu()) == ["! 114 %"]
    sound = samples.gpu()
    layers = tuple(layer for layer in sound.layers if (layer.efficiency or 0) <= 1)
    assert rings(sound.model_copy(update={"layers": layers})) == []


def test_layer_chart_keeps_every_bar_apart_and_says_how_many_it_leaves_out() -> None:
    kinds = len(samples.many_layers().layers)
    assert f"The {run_rows.BARS} slowest of {kinds} layer kinds" in "\n".join(as_page(document("many")).words)
    assert "slowest of" not in "\n".join(as_page(document("gpu")).words)
    figure = pass_plots.layer_chart(samples.many_layers())
    assert len(set(figure.data[0].y)) == run_rows.BARS
    assert [trace.name for trace in pass_plots.layer_chart(samples.no_peaks()).data] == ["measured"]
