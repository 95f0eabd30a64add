"""Which bytes one ATen call touches: compulsory traffic, each distinct element once.

An expanded operand counts at its storage; a gather reads what it returns; writing rows into a tensor touches those
rows; a mixture reads the experts that are hit.

Example: ``reads, writes = touched(torch.ops.aten.mm.default, (a, b), {}, out, experts_per_token=1)``
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from profiler.models.operators import ACCUMULATES, GATHERS, PARTIAL, TEMPLATES, WRITE_ONLY, name_of, written_arguments
from roofline.graph.op import Bytes, Routing

Touched = list[tuple[Tensor, Bytes]]
"""Tensors with the bytes of them that are touched."""


def touched(
    func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any, *, experts_per_token: int
) -> tuple[Touched, Touched]:
    """What a call reads and what it writes.

    Args: the call and its result; how many experts a token chooses, for grouped products without real routing.
    """
    name = name_of(func)
    inputs, outputs = list(tensors((*args, *kwargs.values()))), list(tensors((out,)))
    written = [args[i] for i in written_arguments(func) if i < len(args)]
    written = [tensor for tensor in written if isinstance(tensor, Tensor)]
    moved = max((t.numel() * t.element_size() for t in outputs), default=0)
    reads: Touched = [
        (t, min(distinct_bytes(t), moved) if name in GATHERS and i == 0 else distinct_bytes(t))
        for i, t in enumerate(inputs)
        if not (name in WRITE_ONLY and t is args[0]) and name not in TEMPLATES
    ]
    if name == "_grouped_mm" and inputs[1].dim() == 3:
        chosen = routing_of(args, kwargs, experts_per_token)
        hit = chosen.hit if chosen else real_hit(args, kwargs)
        reads[1] = (inputs[1], distinct_bytes(inputs[1]) * hit / inputs[1].shape[0])
    if written and name in PARTIAL:
        changed = max((distinct_bytes(t) // t.element_size() for t in inputs[1:]), default=0)
        part = min(changed * written[0].element_size(), distinct_bytes(written[0]))
        if name in ACCUMULATES:
            reads[0] = (written[0], part)
        return reads, [(written[0], part)]
    fresh = [t for t in outputs if all(t is not w for w in written)]
    return reads, [(t, distinct_bytes(t)) for t in (*written, *fresh)]


def routing_of(args: tuple[Any, ...], kwargs: Mapping[str, Any], per_token: int) -> Routing | None:
    """The assumed routing of a grouped product (rows, (experts, k, n), offsets); None where the offsets are real."""
    rows, matrices = args[0], args[1]
    offsets = _offsets(args, kwargs)
    if matrices.dim() != 3 or (isinstance(offsets, Tensor) and offsets.device.type != "meta"):
        return None
    return Routing(experts=matrices.shape[0], per_token=per_token, tokens=rows.shape[0] / per_token)


def real_hit(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Distinct experts that have rows: `offsets` ends each expert's."""
    ends = _offsets(args, kwargs).flatten()
    return int((torch.diff(ends, prepend=ends.new_zeros(1)) > 0).sum())


def _offsets(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    return kwargs.get("offs", args[2] if len(args) > 2 else None)


def distinct_bytes(tensor: Tensor) -> int:
    """Bytes of the distinct elements that a view addresses: an expanded dimension (stride 0) counts once."""
    elements = math.prod(
        size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride != 0 or size == 0
    )
    return min(elements * tensor.element_size(), tensor.untyped_storage().nbytes())


def tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """All tensors in arguments, lists of tensors included."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors(value)
