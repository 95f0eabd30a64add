"""Graphs of tiny models for many workloads against exact traces, graphs in files, and few layers standing for all."""

from collections import Counter
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from each import each
from graphs import figure, peaks
from parametric_graphs import totals, workload
from tiny import tiny
from transformers import PretrainedConfig

from profiler.models import graphs as module
from profiler.models.build import build_meta
from profiler.models.catalogue import silence
from profiler.models.graphs import (
    LENGTHS,
    ModelGraphs,
    Tracing,
    _traceable,
    length_notes,
    model_graphs,
    model_source,
    scale,
    stored_graphs,
)
from profiler.models.inputs import prepare
from profiler.models.resolve import truncate
from profiler.models.trace import trace
from profiler.record.run import RequestError
from roofline.fusion.fuse import fused
from roofline.graph.fold import fold
from roofline.graph.memory import footprint
from roofline.graph.op import OpGraph
from roofline.price import price
from roofline.sweep.family import Family
from roofline.sweep.price import memory_pieces, price_pieces
from roofline.whatif.registry import parse
from roofline.workload import Workload

DEVICE = peaks(vector=39e12, levels=(("DRAM", 48e9, 768e9),)).model_copy(
    update={"matrix": {"bfloat16": figure(155e12), "float32": figure(39e12)}}
)
FORMS = {"executed": (), "fused": (fused,)}


def config(name: str, **fields: object) -> PretrainedConfig:
    found = tiny(name)
    for key, value in fields.items():
        setattr(found, key, value)
    return found


def made(name: str, form: str = "executed", **fields: object) -> ModelGraphs:
    return ModelGraphs(config(name, **fields), name, Tracing(dtype="bfloat16", changes=FORMS[form]))


def right(graphs: ModelGraphs, family: Family, ws: list[Workload], exact: list[int] | None = None) -> None:
    """Totals, times and memory of a family are those of exact, unfolded traces; `exact` are the places to trace."""
    pieces = family.cover(ws)
    swept, memory = price_pieces(pieces, ws, DEVICE), memory_pieces(pieces, ws)
    assert not np.isnan(swept.time_s).any()
    for i in exact if exact is not None else range(len(ws)):
        whole = graphs.whole(ws[i])
        counts = [op.count for op in whole.ops]
        assert swept.time_s[i] == pytest.approx((price(whole, DEVICE).time_s * counts).sum(), rel=1e-9)
        expected = totals(whole)
        found = swept.traffic(i).model_dump() | {"matrix_flops": swept.matrix_flops[i], "link_bytes": 0}
        assert found == pytest.approx({name: expected[name] for name in found}, rel=1e-9)
        needed = footprint(whole)
        assert (memory.weights[i], memory.kv_cache[i]) == (needed.weights, needed.kv_cache)


@each(("name", "form"), [("llama", "executed"), ("mixtral", "fused"), ("falcon", "fused")])
def test_a_family_is_right_where_it_was_not_traced(name: str, form: str) -> None:
    graphs = made(name, form, num_hidden_layers=5)
    ws = [workload(b, 1, c) for b in (1, 5) for c in (20, 90, 150, 210)]
    ws += [workload(3, q, 0) for q in (12, 60, 100, 180)]
    right(graphs, graphs.family, ws, [1, 2, 6, 10])
    assert graphs.family.notes == []
    whole = [w for trace, w in graphs.family._traced if trace == graphs.family.trace]
    assert len(whole) == 3, "the whole model is traced at the largest workload of each regime alone"


def pattern(kinds: list[str], layers: int) -> list[str]:
    return [kinds[i % len(kinds)] for i in range(layers)]


@each(
    ("name", "layers", "kinds", "fields", "form"),
    [
        ("gpt_oss", 8, ["sliding_attention", "full_attention"], {"sliding_window": 64}, "executed"),
        ("qwen3_next", 8, ["linear_attention", "full_attention"], {}, "fused"),
    ],
)
def test_hybrid_models_are_stood_for_by_whole_patterns(
    name: str, layers: int, kinds: list[str], fields: dict[str, object], form: str
) -> None:
    graphs = made(name, form, num_hidden_layers=layers, layer_types=pattern(kinds, layers), **fields)
    ws = [workload(2, 1, c) for c in (10, 20, 30, 50)]
    right(graphs, graphs.family, ws, [1])
    assert graphs.family.notes == []
    assert len([w for trace, w in graphs.family._traced if trace == graphs.family.trace]) == 1


def test_edges_of_windows_are_traced_alone() -> None:
    graphs = made("mistral", sliding_window=32)
    family = graphs.family
    assert family.windows == (32,)
    ws = [workload(1, 1, context) for context in (5, 9, 12, 25, 30, 31, 32, 33, 40, 70, 90, 200)]
    right(graphs, family, ws)
    assert family.notes == []
    alone = {ws[int(p.index[0])].context_tokens for p in family.cover(ws) if len(p.graph.monomials) == 1}
    assert alone == {30, 31, 32, 33}


