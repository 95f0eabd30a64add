"""The sizes that the paper's accounting needs, from traces of real model classes and from small graphs by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
from graphs import GraphBuilder
from tiny import TINY, tiny
from transformers import AutoConfig, PretrainedConfig

from profiler.models.build import build_meta
from profiler.models.catalogue import config_of
from profiler.models.inputs import prepare
from profiler.models.trace import trace
from roofline.graph.fold import fold
from roofline.graph.op import AttentionModule, OpGraph
from roofline.hardware.spec import HardwareSpec
from roofline.paper.rules import PaperShape, paper_shape
from roofline.paper.table import paper_table
from roofline.workload import Workload

DATA = Path(__file__).parent.parent.parent / "data" / "paper"
VECTORS: list[dict[str, Any]] = json.loads((DATA / "llm-viewer.json").read_text("utf-8"))["vectors"]
CATALOGUE = {"Llama-2-7b-hf": "llama-2-7b", "Llama-2-13b-hf": "llama-2-13b"}

# (intermediate, kv heads, gated); width 32, 4 heads, 128 tokens in the vocabulary
DENSE = {
    "llama": (48, 2, True),
    "qwen2": (48, 2, True),
    "mistral": (48, 2, True),  # its trace sees the keys repeated to all heads
    "gemma2": (48, 2, True),  # eager attention: two products without weights
    "gemma3": (48, 1, True),
    "phi": (48, 4, False),
    "phi3": (48, 2, True),  # fused queries, keys and values; fused gate and up
    "gpt2": (128, 4, False),  # fused queries, keys and values
    "opt": (64, 4, False),
    "falcon": (128, 1, False),  # fused; one KV head that the config does not number
}
NO_RULE = {
    "mixtral": "mixtures of experts",
    "qwen3_moe": "mixtures of experts",
    "gpt_oss": "mixtures of experts",
    "deepseek_v3": "mixtures of experts",
    "qwen3_next": "state-space models|mixtures of experts",
    "mamba": "state-space models",
    "mamba2": "state-space models",
}


def traced(config: PretrainedConfig, query: int = 6, context: int = 0, dtype: str = "float32") -> OpGraph:
    what = Workload(batch=2, query_tokens=query, context_tokens=context, dtype=dtype)
    model = build_meta(config, dtype)
    return trace(model, prepare(model, what), what, name="test", target="cpu", options={})


def test_from_the_model_to_the_vector() -> None:
    for vector in VECTORS:
        sheet = HardwareSpec.model_validate_json((DATA / "llm-viewer-a6000.json").read_text("utf-8")).datasheet
        shape = paper_shape(traced(config_of(CATALOGUE[vector["model"]]), query=3, dtype="float16"))
        bits = {name: vector[name] for name in ("w_bit", "a_bit", "kv_bit")}
        result = paper_table(shape, sheet, vector["batchsize"], vector["seqlen"], **bits)
        for phase in ("prefill", "decode"):
            ours = getattr(result, phase)
            rows = {row.name: row.model_dump(exclude={"name", "count"}) for row in ours.rows}
            assert rows == vector["results"][phase], vector["model"]
            assert ours.total.model_dump() == vector["results"]["total_results"][phase], vector["model"]


@pytest.mark.parametrize("name", DENSE)
def test_sizes_of_dense_models(name: str) -> None:
    for query, context in [(6, 0), (1, 6), (3, 6)]:
        intermediate, kv_heads, gated = DENSE[name]
        layers = tiny(name).get_text_config(decoder=True).num_hidden_layers
        shape = paper_shape(traced(tiny(name), query, context))
        assert shape.model_dump(exclude={"paths"}) == {
            "hidden": 32,
            "intermediate": intermediate,
            "layers": layers,
            "heads": 4,
            "kv_heads": kv_heads,
            "vocabulary": 128,
            "gated": gated,
        }, (query, context)
        assert ("gate_proj" in shape.paths) == gated, (query, context)


def test_paths_are_those_of_the_modules() -> None:
    assert paper_shape(traced(tiny("llama"))).paths == {
        "q_proj": "model.layers.*.self_attn.q_proj",
        "k_proj": "model.layers.*.self_attn.k_proj",
        "v_proj": "model.layers.*.self_attn.v_proj",
        "out_proj": "model.layers.*.self_attn.o_proj",
        "gate_proj": "model.layers.*.mlp.gate_proj",
        "up_proj": "model.layers.*.mlp.up_proj",
        "down_proj": "model.layers.*.mlp.down_proj",
        "lm_head": "lm_head",
    }
    fused = paper_shape(traced(tiny("phi3"))).paths
    assert fused["q_proj"] == fused["k_proj"] == fused["v_proj"] == "model.layers.*.self_attn.qkv_proj"
    assert fused["gate_proj"] == fused["up_proj"] == "model.layers.*.mlp.gate_up_proj"


def test_a_head_size_of_its_own_changes_nothing() -> None:
    """The paper has no head size: queries are as wide as the residual stream."""
    fields = dict(TINY["llama"]) | {"head_dim": 24}
    assert paper_shape(traced(AutoConfig.for_model(fields.pop("model_type"), **fields))) == paper_shape(
        traced(tiny("llama"))
    )


def test_what_the_paper_has_no_rule_for_is_refused() -> None:
    for name in NO_RULE:
        with pytest.raises(ValueError, match=f"the paper's accounting has no rule for .*({NO_RULE[name]})") as caught:
            paper_shape(traced(tiny(name)))
        assert str(caught.value).endswith("; use the default accounting"), name
        assert "\n" not in str(caught.value), name


def test_latent_attention_is_refused_without_experts_too() -> None:
    fields = dict(TINY["deepseek_v3"]) | {"first_k_dense_replace": 3}
    with pytest.raises(ValueError, match="no rule for latent attention"):
        paper_shape(traced(AutoConfig.for_model(fields.pop("model_type"), **fields)))


class Hand(GraphBuilder):
    """Layers of width 8 with 2 heads of 4, one product after another."""

    def product(self, path: str, n: int, k: int, count: float = 1) -> "Hand":
        self.weight(f"{path}.weight", 4 * n * k)
        self.op("matmul", reads=[f"{path}.weight"], writes={path: n}, path=path, count=count, b=1, m=1, n=n, k=k)
        return self

    def layer(self, index: int, *, kv: int = 8, up: int = 16, down: int = 16, count: float = 1) -> "Hand":
        at = f"h.{index}"
        self.product(f"{at}.attn.q", 8, 8, count).product(f"{at}.attn.kv", 2 * kv, 8, count)
        self.op("attention", writes={f"{at}.out": 8}, path=f"{at}.attn", count=count)
        self.product(f"{at}.attn.o", 8, 8, count)
        return self.product(f"{at}.mlp.up", up, 8, count).product(f"{at}.mlp.down", 8, down, count)

    def shape(self, heads: tuple[int, int] | None = (2, 2)) -> PaperShape:
        return paper_shape(self.graph(heads=heads))


def test_layers_that_stand_for_many_are_counted() -> None:
    shape = Hand().layer(0, count=5 / 3).layer(1, count=5 / 3).layer(2, count=5 / 3).product("head", 50, 8).shape()
    assert (shape.layers, shape.hidden, shape.kv_heads, shape.gated, shape.vocabulary) == (5, 8, 2, False, 50)
    assert shape.paths["k_proj"] == shape.paths["v_proj"] == "h.*.attn.kv"


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_folded_graph_has_the_same_sizes(name: str) -> None:
    graph = traced(tiny(name))
    folded = fold(graph)
    assert len(folded.ops) < len(graph.ops)
    assert paper_shape(folded) == paper_shape(graph)


def test_products_before_the_layers_are_not_the_head() -> None:
    shape = Hand().product("rotary", 3, 1).layer(0).product("head", 50, 8).shape()
    assert shape.vocabulary == 50


def test_a_graph_that_is_not_such_a_stack_is_refused() -> None:
    for hand, message in [
        (Hand().layer(0), "does not end in its layers and one head"),
        (Hand().layer(0).product("out", 4, 8).product("head", 50, 4), "does not end in its layers and one head"),
        (Hand().layer(0).product("head", 50, 4), "does not end in its layers and one head"),
        (Hand().layer(0).layer(1, up=24, down=24).product("head", 50, 8), "layers that differ from each other"),
        (Hand().layer(0, kv=6).product("head", 50, 8), "not query, key, value and output"),
        (Hand().layer(0, up=24).product("head", 50, 8), "at most one gate"),
        (Hand().product("h.0.attn.a", 4, 8).layer(0, kv=6).product("head", 50, 8), "not query, key, value and output"),
        (
            Hand().product("h.0.attn.a", 1, 8).product("h.0.attn.b", 7, 8).layer(0, kv=4).product("head", 50, 8),
            "not query",
        ),
        (Hand().layer(0, kv=0).product("head", 50, 8), "not query, key, value and output"),
        (Hand().layer(0, kv=12).product("head", 50, 8), "not query, key, value and output"),
        (Hand().layer(0).product("h.1.mlp.experts.0.up", 16, 8).product("head", 50, 8), "mixtures of experts"),
        (
            Hand().product("h.0.mlp.a", 8, 8).product("h.0.mlp.b", 8, 8).layer(0).product("head", 50, 8),
            "at most one gate",
        ),
        (Hand().layer(0).product("h.0.mlp.down2", 16, 8).product("head", 50, 8), "not one hidden layer"),
        (Hand().layer(0).product("h.1.mixer.in", 8, 8).product("head", 50, 8), "not attention and a dense MLP"),
        (Hand().product("h.0.in", 8, 8).product("head", 50, 8), "a model without attention"),
    ]:
        with pytest.raises(ValueError, match=message):
            hand.shape()


def test_a_shard_is_refused() -> None:
    hand = Hand().layer(0)
    hand.op("collective", writes={"sum": 8}, path="h.0.mlp.down")
    with pytest.raises(ValueError, match="a model in shards"):
        hand.product("head", 50, 8).shape()


def test_heads_must_be_known() -> None:
    with pytest.raises(ValueError, match="names no attention heads"):
        Hand().layer(0).product("head", 50, 8).shape(heads=None)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="not query, key, value and output"):
        Hand().layer(0, kv=2).product("head", 50, 8).shape(heads=(3, 3))


def test_attention_that_is_spelled_out_is_found_by_its_module() -> None:
    hand = Hand().product("h.0.attn.qkv", 24, 8)
    hand.op("softmax", writes={"p": 8}, path="h.0.attn")
    hand.product("h.0.attn.o", 8, 8).product("h.0.up", 16, 8).product("h.0.down", 8, 16).product("head", 50, 8)
    graph = hand.graph(attention=[AttentionModule(path="h.0.attn", causal=True)], heads=(2, 2))
    assert paper_shape(graph).kv_heads == 2
