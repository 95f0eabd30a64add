"""Prices a decode step of configurations of the kinds that public checkpoints have, and writes what came of each.

Each row of `MODELS` is a `config.json` as its publisher wrote it: the fields in which it differs from the default
config of its type, in the form of transformers 4 (`rope_theta`, `rope_scaling`, `torch_dtype`) unless it says
otherwise. `QUANTISED` has the settings of stored weights, each on a model of its own. The files are written to a folder
and read by `predict`'s own reader, so that all of the way from the file to the price is tried, at full width and with
as few layers as have all kinds of layers.

Example::

    python -m scripts.public_configs --out docs/configs.md
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from profiler.models.catalogue import silence
from profiler.models.graphs import Tracing, model_graphs, model_source
from profiler.models.resolve import layer_count, truncate
from profiler.record.run import RequestError
from roofline.workload import Workload

Fields = Mapping[str, Any]
STEP = Workload(batch=1, query_tokens=1, context_tokens=64, dtype="bfloat16")
KINDS = ("layer_types", "mlp_layer_types", "layers_block_type", "block_types", "attn_layers")
"""Fields of a config with the kind of each layer."""


@dataclass(frozen=True)
class Public:
    """A checkpoint's configuration."""

    name: str
    type: str = ""
    """Type of `transformers` whose default config it starts from; "" is a file with no more than `edits`."""
    fields: Fields = field(default_factory=dict)
    """Arguments of the config class."""
    edits: Fields = field(default_factory=dict)
    """Fields of the written file; None removes one."""
    beside: Fields = field(default_factory=dict)
    """Files beside it, by name."""
    is_new: bool = False
    """Whether the file is in the form of transformers 5."""
    refused: str = ""
    """Words of the refusal, for a file that is not priced."""

    def write(self, folder: Path) -> None:
        """Write `config.json` and what stands beside it."""
        raw = _raw(self.type, self.fields, self.is_new) if self.type else {}
        raw = {key: value for key, value in (raw | dict(self.edits)).items() if value is not None}
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in {"config.json": raw, **self.beside}.items():
            (folder / name).write_text(json.dumps(content))


def _raw(kind: str, fields: Fields, is_new: bool) -> dict[str, Any]:
    """The fields that `save_pretrained` writes for a config, in the old form unless `is_new`."""
    raw: dict[str, Any] = json.loads(AutoConfig.for_model(kind, **fields).to_json_string(use_diff=False))
    return raw if is_new else _old(raw)


def _old(raw: dict[str, Any]) -> dict[str, Any]:
    rope = raw.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:
        del raw["rope_parameters"]
        raw["rope_theta"] = rope.pop("rope_theta")
        if "partial_rotary_factor" in rope:
            raw["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
        raw["rope_scaling"] = rope if rope.keys() - {"rope_type"} or rope.get("rope_type") != "default" else None
    raw["torch_dtype"] = raw.pop("dtype", None) or "bfloat16"
    return {
        key: _old(value) if isinstance(value, dict) and "model_type" in value else value for key, value in raw.items()
    }


def _code(stem: str) -> dict[str, Any]:
    """The `auto_map` of a repository with code of its own."""
    return {"auto_map": {"AutoConfig": f"configuration_{stem}.C", "AutoModelForCausalLM": f"modeling_{stem}.M"}}


LLAMA_8B = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
    "rope_theta": 5e5, "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009],
}  # fmt: skip
LLAMA3_ROPE = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
YARN = {"type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096}  # fmt: skip
QWEN3_8B = {
    "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 40960,
}  # fmt: skip
MISTRAL_12B = {
    "hidden_size": 5120, "intermediate_size": 14336, "num_hidden_layers": 40, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 131072, "max_position_embeddings": 1024000,
}  # fmt: skip
LLAMA_FILE = LLAMA_8B | {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16", "rope_scaling": None,
    "hidden_act": "silu", "tie_word_embeddings": False, "transformers_version": "4.43.0",
}  # fmt: skip
FP8_BLOCKS = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}


def _group(weights: Fields, inputs: Fields | None = None) -> dict[str, Any]:
    return {"config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": inputs}},
            "ignore": ["lm_head"], "quant_method": "compressed-tensors"}  # fmt: skip


