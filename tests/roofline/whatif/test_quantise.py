"""Fewer bits: closed forms, identities, composition."""

import pytest
from each import each
from graphs import GraphBuilder
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny
from whatif_graphs import PHASES, check, stored, totals, traced

from roofline.fusion.fuse import fused
from roofline.graph.op import Kind, OpGraph
from roofline.whatif.quantise import WEIGHT_BITS, quantise

FAMILIES = ("llama", "gpt2", "mixtral", "gpt_oss", "gemma3", "deepseek_v3", "mamba", "falcon", "qwen2")
WEIGHTS_ONLY = ("weight_read", "weight", "vector_flops")


@pytest.mark.parametrize("name", FAMILIES)
def test_sixteen_bits_are_what_there_is(name: str) -> None:
    graph = traced(name, "decode")
    assert quantise(graph, weights=16, activations=16, kv=16) == graph


def test_nothing_to_quantise_is_refused() -> None:
    with pytest.raises(ValueError, match="quantise changes nothing; give weights=4, activations=8 or kv=8"):
        quantise(traced("llama", "decode"), group=64)


def linear_elements(name: str) -> int:
    config = tiny(name)
    width, inner = config.hidden_size, config.intermediate_size
    kv = width // config.num_attention_heads * config.num_key_value_heads
    return config.num_hidden_layers * (2 * width * width + 2 * width * kv + 3 * width * inner)


@each(("bits", "zero"), [(4, 0), (4, 4), (3, 0), (8, 0)])
def test_stored_weights_of_a_llama_are_the_closed_form(bits: int, zero: int) -> None:
    graph = traced("llama", "decode")
    narrow = quantise(graph, weights=bits, group=16, zero_point_bits=zero)
    elements = linear_elements("llama")
    assert stored(graph, "weight") - stored(narrow, "weight") == pytest.approx(
        elements * (2 - bits / 8 - (16 + zero) / 16 / 8)
    )
    now, before = totals(narrow), totals(graph)
    assert before["weight_read"] - now["weight_read"] == before["weight"] - now["weight"]  # each is read once
    assert now["vector_flops"] - before["vector_flops"] == elements * (2 if zero else 1)
    assert all(now[figure] == before[figure] for figure in now if figure not in WEIGHTS_ONLY)
    check(narrow)


def test_a_group_may_be_wider_than_a_column() -> None:
    graph = traced("llama", "decode")
    assert stored(quantise(graph, weights=4, group=128), "weight") == stored(
        quantise(graph, weights=4, group=-1), "weight"
    )
    b = GraphBuilder()
    b.weight("w", 4 * 300 * 10)
    b.op("matmul", reads={"x": 4 * 300, "w": 12000}, writes={"y": 40}, b=1, m=1, n=10, k=300)
    narrow = quantise(b.graph(), weights=4, group=128)
    assert narrow.tensors[-1].storage_bytes == 3 * 10 * 2  # ⌈300 ÷ 128⌉ scales a column of 16 bits


@given(st.sampled_from(FAMILIES), st.sampled_from(sorted(PHASES)), st.data())
@settings(max_examples=12, deadline=None)
def test_bytes_do_not_fall_with_bits(name: str, phase: str, data: st.DataObject) -> None:
    graph = traced(name, phase)
    fewer, more = sorted(data.draw(st.lists(st.sampled_from((2, 3, 4, 5, 6, 8)), min_size=2, max_size=2)))
    group = data.draw(st.sampled_from((8, 32, 128, -1)))
    small, large = (quantise(graph, weights=bits, group=group) for bits in (fewer, more))
    for figure in ("weight", "weight_read"):
        assert totals(small)[figure] <= totals(large)[figure] <= totals(graph)[figure]
    check(small)


@each("form", ["int", "float"])
@pytest.mark.parametrize("name", FAMILIES)
def test_narrow_products_run_in_the_narrow_type(name: str, form: str) -> None:
    graph = traced(name, "chunk")
    dtype = {"int": "int8", "float": "float8_e4m3fn"}[form]
    narrow = quantise(graph, weights=8, activations=8, group=-1, weight_format=form)
    check(narrow)
    inputs = [op for op in narrow.ops if op.name == "roofcal::quantise"]
    products = [op for op in narrow.ops if op.dtype == dtype]
    assert products and all(op.dims["weight_bits"] == 8 for op in products)
    assert len({op.reads[0].tensor for op in inputs}) == len(inputs)  # once for all that share it
    assert len(inputs) < len(products) or name in ("mamba", "gpt2", "falcon")
    before = totals(graph)
    assert totals(narrow)["matrix_flops"] == before["matrix_flops"]


