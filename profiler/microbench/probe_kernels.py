"""The kernels that calibration asks for, each a module without inputs that runs one operator on sets of operands.

Operators of transformers' eager forwards, by the name under which the profiler sees them. Weights lie n × k,
as `nn.Linear` keeps them, or k × n, as GPT-2 does.

Example: ``kernel_of(KernelShape("aten::silu", "float32", "aten::silu", {"rows": 128, "width": 4864}))()``
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from profiler.microbench.arena import Arena
from roofline.laws.kinds import ROW_MAJOR, KernelShape

TAPS = 4
"""Of a depthwise convolution, as in Mamba."""
VOCABULARY = 4
"""Rows of an embedding's table for each row that is looked up."""
MOST_SETS, MOST_STREAMS = 32, 8
"""Of operands of a product or attention, and of a stream, of which there are many more."""
HELD_PART = 0.17
"""Of the bytes that take turns, those of sets that take turns again: about a quarter of the cache, and so still in it,
though not in the caches of single cores."""
ROUNDS = 2
"""Of those sets, of which the last one counts."""

Operands = tuple[Tensor, ...]
Draw = Callable[[tuple[int, ...]], Tensor]
"""Makes an operand of a size."""


class Kernel(nn.Module):
    """One operator on all its sets of operands in turn, and then on the last ones, round and round."""

    def __init__(
        self, run: Callable[..., Tensor], sets: Sequence[tuple[Operands, Operands]], held: int, *, is_stream: bool
    ) -> None:
        """`sets`: operands, and those of them, the last ones, that are weights; `held` of the sets stay in a cache."""
        super().__init__()
        self.is_stream = is_stream
        self.set_bytes = sum(one.nbytes for operands in sets[0] for one in operands)
        self._run = run
        self.held = held
        self._operands = [operands for operands, _ in sets]
        self.weights = nn.ModuleList(
            nn.ParameterList(nn.Parameter(weight, requires_grad=False) for weight in weights) for _, weights in sets
        )

    def forward(self, turn: int | None = None) -> Tensor:
        """Result of one of the `turns`; of the last one after all of them, where none is named."""
        sets = list(self._sets())
        order = [*sets, *(sets[len(sets) - self.held :] * ROUNDS)]
        for operands, weights in order if turn is None else [order[turn]]:
            found = self._run(*operands, *weights)
        return found

    def bounded(self, turns: int) -> "Kernel":
        """The same kernel with as many turns at most, on fewer sets of operands; it keeps one set at least."""
        if turns >= self.turns:
            return self
        held = min(self.held, turns // (2 * ROUNDS))
        count = max(held, 1, turns - held * ROUNDS)
        sets = list(self._sets())[:count]
        return Kernel(self._run, sets, held, is_stream=self.is_stream)

    @property
    def turns(self) -> int:
        """Calls of a whole pass."""
        return self.sets + self.held * ROUNDS

    def _sets(self) -> Iterator[tuple[Operands, Operands]]:
        for operands, weights in zip(self._operands, self.weights, strict=True):
            yield operands, tuple(weights.parameters())

    @property
    def sets(self) -> int:
        """Of operands."""
        return len(self._operands)


def kernel_of(shape: KernelShape, arena: Arena, rotated_bytes: int = 0) -> Kernel:
    """With `sets_of` operands out of `arena`, other tensors on torch's default device.

    Raises ValueError for an operator that it does not know.
    """
    run, make = _made(shape, arena.take)
    operands, weights = make()
    count = sets_of(shape, rotated_bytes)
    held_bytes = HELD_PART * rotated_bytes
    held = min(count, sets_of(shape, held_bytes)) if operand_bytes(shape) <= held_bytes else 0
    return Kernel(
        run, [(operands, weights), *(make() for _ in range(count - 1))], held, is_stream=shape.op in STREAMING
    )


def sets_of(shape: KernelShape, rotated_bytes: float) -> int:
    """How many sets of operands a kernel takes in turn: calls that move `rotated_bytes`, within reason."""
    most = MOST_STREAMS if shape.op in STREAMING else MOST_SETS
    return max(1, min(most, math.ceil(rotated_bytes / (operand_bytes(shape) + _result_bytes(shape)))))


def operand_bytes(shape: KernelShape) -> int:
    """Of one set of a kernel's operands, about."""
    sizes, width = shape.dims, getattr(torch, shape.dtype).itemsize
    if "n" in sizes:
        return int(width * sizes.get("batch", 1) * (sizes["m"] * sizes["k"] + sizes["n"] * sizes["k"]))
    if "heads" in sizes:
        rows = sizes["heads"] * sizes["query"] + 2 * sizes["kv_heads"] * sizes["kv"]
        return int(width * sizes["batch"] * sizes["head_dim"] * rows)
    return int((VOCABULARY if shape.op == "aten::embedding" else 2) * width * math.prod(sizes.values()))


def _result_bytes(shape: KernelShape) -> int:
    sizes, width = shape.dims, getattr(torch, shape.dtype).itemsize
    if "n" in sizes:
        return int(width * sizes.get("batch", 1) * sizes["m"] * sizes["n"])
    if "heads" in sizes:
        return int(width * sizes["batch"] * sizes["head_dim"] * sizes["heads"] * sizes["query"])
    return int(width * math.prod(sizes.values()))


Make = Callable[[], tuple[Operands, Operands]]


def _made(shape: KernelShape, draw: Draw) -> tuple[Callable[..., Tensor], Make]:
    sizes = shape.dims
    if shape.op in PRODUCTS:
        m, n, k = sizes["m"], sizes["n"], sizes["k"]
        rows = draw((m, k))  # activations are where they have just been written
        if shape.kind.endswith(ROW_MAJOR):
            return _addmm, lambda: ((rows,), (draw((k, n)), draw((n,))))
        bias = shape.op == "aten::addmm"
        return F.linear, lambda: ((rows,), (draw((n, k)), *([draw((n,))] if bias else [])))
    if shape.op in BATCHES:
        return BATCHES[shape.op](sizes, draw)
    if shape.op == ATTENTION:
        return _attention(sizes, draw)
    if shape.op not in STREAMING:
        raise ValueError(f"no kernel for {shape.op}; known: {', '.join((*PRODUCTS, *BATCHES, ATTENTION, *STREAMING))}")
    run, make = STREAMING[shape.op]
    return run, lambda: make(sizes["rows"], sizes["width"], draw)


def _addmm(rows: Tensor, weights: Tensor, bias: Tensor) -> Tensor:
    return torch.addmm(bias, rows, weights)


def _batched(dims: Mapping[str, int], draw: Draw) -> tuple[Callable[..., Tensor], Make]:
    batch, m, n, k = (dims[name] for name in ("batch", "m", "n", "k"))
    return torch.bmm, lambda: ((draw((batch, m, k)), draw((batch, k, n))), ())


def _grouped(dims: Mapping[str, int], draw: Draw) -> tuple[Callable[..., Tensor], Make]:
    """Experts of the same number of rows each, as `transformers` calls them: weights lie n × k."""
    experts, m, n, k = (dims[name] for name in ("batch", "m", "n", "k"))
    ends = torch.arange(m, (experts + 1) * m, m, dtype=torch.int32)

    def run(rows: Tensor, weights: Tensor) -> Tensor:
        found: Tensor = F.grouped_mm(rows, weights.transpose(-2, -1), offs=ends)
        return found

    return run, lambda: ((draw((experts * m, k)),), (draw((experts, n, k)),))


BATCHES = {"aten::bmm": _batched, "aten::_grouped_mm": _grouped}


def _attention(dims: Mapping[str, int], draw: Draw) -> tuple[Callable[..., Tensor], Make]:
    batch, heads, kv_heads, width = (dims[name] for name in ("batch", "heads", "kv_heads", "head_dim"))
    query, kv = dims["query"], dims["kv"]
    run = partial(F.scaled_dot_product_attention, is_causal=query > 1, enable_gqa=heads != kv_heads)

    def make() -> tuple[Operands, Operands]:
        q = draw((batch, query, heads, width)).transpose(1, 2)  # as projections leave it
        return (q, *(draw((batch, kv_heads, kv, width)) for _ in range(2))), ()

    return run, make


def _any(size: tuple[int, ...], draw: Draw) -> Tensor:
    return draw(size)


def _positive(size: tuple[int, ...], draw: Draw) -> Tensor:
    return draw(size) + 1


Streaming = tuple[Callable[..., Tensor], Callable[[int, int, Draw], tuple[Operands, Operands]]]
"""What to run, and how to make its operands and weights of rows × width."""


def _unary(run: Callable[[Tensor], Tensor], make: Callable[..., Tensor] = _any) -> Streaming:
    return run, lambda rows, width, draw: ((make((rows, width), draw),), ())


def _binary(run: Callable[[Tensor, Tensor], Tensor], second: Callable[..., Tensor] = _any) -> Streaming:
    return run, lambda rows, width, draw: ((draw((rows, width)), second((rows, width), draw)), ())


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


PRODUCTS = ("aten::mm", "aten::addmm")
ATTENTION = "aten::scaled_dot_product_attention"
STREAMING: dict[str, Streaming] = {
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
"""What streams: a module of rows × width."""
