"""The decoder of an encoder-decoder as a model that runs on token ids alone, with attention over what its encoder made.

The encoder is left out: its states, of a given number of tokens, are an input. The first pass makes keys and values of
them in each layer, which later passes read from the cache, as `generate` does.

Example: ``decoder_alone(build_meta(config, "bfloat16"), source=1500)``
"""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutput

from profiler.models.build import build_meta

SOURCE = 512
"""Tokens of the encoder where its config has no limit of positions: T5 was trained with so many (arXiv 1910.10683)."""


def has_encoder(config: PretrainedConfig) -> bool:
    """Return whether a model of this config has an encoder whose states its decoder attends to."""
    return bool(getattr(config, "is_encoder_decoder", False))


def source_tokens(config: PretrainedConfig) -> int:
    """Tokens that the encoder takes at most: Whisper's 1,500 frames of 30 s; `SOURCE` where no field says so."""
    names = ("max_source_positions", "max_position_embeddings")
    parts = (config, getattr(config, "encoder", None))
    limits = (getattr(part, name, None) for part in parts for name in names)
    return next((limit for limit in limits if isinstance(limit, int) and limit > 0), SOURCE)


class Both(EncoderDecoderCache):
    """The cache of the decoder's own tokens, and behind it that of the encoder's, as one list of layers."""

    def __init__(self) -> None:
        super().__init__(DynamicCache(), DynamicCache())

    @property
    def layers(self) -> list[Any]:
        return [*self.self_attention_cache.layers, *self.cross_attention_cache.layers]


def decoder_alone(model: PreTrainedModel, source: int) -> PreTrainedModel:
    """`model`, built without its encoder, with a `forward` that takes the decoder's ids and a cache of the kind `Both`.

    Args: `source` is the number of tokens that the encoder has read.
    """
    width = _width(model.config)
    whole = model.forward

    def forward(input_ids: Tensor, past_key_values: Cache | None = None, use_cache: bool | None = None) -> Any:
        size = (input_ids.shape[0], source, width)
        states = torch.zeros(size, dtype=model.dtype, device=input_ids.device)
        return whole(
            decoder_input_ids=input_ids,
            encoder_outputs=_Made(last_hidden_state=states),
            past_key_values=past_key_values,
            use_cache=use_cache,
        )

    model.forward = forward
    return model


class _Made(BaseModelOutput):
    """The output of an encoder, with what decoders of some models ask of it beside its states."""

    attention_mask = None
    router_logits = None


def _width(config: PretrainedConfig) -> int:
    """Width of the encoder's states."""
    encoder = getattr(config, "encoder", None)
    own = encoder if isinstance(encoder, PretrainedConfig) else config
    inner = getattr(own, "text_config", None) or own
    return int(inner.hidden_size)


def build_decoder(config: PretrainedConfig, dtype: str, attn: str, experts: str, source: int | None) -> PreTrainedModel:
    """The model of a config on `meta`: of an encoder-decoder the decoder, behind so many tokens of its encoder."""
    model = build_meta(config, dtype, attn, experts)
    return decoder_alone(model, source or source_tokens(config)) if has_encoder(model.config) else model
