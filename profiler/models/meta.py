"""What `meta` tensors cannot do by themselves, although the answer is known.

- Values: a mask of ones, positions and token ids do not depend on the weights. `known_values` computes them beside the
  `meta` tensors, by the same calls on small CPU tensors, so that a model may ask ``mask.all()`` or for the positions
  that are true. What depends on weights stays unknown, and asking for it raises torch's own error.
- Routing: the experts that tokens choose (`topk` along the last dimension) are taken in turn, so that a model which
  runs expert by expert runs with a balanced load, the assumption of `predict`.
- Shapes: `profiler.models.shapes`.

Example: ``with known_values(): bool(torch.ones(2, device="meta").all())``
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from profiler.models.shapes import run_or_shape

T = TypeVar("T")

LARGEST = 2**22
"""Elements of the largest tensor whose values are kept: the padding mask of 128 sequences of 32,768 tokens."""

_values: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""Values of `meta` tensors that are alive; those of a view share the memory of its base's."""


def know(tensor: Tensor, values: Tensor) -> Tensor:
    """`tensor`, with its values, a CPU tensor of the same shape, known from now on unless there are too many."""
    if tensor.device.type == "meta" and values.numel() <= LARGEST:
        _values[tensor] = values
    return tensor


def known(tensor: Tensor) -> Tensor | None:
    """Values of a tensor; None where nobody knows them."""
    return tensor if tensor.device.type == "cpu" else _values.get(tensor)


@contextmanager
def known_values() -> Iterator[None]:
    """Compute what can be known of `meta` tensors; enter it before the modes that count, which see nothing of it."""
    with _Literals(), _Values():
        yield


def with_values_if_asked(run: Callable[[AbstractContextManager[None]], T], undo: Callable[[], None]) -> T:
    """What `run` returns inside the context it is given: one that does nothing, or, where that fails, known values.

    Values cost as much again as the rest, and most models ask for none.
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
            if any(isinstance(one, list) for one in index):
                here = tuple(torch.tensor(one, device="cpu") if isinstance(one, list) else one for one in index)
                return func(args[0], here)
        out = func(*args, **kwargs)
        if func in (torch.tensor, torch.as_tensor) and out.device.type == "meta" and not _tensors(args):
            know(out, func(*args, **{**kwargs, "device": "cpu"}))
        return out


class _Values(TorchDispatchMode):
    """Values of what each call returns, by the same call on the values of its arguments."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = _tensors(args, *kwargs.values())
        if all(one.device.type != "meta" for one in given) and not _is_meta(kwargs.get("device")):
            return func(*args, **kwargs)
        args = _positions_of_true(func, args)
        computable = torch.Tag.nondeterministic_seeded not in func.tags and "empty" not in func._schema.name
        computable = computable and all(known(one) is not None for one in given)
        try:
            out = run_or_shape(func, args, kwargs)
        except (RuntimeError, NotImplementedError):  # the shape, or the answer, depends on values
            if not computable:
                raise
            values = _on_cpu(func, args, kwargs)
            wanted = torch.device(kwargs.get("device") or "meta")
            out = tree_map(lambda one: one.to(wanted) if isinstance(one, Tensor) else one, values)
            _learn(out, values)
            return out
        small = func.is_view or all(one.numel() <= LARGEST for one in _tensors(out))
        values = _tried(func, args, kwargs) if computable and small else None
        if values is None:
            _forget(func, args)
            if func is torch.ops.aten.topk.default:
                _assume_balanced(out[1], args)
        else:
            _learn(out, values)
        return out


def _tensors(*values: Any) -> list[Tensor]:
    """Tensors among arguments, those in lists included; quicker than `tree_leaves`, for it runs at every call."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(*value)
    return found


def _is_meta(device: Any) -> bool:
    return device is not None and torch.device(device).type == "meta"


def _on_cpu(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
    here = {key: torch.device("cpu") if key == "device" and _is_meta(one) else one for key, one in kwargs.items()}
    args, here = tree_map(lambda one: known(one) if isinstance(one, Tensor) else one, (args, here))
    return func(*args, **here)


def _tried(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
    """The values, or None for what the CPU has no kernel for."""
    try:
        return _on_cpu(func, args, kwargs)
    except (RuntimeError, NotImplementedError):
        return None


def _positions_of_true(func: Any, args: Any) -> Any:
    """The arguments of an indexing with each known mask as the positions that it selects, as torch does on a device."""
    if func._overloadpacket not in (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_):
        return args
    index: list[Any] = []
    for one in args[1]:
        mask = known(one) if isinstance(one, Tensor) and one.dtype == torch.bool else None
        index += [one] if mask is None else list(mask.nonzero(as_tuple=True))
    return (args[0], index, *args[2:])


def _learn(out: Any, values: Any) -> None:
    for one, value in zip(tree_leaves(out), tree_leaves(values), strict=True):
        if isinstance(one, Tensor):
            know(one, value)


def _assume_balanced(chosen: Tensor, args: Any) -> None:
    dim = args[2] if len(args) > 2 else -1
    if chosen.numel() <= LARGEST and chosen.dim() and dim % chosen.dim() == chosen.dim() - 1:
        know(chosen, torch.arange(chosen.numel()).view(chosen.shape) % args[0].shape[-1])


def _forget(func: Any, args: Any) -> None:
    """Drop the values of all views of what a call with unknown operands has written."""
    for argument, one in zip(func._schema.arguments if func._schema.is_mutable else (), args, strict=False):
        values = _values.get(one) if isinstance(one, Tensor) else None
        if values is not None and argument.alias_info is not None and argument.alias_info.is_write:
            memory = values.untyped_storage().data_ptr()
            for view in [key for key, value in _values.items() if value.untyped_storage().data_ptr() == memory]:
                del _values[view]
