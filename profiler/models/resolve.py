"""Finds the config of a catalogue name, a folder with `config.json` or a hub id, and cuts a config to its first layers
(`truncate`), so that a large model can be profiled on a small device.

The catalogue comes first (write `./gpt2` for a folder of that name), then folders, then the hub or its cache.
A missing model is a `RequestError` of one line; an unreachable hub is noticed within a few seconds.
"""

import copy
import difflib
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from profiler.models.catalogue import catalogue, config_of, find, first_line, quiet
from profiler.record.files import requested
from profiler.record.run import RequestError
from roofline import reading
from roofline.reading import parse_json, read_bytes

HUB_TIMEOUT_S = 3.0
"""Longest wait for an answer of the hub before a download is tried; the hub client itself retries for 23 s."""

IGNORES_IS_DECODER = frozenset({"gpt_neox", "gpt_neox_japanese"})
"""Types whose config has `is_decoder` (False unless set) though the model is causal in any case."""


@dataclass(frozen=True)
class ResolvedModel:
    """A model that can be built."""

    name: str
    """Catalogue name, folder or hub id, as it is written in results."""
    config: PretrainedConfig
    source: Literal["catalogue", "folder", "hub"]
    location: str
    """Folder or hub id that holds the pretrained weights."""
    notes: tuple[str, ...] = ()
    """Remarks on the config for readers of results."""


def resolve(name: str, *, trust_remote_code: bool = False) -> ResolvedModel:
    """The config of `name`. Raises RequestError if there is none or it is not a causal language model."""
    known = find(name)
    if known is not None:
        entry = catalogue()[known]
        return ResolvedModel(known, config_of(known), "catalogue", entry.repo, (entry.note,) if entry.note else ())
    try:
        path = Path(name).expanduser()
    except RuntimeError as error:
        raise RequestError(f"{name}: there is no such home folder; write the folder out in full") from error
    there = reading.entry(path)
    if there == "folder":
        if reading.entry(path / "config.json") is None:
            raise RequestError(f"the folder {name} has no config.json; name the folder that holds it")
        source: Literal["folder", "hub"] = "folder"
        location = str(path)
        raw = _read(path / "config.json")
    elif there is not None or path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise RequestError(f"{name} is not a folder; name a folder that holds config.json, or a model of the catalogue")
    else:
        source, location = "hub", name
        raw = _read(_download(name))
    config = _config(name, location, raw, trust_remote_code)
    _check_causal(name, config, raw, trust_remote_code)
    return ResolvedModel(name, config, source, location, _unquantise(config))


def hub_reachable() -> bool:
    """Whether the hub answers; one try within HUB_TIMEOUT_S. False where HF_HUB_OFFLINE is set."""
    if constants.is_offline_mode():
        return False
    try:
        with urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=HUB_TIMEOUT_S):
            return True
    except urllib.error.HTTPError:
        return True  # the hub answers, although not with its front page
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLCertVerificationError)  # the hub client brings its own certificates
    except OSError:
        return False


def nearest(name: str) -> str:
    """The catalogue's names that are most like `name`, the most alike first."""
    short = name.lower().rpartition("/")[2]
    return ", ".join(difflib.get_close_matches(short, list(catalogue()), n=3, cutoff=0.0))


def _download(name: str) -> Path:
    """`config.json` of a hub repository, from the hub or from its cache."""
    unknown = f"unknown model {name!r}: it is not in the catalogue (nearest: {nearest(name)})"
    try:
        cached = try_to_load_from_cache(name, "config.json")
        if hub_reachable():
            with quiet():
                return Path(hf_hub_download(name, "config.json", etag_timeout=HUB_TIMEOUT_S))
    except GatedRepoError as error:
        raise RequestError(f"{name} is gated on the hub; accept its terms there and run `hf auth login`") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise RequestError(f"{unknown} and not on the hub; use a catalogue name, a folder or a hub id") from error
    except LocalEntryNotFoundError as error:
        raise RequestError(f"{unknown} and the hub could not be reached; try again, or use a folder") from error
    except EntryNotFoundError as error:
        raise RequestError(f"{name} has no config.json on the hub, so it is not a transformers model") from error
    except HfHubHTTPError as error:
        raise RequestError(
            f"{unknown} and the hub answered with an error ({first_line(error)}); try again later"
        ) from error
    if isinstance(cached, str):
        return Path(cached)
    why = "HF_HUB_OFFLINE is set" if constants.is_offline_mode() else f"{constants.ENDPOINT} could not be reached"
    raise RequestError(f"{unknown}, not in the hub's cache, and {why}; use a catalogue name or a folder")


def _read(path: Path) -> dict[str, Any]:
    with requested():
        text = read_bytes(path, MOST_CONFIG_BYTES, "check its permissions")
    try:
        raw = parse_json(text, finite=False, foreign=True)
    except ValueError as error:
        raise RequestError(f"{path} is not valid JSON ({first_line(error)}); repair it or download it again") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("model_type"), str):
        raise RequestError(f"{path} has no model_type, so it is not the config of a transformers model")
    if problem := next(_impossible(raw), None):
        raise RequestError(f"{path}: {problem}; correct it")
    return raw


