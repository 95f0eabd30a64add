"""A model's own draft: its parts by hand, and what a request with it costs."""

import pytest
from whatif_graphs import check, totals, traced

from roofline.fusion.fuse import fused
from roofline.graph.memory import footprint
from roofline.graph.op import layer_of
from roofline.whatif.draft import JOINED, draft_head, shared_bytes
from roofline.whatif.layers import repeated_layers

HIDDEN, INNER, VOCABULARY, HEADS, KV_HEADS = 32, 48, 128, 4, 2


def test_a_draft_is_one_layer_a_product_of_twice_the_width_and_the_models_embedding_and_head() -> None:
    graph = traced("llama", "decode", layers=4)
    draft = draft_head(graph)
    check(draft)
    assert repeated_layers(draft) == [3]
    attention = HIDDEN * HIDDEN * 2 + 2 * HIDDEN * HIDDEN * KV_HEADS // HEADS
    parameters = attention + 3 * HIDDEN * INNER + 2 * HIDDEN * HIDDEN
    head, scores = VOCABULARY * HIDDEN, 2 * HIDDEN * 13
    assert totals(fused(draft))["matrix_flops"] == 2 * 2 * (parameters + head + scores)  # of two sequences
    assert draft.parameters == parameters + 2 * head + 3 * HIDDEN  # embedding, head and three norms
    assert footprint(fused(draft)).kv_cache == 2 * 2 * HIDDEN * KV_HEADS // HEADS * 13 * 2
    assert shared_bytes(draft) == footprint(draft).weights - 2 * (parameters + 2 * HIDDEN)


def test_the_layer_reads_the_joined_state_and_not_the_embedding() -> None:
    draft = draft_head(traced("llama", "prefill", layers=4))
    (product,) = (op for op in draft.ops if op.path == "draft.joined")
    embedding = next(op for op in draft.ops if op.kind == "embedding")
    assert draft.tensors[product.reads[-1].tensor].name == JOINED
    later = draft.ops[draft.ops.index(product) + 1 :]
    assert not [op for op in later if embedding.writes[0].tensor in {a.tensor for a in op.reads}]
    first = next(op for op in later if layer_of(op.path))
    assert product.writes[0].tensor in {a.tensor for a in first.reads}


@pytest.mark.parametrize("name", ["deepseek_v3", "qwen3_moe", "gpt2", "gemma3"])
def test_drafts_of_other_models_are_whole_graphs(name: str) -> None:
    draft = draft_head(traced(name, "decode"))
    check(draft)
    assert len(repeated_layers(draft)) == 1