def test_one_quantised_product_by_hand() -> None:
    b = GraphBuilder()
    b.weight("w", 4 * 64 * 8)
    b.op("matmul", reads={"x": 4 * 3 * 64, "w": 2048}, writes={"y": 96}, path="lin", matrix=3072, b=1, m=3, n=8, k=64)
    before, product = quantise(b.graph(), weights=8, activations=8, group=-1, scale_bits=32).ops
    assert (before.kind, before.path, before.vector_flops) == (Kind.POINTWISE, "lin", 4 * 192 + 3)
    assert (before.reads[0].bytes, before.writes[0].bytes) == (768, 192 + 3 * 4)
    assert [read.bytes for read in product.reads] == [204, 512, 8 * 4]
    assert (product.dtype, product.matrix_flops, product.vector_flops) == ("int8", 3072, 2 * 24)
    grouped = quantise(b.graph(), weights=4, activations=8, group=16).ops[1]
    assert grouped.vector_flops == 2 * 4 * 24 + 512  # four groups; 4-bit weights become 8-bit ones first
    assert quantise(b.graph(), weights=4, activations=4, weight_format="float").ops[1].dtype == "float4_e2m1fn_x2"


@each("cached", ["dynamic", "static"])
@each("attn", ["sdpa", "eager"])
@each("phase", PHASES)
def test_a_narrow_cache_has_a_scale_for_each_token_and_head(phase: str, attn: str, cached: str) -> None:
    if (phase, attn, cached) == ("chunk", "sdpa", "static"):
        return  # cannot be traced on meta
    graph = traced("llama", phase, attn=attn, cached=cached)
    narrow, head_dim = quantise(graph, kv=4), 8
    ratio = (4 * head_dim + 16) / (16 * head_dim)
    for figure in ("kv", "kv_read", "kv_write"):
        assert totals(narrow)[figure] == pytest.approx(totals(graph)[figure] * ratio)
    quantised = sum(op.reads[0].bytes for op in narrow.ops if op.name == "roofcal::quantise")
    query = PHASES[phase][0]
    assert (
        quantised == 2 * 2 * 2 * query * 2 * head_dim * 2
    )  # layers, keys and values, batch, tokens, heads, width, 16 bit
    dequantised = sum(
        access.bytes / 2
        for op in graph.ops
        for access in op.reads
        if graph.tensors[access.tensor].role == "kv"
        and not any(graph.tensors[w.tensor].role == "kv" for w in op.writes)
    )
    assert totals(narrow)["vector_flops"] - totals(graph)["vector_flops"] == pytest.approx(
        dequantised + quantised / 2 * (4 + 1 / head_dim)
    )
    check(narrow)


@each("cached", ["dynamic", "static"])
@pytest.mark.parametrize("name", ["gemma3", "deepseek_v3", "gpt_oss", "mistral", "qwen3_next", "falcon"])
def test_a_narrow_cache_of_every_kind(name: str, cached: str) -> None:
    for phase in ("prefill", "decode"):
        graph = traced(name, phase, cached=cached)
        narrow = quantise(graph, kv=8)
        check(narrow)
        assert totals(narrow)["kv_read"] < totals(graph)["kv_read"] or phase == "prefill"
        assert stored(narrow, "kv") < stored(graph, "kv")


def test_a_window_that_is_rolled_is_narrow_throughout() -> None:
    """gemma3 with a static cache copies its windows out, changes one token, and copies them back."""
    graph = traced("gemma3", "decode", cached="static")
    narrow, config = quantise(graph, kv=8), tiny("gemma3")
    made = [op for op in narrow.ops if op.name == "roofcal::quantise"]
    a_token = 2 * config.num_key_value_heads * config.head_dim * 2  # batch, 16 bit
    assert [op.reads[0].bytes for op in made] == [a_token] * 2 * config.num_hidden_layers
    ratio = (8 * config.head_dim + 16) / (16 * config.head_dim)
    rolls = [[a.bytes for op in g.ops if op.name == "aten::roll" for a in op.writes] for g in (graph, narrow)]
    assert rolls[0] and rolls[1] == [size * ratio for size in rolls[0]]


def test_states_are_no_keys_and_values() -> None:
    graph = traced("qwen3_next", "decode")
    narrow = quantise(graph, kv=8)
    for before, after in zip(graph.tensors, narrow.tensors, strict=False):
        if before.role == "kv":
            same = before.storage_bytes == after.storage_bytes
            assert same == ("states" in (before.name or ""))


