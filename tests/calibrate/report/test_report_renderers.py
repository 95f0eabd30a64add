import io
import re
from itertools import pairwise

import pytest
import report_samples as samples
from html_page import Page
from rich.console import Console

from calibrate.passes.pass_report import PassReport
from calibrate.report import charts, html, markdown, tables, terminal, wording
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


def in_terminal(case: Case, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, no_color=True)
    terminal.render(*case, console, samples.failed())
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def seconds_in(cell: str) -> float:
    number, unit = re.fullmatch(r"[+−]?([\d.]+) (\w+)", cell.strip()).groups()  # type: ignore[union-attr]
    return float(number) * UNIT_S[unit]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("width", [20, 33, 47, 60, 80, 100, 110, 132, 160, 220])
def test_no_line_exceeds_the_console(name: str, width: int) -> None:
    lines = in_terminal(CASES[name], width).splitlines()
    assert max(map(len, lines)) <= width


@pytest.mark.parametrize("name", ["gpu", "cpu", "bare"])
def test_times_in_the_terminal_add_up(name: str) -> None:
    lines = in_terminal(CASES[name], 160).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("layer kind"))
    end = next(i for i, line in enumerate(lines) if i > start and line.startswith("busy"))
    times = [re.search(r" (\d\S* [nµm]?s)\b", line) for line in lines[start + 2 : end - 1]]
    total = sum(seconds_in(time.group(1)) for time in times if time)
    assert len(times) > 5
    assert all(times)
    assert total == pytest.approx(CASES[name][0][0].busy_s, rel=0.01)
    assert any("others" in line for line in lines)


def test_narrow_consoles_lose_columns_in_order_and_keep_path_and_time() -> None:
    def header(width: int) -> str:
        lines = in_terminal(CASES["gpu"], width).splitlines()
        return next(line for line in lines if line.startswith("layer kind"))

    assert all(column.header in header(160) for column in tables.LAYER_COLUMNS)
    assert "per repeat" not in header(100)
    assert "predicted" in header(100)
    assert "bound" in header(90)
    assert "±" in header(80)
    assert "efficiency" in header(80)
    assert "time" in header(47)
    for width in range(70, 161):  # columns go before a path becomes unreadable
        assert header(width).index("kind", len("layer kind")) >= terminal.NARROWEST_PATH + terminal.GAP, width


def test_the_terminal_says_what_matters() -> None:
    text = " ".join(in_terminal(CASES["gpu"], 100).split())
    report = CASES["gpu"][0][0]
    assert wording.headline(report) in text
    assert "spec.json and report.md name the document of each figure" in text
    assert "114 %" in text
    assert "wrong peak" in text
    assert "mixtral-8x7b" in text
    assert "out of memory" in text
    cpu = " ".join(in_terminal(CASES["cpu"], 80).split())
    assert "achieved peaks: no datasheet describes this device" in cpu
    assert "4 of 32 repeated layers" in cpu
    assert "and 4 more" in cpu
    assert "−1.44 ms" in cpu
    assert "\x1b" not in cpu, "no colour when piped"


def test_bars_of_the_waterfall_start_where_the_one_before_ends() -> None:
    report = samples.gpu_calibrated()
    rows = tables.waterfall_rows(report.waterfall, report.wall_s)
    bars = terminal._bars(rows, report.wall_s, 40)
    assert all(len(bar) <= 40 for bar in bars)
    for before, after in pairwise(bars[:-1]):
        assert abs(len(before) - (len(after) - len(after.lstrip()))) <= 1
    assert bars[-1] == "█" * 40
    assert "░" in "".join(terminal._bars(tables.waterfall_rows(samples.cpu().waterfall, 1.0), 1.0, 40))


@pytest.mark.parametrize("name", CASES)
def test_markdown_is_complete(name: str) -> None:
    reports, run, spec = CASES[name]
    text = markdown.render(reports, run, spec, samples.failed())
    for report in reports:
        assert "others" not in text
        for layer in report.layers:
            assert f"| `{layer.path or '(model)'}` | {layer.kind} |" in text
    assert "mixtral-8x7b" in text
    assert "needs 93.4 GB, the device has" in text
    assert run.environment.versions["torch"] in text


@pytest.mark.parametrize("name", ["gpu", "cpu", "bare"])
def test_rows_of_a_markdown_table_have_its_columns(name: str) -> None:
    reports, run, spec = CASES[name]
    text = markdown.render(reports, run, spec, samples.failed())
    for block in re.findall(r"(?:^\|.*\n?)+", text, flags=re.MULTILINE):
        counts = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(counts) == 1, block


