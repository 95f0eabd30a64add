"""Cuts a config down to its first repeated layers, so that a large model can be profiled on a small device.

Example: ``truncate(config_of("llama-3.1-405b"), 2).num_hidden_layers == 2``
"""

import copy

from transformers import PretrainedConfig

from profiler.record.run import RequestError

NOT_PER_LAYER = frozenset({"architectures", "bos_token_id", "eos_token_id", "pad_token_id", "time_step_limit"})
"""List fields that never hold one value a layer, though they may happen to be as long as there are layers."""


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
