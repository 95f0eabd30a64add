"""Prepares one forward pass: token ids, and a cache that holds the context, on a device or on `meta`.

No prefill runs on the device. The context is prefilled on `meta`, which costs no memory, and each tensor of the
cache (one of `transformers`, or a state that the model returns for its next pass) is then made on the device with
random values of the same shape. After a pass `restore` puts the cache back, so that the next one does the same work.

- dynamic: `DynamicCache`, which grows by concatenation.
- static: `StaticCache`, for all tokens of the pass, rounded up to a multiple of MASK_ALIGNMENT.

A prefill starts from an empty cache that is new in each pass; as in `generate`, a static one is allocated inside it.
On `meta` a model that reads the length of a filled static cache fails with torch's RuntimeError (sdpa with several
queries, OPT): such a pass can only be traced on its device.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, get_args

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PretrainedConfig, PreTrainedModel, StaticCache

from profiler.models.mended import IN_CONTEXT, mended
from profiler.models.meta import LARGEST, Remembered, know, known_values, with_values_if_asked
from profiler.record.run import RequestError
from roofline.workload import Workload

CACHES = ("dynamic", "static")

MASK_ALIGNMENT = 8
"""Keys of a static cache come in multiples of this: torch's memory-efficient attention pads a mask whose last
dimension is not a multiple of 8 in every call (`pad_bias`, aten/src/ATen/native/transformers/attention.cpp)."""

STATE_PREFILL_TOKENS = 16
"""Length of a prefill on `meta` for a cache without a sequence dimension, whose size does not depend on the context."""


@dataclass(eq=False)
class PassInputs:
    """The inputs of a pass, which can be run repeatedly from the same state."""

    _tokens: dict[str, Any]
    _cache_name: str | None = None
    """Argument of `forward` that takes a cache of `transformers`."""
    _new_cache: Callable[[], Cache] | None = None
    """Makes the empty cache of a prefill."""
    _cache: Any = None
    max_cache_len: int | None = None
    """Tokens that a static cache attends over; None for a dynamic one."""
    _returned: "State | None" = None
    """The outputs of a prefill without a cache of `transformers` that the next pass takes."""

    def __post_init__(self) -> None:
        self._undo = snapshot(self._cache) if self._cache is not None else None

    def kwargs(self) -> dict[str, Any]:
        """Arguments of `forward`, with an empty cache made now where the pass is a prefill."""
        if self._new_cache is not None:
            self._cache = self._new_cache()
        if self._cache_name is None:
            return {**self._tokens, **(self._cache.kwargs() if self._cache is not None else {})}
        return {**self._tokens, self._cache_name: self._cache, "use_cache": True}

    @property
    def cache(self) -> Cache | None:
        """The cache that the pass fills or uses; None before a prefill, and where the model has no `Cache`."""
        return self._cache if isinstance(self._cache, Cache) else None

    def call(self, model: nn.Module) -> Any:
        """Run the pass on `model` and return what it returns."""
        out = model(**self.kwargs())
        if self._cache is None and (states := _returned_states(model, out)):
            self._returned = State(states)
        return out

    def restore(self) -> None:
        """Undo what a pass did to the cache: keys, values and lengths are again those from before it."""
        self._returned = None
        if self._undo is None:
            self._cache = None
        else:
            self._undo()

    def cache_tensors(self) -> Iterator[tuple[int, str, Tensor]]:
        """(layer, attribute, tensor) of each floating tensor that the cache holds now."""
        cache = self._cache if self._cache is not None else self._returned
        for index, layer in enumerate(cache.layers if cache is not None else ()):
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
    Raises: RequestError for an unknown cache, and for a context where the model keeps no state.
    """
    where = torch.device(device)
    if cache not in CACHES:
        raise RequestError(f"--cache {cache} is unknown; use {' or '.join(CACHES)}")
    accepted = inspect.signature(meta_model.forward).parameters
    cache_name = next((name for name in ("past_key_values", "cache_params") if takes_cache(meta_model, name)), None)
    generator = torch.Generator("cpu" if where.type == "meta" else where).manual_seed(seed)
    tokens: dict[str, Any] = {
        "input_ids": token_ids(meta_model, workload.batch, workload.query_tokens, where, generator)
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
        filled = prefilled(meta_model, cache_name, empty, workload)
    for layer in filled.layers:
        materialise(layer, where, generator, workload.context_tokens)
    return PassInputs(tokens, cache_name, None, filled, length)


def _without_cache(
    model: PreTrainedModel, workload: Workload, tokens: dict[str, Any], device: torch.device, generator: torch.Generator
) -> PassInputs:
    """Inputs of a model that has no cache, or returns a state that its next pass takes under the same name."""
    if workload.context_tokens == 0:
        return PassInputs(tokens)
    accepted = inspect.signature(model.forward).parameters
    with torch.no_grad(), known_values():
        ids = token_ids(model, workload.batch, workload.context_tokens, torch.device("meta"), torch.Generator())
        out = model(input_ids=ids, **{name: True for name in ("use_cache", "use_mems") if name in accepted})
    states = _returned_states(model, out)
    if not states:
        raise RequestError(
            f"{type(model).__name__} keeps nothing from pass to pass, so it has no decode; use a prefill of all tokens"
        )
    state = State(states)
    for layer in state.layers:
        materialise(layer, device, generator, workload.context_tokens)
    return PassInputs(tokens, _cache=state)


def _returned_states(model: nn.Module, out: Any) -> dict[str, Any]:
    """The outputs of a pass under names that the next pass takes."""
    accepted = inspect.signature(model.forward).parameters
    returned = dict(out) if isinstance(out, Mapping) else {}
    return {name: value for name, value in returned.items() if name in accepted and value is not None}


def max_cache_len(workload: Workload) -> int:
    """Tokens that a static cache is allocated for: all of the pass, rounded up to a multiple of MASK_ALIGNMENT."""
    return -(-(workload.context_tokens + workload.query_tokens) // MASK_ALIGNMENT) * MASK_ALIGNMENT


def token_ids(
    model: PreTrainedModel, batch: int, tokens: int, device: torch.device, generator: torch.Generator
) -> Tensor:
    """Random ids; on `meta` their values are known, unless there are too many, since some models branch on them."""
    shape, on_meta = (batch, tokens), device.type == "meta"
    if on_meta and batch * tokens > LARGEST:
        return torch.empty(shape, dtype=torch.long, device=device)
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    ids = torch.randint(vocabulary, shape, device="cpu" if on_meta else device, generator=generator)
    return know(torch.empty(shape, dtype=torch.long, device=device), ids) if on_meta else ids


@torch.no_grad()
def prefilled(model: PreTrainedModel, cache_name: str, empty: Callable[[], Cache], workload: Workload) -> Cache:
    """A `meta` cache after a prefill of the context."""
    cache = empty()
    tokens = workload.context_tokens
    if cache.layers and not any(hasattr(layer, "get_seq_length") for layer in cache.layers):
        tokens = min(tokens, STATE_PREFILL_TOKENS)
    ids = token_ids(model, workload.batch, tokens, torch.device("meta"), torch.Generator())
    keep = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}

    def filled(values: AbstractContextManager[None]) -> Cache:
        new = empty()
        with values, Remembered():
            model(**{"input_ids": ids, cache_name: new, "use_cache": True, **keep})
        return new

    with batched_experts(model), mended(model, IN_CONTEXT):
        cache = with_values_if_asked(filled, lambda: None)
    if not any(True for layer in cache.layers for _ in nested_tensors("", vars(layer))):
        raise RequestError(
            f"{type(model).__name__} keeps no keys and values with this config, so it has no decode; "
            "use a prefill of all tokens, or set is_decoder if the config has it"
        )
    return cache


@contextmanager
def batched_experts(model: PreTrainedModel) -> Iterator[None]:
    """Run experts as batched products, which `meta` runs in every type (`grouped_mm` takes bfloat16 alone there)."""
    if not model._can_set_experts_implementation():
        yield
        return
    chosen = model.config._experts_implementation
    model.set_experts_implementation("batched_mm")
    try:
        yield
    finally:
        model.set_experts_implementation(chosen)


def dynamic_cache(config: PretrainedConfig) -> Cache:
    """A cache with layers of the config's kinds, or with lazily made ones where the config counts encoder layers."""
    if getattr(config, "is_encoder_decoder", False):
        from profiler.models.encoder_decoder import Both

        return Both()
    decoder = config.get_text_config(decoder=True)
    layers = getattr(decoder, "num_hidden_layers", None)
    if layers is None or getattr(decoder, "decoder_layers", layers) != layers:
        return DynamicCache()
    return DynamicCache(config=config)


def takes_cache(model: PreTrainedModel, name: str) -> bool:
    """Return whether an argument of `forward` is a cache of `transformers` and not of a class of this model only."""
    if name not in inspect.signature(model.forward).parameters:
        return False
    for module in (model, model.base_model):
        parameter = inspect.signature(module.forward).parameters.get(name)
        kind = parameter.annotation if parameter else None
        caches = [part for part in (kind, *get_args(kind)) if getattr(part, "__name__", "").endswith("Cache")]
        if caches and not any(part.__module__ == Cache.__module__ for part in caches):
            return False
    return True


class Part(SimpleNamespace):
    """One of the arguments that make up a state."""


class State:
    """The state that a model returns for its next pass, seen as a cache with a layer for each argument."""

    def __init__(self, states: dict[str, Any]) -> None:
        self.owns = {name: value for name, value in states.items() if hasattr(value, "__dict__")}
        plain = [Part(**{name: value}) for name, value in states.items() if name not in self.owns]
        inner = [layer for value in self.owns.values() for layer in getattr(value, "layers", ())]
        self.layers: list[Any] = [*self.owns.values(), *inner, *plain]

    def kwargs(self) -> dict[str, Any]:
        arguments = dict(self.owns)
        for layer in self.layers:
            arguments.update(vars(layer) if isinstance(layer, Part) else {})
        return arguments


def materialise(layer: Any, device: torch.device, generator: torch.Generator, context: int) -> None:
    """Move a `meta` cache layer to `device` with random values, holding `context` tokens; what it holds under two names
    stays one tensor."""
    counts = _counters(layer, context)
    made: dict[int, Tensor] = {}
    for name, value in vars(layer).items():
        if name in counts:
            value = counts[name]
            if isinstance(vars(layer)[name], Tensor):
                value = torch.tensor(value, dtype=vars(layer)[name].dtype, device=device)
        elif name == "device":
            value = device
        else:
            value = _real(value, device, generator, f"{type(layer).__name__}.{name}", made)
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


def _real(value: Any, device: torch.device, generator: torch.Generator, name: str, made: dict[int, Tensor]) -> Any:
    """Return `value` with each `meta` tensor in it made on `device`, normal with deviation 1; `made` has those by the
    identity of the `meta` tensor."""
    if isinstance(value, dict):
        return {key: _real(part, device, generator, name, made) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_real(part, device, generator, name, made) for part in value)
    if not isinstance(value, Tensor) or value.device.type != "meta":
        return value
    if not value.is_floating_point():
        if device.type == "meta":
            return value
        raise RequestError(f"the cache keeps counts in {name}, which roofcal cannot fill; use --cache dynamic")
    if id(value) not in made:
        real = torch.empty(value.shape, dtype=value.dtype, device=device)
        made[id(value)] = real if device.type == "meta" else real.normal_(generator=generator)
    return made[id(value)]


Attributes = dict[tuple[str, str], Tensor]
"""Tensors by the path of their module and their name in it."""


def attributes(model: nn.Module) -> Attributes:
    """Floating tensors that modules keep as plain attributes, neither parameters nor buffers."""
    return {
        (path, name): value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, Tensor) and value.is_floating_point()
    }


