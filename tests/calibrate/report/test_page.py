"""The page of a report in a real browser, without a network: what a reader clicks, and what a link restores.

To read plotly.js takes a browser seconds, so that most tests share one page and put its address back.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import plotly.graph_objects as go
import pytest
import suite_samples
from browser import Browser, Locator, Opened, Page, draw, offline
from report_runs import KERNEL, LAYERS, UP, stored

from calibrate.passes.reports import load_measured
from calibrate.report.depth import depth_chart
from calibrate.report.document import Column, Document, Figure, Section, Text, table
from calibrate.report.html import MOST_ROWS, NAME, render
from calibrate.report.runs import report_document
from calibrate.report.suite import suite_document
from calibrate.report.suite_rows import suite_rows
from profiler.record.folder import RunFolder
from profiler.record.run import Run

UP_ROW = f"{UP} matmul"
CLICK = """(name) => {
  const box = document.getElementById(name), keys = (trace) => trace.ids ?? trace.meta?.keys ?? [];
  const data = box.data.find((trace) => keys(trace).includes('model.layers.*.mlp.up matmul'));
  const place = keys(data).indexOf('model.layers.*.mlp.up matmul');
  box.emit('plotly_click', { points: [{ data, pointNumber: data.type === 'heatmap' ? [place, 0] : place }] });
}"""
SHOWN = "document.getElementById('depth-0').data.filter((one) => one.visible === true).map((one) => one.meta.metric)"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run of three layers."""
    folder = stored(tmp_path_factory.mktemp("runs"))
    page = folder.path / "report.html"
    page.write_text(render(report_document([folder])), encoding="utf-8")
    return page


@pytest.fixture(scope="module")
def shared(browser: Browser, path: Path) -> Iterator[Page]:
    with offline(browser) as opened:
        yield opened(path)


@pytest.fixture
def page(shared: Page) -> Page:
    """The shared page as it is when its address says nothing."""
    go_to(shared, "")
    return shared


def go_to(page: Page, address: str) -> None:
    """Follow a link to another state of the page."""
    page.evaluate(
        "(address) => { history.replaceState(null, '', '#' + address); restore(); }", address.removeprefix("#")
    )


def layers_of(page: Page) -> Locator:
    return page.locator(".table", has=page.locator("th", has_text="predicted ±")).first


def column(table: Locator, i: int) -> list[str]:
    return table.locator(f"tbody tr td:nth-child({i})").all_inner_texts()


def test_it_is_drawn_in_both_themes_and_widths(page: Page, path: Path) -> None:
    assert path.stat().st_size < 8e6
    for width in (1280, 400):
        for scheme, background in (("light", "rgb(243, 245, 249)"), ("dark", "rgb(18, 22, 29)")):
            page.set_viewport_size({"width": width, "height": 900})
            page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
            assert draw(page) == 4  # waterfall, roofline, layers, depth
            assert page.evaluate("getComputedStyle(document.body).backgroundColor") == background
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing is wider than the page"
            plot = page.evaluate("document.getElementById('roofline-0').figure.theme")
            assert plot == scheme
    page.emulate_media(color_scheme="light")
    page.set_viewport_size({"width": 1280, "height": 900})
    page.get_by_role("button", name="Dark colours").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 22, 29)"
    page.get_by_role("button", name="Light colours").click()


def test_a_table_sorts_filters_folds_and_hides(page: Page, path: Path, opened: Opened) -> None:
    layers = layers_of(page)
    assert column(layers, 1)[0] == UP  # 60 µs of products in three layers
    times = layers.get_by_role("button", name="×", exact=True)
    times.click()
    assert column(layers, 3) == sorted(column(layers, 3), key=float, reverse=True)
    times.click()
    assert column(layers, 3) == sorted(column(layers, 3), key=float)
    assert layers.locator("th").nth(2).get_attribute("aria-sort") == "ascending"
    layers.get_by_role("searchbox").fill("layers.*")
    assert len(column(layers, 1)) == 4 and all("layers.*" in name for name in column(layers, 1))
    layers.locator("summary").click()
    layers.get_by_label("efficiency").uncheck()
    assert not layers.locator("th", has_text="efficiency").is_visible()
    layers.get_by_label("fold by layer").check()
    assert "model.layers.*.mlp" in column(layers, 1)
    names, address = column(layers, 1), page.evaluate("location.hash")
    go_to(page, "")
    assert len(column(layers, 1)) > 4
    again = opened(path, address)
    same = layers_of(again)
    assert column(same, 1) == names
    assert same.get_by_role("searchbox").input_value() == "layers.*"
    assert not same.locator("th", has_text="efficiency").is_visible()


def test_a_filter_pales_the_marks_of_the_rows_that_it_leaves_out(page: Page) -> None:
    draw(page)
    left = "document.getElementById('layers-0').data[0]"
    layers_of(page).get_by_role("searchbox").fill("mlp.up")
    assert page.evaluate(f"{left}.selectedpoints.map((i) => {left}.ids[i])") == [UP_ROW]
    go_to(page, "")
    assert page.evaluate(f"{left}.selectedpoints") is None


