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
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel, StaticCache

from profiler.models.caches import State, dynamic_cache, materialise, nested_tensors, snapshot, takes_cache
from profiler.models.meta import LARGEST, know, known_values, with_values_if_asked
from profiler.models.shapes import Remembered
from profiler.record.run import RequestError
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
        cache_name: str | None,
        new_cache: Callable[[], Cache] | None,
        cache: Any,
        max_cache_len: int | None,
    ) -> None:
        self._tokens = tokens
        self._cache_name = cache_name
        self._new_cache = new_cache
        self._cache = cache
        self._undo = snapshot(cache) if cache is not None else None
        self.max_cache_len = max_cache_len
        """Tokens that a static cache attends over; None for a dynamic one."""

    def kwargs(self) -> dict[str, Any]:
        """Arguments of `forward`, with an empty cache made now where the pass is a prefill."""
        if self._new_cache is not None:
            self._cache = self._new_cache()
        if self._cache_name is None:
            return {**self._tokens, **(self._cache.kwargs() if self._cache is not None else {})}
        return {**self._tokens, self._cache_name: self._cache, "use_cache": True}

    @property
    def cache(self) -> Cache | None:
        """What the pass has filled or will use; None before a prefill, and where the model has no `Cache`."""
        return self._cache if isinstance(self._cache, Cache) else None

    def call(self, model: nn.Module) -> Any:
        """Run the pass on `model` and return what it returns."""
        return model(**self.kwargs())

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
                for path, tensor in nested_tensors(name, value):
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
    after: PassInputs | None = None,
) -> PassInputs:
    """Inputs of one pass of `workload`.

    Args:
        meta_model: the model on `meta`, in the dtype and with the implementations of the one that will run.
        cache: "dynamic" or "static".
        device: where the pass will run; "meta" for a trace.
        after: inputs of a prefill of the context that this model has run on `meta`: their cache is then the context.
    Raises: RequestError for an unknown cache, and for a context that the model has nothing to keep in.
    """
    where = torch.device(device)
    if cache not in CACHES:
        raise RequestError(f"--cache {cache} is unknown; use {' or '.join(CACHES)}")
    accepted = inspect.signature(meta_model.forward).parameters
    cache_name = next((name for name in ("past_key_values", "cache_params") if takes_cache(meta_model, name)), None)
    generator = torch.Generator("cpu" if where.type == "meta" else where).manual_seed(seed)
    tokens: dict[str, Any] = {
        "input_ids": _token_ids(meta_model, workload.batch, workload.query_tokens, where, generator)
    }
    if workload.query_tokens > 1 and workload.logits == "last" and "logits_to_keep" in accepted:
        tokens["logits_to_keep"] = 1
    if cache_name is None:
        return _without_cache(meta_model, workload, tokens, where, generator)

    length = max_cache_len(workload) if cache == "static" else None

    def empty() -> Cache:
        if length is None:
            return dynamic_cache(meta_model.config)
        return StaticCache(config=meta_model.config, max_cache_len=length)

    if workload.context_tokens == 0:
        return PassInputs(tokens, cache_name, empty, None, length)
    filled = after.cache if after is not None else None
    if filled is None:
        filled = _prefilled(meta_model, cache_name, empty, workload)
    for layer in filled.layers:
        materialise(layer, where, generator, workload.context_tokens)
    return PassInputs(tokens, cache_name, None, filled, length)


def _without_cache(
    model: PreTrainedModel,
    workload: Workload,
    tokens: dict[str, Any],
    device: torch.device,
    generator: torch.Generator,
) -> PassInputs:
    """Inputs of a model that has no cache, or returns a state that its next pass takes under the same name."""
    if workload.context_tokens == 0:
        return PassInputs(tokens, None, None, None, None)
    accepted = inspect.signature(model.forward).parameters
    with torch.no_grad(), known_values():
        ids = _token_ids(model, workload.batch, workload.context_tokens, torch.device("meta"), torch.Generator())
        out = model(input_ids=ids, **{name: True for name in ("use_cache", "use_mems") if name in accepted})
    states = {name: value for name, value in dict(out).items() if name in accepted and value is not None}
    if not states:
        raise RequestError(
            f"{type(model).__name__} keeps nothing from pass to pass, so it has no decode; use a prefill of all tokens"
        )
    state = State(states)
    for layer in state.layers:
        materialise(layer, device, generator, workload.context_tokens)
    return PassInputs(tokens, None, None, state, None)


def max_cache_len(workload: Workload) -> int:
    """Tokens that a static cache is allocated for: all of the pass, rounded up to a multiple of MASK_ALIGNMENT."""
    return -(-(workload.context_tokens + workload.query_tokens) // MASK_ALIGNMENT) * MASK_ALIGNMENT


def _token_ids(
    model: PreTrainedModel, batch: int, tokens: int, device: torch.device, generator: torch.Generator
) -> Tensor:
    """Random ids; on `meta` they are known, unless there are too many, and a model decides on them as on the device."""
    shape, on_meta = (batch, tokens), device.type == "meta"
    if on_meta and batch * tokens > LARGEST:
        return torch.empty(shape, dtype=torch.long, device=device)
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    ids = torch.randint(vocabulary, shape, device="cpu" if on_meta else device, generator=generator)
    return know(torch.empty(shape, dtype=torch.long, device=device), ids) if on_meta else ids


@torch.no_grad()
def _prefilled(model: PreTrainedModel, cache_name: str, empty: Callable[[], Cache], workload: Workload) -> Cache:
    """A `meta` cache after a prefill of the context."""
    cache = empty()
    tokens = workload.context_tokens
    if cache.layers and not any(hasattr(layer, "get_seq_length") for layer in cache.layers):
        tokens = min(tokens, STATE_PREFILL_TOKENS)
    ids = _token_ids(model, workload.batch, tokens, torch.device("meta"), torch.Generator())
    keep = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}

    def filled(values: AbstractContextManager[None]) -> Cache:
        new = empty()
        with values, Remembered():
            model(**{"input_ids": ids, cache_name: new, "use_cache": True, **keep})
        return new

    with _experts_that_run_on_meta(model):
        cache = with_values_if_asked(filled, lambda: None)
    if not any(True for layer in cache.layers for _ in nested_tensors("", vars(layer))):
        raise RequestError(
            f"{type(model).__name__} keeps no keys and values with this config, so it has no decode; "
            "use a prefill of all tokens, or set is_decoder if the config has it"
        )
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
