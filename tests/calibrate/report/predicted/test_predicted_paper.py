"""The paper's table as JSON and on the terminal: nothing is lost, and the default's keys hold the same figures."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from calibrate.report.predicted.paper import document, render
from roofline.graph.op import Kind
from roofline.hardware.spec import HardwareSpec
from roofline.paper.rules import PaperShape
from roofline.paper.table import PaperResult, paper_table

DATA = Path(__file__).parents[3] / "data" / "paper"
SHAPE = PaperShape(hidden=4096, intermediate=11008, layers=32, heads=32, kv_heads=32, vocabulary=32000)


def table(*, flash: bool = False, weights: int = 16) -> PaperResult:
    spec = HardwareSpec.model_validate_json((DATA / "llm-viewer-a6000.json").read_text("utf-8"))
    assert spec.datasheet is not None
    return paper_table(SHAPE, spec.datasheet, 1, 2048, weights, 16, 16, use_flash=flash)


@pytest.mark.parametrize("flash", [False, True])
def test_json_has_the_papers_own_figures_and_the_defaults_keys(flash: bool) -> None:
    result = table(flash=flash)
    found = json.loads(json.dumps(document(result, "llama-2-7b", "a6000"), allow_nan=False))
    assert (found["model"], found["hardware"], found["accounting"]) == ("llama-2-7b", "a6000", "paper")
    assert (found["batch"], found["seqlen"], found["flash"]) == (1, 2048, flash)
    for step, phase in zip(found["workloads"], (result.prefill, result.decode), strict=True):
        for op, row in zip(step["ops"], phase.rows, strict=True):
            assert {name: op[name] for name in row.model_dump()} == row.model_dump()
            assert op["matrix_flops"] + op["vector_flops"] == row.OPs * row.count
            assert sum(op["bytes"].values()) == pytest.approx(row.memory_access * row.count)
            assert op["time_s"] == row.inference_time * row.count
            assert op["kind"] in {kind.value for kind in Kind}
        total = step["total"]
        assert sum(op["time_s"] for op in step["ops"]) == pytest.approx(total["time_s"])
        assert total["time_s"] == total["inference_time"]
        assert sum(total["bytes"].values()) == pytest.approx(total["memory_access"])
        assert sum(op["matrix_flops"] + op["vector_flops"] for op in step["ops"]) == pytest.approx(total["OPs"])


def test_sizes_of_both_phases() -> None:
    prefill, decode = document(table(), "llama-2-7b", "a6000")["workloads"]
    assert (prefill["phase"], prefill["query_tokens"], prefill["context_tokens"]) == ("prefill", 2048, 0)
    assert (decode["phase"], decode["query_tokens"], decode["context_tokens"]) == ("decode", 1, 2048)


def test_memory_is_that_of_the_phase_that_needs_most() -> None:
    result = table()
    memory = document(result, "llama-2-7b", "a6000")["memory"]
    assert sum(memory.values()) == max(p.total.memory_consumption for p in (result.prefill, result.decode))
    assert memory["kv_cache"] == 2 * 32 * 4096 * 2048 * 2


def test_products_are_matrix_work_and_nothing_else_is() -> None:
    rows = document(table(), "llama-2-7b", "a6000")["workloads"][0]["ops"]
    others = {op["name"] for op in rows if op["matrix_flops"] == 0}
    assert others == {"softmax", "attn_norm", "mlp_norm", "attn_add", "mlp_add", "mlp_act"}
    assert {op["name"] for op in rows if op["vector_flops"]} == others


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_has_every_row_and_the_papers_totals(width: int) -> None:
    out = io.StringIO()
    render(table(), "llama-2-7b", "a6000", Console(file=out, width=width))
    shown = out.getvalue()
    for row in table().prefill.rows:
        assert row.name in shown
    assert all(figure in shown for figure in ("28.751 T", "226.88 ms", "18.637 ms"))  # the paper: 28.75 T, 226.9, 18.64
    assert all(len(line) <= width for line in shown.splitlines())
    assert "weights 16, activations 16" in shown
