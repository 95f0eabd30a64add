"""Operands and memory that show what a kernel must not do: read or write beyond an operand, leave a result unwritten.

Operands lie between guards of NaN, at odd addresses where that is asked for. Memory that a kernel gets for its output
has held NaN before. Whole storages, guards included, are compared bit by bit before and after each call.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from profiler.kernels.serving.contract import Draw, Tensors, poison_of

GUARD = 64
"""Elements of NaN behind each operand: more than a vector register of any device holds."""
POISONS = 4
"""Blocks of each output's size that are filled with NaN and freed before a call; allocators hand them out again."""
MOST_POISON_BYTES = 1 << 26


class GuardedDraw(Draw):
    """Operands between guards of NaN. Draws of one `seed` have the same whole numbers (lengths, tables, indices), and
    other values with another `turn`."""

    guard = GUARD

    def __init__(self, device: torch.device, seed: int, offset: int = 0, *, turn: int = 0) -> None:
        super().__init__(device, seed, offset)
        self._whole = self._generator
        self._values = torch.Generator().manual_seed((seed + 1) * 1_000_003 + turn)

    def normal(self, *size: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
        return self._of_values(lambda: super(GuardedDraw, self).normal(*size, dtype=dtype, scale=scale))

    def uniform(self, low: float, high: float, *size: int, dtype: torch.dtype) -> Tensor:
        return self._of_values(lambda: super(GuardedDraw, self).uniform(low, high, *size, dtype=dtype))

    def _of_values(self, draw: Any) -> Tensor:
        self._generator = self._values
        try:
            result: Tensor = draw()
            return result
        finally:
            self._generator = self._whole


EMPTIES: tuple[tuple[Any, str], ...] = (
    *((torch, name) for name in ("empty", "empty_like", "empty_strided")),
    *((Tensor, name) for name in ("new_empty", "new_empty_strided")),
)
"""The functions that give memory without a value."""


@contextmanager
def poisoned_empties() -> Iterator[None]:
    """Fill with NaN what Python asks torch for without a value meanwhile."""
    before = [getattr(owner, name) for owner, name in EMPTIES]

    def filling(get: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def filled(*args: Any, **kwargs: Any) -> Tensor:
            result = get(*args, **kwargs)
            poison(result)
            return result

        return filled

    try:
        for (owner, name), get in zip(EMPTIES, before, strict=True):
            setattr(owner, name, filling(get))
        yield
    finally:
        for (owner, name), get in zip(EMPTIES, before, strict=True):
            setattr(owner, name, get)


def poison(tensor: Tensor) -> None:
    """Fill a tensor with NaN, or with the sentinel of its type."""
    tensor.fill_(poison_of(tensor.dtype))


def refill(tensors: Tensors, values: Mapping[str, Tensor]) -> None:
    """Write values to the operands of these names, where they lie."""
    for name, value in values.items():
        tensors[name].copy_(value)


def bits(tensor: Tensor) -> Tensor:
    """Return the bytes of a tensor's elements, so that NaN equals itself."""
    return tensor.detach().contiguous().flatten().view(torch.uint8)


def storages(tensors: Tensors, changing: Collection[str]) -> dict[str, Tensor]:
    """Copy each storage, its guards included; the operands named by `changing` count as zeros."""
    return {name: _storage(tensor, name in changing).clone() for name, tensor in tensors.items()}


def _storage(tensor: Tensor, may_change: bool) -> Tensor:
    """Return the bytes of the storage; where the operand may change, they count as zeros."""
    whole = torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(tensor.untyped_storage())
    if may_change:
        whole = whole.clone()
        whole.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).zero_()
    return whole.view(torch.uint8)


def change_of(tensors: Tensors, before: Mapping[str, Tensor], changing: Collection[str]) -> str | None:
    """Say which storage is not as `storages` copied it, and whether inside its operand; None: all are."""
    for name, tensor in tensors.items():
        now = _storage(tensor, name in changing)
        if not torch.equal(now, before[name]):
            start = int(tensor.storage_offset()) * tensor.itemsize
            places = (now != before[name]).nonzero().flatten() - start
            inside = bool(((places >= 0) & (places < tensor.numel() * tensor.itemsize)).any())
            return f"{name} has changed" if inside else f"it writes beyond the end of {name}"
    return None


def poison_allocator(outputs: Tensors, types: Mapping[str, torch.dtype], device: torch.device) -> None:
    """Leave NaN in memory of the outputs' sizes, which allocators hand out again without clearing it."""
    for name, output in outputs.items():
        if output.numel() * types[name].itemsize <= MOST_POISON_BYTES:
            blocks = [torch.empty(output.shape, dtype=types[name], device=device) for _ in range(POISONS)]
            for block in blocks:
                poison(block)
