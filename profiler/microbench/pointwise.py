"""The rate of vector arithmetic in cache, and the bandwidth of pointwise operations on main memory.

`vector`: FLOP/s of torch's eager element-wise and row-wise operations, in cache. FLOPs are counted by the tracer's own
table (`profiler.models.aten`), so that no operation of a model can be priced below what the same count reached here.
Most eager operations are bound by the cache even then; the peak is the best rate of operations with much arithmetic a
byte: GELU, layer norm, softmax, and a Hermite polynomial of degree 32, a chain of 93 multiplications and subtractions
on one element (compute-bound on a GPU; scalar code on a CPU). Kernels compute low-precision inputs in float32; their
rate is that of the whole operation.

`throughput`: bytes/s of the operations between the products of a model, on operands larger than the last-level cache,
into given outputs and into outputs that are allocated each time: on a CPU a fresh large output costs page faults (a
128 MiB add took 8 ms into a given output and 34 ms into a fresh one on a 2-core VM).
"""

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from profiler.devices.caches import cache_capacities
from profiler.microbench.bench import Bench
from profiler.microbench.memory import normal
from profiler.models.aten import FLOPS_PER_ELEMENT
from profiler.record.measurement import Measurement
from profiler.timing.engine import Case

WIDTH = 1024
"""Length of a row for layer norm and softmax."""
DEGREE = 32
HERMITE_FLOPS = 3 * (DEGREE - 1)
"""He(k+1) = x·He(k) − k·He(k−1): two products and a difference a step (ATen Math.h, hermite_polynomial_he_forward)."""

Operation = Callable[[Tensor, Tensor], Tensor]

OPERATIONS: dict[str, tuple[float, Operation]] = {
    "gelu": (FLOPS_PER_ELEMENT["gelu"], lambda x, y: functional.gelu(x)),
    "gelu_tanh": (FLOPS_PER_ELEMENT["gelu_tanh"], lambda x, y: functional.gelu(x, approximate="tanh")),
    "silu": (FLOPS_PER_ELEMENT["silu"], lambda x, y: functional.silu(x)),
    "addcmul": (FLOPS_PER_ELEMENT["addcmul"], lambda x, y: torch.addcmul(x, x, y)),
    "lerp": (FLOPS_PER_ELEMENT["lerp"], lambda x, y: torch.lerp(x, y, 0.3)),
    "layer_norm": (FLOPS_PER_ELEMENT["native_layer_norm"], lambda x, y: functional.layer_norm(x, (WIDTH,))),
    "softmax": (FLOPS_PER_ELEMENT["_softmax"], lambda x, y: torch.softmax(x, -1)),
    "vector_norm": (FLOPS_PER_ELEMENT["linalg_vector_norm"], lambda x, y: torch.linalg.vector_norm(x)),
    "hermite_polynomial_he": (HERMITE_FLOPS, lambda x, y: torch.special.hermite_polynomial_he(x, DEGREE)),
}
"""FLOPs of an input element, and the call."""

FLOAT32_ONLY = frozenset({"hermite_polynomial_he"})
"""Operations that torch has only in full precision."""

OPERAND_BYTES = 128 << 20
"""Size of each operand of `throughput`; less where memory is limited."""
LONGEST_ROW = 4096
"""Elements of a row in `throughput`: the hidden size of 7–8 B models."""

Given = Callable[[Tensor, Tensor, Tensor], object]
Fresh = Callable[[Tensor, Tensor], Tensor]

STREAMED: dict[str, tuple[int, Given | None, Fresh]] = {
    "add": (3, lambda x, y, out: torch.add(x, y, out=out), torch.add),
    "mul": (3, lambda x, y, out: torch.mul(x, y, out=out), torch.mul),
    "silu": (2, lambda x, y, out: torch.ops.aten.silu.out(x, out=out), lambda x, y: functional.silu(x)),
    "gelu": (2, lambda x, y, out: torch.ops.aten.gelu.out(x, out=out), lambda x, y: functional.gelu(x)),
    "softmax": (2, lambda x, y, out: torch.softmax(x, -1, out=out), lambda x, y: torch.softmax(x, -1)),
    "rms_norm": (2, None, lambda x, y: functional.rms_norm(x, (LONGEST_ROW,))),
    "layer_norm": (2, None, lambda x, y: functional.layer_norm(x, (LONGEST_ROW,))),
    "sum of rows": (1, lambda x, y, out: torch.sum(x, -1, out=out[:, 0]), lambda x, y: torch.sum(x, -1)),
}
"""Number of full-size operands that are read or written once, the call into a given output (None where torch has none),
and the call into a fresh one. Only compulsory bytes count: not the intermediate passes of norms."""


