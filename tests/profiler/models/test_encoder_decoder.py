"""Parts of models beside causal decoders: the decoder of an encoder-decoder against `transformers` itself, and vision
towers of multimodal models."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import TINY
from transformers import BartConfig, BartForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from profiler.models.encoder_decoder import Both, decoder_alone
from profiler.models.graphs import Tracing, model_graphs, model_source
from profiler.models.resolve import resolve
from profiler.models.vision import vision_graph
from profiler.record.run import RequestError
from roofline.graph.memory import footprint
from roofline.workload import Workload

LAYERS, WIDTH, SOURCE, VOCABULARY, INNER = 2, 64, 24, 320, 128
BART: dict[str, Any] = {
    "model_type": "bart", "architectures": ["BartForConditionalGeneration"], "d_model": WIDTH, "vocab_size": VOCABULARY,
    "encoder_layers": 5, "decoder_layers": LAYERS, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": INNER, "decoder_ffn_dim": INNER, "max_position_embeddings": 128, "is_encoder_decoder": True,
    "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2,
}  # fmt: skip
VISION = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(BART))
    return tmp_path


def pass_of(query: int, context: int, batch: int = 3) -> Workload:
    return Workload(batch=batch, query_tokens=query, context_tokens=context, dtype="float32")


def test_a_decode_step_reads_the_encoders_keys_and_makes_none(folder: Path) -> None:
    graphs, notes = model_graphs(str(folder), Tracing(dtype="float32", source=SOURCE))
    assert any(f"cross-attention over {SOURCE} tokens" in note for note in notes)
    graph = model_source(graphs, (), "fused").whole(pass_of(1, 16))
    assert footprint(graph).kv_cache == 3 * LAYERS * 2 * WIDTH * (SOURCE + 17) * 4
    own, cross, inner = 4 * WIDTH**2, 2 * WIDTH**2, 2 * WIDTH * INNER  # q, k, v, o; q and o; both of the feed-forward
    products = LAYERS * (own + cross + inner) + WIDTH * VOCABULARY
    scores = LAYERS * 2 * WIDTH * (17 + SOURCE)
    assert sum(op.matrix_flops for op in graph.ops) == 3 * 2 * (products + scores)
    assert {name for name in graph.inactive if "encoder_attn" in name} == {
        f"model.decoder.layers.{layer}.encoder_attn.{part}_proj.{kind}"
        for layer in range(LAYERS)
        for part in "kv"
        for kind in ("weight", "bias")
    }


def test_the_first_pass_makes_keys_of_what_the_encoder_read_and_the_encoder_is_left_out(folder: Path) -> None:
    graphs, _ = model_graphs(str(folder), Tracing(dtype="float32", source=SOURCE))
    more, _ = model_graphs(str(folder), Tracing(dtype="float32", source=SOURCE + 1))
    flops = [
        sum(op.matrix_flops for op in model_source(g, (), "fused").whole(pass_of(4, 0, 1)).ops) for g in (graphs, more)
    ]
    assert flops[1] - flops[0] == LAYERS * (
        2 * 2 * WIDTH**2 + 4 * 2 * 2 * WIDTH
    )  # K and V of a token; 4 queries see it
    assert not [name for name, _ in graphs.model.named_parameters() if ".encoder.layers" in name]


def test_a_sweep_of_contexts_keeps_what_the_encoder_made(folder: Path) -> None:
    graphs, _ = model_graphs(str(folder), Tracing(dtype="float32", source=SOURCE))
    made = model_source(graphs, (), "fused")
    workloads = [pass_of(1, context) for context in (8, 16, 32, 64, 96)]
    for piece in made.family().cover(workloads):
        for i in piece.index.tolist():
            swept = sum(op.matrix_flops * op.count for op in piece.graph.at(workloads[i]).ops)
            assert swept == pytest.approx(sum(op.matrix_flops for op in made.whole(workloads[i]).ops))


def test_the_decoder_alone_computes_what_the_whole_model_computes() -> None:
    torch.manual_seed(0)
    whole = BartForConditionalGeneration(BartConfig(**{k: v for k, v in BART.items() if k != "model_type"})).eval()
    ids = torch.randint(3, VOCABULARY, (2, 6))
    states = BaseModelOutput(last_hidden_state=torch.zeros(2, SOURCE, WIDTH))
    with torch.no_grad():
        expected = whole(decoder_input_ids=ids, encoder_outputs=states).logits
        alone, cache = decoder_alone(whole, SOURCE), Both()
        first = alone(input_ids=ids[:, :4], past_key_values=cache, use_cache=True).logits
        rest = alone(input_ids=ids[:, 4:], past_key_values=cache, use_cache=True).logits
    assert torch.allclose(torch.cat([first, rest], dim=1), expected, atol=1e-5)
    assert len(cache.layers) == 2 * LAYERS and cache.layers[LAYERS].keys.shape[-2] == SOURCE


def test_what_has_no_encoder_and_what_is_to_be_measured(folder: Path) -> None:
    with pytest.raises(RequestError, match="predict prices its decoder"):
        resolve(str(folder))
    with pytest.raises(RequestError, match="--source: gpt2 has no encoder"):
        model_graphs("gpt2", Tracing(dtype="float32", source=3))


def test_the_vision_tower_is_priced_on_images_of_its_own_size(tmp_path: Path) -> None:
    config = {"model_type": "gemma3", "text_config": TINY["gemma3"], "vision_config": VISION | {
        "image_size": 28, "patch_size": 14}}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    graph, notes = vision_graph(str(tmp_path), 5, "float32")
    assert notes[-1] == "the vision tower alone (SiglipVisionModel), on 5 × 28 × 28 pixels"
    patches, width, inner = 4, 32, 48
    convolution = sum(op.matrix_flops for op in graph.ops if op.name == "aten::convolution")
    assert convolution == 5 * patches * 2 * width * 3 * 14**2
    layers = [op for op in graph.ops if "encoder.layers.2." in op.path]
    scores = 2 * 2 * patches**2 * width
    assert sum(op.matrix_flops for op in layers) == 5 * (patches * 2 * (4 * width**2 + 2 * width * inner) + scores)
    with pytest.raises(RequestError, match="--part vision: gpt2 has no vision tower"):
        vision_graph("gpt2", 1, "float32")
