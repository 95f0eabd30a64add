"""The kernels that calibration asks for, each a module without inputs that runs one operator on operands of its own.

Operators of transformers' eager forwards, by the name under which the profiler sees them. A product's matrix lies as
`nn.Linear` keeps it; a wide operand and a row are both tried where models broadcast one over the other.

Example: ``kernel_of(KernelShape("aten::silu", "float32", "aten::silu", {"rows": 128, "width": 4864}))()``
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from profiler.record.kernel_shape import KernelShape

VOCABULARY = 4
"""Rows of an embedding's table for each row that is looked up."""


class Kernel(nn.Module):
    """One operator on fixed operands; those named weights count as weights."""

    def __init__(self, run: Callable[..., Tensor], operands: tuple[Tensor, ...], weights: int = 0) -> None:
        super().__init__()
        self._run = run
        self.weights = nn.ParameterList(
            nn.Parameter(w, requires_grad=False) for w in operands[len(operands) - weights :]
        )
        self._operands = operands[: len(operands) - weights]

    def forward(self) -> Tensor:
        return self._run(*self._operands, *self.weights)


def kernel_of(shape: KernelShape) -> Kernel:
    """On torch's default device. Raises ValueError for an operator that is none of `operators()`."""
    dtype = getattr(torch, shape.dtype)
    sizes = shape.dims
    if shape.op in PRODUCTS:
        m, n, k = sizes["m"], sizes["n"], sizes["k"]
        weights = (
            (_random((n, k), dtype),) if shape.op == "aten::mm" else (_random((n, k), dtype), _random((n,), dtype))
        )
        return Kernel(F.linear, (_random((m, k), dtype), *weights), len(weights))
    if shape.op == ATTENTION:
        return _attention(sizes, dtype)
    if shape.op not in STREAMING:
        raise ValueError(f"no kernel for {shape.op}; known: {', '.join((*PRODUCTS, ATTENTION, *STREAMING))}")
    return STREAMING[shape.op](sizes["rows"], sizes["width"], dtype)


def _attention(sizes: object, dtype: torch.dtype) -> Kernel:
    dims = dict(sizes)  # type: ignore[call-overload]
    batch, heads, kv_heads, width = (dims[name] for name in ("batch", "heads", "kv_heads", "head_dim"))
    query, kv = dims["query"], dims["kv"]
    q = _random((batch, query, heads, width), dtype).transpose(1, 2)  # as projections leave it
    k, v = (_random((batch, kv_heads, kv, width), dtype) for _ in range(2))
    run = partial(F.scaled_dot_product_attention, is_causal=query > 1, enable_gqa=heads != kv_heads)
    return Kernel(run, (q, k, v))


def _random(size: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.randn(size).to(dtype)


def _positive(size: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return (torch.rand(size) + 0.5).to(dtype)


Made = Callable[[int, int, torch.dtype], Kernel]


def _unary(run: Callable[[Tensor], Tensor], make: Callable[..., Tensor] = _random) -> Made:
    return lambda rows, width, dtype: Kernel(run, (make((rows, width), dtype),))


def _binary(run: Callable[[Tensor, Tensor], Tensor], second: Callable[..., Tensor] = _random) -> Made:
    return lambda rows, width, dtype: Kernel(run, (_random((rows, width), dtype), second((rows, width), dtype)))


def _embedding(rows: int, width: int, dtype: torch.dtype) -> Kernel:
    table = _random((VOCABULARY * rows, width), dtype)
    return Kernel(F.embedding, (torch.randint(0, VOCABULARY * rows, (rows,)), table), 1)


def _layer_norm(rows: int, width: int, dtype: torch.dtype) -> Kernel:
    weights = (_random((width,), dtype), _random((width,), dtype))
    return Kernel(lambda x, w, b: F.layer_norm(x, (width,), w, b), (_random((rows, width), dtype), *weights), 2)


def _halves(rows: int, width: int, dtype: torch.dtype) -> Kernel:
    halves = tuple(_random((rows, max(1, width // 2)), dtype) for _ in range(2))
    return Kernel(lambda a, b: torch.cat((a, b), dim=-1), halves)


def _converted(rows: int, width: int, dtype: torch.dtype) -> Kernel:
    other = torch.float32 if dtype != torch.float32 else torch.bfloat16
    return Kernel(lambda x: x.to(other), (_random((rows, width), dtype),))


PRODUCTS = ("aten::mm", "aten::addmm")
ATTENTION = "aten::scaled_dot_product_attention"
STREAMING: dict[str, Made] = {
    "aten::add": _binary(torch.add),
    "aten::sub": _binary(torch.sub),
    "aten::mul": _binary(torch.mul),
    "aten::div": _binary(torch.div, _positive),
    "aten::neg": _unary(torch.neg),
    "aten::pow": _unary(lambda x: x.pow(2)),
    "aten::rsqrt": _unary(torch.rsqrt, _positive),
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
    "aten::native_layer_norm": _layer_norm,
    "aten::cat": _halves,
    "aten::_to_copy": _converted,
    "aten::clone": _unary(torch.clone),
    "aten::embedding": _embedding,
}
"""What streams: a module of rows × width."""
