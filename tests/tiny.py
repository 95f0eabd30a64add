"""Tiny configs of real model types, one a family: two to four layers, small widths, nothing to download.

Example: ``tiny("llama").num_hidden_layers == 2``
"""

from typing import Any

from transformers import AutoConfig, PretrainedConfig

_DENSE: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
_LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}

TINY: dict[str, dict[str, Any]] = {
    "llama": _DENSE | {"model_type": "llama", "tie_word_embeddings": False},
    "qwen2": _DENSE | {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3_moe": _DENSE
    | {
        "model_type": "qwen3_moe",
        "head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
    },
    "mistral": _DENSE | {"model_type": "mistral", "sliding_window": 8},
    "mixtral": _DENSE | {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
    "gemma2": _DENSE
    | {
        "model_type": "gemma2",
        "head_dim": 8,
        "sliding_window": 8,
        "query_pre_attn_scalar": 8,
        "tie_word_embeddings": True,
    },
    "gemma3": _DENSE
    | {
        "model_type": "gemma3_text",
        "num_hidden_layers": 4,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "sliding_window": 8,
        "query_pre_attn_scalar": 8,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        "tie_word_embeddings": True,
    },
    "phi": _DENSE | {"model_type": "phi", "num_key_value_heads": 4, "partial_rotary_factor": 0.5},
    "phi3": _DENSE | {"model_type": "phi3", "original_max_position_embeddings": 256},
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": 128,
        "n_positions": 256,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "bos_token_id": 0,
        "eos_token_id": 1,
    },
    "opt": {
        "model_type": "opt",
        "vocab_size": 128,
        "hidden_size": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "word_embed_proj_dim": 32,
    },
    "falcon": {
        "model_type": "falcon",
        "vocab_size": 128,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "multi_query": True,
        "parallel_attn": True,
        "new_decoder_architecture": False,
        "bias": False,
        "alibi": False,
        "max_position_embeddings": 256,
        "bos_token_id": 0,
        "eos_token_id": 1,
    },
    "deepseek_v2": _DENSE | _LATENT | {"model_type": "deepseek_v2", "topk_method": "greedy", "num_hidden_layers": 2},
    "deepseek_v3": _DENSE | _LATENT | {"model_type": "deepseek_v3", "num_hidden_layers": 3},
    "deepseek_v32": _DENSE
    | _LATENT
    | {"model_type": "deepseek_v32", "num_hidden_layers": 2, "index_topk": 6, "index_n_heads": 2, "index_head_dim": 8},
    "llama4_text": _DENSE
    | {
        "model_type": "llama4_text",
        "head_dim": 8,
        "intermediate_size_mlp": 48,
        "num_local_experts": 8,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 1,
    },
    "jetmoe": _DENSE
    | {
        "model_type": "jetmoe",
        "num_key_value_heads": 4,
        "kv_channels": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
    "dbrx": {
        "model_type": "dbrx",
        "vocab_size": 128,
        "d_model": 32,
        "n_heads": 4,
        "n_layers": 2,
        "max_seq_len": 256,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10_000.0, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 16, "moe_top_k": 4, "hidden_size": 32},
    },
    "gpt_oss": _DENSE
    | {
        "model_type": "gpt_oss",
        "head_dim": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 150000.0},
    },
    "mamba": {
        "model_type": "mamba",
        "vocab_size": 128,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "state_size": 4,
        "conv_kernel": 4,
        "time_step_rank": 2,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 0,
    },
    "mamba2": {
        "model_type": "mamba2",
        "vocab_size": 128,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "state_size": 8,
        "conv_kernel": 4,
        "expand": 2,
        "num_heads": 8,
        "head_dim": 8,
        "n_groups": 1,
        "chunk_size": 8,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 0,
    },
    "qwen3_next": _DENSE
    | {
        "model_type": "qwen3_next",
        "num_hidden_layers": 4,
        "head_dim": 8,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    },
}
"""Fields of each config by family."""


def tiny(name: str) -> PretrainedConfig:
    """A new config of the family `name`; KeyError names what there is not."""
    fields = dict(TINY[name])
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


def layered(name: str, layers: int) -> PretrainedConfig:
    """A new config of the family `name` with another number of layers, of the kinds that it has, in turn."""
    fields = dict(TINY[name]) | {"num_hidden_layers": layers}
    kinds = fields.get("layer_types")
    if kinds:
        fields["layer_types"] = [kinds[i % len(kinds)] for i in range(layers)]
    return AutoConfig.for_model(fields.pop("model_type"), **fields)
