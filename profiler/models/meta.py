"""Adds to `meta` tensors values that do not depend on weights, balanced routing, and a cache of shapes.

- Values: a mask of ones, positions and token ids do not depend on the weights. `known_values` computes them beside the
  `meta` tensors, by the same calls on small CPU tensors, so that a model may read ``mask.all()`` or the positions that
  are true. Values that depend on weights stay unknown, and reading them raises torch's own error.
- Routing: the experts that tokens choose (`topk` along the last dimension) are taken in turn, evenly over all of them
  (`balanced`), so that a model which runs expert by expert runs with a balanced load.
- Shapes: the layout of the result is computed once for identical ATen calls (`run_or_shape`). Torch computes most of
  them in Python, which takes half of the time of a trace, and the layers of a model repeat the same calls.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from profiler.models.aten import tensors

T = TypeVar("T")

LARGEST = 2**22
"""Elements of the largest tensor whose values are kept: the padding mask of 128 sequences of 32,768 tokens. A larger
one-hot of known numbers is kept as a sparse tensor: a loop over experts reads which of them are hit, and by whom."""

_values: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""Values of `meta` tensors that are alive; those of a view share the memory of its base's."""

MOST_CALLS = 2**15
"""Most calls that are remembered, at some 1 kB each; then all are forgotten."""

Layout = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]
"""Shape, strides and type of a result."""

_results: dict[Any, Layout | None] = {}
"""Layout of the result by call; None where the call has to be run each time."""

_repeatable: dict[Any, bool] = {}
"""Whether the result of an operator is always new memory."""

PLAIN = (int, float, bool, complex, str, torch.dtype, torch.device, torch.layout, torch.memory_format, type(None))


def know(tensor: Tensor, values: Tensor) -> Tensor:
    """Remember the values of a tensor, a CPU tensor of the same shape, unless there are too many; return the tensor."""
    small = values.numel() <= LARGEST
    if tensor.device.type == "meta" and (small or values.is_sparse):
        _values[tensor] = values.to_dense() if small and values.is_sparse else values
    return tensor


def known(tensor: Tensor) -> Tensor | None:
    """Values of a tensor; None where they are unknown."""
    return tensor if tensor.device.type == "cpu" else _values.get(tensor)


@contextmanager
def known_values() -> Iterator[None]:
    """Compute the values of `meta` tensors; enter it before the modes that count, so that they do not see the calls."""
    with _Literals(), _Values():
        yield


def with_values_if_asked(run: Callable[[AbstractContextManager[None]], T], undo: Callable[[], None]) -> T:
    """Return what `run` returns, first without known values and, where that fails, after `undo`, with them.

    Computing the values doubles the time, and most models need none.
    """
    try:
        return run(nullcontext())
    except Exception:  # noqa: BLE001 - which error a model meets without values differs; with them it raises its own
        undo()
    return run(known_values())


class _Literals(TorchFunctionMode):
    """Python numbers that become `meta` tensors inside torch, where no dispatch mode sees them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.__getitem__ and args[0].device.type == "meta":
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(part, list) for part in index):
                here = tuple(torch.tensor(part, device="cpu") if isinstance(part, list) else part for part in index)
                return func(args[0], here)
        out = func(*args, **kwargs)
        if func in (torch.tensor, torch.as_tensor) and out.device.type == "meta" and next(tensors(args), None) is None:
            know(out, func(*args, **{**kwargs, "device": "cpu"}))
        if func is one_hot and out.numel() > LARGEST and (numbers := known(args[0])) is not None:
            know(out, _sparse_one_hot(numbers, out.shape[-1]))
        return out


def _sparse_one_hot(numbers: Tensor, classes: int) -> Tensor:
    where = torch.stack([*torch.unravel_index(torch.arange(numbers.numel()), numbers.shape), numbers.flatten()])
    ones, shape = torch.ones(numbers.numel(), dtype=torch.long), (*numbers.shape, classes)
    return torch.sparse_coo_tensor(where, ones, shape, check_invariants=False, is_coalesced=True)


class _Values(TorchDispatchMode):
    """Computes the values of the result of each call by the same call on the values of its arguments."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        operands = list(tensors((args, *kwargs.values())))
        if all(operand.device.type != "meta" for operand in operands) and not _is_meta(kwargs.get("device")):
            return func(*args, **kwargs)
        args = _positions_of_true(func, args)
        computable = torch.Tag.nondeterministic_seeded not in func.tags and "empty" not in func._schema.name
        computable = computable and all(known(operand) is not None for operand in operands)
        try:
            out = run_or_shape(func, args, kwargs)
        except (RuntimeError, NotImplementedError):  # the shape, or the answer, depends on values
            if not computable:
                raise
            values = _on_cpu(func, args, kwargs)
            wanted = torch.device(kwargs.get("device") or "meta")
            out = tree_map(lambda value: value.to(wanted) if isinstance(value, Tensor) else value, values)
            _learn(out, values)
            return out
        small = func.is_view or all(result.numel() <= LARGEST for result in tensors((out,)))
        values = _tried(func, args, kwargs) if computable and small else None
        if values is None:
            _forget(func, args)
            if func is torch.ops.aten.topk.default:
                _assume_balanced(out[1], args)
        else:
            _learn(out, values)
        return out


def _is_meta(device: Any) -> bool:
    return device is not None and torch.device(device).type == "meta"