def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[Workload]:
    """How often each workload was traced, at any number of layers."""
    seen: Counter[Workload] = Counter()
    real: Callable[..., OpGraph] = module.trace

    def counting(model: object, inputs: object, w: Workload, **options: object) -> OpGraph:
        seen[w] += 1
        return real(model, inputs, w, **options)

    monkeypatch.setattr(module, "trace", counting)
    return seen


def test_a_state_space_prefill_is_not_traced_at_its_length(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = counted(monkeypatch)
    graphs = made("mamba", "fused", num_hidden_layers=5)
    assert graphs.runs_by_token
    (piece,) = graphs.family.cover([workload(1, 2000, 0)])
    found = totals(piece.graph.at(workload(1, 2000, 0)))
    assert max(w.query_tokens for w in seen) <= module.LONGEST_CHECK
    assert len(seen) < 10 and graphs.family.notes == []
    monkeypatch.undo()
    two, three = (
        totals(ModelGraphs(config("mamba", num_hidden_layers=n), "mamba", graphs.tracing).whole(workload(1, 150, 0)))
        for n in (2, 3)
    )
    for name, value in totals(piece.graph.at(workload(1, 150, 0))).items():
        assert value == pytest.approx(two[name] + 3 * (three[name] - two[name]), rel=1e-9)
    short, long = (totals(piece.graph.at(workload(1, q, 0))) for q in (150, 2000))
    assert found == long
    assert long["vector_flops"] / short["vector_flops"] == pytest.approx(2000 / 150, rel=0.02)


def test_chunks_are_counted_or_traced_and_said() -> None:
    """Mamba-2 with chunks of 64 tokens: its loops are folded where they can be; what cannot is in the notes."""
    graphs = made("mamba2", num_hidden_layers=3, chunk_size=64)
    family = graphs.family
    assert not graphs.runs_by_token and 64 in family.chunks
    ws = [workload(1, q, 0) for q in (50, 64, 333, 384, 700)]
    right(graphs, family, ws)
    exact = [p for p in family.cover(ws) if len(p.graph.monomials) == 1]
    assert not exact or family.notes


def test_the_gated_delta_rule_has_a_count_in_chunks() -> None:
    graphs = made("qwen3_next")
    family = graphs.family
    assert family.chunks == (module.DELTA_RULE_CHUNK,)
    ws = [workload(1, q, 0) for q in (330, 384, 400, 641)]
    right(graphs, family, ws, [1, 2])
    piece, filled = sorted(family.cover(ws), key=lambda piece: -len(piece.index))
    assert (piece.graph.chunk, filled.graph.chunk, family.notes) == (64, 1, [])
    assert filled.index.tolist() == [1]
    for w in (ws[0], ws[3], workload(1, 10**5, 0)):
        chunks = -(-w.query_tokens // 64)
        assert chunks * 3 in {op.count for op in piece.graph.at(w).ops}  # three such layers


def test_a_model_whose_first_layers_have_no_attention_is_probed_with_some() -> None:
    graphs = made("qwen3_next", num_hidden_layers=4)
    assert not graphs.runs_by_token
    assert set(graphs._small) == {4}


@each(("name", "by_token"), [("llama", False), ("mamba", True), ("mamba2", False)])
def test_which_models_run_token_by_token(name: str, by_token: bool) -> None:
    assert made(name).runs_by_token is by_token


def test_a_folded_graph_is_the_changed_one_folded() -> None:
    graphs = made("llama", "fused")
    w = workload(2, 1, 50)
    assert graphs.folded(w) == fold(fused(made("llama").whole(w)))


def test_other_changes_share_the_model_and_what_its_traces_say() -> None:
    plain = made("llama")
    w = workload(2, 1, 50)
    ideal = plain.changed((fused,))
    assert ideal.whole(w) == fused(plain.whole(w)) == made("llama", "fused").whole(w)
    assert ideal.changed(()).whole(w) == plain.whole(w)
    assert ideal.model is plain.model and plain._shorter(1).model is ideal._shorter(1).model
    assert ideal.runs_by_token is plain.runs_by_token is False


def test_a_change_that_cannot_be_made_is_a_wrong_request() -> None:
    def refuse(graph: OpGraph) -> OpGraph:
        raise ValueError("4 bits: no; use 8")

    graphs = ModelGraphs(tiny("llama"), "llama", Tracing(dtype="bfloat16", changes=(refuse,)))
    with pytest.raises(RequestError, match="4 bits: no; use 8"):
        graphs.whole(workload(1, 1, 5))


@cache
def models(name: str, dtype: str = "bfloat16") -> ModelGraphs:
    return ModelGraphs(tiny(name), name, Tracing(dtype))


def flops(graph: OpGraph) -> float:
    return sum(op.matrix_flops * op.count for op in graph.ops)


def test_changes_come_in_order_and_fusion_last() -> None:
    asked = workload(2, 12, 0)
    changes = [parse("tensor_parallel:degree=2"), parse("quantise:weights=4")]
    by_hand = models("llama").whole(asked)
    for change in changes:
        by_hand = change(by_hand)
    assert model_source(models("llama"), changes, "executed").whole(asked) == by_hand
    assert model_source(models("llama"), changes, "fused").whole(asked) == fused(by_hand)


def test_parameters_are_those_of_the_model() -> None:
    found = model_source(models("qwen2"), (), "fused")
    assert found.parameters == sum(p.numel() for p in models("qwen2").model.parameters())  # tied ones once
    assert found.name == "qwen2"


def test_a_model_that_runs_by_token_is_not_traced_at_full_length() -> None:
    found = model_source(models("mamba"), (), "executed")
    short, long = (len(found.whole(workload(1, tokens, 0)).ops) for tokens in (40, 100_000))
    assert short == long
    exact = models("mamba").whole(workload(1, 40, 0))
    assert len(exact.ops) > short
    assert flops(found.whole(workload(1, 40, 0))) == flops(exact)


def test_a_change_that_cannot_be_made_is_a_request_error() -> None:
    found = model_source(models("llama"), [parse("tensor_parallel:degree=3")], "fused")
    with pytest.raises(RequestError, match="3"):
        found.whole(workload(1, 12, 0))
    with pytest.raises(RequestError, match="3"):
        found.family().cover([workload(1, n, 0) for n in (12, 20, 30, 40)])


def test_sizes_that_torch_cannot_count_are_one_line() -> None:
    with (
        pytest.raises(
            RequestError, match=r"llama cannot be traced at prefill-b1-q12-c0-bfloat16 .*ask for fewer"
        ) as said,
        _traceable(models("llama"), workload(1, 12, 0)),
    ):
        torch.empty((2**40, 2**40), device="meta")
    assert "\n" not in str(said.value)


@each(("tokens", "notes"), [(256, 0), (257, 1)])
def test_length_notes(tokens: int, notes: int) -> None:
    assert len(length_notes(models("llama"), tokens)) == notes
    assert length_notes(models("mamba"), 10**9) == []


def test_a_model_by_name_comes_with_its_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    silence()
    graphs, notes = model_graphs("llama-2-7b", Tracing("bfloat16"))
    assert (graphs.name, graphs.config.hidden_size) == ("llama-2-7b", 4096)
    assert all(isinstance(note, str) for note in notes)
    with pytest.raises(RequestError, match="nearest: "):
        model_graphs("lama-2-7", Tracing("bfloat16"))


def test_stored_graphs_hold_every_regime_of_both_forms() -> None:
    found = stored_graphs(models("llama"))
    regimes = {(one.form, one.regime.phase, one.regime.batched, one.regime.logits) for one in found.regimes}
    passes = [("prefill", "last"), ("decode", "last"), ("chunk", "last"), ("chunk", "all")]
    every = {(f, p, b, logits) for f in ("fused", "executed") for p, logits in passes for b in (False, True)}
    assert regimes == every and len(found.regimes) == len(every)
    for one in found.regimes:
        assert all(w.query_tokens + w.context_tokens <= 256 for w in one.graph.checked)  # of the model's context
        assert max(w.query_tokens + w.context_tokens for w in one.graph.checked) == max(n for n in LENGTHS if n <= 256)
    assert torch.float32 not in {p.dtype for p in models("llama").model.parameters()}


def graph(name: str, layers: int | None) -> OpGraph:
    config = tiny(name)
    workload = Workload(batch=1, query_tokens=1, context_tokens=12, dtype="float32")
    model = build_meta(truncate(config, layers) if layers else config, "float32")
    return trace(model, prepare(model, workload), workload, name=name, target="cpu", options={})


@each(("name", "layers"), [("llama", 1), ("gpt2", 1), ("deepseek_v3", 2), ("mamba", 1)])
def test_scaled_totals_are_those_of_the_whole_model(name: str, layers: int) -> None:
    part, whole = graph(name, layers), graph(name, None)
    scaled = scale(part, part, whole)
    for name in ("matrix_flops", "vector_flops"):
        assert sum(getattr(op, name) * op.count for op in scaled.ops) == sum(getattr(op, name) for op in whole.ops)
    bytes_ = sum(t.total * op.count for op, t in zip(scaled.ops, scaled.traffic, strict=True))
    assert bytes_ == sum(t.total for t in whole.traffic)
    assert scaled.layers is not None and scaled.layers[0] == layers
    assert scaled.parameters == whole.parameters


def test_a_missing_kind_of_layer_is_refused() -> None:
    part, whole = graph("deepseek_v3", 1), graph("deepseek_v3", None)  # the first layer is dense, the others are not
    with pytest.raises(RequestError, match=r"model\.layers\.1; use --layers 2 or more"):
        scale(part, part, whole)