def test_markdown_times_add_up_and_nulls_are_dashes() -> None:
    report = samples.no_peaks()
    text = markdown.render([report], samples.run("cpu"), samples.BARE)
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| `")][: len(report.layers)]
    assert sum(seconds_in(row[3]) for row in rows) == pytest.approx(report.busy_s, rel=0.005)
    assert {(row[6], row[7], row[8], row[9]) for row in rows} == {("–",) * 4}
    assert "No peaks of this device are known" in text


def test_markdown_says_how_the_times_were_taken() -> None:
    text = markdown.render([samples.gpu_calibrated(), samples.cpu()], samples.run(), samples.GPU)
    assert "clock: kernel timeline; caches: in situ; passes: 12 unprofiled, 12 profiled" in text
    assert "1 differences between the meta trace" in text
    assert "op 17: aten::copy\\_ ran" in text
    assert "7 parameters are not read in this phase: `model.layers.0.self_attn.unused_bias`" in text
    many = samples.cpu().model_copy(update={"inactive": tuple(f"p.{i}" for i in range(25))})
    assert "and 15 more" in markdown.render([many], samples.run(), samples.GPU)


def test_an_invalid_pass_says_so_everywhere() -> None:
    report = samples.gpu().model_copy(update={"status": "invalid", "reason": "idle is −3 % of the wall"})
    case = ([report], samples.run(), samples.GPU)
    shown = (" ".join(in_terminal(case, 80).split()), markdown.render(*case), html.render(*case))
    for text in shown:
        assert "invalid: idle is −3 % of the wall" in text


@pytest.mark.parametrize("name", CASES)
def test_html_is_whole_fetches_nothing_and_has_every_layer(name: str) -> None:
    reports, run, spec = CASES[name]
    text = html.render(reports, run, spec, samples.failed())
    page = Page()
    page.feed(text)
    page.close()
    assert page.open == []
    assert page.fetched == []
    assert not re.search(r"@import|url\(", "".join(page.styles))
    assert text.count("plotly.js v") == 1, "plotly.js is in the page once"
    words = "\n".join(page.words)
    for report in reports:
        assert wording.headline(report) in words
        assert all(fact.value in words for fact in wording.closure(report, run.environment.device_kind))
        for layer in report.layers:
            assert (layer.path or "(model)") in words
    assert "mixtral-8x7b" in words
    assert len(page.ids) == len(set(page.ids))
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)
    assert sum(name.startswith("roofline-") for name in page.ids) == len(reports)


def test_markup_in_names_is_shown_not_obeyed() -> None:
    report = samples.gpu().model_copy(update={"model": "<script>alert(1)</script>|x"})
    page = Page()
    page.feed(html.render([report], samples.run(), samples.GPU))
    assert "<script>alert(1)</script>|x" in "".join(page.words)
    assert "\\<script\\>" in markdown.render([report], samples.run(), samples.GPU)


def test_waterfall_chart_closes_on_the_wall() -> None:
    for report in (samples.gpu(), samples.gpu_calibrated(), samples.cpu(), samples.no_peaks()):
        bar = charts.waterfall_chart(report).data[0]
        assert sum(bar.x[:-1]) == pytest.approx(report.wall_s)
        assert bar.x[-1] == report.wall_s
        assert bar.base[0] == 0
        for i in range(1, len(bar.x) - 1):
            assert bar.base[i] == pytest.approx(bar.base[i - 1] + bar.x[i - 1])


def test_roofline_chart_has_the_roofs_of_the_spec_and_no_point_without_work() -> None:
    report = samples.gpu()
    figure = charts.roofline_chart(report, samples.GPU)
    roofs = [trace for trace in figure.data if trace.mode == "lines"]
    heights = {max(trace.y) for trace in roofs}
    assert {989e12, 794e12, 67e12, 55e12} <= heights
    slopes = {round(trace.y[0] / trace.x[0] / 1e12, 6) for trace in roofs if trace.y[0] != trace.y[1]}
    assert slopes == {12.0, 4.8, 7.1, 4.16}
    points = sum(len(trace.x) for trace in figure.data if trace.mode == "markers")
    assert points == sum(layer.matrix_flops + layer.vector_flops > 0 for layer in report.layers) < len(report.layers)
    bare = charts.roofline_chart(samples.no_peaks(), samples.BARE)
    assert all(trace.mode == "markers" for trace in bare.data)


def test_layer_chart_keeps_every_bar_apart() -> None:
    figure = charts.layer_chart(samples.many_layers())
    assert len(set(figure.data[0].y)) == charts.BARS
    assert [trace.name for trace in charts.layer_chart(samples.no_peaks()).data] == ["measured"]
