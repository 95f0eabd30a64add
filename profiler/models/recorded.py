"""The operators of a timeline as a graph that can be priced, without the model that ran.

A torch profiler that ran with `record_shapes` wrote the sizes, strides, types and scalar arguments of each operator.
`Recorded.add` makes the call again on `meta` tensors of those sizes, under the recorder that traces models, so that
kind, dimensions, FLOPs and bytes come from the same tables. An operator that torch does not know, as those of serving
engines, is a stream of its operands or attention if its kernels are of such a kind, and unknown otherwise.

Tensors of different calls are different ones: a timeline does not say which are the same memory, so that every operand
is read from main memory.

Example: ``Recorded().add("aten::mm", {"Input Dims": [[8, 16], [16, 4]], "Input type": ["float"] * 2}, "up", None, {})``
"""

import ast
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from profiler.models.aten import FLOPS_PER_ELEMENT, distinct_bytes, tensors
from profiler.models.trace import Recorder
from roofline.graph.op import Access, Kind, Op, OpGraph
from roofline.hardware.spec import GPU
from roofline.workload import Workload

DTYPES = {
    "double": torch.float64, "float": torch.float32, "c10::Half": torch.float16, "c10::BFloat16": torch.bfloat16,
    "c10::Float8_e4m3fn": torch.float8_e4m3fn, "c10::Float8_e4m3fnuz": torch.float8_e4m3fnuz,
    "c10::Float8_e5m2": torch.float8_e5m2, "c10::complex<float>": torch.complex64, "long int": torch.int64,
    "long": torch.int64, "int": torch.int32, "short": torch.int16, "short int": torch.int16, "signed char": torch.int8,
    "unsigned char": torch.uint8, "bool": torch.bool,
}  # fmt: skip
"""Types by the names that kineto writes: those of C++ (c10/util/typeid.h)."""

STREAMS = {
    "norm": Kind.NORM, "activation": Kind.POINTWISE, "rope": Kind.POINTWISE, "quantise": Kind.POINTWISE,
    "elementwise": Kind.POINTWISE, "copy": Kind.COPY, "kv_write": Kind.COPY, "softmax": Kind.SOFTMAX,
    "reduction": Kind.REDUCTION,
}  # fmt: skip
"""Kinds of kernels (`profiler.attribution.kernel_kinds`) that move their operands once, as operations of a graph."""

MOST_ELEMENTS = 1 << 45
"""Elements of a tensor; more than any device holds is a damaged file."""
LONGEST_SCALAR = 4096
"""Characters of a scalar argument, or of a list of them."""

_Dims = Sequence[Any]


