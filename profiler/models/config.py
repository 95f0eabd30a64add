"""The config of a model from the fields of its `config.json`, read as `transformers.AutoConfig` reads them.

A causal language model is recognised by what its `model_type` maps to in `transformers`, whatever class the file names.
Of a multimodal model the language part is taken. A type that `transformers` does not know is read as the type of the
class that the file names, if it knows that one, or by the config of the language part inside.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
    PretrainedConfig,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
)

from profiler.models.catalogue import first_line, quiet
from profiler.models.faults import check_fields, fault
from profiler.record.run import RequestError

Settings = Mapping[str, Any]

PARTS = ("text_config", "language_config", "llm_config", "thinker_config")
"""Nested configs that may hold the settings."""

FIELDS = ("quantization", "quantization_config", "compression_config")
"""Fields of `config.json` with the settings: of MLX, which repeats them in the next, of most tools, of old
compressed-tensors."""

METHOD_OF_FILE = {"hf_quant_config.json": "modelopt", "quantize_config.json": "gptq", "quant_config.json": "awq"}
"""Files beside `config.json` with the settings -> method: ModelOpt, AutoGPTQ, AutoAWQ."""

SIDE_FILES = tuple(METHOD_OF_FILE)

OWN_FIELDS = {
    "load_in_4bit": "bitsandbytes",
    "load_in_8bit": "bitsandbytes",
    "_load_in_4bit": "bitsandbytes",
    "w_bit": "awq",
    "zero_point": "awq",
    "desc_act": "gptq",
    "sym": "gptq",
    "config_groups": "compressed-tensors",
    "quantization": "modelopt",
    "quant_algo": "modelopt",
    "weight_block_size": "fp8",
    "quant_type": "torchao",
}
"""Fields by which settings without `quant_method` are known."""

IGNORES_IS_DECODER = frozenset({"gpt_neox", "gpt_neox_japanese"})
"""Types whose config has `is_decoder` (False unless set) though the model is causal in any case."""

LANGUAGE_PARTS = ("text_config", "language_config", "llm_config", "thinker_config")
"""Fields of multimodal configs that hold the config of the language part (Qwen-VL, DeepSeek-VL2, InternVL, omni)."""

IMPLEMENTATIONS = frozenset({
    "attn_implementation", "_attn_implementation", "_attn_implementation_internal", "_attn_implementation_autoset",
    "experts_implementation", "_experts_implementation", "_experts_implementation_internal",
})  # fmt: skip
"""Fields by which a file chooses kernels of the machine that saved it; --attn and --experts choose them here."""

DTYPES = ("dtype", "torch_dtype")
"""The field with the type of the stored weights, in new and in old files."""

Part = Literal["language", "whole"]

AutoClass = Any
"""One of the Auto classes of `transformers`."""


def read_config(
    name: str,
    location: str,
    raw: Mapping[str, Any],
    *,
    trust_remote_code: bool,
    with_encoder: bool = False,
    part: Part = "language",
) -> tuple[PretrainedConfig, tuple[str, ...]]:
    """The config of the model to build, and remarks on how the file was read.

    Args:
        name: of the model, for messages.
        location: the folder or hub id, whose own code is run if `trust_remote_code`.
        raw: the fields of the file.
        with_encoder: whether an encoder-decoder is accepted, for the sake of its decoder.
        part: of a multimodal model the language part, or the whole, whatever it is.
    Raises: RequestError, one line, for an unknown type, a field that cannot be used, or a model that is not causal.
    """
    notes: list[str] = []
    fields = _cleaned(name, PretrainedConfig._decode_special_floats(dict(raw)), notes)
    fields = _of_known_type(name, fields, notes, trust_remote_code)
    config = _made(name, location, fields, trust_remote_code)
    if part == "whole":
        return config, tuple(notes)
    config = _language_part(config)
    if not (with_encoder and getattr(config, "is_encoder_decoder", False) and auto_class(config) is not None):
        _check_causal(name, config, fields, trust_remote_code)
    config._name_or_path = location
    return config, (*notes, *_named_otherwise(config, fields))


def auto_class(config: PretrainedConfig, *, with_towers: bool = False) -> AutoClass | None:
    """The Auto class that builds a model which runs on token ids alone, beside the states of an encoder where the
    config says so; None where `transformers` has none. `with_towers` prefers one with a multimodal model's towers."""
    known: tuple[AutoClass, ...] = (AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM)
    if with_towers:
        known = (*known[1:], AutoModelForCausalLM)
    if getattr(config, "is_encoder_decoder", False):
        known = (AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq)
    return next((auto for auto in known if type(config) in auto._model_mapping), None)


