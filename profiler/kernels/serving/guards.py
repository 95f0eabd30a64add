"""Operands and memory that show what a kernel must not do: read or write beyond an operand, leave a result unwritten.

Operands lie between guards of NaN, at odd addresses where that is asked for. Memory that a kernel gets for its output
has held NaN before. Whole storages, guards included, are compared bit by bit before and after each call.
"""

import sys
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
    """Operands between guards of NaN."""

    guard = GUARD


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


WATCHED = ("time.", "profiler.timing.", "profiler.microbench.bench.", "profiler.kernels.serving.")
"""Modules, or beginnings of their names, by which a kernel is checked and timed."""


def originals() -> dict[tuple[str, ...], object]:
    """Return the functions and classes of `WATCHED`, and what these classes hold, by name."""
    found: dict[tuple[str, ...], object] = {}
    for module in [name for name in sys.modules if f"{name}.".startswith(WATCHED)]:
        for name, value in vars(sys.modules[module]).items():
            if callable(value):
                found[module, name] = value
            if isinstance(value, type) and value.__module__ == module:
                found |= {(module, name, inner): held for inner, held in vars(value).items() if callable(held)}
    return found


def replaced(before: Mapping[tuple[str, ...], object]) -> str | None:
    """Return the name of what is no longer as `originals` found it; None: all is."""
    now = originals()
    return next((".".join(name) for name, value in before.items() if now.get(name) is not value), None)


def poison(tensor: Tensor) -> None:
    """Fill a tensor with NaN, or with the sentinel of its type."""
    tensor.fill_(poison_of(tensor.dtype))


def refill(tensors: Tensors, values: Mapping[str, Tensor]) -> None:
    """Write values to the operands of these names, where they lie, and leave the count of their changes as it was: a
    kernel that keeps a result until `_version` changes would be right here, and timed without its work."""
    for name, value in values.items():
        tensors[name].data.copy_(value)


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
