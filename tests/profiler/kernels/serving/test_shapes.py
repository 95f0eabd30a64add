"""The kernels of models' steps, and suites as files."""

import json
from pathlib import Path

import pytest

from profiler.kernels.serving.families import FAMILIES, family_named
from profiler.kernels.serving.shapes import Point, Suite, kernels, model_step, suite_named, wanted_of
from profiler.models.graphs import Tracing, model_graphs, model_source
from profiler.record.run import RequestError
from roofline.graph.linear import linear_of
from roofline.graph.op import Kind
from roofline.whatif.registry import WhatIf
from roofline.workload import Workload

DECODE = Workload(batch=8, query_tokens=1, context_tokens=1024, dtype="bfloat16")


def test_a_decode_step_of_llama_on_two_ranks() -> None:
    """By its config: 32 heads of 128, 8 for keys and values, 4096 wide, 14336 inside, 128256 tokens; half on a rank."""
    step = model_step("llama-3.1-8b", DECODE, tp=2)
    made = {family.name: [dict(dims) for dims in family.shapes(step)] for family in FAMILIES}
    products = [(2048, 4096), (512, 4096), (4096, 2048), (7168, 4096), (4096, 7168), (64128, 4096)]
    assert made["linear"] == [{"m": 8, "n": n, "k": k} for n, k in products]
    heads = {"heads": 16, "kv_heads": 4, "head_dim": 128}
    sizes = {"batch": 8, "query": 1, "kv": 1025, "window": 0, "softcap": 0, "spread": 0}
    assert made["decode_attention_paged"] == [sizes | heads]
    assert made["rope_kv_append"] == [{"tokens": 8} | heads]
    assert made["rms_norm_residual"] == [{"rows": 8, "width": 4096}]
    assert made["swiglu"] == [{"rows": 8, "width": 7168}]
    assert made["all_reduce"] == [{"rows": 8, "width": 4096, "ranks": 2}]
    assert made["sample_top_p"] == [{"rows": 8, "vocabulary": 128256}]
    for absent in ("prefill_attention", "experts", "router", "decode_mla_paged", "geglu", "layer_norm"):
        assert made[absent] == [], absent


@pytest.mark.parametrize(
    ("model", "tp"), [("gpt2", 1), ("gpt-oss-20b", 2), ("deepseek-v2-lite", 2), ("granite-4.0-h-small", 1)]
)
def test_products_are_those_that_predict_prices(model: str, tp: int) -> None:
    """Of all layers, at the whole context: a dense model, experts, latent attention, and state spaces."""
    graphs, _ = model_graphs(model, Tracing(dtype="bfloat16"))
    changes = [WhatIf("tensor_parallel", {"degree": tp, "link": "nvlink"})] if tp > 1 else []
    graph = model_source(graphs, changes, "executed").whole(DECODE)
    weighted = [op for i, op in enumerate(graph.ops) if op.kind is Kind.MATMUL and linear_of(graph, i) is not None]
    products = {tuple(op.dims[name] for name in "mnk") for op in weighted}
    expanded = {row for row in products if row[0] > DECODE.batch}  # latents, which absorbed attention does not expand
    step = model_step(model, DECODE, tp)
    assert {*step.products, *(router[:3] for router in step.routers)} >= products - expanded
    assert {*step.products} <= products and bool(expanded) == bool(step.latent)
    grouped = [op for op in graph.ops if op.kind is Kind.GROUPED_MATMUL and op.routing is not None]
    assert {row[3:] for row in step.grouped} == {(op.dims["n"], op.dims["k"]) for op in grouped}
    assert {a.window for a in step.attention} == {
        module.window or 0 for module in graph.attention_modules
    } or step.latent
    if model == "gpt2":
        assert step.norms == (("layer_norm", 8, 768),)


