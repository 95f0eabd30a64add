"""The catalogue's facts: each shape has exactly the published number of parameters."""

import torch
from each import each

from profiler.models.build import build_meta
from profiler.models.catalogue import catalogue, config_of, find

FAMILIES = {
    "llama",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "mistral",
    "mixtral",
    "gemma2",
    "gemma3_text",
    "phi",
    "phi3",
    "gpt2",
    "opt",
    "falcon",
    "deepseek_v2",
    "deepseek_v3",
    "gpt_oss",
    "mamba",
    "llama4_text",
    "qwen3_5_text",
    "qwen3_5_moe_text",
    "glm_moe_dsa",
    "minimax_m2",
    "nemotron_h",
    "granitemoehybrid",
}

READ_BY_TRANSFORMERS = {"rope_theta", "rope_local_base_freq", "partial_rotary_factor", "head_dim"}
"""Fields of config.json that a config class takes without having an attribute of that name when it is left out."""


@each("name", catalogue())
def test_parameters_are_as_published(name: str) -> None:
    model = build_meta(config_of(name), "bfloat16")
    assert sum(p.numel() for p in model.parameters()) == catalogue()[name].parameters
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


PUBLISHED = {
    "qwen3-32b": 32.76, "gpt-oss-120b": 116.83, "kimi-k2": 1026.4, "gemma-3-4b": 3.88, "gemma-3-12b": 11.77,
    "gemma-3-27b": 27.01, "llama-4-scout": 107.77, "llama-4-maverick": 400.71, "qwen3.5-27b": 26.9,
    "qwen3.5-35b-a3b": 34.66, "qwen3.5-397b-a17b": 396.35, "glm-5": 743.9, "minimax-m2.5": 228.7,
    "nemotron-3-nano-30b-a3b": 31.58, "granite-4.0-h-small": 32.2, "granite-4.0-micro": 3.4,
}  # fmt: skip
"""Billions of parameters that their makers state, of the language part."""


def test_counts_are_those_that_their_makers_state() -> None:
    for name, billions in PUBLISHED.items():
        assert abs(catalogue()[name].parameters / 1e9 / billions - 1) < 2e-3, name


@each("name", catalogue())
def test_every_field_is_one_that_the_config_reads(name: str) -> None:
    default = type(config_of(name))()
    unknown = {field for field in catalogue()[name].config if not hasattr(default, field)}
    assert unknown <= READ_BY_TRANSFORMERS


def test_it_covers_the_families() -> None:
    entries = catalogue()
    assert len(entries) >= 25
    assert {entry.config["model_type"] for entry in entries.values()} >= FAMILIES
    assert all(name == name.lower() for name in entries)
    assert len({entry.repo for entry in entries.values()}) == len(entries)


def test_names_and_repositories_are_found_in_any_case() -> None:
    assert find("Llama-3.1-8B") == find("meta-llama/llama-3.1-8b") == "llama-3.1-8b"
    assert find("llama-3.1-8") is None


def test_a_config_is_new_each_time() -> None:
    config_of("gpt2").n_layer = 1
    assert config_of("gpt2").n_layer == 12


def test_positions_and_windows_reach_the_config() -> None:
    scaled = config_of("llama-3.2-1b").rope_parameters
    assert scaled["rope_theta"] == 500000.0
    assert (scaled["rope_type"], scaled["factor"]) == ("llama3", 32.0)
    local = config_of("gemma-3-1b")
    assert local.rope_parameters["sliding_attention"]["rope_theta"] == 10000.0
    assert local.rope_parameters["full_attention"]["rope_theta"] == 1000000.0
    assert local.layer_types.count("full_attention") == 4
    assert config_of("phi-2").rope_parameters["partial_rotary_factor"] == 0.4
    assert config_of("mistral-7b-v0.1").sliding_window == 4096
    assert config_of("mistral-7b-v0.3").sliding_window is None
    assert config_of("qwen2.5-7b").sliding_window is None
    assert config_of("gemma-2-2b").attn_logit_softcapping == 50.0
    assert config_of("deepseek-v3").rope_parameters["rope_type"] == "yarn"