class Recorded:
    """Collects operators, and returns them as one graph."""

    def __init__(self) -> None:
        workload = Workload(batch=1, query_tokens=1, context_tokens=0, dtype="bfloat16")  # of no operator's meaning
        self._recorder = Recorder(nn.Identity(), workload, GPU)
        self._floating = torch.float32

    def add(
        self, operator: str, inputs: Mapping[str, Any], path: str, kind: str | None, step: Mapping[str, float]
    ) -> tuple[int, ...]:
        """Add one call and return the positions of its operations in the graph; empty where it is not understood.

        Args: name with namespace; the event's arguments as kineto wrote them; path of the module around it; `kind` of
        its kernels, by which an operator that torch does not know is counted, and the sizes of its `step`.
        """
        before = len(self._recorder.ops)
        with self._recorder.inside(path):
            if not self._again(operator, inputs):
                del self._recorder.ops[before:]
                self._by_kind(operator, inputs, kind, step)
        return tuple(range(before, len(self._recorder.ops)))

    def graph(self, name: str) -> OpGraph:
        """All operations, in the order in which they were added."""
        return self._recorder.graph(name, options={})

    def _again(self, operator: str, inputs: Mapping[str, Any]) -> bool:
        """Whether the call could be made again."""
        namespace, _, base = operator.partition("::")
        if namespace != "aten" or not base.isidentifier():
            return False
        before = len(self._recorder.ops)
        for schema in torch._C._jit_get_schemas_for_operator(operator):
            try:
                given, named = self._arguments(schema, inputs)
                call = getattr(getattr(torch.ops.aten, base), schema.overload_name or "default")
                with torch.no_grad(), self._recorder:
                    out = call(*given, **named)
            except (ValueError, TypeError, AttributeError, RuntimeError, IndexError, NotImplementedError):
                del self._recorder.ops[before:]  # another overload, or nothing that has a shape
                continue
            if not _is_vectorised(tensors((out, *given, *named.values()))):
                self._recorder.ops[before:] = [_one_by_one(op) for op in self._recorder.ops[before:]]
            return len(self._recorder.ops) > before
        return False

    def _arguments(self, schema: Any, inputs: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Arguments by position and by name. Raises ValueError where the recorded ones are not those of the schema, and
        where none is a tensor: the call would not be one on `meta`, but run here with what a file of others says."""
        dims, types = _list(inputs, "Input Dims"), _list(inputs, "Input type")
        strides, scalars = (_list(inputs, name) or [[]] * len(dims) for name in ("Input Strides", "Concrete Inputs"))
        wanted = schema.arguments
        if not len(dims) == len(types) == len(strides) == len(scalars) or len(dims) > len(wanted):
            raise ValueError("another number of arguments")
        given, named = list[Any](), dict[str, Any]()
        for place, argument in enumerate(wanted):
            type_ = str(argument.type)
            if place >= len(dims):
                if not argument.has_default_value():
                    raise ValueError(f"no {argument.name}")
                continue
            if "Tensor" in type_:
                is_index = argument.name in ("indices", "index")
                value = self._tensors(dims[place], strides[place], str(types[place]), "List" in type_, is_index)
                if value is None and not type_.startswith("Optional"):
                    raise ValueError(f"{argument.name} is no tensor")
            elif types[place] in DTYPES or types[place] in ("TensorList", "GenericList"):
                raise ValueError(f"{argument.name} is a tensor")
            else:
                value = _scalar(scalars[place], type_)
                if value is None and argument.has_default_value():
                    value = argument.default_value
            if argument.kwarg_only:
                named[argument.name] = value
            else:
                given.append(value)
        if not any(True for _ in tensors((*given, *named.values()))):
            raise ValueError("no tensor")
        return given, named

    def _tensors(self, dims: Any, strides: Any, type_: str, is_list: bool, is_index: bool) -> Any:
        """A tensor, a list of tensors, or None. A list's type is not recorded: it is that of the call before."""
        if is_list != type_.endswith("List"):
            raise ValueError("a list or none")
        if not is_list:
            return None if type_ not in DTYPES else self._tensor(dims, strides, DTYPES[type_])
        dtype = torch.int64 if is_index else self._floating
        every = strides if len(strides) == len(dims) else [[]] * len(dims)
        return [self._tensor(one, stride, dtype) for one, stride in zip(dims, every, strict=True)]

    def _tensor(self, dims: _Dims, strides: _Dims, dtype: torch.dtype) -> torch.Tensor:
        sizes = _whole(dims)
        if math.prod(sizes) > MOST_ELEMENTS:
            raise ValueError(f"a tensor of {math.prod(sizes)} elements")
        if dtype.is_floating_point:
            self._floating = dtype
        if len(strides) == len(sizes):
            return torch.empty_strided(sizes, _whole(strides), dtype=dtype, device="meta")
        return torch.empty(sizes, dtype=dtype, device="meta")

    def _by_kind(self, operator: str, inputs: Mapping[str, Any], kind: str | None, step: Mapping[str, float]) -> None:
        """An operator of an engine, if its kernels' kind tells what it does with its tensors."""
        if operator.startswith("aten::") or (kind not in STREAMS and kind != "attention"):
            return
        try:
            dims, types = _list(inputs, "Input Dims"), _list(inputs, "Input type")
            tensors = [
                self._tensor(one, [], DTYPES[type_]) for one, type_ in zip(dims, types, strict=True) if type_ in DTYPES
            ]
        except (ValueError, TypeError, RuntimeError):
            return
        if kind == "attention":
            self._attention(operator, [t for t in tensors if t.dim() == 3 and t.is_floating_point()], step)
        elif tensors:
            self._stream(operator, tensors, STREAMS[kind])

    def _stream(self, operator: str, tensors: Sequence[torch.Tensor], kind: Kind) -> None:
        """Each tensor moves once: engines hand an operator its output too. Of a cache or a table, which has more rows
        than the activations, as many rows as those have."""
        rows = next((t.shape[0] for t in tensors if t.dim() > 1), None)
        largest = max(tensors, key=distinct_bytes)
        reads = []
        for tensor in tensors:
            size = distinct_bytes(tensor)
            if rows is not None and tensor.dim() > 1 and tensor.shape[0] > rows:
                size = round(size * rows / tensor.shape[0])
            reads.append(Access(tensor=self._recorder.storage(tensor), bytes=size))
        dims = {"elements": int(sum(access.bytes for access in reads) // (2 * largest.element_size()))}
        self._append(operator, kind, dims, largest, reads, counted=False)

    def _attention(self, operator: str, tensors: Sequence[torch.Tensor], step: Mapping[str, float]) -> None:
        """Attention over a paged cache: heads from queries (tokens, heads, head dim) and keys (…, KV heads, head dim),
        lengths from the annotation of the step, in which `profiler.attribution.kernel_kinds` read sums."""
        if len(tensors) < 2:
            return
        query, key = tensors[:2]
        heads, kv_heads, head_dim = query.shape[1], key.shape[1], query.shape[2]
        for phase in ("prefill", "decode"):
            wanted = (f"{phase}_sequences", f"{phase}_tokens", f"{phase}_context", f"{phase}_attention")
            batch, tokens, context, pairs = (step.get(name, 0.0) for name in wanted)
            if not (batch and tokens and context and pairs):
                continue
            size = {"batch": batch, "query": tokens / batch, "kv": context / batch, "pairs": pairs / batch}
            dims: dict[str, int] = {name: round(value) for name, value in size.items()}
            dims |= {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "value_dim": head_dim, "causal": 1,
                     "window": 0}  # fmt: skip
            row = head_dim * query.element_size()
            moved = [(query, tokens * heads * row), (key, context * kv_heads * row)]
            reads = [Access(tensor=self._recorder.storage(t), bytes=amount) for t, amount in moved]
            values = torch.empty_like(key)
            reads.append(Access(tensor=self._recorder.storage(values), bytes=context * kv_heads * row))
            flops = 4.0 * pairs * heads * head_dim, FLOPS_PER_ELEMENT["_softmax"] * pairs * heads
            self._append(operator, Kind.ATTENTION, dims, query, reads, tokens * heads * row, flops)

    def _append(
        self, operator: str, kind: Kind, dims: dict[str, int], like: torch.Tensor, reads: Sequence[Access],
        written: float = 0.0, flops: tuple[float, float] = (0.0, 0.0), counted: bool = True,
    ) -> None:  # fmt: skip
        out = self._recorder.storage(torch.empty_like(like))
        self._recorder.ops.append(
            Op(
                path=self._recorder.path[-1], name=operator, kind=kind, dims=dims,
                dtype=str(like.dtype).removeprefix("torch."), matrix_flops=flops[0], vector_flops=flops[1],
                reads=tuple(reads), writes=(Access(tensor=out, bytes=written),) if written else (), counted=counted,
            )
        )  # fmt: skip


def _is_vectorised(operands: Iterable[torch.Tensor]) -> bool:
    """Whether one load or store takes several elements: of the output, the first operand, and operands that lie as it
    does, without a conversion but to a narrower type (torch's CUDALoops.cuh, and Copy.cu for conversions)."""
    arrays = [tensor for tensor in operands if tensor.dim()]
    return all(
        one.shape == arrays[0].shape and one.stride() == arrays[0].stride()
        and one.numel() * one.itemsize == one.untyped_storage().nbytes()
        and (one.dtype == arrays[0].dtype or one.itemsize > arrays[0].itemsize)
        for one in arrays
    )  # fmt: skip


def _one_by_one(op: Op) -> Op:
    """The operation with the dim by which the law of streams knows that elements are addressed one by one."""
    if op.kind not in (Kind.POINTWISE, Kind.COPY):
        return op
    return op.model_copy(update={"dims": op.dims | {"strided": 1}})


def _list(inputs: Mapping[str, Any], name: str) -> list[Any]:
    value = inputs.get(name, [])
    if not isinstance(value, list):
        raise ValueError(f"{name} is no list")
    return value


def _whole(values: Any) -> list[int]:
    if not isinstance(values, list) or not all(
        isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in values
    ):
        raise ValueError("sizes that are no whole numbers")
    return values


def _scalar(text: Any, type_: str) -> Any:
    """A scalar, or a list of them, from its text; None for an empty one. Types and layouts are numbers there."""
    if not isinstance(text, str) or not text or len(text) > LONGEST_SCALAR:
        return None
    if "Device" in type_:
        return torch.device("meta")
    if "str" in type_:  # "tanh" of GELU, "sum": words, and no name of a file
        return text if text.isalnum() else None
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return float(text) if text.strip("+-") in ("inf", "nan", "Infinity", "NaN") else None
