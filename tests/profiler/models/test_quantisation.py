"""The bits of a quantised checkpoint: sizes of public files, rules by layer, settings of every method, and refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
from each import each
from tiny import tiny
from whatif_graphs import check, stored, traced

from profiler.cli.app import main
from profiler.models.catalogue import config_of
from profiler.models.checkpoint import Checkpoint
from profiler.models.config import settings_in
from profiler.models.graphs import ModelGraphs, Tracing
from profiler.models.quantisation import read_bits
from profiler.record.run import RequestError
from roofline.graph.op import OpGraph
from roofline.workload import Workload

GPT_OSS_KEPT = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
NVFP4 = {"num_bits": 4, "type": "float", "group_size": 16, "dynamic": False}
INT4 = {"num_bits": 4, "type": "int", "group_size": 128, "symmetric": True}


def bits(settings: dict[str, Any]) -> Checkpoint:
    made = read_bits("a model", settings)
    assert made is not None, settings
    return made


@pytest.fixture(scope="module")
def llama_8b() -> OpGraph:
    return graph_of("llama-3.1-8b")


def graph_of(name: str) -> OpGraph:
    one = Workload(batch=1, query_tokens=1, context_tokens=16, dtype="bfloat16")
    return ModelGraphs(config_of(name), name, Tracing(dtype="bfloat16")).whole(one)


PUBLIC: dict[str, tuple[dict[str, Any], float]] = {
    "AWQ-INT4": ({"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}, 5.73),
    "GPTQ-INT4": ({"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True}, 5.74),
    "bnb-4bit": ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_use_double_quant": True}, 5.70),
    "FP8": (
        {
            "quant_method": "compressed-tensors",
            "config_groups": {"a": {"weights": {"num_bits": 8, "type": "float", "strategy": "tensor"}}},
        },
        9.08,
    ),
    "FP8-block": ({"quant_method": "fp8", "weight_block_size": [128, 128]}, 9.08),
    "w4a16": ({"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": INT4}}}, 5.70),
    "NVFP4": ({"quant_method": "modelopt", "quantization": {"quant_algo": "NVFP4", "group_size": 16}}, 6.03),
    "MLX 4bit": ({"quant_method": "mlx", "bits": 4, "group_size": 64}, 4.52),
}
"""Settings of public Llama-3.1-8B checkpoints -> GB of their weight files on the hub."""


def test_the_weights_of_public_checkpoints_have_the_size_of_their_files(llama_8b: OpGraph) -> None:
    for name, (settings, gigabytes) in PUBLIC.items():
        assert stored(bits(settings)(llama_8b), "weight") / 1e9 == pytest.approx(gigabytes, rel=0.006), name


def test_gpt_oss_has_mxfp4_experts_alone() -> None:
    graph = graph_of("gpt-oss-20b")
    kept = {"quant_method": "mxfp4", "modules_to_not_convert": GPT_OSS_KEPT}
    assert stored(bits(kept)(graph), "weight") / 1e9 == pytest.approx(13.76, rel=0.003)  # the hub's safetensors


def test_four_bits_with_scales_and_zero_points_by_hand() -> None:
    graph = traced("llama", "decode")
    narrow = bits({"quant_method": "awq", "bits": 4, "group_size": 16, "zero_point": True})(graph)
    config = tiny("llama")
    width, inner, kv = config.hidden_size, config.intermediate_size, config.hidden_size // 2
    elements = config.num_hidden_layers * (2 * width * width + 2 * width * kv + 3 * width * inner)
    saved = stored(graph, "weight") - stored(narrow, "weight")
    assert saved == elements * (16 - 4 - 16 / 16 - 4 / 16) / 8
    check(narrow)


def weight_bits(graph: OpGraph) -> dict[str, int]:
    return {op.path: op.dims["weight_bits"] for op in graph.ops if "weight_bits" in op.dims}


RULES: dict[str, tuple[dict[str, Any], str, int | None]] = {
    "a part of the path": ({"quant_method": "awq", "bits": 4, "modules_to_not_convert": ["self_attn"]},
                           "model.layers.0.self_attn.q_proj", None),
    "all below a module": ({"quant_method": "fp8", "modules_to_not_convert": ["model.layers.1"]},
                           "model.layers.1.mlp.up_proj", None),
    "a name is not a beginning": ({"quant_method": "awq", "bits": 4, "modules_to_not_convert": ["up"]},
                                  "model.layers.1.mlp.up_proj", 4),
    "a wrapper's prefix": ({"quant_method": "fp8", "modules_to_not_convert": ["model.language_model.layers.0"]},
                           "model.layers.0.mlp.up_proj", None),
    "a regular expression": ({"quant_method": "compressed-tensors", "ignore": ["re:.*down_proj"],
                              "config_groups": {"a": {"weights": INT4, "targets": ["Linear"]}}},
                             "model.layers.0.mlp.down_proj", None),
    "a glob": ({"quant_method": "modelopt", "quant_algo": "FP8", "exclude_modules": ["*.mlp*", "lm_head"]},
               "model.layers.0.mlp.up_proj", None),
    "another layer than the glob's": ({"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["*.mlp*"]},
                                      "model.layers.0.self_attn.q_proj", 8),
    "targets by layer": ({"quant_method": "compressed-tensors", "config_groups": {
        "a": {"weights": INT4, "targets": ["re:.*mlp.*"]},
        "b": {"weights": {"num_bits": 8, "type": "float"}, "targets": ["Linear"]}}},
        "model.layers.0.mlp.up_proj", 4),
    "the other target": ({"quant_method": "compressed-tensors", "config_groups": {
        "a": {"weights": INT4, "targets": ["re:.*mlp.*"]},
        "b": {"weights": {"num_bits": 8, "type": "float"}, "targets": ["Linear"]}}},
        "model.layers.0.self_attn.o_proj", 8),
    "mixed precision": ({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": {
        "model.layers.0.mlp.up_proj": {"quant_algo": "NVFP4", "group_size": 16}}}, "model.layers.0.mlp.up_proj", 4),
    "what mixed precision leaves out": ({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION",
        "quantized_layers": {"model.layers.0.mlp.up_proj": {"quant_algo": "FP8"}}}, "model.layers.1.mlp.up_proj", None),
    "MLX's own bits of a layer": ({"quant_method": "mlx", "bits": 4, "group_size": 32,
        "model.layers.0.mlp.up_proj": {"bits": 8, "group_size": 32}}, "model.layers.0.mlp.up_proj", 8),
    "MLX's head alone": ({"quant_method": "mlx", "bits": 4, "group_size": 32, "lm_head": {"bits": 8, "group_size": 32}},
                        "lm_head", 8),
    "MLX's head that stays": ({"quant_method": "mlx", "bits": 4, "group_size": 32, "lm_head": False}, "lm_head", None),
    "MLX's layer that stays": ({"quant_method": "mlx", "bits": 4, "group_size": 32, "lm_head": False,
        "model.layers.0.mlp.up_proj": False}, "model.layers.0.mlp.up_proj", None),
    "the head": ({"quant_method": "mlx", "bits": 4, "group_size": 32}, "lm_head", 4),
    "the head of others": ({"quant_method": "awq", "bits": 4}, "lm_head", None),
    "GPTQ's head": ({"quant_method": "gptq", "bits": 4, "lm_head": True}, "lm_head", 4),
    "GPTQ's rules": ({"quant_method": "gptq", "bits": 4, "dynamic": {r"+:.*\.0\.mlp\..*": {"bits": 8}}},
                     "model.layers.0.mlp.up_proj", 8),
    "GPTQ's negative rules": ({"quant_method": "gptq", "bits": 4, "dynamic": {r"-:.*\.0\.mlp\..*": {}}},
                              "model.layers.0.mlp.up_proj", None),
    "HQQ by name": ({"quant_method": "hqq", "quant_config": {"up_proj": {"weight_quant_params": {"nbits": 3}}}},
                    "model.layers.0.mlp.up_proj", 3),
    "torchao": ({"quant_method": "torchao", "quant_type": {"default": {
        "_type": "Int4WeightOnlyConfig", "_data": {"group_size": 64}}}}, "model.layers.0.mlp.up_proj", 4),
    "torchao of old": ({"quant_method": "torchao", "quant_type": "int8_weight_only"}, "model.layers.0.mlp.up_proj", 8),
    "quanto": ({"quant_method": "quanto", "weights": "int2"}, "model.layers.0.mlp.up_proj", 2),
    "Quark": ({"quant_method": "quark", "exclude": ["lm_head"], "global_quant_config": {
        "weight": {"dtype": "fp4", "qscheme": "per_group", "group_size": 32, "scale_format": "e8m0"}}},
        "model.layers.0.mlp.up_proj", 4),
    "FBGEMM": ({"quant_method": "fbgemm_fp8", "modules_to_not_convert": ["o_proj"]}, "model.layers.0.mlp.up_proj", 8),
    "no method said": ({"w_bit": 4, "q_group_size": 128, "zero_point": True}, "model.layers.0.mlp.up_proj", 4),
    "an unknown method with bits": ({"quant_method": "next-year", "bits": 5}, "model.layers.0.mlp.up_proj", 5),
}  # fmt: skip


def test_each_layer_has_the_bits_that_the_settings_say() -> None:
    graph = traced("llama", "decode")
    for name, (settings, path, wanted) in RULES.items():
        assert weight_bits(bits(settings)(graph)).get(path) == wanted, name


def test_experts_are_known_by_their_own_names_and_routers_stay() -> None:
    graph = traced("qwen3_moe", "decode")
    paths = weight_bits(bits({"quant_method": "awq", "bits": 4})(graph))
    assert "model.layers.0.mlp.experts" in paths and "model.layers.0.mlp.gate" not in paths
    kept = {"quant_method": "fp8", "modules_to_not_convert": ["model.layers.0.mlp.experts.0.gate_proj",
                                                              "model.layers.0.mlp.experts.0.down_proj"]}  # fmt: skip
    paths = weight_bits(bits(kept)(graph))
    assert "model.layers.0.mlp.experts" not in paths and "model.layers.1.mlp.experts" in paths


def products(graph: OpGraph) -> set[str]:
    return {op.dtype for op in graph.ops if op.dims.get("weight_bits")}


def test_inputs_in_fewer_bits_decide_the_arithmetic_where_the_device_has_it() -> None:
    graph = traced("llama", "decode")
    group = {"weights": NVFP4, "input_activations": NVFP4, "targets": ["Linear"]}
    for settings, dtype in (
        ({"quant_method": "fp8", "weight_block_size": [16, 16]}, "float8_e4m3fn"),
        ({"quant_method": "modelopt", "config_groups": {"a": group}, "ignore": ["lm_head"]}, "float4_e2m1fn_x2"),
        ({"quant_method": "modelopt", "quant_algo": "W4A16_AWQ"}, "bfloat16"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "int8"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8"}, "float4_e2m1fn_x2"),
    ):
        made = bits(settings)
        narrow = made(graph)
        check(narrow)
        assert products(narrow) == {dtype}, settings
        wide = Checkpoint(made.method, made.scheme, made.roles, made.rules, made.kv_bits, runs=lambda dtype: False)
        assert products(wide(graph)) == {"bfloat16"}, settings
        assert stored(wide(graph), "weight") == stored(narrow, "weight")


def test_scales_for_a_cache_of_fewer_bits_are_taken() -> None:
    graph = traced("llama", "decode")
    cached = bits({"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": "FP8"})(graph)
    assert stored(cached, "kv") == stored(graph, "kv") / 2
    assert bits({"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": "FP8"})(
        traced("mamba", "decode")
    )


def test_settings_are_found_where_tools_write_them() -> None:
    awq = {"quant_method": "awq", "bits": 4}
    assert settings_in({"quantization_config": awq}) == awq
    assert settings_in({"compression_config": awq}) == awq
    assert settings_in({"text_config": {"quantization_config": awq}}) == awq
    assert settings_in({"quantization": {"bits": 4, "group_size": 64}}) == {
        "quant_method": "mlx", "bits": 4, "group_size": 64}  # fmt: skip
    both = {"bits": 4, "group_size": 64}
    assert settings_in({"quantization_config": both, "quantization": both}) == {"quant_method": "mlx", **both}
    assert settings_in({"quantization_config": None}) is settings_in({}) is None
    with pytest.raises(RequestError, match="quantization_config in"):
        settings_in({"quantization_config": [1, 2]})


@each(
    ("settings", "said"),
    [
        ({"quant_method": "awq", "bits": "four"}, "bits is 'four'"),
        ({"quant_method": "gptq", "bits": 4, "group_size": -7}, "group_size is -7"),
        ({"quant_method": "gptq", "bits": 4.5}, "bits is 4.5, not a whole number"),
        ({"quant_method": "awq", "bits": 4, "modules_to_not_convert": 7}, "modules_to_not_convert is no list"),
        ({"quant_method": "compressed-tensors"}, "config_groups"),
        ({"quant_method": "modelopt", "quant_algo": "FP3"}, "quant_algo 'FP3' is unknown"),
        ({"quant_method": "torchao", "quant_type": "int1"}, "quant_type"),
        ({"quant_method": "fp8", "weight_block_size": 128}, "weight_block_size is 128, not two whole numbers"),
        ({"quant_method": "fp8", "weight_block_size": [0, 0]}, "weight_block_size is [0, 0]"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, "weight_block_size is [128]"),
    ],
)
def test_settings_that_cannot_be_read_are_one_line(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError) as caught:
        read_bits("a model", settings)
    assert said in str(caught.value) and "--bits-of-checkpoint no" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("form", "said"), [("sparse-24-bitmask", True), ("dense", False)])
def test_sparse_weights_are_not_priced_in_silence(form: str, said: bool) -> None:
    settings = {
        "quant_method": "compressed-tensors", "config_groups": {"a": {"weights": INT4}},
        "sparsity_config": {"format": form, "sparsity_structure": "2:4"},
    }  # fmt: skip
    assert (form in bits(settings).note) == said


def test_an_unknown_method_without_bits_is_left_out() -> None:
    assert read_bits("a model", {"quant_method": "next-year"}) is None


SIDE = {
    "hf_quant_config.json": {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}},
    "quantize_config.json": {"bits": 8, "group_size": 16, "desc_act": False},
    "quant_config.json": {"w_bit": 8, "q_group_size": 16, "zero_point": True},
}


def test_predict_takes_the_bits_says_so_and_leaves_them_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def asked(*options: str) -> dict[str, Any]:
        command = ["predict", str(tmp_path), "--hardware", "nvidia-h100-sxm", "--phase", "decode", "--json", *options]
        assert main(command) == 0
        return json.loads(capsys.readouterr().out)

    config = tiny("llama").to_dict() | {"architectures": ["LlamaForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    plain = asked()
    for name, settings in SIDE.items():
        (tmp_path / name).write_text(json.dumps(settings))
        narrow = asked()
        assert narrow["memory"]["weights"] < plain["memory"]["weights"], name
        assert "of the checkpoint" in narrow["options"]["weights"]
        assert any("weights as the checkpoint stores them" in note for note in narrow["notes"])
        wide = asked("--bits-of-checkpoint", "no")
        assert wide["memory"] == plain["memory"] and "taken in the dtype" in wide["notes"][0]
        command = ["predict", str(tmp_path), "--hardware", "nvidia-h100-sxm", "--what-if", "quantise:weights=4"]
        assert main(command) != 0
        assert "--bits-of-checkpoint no" in capsys.readouterr().err
        (tmp_path / name).unlink()
