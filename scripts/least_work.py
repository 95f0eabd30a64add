"""Oracles of the ideal form that use neither a trace nor `roofline`: the model's parameters, its cache, its config.

A decode step of one token at the least
- multiplies its vector by each weight that it passes once, of experts by those that it chooses: 2 FLOPs a parameter;
- reads each recurrent state once and writes it once;
- leaves in the cache what the config says of a token, for as many tokens as a layer can still see.

`products`, `states` and `keys` give what the ideal graph does ÷ that. Each is 1 where the ideal form is right; where it
is not 1, `EXPLAINED` says why of a type.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig

from roofline.graph.memory import footprint
from roofline.graph.op import Kind, OpGraph, holds_tokens

WITHIN = 0.002
"""Largest distance from 1 of the products that is no fault: biases of experts and scores of routers are no parameters
that are multiplied, a short convolution is one that has no row of its own."""
WINDOW = 8
"""Tokens of the windows of a checked config, below the context of the decode step."""

EXPERTS = (
    "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts", "n_experts",
)  # fmt: skip
CHOSEN = (
    "num_experts_per_tok", "moe_topk", "moe_top_k", "moe_k", "top_k", "num_experts_per_token", "top_k_experts",
    "moe_num_active_experts", "moe_router_topk", "num_selected_experts",
)  # fmt: skip
"""Fields with the number of experts of a layer, and of those that a token chooses."""

STATEFUL = ("linear", "mamba", "conv", "recurrent", "ssm", "mlp", "moe", "lightning")
"""Parts of the names of kinds of layers that cache no keys."""
WINDOWED = ("sliding", "local", "chunked")


def parts(config: PretrainedConfig) -> Iterator[PretrainedConfig]:
    """The decoder's config and those inside it (DBRX keeps its experts in `ffn_config`)."""
    decoder = config.get_text_config(decoder=True)
    yield decoder
    yield from (value for value in vars(decoder).values() if isinstance(value, PretrainedConfig))


def field(config: PretrainedConfig, names: Iterable[str]) -> Any:
    """The first of some fields that a config or a part of it has; of a list its largest value."""
    for part in parts(config):
        for name in names:
            value = getattr(part, name, None)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
            if isinstance(value, list | tuple) and value and all(isinstance(one, int) for one in value):
                return max(value)
    return None
