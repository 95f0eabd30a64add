"""One step over a chunk of a prompt and sequences that decode, as serving engines run it, on a model of `transformers`.

All new tokens are one row: each product with weights runs once over them. Keys and values of all sequences lie one
after another in one buffer, to which a step writes in place. Attention runs twice, over the chunk's own keys and, as a
batch, over those of the decoding sequences. Models do it by an attention implementation (`MIXED`) that is registered
here; a layer with a window or a state instead of all keys is refused.

Example: ``model(**prepare_mixed(meta, chunk, decoding, device="cpu").kwargs())``
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from profiler.models.inputs import PassInputs, prefilled, token_ids
from profiler.record.run import RequestError
from roofline.workload import Workload

MIXED = "roofcal_mixed"
"""Name of the attention implementation."""
REMEDY = "measure another model, or leave the scenario of mixed steps out"


@dataclass(frozen=True, eq=False)
class Parts:
    """The sequences of a step."""

    chunk: int
    """New tokens of the prompt."""
    keys: int
    """All tokens of the prompt until the end of the chunk."""
    decoding: int
    """Sequences that decode."""
    mask: Tensor | None
    """Which keys a token of the chunk sees, shape (1, 1, chunk, keys); None where the chunk begins the prompt."""


class Buffer(DynamicLayer):
    """Keys and values of all sequences of one layer, with a place for each new token."""

    def __init__(self, keys: Tensor, values: Tensor, places: Tensor) -> None:
        super().__init__()
        self.keys, self.values, self.places = keys, values, places
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write new keys and values to their places, and return all."""
        self.keys.index_copy_(2, self.places, key_states)
        self.values.index_copy_(2, self.places, value_states)
        return self.keys, self.values


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    mixed_step: Parts | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of `transformers`, in two calls where the step has parts. Tensors are (1, heads, tokens, width)."""
    if mixed_step is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    chunk, keys = mixed_step.chunk, mixed_step.keys
    first, _ = sdpa_attention_forward(
        module, query[:, :, :chunk], key[:, :, :keys], value[:, :, :keys], mixed_step.mask, **kwargs
    )
    by_sequence = partial(_by_sequence, count=mixed_step.decoding)
    decoding = (by_sequence(query[:, :, chunk:]), by_sequence(key[:, :, keys:]), by_sequence(value[:, :, keys:]))
    others, _ = sdpa_attention_forward(module, *decoding, None, **kwargs)
    return torch.cat([first, others.transpose(0, 1)], dim=1), None


def _by_sequence(tensor: Tensor, count: int) -> Tensor:
    """A view (sequences, heads, tokens of each, width) of (1, heads, tokens of all, width)."""
    return tensor[0].unflatten(1, (count, -1)).transpose(0, 1)


ALL_ATTENTION_FUNCTIONS.register(MIXED, attend)


def prepare_mixed(
    meta_model: PreTrainedModel,
    chunk: Workload,
    decoding: Workload,
    *,
    device: str | torch.device = "meta",
    seed: int = 0,
) -> PassInputs:
    """Inputs of one step, with random keys and values of the cached tokens.

    Raises: RequestError for several prompts, and for a model whose layers do not all keep all keys.
    """
    if chunk.batch > 1 or decoding.query_tokens > 1:
        raise RequestError("a mixed step has one chunk of one prompt, and one new token of each other sequence")
    where = torch.device(device)
    generator = torch.Generator("cpu" if where.type == "meta" else where).manual_seed(seed)
    keys, each = chunk.context_tokens + chunk.query_tokens, decoding.context_tokens + 1
    new = torch.arange(chunk.context_tokens, keys)
    places = torch.cat([new, keys + each - 1 + each * torch.arange(decoding.batch)])
    positions = torch.cat([new, torch.full((decoding.batch,), decoding.context_tokens)])
    cache = _buffers(meta_model, keys + each * decoding.batch, places.to(where), where, generator)
    mask = None
    if chunk.context_tokens:
        seen = torch.ones(chunk.query_tokens, keys, dtype=torch.bool)
        mask = seen.tril(chunk.context_tokens)[None, None].to(where)
    tokens = {
        "input_ids": token_ids(meta_model, 1, len(places), where, generator),
        "position_ids": positions[None].to(where),
        "logits_to_keep": decoding.batch + 1,
        "mixed_step": Parts(chunk.query_tokens, keys, decoding.batch, mask),
    }
    return PassInputs(tokens, "past_key_values", None, cache)


def _buffers(
    model: PreTrainedModel, tokens: int, places: Tensor, device: torch.device, generator: torch.Generator
) -> Cache:
    """A cache for so many tokens, with the heads and widths of the model's own."""
    small = Workload(batch=1, query_tokens=1, context_tokens=2, dtype="float32")
    try:
        own = prefilled(model, "past_key_values", lambda: DynamicCache(config=model.config), small)
    except RequestError:
        raise
    except Exception as error:  # a forward may raise anything on an implementation that it does not know
        raise RequestError(f"{type(model).__name__} runs no mixed step ({type(error).__name__}); {REMEDY}") from error
    if other := next((layer for layer in own.layers if type(layer) is not DynamicLayer), None):
        raise RequestError(f"{type(model).__name__} keeps a {type(other).__name__}, not all keys; {REMEDY}")

    def made(like: Tensor) -> Tensor:
        shape = (1, like.shape[1], tokens, like.shape[3])
        empty = torch.empty(shape, dtype=like.dtype, device=device)
        return empty if device.type == "meta" else empty.normal_(generator=generator)

    return Cache(layers=[Buffer(made(layer.keys), made(layer.values), places) for layer in own.layers])