def test_experts_latents_windows_and_states() -> None:
    step = model_step("deepseek-v2-lite", DECODE, tp=2)
    assert step.latent == ((8, 512, 64),) and not step.attention
    assert step.routers == ((8, 64, 2048, 6),)
    assert step.grouped == ((64, 6, 8, 1408, 2048), (64, 6, 8, 2048, 704))
    assert all(m == 8 for m, _, _ in step.products)  # nothing expanded over the context
    gemma = model_step("gemma-2-2b", DECODE)
    assert [(a.window, a.softcap) for a in gemma.attention] == [(4096, 50), (0, 50)]
    assert gemma.gates == (("geglu", 8, 9216),)
    attention = [dims["window"] for dims in family_named("decode_attention").shapes(gemma)]
    assert attention == [0, 0], "a window beyond the context is none"
    granite = model_step("granite-4.0-h-small", DECODE)
    assert granite.state_spaces == ((128, 64, 128),) and granite.convolutions == ((8448, 4),)


def test_equal_shapes_of_several_models_are_one_kernel() -> None:
    steps = [model_step(name, DECODE) for name in ("llama-3.1-8b", "qwen3-8b")]
    made = kernels(steps, "bfloat16", [family_named("rms_norm"), family_named("linear_int4_weights")])
    shared = [each for each in made if len(each.models) == 2]
    assert shared and all("llama-3.1-8b" in each.models[0] and "qwen3-8b" in each.models[1] for each in shared)
    assert len({each.key for each in made}) == len(made)
    assert {each.dtype for each in made} == {"bfloat16", "int4_wo"}


def test_the_smoke_suite_has_every_family_that_one_process_runs() -> None:
    made = wanted_of(suite_named("smoke"))
    assert {each.family.name for each in made} >= {family.name for family in FAMILIES if family.ranks == 1}
    assert len(made) <= 3 * len(FAMILIES)
    largest = max(float(each.family.work(each.dims, each.dtype).bytes) for each in made)
    assert largest < 1 << 30


def test_a_group_adds_the_families_that_it_names_and_the_middle_shape_is_kept(tmp_path: Path) -> None:
    decode = {"phase": "decode", "batch": [1, 2, 4], "context": [64]}
    groups = [
        {"models": ["gpt2"], "points": [decode], "families": ["layer_norm"]},
        {"models": ["smollm2-135m"], "points": [decode], "families": ["rms_norm"]},
    ]
    own = tmp_path / "own.json"
    own.write_text(json.dumps({"title": "mine", "groups": groups, "shapes_of_a_family": 1}))
    assert [each.key for each in wanted_of(suite_named(str(own)))] == [
        "rms_norm-bfloat16-rows2-width576",
        "layer_norm-bfloat16-rows2-width768",
    ]


def test_suites_are_files_of_this_package_or_of_a_user(tmp_path: Path) -> None:
    for name in ("smoke", "serving", "full"):
        assert suite_named(name).groups
    own = tmp_path / "own.json"
    point = {"phase": "decode", "batch": [2], "context": [64]}
    content = {"title": "mine", "groups": [{"models": ["gpt2"], "points": [point]}], "families": ["layer_norm"]}
    own.write_text(json.dumps(content))
    assert [each.key for each in wanted_of(suite_named(str(own)))] == ["layer_norm-bfloat16-rows2-width768"]
    for wrong, message in (
        ({**content, "families": ["layernorm"]}, "no kernel family 'layernorm'; nearest: layer_norm"),
        ({**content, "groups": []}, "groups"),
        ({**content, "groups": [{**content["groups"][0], "families": ["rope_"]}]}, "no kernel family 'rope_'"),  # type: ignore[dict-item, index]
        ({**content, "colour": 1}, "colour"),
        ({**content, "groups": [{"models": ["gpt2"], "points": [{**point, "context": [0]}]}]}, "needs a context"),
    ):
        own.write_text(json.dumps(wrong))
        with pytest.raises(RequestError, match=message) as refused:
            suite_named(str(own))
        assert "\n" not in str(refused.value)
    with pytest.raises(RequestError, match=r"no suite 'smoky' \(known: smoke"):
        suite_named("smoky")


def test_bad_steps_are_refused_in_one_line() -> None:
    with pytest.raises(RequestError, match=r"nearest: llama-3\.1-8b"):
        model_step("llama-3.1-8", DECODE)
    with pytest.raises(RequestError, match="--tp 0"):
        model_step("gpt2", DECODE, tp=0)
    with pytest.raises(RequestError) as refused:
        model_step("gpt2", DECODE, tp=7)
    assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match="verify"):
        Point(phase="decode", batch=(1,), context=(8,), query=3).workloads("bfloat16")
    assert Suite.model_fields["groups"].is_required()
