"""The kernels that a calibration measures: how each is made, run, checked and counted, as rows of `FAMILIES`.

They are the operators of transformers' eager forwards: products, attention, and what streams. A function binds a
kernel's sizes: it returns what to run, and what makes one set of operands. Weights lie n × k, as `nn.Linear` keeps
them, or k × n, as GPT-2 does. The profiler must see a kernel under one of its row's `ops`, and the tracer must know the
operator. Operands come out of an `Arena`.

Example: ``family_of("aten::mm").operand_bytes(KernelShape("matmul", "float32", "aten::mm", {"m": 8, "n": 8, "k": 4}))``
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from roofline.laws.kinds import ROW_MAJOR, KernelShape

TAPS = 4
"""Taps of a depthwise convolution, as in Mamba."""
VOCABULARY = 4
"""Rows of an embedding's table for each row that is looked up."""
DRAWN = 65_521
"""Random numbers that a buffer repeats: drawing all of them takes longer than measuring. A prime, so that rows differ.
"""
ALIGNED = 64
"""Bytes: torch's allocator aligns so on a CPU."""
CHECKED = 16
"""Rows and columns of a product that are compared with float64."""
Operands = tuple[Tensor, ...]
Draw = Callable[[tuple[int, ...]], Tensor]
"""Makes an operand of a size, with values between −0.5 and 0.5."""
Run = Callable[..., Tensor]
"""Takes a set's operands, then its weights."""
Make = Callable[[], tuple[Operands, Operands]]
"""One set: operands, and those that are weights."""


def product(shape: KernelShape, draw: Draw) -> tuple[Run, Make]:
    """Return a linear layer on the same activations each time, as they have just been written."""
    m, n, k = (shape.dims[name] for name in ("m", "n", "k"))
    rows = draw((m, k))
    if shape.kind.endswith(ROW_MAJOR):
        return _addmm, lambda: ((rows,), (draw((k, n)), draw((n,))))
    bias = shape.op == "aten::addmm"
    return F.linear, lambda: ((rows,), (draw((n, k)), *([draw((n,))] if bias else [])))


def _addmm(rows: Tensor, weights: Tensor, bias: Tensor) -> Tensor:
    return torch.addmm(bias, rows, weights)


