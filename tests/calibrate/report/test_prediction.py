"""The report of a prediction in every view, its plots, and the paper's table."""

import math
import re
from typing import Any

import predicted_samples as samples
import pytest
from graphs import GraphBuilder
from html_page import Page
from paper_samples import paper
from report_views import as_page, on_terminal

from calibrate.report import prediction_plots
from calibrate.report.prediction import SWEEP_ROWS, paper_document, prediction_document
from calibrate.report.prediction_rows import SERIES, kind_rows, on_roofline
from roofline.predict.passes import PassPrediction, Prediction
from roofline.workload import Workload

HOSTILE = 'model.layers.0.[red]<script>alert("x")</script>&amp;<b>\x1b[31m\nmlp'
PREFILL = Workload(batch=1, query_tokens=512, context_tokens=0, dtype="bfloat16")
UNIT_S = {"ns": 1e-9, "µs": 1e-6, "ms": 1e-3, "s": 1.0}


def page_of(prediction: Prediction) -> Page:
    return as_page(prediction_document(prediction, samples.PEAKS))


def shown(prediction: Prediction, width: int = 100) -> str:
    return on_terminal(prediction_document(prediction), width)


def llama(**fields: Any) -> Prediction:
    steps = [samples.priced_pass(samples.block_graph(workload=workload)) for workload in (PREFILL, samples.DECODE)]
    return samples.prediction(steps, requests=(samples.request(fits=False),), **fields)


def decoding(**fields: Any) -> Prediction:
    return samples.prediction([samples.priced_pass(samples.block_graph())], **fields)


def hostile() -> Prediction:
    b = GraphBuilder(samples.DECODE)
    b.op("matmul", reads={"x": 8}, writes={"y": 8}, path=HOSTILE, matrix=1e6, dtype="bfloat16")
    step = samples.priced_pass(b.graph())
    return samples.prediction([step], model="[bold]x[/]", notes=("a\nb",), options={"k": "[i]"})


CASES = {
    "llama": decoding(requests=(samples.request(), samples.request(fits=False, tpot_s=None))),
    "sweep": samples.sweep(),
    "hostile": hostile(),
    "empty": samples.prediction([]),
}


def drawn(prediction: Prediction) -> dict[str, Any]:
    names = ("batch_throughput", "length_latency", "latency_throughput")
    figures = {name: getattr(prediction_plots, name)(prediction) for name in names}
    return {name: figure for name, figure in figures.items() if figure is not None}


def on_its_roof(step: PassPrediction) -> None:
    figure = prediction_plots.roofline_chart(step, samples.prediction([step]), samples.PEAKS)
    places = [(x, y) for trace in figure.data if trace.mode == "markers" for x, y in zip(trace.x, trace.y, strict=True)]
    rows = on_roofline(step)
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
    page = page_of(llama())
    assert page.plots == 2  # a roofline a pass
    assert page.tags.count("svg") == 2
    assert {"pass-0", "pass-1", "roofline-0", "block-0-0"} <= set(page.ids)
    after = page.text.split("</script></head>")[1].rpartition("<script>")[0]  # without the script that sorts
    assert "NaN" not in after and "Infinity" not in after


def test_tables_have_every_kind_and_the_total() -> None:
    prediction = llama()
    rows = page_of(prediction).rows
    for step in prediction.passes:
        for kind in kind_rows(step):
            assert any(row[:2] == [kind.label, kind.kind] for row in rows)
    totals = [row for row in rows if row[0] == "total"]
    assert len(totals) == 2
    assert "100 %" in totals[0]
    assert any(row[-1] == "! no" for row in rows)  # the request
    header = next(row for row in rows if row[0] == "layer kind")
    assert header[-5:] == ["weight read", "act. read", "act. write", "KV read", "KV write"]
    assert {"FLOPs", "memory", "FLOP/B", "FLOP/s", "bound"} <= set(header)


def test_hostile_names_are_text_everywhere() -> None:
    bad = "</script><script>alert(1)</script>"
    prediction = hostile().model_copy(update={"model": bad, "hardware": bad, "notes": (bad,), "options": {bad: bad}})
    page = page_of(prediction)
    assert "alert(1)</script>" not in page.text and "<script>alert" not in page.text
    assert page.tags.count("script") == 2 + page.plots
    assert any('layers.*.[red]<script>alert("x")</script>&amp;<b>' in row[0] for row in page.rows if row)
    text = shown(CASES["hostile"], 120)
    assert "[bold]x[/]" in text and "<script>" in text


