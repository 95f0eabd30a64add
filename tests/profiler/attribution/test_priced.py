"""Kernels of recorded timelines against predictions: rows of layers, parts of steps, and amounts worked out by hand."""

from pathlib import Path

import pytest

from profiler.attribution.engine import read_ranks
from profiler.attribution.priced import OTHERS, doubt_of, layer_kinds, layer_rows, part_rows, workloads_of
from profiler.models.recorded import Recorded
from profiler.record.engine_trace import LayerRow, StepRow
from roofline.hardware.load import load_device
from roofline.serving.predict import OWN, EngineStep, Own
from roofline.workload import Workload

TIMELINES = Path(__file__).parents[2] / "data" / "timelines"
H100 = load_device("nvidia-h100-sxm")


def layers(name: str) -> tuple[float, dict[str, LayerRow]]:
    (rank,) = read_ranks(TIMELINES / name, lambda kernels: layer_rows(kernels, H100, Recorded()))
    return rank.closure.window_s, {row.path: row for row in rank.layers}


def test_layers_of_an_eager_prefill() -> None:
    window_s, rows = layers("h100_eager_qwen.json.gz")
    assert sum(row.measured_s for row in rows.values()) == pytest.approx(window_s, rel=1e-9)
    assert sum(row.unpriced_s for row in rows.values()) < 0.01 * window_s
    up = rows["Qwen2Model/Qwen2DecoderLayer.*/Qwen2MLP/Linear.1"]  # of Qwen1.5-0.5B: 1024 to 2816, for 16 × 559 tokens
    assert H100.datasheet is not None
    peak = H100.datasheet.matrix["bfloat16"].value
    assert up.calls and up.ideal_s == pytest.approx(up.calls * 2 * 16 * 559 * 1024 * 2816 / peak, rel=1e-6)
    started = up.ideal_s + up.calls * 2e-6
    assert up.predicted_s == pytest.approx(started) and up.source == "roofline" and up.bound == "matrix"
    norm = rows["Qwen2Model/Qwen2DecoderLayer.*/Qwen2RMSNorm.1"]
    assert norm.ideal_s is not None and norm.predicted_s == pytest.approx(norm.ideal_s / 0.8 + norm.calls * 2e-6)
    assert up.error is not None and -0.5 < up.error < 0  # no H100 is faster than its datasheet
    assert all(row.ideal_s is None or row.ideal_s < row.measured_s for row in rows.values())


def test_layers_of_an_engine_have_prices_for_its_own_operators() -> None:
    window_s, rows = layers("sglang_prefill.json.gz")
    assert sum(row.unpriced_s for row in rows.values()) < 0.03 * window_s
    attention = next(row for path, row in rows.items() if path.endswith("RadixAttention"))
    assert attention.predicted_s is not None and attention.unpriced_s == 0


def test_kernels_of_a_graph_have_no_operator() -> None:
    window_s, rows = layers("vllm_decode_graph.json.gz")
    assert sum(row.unpriced_s for row in rows.values()) > 0.5 * window_s


def test_layers_of_one_kind_are_one_row() -> None:
    calls = [
        ["M_0", "Layer_0", "Attention_0", "Linear_0"], ["M_0", "Layer_0", "Attention_0", "Linear_1"],
        ["M_0", "Layer_0", "Norm_0"], ["M_0", "Layer_1", "Attention_1", "Linear_2"],
        ["M_0", "Layer_1", "Attention_1", "Linear_3"], ["M_0", "Layer_1", "Norm_1"], ["M_0", "Norm_2"], [],
    ]  # fmt: skip
    assert layer_kinds(calls) == [
        "M/Layer.*/Attention/Linear.0", "M/Layer.*/Attention/Linear.1", "M/Layer.*/Norm",
        "M/Layer.*/Attention/Linear.0", "M/Layer.*/Attention/Linear.1", "M/Layer.*/Norm", "M/Norm", "(no module)",
    ]  # fmt: skip


def step(sizes: dict[str, float], kinds: dict[str, float], attentions: int = 4) -> StepRow:
    return StepRow(
        name="s", source="vLLM", sizes=sizes, host_s=None, kernels=9, kernel_s=9.0, start_s=0.0, span_s=9.0, busy_s=9.0,
        kinds=kinds, calls={"attention": attentions},
    )  # fmt: skip


def test_parts_of_steps_add_up_and_are_compared() -> None:
    sizes = {"decode_sequences": 4.0, "decode_tokens": 4.0, "decode_context": 404.0}
    sizes |= {"prefill_sequences": 2.0, "prefill_tokens": 20.0, "prefill_context": 60.0}
    kinds = {"matmul": 3.0, "attention": 2.0, "norm": 1.0, "rope": 0.5, "routing": 0.25}
    measured = step(sizes, kinds)
    assert workloads_of(measured) == (
        Workload(batch=2, query_tokens=10, context_tokens=20, dtype="bfloat16"),
        Workload(batch=4, query_tokens=1, context_tokens=100, dtype="bfloat16"),
    )
    predicted = EngineStep(workloads_of(measured))
    predicted.parts_s |= {"products": 2.4, "decode_attention": 0.5, "prefill_attention": 1.0, "moved": 0.75}
    predicted.own = {name: Own(0.125, 0.1, 0.2, 1.0) for name in OWN}
    rows = {row.part: row for row in part_rows([measured, measured], [predicted, predicted])}
    assert sum(row.measured_s for row in rows.values()) == pytest.approx(2 * sum(kinds.values()))
    assert rows["products with weights"].error == pytest.approx(2.4 / 3 - 1)
    assert rows["attention"].predicted_s == 2 * 1.5
    assert (rows[OTHERS].measured_s, rows[OTHERS].predicted_s) == (2 * 1.5, 2 * (0.75 + 0.25))  # both kinds of starts
    assert rows["experts"].predicted_s == 0 and rows["experts"].error == -1


def test_a_step_without_sizes_has_no_workload_and_another_model_is_noticed() -> None:
    assert workloads_of(step({}, {})) == ()
    assert workloads_of(step({"decode_sequences": 4.0, "decode_tokens": 4.0, "decode_context": 2.0}, {})) == ()
    assert doubt_of([step({}, {}, 72)], "m", 36) is None  # two kernels a layer
    doubt = doubt_of([step({}, {}, 72), step({}, {}, 36)], "m", 24)
    assert doubt is not None and "36 attention kernels" in doubt and "24 layers" in doubt