def product_part(shape: KernelShape, operands: Operands, result: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first rows and columns of a product as computed, and in float64."""
    rows, weights, *bias = operands
    columns = weights.T if shape.kind.endswith(ROW_MAJOR) else weights
    expected = rows[:CHECKED].double() @ columns[:CHECKED].double().T
    if bias:
        expected += bias[0][:CHECKED].double()
    return result[:CHECKED, :CHECKED], expected


def batched(shape: KernelShape, draw: Draw) -> tuple[Run, Make]:
    """Return a product for each of a batch."""
    batch, m, n, k = (shape.dims[name] for name in ("batch", "m", "n", "k"))
    return torch.bmm, lambda: ((draw((batch, m, k)), draw((batch, k, n))), ())


def batched_part(shape: KernelShape, operands: Operands, result: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first rows and columns of the first product of a batch as computed, and in float64."""
    first, second = operands
    return result[0, :CHECKED, :CHECKED], first[0, :CHECKED].double() @ second[0, :, :CHECKED].double()


def grouped(shape: KernelShape, draw: Draw) -> tuple[Run, Make]:
    """Return experts of the same number of rows each, as `transformers` calls them: weights lie n × k."""
    experts, m, n, k = (shape.dims[name] for name in ("batch", "m", "n", "k"))
    ends = torch.arange(m, (experts + 1) * m, m, dtype=torch.int32)

    def run(rows: Tensor, weights: Tensor) -> Tensor:
        result: Tensor = F.grouped_mm(rows, weights.transpose(-2, -1), offs=ends)
        return result

    return run, lambda: ((draw((experts * m, k)),), (draw((experts, n, k)),))


def grouped_part(shape: KernelShape, operands: Operands, result: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first rows and columns of the first expert as computed, and in float64."""
    rows, weights = operands
    count = min(CHECKED, shape.dims["m"])
    return result[:count, :CHECKED], rows[:count].double() @ weights[0, :CHECKED].double().T


def attention(shape: KernelShape, draw: Draw) -> tuple[Run, Make]:
    """Bind `scaled_dot_product_attention`, causal where there is more than one query."""
    batch, heads, kv_heads, width = (shape.dims[name] for name in ("batch", "heads", "kv_heads", "head_dim"))
    query, kv = shape.dims["query"], shape.dims["kv"]
    run = partial(F.scaled_dot_product_attention, is_causal=query > 1, enable_gqa=heads != kv_heads)

    def make() -> tuple[Operands, Operands]:
        q = draw((batch, query, heads, width)).transpose(1, 2)  # as projections leave it
        return (q, *(draw((batch, kv_heads, kv, width)) for _ in range(2))), ()

    return run, make


def attention_part(shape: KernelShape, operands: Operands, result: Tensor) -> tuple[Tensor, Tensor]:
    """Return the last query of the first head as computed, and in float64."""
    query, kv = shape.dims["query"], shape.dims["kv"]
    seen = query if query > 1 else kv  # a causal mask aligns queries with the first keys
    q, k, v = (x[0, 0].double() for x in operands)
    scores = k[:seen] @ q[-1] / q.shape[-1] ** 0.5
    return result[0, 0, -1], scores.softmax(-1) @ v[:seen]


Streaming = tuple[Run, Callable[[int, int, Draw], tuple[Operands, Operands]]]
"""The function to run, and the one that makes its operands and weights of rows × width."""


def _streaming(run: Run, operands: int, *, positive: bool = False) -> Streaming:
    """Return an operator of one or two equal operands, the last of them positive where it must be."""

    def make(rows: int, width: int, draw: Draw) -> tuple[Operands, Operands]:
        *others, last = (draw((rows, width)) for _ in range(operands))
        return (*others, last + 1 if positive else last), ()

    return run, make


_unary, _binary = partial(_streaming, operands=1), partial(_streaming, operands=2)


def _embedding(rows: int, width: int, draw: Draw) -> tuple[Operands, Operands]:
    return (torch.randint(0, VOCABULARY * rows, (rows,)),), (draw((VOCABULARY * rows, width)),)


def _layer_norm(rows: int, width: int, draw: Draw) -> tuple[Operands, Operands]:
    return (draw((rows, width)),), (draw((width,)), draw((width,)))


def _depthwise(rows: int, width: int, draw: Draw) -> tuple[Operands, Operands]:
    return (draw((1, width, rows + TAPS - 1)),), (draw((width, 1, TAPS)), draw((width,)))


def _indices(rows: int, width: int, draw: Draw) -> tuple[Operands, Operands]:
    return (draw((rows, width)), torch.randint(0, rows, (rows,))), ()


def _halves(rows: int, width: int, draw: Draw) -> tuple[Operands, Operands]:
    return tuple(draw((rows, max(1, width // 2))) for _ in range(2)), ()


STREAMING: dict[str, Streaming] = {
    "aten::add": _binary(torch.add),
    "aten::sub": _binary(torch.sub),
    "aten::mul": _binary(torch.mul),
    "aten::div": _binary(torch.div, positive=True),
    "aten::neg": _unary(torch.neg),
    "aten::pow": _unary(lambda x: x.pow(2)),
    "aten::rsqrt": _unary(torch.rsqrt, positive=True),
    "aten::exp": _unary(torch.exp),
    "aten::cos": _unary(torch.cos),
    "aten::sin": _unary(torch.sin),
    "aten::tanh": _unary(torch.tanh),
    "aten::sigmoid": _unary(torch.sigmoid),
    "aten::relu": _unary(torch.relu),
    "aten::silu": _unary(F.silu),
    "aten::gelu": _unary(partial(F.gelu, approximate="tanh")),
    "aten::mean": _unary(lambda x: x.mean(-1, keepdim=True)),
    "aten::_softmax": _unary(lambda x: F.softmax(x, dim=-1)),
    "aten::native_layer_norm": (lambda x, w, b: F.layer_norm(x, x.shape[-1:], w, b), _layer_norm),
    "aten::cat": (lambda a, b: torch.cat((a, b), dim=-1), _halves),
    "aten::_to_copy": _unary(lambda x: x.to(torch.float32 if x.dtype != torch.float32 else torch.bfloat16)),
    "aten::clone": _unary(torch.clone),
    "aten::copy_": _binary(lambda x, y: x.copy_(y)),
    "aten::stack": _binary(lambda x, y: torch.stack((x, y), dim=0)),
    "aten::zeros_like": _unary(torch.zeros_like),
    "aten::softplus": _unary(F.softplus),
    "aten::sum": _unary(lambda x: x.sum(-1)),
    "aten::cumsum": _unary(lambda x: x.cumsum(-1)),
    "aten::topk": _unary(lambda x: x.topk(min(2, x.shape[-1]), dim=-1)[0]),
    "aten::sort": _unary(lambda x: x.sort(dim=-1)[0]),
    "aten::index": (lambda x, i: x[i], _indices),
    "aten::convolution": (lambda x, w, b: F.conv1d(x, w, b, groups=len(w)), _depthwise),
    "aten::embedding": (F.embedding, _embedding),
}
"""Operators that stream, by name: a module of rows × width."""


def stream(shape: KernelShape, draw: Draw) -> tuple[Run, Make]:
    """Return an operator of `STREAMING` on rows × width."""
    run, make = STREAMING[shape.op]
    return run, lambda: make(shape.dims["rows"], shape.dims["width"], draw)


Elements = Callable[[Mapping[str, int]], int]
"""Elements of a kernel's tensors, from its sizes."""
TOLERANCE = {"float32": 4e-3, "float16": 1e-2, "bfloat16": 4e-2}
"""Share of the largest expected value by which a result may be off: roundings of the dtype (float32 products may run as
TF32, float16 2^-11, bfloat16 2^-8), and of what attention keeps in between."""


@dataclass(frozen=True, slots=True)
class KernelFamily:
    """Operators that take operands of the same kind."""

    ops: tuple[str, ...]
    """Operators, as the profiler names them: "aten::mm"."""
    bind: Callable[[KernelShape, Draw], tuple[Run, Make]]
    """Returns the function to run and the one that makes a set of its operands, at a kernel's sizes."""
    operands: Elements
    """Elements of one set of operands, about."""
    result: Elements
    """Elements of the result."""
    reference: Callable[[KernelShape, Operands, Tensor], tuple[Tensor, Tensor]] | None = None
    """A part of the result, and the same part computed in float64. None: the result is only looked at for NaN."""
    is_stream: bool = False
    """Whether it only streams: such kernels are asked for by rows × width, and small ones run in turn with others."""

    def operand_bytes(self, shape: KernelShape) -> int:
        """Return bytes of one set of operands, about."""
        return _width(shape) * self.operands(shape.dims)

    def moved_bytes(self, shape: KernelShape) -> int:
        """Return bytes that one call touches, about: operands and result."""
        return self.operand_bytes(shape) + _width(shape) * self.result(shape.dims)

    def check(self, shape: KernelShape, operands: Operands, result: Tensor) -> None:
        """Raise ArithmeticError where a result is not finite, or not what the reference says."""
        if not all(math.isfinite(float(end)) for end in torch.aminmax(result)):  # ten times as fast as isfinite
            raise ArithmeticError(f"the result of {shape.op} in {shape.dtype} is not finite")
        if self.reference is None:
            return
        part, expected = self.reference(shape, operands, result)
        off, scale = float((part.double() - expected).abs().max()), float(expected.abs().max())
        if not off <= TOLERANCE[shape.dtype] * scale:
            raise ArithmeticError(f"the result of {shape.op} in {shape.dtype} is off by {off:.2g} of {scale:.2g}")


def _width(shape: KernelShape) -> int:
    return int(getattr(torch, shape.dtype).itemsize)


PRODUCT: tuple[Elements, Elements] = (
    lambda d: d.get("batch", 1) * (d["m"] + d["n"]) * d["k"],
    lambda d: d.get("batch", 1) * d["m"] * d["n"],
)
"""Elements of a product's operands and of its result."""
ATTENTION: tuple[Elements, Elements] = (
    lambda d: d["batch"] * d["head_dim"] * (d["heads"] * d["query"] + 2 * d["kv_heads"] * d["kv"]),
    lambda d: d["batch"] * d["head_dim"] * d["heads"] * d["query"],
)


def _rows(times: int) -> Elements:
    return lambda d: times * math.prod(d.values())


STREAMS = tuple(op for op in STREAMING if op != "aten::embedding")

FAMILIES: tuple[KernelFamily, ...] = (
    KernelFamily(("aten::mm", "aten::addmm"), product, *PRODUCT, product_part),
    KernelFamily(("aten::bmm",), batched, *PRODUCT, batched_part),
    KernelFamily(("aten::_grouped_mm",), grouped, *PRODUCT, grouped_part),
    KernelFamily(("aten::scaled_dot_product_attention",), attention, *ATTENTION, attention_part),
    KernelFamily(STREAMS, stream, _rows(2), _rows(1), is_stream=True),
    KernelFamily(("aten::embedding",), stream, _rows(VOCABULARY), _rows(1), is_stream=True),
)
"""All families that a calibration can run."""


def family_of(op: str) -> KernelFamily:
    """Return the family of an operator. Raises ValueError for an operator that none has."""
    for family in FAMILIES:
        if op in family.ops:
            return family
    raise ValueError(f"no kernel for {op}; known: {', '.join(op for family in FAMILIES for op in family.ops)}")


def streaming_operators() -> tuple[str, ...]:
    """Return operators of all families that only stream."""
    return tuple(op for family in FAMILIES if family.is_stream for op in family.ops)


class Storage:
    """Memory of a CPU that arenas of several dtypes share, filled with random numbers.

    Two bfloat16 numbers side by side are a float32 of the size of the second, so both dtypes read the same bytes as
    values between −0.5 and 0.5; float16 reads them otherwise and has a storage of its own.
    """

    def __init__(self, size_bytes: int, dtype: torch.dtype) -> None:
        filled = torch.bfloat16 if dtype == torch.float32 else dtype
        count = size_bytes // 8 * 8 // filled.itemsize
        self.buffer: np.ndarray = _filled(count, filled, torch.device("cpu")).view(torch.uint8).numpy()


class Arena:
    """Random operands of one dtype out of one piece of memory: making each anew takes longer than timing it.

    On a CPU operands are windows of a filled storage, one behind the other, round and round, each a tensor storage of
    its own, so that the tracer takes them for different tensors. That two operands share bytes is seen by no cache as
    long as the whole buffer lies between them. On a GPU, where memory is filled quickly, each operand is allocated.

    Contract: operands are read, or overwritten with finite values; nobody reads what another operand held.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, storage: Storage | None = None) -> None:
        """Each operand is allocated where there is no storage, or where the storage cannot hold it."""
        self._device, self.dtype = device, dtype
        self._buffer = storage.buffer if storage is not None else np.empty(0, np.uint8)
        self._next = 0

    def take(self, size: tuple[int, ...]) -> Tensor:
        """Return an operand of values between −0.5 and 0.5."""
        count = math.prod(size)
        needed = count * self.dtype.itemsize
        if not 0 < needed <= len(self._buffer):
            return _filled(count, self.dtype, self._device).view(size)
        start = self._next if self._next + needed <= len(self._buffer) else 0
        self._next = -(-(start + needed) // ALIGNED) * ALIGNED
        return torch.from_numpy(self._buffer[start : start + needed]).view(self.dtype).view(size)


def _filled(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    filled = torch.empty(count, dtype=dtype, device=device)
    drawn = torch.rand(min(DRAWN, count), device=device).sub_(0.5).to(dtype)
    for start in range(0, count, DRAWN):
        part = filled[start : start + DRAWN]
        part.copy_(drawn[: len(part)])
    return filled
