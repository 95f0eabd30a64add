"""The page of a report in a real browser, without a network: what a reader clicks, and what a link restores."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import suite_samples
from browser import Opened, draw
from report_runs import KERNEL, LAYERS, UP, stored

from calibrate.report.depth import depth_chart
from calibrate.report.document import Column, Document, Figure, Section, Text, table
from calibrate.report.html import MOST_ROWS, NAME, render
from calibrate.report.runs import report_document
from calibrate.report.suite import suite_document, suite_rows
from profiler.record.folder import RunFolder
from profiler.record.run import Cell, Run

Write = Callable[..., Path]
TABLE = "#pass-0 .table[data-tools]"


@pytest.fixture
def written(tmp_path: Path, run: Run, cell: Cell) -> Write:
    """Writes the page of a run of three layers; options are those of `stored`."""

    def write(**options: str) -> Path:
        path = tmp_path / "page.html"
        path.write_text(render(report_document([stored(tmp_path, run, cell, **options)])), encoding="utf-8")
        return path

    return write


def test_it_is_drawn_offline_in_both_themes_and_widths(written: Write, opened: Opened) -> None:
    path = written()
    assert path.stat().st_size < 8e6
    for width in (1280, 400):
        for scheme, background in (("light", "rgb(243, 245, 249)"), ("dark", "rgb(18, 22, 29)")):
            page = opened(path, width=width, scheme=scheme)
            assert draw(page) == 4  # waterfall, roofline, layers, depth
            assert page.evaluate("getComputedStyle(document.body).backgroundColor") == background
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing is wider than the page"
            plot = page.evaluate("getComputedStyle(document.querySelector('.plot .main-svg')).backgroundColor")
            assert (plot == "rgb(255, 255, 255)") == (scheme == "light")
            page.context.close()
    page = opened(path)
    page.get_by_role("button", name="Dark colours").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 22, 29)"


def test_a_table_sorts_filters_folds_and_hides_and_a_link_restores_it(written: Write, opened: Opened) -> None:
    path = written()
    page = opened(path)
    layers = page.locator("#pass-0 .table", has=page.get_by_role("columnheader", name="layer kind")).first

    def column(i: int) -> list[str]:
        return layers.locator(f"tbody tr td:nth-child({i})").all_inner_texts()

    assert column(1)[0] == UP  # 60 µs of products in three layers
    layers.get_by_role("button", name="×", exact=True).click()
    assert column(3) == sorted(column(3), key=float, reverse=True)
    layers.get_by_role("button", name="×", exact=True).click()
    assert column(3) == sorted(column(3), key=float)
    assert layers.locator("th").nth(2).get_attribute("aria-sort") == "ascending"
    layers.get_by_role("searchbox").fill("layers.*")
    assert len(column(1)) == 3 and all("layers.*" in name for name in column(1))
    layers.get_by_text("columns").click()
    layers.get_by_label("efficiency").uncheck()
    assert not layers.get_by_role("columnheader", name="efficiency").is_visible()
    layers.get_by_label("fold by layer").check()
    assert "model.layers.*.mlp" in column(1)
    shown, address = layers.inner_text(), page.evaluate("location.hash")
    again = opened(path, address)
    same = again.locator("#pass-0 .table", has=again.get_by_role("columnheader", name="layer kind")).first
    same.get_by_text("columns").click()
    assert same.inner_text() == shown
    assert same.get_by_role("searchbox").input_value() == "layers.*"


def test_a_click_leads_from_a_layer_to_its_kernels_and_its_command(written: Write, opened: Opened) -> None:
    page = opened(written())
    page.get_by_role("button", name=UP).first.click()
    panel = page.locator("#detail")
    words = panel.inner_text()
    assert KERNEL.format("matmul") in words and "60.0 µs" in words and "ideal + peak derate" in words
    assert "python -m profiler run example --phase prefill --batch 1 --prompt 4" in words
    assert panel.locator(".fall b").count() == 4
    address = page.evaluate("location.hash")
    page.keyboard.press("Escape")
    assert not panel.is_visible()
    assert page.evaluate("document.activeElement.textContent") == UP, "the focus goes back to where it was"
    assert opened(page_path(page), address).locator("#detail h3").inner_text() == f"{UP} matmul"


@pytest.mark.parametrize("name", ["roofline-0", "layers-0", "depth-0"])
def test_a_click_on_a_mark_opens_the_same(written: Write, opened: Opened, name: str) -> None:
    page = opened(written())
    draw(page)
    page.evaluate(
        """(name) => { const box = document.getElementById(name), at = (trace) => trace.ids ?? trace.meta?.keys ?? [];
            const data = box.data.find((trace) => at(trace).includes('model.layers.*.mlp.up matmul'));
            const place = at(data).indexOf('model.layers.*.mlp.up matmul');
            box.emit('plotly_click', { points: [{ data, pointNumber: data.type === 'heatmap' ? [place, 0] : place }] }); }""",
        name,
    )
    assert page.locator("#detail h3").inner_text() == f"{UP} matmul"
    page.locator("svg.block [data-key='lm_head matmul'], svg.block [data-key='model.layers.*.norm norm']").first.click()
    assert page.locator("#detail h3").inner_text() == "model.layers.*.norm norm"


def test_the_metric_is_chosen_once_and_stands_in_the_address(written: Write, opened: Opened) -> None:
    path = written()
    page = opened(path)
    draw(page)
    page.get_by_label("metric").select_option("efficiency")
    assert "metric=efficiency" in page.evaluate("location.hash")
    for one in (page, opened(path, "#metric=efficiency")):
        draw(one)
        visible = "document.getElementById('depth-0').data.filter((t) => t.visible === true).map((t) => t.meta.metric)"
        assert one.evaluate(visible) == ["efficiency"]


def test_depth_has_the_times_of_each_layer(tmp_path: Path, run: Run, cell: Cell) -> None:
    from calibrate.passes.reports import load_measured

    _, (measured,), _ = load_measured(RunFolder.open(stored(tmp_path, run, cell).path))
    chart = depth_chart(measured)
    traces = {trace.meta["metric"]: trace for trace in chart.data}
    rows = dict(zip(traces["measured"].meta["keys"], traces["measured"].z, strict=True))
    assert rows[f"{UP} matmul"] == pytest.approx([10e-6, 20e-6, 30e-6])
    assert rows["model.layers.*.norm norm"] == pytest.approx([1e-6, 2e-6, 3e-6])
    assert list(traces["measured"].x) == list(range(LAYERS))
    ideal = dict(zip(traces["ideal"].meta["keys"], traces["ideal"].z, strict=True))[f"{UP} matmul"]
    assert ideal[1] == pytest.approx(8e-6, rel=0.2)  # 8,000 FLOPs at 1 GFLOP/s


HOSTILE = [
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "\x1b]0;t\x07\u202e\x00",
    "n" * 10_000,
]


@pytest.mark.parametrize("bad", HOSTILE, ids=["script", "img", "control", "long"])
def test_hostile_names_are_text(written: Write, opened: Opened, bad: str) -> None:
    path = written(hostile="." + bad)
    page = opened(path)
    draw(page)
    page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    assert page.evaluate("document.querySelectorAll('img').length") == 0
    page.locator("#pass-0 .pick").first.click()
    shown = page.locator("#detail").inner_text()
    whole = page.locator("#detail h3").get_attribute("title") or ""
    if bad == HOSTILE[3]:
        assert whole.count("n") >= 10_000 and len(page.locator("#detail h3").inner_text()) < 2 * NAME
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    else:
        assert ("alert(1)" in shown) == ("alert(1)" in bad)
    assert not any(0 < ord(c) < 32 and c not in "\n\t" for c in shown + page.locator("main").inner_text())


def test_the_kernels_of_a_suite_lead_to_their_commands(tmp_path: Path, opened: Opened, run: Run) -> None:
    results = [
        *suite_samples.replicated("rms_norm", "eager", 2e-4, {"tokens": 4}, flops=1e6),
        *suite_samples.replicated("rms_norm", "torch", 1e-4, {"tokens": 4}, flops=1e6),
    ]
    path = tmp_path / "suite.html"
    spec = None
    path.write_text(render(suite_document(run, suite_rows(results, spec), spec)), encoding="utf-8")
    page = opened(path)
    page.locator(".pick").first.click()
    assert "python -m profiler kernels --family rms_norm" in page.locator("#detail pre").inner_text()


def test_no_text_ends_a_script(tmp_path: Path) -> None:
    import plotly.graph_objects as go

    bad = "</script><!--<script>"
    figure = Figure("f", lambda: go.Figure(go.Scatter(x=[1], y=[1], name=bad, text=[bad])), bad)
    text = render(Document(bad, (Section(bad, (Text(bad), figure), name="s"),)))
    inside = text.split("data-plot>")[1].split("</script>")[0]
    assert json.loads(inside)["data"][0]["name"] == bad
    assert bad not in text.replace("plotly", "")


def test_a_long_table_is_cut_and_says_so() -> None:
    columns = (Column[int]("n", str),)
    text = render(Document("d", (table(columns, range(MOST_ROWS + 1)),)))
    assert text.count("<tr>") == MOST_ROWS + 1  # with the header
    assert f"The first {MOST_ROWS:,} of {MOST_ROWS + 1:,} rows" in text


def page_path(page: object) -> Path:
    from urllib.parse import unquote, urlparse

    return Path(unquote(urlparse(page.url).path))  # type: ignore[attr-defined]