def _cleaned(name: str, fields: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """The fields without those of the machine that saved them and of the stored weights, in nested configs too."""
    asked = {str(value) for key, value in fields.items() if key in IMPLEMENTATIONS and isinstance(value, str)}
    if asked - {"eager", "sdpa"}:
        notes.append(f"the file asks for {', '.join(sorted(asked))}; --attn and --experts choose here")
    if isinstance(fields.get("architectures"), str):
        fields["architectures"] = [fields["architectures"]]
    if not _is_names(fields.get("architectures")):
        raise RequestError(f"{name}: architectures in config.json is no list of class names; repair it or leave it out")
    return _cleaned_parts(name, fields, depth=0)


def _cleaned_parts(name: str, fields: dict[str, Any], depth: int) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, value in fields.items():
        if key in IMPLEMENTATIONS or (key in FIELDS and (depth == 0 or isinstance(value, dict))):
            continue
        if key in DTYPES:
            if (checked := _dtype(name, key, value)) is not None:
                kept[key] = checked
            continue
        is_part = isinstance(value, dict) and key.endswith(("_config", "encoder", "decoder"))
        kept[key] = _cleaned_parts(name, value, depth + 1) if is_part else value
    return kept


def _dtype(name: str, key: str, value: Any) -> str | None:
    """Torch's name of the type in the file; None where the file leaves it open. RequestError for an unknown one."""
    if value is None or value == "auto" or isinstance(value, dict):
        return None
    word = value.removeprefix("torch.") if isinstance(value, str) else value
    if not isinstance(word, str) or not isinstance(getattr(torch, word, None), torch.dtype):
        raise RequestError(f"{name}: {key} in config.json is {value!r}, which is no dtype of torch, as bfloat16 is")
    return word


def _is_names(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(part, str) for part in value))


def _of_known_type(name: str, fields: dict[str, Any], notes: list[str], trust_remote_code: bool) -> dict[str, Any]:
    """The fields of a type that `transformers` knows, or that the repository's own code describes."""
    kind = fields["model_type"]
    auto_map = fields.get("auto_map")
    has_code = isinstance(auto_map, dict) and "AutoConfig" in auto_map
    if kind in CONFIG_MAPPING:
        if kind == "mistral" and fields.get("layer_types"):  # as `AutoConfig.from_pretrained` does
            return fields | {"model_type": "ministral"}
        return fields
    if has_code and trust_remote_code:
        return fields
    classes = {_class: known for known, _class in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()}
    alike = next((classes[part] for part in fields.get("architectures") or () if part in classes), None)
    if alike is not None:
        notes.append(f"model_type {kind} is read as {alike}, whose class the file names")
        return fields | {"model_type": alike}
    for part in LANGUAGE_PARTS:
        inner = fields.get(part)
        if isinstance(inner, dict) and isinstance(inner.get("model_type"), str):
            try:
                found = _of_known_type(name, inner, notes, False)
            except RequestError:
                continue
            notes.append(f"model_type {kind} is unknown; its {part} is priced, a {found['model_type']}")
            return found
    if has_code:
        raise _needs_code(name)
    raise RequestError(f"{name}: this transformers does not know model_type {kind!r}; update transformers")


