"""What a model carries from pass to pass: a cache of `transformers`, or a state of its own, filled without a prefill.

The tensors of a cache after a prefill on `meta` are made on a device with random values (`materialise`), and put back
after each pass (`snapshot`).

Example: ``undo = snapshot(cache); model(input_ids=ids, past_key_values=cache); undo()``
"""

import inspect
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, get_args

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PretrainedConfig, PreTrainedModel

from profiler.record.run import RequestError


def dynamic_cache(config: PretrainedConfig) -> Cache:
    """A cache whose layers are of the config's kinds, or come as they are used where it counts those of an encoder."""
    decoder = config.get_text_config(decoder=True)
    layers = getattr(decoder, "num_hidden_layers", None)
    if layers is None or getattr(decoder, "decoder_layers", layers) != layers:
        return DynamicCache()
    return DynamicCache(config=config)


def takes_cache(model: PreTrainedModel, name: str) -> bool:
    """Whether an argument of `forward` is a cache of `transformers`, not of a class that only this model has."""
    if name not in inspect.signature(model.forward).parameters:
        return False
    for module in (model, model.base_model):
        parameter = inspect.signature(module.forward).parameters.get(name)
        kind = parameter.annotation if parameter else None
        named = [one for one in (kind, *get_args(kind)) if getattr(one, "__name__", "").endswith("Cache")]
        if named and not any(one.__module__ == Cache.__module__ for one in named):
            return False
    return True


class Part(SimpleNamespace):
    """One of the arguments that make up a state."""


class State:
    """What a model returns for its next pass, seen as a cache with a layer for each argument."""

    def __init__(self, states: dict[str, Any]) -> None:
        self.owns = {name: value for name, value in states.items() if hasattr(value, "__dict__")}
        plain = [Part(**{name: value}) for name, value in states.items() if name not in self.owns]
        inner = [layer for one in self.owns.values() for layer in getattr(one, "layers", ())]
        self.layers: list[Any] = [*self.owns.values(), *inner, *plain]

    def kwargs(self) -> dict[str, Any]:
        found = dict(self.owns)
        for layer in self.layers:
            found.update(vars(layer) if isinstance(layer, Part) else {})
        return found


def materialise(layer: Any, device: torch.device, generator: torch.Generator, context: int) -> None:
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
        if device.type == "meta":
            return value
        raise RequestError(f"the cache keeps counts in {name}, which roofcal cannot fill; use --cache dynamic")
    made = torch.empty(value.shape, dtype=value.dtype, device=device)
    return made if device.type == "meta" else made.normal_(generator=generator)


def nested_tensors(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """(path, tensor) of each tensor in nested lists and dicts; `name` starts the paths."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict | list | tuple):
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from nested_tensors(f"{name}.{key}", one)


def snapshot(cache: Any) -> Callable[[], None]:
    """A function that puts the cache back as it is now.

    Keys and values are put back by reference: a dynamic cache makes new ones, and a static cache writes the same
    values to the same positions in each pass. Counts, recurrent states and static windows, which roll, change in
    place and are copied back.
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
            copies += [(one, one.clone()) for one in tensors if in_place or not one.is_floating_point()]
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
