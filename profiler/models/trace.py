"""Runs a forward pass and records every operation that makes device work: the OpGraph.

On `meta` tensors this needs no memory and no weights. On a real device the same recorder sees the actual routing,
masks and strides, and is used where `meta` cannot know them. `scaled_dot_product_attention` is one operation, however
the device implements it. Never time a pass that is being traced.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import wraps
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._higher_order_ops.flex_attention import flex_attention as flex_operator
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from profiler.models.aten import (
    GROUPED,
    Work,
    distinct_bytes,
    has_real_routing,
    is_metadata,
    name_of,
    tensors,
    touched,
    work_of,
)
from profiler.models.attention import (
    CALLS,
    NAME,
    PACKED_CALLS,
    attend,
    attention_modules,
    flex_attention,
    heads,
    named_operands,
    operands,
    seen_by_modes,
    without_bias,
    work_of_attention,
)
from profiler.models.choices import Choice, Choices
from profiler.models.inputs import Attributes, attributes, states
from profiler.models.meta import Remembered, run_or_shape, with_values_if_asked
from roofline.graph.op import Access, Bytes, Kind, Op, OpGraph, layer_of
from roofline.graph.op import Tensor as TensorRecord
from roofline.workload import Workload

OLD, OLD_EVERY = 128, 32
"""A storage that is alive for 128 operations (a cache, a table of positions) is checked only after every 32nd."""


class Inputs(Protocol):
    """The inputs of a pass: `profiler.models.inputs.PassInputs`, or example inputs of any module."""

    def call(self, model: nn.Module) -> Any:
        """Run the pass on `model` and return what it returns."""

    def restore(self) -> None:
        """Undo what a pass did to the cache."""

    def cache_tensors(self) -> Iterable[tuple[int, str, Tensor]]:
        """(layer, attribute, tensor) of each floating tensor that the cache holds now."""


def trace(
    model: nn.Module, inputs: Inputs, workload: Workload, *, name: str, target: str, options: Mapping[str, str]
) -> OpGraph:
    """Run one pass of `model` on `inputs` and return its operations in order.

    Args:
        target: torch's type of the device that the graph stands for; work on host tensors is left out
            where it is not the device.
    Raises: whatever the model raises, as when `meta` tensors have no data to decide on.
    """

    def recorded(values: AbstractContextManager[None]) -> OpGraph:
        recorder = Recorder(model, workload, target)
        recorder.mark_weights()
        recorder.mark_cache(inputs)
        before = attributes(model)
        with torch.no_grad(), entered(model, recorder.inside), values, seen_by_modes(), _Composites(recorder), recorder:
            inputs.call(model)
        recorder.note_freed(final=True)
        recorder.mark_cache(inputs)
        recorder.mark_states(before, attributes(model))
        return recorder.graph(name, options=dict(options))

    return with_values_if_asked(recorded, inputs.restore)


@contextmanager
def entered(model: nn.Module, enter: Callable[[str], AbstractContextManager[Any]]) -> Iterator[None]:
    """Run every module's forward inside ``enter(path)``; the model itself has path "".

    The same paths serve the trace, where they are kept on a stack, and the device, where they are profiler ranges:
    ``with entered(model, torch._C._profiler._RecordFunctionFast): model(**inputs)``. A wrapped `forward` keeps
    `nn.Module.__call__` on its fast path, which hooks do not.
    """
    modules = list(model.named_modules())
    had = {path for path, module in modules if "forward" in vars(module)}
    originals = [module.forward for _, module in modules]
    for (path, module), forward in zip(modules, originals, strict=True):

        @wraps(forward)
        def inside(*args: Any, _forward: Any = forward, _path: str = path, **kwargs: Any) -> Any:
            with enter(_path):
                return _forward(*args, **kwargs)

        module.forward = inside
    try:
        yield
    finally:
        for (path, module), forward in zip(modules, originals, strict=True):
            if path in had:
                module.forward = forward
            else:
                del module.forward


class _Composites(TorchFunctionMode):
    """Records as one operation each function that the profiler shows under one name."""

    def __init__(self, recorder: "Recorder") -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            with self.recorder.suspended():
                out, taken = attend(func, args, kwargs, self.recorder.target)
                self.recorder.attention(*without_bias(args, kwargs), out, taken)
            return out
        if func is torch.where and len(args) + len(kwargs) == 1:  # the positions that are true: `nonzero` inside
            with self.recorder.suspended():
                out = func(*args, **kwargs)
            self.recorder.record(torch.ops.aten.where.default, args, kwargs, out)
            return out
        return func(*args, **kwargs)


class Recorder(Remembered):
    """Records each call that makes device work, with the storages that it touches and how long they are held."""

    def __init__(self, model: nn.Module, workload: Workload, target: str) -> None:
        super().__init__()
        self.model = model
        self.workload = workload
        self.target = target
        self.ops: list[Op] = []
        self.uncounted: set[str] = set()
        self.path = [""]
        self.device = "cpu"
        self.recording = True
        self.ids: dict[int, int] = {}
        self.alive: list[StorageWeakRef] = []  # a weak reference keeps a storage's address from being used again
        self.sizes: list[int] = []
        self.held: dict[int, int] = {}  # operation since which Python holds a storage, for those that it holds now
        self.young: dict[int, int] = {}  # the same for new storages
        self.lifetimes: dict[int, tuple[int, int]] = {}
        self.touched: dict[int, int] = {}  # last operation that accessed a storage
        self.cached: set[int] = set()  # storages of the cache when it was last marked
        self.workspaces: list[tuple[int, int]] = []  # (operation, bytes of its temporary memory)
        self.roles: dict[int, tuple[str, str | None]] = {}
        self.read: set[int] = set()
        self.specs = {spec.path: spec for spec in attention_modules(model)}
        self.shapes: dict[int, tuple[int, ...]] = {}  # of the storages of weights
        tokens = workload.batch * workload.query_tokens
        self.choices = Choices(model, tokens, self.shapes, self.storage)

    @contextmanager
    def inside(self, path: str) -> Iterator[None]:
        self.path.append(path)
        try:
            yield
        finally:
            self.path.pop()

    @contextmanager
    def suspended(self) -> Iterator[None]:
        self.note_freed()
        self.recording = False
        try:
            yield
        finally:
            self.recording = True

    def storage(self, tensor: Tensor, since: int = -1) -> int:
        """Number of a tensor's storage; views share it. A new one was made by operation `since`."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.ids:
            self.ids[key] = len(self.sizes)
            self.alive.append(StorageWeakRef(storage))
            self.sizes.append(storage.nbytes())
            self.held[self.ids[key]] = since
            self.young[self.ids[key]] = len(self.ops)
        return self.ids[key]

    def note_freed(self, final: bool = False) -> None:
        """Record which storages were freed since the last operation; old ones are only checked now and then."""
        last = len(self.ops) - 1
        if final or len(self.ops) % OLD_EVERY == 0:
            checked = list(self.held)
            self.young = {n: since for n, since in self.young.items() if n in self.held and since > last - OLD}
        else:
            checked = [n for n in self.young if n in self.held]
        is_freed = torch.UntypedStorage._expired
        for number in [n for n in checked if is_freed(self.alive[n].cdata)]:
            self.lifetimes[number] = (self.held.pop(number), last)
            self.young.pop(number, None)

    def mark_weights(self) -> None:
        for path, tensor in (*self.model.named_parameters(), *self.model.named_buffers()):
            number = self.storage(tensor)
            self.roles.setdefault(number, ("weight", path))
            self.shapes.setdefault(number, tuple(tensor.shape))
            self.held.pop(number, None)  # held throughout; checking each after every operation would be slow

    def mark_cache(self, inputs: Inputs) -> None:
        self.cached = set()
        for layer, attribute, tensor in inputs.cache_tensors():
            number = self.storage(tensor)
            self.roles.setdefault(number, ("kv", f"{layer}.{attribute}"))
            self.cached.add(number)

    def mark_states(self, before: Attributes, after: Attributes) -> None:
        for path, attribute, tensor in states(before, after, self.workload.batch):
            if tensor.untyped_storage()._cdata not in self.ids:
                continue  # not of this pass
            number, place = self.storage(tensor), layer_of(path)
            self.roles.setdefault(number, ("kv", f"{place.layer if place else 0}.{attribute}"))
            if tensor is after[path, attribute]:
                self.cached.add(number)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self.recording or is_metadata(func):
            return run_or_shape(func, args, kwargs)
        self.note_freed()
        out = run_or_shape(func, args, kwargs)
        self.record(func, args, kwargs, out)
        return out

    def record(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        involved = list(tensors((*args, *kwargs.values(), out)))
        self.device = next((t.device.type for t in involved if t.device.type != "cpu"), self.device)
        if self.target != "cpu" and all(t.device.type == "cpu" for t in involved):
            return
        name = name_of(func)
        if name in CALLS | PACKED_CALLS:
            self.attention((), named_operands(func, args, kwargs), next(tensors((out,))), 0, f"aten::{name}")
            return
        work = work_of(func, args, out, kwargs)
        if name == "topk":
            tokens = work.dims["elements"] // work.dims["of"]
            self.choices.made.append(Choice(self.path[-1], work.dims["of"], work.dims["chosen"], tokens))
        if not work.counted:
            self.uncounted.add(name)
        if name in GROUPED and not has_real_routing(func, args, kwargs):
            work = replace(work, routing=self.choices.routing(self.path[-1], args[0].shape[0], args[1].shape[0]))
        reads, writes = touched(func, args, kwargs, out, work.routing)
        if name == "index":
            reads = [(t, size * self.choices.share_of_rows(self.path[-1], t, args[1])) for t, size in reads]
        elif work.kind is Kind.MATMUL:
            reads = [(t, size * self.choices.share_of_expert(self.path[-1], t)) for t, size in reads]
        self.append(f"aten::{name}", work, list(tensors((*args, *kwargs.values()))) or involved, reads, writes)

    def attention(self, args: Any, kwargs: Any, out: Tensor, taken: int, name: str = NAME) -> None:
        spec = next((self.specs[path] for path in reversed(self.path) if path in self.specs), None)
        inputs = list(tensors(operands(args, kwargs)))
        self.device = next((t.device.type for t in inputs if t.device.type != "cpu"), self.device)
        work = work_of_attention(args, kwargs, self.workload, spec)
        if taken:
            self.workspaces.append((len(self.ops), taken))
        self.append(name, work, inputs, [(t, distinct_bytes(t)) for t in inputs], [(out, distinct_bytes(out))])

    def append(
        self,
        name: str,
        work: Work,
        typed: list[Tensor],
        reads: Iterable[tuple[Tensor, Bytes]],
        writes: Iterable[tuple[Tensor, Bytes]],
    ) -> None:
        read, written = self.accesses(reads), self.accesses(writes, len(self.ops))
        self.read.update(access.tensor for access in read)
        floating = [t for t in typed if t.is_floating_point()]
        dtype = (floating or typed)[0].dtype if typed else torch.float32
        self.ops.append(
            Op(
                path=self.path[-1],
                name=name,
                kind=work.kind,
                dims=work.dims,
                dtype=str(dtype).removeprefix("torch."),
                matrix_flops=work.matrix_flops,
                vector_flops=work.vector_flops,
                reads=read,
                writes=written,
                routing=work.routing,
                counted=work.counted,
            )
        )

    def accesses(self, touched: Iterable[tuple[Tensor, Bytes]], since: int = -1) -> tuple[Access, ...]:
        """Return one access for each view; equal views of a storage count once."""
        seen: dict[tuple[int, int, tuple[int, ...], tuple[int, ...]], Access] = {}
        for tensor, size in touched:
            number = self.storage(tensor, since)
            self.touched[number] = len(self.ops)
            view = (number, int(tensor.storage_offset()), tuple(tensor.shape), tuple(tensor.stride()))
            if size and view not in seen:
                seen[view] = Access(tensor=view[0], bytes=size)
        return tuple(seen.values())

    def graph(self, name: str, options: dict[str, str]) -> OpGraph:
        records = []
        for i, size in enumerate(self.sizes):
            role, path = self.roles.get(i, ("activation", None))
            held = None if role == "weight" else self.lifetimes.get(i, (self.held.get(i, -1), len(self.ops)))
            if role == "kv" and i not in self.cached:  # replaced: only `restore` still needs it
                held = -1, self.touched.get(i, -1)
            records.append(TensorRecord(id=i, storage_bytes=size, role=role, name=path, held=held))
        for number, (op, size) in enumerate(self.workspaces, start=len(records)):
            about = {"storage_bytes": size, "role": "activation", "name": "workspace", "held": (op, op)}
            records.append(TensorRecord.model_validate({"id": number, **about}))
        parameters = {self.storage(p): (path, p.numel()) for path, p in reversed(list(self.model.named_parameters()))}
        inactive = sorted(path for i, (path, _) in parameters.items() if i not in self.read)
        return OpGraph(
            model=name,
            workload=self.workload,
            ops=tuple(self.ops),
            tensors=tuple(records),
            attention_modules=tuple(self.specs.values()),
            inactive=tuple(inactive),
            uncounted=tuple(sorted(self.uncounted)),
            parameters=sum(count for _, count in parameters.values()),
            traced_on=self.device,
            options=options,
            heads=heads(self.model),
        )


@flex_operator.py_impl(Recorder)
def _flex(
    recorder: Recorder, query: Tensor, key: Tensor, value: Tensor, score_mod: Any, block_mask: Any, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Record the operator behind `flex_attention`, which modes see only by a rule of their own."""
    inputs = [query, key, value]
    with recorder.suspended():
        work, outs = flex_attention(query, key, value, block_mask, recorder.workload)
        if query.device.type != "meta":
            with _disable_current_modes():
                outs = flex_operator(query, key, value, score_mod, block_mask, *rest)
    recorder.append("flex_attention", work, inputs, [(t, distinct_bytes(t)) for t in inputs],
                    [(outs[0], distinct_bytes(outs[0]))])  # fmt: skip
    return outs


class NoInputs:
    """The inputs of a module that has its operands inside: none."""

    def kwargs(self) -> dict[str, Any]:
        return {}

    def call(self, model: nn.Module) -> Any:
        return model()

    def restore(self) -> None:
        """Do nothing: what a pass changes, the next one changes alike."""

    def cache_tensors(self) -> Iterator[tuple[int, str, Tensor]]:
        return iter(())

    def cache_classes(self) -> str:
        return ""
