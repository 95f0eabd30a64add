import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import hardware_samples
import predicted_samples as samples
import pytest
from graphs import GraphBuilder
from paper_samples import paper

from calibrate.report.json import By, device_json, paper_json, prediction_json, write_csv
from calibrate.report.prediction_rows import bound_shares, fold, kind_rows, total_row
from roofline.graph.memory import footprint
from roofline.graph.op import Kind, Traffic
from roofline.predict.passes import Prediction
from roofline.workload import Workload

PREFILL = Workload(batch=1, query_tokens=512, context_tokens=0, dtype="bfloat16")


def llama() -> Prediction:
    steps = [samples.priced_pass(samples.block_graph(workload=workload)) for workload in (samples.DECODE, PREFILL)]
    return samples.prediction(steps, requests=(samples.request(),), notes=("uniform routing",))


def unknown() -> Prediction:
    """An operation in a dtype that has no peak."""
    b = GraphBuilder(samples.DECODE)
    b.op("matmul", reads={"x": 8}, writes={"y": 8}, path="a", matrix=1e6, dtype="int4")
    b.op("matmul", reads={"y": 8}, writes={"z": 8}, path="b", matrix=1e6, dtype="bfloat16")
    return samples.prediction([samples.priced_pass(b.graph())])


def table(prediction: Prediction, by: By) -> list[dict[str, str]]:
    file = io.StringIO(newline="")
    write_csv([prediction], file, by=by)
    return list(csv.DictReader(io.StringIO(file.getvalue())))


def numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [n for part in value.values() for n in numbers(part)]
    if isinstance(value, list):
        return [n for part in value for n in numbers(part)]
    return [value] if isinstance(value, float) else []


def test_the_document_has_the_keys_of_the_design() -> None:
    found = prediction_json(llama())
    assert set(found) == {
        "model", "hardware", "accounting", "peaks", "form", "parameters", "options", "capacity_bytes", "workloads",
        "requests", "memory", "largest_batch", "largest_context", "cache_tokens",
        "budget_bytes", "notes",
        "micro_batches", "acceptance", "pipeline_stages", "draft", "speculate", "decode_hardware",
    }  # fmt: skip
    step = found["workloads"][0]
    assert {key: step[key] for key in ("batch", "query_tokens", "context_tokens", "dtype", "phase")} == {
        "batch": 4, "query_tokens": 1, "context_tokens": 512, "dtype": "bfloat16", "phase": "decode",
    }  # fmt: skip
    assert set(step["total"]) == {
        "count", "matrix_flops", "vector_flops", "bytes", "link_bytes", "time_s", "wall_s", "tokens_per_s", "missing",
        "uncounted", "uncounted_share",
        "low_s", "high_s", "without_law", "beyond_law",
    }  # fmt: skip
    assert set(step["ops"][0]) == {
        "path", "name", "kind", "count", "dtype", "matrix_flops", "vector_flops", "bytes", "link_bytes", "time_s",
        "bound", "intensity", "dims", "also", "source", "low_s", "high_s", "counted",
    }  # fmt: skip
    assert set(step["memory"]) == {"weights", "kv_cache", "activations", "peak"}
    assert set(step["total"]["bytes"]) == set(Traffic.model_fields)


def test_operations_add_up_to_the_totals() -> None:
    for step in prediction_json(llama())["workloads"]:
        for key in ("count", "matrix_flops", "vector_flops", "time_s"):
            assert sum(op[key] for op in step["ops"]) == pytest.approx(step["total"][key])
        for name in Traffic.model_fields:
            assert sum(op["bytes"][name] for op in step["ops"]) == pytest.approx(step["total"]["bytes"][name])


def test_memory_is_that_of_the_largest_peak() -> None:
    small, large = samples.swept(1, 512), samples.swept(64, 4096)
    found = prediction_json(samples.prediction([large, small]))
    assert found["memory"] == large.memory.model_dump()
    assert prediction_json(samples.prediction([]))["memory"] is None


def test_a_mixed_batch_has_parts() -> None:
    step = samples.priced_pass(samples.block_graph(), workloads=(PREFILL, samples.DECODE))
    found = prediction_json(samples.prediction([step]))["workloads"][0]
    assert found["phase"] == "mixed"
    assert found["batch"] == 5
    assert [part["phase"] for part in found["parts"]] == ["prefill", "decode"]
    assert found["query_tokens"] is None


def test_only_finite_numbers_or_null() -> None:
    step = samples.swept(1, 512).model_copy(update={"time_s": math.inf, "matrix_flops": math.nan})
    for prediction in (samples.prediction([step]), unknown(), llama()):
        found = prediction_json(prediction)
        assert json.loads(json.dumps(found, allow_nan=False)) == found
        assert all(math.isfinite(number) for number in numbers(found))
    total = prediction_json(unknown())["workloads"][0]["total"]
    assert total["time_s"] is None
    assert total["missing"] == ["matrix int4"]


