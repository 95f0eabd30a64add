"""Configs of the kinds that public files have: which are priced, and what is said of the others, naming the field."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from tiny import TINY

from profiler.models.graphs import Tracing, model_graphs, model_source
from profiler.record.run import RequestError
from roofline.workload import Workload

LLAMA: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 320,
    "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "torch_dtype": "bfloat16",
}  # fmt: skip
QWEN35 = {
    "model_type": "qwen3_5_text", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 320, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    "layer_types": ["linear_attention"] * 3 + ["full_attention"],
}  # fmt: skip
TEXT = {key: value for key, value in LLAMA.items() if key != "architectures"}
QWEN_VL = {
    **TEXT, "model_type": "qwen3_vl_text", "head_dim": 16,
    "rope_scaling": {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True},
}  # fmt: skip
VISION = {"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 64}
CLIP = {"model_type": "clip_vision_model", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
LATENT = TINY["deepseek_v3"]
INT4 = {"weights": {"num_bits": 4, "type": "int", "group_size": 32}, "targets": ["Linear"]}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32}

PRICED: dict[str, dict[str, Any]] = {
    "plain": LLAMA,
    "a class of one's own": LLAMA | {"architectures": ["MyTunedForCausalLM"]},
    "a class as a text": LLAMA | {"architectures": "LlamaForCausalLM"},
    "no class": TEXT,
    "a class of another task": LLAMA | {"architectures": ["LlamaForSequenceClassification"]},
    "text inside a wrapper": {
        "model_type": "qwen3_5", "architectures": ["Qwen3_5ForConditionalGeneration"], "text_config": QWEN35,
        "vision_config": VISION},
    "Llava": {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"], "text_config": TEXT,
              "vision_config": CLIP, "vision_feature_layer": -2},
    "Gemma 3": {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"],
                "text_config": TINY["gemma3"], "vision_config": {"hidden_size": 32, "num_hidden_layers": 1}},
    "text without a causal model of its own": {
        "model_type": "qwen3_vl", "architectures": ["Qwen3VLForConditionalGeneration"], "text_config": QWEN_VL,
        "vision_config": VISION | {"deepstack_visual_indexes": [0]}},
    "an unknown wrapper": {"model_type": "internvl_chat", "architectures": ["InternVLChatModel"], "llm_config": LLAMA,
                           "select_layer": -1,
                           "auto_map": {"AutoConfig": "configuration_internvl_chat.InternVLChatConfig"}},
    "an unknown wrapper of another name": {"model_type": "deepseek_vl_v9", "language_config": LLAMA},
    "an unknown type of a known class": LATENT | {
        "model_type": "kimi_k9", "architectures": ["DeepseekV3ForCausalLM"], "auto_map": {"AutoConfig": "a.B"}},
    "saved infinity": TINY["mamba2"] | {"time_step_limit": [0.0, {"__float__": "Infinity"}]},
    "plain infinity": TINY["mamba2"] | {"time_step_limit": [0.0, math.inf]},
    "flash attention": LLAMA | {"_attn_implementation": "flash_attention_2"},
    "flash attention inside": {
        "model_type": "llava", "text_config": TEXT | {"attn_implementation": "flash_attention_2"},
        "vision_config": CLIP},
    "dtype instead of torch_dtype": {**TEXT, "dtype": "float16", "torch_dtype": None},
    "dtype with its module": TEXT | {"torch_dtype": "torch.bfloat16"},
    "an old rope": LLAMA | {"rope_scaling": {"type": "linear", "factor": 2.0}},
    "a new rope": LLAMA | {"rope_parameters": {
        "rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6, "original_max_position_embeddings": 256}},
    "rope of llama 3": LLAMA | {"rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256}},
    "null where a default is": LLAMA | {"rope_scaling": None, "pad_token_id": None, "head_dim": None},
    "Mistral with kinds of layers": TINY["mistral"] | {
        "head_dim": 8, "layer_types": ["full_attention", "sliding_attention"]},
    "mxfp4": TINY["gpt_oss"] | {
        "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}},
    "awq": LLAMA | {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True}},
    "gptq": LLAMA | {"quantization_config": GPTQ},
    "fp8": LLAMA | {"quantization_config": {"quant_method": "fp8", "weight_block_size": [32, 32]}},
    "4 bits of bitsandbytes": LLAMA | {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
    "old compressed tensors": LLAMA | {"compression_config": {
        "quant_method": "compressed-tensors", "config_groups": {"group_0": INT4}, "ignore": ["lm_head"]}},
    "quantised inside": {"model_type": "llava", "text_config": TEXT | {"quantization_config": GPTQ},
                         "vision_config": CLIP},
    "an encoder with a decoder": {
        "model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "d_model": 64, "d_ff": 96, "num_layers": 2,
        "num_heads": 4, "d_kv": 16, "vocab_size": 320, "is_encoder_decoder": True},
    "MLX": LLAMA | {
        "quantization": {"group_size": 32, "bits": 4}, "quantization_config": {"group_size": 32, "bits": 4}},
    "an unknown method": LLAMA | {"quantization_config": {"quant_method": "of-next-year"}},
}  # fmt: skip

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown type": ({"model_type": "llama9"}, "update transformers"),
    "code of its own": ({"model_type": "own", "auto_map": {"AutoConfig": "a.B"}}, "--trust-remote-code"),
    "an encoder": ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "name a decoder"),
    "a negative size": (LLAMA | {"hidden_size": -1024}, "hidden_size in config.json is -1024"),
    "no layers": (LLAMA | {"num_hidden_layers": 0}, "num_hidden_layers in config.json is 0"),
    "very many layers": (LLAMA | {"num_hidden_layers": 10**9}, "num_hidden_layers in config.json is 1000000000"),
    "many layers inside": ({"model_type": "llava", "text_config": TEXT | {"num_hidden_layers": 10**9}},
                           "text_config.num_hidden_layers"),
    "twenty digits": (LLAMA | {"intermediate_size": 10**20}, "intermediate_size in config.json is a number of 21"),
    "a broken size": (LLAMA | {"hidden_size": 64.5}, "hidden_size in config.json is 64.5"),
    "a size as a text": (LLAMA | {"vocab_size": "many"}, "vocab_size in config.json is 'many'"),
    "a size as a list": (LLAMA | {"num_attention_heads": {}}, "num_attention_heads"),
    "a switch as a size": (LLAMA | {"num_key_value_heads": True}, "num_key_value_heads in config.json is True"),
    "padding beyond the vocabulary": (LLAMA | {"pad_token_id": 320}, "pad_token_id in config.json is 320"),
    "an unknown activation": (LLAMA | {"hidden_act": "swiglu"}, "hidden_act in config.json is 'swiglu'"),
    "no base of the rope": (LLAMA | {"rope_theta": None}, "rope_theta in config.json is null"),
    "a base below 0": (LLAMA | {"rope_theta": -1}, "rope_theta in config.json is -1"),
    "an unknown rope": (LLAMA | {"rope_scaling": {"rope_type": "spiral", "factor": 2}}, "rope_type"),
    "a rope of no object": (LLAMA | {"rope_scaling": 8}, "rope_"),
    "heads that do not divide": (LLAMA | {"num_key_value_heads": 3}, "num_key_value_heads in config.json is 3"),
    "a width that heads do not divide": (LLAMA | {"hidden_size": 66}, "hidden_size in config.json is 66"),
    "an odd head": (LLAMA | {"head_dim": 15}, "head_dim in config.json is 15"),
    "an unknown dtype": (LLAMA | {"torch_dtype": "bfloat17"}, "torch_dtype in config.json is 'bfloat17'"),
    "classes that are none": (LLAMA | {"architectures": [7]}, "architectures"),
    "experts that nobody chooses": (TINY["qwen3_moe"] | {"num_experts_per_tok": 0}, "num_experts_per_tok"),
    "more experts than there are": (TINY["qwen3_moe"] | {"num_experts_per_tok": 9}, "num_experts_per_tok"),
    "chunks of nothing": (TINY["mamba2"] | {"chunk_size": 0}, "chunk_size in config.json is 0"),
    "no positions of GPT-2": (TINY["gpt2"] | {"n_embd": 30}, "n_embd in config.json is 30"),
    "bits that are none": (LLAMA | {"quantization_config": {"quant_method": "awq", "bits": "x"}}, "bits is 'x'"),
}  # fmt: skip


def price(folder: Path, config: dict[str, Any]) -> list[str]:
    """The notes on a config that a decode step can be traced of."""
    (folder / "config.json").write_text(json.dumps(config))
    graphs, notes = model_graphs(str(folder), Tracing(dtype="bfloat16"))
    one = Workload(batch=1, query_tokens=1, context_tokens=16, dtype="bfloat16")
    graph = model_source(graphs, (), "fused").whole(one)
    assert sum(op.matrix_flops for op in graph.ops) > 0
    assert not [tensor.name for tensor in graph.tensors if "visual" in (tensor.name or "")]
    return notes


def test_configs_of_the_kinds_that_public_files_have_are_priced(tmp_path: Path) -> None:
    failed = {}
    for name, config in PRICED.items():
        try:
            price(tmp_path, config)
        except Exception as error:  # noqa: BLE001 - each failure is listed
            failed[name] = f"{type(error).__name__}: {error}"
    assert not failed


def test_configs_that_cannot_be_priced_are_one_line_that_names_the_field(tmp_path: Path) -> None:
    for name, (config, said) in REFUSED.items():
        with pytest.raises(RequestError) as caught:
            price(tmp_path, config)
        text = str(caught.value)
        assert said in text, f"{name}: {text}"
        assert "\n" not in text and "fewer tokens" not in text, name


def test_notes_say_how_a_file_was_read(tmp_path: Path) -> None:
    for name, said in (
        ("a class of one's own", "priced as LlamaForCausalLM"),
        ("text inside a wrapper", "the language part of Qwen3_5ForConditionalGeneration"),
        ("an unknown wrapper", "its llm_config is priced, a llama"),
        ("an unknown type of a known class", "kimi_k9 is read as deepseek_v3"),
        ("flash attention", "asks for flash_attention_2"),
        ("an unknown method", "of-next-year, whose bits are not known"),
    ):
        assert any(said in note for note in price(tmp_path, PRICED[name])), name
