"""Dense matrix products as torch runs them, for each dtype: the peak and products of few rows, as in decode.

`out = a @ b` with m×k and k×n operands, random normal, 2·m·n·k FLOPs. float32 is multiplied as float32 ("ieee"),
tfloat32 is the same call with TF32 allowed; float8 and int8 go through torch's scaled and integer products, float8
with fast accumulation, with bf16 and int32 results. b is stored either as `torch.mm` takes it (k×n) or as `nn.Linear`
keeps weights (n×k, passed transposed): libraries have different kernels for the two, and where one has only a
fallback it is ten and more times slower.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, get_args

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
"""Rows of decode products: sequences in a batch, or tokens of an expert."""
SKINNY_WIDTH = 4096
"""n and k: the hidden size of 7–8 B models."""


@dataclass(frozen=True, slots=True)
class Operands:
    """The tensors of one product."""

    a: Tensor
    b: Tensor
    out: Tensor


@dataclass(frozen=True, slots=True)
class Product:
    """The way in which torch multiplies one type."""

    stored: torch.dtype
    result: torch.dtype
    run: Callable[[Operands], object]
    tolerance: float
    """Error ÷ largest expected value: rounding of the result (bf16 2^-8, fp16 2^-11), of TF32's inputs (2^-11)."""


def _mm(x: Operands) -> object:
    return torch.mm(x.a, x.b, out=x.out)


def _scaled_mm(x: Operands) -> object:
    one = _unit_scale(x.a.device)
    return torch._scaled_mm(x.a, x.b, one, one, out_dtype=torch.bfloat16, use_fast_accum=True, out=x.out)


PRODUCTS: dict[str, Product] = {
    "float64": Product(torch.float64, torch.float64, _mm, 1e-12),
    "float32": Product(torch.float32, torch.float32, _mm, 1e-4),
    "tfloat32": Product(torch.float32, torch.float32, _mm, 4e-3),
    "float16": Product(torch.float16, torch.float16, _mm, 4e-3),
    "bfloat16": Product(torch.bfloat16, torch.bfloat16, _mm, 2e-2),
    "float8_e4m3fn": Product(torch.float8_e4m3fn, torch.bfloat16, _scaled_mm, 2e-2),
    "int8": Product(torch.int8, torch.int32, lambda x: torch._int_mm(x.a, x.b, out=x.out), 0.0),
}
"""The way in which torch multiplies each dtype, by the dtype's name in a device file."""


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
    """Time the product of one shape in FLOP/s; `label` replaces the shape as the name of the case.

    `layout` None stands for that of the bench.
    """
    layout = layout or layout_of(bench, dtype)
    label = label or f"{named(shape)}, b {layout}"
    parameters = {**sizes(shape, layout), "bytes": touched_bytes(dtype, shape)}
    about: dict[str, Any] = {"dtype": dtype, "cache": cache, "parameters": parameters, "budget_s": budget_s}
    build = partial(product_case, dtype, shape, bench.device, layout)
    return bench.time(benchmark, label, build, unit="FLOP/s", work=flops(shape), **about)


def named(shape: Shape) -> str:
    """The shape as a report writes it: 1024×4096×8192."""
    return "×".join(map(str, shape))


def sizes(shape: Shape, layout: Layout) -> dict[str, int | float | str]:
    """Parameters of a product's measurement."""
    return {**dict(zip("mnk", shape, strict=True)), "b stored": layout}


def layouts(dtype: str) -> tuple[Layout, ...]:
    """Layouts in which torch multiplies a dtype: float8 only with b stored n×k."""
    return ("n×k",) if dtype == "float8_e4m3fn" else get_args(Layout)


def layout_of(bench: Bench, dtype: str) -> Layout:
    """The layout that the bench names for a dtype, or the first one it has."""
    return bench.layouts.get(dtype) or layouts(dtype)[0]


