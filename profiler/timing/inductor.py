"""Compiles a model with inductor, and keeps which calls of its source went into each kernel.

Dynamo's graph says of each call which module made it; the operators that a call makes in eager mode are those that it
makes on fake tensors. Inductor's provenance tracking says from which nodes of its own graph each kernel was generated,
and `from_node` of those leads back to dynamo's (torch 2.11 to 2.13). Caches of compiled graphs are off, since a cached
graph tells nothing of this; compiled kernels themselves are cached as always.

Contract: `graphs` and `called` are complete once the model has run; a torch whose inductor keeps no such record raises
InvalidMeasurement. Each call of a compiled graph runs within a profiler range named `COMPILED`.

Example: ``made = Inductor(model); compiled = torch.compile(model, backend=made, dynamic=False)``
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch._functorch.config as functorch_config
import torch._inductor.config as inductor_config
import torch._inductor.debug as inductor_debug
import torch.nn.functional as F
from torch import fx, nn
from torch._C._profiler import _RecordFunctionFast
from torch._inductor.compile_fx import compile_fx, compile_fx_inner
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from profiler.attribution.provenance import CompiledGraph, CompiledKernel, Source, library_operator
from profiler.attribution.spans import COMPILED
from profiler.models.aten import is_metadata, name_of
from profiler.models.attention import NAME as ATTENTION
from profiler.record.run import InvalidMeasurement

SETTINGS: Mapping[str, Any] = {
    "trace.provenance_tracking_level": 1,
    "fx_graph_cache": False,
    "cpp.enable_kernel_profile": True,  # kernels in C++ are host events of their own; those in Triton always are
}
ROOT = re.compile(r"^L\['\w+'\]\.?")
"""How dynamo names the module whose forward it compiles."""
INDEX = re.compile(r"(?:\._modules)?\[['\"]?(\w+)['\"]?\]")


class Inductor:
    """A backend for torch.compile: inductor, with a record of what it makes and of what is called."""

    def __init__(self, model: nn.Module) -> None:
        self._paths = frozenset(path for path, _ in model.named_modules())
        self._root = type(model)
        self.graphs: list[CompiledGraph] = []
        self.called: list[int] = []
        """Numbers of the compiled graphs, in the order of their calls."""

    def __call__(self, graph: fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        calls = [node for node in graph.graph.nodes if node.op.startswith("call_")]
        names = _eager_names(graph)
        sources = [Source(self._path(node), tuple(names.get(node.name, ()))) for node in calls]
        position = {node.name: i for i, node in enumerate(calls)}
        kernels: list[CompiledKernel] = []

        def inner(made: fx.GraphModule, example: Sequence[Any], **options: Any) -> Any:
            compiled = compile_fx_inner(made, example, **options)
            kernels.extend(self._kernels(made, options.get("graph_id"), position, sources))
            return compiled

        with inductor_config.patch(dict(SETTINGS)), functorch_config.patch(enable_autograd_cache=False):
            run: Callable[..., Any] = compile_fx(graph, inputs, inner_compile=inner)  # type: ignore[assignment]
        number = len(self.graphs)
        self.graphs.append(CompiledGraph(tuple(sources), tuple(kernels)))

        def call(*arguments: Any) -> Any:
            self.called.append(number)
            with _RecordFunctionFast(COMPILED):
                return run(*arguments)

        return call

    def _path(self, node: fx.Node) -> str | None:
        """Module path of a call; None where it is no module of the model, as in a part after a break."""
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        if not stack:
            return ""
        outermost, kind = stack[0]
        if not ROOT.sub("", outermost) and kind is not self._root:  # compiled as a root of its own, after a break
            return None
        path = INDEX.sub(r".\1", ROOT.sub("", stack[-1][0])).lstrip(".")
        return path if path in self._paths else None

    def _kernels(
        self, made: fx.GraphModule, graph_id: int | None, position: Mapping[str, int], sources: list[Source]
    ) -> Iterator[CompiledKernel]:
        """Kernels in the order in which the generated code calls them; calls without a node of dynamo's are added."""
        provenance = getattr(inductor_debug, "_inductor_triton_kernel_to_post_grad_node_info", None)
        if provenance is None:
            raise InvalidMeasurement(
                f"inductor of torch {torch.__version__} keeps no record of what its kernels came from; use torch 2.11 "
                "to 2.13, or leave --compile out"
            )
        nodes = {node.name: node for node in made.graph.nodes}
        found: list[tuple[str, str | None, list[fx.Node]]] = []
        for key, names in provenance.items():
            kernel = key.rpartition(":")[0] or key
            working = [nodes[name] for name in names if name in nodes and _works(nodes[name])]
            operator = library_operator(kernel)
            if operator is not None:
                working = [node for node in working if _operator(node) == operator] or working
            found.append((kernel, operator, working))
        taken = {node.name for _, operator, working in found if operator for node in working}
        for kernel, operator, working in found:
            own = [node for node in working if operator or node.name not in taken]
            numbers = sorted({self._source(node, position, sources) for node in own})
            prefix = "" if operator or graph_id is None or not kernel.startswith("cpp") else f"graph_{graph_id}_"
            yield CompiledKernel(operator or f"{prefix}{kernel}", tuple(numbers), operator is not None)

    def _source(self, node: fx.Node, position: Mapping[str, int], sources: list[Source]) -> int:
        """Its call; where that makes no operator, as a slice of everything that the node replaced, its own module."""
        origin = node.meta.get("from_node")
        while origin:
            number = position.get(origin[-1].name)
            if number is not None and sources[number].names:
                return number
            origin = origin[-1].from_node
        sources.append(Source(self._path(node)))
        return len(sources) - 1


