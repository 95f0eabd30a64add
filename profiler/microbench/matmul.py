"""Dense matrix products as torch runs them, for each type of input: peaks and decode shapes are made of them.

`out = a @ b` with m×k and k×n operands, random normal, 2·m·n·k FLOPs. float32 is multiplied as float32 ("ieee"),
tfloat32 is the same call with the tensor cores' mode; float8 and int8 go through torch's own scaled and integer
products, float8's with fast accumulation, bf16 and int32 out. b lies in memory either as `torch.mm` takes it (k×n) or
as `nn.Linear` keeps weights (n×k, handed over transposed): libraries have different kernels for the two, and where one
has only a fallback it is ten and more times slower.

Example: ``bench.time("matmul", …, lambda: product_case("bfloat16", (1024, 4096, 4096), device), unit="FLOP/s", …)``
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import get_args

import torch
from torch import Tensor

from profiler.devices.backend import backend_of
from profiler.microbench.bench import Bench
from profiler.record.measurement import Layout, Measurement, State
from profiler.timing.engine import Case

Shape = tuple[int, int, int]
"""m, n, k."""
CHECKED = 16
"""Rows and columns of the product that are compared with float64, evenly spread."""
SKINNY = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Rows of decode products: sequences in a batch, tokens of an expert."""
SKINNY_WIDTH = 4096
"""n and k: the hidden size of 7–8 B models."""
SKINNY_CALL_BUDGETS = 1.0
"""Longest call of a skinny product, in budgets of a case, which makes four calls at least."""


@dataclass(frozen=True, slots=True)
class Operands:
    """The tensors of one product."""

    a: Tensor
    b: Tensor
    out: Tensor


@dataclass(frozen=True, slots=True)
class Product:
    """How torch multiplies one type."""

    stored: torch.dtype
    result: torch.dtype
    run: Callable[[Operands], object]
    tolerance: float
    """Error ÷ largest expected value: rounding of the result (bf16 2^-8, fp16 2^-11), of TF32's inputs (2^-11)."""


def _mm(operands: Operands) -> object:
    return torch.mm(operands.a, operands.b, out=operands.out)


def _scaled_mm(operands: Operands) -> object:
    scale = _unit_scale(operands.a.device)
    return torch._scaled_mm(
        operands.a, operands.b, scale, scale, out_dtype=torch.bfloat16, use_fast_accum=True, out=operands.out
    )


def _int_mm(operands: Operands) -> object:
    return torch._int_mm(operands.a, operands.b, out=operands.out)


PRODUCTS: dict[str, Product] = {
    "float64": Product(torch.float64, torch.float64, _mm, 1e-12),
    "float32": Product(torch.float32, torch.float32, _mm, 1e-4),
    "tfloat32": Product(torch.float32, torch.float32, _mm, 4e-3),
    "float16": Product(torch.float16, torch.float16, _mm, 4e-3),
    "bfloat16": Product(torch.bfloat16, torch.bfloat16, _mm, 2e-2),
    "float8_e4m3fn": Product(torch.float8_e4m3fn, torch.bfloat16, _scaled_mm, 2e-2),
    "int8": Product(torch.int8, torch.int32, _int_mm, 0.0),
}
"""By the name of the type in a device file."""


def time_product(
    bench: Bench,
    benchmark: str,
    dtype: str,
    shape: Shape,
    *,
    layout: Layout | None = None,
    cache: State = "warm",
    budget_s: float | None = None,
    label: str | None = None,
) -> Measurement:
    """Time one shape as FLOP/s; `label` names the case where it is not the shape; `layout` as of `product_case`."""
    layout = layout or layout_of(bench, dtype)
    return bench.time(
        benchmark,
        label or f"{named(shape)}, b {layout}",
        lambda: product_case(dtype, shape, bench.device, layout),
        unit="FLOP/s",
        work=flops(shape),
        dtype=dtype,
        cache=cache,
        parameters={**sizes(shape, layout), "bytes": touched_bytes(dtype, shape)},
        budget_s=budget_s,
    )


def named(shape: Shape) -> str:
    """The shape as a report writes it: 1024×4096×8192."""
    return "×".join(map(str, shape))


def sizes(shape: Shape, layout: Layout) -> dict[str, int | float | str]:
    """Parameters of a product's measurement."""
    return {**dict(zip("mnk", shape, strict=True)), "b stored": layout}


def layouts(dtype: str) -> tuple[Layout, ...]:
    """The ways in which b may lie; torch multiplies float8 by columns alone."""
    return ("n×k",) if dtype == "float8_e4m3fn" else get_args(Layout)


def layout_of(bench: Bench, dtype: str) -> Layout:
    """The layout that the bench names for a type, or the first one it has."""
    return bench.layouts.get(dtype) or layouts(dtype)[0]


