"""How a weight is stored in few bits, and how the scheme of each weight of a model is chosen."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

UNIT_GROUP = 32
"""Longest group whose scales a matrix unit takes: 32 of the MX formats (OCP Microscaling Formats v1.0, 5.2), 16 of
NVFP4 (PTX ISA 8.7, `tcgen05.mma` with block scaling)."""


@dataclass(frozen=True)
class Scheme:
    """How the weights of one layer are stored, and its inputs turned into fewer bits."""

    bits: int
    """Bits of a stored weight, without its share of scales."""
    group: int = 128
    """Weights along k that share a scale; -1 is a whole column, 0 the whole matrix."""
    scale_bits: float = 16
    """Bits of all that is stored beside each group but for its zero point: scales, and scales of scales."""
    zero_point_bits: float = 0
    columns: int = 1
    """Columns that share a scale: 128 where it is one of a block of 128 × 128."""
    activations: int | None = None
    """Bits of the inputs; None leaves them as they are."""
    dtype: str | None = None
    """Type of the product; None is that of the model."""
    activation_group: int = -1
    """Elements of a token that share a scale; -1 is a whole token, 0 a scale that is known before the pass."""
    activation_scale_bits: float = 16

    def groups(self, k: int) -> int:
        """Scales of one column."""
        return 1 if self.group < 1 else math.ceil(k / self.group)

    def scales(self, elements: float, k: int) -> float:
        """Scales of a matrix of so many elements with columns of length k."""
        return 1 if self.group == 0 else math.ceil(elements / k / self.columns) * self.groups(k)

    def input_scales(self, k: int) -> int:
        """Scales of one token of an input of width k."""
        return 0 if self.activation_group == 0 else 1 if self.activation_group < 0 else -(-k // self.activation_group)

    @property
    def unit_scales(self) -> bool:
        """Return whether the matrix unit takes the scales of groups itself, as for block formats (MXFP4, NVFP4)."""
        return self.activations is not None and self.group == self.activation_group and 0 < self.group <= UNIT_GROUP


Role = Literal["linear", "experts", "router", "head", "embedding", "tied"]
"""Part of a model that a weight belongs to; "tied" is a head and the embedding in one."""


class Weight(NamedTuple):
    """One weight of a graph, by which its scheme is chosen."""

    name: str
    """Path of the parameter; of a head that is tied to the embedding, the embedding's."""
    role: Role
    k: int = 0
    """Length of a column, elements."""


Choose = Callable[[Weight], Scheme | None]
"""The scheme of a weight; None leaves it in the type of the model."""