def states(before: Attributes, after: Attributes, batch: int) -> Iterator[tuple[str, str, Tensor]]:
    """(path, attribute, tensor) of the states that modules keep themselves, before a pass and after it, as
    RecurrentGemma's do: a row for each sequence, and new ones in each pass."""
    for (path, name), new in after.items():
        old = before.get((path, name))
        if old is not new and new.dim() and new.shape[0] == batch:
            yield path, name, new
            if old is not None and old.shape == new.shape:
                yield path, name, old


def nested_tensors(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """(path, tensor) of each tensor in nested lists and dicts; `name` starts the paths."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict | list | tuple):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from nested_tensors(f"{name}.{key}", part)


def snapshot(cache: Any) -> Callable[[], None]:
    """A function that restores the cache to its present state.

    Keys and values are restored by reference: a dynamic cache makes new ones, and a static cache writes the same values
    to the same positions in each pass. Counts, recurrent states and rolling static windows change in place and are
    copied back.
    """
    attributes = [(layer, dict(vars(layer))) for layer in cache.layers]
    copies: list[tuple[Tensor, Tensor]] = []
    nested: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
    lists: list[tuple[list[Any], list[Any]]] = []
    for layer, saved in attributes:
        rolls = "cumulative_length_int" in saved
        for name, value in saved.items():
            in_place = rolls or isinstance(value, dict) or isinstance(layer, Part)
            tensors = (tensor for _, tensor in nested_tensors(name, value))
            copies += [(tensor, tensor.clone()) for tensor in tensors if in_place or not tensor.is_floating_point()]
            if isinstance(value, dict):
                nested.append((value, dict(value)))
            if isinstance(value, list):
                lists.append((value, list(value)))

    def undo() -> None:
        for layer, saved in attributes:
            vars(layer).update(saved)
        for entries, saved_entries in nested:
            entries.update(saved_entries)
        for elements, saved_elements in lists:
            elements[:] = saved_elements
        for tensor, saved_tensor in copies:
            tensor.copy_(saved_tensor)

    return undo
