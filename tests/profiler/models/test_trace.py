"""The trace against oracles that we did not write: `FlopCounterMode`, autograd, the masks that models really build."""

import math

import pytest
import torch
import torch.nn.functional as F
from each import each
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.utils.flop_counter import FlopCounterMode

from profiler.models.attention import NAME
from profiler.models.build import build, build_meta
from profiler.models.inputs import prepare
from profiler.models.module import Example
from profiler.models.trace import trace
from roofline.graph.op import Kind, OpGraph, attention_pairs, uncounted_share
from roofline.workload import Workload

FAMILIES = ("llama", "gpt2", "mixtral", "gemma2", "gemma3", "deepseek_v3", "mamba", "qwen3_moe", "gpt_oss", "falcon")
CONTEXT = 12  # beyond the sliding windows of the tiny configs
PHASES = {"prefill": (CONTEXT, 0), "decode": (1, CONTEXT), "chunk": (4, CONTEXT)}


def workload(phase: str, batch: int = 2, dtype: str = "float32") -> Workload:
    query, context = PHASES[phase]
    return Workload(batch=batch, query_tokens=query, context_tokens=context, dtype=dtype)


def traced(name: str, phase: str, *, experts: str = "default", device: str = "meta", attn: str = "default") -> OpGraph:
    what = workload(phase)
    meta = build_meta(tiny(name), what.dtype, attn, experts)
    model = meta if device == "meta" else build(tiny(name), device, what.dtype, attn, experts)
    inputs = prepare(meta, what, device=device)
    return trace(model, inputs, what, name=name, target="cpu", options={})


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("name", FAMILIES)
def test_matrix_flops_outside_attention_are_those_of_flop_counter_mode(
    name: str, phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(query, key, value, *args, **kwargs):  # type: ignore[no-untyped-def]
        return query.new_zeros(*query.shape[:-1], value.shape[-1])

    graph = traced(name, phase)
    what = workload(phase)
    # grouped products are not in the counter's table: the eager experts run the same rows one expert at a time
    model = build(tiny(name), "cpu", what.dtype, experts="eager")
    inputs = prepare(build_meta(tiny(name), what.dtype, experts="eager"), what, device="cpu")
    monkeypatch.setattr(F, "scaled_dot_product_attention", nothing)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**inputs.kwargs())
    assert sum(op.matrix_flops for op in graph.ops if op.kind != Kind.ATTENTION) == counter.get_total_flops()


