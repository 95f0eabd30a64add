"""Experts cost what the tokens choose, however a model runs them: one at a time, gathered, grouped, or all densely."""

from functools import cache
from typing import Any

import pytest
import torch
from tiny import TINY
from torch import Tensor, nn
from transformers import AutoConfig

from profiler.models.build import build_meta
from profiler.models.graphs import ModelGraphs, Tracing, model_source
from profiler.models.inputs import prepare
from profiler.models.meta import balanced
from profiler.models.module import Example
from profiler.models.trace import trace
from roofline.fusion.fuse import fused
from roofline.graph.op import OpGraph
from roofline.workload import Workload


@cache
def traced(name: str, batch: int, experts: str = "default", **fields: Any) -> OpGraph:
    """A decode step of `batch` sequences on `meta`."""
    config = dict(TINY[name]) | fields
    model = build_meta(AutoConfig.for_model(config.pop("model_type"), **config), "bfloat16", experts=experts)
    what = Workload(batch=batch, query_tokens=1, context_tokens=12, dtype="bfloat16")
    return trace(model, prepare(model, what), what, name=name, target="cuda", options={})


def bytes_of(graph: OpGraph, path: str) -> float:
    """Bytes that are read of the weights whose names hold `path`."""
    return sum(
        access.bytes * op.count
        for op in graph.ops
        for access in op.reads
        if graph.tensors[access.tensor].role == "weight" and path in (graph.tensors[access.tensor].name or "")
    )


def flops(graph: OpGraph) -> float:
    return sum(op.matrix_flops * op.count for op in graph.ops)


def hit(experts: int, chosen: int, tokens: int) -> float:
    """Expected distinct experts of all tokens' random choices."""
    return experts * (1 - (1 - chosen / experts) ** tokens)


EXPERTS = {  # name: (experts, chosen, name of their weights, elements of one in all layers, also when executed?)
    "mixtral": (4, 2, "experts", 2 * 3 * 32 * 48, True),
    "jetmoe": (8, 2, "mlp.", 2 * 3 * 32 * 48, True),
    "dbrx": (16, 4, "experts", 2 * 3 * 32 * 48, True),
    "llama4_text": (8, 1, "experts", 2 * 3 * 32 * 48, False),
}


def test_the_weights_read_are_those_of_the_experts_that_random_choices_hit() -> None:
    for name, (experts, chosen, path, elements, when_executed) in EXPERTS.items():
        for batch in (1, 4):
            graph = traced(name, batch)
            wanted = hit(experts, chosen, batch) * elements * 2
            router = bytes_of(fused(graph), "mlp.router") if name == "jetmoe" else 0
            router += bytes_of(fused(graph), "mlp.bias") if name == "jetmoe" else 0
            assert bytes_of(fused(graph), path) - router == pytest.approx(wanted), (name, batch)
            executed = bytes_of(graph, path) - router
            assert executed == pytest.approx(wanted if when_executed else experts * elements * 2), (name, batch)


def test_every_implementation_of_experts_has_the_same_ideal() -> None:
    for name in ("mixtral", "deepseek_v3", "gpt_oss"):
        for batch in (1, 3):
            ideal = {how: fused(traced(name, batch, how)) for how in ("grouped_mm", "eager", "batched_mm")}
            weights = {how: bytes_of(graph, "experts") for how, graph in ideal.items()}
            assert len({round(size) for size in weights.values()}) == 1, (name, batch, weights)
            assert len({flops(graph) for graph in ideal.values()}) == 1, (name, batch)


def test_dense_experts_do_the_work_of_those_chosen() -> None:
    """FLOPs fall by those of the experts that are not chosen, and what lies between the products is as small."""
    for batch in (1, 4):
        graph = traced("llama4_text", batch)
        one = 2 * 3 * 32 * 48 * 2  # FLOPs of a token in one expert, in both layers
        assert flops(graph) - flops(fused(graph)) == batch * (8 - 1) * one
        group = [op for op in fused(graph).ops if op.routing]
        assert [op.dims["m"] for op in group] == [batch] * 4
        assert {(op.routing.experts, op.routing.per_token, op.routing.tokens) for op in group if op.routing} == {
            (8, 1, batch)
        }
        assert {a.bytes for op in group[:1] for a in op.writes} == {batch * 48 * 2}  # one row each, behind the gate
        assert max(t.storage_bytes for t in fused(graph).tensors if t.role == "activation") <= max(
            t.storage_bytes for t in graph.tensors if t.role == "activation"
        )


def test_a_routing_is_read_from_what_runs() -> None:
    """A number for each layer is the same as one for all."""
    fields = {key: value for key, value in TINY["llama"].items() if key != "model_type"}
    fields |= {"num_experts": 8, "head_dim": 8}
    graphs = []
    for topk in (4, [4, 4]):
        config = AutoConfig.for_model("hunyuan_v1_moe", **fields, moe_topk=topk)
        model = build_meta(config, "bfloat16")
        what = Workload(batch=3, query_tokens=1, context_tokens=12, dtype="bfloat16")
        graph = trace(model, prepare(model, what), what, name="hunyuan", target="cuda", options={})
        assert {op.routing.per_token for op in graph.ops if op.routing} == {4}
        graphs.append(graph)
    assert graphs[0] == graphs[1]


