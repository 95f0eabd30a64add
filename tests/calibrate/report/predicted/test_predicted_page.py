import math
import re
from html.parser import HTMLParser
from typing import Any

import predicted_samples as samples
import pytest
from graphs import GraphBuilder

from calibrate.report.predicted import kinds, page, plots
from roofline.predict.passes import PassPrediction, Prediction
from roofline.workload import Workload

HOSTILE = 'model.layers.0.<script>alert("x")</script>&amp;<b>'
PREFILL = Workload(batch=1, query_tokens=512, context_tokens=0, dtype="bfloat16")


class Page(HTMLParser):
    """Tags, ids, the cells of tables, and links out of the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.rows: list[list[str]] = []
        self.links: list[str] = []
        self._cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._cell = True

    def handle_endtag(self, tag: str) -> None:
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.rows[-1][-1] += data


def llama(**fields: Any) -> Prediction:
    steps = [samples.priced_pass(samples.block_graph(workload=workload)) for workload in (PREFILL, samples.DECODE)]
    return samples.prediction(steps, requests=(samples.request(fits=False),), **fields)


def drawn(prediction: Prediction) -> dict[str, Any]:
    return {name: figure for name, _, figure in plots.sweep_plots(prediction)}


def on_its_roof(step: PassPrediction) -> None:
    figure = plots.roofline_chart(step, samples.prediction([step]), samples.PEAKS)
    places = [(x, y) for trace in figure.data if trace.mode == "markers" for x, y in zip(trace.x, trace.y, strict=True)]
    rows = plots.on_roofline(step)
    assert len(places) == len(rows) > 0
    peak = max(figure.value for figure in samples.PEAKS.matrix.values())
    vector = samples.PEAKS.vector["float32"].value
    for row in rows:
        x, y = row.intensity or 0.0, row.flops_per_s or 0.0
        assert any((x, y) == pytest.approx(place) for place in places)
        if row.bound == "HBM" and row.time_s:
            assert y / x * (1 + 1e-9) >= 4.8e12  # a part may come from a faster level
            assert y / x <= 12e12 * (1 + 1e-9)
        if row.bound == "matrix" and not row.vector_flops:
            assert y == pytest.approx(samples.PEAKS.matrix[row.dtype].value)
        assert y <= peak + vector


def test_the_page_opens_offline_and_is_whole() -> None:
    text = page.render(llama(), samples.PEAKS)
    found = Page(text)
    assert text.count("Plotly.newPlot(") == 2  # a roofline a pass
    assert found.tags.count("svg") == 2
    assert all(link.startswith("#") for link in found.links)
    assert "import" not in found.tags
    assert len(found.ids) == len(set(found.ids))
    assert {"pass-0", "pass-1", "roofline-0", "block-0-0"} <= set(found.ids)
    assert {link[1:] for link in found.links} <= set(found.ids)
    assert "NaN" not in text.split("</script></head>")[1]
    assert "Infinity" not in text.split("</script></head>")[1].replace("-Infinity", "")  # the sorting script's


def test_tables_have_every_kind_and_the_total() -> None:
    prediction = llama()
    rows = Page(page.render(prediction, samples.PEAKS)).rows
    for step in prediction.passes:
        for kind in kinds.kind_rows(step):
            assert any(row[:2] == [kind.label, kind.kind] for row in rows)
    totals = [row for row in rows if row[0] == "total"]
    assert len(totals) == 2
    assert "100 %" in totals[0]
    assert any(row[-1] == "! no" for row in rows)  # the request
    header = next(row for row in rows if row[0] == "layer kind")
    assert header[-5:] == ["weight read", "act. read", "act. write", "KV read", "KV write"]
    assert {"FLOPs", "memory", "FLOP/B", "FLOP/s", "bound"} <= set(header)


def test_hostile_names_are_text_everywhere() -> None:
    b = GraphBuilder(samples.DECODE)
    b.op("matmul", reads={"x": 8}, writes={"y": 8}, path=HOSTILE, matrix=1e6, dtype="bfloat16")
    step = samples.priced_pass(b.graph())
    bad = "</script><script>alert(1)</script>"
    prediction = samples.prediction([step], model=bad, hardware=bad, notes=(bad,), options={bad: bad})
    text = page.render(prediction, samples.PEAKS)
    plain = page.render(samples.prediction([step.model_copy(update={"ops": ()})]), samples.PEAKS)
    assert "alert(1)</script>" not in text
    assert "<script>alert" not in text
    scripts = Page(text).tags.count("script") - Page(plain).tags.count("script")
    assert scripts == text.count("Plotly.newPlot(")
    assert HOSTILE.replace("layers.0", "layers.*") in [row[0] for row in Page(text).rows if row]


def test_predicted_points_lie_on_the_roof() -> None:
    for workload in (PREFILL, samples.DECODE, PREFILL.model_copy(update={"query_tokens": 8192})):
        on_its_roof(samples.priced_pass(samples.block_graph(workload=workload)))


def test_the_roofs_are_those_of_the_dtypes_that_ran() -> None:
    b = GraphBuilder(samples.DECODE)
    b.op("matmul", reads={"x": 8}, writes={"y": 8}, path="a", matrix=1e9, dtype="bfloat16")
    b.op("matmul", reads={"y": 8}, writes={"z": 8}, path="b", matrix=1e9, dtype="float8_e4m3fn")
    step = samples.priced_pass(b.graph())
    figure = plots.roofline_chart(step, samples.prediction([step], peaks="measured"), samples.PEAKS)
    heights = {max(trace.y) for trace in figure.data if trace.mode == "lines"}
    assert {989e12, 1979e12, 67e12} <= heights
    assert figure.data[0].name == "achieved peaks"
    sizes = [size for trace in figure.data if trace.mode == "markers" for size in trace.marker.size]
    shares = sorted(row.share or 0.0 for row in plots.on_roofline(step))
    assert sorted(((size - 7) / 30) ** 2 for size in sizes) == pytest.approx(shares)


def test_sweep_plots_hold_the_workloads() -> None:
    prediction = samples.sweep(capacity=100e9)
    figures = drawn(prediction)
    assert list(figures) == ["batch-throughput", "length-latency", "latency-throughput"]
    batches = {trace.name: trace for trace in figures["batch-throughput"].data}
    assert {"decode, context 512", "decode, context 4096", "decode, context 32768"} <= set(batches)
    line = batches["decode, context 4096"]
    steps = [step for step in prediction.passes if step.workloads[0].context_tokens == 4096]
    assert list(line.x) == [2**i for i in range(9)]
    assert list(line.y) == [step.tokens_per_s for step in steps]
    assert [symbol.endswith("-open") for symbol in line.marker.symbol] == [step.fits is False for step in steps]
    lengths = {trace.name: trace for trace in figures["length-latency"].data}
    assert list(lengths["prefill, batch 1"].x) == [128, 1024, 8192]
    assert list(lengths["decode, batch 8"].x) == [512, 4096, 32768]
    points = [trace for trace in figures["latency-throughput"].data if trace.mode == "markers" and trace.x[0]]
    assert sum(len(trace.x) for trace in points) == len(prediction.passes)
    memory = [value for trace in points for value in trace.marker.color]
    assert sorted(memory) == pytest.approx(sorted(math.log10(step.memory.peak) for step in prediction.passes))
    assert any(trace.name == "does not fit" for trace in figures["latency-throughput"].data)


def test_a_single_workload_or_unknown_times_make_no_sweep_plot() -> None:
    assert drawn(samples.prediction([samples.swept(1, 512)])) == {}
    unknown = [samples.swept(b, 512).model_copy(update={"time_s": None}) for b in (1, 2, 4)]
    assert drawn(samples.prediction(unknown)) == {}
    text = page.render(samples.prediction(unknown), samples.PEAKS)
    assert "Plotly.newPlot(" not in text
    assert len([row for row in Page(text).rows if row[0].startswith("decode")]) == 3


def test_lines_that_cannot_be_told_apart_are_thinned_evenly() -> None:
    steps = [samples.swept(batch, 100 * i) for i in range(1, 41) for batch in (1, 2)]
    lines = [trace.name for trace in drawn(samples.prediction(steps))["batch-throughput"].data]
    assert len(lines) == plots.SERIES
    assert (lines[0], lines[-1]) == ("decode, context 100", "decode, context 4000")


def test_ticks_are_round_and_within_the_values() -> None:
    found = drawn(samples.sweep())["length-latency"].layout.yaxis
    assert all(re.fullmatch(r"[125]0* [mµ]?s", text) for text in found.ticktext)
    assert len(found.tickvals) >= 3


def test_a_pass_that_does_not_fit_says_so_and_a_mixed_batch_is_shown() -> None:
    step = samples.priced_pass(samples.block_graph(), capacity=1e6, workloads=(PREFILL, samples.DECODE))
    text = page.render(samples.prediction([step], capacity_bytes=1e6), samples.PEAKS)
    assert re.search(r'class="verdict">! does not fit: needs \S+ GB of 1.00 MB<', text)
    assert "mixed: prefill b1 q512 ctx 0 bf16 + decode b4 q1 ctx 512 bf16" in text