QUANTISED: dict[str, Fields] = {
    "AWQ": {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"},
    "GPTQ": {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": True, "sym": True, "damp_percent": 0.1},
    "GPTQModel": {"quant_method": "gptq", "bits": 4, "group_size": 32, "dynamic": {"-:.*down_proj": {}},
                  "meta": {"quantizer": ["gptqmodel:2.0.0"]}},
    "AutoRound": {"quant_method": "auto-round", "bits": 4, "group_size": 128, "sym": True,
                  "packing_format": "auto_round:auto_gptq"},
    "bitsandbytes nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True,
                         "_load_in_4bit": True, "llm_int8_skip_modules": None, "quant_method": "bitsandbytes"},
    "bitsandbytes int8": {"load_in_8bit": True, "_load_in_8bit": True, "llm_int8_threshold": 6.0},
    "FP8 in blocks": FP8_BLOCKS,
    "FP8 a matrix": {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]},
    "FBGEMM": {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0, "modules_to_not_convert": ["lm_head"]},
    "W8A8 float": _group({"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True},
                         {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True}),
    "W8A8 integer": _group({"num_bits": 8, "type": "int", "strategy": "channel"},
                           {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True}),
    "W4A16": _group({"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128, "symmetric": False}),
    "NVFP4 packed": _group({"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16},
                           {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}),
    "ModelOpt": {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16, "ignore": ["lm_head"]},
    "MXFP4": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
    "Quark": {"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "fp8_e4m3"}}},
    "HQQ": {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 64}}},
    "AQLM": {"quant_method": "aqlm", "in_group_size": 8, "nbits_per_codebook": 16, "num_codebooks": 1},
    "VPTQ": {"quant_method": "vptq", "config_for_layers": {}},
    "HIGGS": {"quant_method": "higgs", "bits": 4, "p": 2, "group_size": 256, "hadamard_size": 512},
    "SpQR": {"quant_method": "spqr", "bits": 3, "beta1": 16, "beta2": 16},
    "EETQ": {"quant_method": "eetq", "weights": "int8"},
    "Quanto": {"quant_method": "quanto", "weights": "int4", "activations": None},
    "EXL2": {"quant_method": "exl2", "version": "0.1.5", "bits": 4.25, "head_bits": 6},
    "torchao": {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int4WeightOnlyConfig",
                                                                     "_data": {"group_size": 128}}}},
    "a method of next year": {"quant_method": "of-next-year"},
}  # fmt: skip
"""Settings of stored weights as public files have them, by method."""

CLIP = {"model_type": "clip_vision_model", "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
MLX_4 = {"group_size": 64, "bits": 4}

MODELS: tuple[Public, ...] = (
    *(Public(f"llama-3.1-8b {name}", edits=LLAMA_FILE | {"quantization_config": own})
      for name, own in QUANTISED.items()),
    Public("llama-3.1-8b old compressed tensors", edits=LLAMA_FILE | {"compression_config": QUANTISED["W4A16"]}),
    Public("llama-3.1-8b MLX", edits=LLAMA_FILE | {"quantization": MLX_4, "quantization_config": MLX_4}),
    Public("llama-3.1-8b hf_quant_config.json", edits=LLAMA_FILE, beside={"hf_quant_config.json": {
        "producer": {"name": "modelopt", "version": "0.23.0"},
        "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}}}),
    Public("llama-3.1-8b quantize_config.json", edits=LLAMA_FILE, beside={"quantize_config.json": {
        "bits": 4, "group_size": 128, "desc_act": False}}),
    Public("llama-3.1-8b", "llama", LLAMA_8B, {"rope_scaling": LLAMA3_ROPE}),
    Public("llama-2-7b", "llama", {}, {"torch_dtype": "float16", "pretraining_tp": 1, "rope_theta": None}),
    Public("llama-2 of a tuner", "llama", {}, {"architectures": ["MyLlamaForCausalLM"], "use_cache": False}),
    Public("llama in one text", "llama", {}, {"architectures": "LlamaForCausalLM"}),
    Public("llama with flash attention", "llama", {}, {"_attn_implementation": "flash_attention_2"}),
    Public("vicuna-16k, linear rope", "llama", {}, {"rope_scaling": {"type": "linear", "factor": 8.0}}),
    Public("llama-3 saved by transformers 5", "llama", LLAMA_8B, is_new=True),
    Public("llama-4-scout", "llama4"), Public("llama-4 text", "llama4_text"),
    Public("llama-3.2-11b-vision", "mllama", {"text_config": {"vocab_size": 128256}}),
    Public("mistral-7b-v0.1", "mistral"), Public("mistral-7b-v0.3", "mistral", {"sliding_window": None}),
    Public("mistral-nemo", "mistral", MISTRAL_12B | {"sliding_window": None}),
    Public("mixtral-8x7b", "mixtral"), Public("ministral", "ministral", {"head_dim": 128}),
    Public("ministral-3", "ministral3"), Public("mistral-small-3.1", "mistral3"),
    Public("pixtral-12b", "llava", {}, {
        "text_config": MISTRAL_12B | {"model_type": "mistral"}, "vision_config": {"model_type": "pixtral"},
        "vision_feature_layer": -1}),
    Public("qwen2.5-7b", "qwen2", {"num_key_value_heads": 4}, {"use_sliding_window": False, "sliding_window": 131072}),
    Public("qwen1.5-moe", "qwen2_moe"), Public("qwen2-vl", "qwen2_vl"), Public("qwen2.5-vl", "qwen2_5_vl"),
    Public("qwen2-audio", "qwen2_audio"), Public("qwen2.5-omni", "qwen2_5_omni"),
    Public("qwen3-8b", "qwen3", QWEN3_8B), Public("qwen3-30b-a3b", "qwen3_moe", {"mlp_only_layers": []}),
    Public("qwen3-8b yarn", "qwen3", QWEN3_8B, {
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}}),
    Public("qwen3-235b FP8", "qwen3_moe", {}, {"quantization_config": FP8_BLOCKS}),
    Public("qwen3-next-80b", "qwen3_next"), Public("qwen3-vl", "qwen3_vl"), Public("qwen3-vl-30b", "qwen3_vl_moe"),
    Public("qwen3-omni", "qwen3_omni_moe", {"thinker_config": {"text_config": {
        "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128}}}),
    Public("qwen3.5-27b", "qwen3_5"), Public("qwen3.5-35b", "qwen3_5_moe"), Public("qwen3.6 text", "qwen3_5_moe_text"),
    Public("gemma-7b", "gemma", {}, {"hidden_activation": None}), Public("gemma-2-2b", "gemma2"),
    Public("gemma-3-27b", "gemma3", {}, {"text_config": {
        "model_type": "gemma3_text", "hidden_size": 5376, "intermediate_size": 21504, "num_hidden_layers": 62,
        "num_attention_heads": 32, "num_key_value_heads": 16, "head_dim": 128, "sliding_window": 1024,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}}}),
    Public("gemma-3-1b", "gemma3_text"), Public("gemma-3n", "gemma3n"), Public("gemma-4", "gemma4"),
    Public("phi-1.5", "phi"), Public("phi-3-mini", "phi3", {}, {"sliding_window": 2047} | _code("phi3")),
    Public("phi-3-mini-128k", "phi3", {"max_position_embeddings": 131072}, {"rope_scaling": {
        "type": "longrope", "short_factor": [1.0] * 48, "long_factor": [1.1] * 48}}),
    Public("phi-3.5-moe", "phimoe"), Public("phi-4-multimodal", "phi4_multimodal"),
    Public("deepseek-llm-7b", "llama", {"num_hidden_layers": 30, "vocab_size": 102400}),
    Public("deepseek-v2-lite", "deepseek_v2", {"num_experts_per_tok": 6, "q_lora_rank": None}, _code("deepseek")),
    Public("deepseek-v3", "deepseek_v3", {}, {"quantization_config": FP8_BLOCKS, "rope_scaling": YARN}),
    Public("deepseek-v3.2", "deepseek_v32", {}, {"quantization_config": FP8_BLOCKS | {"scale_fmt": "ue8m0"}}),
    Public("deepseek-v4", "deepseek_v4", is_new=True), Public("deepseek-vl", "deepseek_vl"),
    Public("kimi-k2", "deepseek_v3", {"n_routed_experts": 384, "num_attention_heads": 64}, {
        "model_type": "kimi_k2", "architectures": ["DeepseekV3ForCausalLM"]} | _code("deepseek")),
    Public("kimi-k2.5", "kimi_k25"), Public("kimi-linear", "kimi_linear"),
    Public("kimi-vl, unknown wrapper", edits={
        "model_type": "kimi_vl_next", "architectures": ["KimiVLForConditionalGeneration"], **_code("kimi_vl"),
        "text_config": {"model_type": "deepseek_v3"}, "vision_config": {"model_type": "moonvit"}}),
    Public("glm-4-9b", "glm4"), Public("glm-4.5", "glm4_moe"), Public("glm-4.7-flash", "glm4_moe_lite"),
    Public("glm-4.1v", "glm4v", {"text_config": {"partial_rotary_factor": 0.5}}),
    Public("glm-4.5v", "glm4v_moe", {"text_config": {"head_dim": 128, "partial_rotary_factor": 0.5}}),
    Public("glm-5", "glm_moe_dsa"), Public("glm-5-next", "glm5_next"),
    Public("minimax-text-01", "minimax"), Public("minimax-m2.5", "minimax_m2", {}, _code("minimax_m2")),
    Public("minimax-m3", "minimax_m3_vl"),
    Public("nemotron-4-15b", "nemotron", {"num_key_value_heads": 48}), Public("nemotron-3-nano", "nemotron_h"),
    Public("granite-3.1-8b", "granite"), Public("granite-3-moe", "granitemoe"),
    Public("granite-4-h", "granitemoehybrid", {"layer_types": ["mamba", "mamba", "mamba", "attention"] * 8}),
    Public("gpt-oss-120b", "gpt_oss", {}, {"quantization_config": QUANTISED["MXFP4"]}),
    Public("jamba", "jamba"), Public("zamba", "zamba"), Public("zamba2", "zamba2"), Public("rwkv-4", "rwkv"),
    Public("xlstm-7b", "xlstm"), Public("mamba-2.8b", "mamba"), Public("falcon-mamba", "falcon_mamba"),
    Public("mamba-2 with infinity", "mamba2", {}, {"time_step_limit": [0.0, {"__float__": "Infinity"}]}),
    Public("codestral-mamba, bare infinity", "mamba2", {}, {"time_step_limit": [0.0, float("inf")]}),
    Public("falcon-h1", "falcon_h1"), Public("bamba", "bamba", {"attn_layer_indices": [1, 3]}),
    Public("recurrentgemma", "recurrent_gemma"), Public("lfm2", "lfm2"), Public("lfm2-vl", "lfm2_vl"),
    Public("lfm2-moe", "lfm2_moe", {"layer_types": ["conv", "conv", "full_attention", "conv"] * 8}),
    Public("falcon-7b", "falcon", {}, {"alibi": False, "apply_residual_connection_post_layernorm": False}),
    Public("falcon-40b", "falcon", {"new_decoder_architecture": True, "num_kv_heads": 8, "hidden_size": 8192,
                                    "num_attention_heads": 128}),
    Public("hunyuan-7b", "hunyuan_v1_dense", {"head_dim": 128}),
    Public("hunyuan-a13b", "hunyuan_v1_moe", {"head_dim": 128}, {
        "moe_topk": [8] * 32, "num_experts": 64}),
    Public("ernie-4.5-0.3b", "ernie4_5"), Public("ernie-4.5-21b", "ernie4_5_moe"),
    Public("ernie-4.5-vl", "ernie4_5_vl_moe"),
    Public("idefics2", "idefics2"), Public("idefics3", "idefics3"), Public("smolvlm", "smolvlm"),
    Public("internvl3", "internvl"), Public("internvl2, chat", edits={
        "model_type": "internvl_chat", "architectures": ["InternVLChatModel"], "llm_config": LLAMA_FILE,
        "vision_config": {"model_type": "intern_vit_6b"}, **_code("internvl_chat")}),
    Public("llava-1.5", "llava", {}, {"text_config": {"model_type": "llama"}, "vision_config": CLIP}),
    Public("llava-next", "llava_next"), Public("llava-onevision", "llava_onevision"),
    Public("paligemma", "paligemma"), Public("aya-vision", "aya_vision"), Public("molmo2", "molmo2"),
    Public("command-r", "cohere"), Public("command-a", "cohere2"),
    Public("gpt2", "gpt2"), Public("gpt-j-6b", "gptj"), Public("gpt-neo-2.7b", "gpt_neo"),
    Public("pythia-12b", "gpt_neox", {}, {"rotary_pct": 0.25, "rotary_emb_base": 10000}),
    Public("opt-1.3b", "opt"), Public("bloom", "bloom"), Public("mpt-7b", "mpt", {}, _code("mpt")),
    Public("starcoder", "gpt_bigcode"), Public("starcoder2", "starcoder2"), Public("codegen", "codegen"),
    Public("stablelm", "stablelm"), Public("olmo-7b", "olmo"), Public("olmo-2", "olmo2"), Public("olmo-3", "olmo3"),
    Public("olmoe", "olmoe"), Public("dbrx", "dbrx", {}, {
        "attn_config": {"clip_qkv": 8, "kv_n_heads": 8, "model_type": "", "rope_theta": 500000}}),
    Public("smollm3", "smollm3"), Public("exaone-4", "exaone4"), Public("seed-oss", "seed_oss"),
    Public("apertus", "apertus"), Public("bitnet", "bitnet"), Public("internlm3", "internlm3"),
    Public("t5, decoder", "t5"), Public("bart, decoder", "bart"), Public("whisper, decoder", "whisper"),
    Public("chatglm3", edits={"model_type": "chatglm", **_code("chatglm")}, refused="--trust-remote-code"),
    Public("baichuan2", edits={"model_type": "baichuan", **_code("baichuan")}, refused="--trust-remote-code"),
    Public("internlm2", edits={"model_type": "internlm2", **_code("internlm2")}, refused="--trust-remote-code"),
    Public("nemotron-nas", edits={"model_type": "nemotron-nas", **_code("decilm")}, refused="--trust-remote-code"),
    Public("step-audio of next year", edits={"model_type": "step9"}, refused="model_type 'step9'; update transformers"),
    Public("bert", "bert", {}, {"architectures": ["BertForMaskedLM"]}, refused="name a decoder"),
    Public("clip", "clip", refused="name a decoder"), Public("vit", "vit", refused="name a decoder"),
    Public("a diffusers folder", edits={"_class_name": "UNet2DConditionModel"}, refused="has no model_type"),
    Public("an adapter's folder", edits={"peft_type": "LORA"}, refused="has no model_type"),
)  # fmt: skip


def fewest_layers(config: PretrainedConfig) -> int:
    """Return how many of the first layers have all kinds of layers, 2 at least where there are as many."""
    decoder, total = config.get_text_config(decoder=True), layer_count(config)
    kinds = [list(kind) for name in KINDS if (kind := getattr(decoder, name, None))]
    fewest = max((1 + kind.index(one) for kind in kinds for one in set(kind) if len(kind) == total), default=2)
    return min(total, max(2, fewest))


def outcome(public: Public, folder: Path) -> str:
    """Write and read a configuration, and return what its decode step multiplies, or the line that refuses it."""
    public.write(folder)
    try:
        graphs, _ = model_graphs(str(folder), Tracing(dtype="bfloat16"))
        few = replace(graphs, config=truncate(graphs.config, fewest_layers(graphs.config)))
        try:
            graph = model_source(few, (), "fused").whole(STEP)
        except RequestError:  # layers may share what those that are left have lost
            few, graph = graphs, model_source(graphs, (), "fused").whole(STEP)
    except RequestError as error:
        return f"refused: {str(error).replace(str(folder), 'FOLDER')}"
    flops = sum(op.matrix_flops * op.count for op in graph.ops)
    return f"{flops / 1e9:.3g} GFLOP in {layer_count(few.config)} layers"


def is_right(public: Public, found: str) -> bool:
    """Return whether a configuration was priced, or refused as it has to be."""
    return public.refused in found if found.startswith("refused: ") and public.refused else not (
        found.startswith("refused: ") or public.refused
    )  # fmt: skip


def table(rows: Iterable[tuple[Public, str]]) -> Iterator[str]:
    """The lines of the page."""
    rows = list(rows)
    priced = sum(not found.startswith("refused: ") for _, found in rows)
    yield "# Configurations of public checkpoints\n"
    yield f"Of {len(rows)} configurations of the kinds that public checkpoints have, {priced} are priced and the others"
    yield "are refused in one line. A decode step of each is traced at full width, with as few layers as have all kinds"
    yield "of layers; the files are written by `scripts/public_configs.py`.\n"
    yield "    python -m scripts.public_configs --out docs/configs.md\n"
    yield "| configuration | type | outcome |"
    yield "|---|---|---|"
    for public, found in rows:
        yield f"| {public.name} | {public.type or public.edits.get('model_type', '')} | {found.replace('|', ' ')} |"


def main(argv: list[str] | None = None) -> int:
    """Price all configurations and print the page; the exit code is 1 where one is not as it should be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="file for the page, in Markdown")
    parser.add_argument("--only", default="", help="names that hold this text")
    options = parser.parse_args(argv)
    silence()
    rows, wrong = [], 0
    with tempfile.TemporaryDirectory() as folder:
        for place, public in enumerate(one for one in MODELS if options.only in one.name):
            rows.append((public, outcome(public, Path(folder, str(place)))))
            if not is_right(*rows[-1]):
                wrong += 1
                print(f"{public.name}: {rows[-1][1]}", file=sys.stderr)
    page = "\n".join(table(rows)) + "\n"
    if options.out:
        options.out.write_text(page)
    else:
        print(page)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