def _on_cpu(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
    here = {key: torch.device("cpu") if key == "device" and _is_meta(value) else value for key, value in kwargs.items()}
    args, here = tree_map(lambda value: known(value) if isinstance(value, Tensor) else value, (args, here))
    return func(*args, **here)


def _tried(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
    """The values, or None where the CPU has no kernel."""
    try:
        return _on_cpu(func, args, kwargs)
    except (RuntimeError, NotImplementedError):
        return None


def _positions_of_true(func: Any, args: Any) -> Any:
    """The arguments of an indexing with each known mask as the positions that it selects, as torch does on a device."""
    if func._overloadpacket not in (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_):
        return args
    index: list[Any] = []
    for part in args[1]:
        mask = known(part) if isinstance(part, Tensor) and part.dtype == torch.bool else None
        index += [part] if mask is None else list(mask.nonzero(as_tuple=True))
    return (args[0], index, *args[2:])


def _learn(out: Any, values: Any) -> None:
    for result, value in zip(tree_leaves(out), tree_leaves(values), strict=True):
        if isinstance(result, Tensor):
            know(result, value)


def _assume_balanced(chosen: Tensor, args: Any) -> None:
    dim = args[2] if len(args) > 2 else -1
    if chosen.numel() <= LARGEST and chosen.dim() and dim % chosen.dim() == chosen.dim() - 1:
        know(chosen, balanced(chosen.numel(), args[0].shape[-1]).view(chosen.shape))


def balanced(choices: int, of: int) -> Tensor:
    """So many numbers below `of`, each again only after all others; any number of them lies evenly over the range.

    Multiples of a step near the golden section of the range, the most even sequence of multiples there is.
    """
    step = next(s for s in range(round(of * (math.sqrt(5) - 1) / 2) or 1, of + 2) if math.gcd(s, of) == 1)
    return torch.arange(choices) * step % of


def _forget(func: Any, args: Any) -> None:
    """Drop the values of all views of what a call with unknown operands has written."""
    for argument, operand in zip(func._schema.arguments if func._schema.is_mutable else (), args, strict=False):
        values = _values.get(operand) if isinstance(operand, Tensor) else None
        written = argument.alias_info is not None and argument.alias_info.is_write
        if values is not None and written and values.is_sparse:
            del _values[operand]
        elif values is not None and written:
            memory = values.untyped_storage().data_ptr()
            for view in [k for k, v in _values.items() if not v.is_sparse and v.untyped_storage().data_ptr() == memory]:
                del _values[view]


class Remembered(TorchDispatchMode):
    """Runs what is inside by `run_or_shape`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run_or_shape(func, args, kwargs or {})

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch wraps the method above, so that it is not compiled, where this is True; nothing is compiled here."""
        return False


def run_or_shape(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The call's result; for `meta` tensors from a remembered layout, if the result depends only on shapes, strides and
    types of the arguments, and no operand is written or viewed."""
    if torch._C._len_torch_dispatch_stack():  # another mode waits to see the call
        return _run(func, args, kwargs)
    repeatable = _repeatable.get(func)
    if repeatable is None:
        repeatable = _repeatable[func] = _makes_memory(func)
    call = _call(func, args, kwargs) if repeatable else None
    if call is None:
        return _run(func, args, kwargs)
    layout = _results.get(call)
    if layout is not None:
        shape, strides, dtype = layout
        return torch.empty_strided(shape, strides, dtype=dtype, device="meta")
    out = _run(func, args, kwargs)
    if call not in _results:
        if len(_results) >= MOST_CALLS:
            _results.clear()
        _results[call] = _layout(out, args)
    return out


def _run(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    # torch 2.13's `_grouped_mm` on `meta` takes bfloat16 alone (`torch/_meta_registrations.py`), a device takes more
    if func is torch.ops.aten._grouped_mm.default and args[0].device.type == "meta" and args[1].dim() == 3:
        rows, matrices = args[0], args[1]
        dtype = kwargs.get("out_dtype") or rows.dtype
        return rows.new_empty((*rows.shape[:-1], matrices.shape[-1]), dtype=dtype)
    return func(*args, **kwargs)


def _makes_memory(func: Any) -> bool:
    """Return whether the operator is torch's own, writes no operand, and returns one tensor that shares no memory."""
    schema = func._schema
    return (
        func.namespace == "aten"
        and not func.is_view
        and not schema.is_mutable
        and len(schema.returns) == 1
        and all(value.alias_info is None for value in (*schema.arguments, *schema.returns))
    )


def _call(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Return all that the result of a call on `meta` tensors depends on, as a key; None where that is unknown."""
    key: list[Any] = [func]
    if not _describe(args, key) or (kwargs and not _describe(kwargs.items(), key)):
        return None
    return tuple(key) if Tensor in key or nn.Parameter in key else None


def _describe(values: Any, key: list[Any]) -> bool:
    """Append to `key` all that matters of each value; return False where a value may matter in other ways."""
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
    """Layout of a plain tensor in memory of its own, without room before or behind it; None for all else."""
    if type(out) is not Tensor or out.device.type != "meta" or out.layout is not torch.strided or out.requires_grad:
        return None
    like = torch.empty_strided(out.shape, out.stride(), dtype=out.dtype, device="meta")
    alike = out.storage_offset() == 0 and out.untyped_storage().nbytes() == like.untyped_storage().nbytes()
    memory = out.untyped_storage()._cdata
    own = all(argument.untyped_storage()._cdata != memory for argument in tensors(args))
    return (tuple(out.shape), out.stride(), out.dtype) if alike and own and not out.is_conj() else None
