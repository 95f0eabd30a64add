import io
import re

import predicted_samples as samples
import pytest
from graphs import GraphBuilder
from rich.console import Console

from calibrate.report.predicted import table
from roofline.predict.passes import Prediction
from roofline.workload import Workload

HOSTILE = "model.layers.0.[red]<script>\x1b[31m\nmlp"
UNIT_S = {"ns": 1e-9, "µs": 1e-6, "ms": 1e-3, "s": 1.0}


def shown(prediction: Prediction, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, no_color=True)
    table.render(prediction, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def llama(**fields: object) -> Prediction:
    return samples.prediction([samples.priced_pass(samples.block_graph())], **fields)


def hostile() -> Prediction:
    b = GraphBuilder(samples.DECODE)
    b.op("matmul", reads={"x": 8}, writes={"y": 8}, path=HOSTILE, matrix=1, dtype="bfloat16")
    step = samples.priced_pass(b.graph())
    return samples.prediction([step], model="[bold]x[/]", notes=("a\nb",), options={"k": "[i]"})


CASES = {
    "llama": llama(requests=(samples.request(), samples.request(fits=False, tpot_s=None))),
    "sweep": samples.sweep(),
    "hostile": hostile(),
    "empty": samples.prediction([]),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 120, 200])
def test_no_line_exceeds_the_console(name: str, width: int) -> None:
    assert max(map(len, shown(CASES[name], width).splitlines())) <= width


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
    text = " ".join(shown(llama()).split())
    assert re.search(r"decode b4 q1 ctx 512 bf16: \S+ ms, \S+ k tokens/s; waits for HBM [\d.]+ %", text)
    assert "of 141 GB" in text
    assert "memory: weights" in text
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
    assert sum(line.startswith("decode ") for line in text.splitlines()) == table.SWEEP_ROWS
    assert "50 more workloads" in text


def test_requests_and_mixed_batches_are_shown() -> None:
    parts = (Workload(batch=1, query_tokens=512, context_tokens=0, dtype="bfloat16"), samples.DECODE)
    step = samples.priced_pass(samples.block_graph(), workloads=parts)
    text = shown(samples.prediction([step], requests=(samples.request(fits=False),)), 120)
    assert "mixed: prefill b1 q512 ctx 0 bf16 + decode b4 q1 ctx 512 bf16" in text
    for header in ("TTFT", "TPOT", "end to end", "tokens/s"):
        assert header in text
    assert "! does not fit: needs 17.0 GB of 141 GB at the last token" in text


def test_names_are_text() -> None:
    text = shown(CASES["hostile"], 120)
    assert "[bold]x[/]" in text
    assert "\x1b" not in text
    assert "<script>" in text