def test_kinds_fold_layers_and_add_up() -> None:
    step = llama().passes[0]
    rows = kind_rows(step)
    assert sum(row.time_s or 0.0 for row in rows) == pytest.approx(step.time_s)
    assert sum(row.flops for row in rows) == pytest.approx(step.matrix_flops + step.vector_flops)
    assert sum(row.bytes.total for row in rows) == pytest.approx(step.bytes.total)
    assert sum(row.count for row in rows) == step.count
    assert sum(row.share or 0.0 for row in rows) == pytest.approx(1)
    assert next(row for row in rows if row.path == "model.layers.*.mlp.up_proj").count == 32
    times = [row.time_s or 0.0 for row in rows]
    assert times == sorted(times, reverse=True)
    folded = fold(rows, step.time_s, keep=3)
    assert len(folded) == 4
    assert folded[-1].label == f"{len(rows) - 3} others"
    assert sum(row.time_s or 0.0 for row in folded) == pytest.approx(step.time_s)


def test_a_time_that_is_not_known_leads_and_makes_the_sum_unknown() -> None:
    step = unknown().passes[0]
    rows = kind_rows(step)
    assert [row.path for row in rows] == ["a", "b"]
    assert rows[0].time_s is None
    assert total_row(rows, "total", step.time_s).time_s is None
    assert bound_shares(step) == ((rows[1].bound, 1.0),)


@pytest.mark.parametrize("by", ["kind", "op"])
def test_csv_adds_up(by: By) -> None:
    prediction = llama()
    rows = table(prediction, by)
    for phase, step in zip(("decode", "prefill"), prediction.passes, strict=True):
        some = [row for row in rows if row["phase"] == phase]
        assert sum(float(row["time_s"]) for row in some) == pytest.approx(step.time_s)
        assert sum(float(row["matrix_flops"]) for row in some) == pytest.approx(step.matrix_flops)
        assert sum(float(row["weight_read_bytes"]) for row in some) == pytest.approx(step.bytes.weight_read)
        assert sum(float(row["share_of_pass"]) for row in some) == pytest.approx(1)


def test_csv_of_a_sweep_has_a_row_a_workload() -> None:
    prediction = samples.sweep()
    rows = table(prediction, "workload")
    assert len(rows) == len(prediction.passes)
    for row, step in zip(rows, prediction.passes, strict=True):
        assert float(row["time_s"]) == step.time_s
        assert float(row["peak_memory_bytes"]) == step.memory.peak
        assert row["fits"] == str(step.fits)
    with pytest.raises(ValueError, match="use by workload"):
        table(prediction, "op")
    with pytest.raises(ValueError, match="no table by 'layer'; use kind, op, workload"):
        table(prediction, "layer")  # type: ignore[arg-type]


def test_csv_keeps_any_name_in_its_cell() -> None:
    b = GraphBuilder(samples.DECODE)
    b.op("pointwise", reads={"x": 8}, writes={"y": 8}, path='a,"b\nc;d', vector=1)
    rows = table(samples.prediction([samples.priced_pass(b.graph())]), "op")
    assert [row["path"] for row in rows] == ['a,"b\nc;d']


def test_samples_are_what_the_roofline_says() -> None:
    graph = samples.block_graph()
    step = samples.priced_pass(graph)
    up = next(op for op in step.ops if op.path.endswith("up_proj"))
    assert up.time_s == pytest.approx(up.bytes.total / 4.8e12, rel=0.05)
    assert up.bound == "HBM"
    assert step.memory == footprint(graph)


@pytest.mark.parametrize("flash", [False, True])
def test_json_has_the_papers_own_figures_and_the_defaults_keys(flash: bool) -> None:
    result = paper(flash=flash)
    found = json.loads(json.dumps(paper_json(result, "llama-2-7b", "a6000"), allow_nan=False))
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
    prefill, decode = paper_json(paper(), "llama-2-7b", "a6000")["workloads"]
    assert (prefill["phase"], prefill["query_tokens"], prefill["context_tokens"]) == ("prefill", 2048, 0)
    assert (decode["phase"], decode["query_tokens"], decode["context_tokens"]) == ("decode", 1, 2048)


def test_memory_is_that_of_the_phase_that_needs_most() -> None:
    result = paper()
    memory = paper_json(result, "llama-2-7b", "a6000")["memory"]
    assert sum(memory.values()) == max(p.total.memory_consumption for p in (result.prefill, result.decode))
    assert memory["kv_cache"] == 2 * 32 * 4096 * 2048 * 2


def test_products_are_matrix_work_and_nothing_else_is() -> None:
    rows = paper_json(paper(), "llama-2-7b", "a6000")["workloads"][0]["ops"]
    others = {op["name"] for op in rows if op["matrix_flops"] == 0}
    assert others == {"softmax", "attn_norm", "mlp_norm", "attn_add", "mlp_add", "mlp_act"}
    assert {op["name"] for op in rows if op["vector_flops"]} == others


@pytest.mark.parametrize("sample", [hardware_samples.cpu(), hardware_samples.gpu()], ids=["cpu", "gpu"])
def test_a_characterisation_has_every_figure(sample: hardware_samples.Sample) -> None:
    spec, measurements, run = sample
    made = device_json(Path("spec.json"), spec, measurements, run)
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