MOST_CONFIG_BYTES = 16 << 20
"""Bytes of config.json; the largest list which layers are not quantised, in some 100 kB."""
MOST = (
    (re.compile(r"(layers?|blocks)$"), 2_000),  # the deepest public models have some 200
    (re.compile(r"experts$"), 1 << 20),  # "Mixture of a million experts", arXiv 2407.04153
    (re.compile(r"^(hidden_size|n_embd|d_model|intermediate_size|n_inner|d_ff|ffn_dim|vocab_size|head_dim)$"), 1 << 24),
    (re.compile(r"heads$|^n_head$"), 1 << 16),
)
"""Names of sizes, and ten times the most that any model has: beyond, a build takes hours or all memory."""
POSITIVE = ("hidden_size", "n_embd", "d_model", "vocab_size", "num_hidden_layers", "n_layer", "n_layers", "num_layers")
PLACES = ("", "text_config.")
"""Where these sizes are the decoder's; a part that is left out may state 0."""


def _impossible(config: Any, place: str = "") -> Iterator[str]:
    """Sizes of a config, of its parts too, that no model has, each in a few words."""
    for name, value in config.items() if isinstance(config, dict) else ():
        if isinstance(value, dict):
            yield from _impossible(value, f"{place}{name}.")
        is_number = isinstance(value, int | float)
        if name in POSITIVE and value is not None and place in PLACES and not (type(value) is int and value > 0):
            yield f"{place}{name} is {value!r:.60}, not a whole number from 1"
        for names, most in MOST:
            if is_number and names.search(name) and not value <= most:
                yield f"{place}{name} is {value!r:.60}, and no model has more than {most}"


def _config(name: str, location: str, raw: dict[str, Any], trust_remote_code: bool) -> PretrainedConfig:
    own_code = raw["model_type"] not in CONFIG_MAPPING and "AutoConfig" in raw.get("auto_map", {})
    if own_code and not trust_remote_code:
        raise _needs_code(name)
    if raw["model_type"] not in CONFIG_MAPPING and not own_code:
        raise RequestError(
            f"{name}: this transformers does not know model_type {raw['model_type']!r}; update transformers"
        )
    try:
        with quiet():
            if own_code:
                return AutoConfig.from_pretrained(location, trust_remote_code=True)
            fields = {key: value for key, value in raw.items() if key != "model_type"}
            config = AutoConfig.for_model(raw["model_type"], **fields)
    except Exception as error:  # a config class may raise anything on fields that it cannot take
        raise RequestError(f"{name}: transformers refuses this config.json ({first_line(error)}); repair it") from error
    config._name_or_path = location
    return config


def _check_causal(name: str, config: PretrainedConfig, raw: dict[str, Any], trust_remote_code: bool) -> None:
    """Raise RequestError unless `transformers`, or the repository's code, has a causal LM for this config."""
    if "AutoModelForCausalLM" in raw.get("auto_map", {}) and raw["model_type"] not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        if not trust_remote_code:
            raise _needs_code(name)
        return
    architectures = raw.get("architectures") or []
    classes = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(raw["model_type"], ())
    classes = (classes,) if isinstance(classes, str) else tuple(classes)
    is_encoder = raw["model_type"] not in IGNORES_IS_DECODER and getattr(config, "is_decoder", True) is False
    other = architectures and not set(architectures) & set(classes)
    if not classes or other or is_encoder or getattr(config, "is_encoder_decoder", False):
        what = ", ".join(architectures) or raw["model_type"]
        raise RequestError(f"{name} is not a causal language model ({what}); name a decoder such as llama-3.1-8b")


def _unquantise(config: PretrainedConfig) -> tuple[str, ...]:
    """Replace quantised weights by weights of the requested dtype; return a note about that."""
    stored = getattr(config, "quantization_config", None)
    if not stored:
        return ()
    delattr(config, "quantization_config")
    method = stored.get("quant_method") if isinstance(stored, dict) else getattr(stored, "quant_method", None)
    return (f"stored as {method or 'quantised'}; taken in the dtype that is asked for",)


def _needs_code(name: str) -> RequestError:
    return RequestError(f"{name} needs Python code from its repository; read that code, then add --trust-remote-code")


NOT_PER_LAYER = frozenset({"architectures", "bos_token_id", "eos_token_id", "pad_token_id", "time_step_limit"})
"""List fields that never hold one value a layer, though they may happen to have as many elements as layers."""


def layer_count(config: PretrainedConfig) -> int:
    """Repeated layers of the decoder."""
    return int(config.get_text_config(decoder=True).num_hidden_layers)


def truncate(config: PretrainedConfig, layers: int) -> PretrainedConfig:
    """A copy of `config` with only its first `layers` repeated layers; `config` itself is left as it is.

    Lists with one value a layer (`layer_types` and the like) are cut with it.
    Raises: RequestError unless 1 <= `layers` <= the model's.
    """
    total = layer_count(config)
    if not 1 <= layers <= total:
        raise RequestError(f"--layers {layers}: the model has {total} repeated layers; use 1 to {total}")
    cut = copy.deepcopy(config)
    if layers == total:
        return cut
    decoder = cut.get_text_config(decoder=True)
    for name, value in vars(decoder).items():
        if isinstance(value, list | tuple) and len(value) == total and name not in NOT_PER_LAYER:
            setattr(decoder, name, value[:layers])
    decoder.num_hidden_layers = layers
    return cut
