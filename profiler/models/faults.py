"""Faults of a `config.json`: sizes that no model has, before a model is built, and the field behind an error, after it.

Sizes are checked before the config is made, because `transformers` makes lists with an element for each layer at once.
All else is left to `transformers`, whose errors seldom name a field: `fault` finds the one that is to blame.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from profiler.models.catalogue import first_line
from profiler.record.run import RequestError

SIZE = re.compile(
    r"(?:^|_)(?:size|dim|layers?|heads?|experts?|rank|embd|positions?|position_embeddings|topk|top_k|kernel|groups?|inner|ff|"
    r"window|depth|blocks?|model|state|channels|tok|step)$"
)
"""Ends of the names of fields that hold a size or a number of parts."""

NO_SIZE = re.compile(
    r"(?:_id|_ids|_idx|_index|_type|_types|_multiplier|_factor|_ratio|_embeddings?_type|feature_layers?|select_layers?)$"
    r"|^tie_|^use_"
)
"""Names of fields that look like a size and are none; a layer whose result goes on is counted from the last, as -2."""

VITAL = frozenset({
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "max_position_embeddings", "intermediate_size", "moe_intermediate_size", "d_model", "d_ff", "d_kv", "n_embd",
    "n_layer", "n_layers", "n_head", "n_heads", "n_positions", "num_layers", "num_heads", "ffn_dim", "decoder_layers",
    "decoder_attention_heads", "decoder_ffn_dim", "state_size", "conv_kernel", "patch_size", "depth", "chunk_size",
    "n_groups", "n_inner", "decoder_sparse_step", "mamba_d_conv", "mamba_d_state", "mamba_chunk_size",
})  # fmt: skip
"""Sizes that no model can have as 0."""

MOST: tuple[tuple[re.Pattern[str], int], ...] = (
    (re.compile(r"(?:layers?|depth|blocks?)$"), 1024),
    (re.compile(r"experts?$"), 4096),
    (re.compile(r"heads?$"), 65_536),
    (re.compile(r"(?:positions?|window|max_position_embeddings)$"), 2**31 - 1),
    (re.compile(r""), 2**24),
)
"""Largest value by the end of a name, the first that fits: some times those of the largest public models."""

LARGEST = 10**18
"""Settings of rotary embeddings are below, and so within the 64-bit numbers of torch."""

DEEPEST = 4
"""Levels of nested configs that are checked; public files have three (an omni model's thinker, its text)."""

Get = Callable[[str], Any]


def check_fields(name: str, fields: Mapping[str, Any]) -> None:
    """Raise RequestError, one line, for a size that is no whole number, negative, zero where no model is, or absurd,
    unless the type itself has it by default, as -1 for a chunk of all frames."""
    for path, value in _sizes(fields, _class_of(fields, None)):
        key = path.rpartition(".")[2]
        most = next(limit for pattern, limit in MOST if pattern.search(key))
        least = 1 if key in VITAL else 0 if "window" not in key and "size" not in key else -1  # -1: no window, no size
        if isinstance(value, bool | float):
            if key not in VITAL and not key.startswith(("num_", "n_")):
                continue
            raise RequestError(f"{name}: {path} in config.json is {value}; use a whole number")
        if not least <= value <= most:
            shown = value if abs(value) < 10**18 else f"a number of {len(str(abs(value)))} digits"
            raise RequestError(
                f"{name}: {path} in config.json is {shown}; use a whole number from {max(least, 0)} to {most}"
            )

    get = _reader(fields)
    theta = get("rope_theta")
    why = _chosen(get) if get("num_experts_per_tok") == 0 else _theta(theta) if isinstance(theta, int | float) else None
    if why is not None:
        raise RequestError(f"{name}: {why}")


def _class_of(fields: Mapping[str, Any], otherwise: Any) -> Any:
    """Return the config class of the fields' own type, where `transformers` knows it."""
    kind = fields.get("model_type")
    return CONFIG_MAPPING[kind] if isinstance(kind, str) and kind in CONFIG_MAPPING else otherwise


def _sizes(fields: Mapping[str, Any], made: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield (path, value) of each field with the name of a size and a number that is not the default of `made`, the
    config class; in nested configs too."""
    for key, value in fields.items():
        if isinstance(value, dict) and depth < DEEPEST and key.endswith(("config", "encoder", "decoder")):
            inner = _class_of(value, getattr(made, "sub_configs", {}).get(key))
            yield from _sizes(value, inner, f"{prefix}{key}.", depth + 1)
        elif SIZE.search(key) and not NO_SIZE.search(key) and value != getattr(made, key, None):
            if isinstance(value, bool | int | float):
                yield f"{prefix}{key}", value
            elif isinstance(value, list) and len(value) > 0 and all(type(part) is int for part in value):
                yield f"{prefix}{key}", max(value, key=abs)


def fault(config: PretrainedConfig | Mapping[str, Any], error: BaseException | None = None) -> str | None:
    """The field that is to blame where a model cannot be built or run, with what is wrong; None where none is known.

    Args: `error` is what was raised: a field that it names is given as the last resort.
    """
    get = _reader(config)
    known = (why for look in (_vital, _activation, _rope, _padding, _heads, _chosen) if (why := look(get)) is not None)
    why = next(known, None) or (_named(config, error) if error is not None else None)
    if why is None:
        return None
    for key, own in getattr(config, "attribute_map", {}).items():
        why = re.sub(rf"\b{key}\b", own, why)  # the name of the field in the file
    return why


def _reader(config: PretrainedConfig | Mapping[str, Any]) -> Get:
    if isinstance(config, PretrainedConfig):
        decoder = config.get_text_config(decoder=True)

        def get(key: str) -> Any:
            with suppress(Exception):  # of layers that differ, transformers gives no field of the whole
                return getattr(decoder, key, None)
            return None

        return get
    inner = config.get("text_config")
    return (inner if isinstance(inner, dict) else config).get


def _vital(get: Get) -> str | None:
    for key in (
        "hidden_size",
        "num_hidden_layers",
        "vocab_size",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
    ):
        value = get(key)
        if isinstance(value, str | list | dict):
            said = f"a {type(value).__name__}" if not isinstance(value, str) else repr(value)
            return f"{key} in config.json is {said}; use a whole number"
    return None


def _activation(get: Get) -> str | None:
    for key in ("hidden_act", "activation_function", "hidden_activation", "feed_forward_proj", "ffn_act", "activation"):
        value = get(key)
        if isinstance(value, str) and value.removeprefix("gated-") not in ACT2FN:
            return f"{key} in config.json is {value!r}, which transformers does not know; use silu, gelu or relu"
    return None


def _rope(get: Get) -> str | None:
    for key in ("rope_parameters", "rope_scaling"):
        value = get(key)
        if value is None:
            continue
        if not isinstance(value, dict):
            return f'{key} in config.json is {value!r:.60}; use an object, as {{"rope_type": "default"}}, or null'
        by_kind = [
            part for part in value.values() if isinstance(part, dict) and ("rope_type" in part or "type" in part)
        ]
        parts = by_kind or [value]
        for part in parts:
            kind = part.get("rope_type", part.get("type", "default"))
            if kind not in ("default", "mrope", "dynamic", *ROPE_INIT_FUNCTIONS):
                known = ", ".join(("default", *ROPE_INIT_FUNCTIONS))
                return f"{key}.rope_type in config.json is {kind!r}; use {known}"
            if "rope_theta" in part and (why := _theta(part["rope_theta"])):
                return why
            if "factor" in part and not _is_positive(part["factor"]):
                return f"{key}.factor in config.json is {part['factor']!r}; use a positive number"
    theta = get("rope_theta")
    return None if theta is None else _theta(theta)


def _theta(theta: Any) -> str | None:
    if _is_positive(theta):
        return None
    return f"rope_theta in config.json is {'null' if theta is None else repr(theta)}; use a positive number, as 10000"


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < LARGEST


def _padding(get: Get) -> str | None:
    pad, vocabulary = get("pad_token_id"), get("vocab_size")
    if isinstance(pad, int) and isinstance(vocabulary, int) and not -vocabulary <= pad < vocabulary:
        return f"pad_token_id in config.json is {pad}, beyond the vocab_size of {vocabulary}; use a token or null"
    return None


def _heads(get: Get) -> str | None:
    heads, kv_heads, hidden = get("num_attention_heads"), get("num_key_value_heads"), get("hidden_size")
    if not isinstance(heads, int) or heads < 1:
        return None
    if isinstance(kv_heads, int) and kv_heads > 0 and heads % kv_heads:
        said = f"num_key_value_heads in config.json is {kv_heads}"
        return f"{said}, which does not divide the {heads} of num_attention_heads; repair it"
    head_dim = get("head_dim")
    if isinstance(head_dim, int) and head_dim % 2:
        return f"head_dim in config.json is {head_dim}; use an even number, which rotary embeddings need"
    if isinstance(hidden, int) and head_dim is None and hidden % heads:
        return f"hidden_size in config.json is {hidden}, which num_attention_heads {heads} does not divide; repair it"
    return None


def _chosen(get: Get) -> str | None:
    counts = ("num_experts", "num_local_experts", "n_routed_experts")
    experts = next((value for key in counts if isinstance(value := get(key), int) and value > 0), None)
    chosen = get("num_experts_per_tok")
    if experts is not None and isinstance(chosen, int) and not 1 <= chosen <= experts:
        return f"num_experts_per_tok in config.json is {chosen}; use 1 to the number of experts, {experts}"
    return None


def _named(config: PretrainedConfig | Mapping[str, Any], error: BaseException) -> str | None:
    """A field that the text of an error names, or that has the value which it complains of, with that value."""
    fields = config.get_text_config(decoder=True).to_dict() if isinstance(config, PretrainedConfig) else dict(config)
    text, reason = str(error), first_line(error)
    words = {word.lower() for word in re.findall(r"[A-Za-z_0-9]+", text)}
    spaced = text.lower().replace("`", "")

    def is_blamed(key: str, value: Any) -> bool:
        if "_" not in key or isinstance(value, dict):
            return False
        if key in words or key.replace("_", " ") in spaced:
            return True
        if "by zero" in text or isinstance(error, ZeroDivisionError):
            return type(value) is int and value == 0 and key != "chunk_size_feed_forward"
        return "NoneType" in text and value is None and key in VITAL

    for key, value in fields.items():
        if is_blamed(key, value):
            shown = "null" if value is None else str(value)[:60]
            return f"{key} in config.json is {shown}, which this model cannot take ({reason}); repair it"
    return None
