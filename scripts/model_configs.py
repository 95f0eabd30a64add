"""Configs of the model types that are checked: the default one, with what it lacks, and with few layers."""

from collections.abc import Mapping
from typing import Any

import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from profiler.models.build import build_meta
from profiler.models.resolve import truncate

LAYERS = (4, 6, 8, 12, 16, 24)
"""Numbers of layers to try; the first that keeps every class of modules and every kind of layer is traced."""

_ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
_WIDTH = {"head_dim": 128}  # hidden size ÷ heads; the default is None, which the rotary embedding cannot take

_INDEXER = {
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 256,
    "indexer_budget": 2048,
    "indexer_compress_ratio": 4,
}

FILLED: Mapping[str, Mapping[str, Any]] = {
    "bamba": {"attn_layer_indices": [3, 9]},  # none is None, and the cache wants an attention layer
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE}},
    "dbrx": {"attn_config.rope_theta": 10_000.0, "attn_config.clip_qkv": 8},
    "deepseek_v2": {"num_experts_per_tok": 6},
    "dots1": {"n_routed_experts": 128, "n_shared_experts": 2, "num_experts_per_tok": 6},
    "gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}},
    "granitemoehybrid": {"layer_types": ["mamba", "mamba", "mamba", "attention"] * 8},  # only mamba: see bamba
    "hunyuan_v1_dense": _WIDTH,
    "hunyuan_v1_moe": _WIDTH,
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention", "conv"] * 8},
    "ministral": _WIDTH,
    "nemotron": {"num_key_value_heads": 48},
    "qwen4_exp": {f"text_config.{name}": value for name, value in _INDEXER.items()},
    "qwen4_exp_text": _INDEXER,
    "reformer": {"is_decoder": True},
    "xmod": {"default_language": "en_XX"},
}
"""Fields that a default config lacks to be a valid model; values that are a choice come from the model's paper or
published config."""

INNER = {"musicgen": ("decoder", 4), "musicgen_melody": ("decoder", 4)}
"""Type -> nested config of the causal model, where it is no text config, and rows of token ids, one for a codebook."""


def filled_config(model_type: str, fields: Mapping[str, Any]) -> PretrainedConfig:
    """The default config with fields filled in; a dot in a name leads into a nested config."""
    nested = {name: value for name, value in fields.items() if "." in name}
    config = AutoConfig.for_model(model_type, **{name: fields[name] for name in fields if name not in nested})
    if model_type in INNER:
        config = getattr(config, INNER[model_type][0])
        made = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type])
        made.config_class = type(config)
        AutoModelForCausalLM.register(type(config), made, exist_ok=True)
    config.is_encoder_decoder = False  # as the causal class of such a type sets it
    for name, value in nested.items():
        path, _, last = name.rpartition(".")
        owner: Any = config
        for part in path.split("."):
            owner = getattr(owner, part)
        setattr(owner, last, value)
    return config


def shrunk(config: PretrainedConfig, needed: set[str]) -> PretrainedConfig:
    """`config` with the fewest layers that keep the module classes `needed` and all kinds of layers, else itself."""
    for layers in LAYERS:
        try:
            fewer = truncate(config, layers)
            if hasattr(fewer, "num_blocks"):  # xLSTM's own name for its layers
                fewer.num_blocks = layers
            kept = classes_of(build_meta(fewer, "bfloat16"))
        except Exception:  # noqa: BLE001 - a config may refuse to have fewer layers
            continue
        if needed <= kept and _kinds(fewer) == _kinds(config):
            return fewer
    return config


def _kinds(config: PretrainedConfig) -> set[str]:
    decoder = config.get_text_config(decoder=True)
    names = ("layer_types", "mlp_layer_types", "layers_block_type", "block_types", "attn_layers")
    return {f"{name} {kind}" for name in names for kind in (getattr(decoder, name, None) or ())}


def classes_of(model: nn.Module) -> set[str]:
    """Return the names of the classes of a model's modules."""
    return {type(module).__name__ for module in model.modules()}