def skinny(bench: Bench) -> Iterator[Measurement]:
    """Time products of few rows with a square weight, as in decode: cold, so that each reads its weight from memory.

    The weight is stored n×k, as in `nn.Linear`. A product of which one call would take longer than the whole budget, at
    the rate of the products before, is not tried, and its measurement says so.
    """
    for dtype in bench.dtypes:
        flops_per_s = math.inf
        for m in SKINNY if not bench.quick else SKINNY[::2]:
            shape = (m, SKINNY_WIDTH, SKINNY_WIDTH)
            about: dict[str, Any] = {"unit": "s", "dtype": dtype, "parameters": sizes(shape, "n×k")}
            call_s = flops(shape) / flops_per_s
            if call_s > bench.budget_s:
                why = f"not tried: a call would take {call_s:.2g} s, its budget is {bench.budget_s:.2g} s"
                yield bench.missing("skinny", f"m{m}", reason=why, **about)
                continue
            about["parameters"] |= {"flops": flops(shape), "bytes": touched_bytes(dtype, shape)}
            build = partial(product_case, dtype, shape, bench.device, "n×k")
            timed = bench.time("skinny", f"m{m}", build, work=1, cache="cold", **about)
            yield timed
            if timed.has_value:
                rate = flops(shape) / timed.value()
                flops_per_s = rate if math.isinf(flops_per_s) else max(flops_per_s, rate)


def flops(shape: Shape) -> float:
    """2·m·n·k."""
    return 2.0 * math.prod(shape)


def touched_bytes(dtype: str, shape: Shape) -> int:
    """Distinct bytes of both inputs and the result."""
    m, n, k = shape
    product = _product(dtype)
    return (m * k + k * n) * product.stored.itemsize + m * n * product.result.itemsize


def product_case(dtype: str, shape: Shape, device: torch.device, layout: Layout | None = None) -> Case[Operands]:
    """The case of one product; `layout` is how b is stored, None for the first one that the dtype has.

    Raises ValueError for a dtype that is not in `PRODUCTS` or that only a GPU has, and for a layout it does not have.
    """
    m, n, k = shape
    layout = layout or layouts(dtype)[0]
    if layout not in layouts(dtype):
        raise ValueError(f"torch multiplies {dtype} with b stored {' or '.join(layouts(dtype))}, not {layout}")
    product = _product(dtype)
    if dtype == "tfloat32" and not backend_of(device).multiplies_tf32:
        raise ValueError("tfloat32 is a mode of NVIDIA's and AMD's tensor cores; a CPU has float32")
    filler = math.nan if product.result.is_floating_point else -1

    def make() -> Operands:
        a = _random((m, k), product.stored, device)
        b = _random((k, n), product.stored, device) if layout == "k×n" else _random((n, k), product.stored, device).t()
        return Operands(a, b, torch.full((m, n), filler, dtype=product.result, device=device))

    def check(operands: Operands, result: object) -> None:
        rows, columns = (torch.arange(0, size, max(1, size // CHECKED), device=device) for size in (m, n))
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

    return Case(make, run_tf32 if dtype == "tfloat32" else product.run, touched_bytes(dtype, shape), check)


def _product(dtype: str) -> Product:
    if dtype not in PRODUCTS:
        raise ValueError(f"no product of {dtype!r}; use {', '.join(PRODUCTS)}")
    return PRODUCTS[dtype]


def _random(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    if dtype == torch.int8:
        return torch.randint(-127, 128, shape, dtype=dtype, device=device)
    return torch.randn(shape, device=device).to(dtype)


def _picked(tensor: Tensor, places: Tensor, axis: int) -> Tensor:
    """Some rows (axis 0) or columns (axis 1) in float64; not every device can select from float8."""
    if tensor.dtype == torch.float8_e4m3fn:
        return tensor.view(torch.uint8).index_select(axis, places).view(tensor.dtype).double()
    return tensor.index_select(axis, places).double()


@cache
def _unit_scale(device: torch.device) -> Tensor:
    """The scale of an unscaled float8 product."""
    return torch.ones((), device=device)