@each("phase", PHASES)
@pytest.mark.parametrize("name", [n for n in FAMILIES if n not in ("gemma2", "mamba", "gpt_oss")])
def test_attention_flops_are_the_closed_form(name: str, phase: str) -> None:
    config = tiny(name).get_text_config(decoder=True)
    query, context = PHASES[phase]
    attention = [op for op in traced(name, phase).ops if op.kind == Kind.ATTENTION]
    assert len(attention) == config.num_hidden_layers
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * len(attention)
    for op, kind in zip(attention, kinds, strict=True):
        window = config.sliding_window if kind == "sliding_attention" else None
        pairs = sum(min(context + i + 1, window or math.inf) for i in range(query))
        if name == "deepseek_v3":
            dims = config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim
        else:
            dims = 2 * (getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
        assert op.matrix_flops == 2 * pairs * 2 * config.num_attention_heads * dims
        assert op.name == NAME


@each("phase", ["prefill", "chunk"])
@pytest.mark.parametrize("name", ["gemma3", "falcon", "mistral"])
def test_pairs_said_by_the_module_are_those_of_the_mask_it_builds(name: str, phase: str) -> None:
    said = [op.dims["pairs"] for op in traced(name, phase).ops if op.kind == Kind.ATTENTION]
    seen = [op.dims["pairs"] for op in traced(name, phase, device="cpu").ops if op.kind == Kind.ATTENTION]
    assert said == seen


def test_heads_that_are_folded_into_the_queries_see_the_keys_of_one_query() -> None:
    """A static cache gives a mask in decode, and `transformers` then packs the heads of a group into one."""
    what = workload("decode")
    meta = build_meta(tiny("llama"), "float32", "sdpa")
    graph = trace(meta, prepare(meta, what, cache="static"), what, name="llama", target="cpu", options={})
    found = [op.dims for op in graph.ops if op.kind == Kind.ATTENTION]
    assert found
    assert all(dims["heads"] * dims["pairs"] == 4 * (CONTEXT + 1) for dims in found)


@given(st.integers(1, 12), st.integers(0, 12), st.none() | st.integers(1, 30))
def test_attention_pairs_count_what_a_mask_leaves(query: int, context: int, window: int | None) -> None:
    keys = torch.arange(context + query)
    rows = torch.arange(context, context + query)[:, None]
    mask = (keys <= rows) & (keys > rows - (window or 10**6))
    assert attention_pairs(query, context, True, window) == int(mask.sum())
    assert attention_pairs(query, context, False, None) == query * (context + query)


@pytest.mark.parametrize("name", FAMILIES)
def test_inactive_parameters_are_those_that_get_no_gradient(name: str) -> None:
    model = build(tiny(name), "cpu", "float32")
    what = workload("prefill")
    model.train()
    model(**prepare(build_meta(tiny(name), "float32"), what, device="cpu").kwargs()).logits.sum().backward()
    without = {path for path, parameter in model.named_parameters() if parameter.grad is None}
    graph = traced(name, "prefill")
    # what only chooses experts is read by the pass, but passes no gradient back
    assert set(graph.inactive) <= without
    assert all("bias" in path for path in without - set(graph.inactive))
    assert graph.parameters == sum(parameter.numel() for parameter in model.parameters())


def test_an_unused_parameter_is_listed() -> None:
    what = workload("prefill")
    model = build_meta(tiny("llama"), "float32")
    model.model.layers[1].spare = torch.nn.Linear(3, 5, device="meta")
    graph = trace(model, prepare(model, what), what, name="llama", target="cpu", options={})
    assert graph.inactive == ("model.layers.1.spare.bias", "model.layers.1.spare.weight")


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_every_weight_is_read_once_and_tied_ones_share_their_memory(name: str) -> None:
    graph = traced(name, "decode")
    model = build_meta(tiny(name), "float32")
    read = {a.tensor for op in graph.ops for a in op.reads if graph.tensors[a.tensor].role == "weight"}
    weights = {path for path, _ in model.named_parameters()}
    assert {graph.tensors[t].name for t in read} & weights == weights
    head = next(op for op in graph.ops if op.path == "lm_head")
    table = next(op for op in graph.ops if op.kind == Kind.EMBEDDING)
    assert (head.reads[0].tensor == table.reads[0].tensor or head.reads[1].tensor == table.reads[0].tensor) == (
        name == "qwen2"
    )


def test_traffic_of_a_decode_step_by_hand() -> None:
    graph = traced("llama", "decode")
    config = tiny("llama")
    batch, width, element = 2, config.hidden_size, 4
    head_dim, kv = width // config.num_attention_heads, config.num_key_value_heads
    traffic = dict(zip([(op.path, op.kind) for op in graph.ops], graph.traffic, strict=True))
    q = traffic["model.layers.0.self_attn.q_proj", Kind.MATMUL]
    assert (q.weight_read, q.activation_read, q.activation_write) == (
        width * width * element, batch * width * element, batch * width * element,
    )  # fmt: skip
    embedding = traffic["model.embed_tokens", Kind.EMBEDDING]
    assert embedding.weight_read == batch * width * element  # the rows it gathers, not the table
    attention = traffic["model.layers.0.self_attn", Kind.ATTENTION]
    assert attention.kv_read == 2 * batch * kv * (CONTEXT + 1) * head_dim * element  # each KV head once
    written = sum(t.kv_write for t in graph.traffic)
    assert (
        written == config.num_hidden_layers * 2 * batch * kv * (CONTEXT + 1) * head_dim * element
    )  # DynamicCache copies


def test_a_mixture_reads_the_experts_that_are_hit() -> None:
    config = tiny("mixtral")
    expected = [op for op in traced("mixtral", "decode").ops if op.kind == Kind.GROUPED_MATMUL]
    experts, k = config.num_local_experts, config.num_experts_per_tok
    distinct = experts * (1 - (1 - k / experts) ** 2)
    for op in expected:
        assert op.reads[1].bytes == pytest.approx(distinct * op.dims["k"] * op.dims["n"] * 4, abs=1)
    for op in traced("mixtral", "decode", device="cpu").ops:
        if op.kind == Kind.GROUPED_MATMUL:
            hit = op.reads[1].bytes / (op.dims["k"] * op.dims["n"] * 4)
            assert hit == int(hit) and 2 <= hit <= 4  # two tokens, two experts each


def test_unfused_attention_is_products_and_a_softmax() -> None:
    ops = [op for op in traced("llama", "prefill", attn="eager").ops if op.path == "model.layers.0.self_attn"]
    assert [op.kind for op in ops if op.kind in (Kind.MATMUL, Kind.SOFTMAX)] == [Kind.MATMUL, Kind.SOFTMAX, Kind.MATMUL]
    assert not any(op.kind == Kind.ATTENTION for op in ops)


def test_meta_and_cpu_run_the_same_operations() -> None:
    for name in ("llama", "gpt2", "mixtral", "mamba"):
        for phase in PHASES:
            here, there = traced(name, phase), traced(name, phase, device="cpu")
            assert [(op.path, op.name, op.dims) for op in here.ops] == [(op.path, op.name, op.dims) for op in there.ops]


def test_every_operator_of_the_families_is_in_a_table() -> None:
    for name in FAMILIES:
        assert traced(name, "chunk").uncounted == ()


def test_attention_by_other_doors_has_the_pairs_that_it_computes() -> None:
    """A causal bias that ends at the last key, and `flex_attention` with a mask function."""
    heads, width, query, keys = 2, 8, 4, 16
    q, kv = torch.zeros(1, heads, query, width), torch.zeros(1, heads, keys, width)
    mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, keys, keys, device="cpu")

    class Doors(nn.Module):
        def forward(self, q: Tensor, kv: Tensor) -> list[Tensor]:
            biased = F.scaled_dot_product_attention(q, kv, kv, attn_mask=causal_lower_right(query, keys))
            return [biased, flex_attention(kv, kv, kv, block_mask=mask)]

    graph = trace(
        Doors(), Example((q, kv), {}), Workload(batch=1, query_tokens=1, context_tokens=0, dtype="float32"),
        name="doors", target="cpu", options={},
    )  # fmt: skip
    pairs = [op.dims["pairs"] for op in graph.ops if op.kind is Kind.ATTENTION]
    assert pairs == [sum(keys - query + i + 1 for i in range(query)), keys * (keys + 1) // 2]


def test_what_an_operator_without_a_count_moves_is_said() -> None:
    class Special(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.i0(x) @ x

    x = torch.zeros(8, 8, device="meta")
    work = Workload(batch=1, query_tokens=1, context_tokens=0, dtype="float32")
    graph = trace(Special(), Example((x,), {}), work, name="special", target="cuda", options={})
    assert graph.uncounted == ("special_i0",) or graph.uncounted == ("i0",)
    assert uncounted_share(graph) == pytest.approx(2 / 5)  # two of the five matrices that are read or written
