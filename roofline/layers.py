"""Repeated layers by the paths of their modules: "model.layers.3.mlp" is in layer 3 of "model.layers".

Example: ``layer_of("model.layers.3.mlp.up_proj")`` → Place(prefix="model.layers", layer=3, inner="mlp.up_proj")
"""

import re
from collections.abc import Hashable
from typing import NamedTuple

_LAYER = re.compile(r"^(.*?)\.(\d+)(?:\.(.*))?$")
"""Path up to the first repeated module, its index, and the path inside it."""


class Place(NamedTuple):
    """Where a module is among repeated layers."""

    prefix: str
    layer: int
    inner: str | None
    """Path inside the layer; None for the layer itself."""


def layer_of(path: str) -> Place | None:
    """The repeated layer that holds a module; None outside of all."""
    match = _LAYER.match(path)
    return Place(match[1], int(match[2]), match[3]) if match else None


def layer_key(path: str) -> Hashable:
    """The same for all modules of one repeated layer; a module outside of all is a layer of its own."""
    place = layer_of(path)
    return (place.prefix, place.layer) if place else path
