"""Public decoder shapes as facts: what `catalogue.json` says of each model, and a `transformers` config from it.

An entry holds the fields of the `config.json` in the hub repository it names (`repo`), without those that neither
shape nor run the model, and the number of parameters of the published weights, tied ones once. No weights and no
network are needed. Weights that the hub keeps quantised are described in the dtype that is asked for; `note` says so.

Example: ``config_of("llama-3.1-8b").num_hidden_layers == 32``
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import Field
from transformers import AutoConfig, PretrainedConfig

from profiler.models.quiet import quiet
from roofline.record import Record

FILE = Path(__file__).with_name("catalogue.json")


class Entry(Record):
    """One public model."""

    repo: str
    """Hub repository whose `config.json` is the source of `config`."""
    parameters: int = Field(gt=0)
    """Elements in all parameters, tied ones once, as published or derived from the published shapes."""
    note: str | None = None
    """How the entry differs from what the hub stores."""
    config: dict[str, Any]
    """Fields of the config, `model_type` among them."""


@cache
def catalogue() -> dict[str, Entry]:
    """All entries by name, lower case, in the order of the file."""
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
    fields = dict(catalogue()[name].config)
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
    for heads, _, head_dim in head_layouts(config)[:1]:
        pairs += [(heads * head_dim, hidden), (hidden, heads * head_dim)]
    pairs += [(kv_heads * head_dim, hidden) for _, kv_heads, head_dim in head_layouts(config)[:1]]
    return tuple(dict.fromkeys((n, k) for n, k in pairs if n and k))


def head_layouts(config: PretrainedConfig) -> tuple[tuple[int, int, int], ...]:
    """(heads, key and value heads, head dim) of its attention; empty where it has none."""
    decoder = config.get_text_config(decoder=True)
    heads, hidden = getattr(decoder, "num_attention_heads", None), getattr(decoder, "hidden_size", None)
    if not heads or not hidden:
        return ()
    kv_heads = getattr(decoder, "num_key_value_heads", None) or heads
    return ((heads, kv_heads, getattr(decoder, "head_dim", None) or hidden // heads),)