def _works(node: fx.Node) -> bool:
    """Whether a node of inductor's graph does work on data."""
    return (
        node.op == "call_function"
        and not (isinstance(node.target, OpOverload) and is_metadata(node.target))
        and (getattr(node.target, "__name__", "") != "getitem")
    )


def _operator(node: fx.Node) -> str:
    target = node.target
    return str(target._schema.name) if isinstance(target, OpOverload) else ""


class _Names(TorchDispatchMode):
    """Names the operators that each node makes; attention is one, as in the trace."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, list[str]] = {}
        self.node = ""
        self.is_inside = False

    def add(self, name: str) -> None:
        self.found.setdefault(self.node, []).append(name)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.is_inside and func.namespace != "prim" and not is_metadata(func):  # prim::device asks fake tensors
            self.add(f"aten::{name_of(func)}")
        return func(*args, **(kwargs or {}))


class _Attention(TorchFunctionMode):
    def __init__(self, names: _Names) -> None:
        super().__init__()
        self.names = names

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        self.names.add(ATTENTION)
        with self.inside():
            return func(*args, **(kwargs or {}))

    @contextmanager
    def inside(self) -> Iterator[None]:
        self.names.is_inside = True
        try:
            yield
        finally:
            self.names.is_inside = False


class _Eager(fx.Interpreter):
    def __init__(self, graph: fx.GraphModule, names: _Names) -> None:
        super().__init__(graph)
        self.names = names

    def run_node(self, n: fx.Node) -> Any:
        self.names.node = n.name
        return super().run_node(n)


def _eager_names(graph: fx.GraphModule) -> dict[str, list[str]]:
    """Operators by the name of dynamo's node; what cannot be run on fake tensors is left out."""
    examples = [node.meta.get("example_value") for node in graph.graph.nodes if node.op == "placeholder"]
    fake = next((one.fake_mode for one in examples if isinstance(one, FakeTensor)), None)
    names = _Names()
    if fake is None or any(one is None for one in examples):
        return {}
    try:
        with fake, _Attention(names), names:
            _Eager(graph, names).run(*examples)
    except Exception:  # noqa: BLE001 - then modules are known, and which operation of theirs is not
        return names.found
    return names.found