def test_a_click_leads_from_a_layer_to_its_kernels_and_its_command(page: Page) -> None:
    layers_of(page).get_by_role("button", name=UP).click()
    panel = page.locator("#detail")
    words = panel.inner_text()
    assert KERNEL.format("matmul") in words and "60.0 µs" in words and "ideal + peak derate" in words
    assert "python -m profiler run example --phase prefill --batch 1 --prompt 4" in words
    assert panel.locator(".fall b").count() >= 3
    address = page.evaluate("location.hash")
    page.keyboard.press("Escape")
    assert not panel.is_visible()
    assert page.evaluate("document.activeElement.textContent") == UP, "the focus goes back to where it was"
    go_to(page, address)
    assert panel.locator("h3").inner_text() == UP_ROW
    assert page.locator("tr[aria-selected=true]").count() == 1


def test_a_click_on_a_mark_opens_the_same(page: Page) -> None:
    draw(page)
    title = page.locator("#detail h3")
    for name in ("roofline-0", "layers-0", "depth-0"):
        go_to(page, "")
        page.evaluate(CLICK, name)
        assert title.inner_text() == UP_ROW, name
    page.locator("svg.block [data-key='model.layers.*.norm norm']").first.press("Enter")
    assert title.inner_text() == "model.layers.*.norm norm"


def test_the_metric_stands_in_the_address(page: Page) -> None:
    draw(page)
    assert page.evaluate(SHOWN) == ["measured"]
    page.locator("label select").select_option("efficiency")
    address = page.evaluate("location.hash")
    assert "metric=efficiency" in address and page.evaluate(SHOWN) == ["efficiency"]
    go_to(page, "")
    assert page.evaluate(SHOWN) == ["measured"]
    go_to(page, address)
    assert page.evaluate(SHOWN) == ["efficiency"]


def test_depth_has_the_times_of_each_layer(tmp_path: Path) -> None:
    (report,), (measured,), _ = load_measured(RunFolder.open(stored(tmp_path).path))
    traces = {trace.meta["metric"]: trace for trace in depth_chart(measured).data}
    rows = dict(zip(traces["measured"].meta["keys"], traces["measured"].z, strict=True))
    assert rows[UP_ROW] == pytest.approx([10e-6, 20e-6, 30e-6])
    assert rows["model.layers.*.norm norm"] == pytest.approx([1e-6, 2e-6, 3e-6])
    assert list(traces["measured"].x) == list(range(LAYERS))
    outside = [i for i, op in enumerate(measured.graph.ops) if "layers" not in op.path]
    for metric, rung, whole in (("measured", "measured", report.busy_s), ("ideal", "achieved", report.rungs.achieved)):
        inside = sum(value for row in traces[metric].z for value in row)
        assert inside + measured.table.rungs[rung][outside].sum() == pytest.approx(whole), metric
    shares = dict(zip(traces["efficiency"].meta["keys"], traces["efficiency"].z, strict=True))[UP_ROW]
    assert shares[0] == pytest.approx(2 * shares[1]), "the same work in half the time"


BAD = ("</script><script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "\x1b]0;t\x07\u202e\x00", "n" * 10_000)


def test_hostile_names_are_text(tmp_path: Path, opened: Opened) -> None:
    path = tmp_path / "page.html"
    path.write_text(render(report_document([stored(tmp_path, hostile="." + "".join(BAD))])), encoding="utf-8")
    page = opened(path)
    draw(page)
    assert page.evaluate("document.querySelectorAll('img, script:not([type])').length") == 2, "plotly.js and ours"
    page.locator(".pick").first.click()
    shown, whole = page.locator("#detail").inner_text(), page.locator("#detail h3").get_attribute("title") or ""
    assert "</script><script>alert(1)" in shown
    assert not {"\x1b", "\u202e", "\x07"} & set(shown + page.locator("main").inner_text())
    assert whole.count("n") >= 10_000 and '"><img src=x onerror=alert(1)>' in whole
    assert len(page.locator("#detail h3").inner_text()) <= NAME + 1
    assert max(map(len, page.locator(".pick").all_inner_texts())) <= NAME + 1
    for width in (1280, 400):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_kernels_of_a_suite_lead_to_their_commands(tmp_path: Path, opened: Opened, run: Run) -> None:
    results = [
        *suite_samples.replicated("rms_norm", "eager", 2e-4, {"tokens": 4}),
        *suite_samples.replicated("rms_norm", "torch", 1e-4, {"tokens": 4}),
    ]
    path = tmp_path / "suite.html"
    path.write_text(render(suite_document(run, suite_rows(results, None), None)), encoding="utf-8")
    page = opened(path)
    page.locator(".pick").first.click()
    assert "python -m profiler kernels --family rms_norm" in page.locator("#detail pre").inner_text()


def test_no_text_ends_a_script() -> None:
    bad = "</script><!--<script>"
    figure = Figure("f", lambda: go.Figure(go.Scatter(x=[1], y=[1], name=bad, text=[bad])), bad)
    text = render(Document(bad, (Section(bad, (Text(bad), figure), name="s"),)))
    inside = text.split("data-plot>")[1].split("</script>")[0]
    assert json.loads(inside)["data"][0]["name"] == bad
    assert bad not in text


def test_a_long_table_is_cut_and_says_so() -> None:
    text = render(Document("d", (table((Column[int]("n", str),), range(MOST_ROWS + 1)),)))
    assert text.count("<tr>") == MOST_ROWS + 1  # with the header
    assert f"The first {MOST_ROWS:,} of {MOST_ROWS + 1:,} rows" in text