def vector(bench: Bench) -> Iterator[Measurement]:
    """Time `OPERATIONS` in each dtype; input and output together fill half of the L2 caches."""
    l2_bytes = next((cache.bytes for cache in cache_capacities(bench.device) if cache.name == "L2"), 2 << 20)
    size = l2_bytes // 2  # of all threads; if unknown, the smallest L2 of current server cores counts: 2 MiB
    for dtype in dict.fromkeys(("float32", *bench.dtypes)):
        kind = getattr(torch, dtype, None)
        if not isinstance(kind, torch.dtype) or not kind.is_floating_point or kind.itemsize == 1:
            continue  # vector work on quantised data is done in wider types
        rows = max(1, size // (2 * kind.itemsize * WIDTH))
        for name, (flops, operation) in OPERATIONS.items():
            if dtype != "float32" and name in FLOAT32_ONLY:
                continue
            yield bench.time(
                "vector",
                name,
                partial(_in_cache, operation, kind, rows, bench.device),
                unit="FLOP/s",
                work=flops * rows * WIDTH,
                dtype=dtype,
                parameters={"elements": rows * WIDTH, "flops_per_element": flops},
                budget_s=bench.budget_s / 3,
            )


def throughput(bench: Bench) -> Iterator[Measurement]:
    """Time `STREAMED` in the first dtype, into given and into fresh outputs."""
    dtype = next((d for d in bench.dtypes if d in ("bfloat16", "float16", "float32")), "float32")
    kind = getattr(torch, dtype)
    size = min(OPERAND_BYTES, (bench.limit_bytes or 0) // 4)
    rows = max(1, size // (kind.itemsize * LONGEST_ROW))
    for name, (operands, given, fresh) in STREAMED.items():
        for output, call in (("given", given), ("fresh", fresh)):
            if call is None:
                continue
            yield bench.time(
                "pointwise",
                f"{name}, {output} output",
                partial(_streamed, call, call is given, kind, rows, bench.device),
                unit="B/s",
                work=operands * rows * LONGEST_ROW * kind.itemsize,
                dtype=dtype,
                cache="cold",
                parameters={"operation": name, "output": output, "elements": rows * LONGEST_ROW},
            )


def _in_cache(operation: Operation, kind: torch.dtype, rows: int, device: torch.device) -> Case[tuple[Tensor, Tensor]]:
    def make() -> tuple[Tensor, Tensor]:
        x, y = (torch.randn(rows, WIDTH, device=device).to(kind) for _ in range(2))
        return x, y

    def check(operands: tuple[Tensor, Tensor], result: object) -> None:
        exact = operation(*(t.double() for t in operands))
        _agree(result, exact, kind, terms=operands[0].numel() // max(1, exact.numel()))

    return Case(make, lambda operands: operation(*operands), 2 * rows * WIDTH * kind.itemsize, check)


def _streamed(
    call: Callable[..., object], given: bool, kind: torch.dtype, rows: int, device: torch.device
) -> Case[tuple[Tensor, ...]]:
    shape = (rows, LONGEST_ROW)

    def make() -> tuple[Tensor, ...]:
        x, y = (normal(rows * LONGEST_ROW, device).to(kind).view(shape) for _ in range(2))
        return (x, y, torch.full(shape, math.nan, dtype=kind, device=device)) if given else (x, y)

    def check(operands: tuple[Tensor, ...], result: object) -> None:
        exact = call(*(t[-1:].double() for t in operands))  # one row stands for all: each is computed alike
        written = result[-1:] if isinstance(result, Tensor) else None
        _agree(written, exact, kind, terms=LONGEST_ROW // exact.numel() if isinstance(exact, Tensor) else 1)

    return Case(make, lambda operands: call(*operands), 2 * rows * LONGEST_ROW * kind.itemsize, check)


def _agree(written: object, exact: object, kind: torch.dtype, terms: int = 1) -> None:
    """Raise ArithmeticError where they differ by more than rounding does.

    A result that sums n `terms` of size 1 one after another is off by some √n roundings of the type that adds, float32
    or wider (Higham and Mary, SIAM J. Sci. Comput. 41(5), 2019), each of a sum of size √n, even if it ends near 0.
    """
    if not isinstance(written, Tensor) or not isinstance(exact, Tensor):
        raise ArithmeticError("the operation gave no tensor")
    worst = float((written.double() - exact.double()).abs().max())
    scale = float(exact.abs().max())
    adds = min(torch.finfo(kind).eps, torch.finfo(torch.float32).eps) if terms > 1 else 0.0
    if not worst <= 8 * (torch.finfo(kind).eps + math.sqrt(terms) * adds) * max(scale, math.sqrt(terms)):
        raise ArithmeticError(f"the {kind} result differs by {worst:g} of {scale:g} from float64")