def test_predicted_points_lie_on_the_roof() -> None:
    for workload in (PREFILL, samples.DECODE, PREFILL.model_copy(update={"query_tokens": 8192})):
        on_its_roof(samples.priced_pass(samples.block_graph(workload=workload)))


def test_the_roofs_are_those_of_the_dtypes_that_ran() -> None:
    b = GraphBuilder(samples.DECODE)
    b.op("matmul", reads={"x": 8}, writes={"y": 8}, path="a", matrix=1e9, dtype="bfloat16")
    b.op("matmul", reads={"y": 8}, writes={"z": 8}, path="b", matrix=1e9, dtype="float8_e4m3fn")
    step = samples.priced_pass(b.graph())
    figure = prediction_plots.roofline_chart(step, samples.prediction([step], peaks="measured"), samples.PEAKS)
    heights = {max(trace.y) for trace in figure.data if trace.mode == "lines"}
    assert {989e12, 1979e12, 67e12} <= heights
    assert figure.data[0].name == "achieved peaks"
    sizes = [size for trace in figure.data if trace.mode == "markers" for size in trace.marker.size]
    shares = sorted(row.share or 0.0 for row in on_roofline(step))
    assert sorted(((size - 7) / 30) ** 2 for size in sizes) == pytest.approx(shares)


def test_sweep_plots_hold_the_workloads() -> None:
    prediction = samples.sweep(capacity=100e9)
    figures = drawn(prediction)
    assert list(figures) == ["batch_throughput", "length_latency", "latency_throughput"]
    batches = {trace.name: trace for trace in figures["batch_throughput"].data}
    assert {"decode, context 512", "decode, context 4096", "decode, context 32768"} <= set(batches)
    line = batches["decode, context 4096"]
    steps = [step for step in prediction.passes if step.workloads[0].context_tokens == 4096]
    assert list(line.x) == [2**i for i in range(9)]
    assert list(line.y) == [step.tokens_per_s for step in steps]
    assert [symbol.endswith("-open") for symbol in line.marker.symbol] == [step.fits is False for step in steps]
    lengths = {trace.name: trace for trace in figures["length_latency"].data}
    assert list(lengths["prefill, batch 1"].x) == [128, 1024, 8192]
    assert list(lengths["decode, batch 8"].x) == [512, 4096, 32768]
    points = [trace for trace in figures["latency_throughput"].data if trace.mode == "markers" and trace.x[0]]
    assert sum(len(trace.x) for trace in points) == len(prediction.passes)
    memory = [value for trace in points for value in trace.marker.color]
    assert sorted(memory) == pytest.approx(sorted(math.log10(step.memory.peak) for step in prediction.passes))
    assert any(trace.name == "does not fit" for trace in figures["latency_throughput"].data)


def test_a_single_workload_or_unknown_times_make_no_sweep_plot() -> None:
    assert drawn(samples.prediction([samples.swept(1, 512)])) == {}
    unknown = [samples.swept(b, 512).model_copy(update={"time_s": None}) for b in (1, 2, 4)]
    assert drawn(samples.prediction(unknown)) == {}
    page = page_of(samples.prediction(unknown))
    assert page.plots == 0
    assert len([row for row in page.rows if row[0].startswith("decode")]) == 3


def test_lines_that_cannot_be_told_apart_are_thinned_evenly() -> None:
    steps = [samples.swept(batch, 100 * i) for i in range(1, 41) for batch in (1, 2)]
    lines = [trace.name for trace in drawn(samples.prediction(steps))["batch_throughput"].data]
    assert len(lines) == SERIES
    assert (lines[0], lines[-1]) == ("decode, context 100", "decode, context 4000")


def test_ticks_are_round_and_within_the_values() -> None:
    found = drawn(samples.sweep())["length_latency"].layout.yaxis
    assert all(re.fullmatch(r"[125]0* [mµ]?s", text) for text in found.ticktext)
    assert len(found.tickvals) >= 3


def test_a_pass_that_does_not_fit_says_so_and_a_mixed_batch_is_shown() -> None:
    step = samples.priced_pass(samples.block_graph(), capacity=1e6, workloads=(PREFILL, samples.DECODE))
    page = page_of(samples.prediction([step], capacity_bytes=1e6))
    assert re.search(r'<p class="bad">! does not fit: needs \S+ GB of 1.00 MB<', page.text)
    assert "mixed: prefill b1 q512 ctx 0 bf16 + decode b4 q1 ctx 512 bf16" in page.words


@pytest.mark.parametrize("name", CASES)
def test_no_line_exceeds_the_console(name: str) -> None:
    for width in (20, 40, 60, 80, 100, 120, 200):
        shown(CASES[name], width)


