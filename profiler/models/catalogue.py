"""Shapes of public models, and `transformers` configs made from them without weights or network.

An entry of `catalogue.json` holds those fields of the `config.json` in its hub repository (`repo`) that affect the
shape or the run of the model, and the number of parameters of the published weights, tied ones once. Weights that the
hub stores quantised are described in the requested dtype; `note` says so.
"""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import Field
from transformers import AutoConfig, PretrainedConfig

from roofline.record import Record

FILE = Path(__file__).with_name("catalogue.json")


class Entry(Record):
    """One public model."""

    repo: str
    """Hub repository whose `config.json` is the source of `config`."""
    parameters: int = Field(gt=0)
    """Elements in all parameters, tied ones once, as published or derived from the published shapes."""
    note: str | None = None
    """The differences of the entry from what the hub stores."""
    config: dict[str, Any]
    """Fields of the config, `model_type` among them."""


@cache
def catalogue() -> dict[str, Entry]:
    """Return all entries by name, lower case, in the order of the file."""
    return {name: Entry.model_validate(entry) for name, entry in json.loads(FILE.read_text("utf-8")).items()}


def find(name: str) -> str | None:
    """The catalogue's name for `name`, which may be that name or its hub repository in any case; None if unknown."""
    wanted = name.lower()
    for known, entry in catalogue().items():
        if wanted in (known, entry.repo.lower()):
            return known
    return None


def config_of(name: str) -> PretrainedConfig:
    """A new config of a catalogue name. Raises KeyError if there is none of that name."""
    fields = {key: value for key, value in catalogue()[name].config.items() if key != "quantization_config"}
    with quiet():
        return AutoConfig.for_model(fields.pop("model_type"), **fields)


def linear_shapes(config: PretrainedConfig) -> tuple[tuple[int, int], ...]:
    """(columns, depth) of the products with weights that a decoder of this config has: attention, feed-forward network,
    vocabulary. Sizes that its config does not name are left out."""
    decoder = config.get_text_config(decoder=True)
    hidden, inner, vocabulary = (
        getattr(decoder, name, None) for name in ("hidden_size", "intermediate_size", "vocab_size")
    )
    if not hidden:
        return ()
    inner = inner or 4 * hidden  # GPT-2 names none and has four times its width
    pairs = [(inner, hidden), (hidden, inner), (vocabulary, hidden)]
    for heads, kv_heads, head_dim in head_layouts(config):
        pairs += [(heads * head_dim, hidden), (hidden, heads * head_dim), (kv_heads * head_dim, hidden)]
    return tuple(dict.fromkeys((n, k) for n, k in pairs if n and k))


def head_layouts(config: PretrainedConfig) -> tuple[tuple[int, int, int], ...]:
    """(heads, key and value heads, head dim) of its attention; empty where it has none."""
    decoder = config.get_text_config(decoder=True)
    heads, hidden = getattr(decoder, "num_attention_heads", None), getattr(decoder, "hidden_size", None)
    if not heads or not hidden:
        return ()
    kv_heads = getattr(decoder, "num_key_value_heads", None) or heads
    return ((heads, kv_heads, getattr(decoder, "head_dim", None) or hidden // heads),)


LOGGERS = ("transformers", "huggingface_hub")
"""Loggers whose lines are about training, generation and missing optional packages, which do not matter here, or go
with an error that is raised as well, in many lines (a config's repr)."""


def silence() -> None:
    """Drop log lines of `transformers` and the hub client for the rest of the process; `--debug` keeps errors."""
    shown = logging.ERROR if logging.getLogger("roofcal").isEnabledFor(logging.DEBUG) else logging.CRITICAL + 1
    for name in LOGGERS:
        logging.getLogger(name).setLevel(shown)


@contextmanager
def quiet() -> Iterator[None]:
    """Drop log lines, and Python warnings, of the libraries that load models, as `silence` does."""
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        silence()
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


def first_line(error: BaseException) -> str:
    """The first line of an error with words; for a config's strict validation the last one, which holds the reason."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1] if type(error).__name__.startswith("Strict") else lines[0]
