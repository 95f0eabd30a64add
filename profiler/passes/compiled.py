"""A pass of a model that torch.compile has compiled, with times of its kernels and the operations each came from.

Inductor keeps which calls of the model's source went into each kernel (`Inductor`): dynamo's graph says of each call
which module made it; the operators that a call makes in eager mode are those that it makes on fake tensors; inductor's
provenance tracking says from which nodes of its own graph each kernel was generated, and `from_node` of those leads
back to dynamo's (torch 2.11 to 2.13). Caches of compiled graphs are off, since a cached graph tells nothing of this;
compiled kernels themselves are cached as always.

What the compiler leaves to Python between its graphs belongs to no kernel and stays unattributed, with its names. A
compiler whose kernels are not those that ran raises `InvalidMeasurement`.

Example: ``rounds(CompiledRunner(model, inputs, torch.device("cpu")), graph, budget_s=10).kernels``
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
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

from profiler.attribution.operations import BACKENDS, COMPILED, passes, sequence
from profiler.attribution.replayed import CompiledGraph, CompiledKernel, Source, library_operator, members
from profiler.models.aten import is_metadata, name_of
from profiler.models.attention import NAME as ATTENTION
from profiler.passes.eager import Repeatable, Runner
from profiler.passes.samples import PassTimes, Sample, called
from profiler.record.run import InvalidMeasurement, KernelTimes
from roofline.graph.op import ANCHORS, OpGraph

SETTINGS: dict[str, Any] = {
    "trace.provenance_tracking_level": 1,
    "fx_graph_cache": False,
    "cpp.enable_kernel_profile": True,  # kernels in C++ are host events of their own; those in Triton always are
}
ROOT = re.compile(r"^L\['\w+'\]\.?")
"""Dynamo's name of the module whose forward it compiles."""
INDEX = re.compile(r"(?:\._modules)?\[['\"]?(\w+)['\"]?\]")


class CompiledRunner(Runner):
    """A compiled pass."""

    within = COMPILED

    def __init__(self, model: nn.Module, inputs: Repeatable, device: torch.device) -> None:
        super().__init__(model, inputs, device)
        torch._dynamo.reset()  # else graphs of an earlier cell stay, and their number is limited
        self._made = Inductor(model)
        self._compiled = torch.compile(model, backend=self._made, dynamic=False)
        self.forward = self._compiled
        self._parts = 0  # graphs that a pass calls
        self.members: list[tuple[int, ...]] = []
        """Operations of each kernel of `names`; empty where no module is known."""

    def check(self, graph: OpGraph) -> tuple[str, ...]:
        self.forward = self.model
        try:
            backends = super().check(graph)
        finally:
            self.forward = self._compiled
        self._made.called.clear()
        timeline, _ = self.session(2)
        numbers = self._made.called
        self._parts, rest = divmod(len(numbers), 2)
        if rest or numbers[: self._parts] != numbers[self._parts :]:
            raise InvalidMeasurement("two compiled passes called different graphs: the model recompiles itself")
        if not numbers:
            raise InvalidMeasurement("torch.compile compiled no part of the model; leave --compile out")
        graphs = [self._made.graphs[number] for number in numbers[: self._parts]]
        names = [kernel.name for graph in graphs for kernel in graph.kernels]
        ran = called(timeline, passes(timeline.host)[-1], names)
        seen = frozenset(ran)
        # Functions of inductor's own have no host event.
        graphs = [replace(graph, kernels=tuple(k for k in graph.kernels if k.name in seen)) for graph in graphs]
        self.names = [kernel.name for graph in graphs for kernel in graph.kernels]
        if list(ran) != self.names:
            raise InvalidMeasurement(
                f"a compiled pass called {len(ran)} kernels in another order than the {len(self.names)} that inductor "
                "generated: which is which is not known; leave --compile out"
            )
        anchors = {i for i, op in enumerate(graph.ops) if op.kind in ANCHORS}
        self.members = members(graphs, sequence(graph), anchors)
        return tuple(sorted({name for name in self.names if name.startswith(BACKENDS)})) or backends

    def without_unknown(self, sample: Sample) -> Sample:
        lost = [i for i, ops in enumerate(self.members) if not ops]
        if not lost:
            return sample
        device_s = list(sample.device_s)
        for i in lost:
            device_s[i] = 0.0
        names = (f"{self.names[i]} (of no known module)" for i in lost)
        return replace(
            sample,
            device_s=device_s,
            unattributed_s=sample.unattributed_s + sum(sample.device_s[i] for i in lost),
            unattributed=(*sample.unattributed, *names),
        )

    def as_kernel_times(self, times: PassTimes) -> PassTimes:
        kernels = tuple(
            KernelTimes(name=name, ops=ops, device_s=op.device_s, gap_s=op.gap_s)
            for name, ops, op in zip(self.names, self.members, times.ops, strict=True)
            if ops
        )
        return replace(times, ops=(), kernels=kernels)

    def environment_notes(self) -> dict[str, str]:
        return {
            "compiled graphs": str(self._parts),
            "graph breaks": str(max(0, self._parts - 1)),
            "compiled kernels": str(len(self.names)),
        }


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

        with inductor_config.patch(SETTINGS), functorch_config.patch(enable_autograd_cache=False):
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
        made_of: list[tuple[str, str | None, list[fx.Node]]] = []
        for key, names in provenance.items():
            kernel = key.rpartition(":")[0] or key
            working = [nodes[name] for name in names if name in nodes and _works(nodes[name])]
            operator = library_operator(kernel)
            if operator is not None:
                working = [node for node in working if _operator(node) == operator] or working
            made_of.append((kernel, operator, working))
        taken = {node.name for _, operator, working in made_of if operator for node in working}
        for kernel, operator, working in made_of:
            own = [node for node in working if operator or node.name not in taken]
            numbers = sorted({self._source(node, position, sources) for node in own})
            prefix = "" if operator or graph_id is None or not kernel.startswith("cpp") else f"graph_{graph_id}_"
            yield CompiledKernel(operator or f"{prefix}{kernel}", tuple(numbers), operator is not None)

    def _source(self, node: fx.Node, position: Mapping[str, int], sources: list[Source]) -> int:
        """Number of the call that a node came from.

        A call that makes no operator, as a slice of everything that the node replaced, gives way to the node's module.
        """
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
    return str(node.target._schema.name) if isinstance(node.target, OpOverload) else ""


class _Names(TorchDispatchMode):
    """Names the operators that each node makes; attention is one, as in the trace."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: dict[str, list[str]] = {}
        self.node = ""
        self.is_inside = False

    def add(self, name: str) -> None:
        self.operators.setdefault(self.node, []).append(name)

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
        self.names.is_inside = True
        try:
            return func(*args, **(kwargs or {}))
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
    fake = next((example.fake_mode for example in examples if isinstance(example, FakeTensor)), None)
    names = _Names()
    if fake is None or any(example is None for example in examples):
        return {}
    try:
        with fake, _Attention(names), names:
            _Eager(graph, names).run(*examples)
    except Exception:  # noqa: BLE001 - then modules are known, and which operation of theirs is not
        return names.operators
    return names.operators
