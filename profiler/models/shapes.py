"""What an ATen call returns on `meta`: a shape and strides, worked out once for calls that are alike.

Torch works most of them out in Python, which takes half of the time of a trace, and the layers of a model repeat the
same calls. A result depends on the arguments' shapes, strides and types alone where no operand is written or viewed.

- `_grouped_mm` on meta takes bfloat16 alone (torch 2.13, `torch/_meta_registrations.py`); on a device it takes more.

Example: ``run_or_shape(torch.ops.aten.mm.default, (a, b), {}).shape``
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from profiler.models.accesses import tensors

MOST = 2**15
"""Calls that are remembered, some 1 kB each; then all are forgotten."""

Layout = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]
"""Shape, strides and type of a result."""

_results: dict[Any, Layout | None] = {}
"""Result by call; None where it has to be asked each time."""

_repeatable: dict[Any, bool] = {}
"""Operators whose results are new memory."""

PLAIN = (int, float, bool, complex, str, torch.dtype, torch.device, torch.layout, torch.memory_format, type(None))


class Remembered(TorchDispatchMode):
    """Runs what is inside by `run_or_shape`, where nothing is recorded."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run_or_shape(func, args, kwargs or {})

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch wraps the method above, so that it is not compiled, where this is True; nothing is compiled here."""
        return False


def run_or_shape(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The call's result; for a grouped product of `meta` tensors an empty one of the right shape."""
    if torch._C._len_torch_dispatch_stack():  # another mode waits to see the call
        return _run(func, args, kwargs)
    repeatable = _repeatable.get(func)
    if repeatable is None:
        repeatable = _repeatable[func] = _makes_memory(func)
    call = _call(func, args, kwargs) if repeatable else None
    if call is None:
        return _run(func, args, kwargs)
    found = _results.get(call)
    if found is not None:
        shape, strides, dtype = found
        return torch.empty_strided(shape, strides, dtype=dtype, device="meta")
    out = _run(func, args, kwargs)
    if call not in _results:
        if len(_results) >= MOST:
            _results.clear()
        _results[call] = _layout(out, args)
    return out


def _run(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    if func is torch.ops.aten._grouped_mm.default and args[0].device.type == "meta" and args[1].dim() == 3:
        rows, matrices = args[0], args[1]
        dtype = kwargs.get("out_dtype") or rows.dtype
        return rows.new_empty((*rows.shape[:-1], matrices.shape[-1]), dtype=dtype)
    return func(*args, **kwargs)


def _makes_memory(func: Any) -> bool:
    """Whether the operator is torch's own, writes no operand, and returns one tensor that shares no memory."""
    schema = func._schema
    return (
        func.namespace == "aten"
        and not func.is_view
        and not schema.is_mutable
        and len(schema.returns) == 1
        and all(one.alias_info is None for one in (*schema.arguments, *schema.returns))
    )


def _call(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What the result of a call on `meta` tensors depends on; None where that is not known."""
    key: list[Any] = [func]
    if not _describe(args, key) or (kwargs and not _describe(kwargs.items(), key)):
        return None
    return tuple(key) if Tensor in key or nn.Parameter in key else None


def _describe(values: Any, key: list[Any]) -> bool:
    """Append what matters of each value; False for what may matter otherwise."""
    for value in values:
        kind = type(value)
        key.append(kind)  # 1, 1.0 and True are equal
        if kind is Tensor or kind is nn.Parameter:
            if value.device.type != "meta" or value.layout is not torch.strided or value.is_conj() or value.is_neg():
                return False
            key += (value.shape, value.stride(), value.dtype)
        elif kind is list or kind is tuple:
            key.append(len(value))
            if not _describe(value, key):
                return False
        elif kind in PLAIN:
            key.append(value)
        else:
            return False
    return True


def _layout(out: Any, args: tuple[Any, ...]) -> Layout | None:
    """Of a plain tensor in memory of its own, without room before or behind it; None for all else."""
    if type(out) is not Tensor or out.device.type != "meta" or out.layout is not torch.strided or out.requires_grad:
        return None
    like = torch.empty_strided(out.shape, out.stride(), dtype=out.dtype, device="meta")
    alike = out.storage_offset() == 0 and out.untyped_storage().nbytes() == like.untyped_storage().nbytes()
    memory = out.untyped_storage()._cdata
    own = all(one.untyped_storage()._cdata != memory for one in tensors(args))
    return (tuple(out.shape), out.stride(), out.dtype) if alike and own and not out.is_conj() else None
