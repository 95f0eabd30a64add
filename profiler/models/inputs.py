"""Prepares one forward pass: token ids, and a cache that holds the context, on a device or on `meta`.

No prefill runs on the device. The context is prefilled on `meta`, which costs no memory, and each tensor of the
cache is then made on the device with random values of the same shape. After a pass `restore` puts the cache back,
so that the next pass does the same work.

- dynamic: `DynamicCache`, which grows by concatenation.
- static: `StaticCache`, for all tokens of the pass, rounded up to a multiple of MASK_ALIGNMENT.

A prefill starts from an empty cache that is new in each pass; as in `generate`, a static one is allocated inside it.
On `meta` a model that looks at the length of a filled static cache fails with torch's RuntimeError (sdpa with several
queries, OPT): such a pass can be traced on its device only.

Example: ``inputs = prepare(meta_model, workload, cache="dynamic", device="cpu"); model(**inputs.kwargs())``
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel, StaticCache

from profiler.record.errors import RequestError
from roofline.workload import Workload

CACHES = ("dynamic", "static")

MASK_ALIGNMENT = 8
"""Keys of a static cache come in multiples of this: torch's memory-efficient attention pads a mask whose last
dimension is not a multiple of 8 in every call (`pad_bias`, aten/src/ATen/native/transformers/attention.cpp)."""

STATE_PREFILL_TOKENS = 16
"""Prefill on `meta` for a cache without a sequence dimension: a state has one size whatever went into it."""


class PassInputs:
    """One pass of a workload, to be run again and again from the same state."""

    def __init__(
        self,
        tokens: dict[str, Any],
        cache_name: str,
        new_cache: Callable[[], Cache] | None,
        cache: Cache | None,
        max_cache_len: int | None,
    ) -> None:
        self._tokens = tokens
        self._cache_name = cache_name
        self._new_cache = new_cache
        self._cache = cache
        self._undo = _snapshot(cache) if cache is not None else None
        self.max_cache_len = max_cache_len
        """Tokens that a static cache attends over; None for a dynamic one."""

    def kwargs(self) -> dict[str, Any]:
        """Arguments of `forward`, with an empty cache made now where the pass is a prefill."""
        if self._new_cache is not None:
            self._cache = self._new_cache()
        return {**self._tokens, self._cache_name: self._cache, "use_cache": True}

    def restore(self) -> None:
        """Undo what a pass did to the cache: keys, values and lengths are again those from before it."""
        if self._undo is None:
            self._cache = None
        else:
            self._undo()

    def cache_tensors(self) -> Iterator[tuple[int, str, Tensor]]:
        """(layer, attribute, tensor) of each floating tensor that the cache holds now."""
        for index, layer in enumerate(self._cache.layers if self._cache is not None else ()):
            for name, value in vars(layer).items():
                for path, tensor in _tensors(name, value):
                    if tensor.is_floating_point():
                        yield index, path, tensor

    def cache_classes(self) -> str:
        """Class of the cache and those of its layers, as "DynamicCache of DynamicLayer"."""
        cache = self._cache if self._cache is not None else self._new_cache() if self._new_cache else None
        layers = sorted({type(layer).__name__ for layer in cache.layers}) if cache is not None else []
        return " of ".join([type(cache).__name__, *([", ".join(layers)] if layers else [])])


def prepare(
    meta_model: PreTrainedModel,
    workload: Workload,
    *,
    cache: str = "dynamic",
    device: str | torch.device = "meta",
    seed: int = 0,
) -> PassInputs:
    """Inputs of one pass of `workload`.

    Args:
        meta_model: the model on `meta`, in the dtype and with the implementations of the one that will run.
        cache: "dynamic" or "static".
        device: where the pass will run; "meta" for a trace.
    Raises: RequestError for an unknown cache or one that the model does not take.
    """
    where = torch.device(device)
    if cache not in CACHES:
        raise RequestError(f"--cache {cache} is unknown; use {' or '.join(CACHES)}")
    accepted = inspect.signature(meta_model.forward).parameters
    cache_name = next((name for name in ("past_key_values", "cache_params") if name in accepted), None)
    if cache_name is None:
        raise RequestError(f"{type(meta_model).__name__} takes no cache in its forward, so roofcal cannot run it")
    generator = torch.Generator("cpu" if where.type == "meta" else where).manual_seed(seed)
    shape = (workload.batch, workload.query_tokens)
    tokens: dict[str, Any] = {"input_ids": _token_ids(meta_model, shape, where, generator)}
    if workload.query_tokens > 1 and "logits_to_keep" in accepted:
        tokens["logits_to_keep"] = 1

    length = max_cache_len(workload) if cache == "static" else None

    def empty() -> Cache:
        if length is None:
            return DynamicCache(config=meta_model.config)
        return StaticCache(config=meta_model.config, max_cache_len=length)

    if workload.context_tokens == 0:
        return PassInputs(tokens, cache_name, empty, None, length)
    filled = _prefilled(meta_model, cache_name, empty, workload)
    for layer in filled.layers:
        _materialise(layer, where, generator, workload.context_tokens)
    return PassInputs(tokens, cache_name, None, filled, length)


def max_cache_len(workload: Workload) -> int:
    """Tokens that a static cache is allocated for: all of the pass, rounded up to a multiple of MASK_ALIGNMENT."""
    return -(-(workload.context_tokens + workload.query_tokens) // MASK_ALIGNMENT) * MASK_ALIGNMENT


def _token_ids(
    model: PreTrainedModel, shape: tuple[int, int], device: torch.device, generator: torch.Generator
) -> Tensor:
    if device.type == "meta":
        return torch.empty(shape, dtype=torch.long, device=device)
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    return torch.randint(vocabulary, shape, device=device, generator=generator)


@torch.no_grad()
def _prefilled(model: PreTrainedModel, cache_name: str, empty: Callable[[], Cache], workload: Workload) -> Cache:
    """A `meta` cache after a prefill of the context."""
    cache = empty()
    tokens = workload.context_tokens
    if cache.layers and not any(hasattr(layer, "get_seq_length") for layer in cache.layers):
        tokens = min(tokens, STATE_PREFILL_TOKENS)
    ids = torch.empty((workload.batch, tokens), dtype=torch.long, device="meta")
    keep = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    with _experts_that_run_on_meta(model):
        model(**{"input_ids": ids, cache_name: cache, "use_cache": True, **keep})
    return cache


@contextmanager
def _experts_that_run_on_meta(model: PreTrainedModel) -> Iterator[None]:
    """Batched experts: what a cache holds does not depend on them, and `grouped_mm` on `meta` takes bfloat16 alone."""
    if not model._can_set_experts_implementation():
        yield
        return
    chosen = model.config._experts_implementation
    model.set_experts_implementation("batched_mm")
    try:
        yield
    finally:
        model.set_experts_implementation(chosen)


def _materialise(layer: Any, device: torch.device, generator: torch.Generator, context: int) -> None:
    """Move a `meta` cache layer to `device` with random values, holding `context` tokens."""
    counts = _counters(layer, context)
    for name, value in vars(layer).items():
        if name in counts:
            value = counts[name]
            if isinstance(vars(layer)[name], Tensor):
                value = torch.tensor(value, dtype=vars(layer)[name].dtype, device=device)
        elif name == "device":
            value = device
        else:
            value = _real(value, device, generator, f"{type(layer).__name__}.{name}")
        setattr(layer, name, value)


def _counters(layer: Any, context: int) -> dict[str, int]:
    """Lengths that a cache layer counts, as they are after `context` tokens."""
    counts = {}
    if hasattr(layer, "cumulative_length"):
        counts["cumulative_length"] = context
    if hasattr(layer, "cumulative_length_int"):  # a static window: its tensor stops counting in the pass that overflows
        counts["cumulative_length_int"] = context
        counts["cumulative_length"] = context if context <= layer.max_cache_len else 0
    if isinstance(vars(layer).get("_sliding_window_tensor"), Tensor):
        counts["_sliding_window_tensor"] = layer.sliding_window
    return counts


def _real(value: Any, device: torch.device, generator: torch.Generator, name: str) -> Any:
    """`value` with each `meta` tensor in it made on `device`: normal with deviation 1."""
    if isinstance(value, dict):
        return {key: _real(one, device, generator, name) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_real(one, device, generator, name) for one in value)
    if not isinstance(value, Tensor) or value.device.type != "meta":
        return value
    if not value.is_floating_point():
        raise RequestError(f"the cache keeps counts in {name}, which roofcal cannot fill; use --cache dynamic")
    made = torch.empty(value.shape, dtype=value.dtype, device=device)
    return made if device.type == "meta" else made.normal_(generator=generator)


def _tensors(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict | list | tuple):
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _tensors(f"{name}.{key}", one)


def _snapshot(cache: Cache) -> Callable[[], None]:
    """A function that puts the cache back as it is now.

    Keys and values are put back by reference: a dynamic cache makes new ones, and a static cache writes the same
    values to the same positions in each pass. Counts, recurrent states and static windows, which roll, change in
    place and are copied back.
    """
    attributes = [(layer, dict(vars(layer))) for layer in cache.layers]
    copies: list[tuple[Tensor, Tensor]] = []
    nested: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
    for _, saved in attributes:
        rolls = "cumulative_length_int" in saved
        for name, value in saved.items():
            in_place = rolls or isinstance(value, dict)
            tensors = (tensor for _, tensor in _tensors(name, value))
            copies += [(one, one.clone()) for one in tensors if in_place or not one.is_floating_point()]
            if isinstance(value, dict):
                nested.append((value, dict(value)))

    def undo() -> None:
        for layer, saved in attributes:
            vars(layer).update(saved)
        for entries, saved_entries in nested:
            entries.update(saved_entries)
        for tensor, saved_tensor in copies:
            tensor.copy_(saved_tensor)

    return undo