def skinny(bench: Bench) -> Iterator[Measurement]:
    """Products of few rows with a square weight, as in decode: cold, so that each reads its weight from memory.

    The weight is stored as `nn.Linear` does, n×k. A product whose call would take longer than its budget, at the rate
    of the one before, is a measurement that says so.
    """
    for dtype in bench.dtypes:
        flops_per_s: float | None = None
        for m in SKINNY if not bench.quick else SKINNY[::2]:
            shape = (m, SKINNY_WIDTH, SKINNY_WIDTH)
            call_s = flops(shape) / flops_per_s if flops_per_s else 0.0
            if call_s > SKINNY_CALL_BUDGETS * bench.budget_s:
                why = f"not tried: a call would take {call_s:.2g} s, its budget is {bench.budget_s:.2g} s"
                about = {"dtype": dtype, "parameters": sizes(shape, "n×k")}
                yield bench.missing("skinny", f"m{m}", unit="s", reason=why, **about)
                continue
            timed = bench.time(
                "skinny",
                f"m{m}",
                lambda dtype=dtype, shape=shape: product_case(dtype, shape, bench.device, "n×k"),  # type: ignore[misc]
                unit="s",
                work=1,
                dtype=dtype,
                cache="cold",
                parameters={
                    **sizes(shape, "n×k"),
                    "flops": flops(shape),
                    "bytes": touched_bytes(dtype, shape),
                },
            )
            yield timed
            if timed.has_value:
                flops_per_s = max(flops_per_s or 0.0, flops(shape) / timed.value())


def flops(shape: Shape) -> float:
    """2·m·n·k."""
    return 2.0 * math.prod(shape)


def touched_bytes(dtype: str, shape: Shape) -> int:
    """Distinct bytes of both inputs and the result."""
    m, n, k = shape
    product = _product(dtype)
    return (m * k + k * n) * product.stored.itemsize + m * n * product.result.itemsize


def product_case(dtype: str, shape: Shape, device: torch.device, layout: Layout | None = None) -> Case[Operands]:
    """One product; `layout` is how b lies in memory, None: the first one that the type has.

    Raises ValueError for a type that is none of `PRODUCTS` or that only a GPU has, and for a layout it does not have.
    """
    m, n, k = shape
    layout = layout or layouts(dtype)[0]
    if layout not in layouts(dtype):
        raise ValueError(f"torch multiplies {dtype} with b stored {' or '.join(layouts(dtype))}, not {layout}")
    product = _product(dtype)
    if dtype == "tfloat32" and not backend_of(device).multiplies_tf32:
        raise ValueError("tfloat32 is a mode of NVIDIA's and AMD's tensor cores; a CPU has float32")

    def make() -> Operands:
        a = _random((m, k), product.stored, device)
        b = _random((k, n), product.stored, device) if layout == "k×n" else _random((n, k), product.stored, device).t()
        out = torch.full(
            (m, n), math.nan if product.result.is_floating_point else -1, dtype=product.result, device=device
        )
        return Operands(a, b, out)

    def check(operands: Operands, result: object) -> None:
        rows = torch.arange(0, m, max(1, m // CHECKED), device=device)
        columns = torch.arange(0, n, max(1, n // CHECKED), device=device)
        expected = _picked(operands.a, rows, 0) @ _picked(operands.b, columns, 1)
        written = operands.out[rows][:, columns].double()
        if not bool(torch.isfinite(operands.out.float() if product.stored.itemsize == 1 else operands.out).all()):
            raise ArithmeticError(f"the {dtype} product of shape {shape} is not finite")
        worst, scale = float((written - expected).abs().max()), float(expected.abs().max())
        if not worst <= product.tolerance * scale:
            raise ArithmeticError(f"the {dtype} product of shape {shape} is off by {worst:g} of {scale:g}")

    def run_tf32(operands: Operands) -> object:
        with backend_of(device).tf32_products():
            return product.run(operands)

    run = run_tf32 if dtype == "tfloat32" else product.run
    return Case(make, run, touched_bytes(dtype, shape), check)


def _product(dtype: str) -> Product:
    if dtype not in PRODUCTS:
        raise ValueError(f"no product of {dtype!r}; use {', '.join(PRODUCTS)}")
    return PRODUCTS[dtype]


def _random(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    if dtype == torch.int8:
        return torch.randint(-127, 128, shape, dtype=dtype, device=device)
    return torch.randn(shape, device=device).to(dtype)


def _picked(tensor: Tensor, places: Tensor, axis: int) -> Tensor:
    """Some rows (axis 0) or columns (axis 1) in float64; float8 has no selection of its own on every device."""
    if tensor.dtype == torch.float8_e4m3fn:
        return tensor.view(torch.uint8).index_select(axis, places).view(tensor.dtype).double()
    return tensor.index_select(axis, places).double()


@cache
def _unit_scale(device: torch.device) -> Tensor:
    """The scale of an unscaled float8 product."""
    return torch.ones((), device=device)
