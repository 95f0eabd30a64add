"""Finds the config of a catalogue name, a folder with `config.json` or a hub id, and cuts a config to its first layers
(`truncate`), so that a large model can be profiled on a small device.

The catalogue comes first (write `./gpt2` for a folder of that name), then folders, then the hub or its cache.
A missing model is a `RequestError` of one line; an unreachable hub is noticed within a few seconds.
"""

import copy
import difflib
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
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
from transformers import PretrainedConfig

from profiler.models.catalogue import catalogue, config_of, find, first_line, quiet
from profiler.models.config import METHOD_OF_FILE, SIDE_FILES, Part, method_of, read_config, settings_in
from profiler.record.files import requested
from profiler.record.run import RequestError
from roofline import reading
from roofline.reading import parse_json, read_bytes

HUB_TIMEOUT_S = 3.0
"""Longest wait for an answer of the hub before a download is tried; the hub client itself retries for 23 s."""


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
    quantisation: Mapping[str, Any] | None = None
    """The settings by which the stored weights are quantised; the config itself is without them."""

    @property
    def notes_in_full(self) -> tuple[str, ...]:
        """The remarks where weights are made in one dtype, whatever the checkpoint stores."""
        if self.quantisation is None:
            return self.notes
        return (*self.notes, f"stored as {method_of(self.quantisation)}; taken in the dtype that is asked for")


def resolve(
    name: str, *, trust_remote_code: bool = False, with_encoder: bool = False, part: Part = "language"
) -> ResolvedModel:
    """The config of `name`. Raises RequestError if there is none or it is not a causal language model.

    Args: `with_encoder` says whether an encoder-decoder is accepted, for the sake of its decoder; `part` is that of a
    multimodal model.
    """
    known = find(name)
    if known is not None:
        entry = catalogue()[known]
        note = (entry.note,) if entry.note else ()
        return ResolvedModel(known, config_of(known), "catalogue", entry.repo, note, settings_in(entry.config))
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
    config, notes = read_config(
        name, location, raw, trust_remote_code=trust_remote_code, with_encoder=with_encoder, part=part
    )
    inside = settings_in(raw)
    settings, unread = _beside(source, location) if inside is None else (inside, ())
    return ResolvedModel(name, config, source, location, (*notes, *unread), settings)


def hub_reachable() -> bool:
    """Return whether the hub answers; one try within HUB_TIMEOUT_S. False where HF_HUB_OFFLINE is set."""
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


def _beside(source: str, location: str) -> tuple[Mapping[str, Any] | None, tuple[str, ...]]:
    """The quantisation settings in a file of their own beside `config.json`, None where there is none, and a remark
    where that cannot be known because the hub did not give such a file."""
    online = source == "hub" and hub_reachable()
    unread: dict[str, list[str]] = {}  # by reason
    for file in SIDE_FILES:
        path, why = (Path(location) / file, None) if source == "folder" else _of_hub(location, file, online)
        if why is not None:
            unread.setdefault(why, []).append(file)
        if path is not None and path.is_file():
            settings = _json(path)
            if not isinstance(settings, dict):
                raise RequestError(f"{path} holds no object of settings; repair it or remove it")
            return {"quant_method": METHOD_OF_FILE[file], **settings}, ()
    return None, tuple(
        f"{', '.join(files)} could not be read ({why}); weights are taken in the dtype that is asked for"
        for why, files in unread.items()
    )


def _of_hub(location: str, file: str, online: bool) -> tuple[Path | None, str | None]:
    """A file of a hub repository, from the hub or from its cache, None where it has none of that name; and the reason
    where that is not known."""
    cached = try_to_load_from_cache(location, file)
    if isinstance(cached, str):
        return Path(cached), None
    if not online:
        return None, "not in the hub's cache, and the hub is not reached" if cached is None else None
    try:
        with quiet():
            return Path(hf_hub_download(location, file, etag_timeout=HUB_TIMEOUT_S)), None
    except LocalEntryNotFoundError:  # also of what is no answer: a time-out, an answer without the right headers
        return None, "the hub did not answer"
    except EntryNotFoundError:
        return None, None
    except (HfHubHTTPError, OSError) as error:
        return None, first_line(error).rstrip(".")


def _read(path: Path) -> dict[str, Any]:
    raw = _json(path)
    if not isinstance(raw, dict) or not isinstance(raw.get("model_type"), str):
        raise RequestError(f"{path} has no model_type, so it is not the config of a transformers model")
    return raw


MOST_CONFIG_BYTES = 16 << 20
"""Bytes of config.json; the largest list which layers are not quantised, in some 100 kB."""


def _json(path: Path) -> Any:
    with requested():
        text = read_bytes(path, MOST_CONFIG_BYTES, "check its permissions")
    try:
        return parse_json(text, finite=False, foreign=True)
    except ValueError as error:
        raise RequestError(f"{path} is not valid JSON ({first_line(error)}); repair it or download it again") from error


NOT_PER_LAYER = frozenset({"architectures", "bos_token_id", "eos_token_id", "pad_token_id", "time_step_limit"})
"""List fields that never hold one value a layer, though they may happen to have as many elements as layers."""


DECODER_LAYERS = ("decoder_layers", "num_decoder_layers", "decoder_num_hidden_layers")
"""Fields with the layers of an encoder-decoder's decoder, whose config `get_text_config` makes as a copy."""


def layer_count(config: PretrainedConfig) -> int:
    """Repeated layers of the decoder. Raises RequestError where its config has no number of them."""
    try:
        return int(config.get_text_config(decoder=True).num_hidden_layers)
    except (AttributeError, TypeError) as error:
        raise RequestError(f"the config of {config.model_type} has no number of layers; name a decoder") from error


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
    own = [name for name in DECODER_LAYERS if isinstance(vars(cut).get(name), int)]
    if getattr(cut, "is_encoder_decoder", False) and own:
        for name in own:
            setattr(cut, name, layers)
        return cut
    decoder.num_hidden_layers = layers
    return cut