class Mixture(nn.Module):
    """Experts as modules in a list, as code outside of `transformers` has them."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(16, 8, bias=False)
        self.experts = nn.ModuleList(nn.Linear(16, 16, bias=False) for _ in range(8))

    def forward(self, x: Tensor) -> Tensor:
        chosen = self.gate(x).topk(2, dim=-1).indices
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            tokens = torch.where((chosen == i).any(-1))[0]
            out[tokens] += expert(x[tokens])
        return out


def test_experts_in_a_list_of_modules_are_hit_at_random_too() -> None:
    for tokens in (1, 3, 6):
        with torch.device("meta"):
            module, x = Mixture(), torch.empty(tokens, 16)
        what = Workload(batch=tokens, query_tokens=1, context_tokens=0, dtype="float32")
        graph = trace(module, Example((x,), {}), what, name="list", target="cuda", options={})
        assert bytes_of(graph, "experts") == pytest.approx(hit(8, 2, tokens) * 16 * 16 * 4), tokens


def test_balanced_choices_are_even_wherever_they_stop() -> None:
    for of, chosen in ((8, 2), (16, 4), (768, 12), (1, 1), (2, 1), (17, 1)):
        for tokens in (1, 3, of, 2 * of):
            rows = balanced(tokens * chosen, of).view(tokens, chosen)
            assert all(len(set(row.tolist())) == chosen for row in rows), (of, chosen)
            counts = torch.bincount(rows.flatten(), minlength=of)
            assert counts.max() - counts.min() <= 1
    first = balanced(12 * 8, 768)
    assert 60 <= int((first < 512).sum()) <= 68  # two thirds of 96


LONGCAT = {  # 8 experts of 12 have weights, a token chooses 3
    "model_type": "longcat_flash", "vocab_size": 128, "hidden_size": 32, "ffn_hidden_size": 48, "num_layers": 1,
    "num_attention_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4,
    "v_head_dim": 8, "head_dim": 4, "expert_ffn_hidden_size": 16, "moe_topk": 3, "n_routed_experts": 8,
    "zero_expert_num": 4, "max_position_embeddings": 4096,
}  # fmt: skip


def test_experts_without_weights_cost_nothing_and_a_long_loop_over_experts_is_traced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The one-hot of 40 tokens is larger than what is kept whole; 8 ÷ 12 of the choices have a product."""
    monkeypatch.setattr("profiler.models.meta.LARGEST", 40 * 12)
    config = dict(LONGCAT)
    graphs = ModelGraphs(AutoConfig.for_model(config.pop("model_type"), **config), "longcat", Tracing("bfloat16"))
    one = 3 * 32 * 16  # elements of an expert
    for batch in (4, 40):  # every expert is chosen equally often in the traces
        what = Workload(batch=batch, query_tokens=1, context_tokens=12, dtype="bfloat16")
        for form in ("executed", "fused"):
            graph = model_source(graphs, (), form).whole(what)
            wanted = 8 * (1 - (1 - 3 / 12) ** batch) * one * 2
            assert bytes_of(graph, ".experts.") == pytest.approx(wanted), (form, batch)
            flops = sum(op.matrix_flops * op.count for op in graph.ops if op.path.endswith(".experts"))
            assert flops == batch * 3 * 8 / 12 * 2 * one, (form, batch)
    monkeypatch.setattr("profiler.models.graphs.PROBES", (1, 2))
    ideal = graphs.changed((), is_ideal=True)
    assert graphs.runs_by_token and not ideal.runs_by_token  # the loop runs over those that are hit


QWEN4 = {
    "model_type": "qwen4_exp_text", "vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 2, "head_dim": 8,
    "num_attention_heads": 4, "num_key_value_heads": 2, "layer_types": ["linear_attention", "indexed_attention"],
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
    "hc_lowrank": 8, "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8,
    "indexer_compress_ratio": 4,
}  # fmt: skip


def test_a_context_filled_without_loops_leaves_the_same_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the mask of its prefill, which Qwen4's index reads query by query, has more values than are kept."""
    for fields in (LONGCAT, QWEN4):
        config = dict(fields)
        made = AutoConfig.for_model(config.pop("model_type"), **config)
        what = Workload(batch=2, query_tokens=1, context_tokens=20, dtype="bfloat16")

        def decode(made: Any = made, what: Workload = what) -> OpGraph:
            return ModelGraphs(made, "model", Tracing("bfloat16")).whole(what)

        with monkeypatch.context() as without:
            without.setattr("profiler.models.inputs.IN_CONTEXT", {})
            by_loops = decode()
        with monkeypatch.context() as fewer:
            fewer.setattr("profiler.models.meta.LARGEST", 20 * 20)
            assert decode() == by_loops