def test_latents_have_one_scale_a_token() -> None:
    graph, config = traced("deepseek_v3", "decode"), tiny("deepseek_v3")
    narrow = quantise(graph, kv=8)
    for tensor in narrow.tensors:
        if tensor.role == "kv":
            before = graph.tensors[tensor.id].storage_bytes
            width = config.kv_lora_rank if before >= 700 else config.qk_rope_head_dim
            assert tensor.storage_bytes == before / 2 + before / 2 / width * 2


def test_bits_of_layer_classes_compose_in_any_order() -> None:
    graph = traced("llama", "decode")

    def attention(g: OpGraph) -> OpGraph:
        return quantise(g, weights=8, where=("*.self_attn.*",))

    def mlp(g: OpGraph) -> OpGraph:
        return quantise(g, weights=4, where=("*.mlp.*",))

    def cache(g: OpGraph) -> OpGraph:
        return quantise(g, kv=8)

    one, other = cache(mlp(attention(graph))), attention(mlp(cache(graph)))
    assert totals(one) == totals(other)
    assert {op.dims.get("weight_bits") for op in one.ops if op.kind is Kind.MATMUL} == {4, 8, None}
    assert one.options["weights"] == "int8 g128 of *.self_attn.*; int4 g128 of *.mlp.*"


def test_a_tied_head_and_its_embedding_are_stored_once() -> None:
    graph = traced("qwen2", "decode")
    narrow = quantise(graph, weights=4, where=("lm_head",), group=16)
    config = tiny("qwen2")
    elements = config.vocab_size * config.hidden_size
    assert stored(graph, "weight") - stored(narrow, "weight") == elements * (2 - 0.5 - 2 / 16)
    table, before = (next(op for op in g.ops if op.kind is Kind.EMBEDDING) for g in (narrow, graph))
    row = config.hidden_size
    assert sum(r.bytes for r in table.reads) - sum(r.bytes for r in before.reads) == 2 * row * (0.5 + 2 / 16 - 2)
    assert table.vector_flops == 2 * row
    assert "tied" in narrow.options["weights"]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_fused_graph_can_be_quantised(name: str) -> None:
    ideal = fused(traced(name, "decode"))
    narrow = quantise(ideal, weights=4, group=8)
    check(narrow)
    assert totals(narrow)["weight_read"] < totals(ideal)["weight_read"]


def test_routers_norms_embedding_and_head_stay() -> None:
    narrow = quantise(traced("mixtral", "decode"), weights=4)
    wide = {op.path for op in narrow.ops if op.kind is Kind.MATMUL and "weight_bits" not in op.dims}
    assert wide == {"lm_head", "model.layers.0.mlp.gate", "model.layers.1.mlp.gate"}


@each(
    ("asked", "message"),
    [
        ({"weights": 7}, "int weights of 7 bits: use one of 2, 3, 4"),
        ({"weights": 3, "weight_format": "float"}, "float weights of 3 bits: use one of 4, 6, 8"),
        ({"weights": 32}, "weights of 32 bits are wider than the model's 16"),
        ({"kv": 32}, "wider than the 16"),
        ({"kv": 5}, "keys and values of 5 bits: use one of 2, 4, 8"),
        ({"activations": 8}, "int weights of 16 bits by activations of 8: use weights/activations of 8/8, 4/8, 4/4"),
        ({"weights": 8, "activations": 4}, "weights of 8 bits by activations of 4"),
        ({"weights": 4, "group": 0}, "a group of 0 weights"),
        ({"weights": 4, "scale_bits": 0}, "scales of 0"),
        ({"weights": 4, "weight_format": "log"}, "use int or float"),
        ({"weights": 4, "where": ("*.nothing",)}, r"no linear layer is called \*\.nothing; they are called like model"),
    ],
)
def test_bad_requests(asked: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quantise(traced("llama", "decode"), **asked)


def test_what_is_narrow_is_not_made_narrow_again() -> None:
    graph = traced("llama", "decode")
    with pytest.raises(ValueError, match="have 4 bits already"):
        quantise(quantise(graph, weights=4), weights=8)
    with pytest.raises(ValueError, match="quantised already"):
        quantise(quantise(graph, kv=4), kv=4)
    with pytest.raises(ValueError, match="keeps no keys and values"):
        quantise(traced("mamba", "decode"), kv=8)
    assert all(bits >= 2 for form in WEIGHT_BITS.values() for bits in form)