def _made(name: str, location: str, fields: Mapping[str, Any], trust_remote_code: bool) -> PretrainedConfig:
    check_fields(name, fields)
    try:
        with quiet():
            if fields["model_type"] not in CONFIG_MAPPING:
                return AutoConfig.from_pretrained(location, trust_remote_code=trust_remote_code)
            given = {key: value for key, value in fields.items() if key != "model_type"}
            return AutoConfig.for_model(fields["model_type"], **given)
    except Exception as error:  # a config class may raise anything on fields that it cannot take
        why = fault(fields, error) or f"transformers refuses this config.json ({first_line(error)}); repair it"
        raise RequestError(f"{name}: {why}") from error


def _language_part(config: PretrainedConfig) -> PretrainedConfig:
    """The config of the language part, where a causal model of its own can be built from it; else the config itself."""
    if thinker := getattr(config, "thinker_config", None):
        config = thinker
    try:
        text: Any = config.get_text_config(decoder=True)
    except (ValueError, AttributeError):  # several parts could be meant
        return config
    mapping = AutoModelForCausalLM._model_mapping
    if text is None or type(text) is type(config) or type(text) not in mapping or config.is_encoder_decoder:
        return config
    whole = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    if whole is not None and whole.endswith("ForCausalLM") and mapping[type(config)].config_class is type(config):
        return config  # a causal model that has another config inside
    return text


def _check_causal(name: str, config: PretrainedConfig, raw: Mapping[str, Any], trust_remote_code: bool) -> None:
    """Raise RequestError unless `transformers`, or the repository's code, has a causal LM for this config."""
    auto_map = raw.get("auto_map")
    has_code = isinstance(auto_map, dict) and "AutoModelForCausalLM" in auto_map
    auto = auto_class(config)
    if auto is None and has_code:
        if not trust_remote_code:
            raise _needs_code(name)
        return
    what = ", ".join(raw.get("architectures") or []) or raw["model_type"]
    if getattr(config, "is_encoder_decoder", False):
        raise RequestError(
            f"{name} is not a causal language model alone but an encoder with a decoder ({what}); "
            "predict prices its decoder; else give it as a module, with --module"
        )
    is_encoder = config.model_type not in IGNORES_IS_DECODER and getattr(config, "is_decoder", True) is False
    if auto is None or is_encoder:
        raise RequestError(f"{name} is not a causal language model ({what}); name a decoder such as llama-3.1-8b")


def _named_otherwise(config: PretrainedConfig, fields: Mapping[str, Any]) -> list[str]:
    """A remark where the file names a class that is not the one that is built."""
    auto = auto_class(config)
    named = fields.get("architectures") or []
    if auto is None or not named:
        return []
    made = auto._model_mapping[type(config)]
    if fields["model_type"] != config.model_type:
        return [f"the language part of {', '.join(named)}: {made.__name__}"]
    return [] if made.__name__ in named else [f"the file names {', '.join(named)}; priced as {made.__name__}"]


def _needs_code(name: str) -> RequestError:
    return RequestError(f"{name} needs Python code from its repository; read that code, then add --trust-remote-code")


def settings_in(raw: Settings) -> Settings | None:
    """The quantisation settings in the fields of a `config.json`, of its own or its language part's; None without."""
    for fields in (raw, *(raw[part] for part in PARTS if isinstance(raw.get(part), dict))):
        for name in FIELDS:
            value = fields.get(name)
            if value is not None and not isinstance(value, dict):
                raise RequestError(f"{name} in config.json is {value!r:.40}; use an object, or leave it out")
            if value:
                return {"quant_method": "mlx", **value} if name == "quantization" else value
    return None


def method_of(settings: Settings) -> str:
    """The name of the method; by the fields that only it has where the settings do not say."""
    if isinstance(method := settings.get("quant_method"), str):
        return method.lower()
    for key, method in OWN_FIELDS.items():
        if key in settings:
            return method
    return "unknown"