def test_times_add_up_to_the_total() -> None:
    lines = shown(CASES["llama"], 120).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("layer kind"))
    end = next(i for i, line in enumerate(lines) if line.startswith("total"))
    found = [re.search(r" (\d\S*) ([nµm]?s)\b", line) for line in lines[start + 2 : end - 1]]
    assert len(found) > 5
    total = sum(float(time[1]) * UNIT_S[time[2]] for time in found if time)
    assert all(found)
    assert set(lines[end - 1]) == set(lines[start + 1]) == {"─"}
    assert total == pytest.approx(CASES["llama"].passes[0].time_s, rel=0.01)


def test_widths_keep_what_users_ask_for() -> None:
    def header(width: int) -> str:
        return next(line for line in shown(CASES["llama"], width).splitlines() if line.startswith("layer kind"))

    for column in ("kind", "×", "time", "share", "FLOPs", "memory", "FLOP/B", "FLOP/s", "bound"):
        assert column in header(120), column
    for column in ("kind", "time", "share", "FLOPs", "memory", "FLOP/B", "bound"):
        assert column in header(90), column
    for column in ("kind", "time", "share", "FLOPs", "memory", "bound"):
        assert column in header(80), column
    assert "model.layers.*.mlp.up_proj" in shown(CASES["llama"], 120)


def test_paths_that_repeat_keep_their_kinds() -> None:
    b = GraphBuilder(samples.DECODE)
    for kind in ("matmul", "pointwise"):
        b.op(kind, reads={"x": 8}, writes={"y": 8}, path="model.layers.0.mlp.experts.w", vector=1e9, dtype="bfloat16")
    text = shown(samples.prediction([samples.priced_pass(b.graph())]), 60)
    assert "matmul" in text
    assert "pointwise" in text


def test_the_headline_says_time_bound_and_memory() -> None:
    text = " ".join(shown(decoding()).split())
    assert re.search(r"decode b4 q1 ctx 512 bf16 ─+ \S+ ms, \S+ k tokens/s; share of time bound by HBM [\d.]+ %", text)
    assert "of 141 GB" in text
    assert "weights 16.7 GB 11.9 %" in text
    assert "!" not in text


def test_what_does_not_fit_is_flagged() -> None:
    step = samples.priced_pass(samples.block_graph(), capacity=1e6)
    text = " ".join(shown(samples.prediction([step], capacity_bytes=1e6)).split())
    assert re.search(r"! does not fit: needs \S+ GB of 1.00 MB", text)
    swept = shown(samples.sweep(capacity=20e9))
    assert "! no" in swept
    misfits = sum(step.fits is False for step in samples.sweep(capacity=20e9).passes)
    assert f"! {misfits} of 30 do not fit" in swept


def test_a_peak_that_is_not_known_is_named() -> None:
    b = GraphBuilder(samples.DECODE)
    b.op("matmul", reads={"x": 8}, writes={"y": 8}, path="a", matrix=1e6, dtype="int4")
    text = " ".join(shown(samples.prediction([samples.priced_pass(b.graph())])).split())
    assert "time –: no datasheet peak for matrix int4" in text


def test_a_sweep_has_a_row_a_workload_up_to_a_screenful() -> None:
    text = shown(samples.sweep(), 120)
    assert sum(line.startswith(("decode ", "prefill ")) for line in text.splitlines()) == 30
    many = samples.prediction([samples.swept(batch, 512) for batch in range(1, 251)])
    text = shown(many)
    assert sum(line.startswith("decode ") for line in text.splitlines()) == SWEEP_ROWS
    assert "50 more workloads" in text


def test_requests_and_mixed_batches_are_shown() -> None:
    parts = (Workload(batch=1, query_tokens=512, context_tokens=0, dtype="bfloat16"), samples.DECODE)
    step = samples.priced_pass(samples.block_graph(), workloads=parts)
    text = shown(samples.prediction([step], requests=(samples.request(fits=False),)), 120)
    assert "mixed: prefill b1 q512 ctx 0 bf16 + decode b4 q1 ctx 512 bf16" in text
    for header in ("TTFT", "TPOT", "end to end", "tokens/s"):
        assert header in text
    assert "! does not fit: needs 17.0 GB of 141 GB at the last token" in text


def test_the_papers_table_has_every_row_and_the_papers_totals() -> None:
    for width in (80, 120):
        text = on_terminal(paper_document(paper(), "llama-2-7b", "a6000"), width)
        assert all(row.name in text for row in paper().prefill.rows)
        assert all(figure in text for figure in ("28.751 T", "226.88 ms", "18.637 ms"))  # paper: 28.75 T, 226.9, 18.64
        assert "weights 16, activations 16" in text
