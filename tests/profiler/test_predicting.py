"""Sources of graphs: a model, a module, and files made from a model."""

from functools import cache

import pytest
import torch
from tiny import tiny

from profiler.models.graphs import ModelGraphs, Tracing
from profiler.models.quiet import silence
from profiler.predicting import (
    LENGTHS,
    _traceable,
    length_notes,
    model_graphs,
    model_source,
    module_graph,
    stored_graphs,
)
from profiler.record.run import RequestError
from roofline.fusion.fuse import fused
from roofline.graph.op import OpGraph
from roofline.whatif.registry import parse
from roofline.workload import Workload


@cache
def models(name: str, dtype: str = "bfloat16") -> ModelGraphs:
    return ModelGraphs(tiny(name), name, Tracing(dtype))


def workload(batch: int, query: int, context: int, dtype: str = "bfloat16") -> Workload:
    return Workload(batch=batch, query_tokens=query, context_tokens=context, dtype=dtype)


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
        _traceable("llama", workload(1, 12, 0)),
    ):
        torch.empty((2**40, 2**40), device="meta")
    assert "\n" not in str(said.value)


@pytest.mark.parametrize(("tokens", "notes"), [(256, 0), (257, 1)])
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


def test_a_module_is_traced_once() -> None:
    spec = "profiler.models.examples.encoder:bert_base"
    assert module_graph(spec) is module_graph(spec)


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
