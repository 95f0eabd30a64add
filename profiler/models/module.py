"""Traces any `nn.Module` on example inputs, such as a diffusion transformer or an encoder, which no config describes.

A factory returns the module and its inputs. It is called inside ``torch.device("meta")``, so that neither weights nor
activations take memory; a module that cannot be built or run there is built and run on the CPU.
"""

import importlib
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from profiler.devices.backend import CUDA
from profiler.models.apart import GRAPH, REFUSAL
from profiler.models.aten import tensors
from profiler.models.catalogue import first_line
from profiler.models.meta import known_values
from profiler.models.trace import trace
from profiler.record.run import RequestError
from roofline.graph.op import OpGraph
from roofline.workload import Workload


@dataclass(frozen=True, slots=True)
class Example:
    """The arguments of a module's forward pass."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def call(self, model: nn.Module) -> Any:
        return model(*self.args, **self.kwargs)

    def restore(self) -> None:
        """Do nothing: a pass is assumed not to change its inputs."""

    def cache_tensors(self) -> Iterator[tuple[int, str, Tensor]]:
        """Yield nothing: a cache among the inputs counts as activations."""
        return iter(())

    def tensors(self) -> list[Tensor]:
        return list(tensors((*self.args, *self.kwargs.values())))

    def __str__(self) -> str:
        named = [*((str(i), value) for i, value in enumerate(self.args)), *self.kwargs.items()]
        return ", ".join(f"{name}: {_said(value)}" for name, value in named) or "no inputs"


@cache
def trace_module(spec: str, target: str = CUDA.type) -> OpGraph:
    """The operations of one forward pass of the module that a factory makes; traced once.

    Args:
        spec: "package.module:factory"; ``factory()`` returns (module, inputs), where inputs are a tuple of arguments,
            a dict of keyword arguments, or (arguments, keyword arguments).
        target: type of the device that the graph stands for.
    Returns: the graph; `traced_on` says "cpu" where `meta` was not enough. Batch is the first dimension of the first
        tensor among the inputs, and query tokens the second one of a sequence: (batch, tokens) of whole numbers or
        (batch, tokens, width). All else has one query token. There is no context.
    Raises: RequestError, one line, if the factory is missing, fails, or returns something else, or if the module fails
        on its inputs.
    """
    factory = _factory(spec)
    try:
        with torch.device("meta"), known_values():  # a mask says which pairs attention computes
            module, example = _made(spec, factory)
        return _traced(spec, module, example, target)
    except (RequestError, RuntimeError, NotImplementedError, TypeError, ValueError, AssertionError):
        module, example = _made(spec, factory)
    on_meta = any(tensor.device.type == "meta" for tensor in (*module.parameters(), *example.tensors()))
    return _traced(spec, module, example, target if on_meta else "cpu")


def write_trace(spec: str, folder: str) -> NoReturn:
    """Write the graph of `trace_module`, or the line of its refusal, into a folder, and end this process.

    For `profiler.models.apart`. What the factory prints goes to stderr; a fork of it writes nothing; neither its
    threads nor its functions for the end of the program are waited for.
    """
    process = os.getpid()
    os.dup2(2, 1)
    try:
        name, text = GRAPH, trace_module(spec).model_dump_json()
    except RequestError as error:
        name, text = REFUSAL, str(error)
    if os.getpid() == process:
        Path(folder, name).write_text(text, encoding="utf-8", errors="replace")
    sys.stderr.flush()
    os._exit(0)


def _factory(spec: str) -> Callable[[], Any]:
    name, _, attribute = spec.partition(":")
    if not name or not attribute:
        raise RequestError(f"--module {spec}: write it as package.module:factory")
    try:
        module = importlib.import_module(name)
    except Exception as error:  # the user's module may raise anything while it loads
        raise RequestError(f"--module {spec}: cannot import {name} ({_error(error)})") from error
    factory = getattr(module, attribute, None)
    if not callable(factory):
        public = {key: value for key, value in vars(module).items() if callable(value) and not key.startswith("_")}
        known = [key for key, value in public.items() if getattr(value, "__module__", None) == name]
        raise RequestError(f"--module {spec}: {name} has no factory {attribute}; it has {', '.join(known) or 'none'}")
    return factory


def _made(spec: str, factory: Callable[[], Any]) -> tuple[nn.Module, Example]:
    try:
        made = factory()
    except Exception as error:  # a factory may raise anything
        raise RequestError(f"--module {spec}: the factory failed ({_error(error)})") from error
    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module)):
        what = [type(part).__name__ for part in made] if isinstance(made, tuple) else type(made).__name__
        raise RequestError(f"--module {spec}: the factory must return (module, inputs), not {what}")
    return made[0].eval(), _example(spec, made[1])


def _example(spec: str, inputs: Any) -> Example:
    if isinstance(inputs, dict):
        example = Example((), inputs)
    elif (
        isinstance(inputs, tuple) and len(inputs) == 2 and isinstance(inputs[0], tuple) and isinstance(inputs[1], dict)
    ):
        example = Example(*inputs)
    elif isinstance(inputs, tuple):
        example = Example(inputs, {})
    else:
        what = type(inputs).__name__
        raise RequestError(f"--module {spec}: inputs must be a tuple, a dict or (tuple, dict), not {what}")
    if not any(tensor.dim() and tensor.numel() for tensor in example.tensors()):
        raise RequestError(f"--module {spec}: the inputs hold no tensor with a batch dimension ({example})")
    return example


def _traced(spec: str, module: nn.Module, example: Example, target: str) -> OpGraph:
    try:
        return trace(module, example, _workload(module, example), name=spec, target=target, options={})
    except Exception as error:  # a forward may raise anything
        raise RequestError(f"--module {spec}: the module fails on {example} ({_error(error)})") from error


def _workload(module: nn.Module, example: Example) -> Workload:
    first = next(tensor for tensor in example.tensors() if tensor.dim() and tensor.numel())
    ids = first.dim() == 2 and not first.is_floating_point()
    sequence = ids or first.dim() == 3
    types: Counter[torch.dtype] = Counter()
    for parameter in module.parameters():
        types[parameter.dtype] += parameter.numel()
    dtype = str(types.most_common(1)[0][0] if types else first.dtype).removeprefix("torch.")
    tokens = first.shape[1] if sequence else 1
    return Workload(batch=first.shape[0], query_tokens=tokens, context_tokens=0, dtype=dtype)


def _said(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return type(value).__name__


def _error(error: BaseException) -> str:
    name, line = type(error).__name__, first_line(error)
    return name if line == name else f"{name}: {line}"
