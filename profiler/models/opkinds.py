"""What one ATen call is: its kind, its dimensions and its FLOPs, from the shapes of its arguments.

Matrix FLOPs follow from the definition of the product (a multiply-add is 2). Vector FLOPs come from the tables of
`profiler.models.operators`. Moving data costs no FLOPs.

Example: ``describe(torch.ops.aten.mm.default, (a, b), {}, out).matrix_flops == 2 * m * k * n``
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor
from torch._ops import OpOverload

from profiler.models.operators import (
    ACCUMULATES,
    MOVES,
    NORMS,
    REDUCTION_FLOPS,
    SOFTMAXES,
    SORTS,
    VECTOR_FLOPS,
    is_pointwise,
    name_of,
)
from roofline.graph.op import Kind, Routing


@dataclass(frozen=True, slots=True)
class Description:
    """Kind, dimensions and FLOPs of one call; `counted` is False where no table knows its arithmetic.

    `routing` is that of a grouped product, if nobody knows the real one.
    """

    kind: Kind
    dims: dict[str, int] = field(default_factory=dict)
    matrix_flops: float = 0
    vector_flops: float = 0
    counted: bool = True
    routing: Routing | None = None


def _matmul(batch: int, m: int, n: int, k: int, bias: bool) -> Description:
    return Description(
        Kind.MATMUL,
        {"b": batch, "m": m, "n": n, "k": k},
        2.0 * batch * m * n * k,
        float(batch * m * n) if bias else 0.0,
    )


def _mm(args: tuple[Any, ...], out: Tensor) -> Description:
    a, b = args[0], args[1]
    return _with_layout(_matmul(1, a.shape[0], b.shape[1], a.shape[1], bias=False), b)


def _addmm(args: tuple[Any, ...], out: Tensor) -> Description:
    a, b = args[1], args[2]
    return _with_layout(_matmul(1, a.shape[0], b.shape[1], a.shape[1], bias=True), b)


def _with_layout(product: Description, weights: Tensor) -> Description:
    """Says of weights that lie k × n, as GPT-2 keeps them, that they do; `nn.Linear` keeps them n × k."""
    if weights.stride(1) == 1 and min(weights.shape) > 1:
        return replace(product, dims=product.dims | {"row_major": 1})
    return product


def _bmm(args: tuple[Any, ...], out: Tensor) -> Description:
    a, b = args[0], args[1]
    return _matmul(a.shape[0], a.shape[1], b.shape[2], a.shape[2], bias=False)


def _baddbmm(args: tuple[Any, ...], out: Tensor) -> Description:
    a, b = args[1], args[2]
    return _matmul(a.shape[0], a.shape[1], b.shape[2], a.shape[2], bias=True)


def _vector_product(args: tuple[Any, ...], out: Tensor) -> Description:
    return _matmul(1, max(1, out.numel()), 1, args[1].shape[0], bias=False)


def _linear(args: tuple[Any, ...], out: Tensor) -> Description:
    x, weight = args[0], args[1]
    return _matmul(
        1, x.numel() // x.shape[-1], weight.shape[0], weight.shape[1], bias=len(args) > 2 and args[2] is not None
    )


def _grouped_mm(args: tuple[Any, ...], out: Tensor) -> Description:
    """Rows of `a`, sorted by group, times the group's own matrix; `b` is (groups, k, n)."""
    a, b = args[0], args[1]
    if a.dim() == 3 or b.dim() == 2:
        groups, m, k, n = max(a.shape[0], 1), out.shape[-2], a.shape[-1], b.shape[-1]
        return Description(Kind.GROUPED_MATMUL, {"groups": groups, "m": m, "n": n, "k": k}, 2.0 * out.numel() * k)
    rows, k = a.shape
    groups, n = b.shape[0], b.shape[2]
    return Description(Kind.GROUPED_MATMUL, {"groups": groups, "m": rows, "n": n, "k": k}, 2.0 * rows * n * k)


def _convolution(args: tuple[Any, ...], out: Tensor) -> Description:
    """Each output element (transposed: input element) is a dot product over (channels ÷ groups) × kernel."""
    x, weight, bias, transposed, groups = args[0], args[1], args[2], args[6], args[8]
    per_element = math.prod(weight.shape[1:])
    elements = x.numel() if transposed else out.numel()
    dims = {"batch": x.shape[0], "in": x.shape[1], "out": out.shape[1], "groups": groups, "window": per_element}
    return Description(Kind.CONV, dims, 2.0 * elements * per_element, float(out.numel()) if bias is not None else 0.0)


_PRODUCTS: Mapping[str, Callable[[tuple[Any, ...], Tensor], Description]] = {
    "mm": _mm,
    "addmm": _addmm,
    "bmm": _bmm,
    "baddbmm": _baddbmm,
    "mv": _vector_product,
    "dot": _vector_product,
    "linear": _linear,
    "_scaled_mm": _mm,
    "_int_mm": _mm,
    "_grouped_mm": _grouped_mm,
    "convolution": _convolution,
    "_convolution": _convolution,
}


def describe(func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> Description:
    """Kind, dimensions and FLOPs of one ATen call that makes device work.

    Args: the call's arguments (tensors of any device, meta included) and its result.
    """
    name = name_of(func)
    results = [t for t in (out if isinstance(out, list | tuple) else [out]) if isinstance(t, Tensor)]
    elements = max((t.numel() for t in results), default=0)
    product = _PRODUCTS.get(name)
    if product is not None:
        return product(args, results[0])
    first = next((t for t in args if isinstance(t, Tensor)), None)
    given = first.numel() if first is not None else elements
    if name == "embedding":
        return Description(Kind.EMBEDDING, {"rows": args[1].numel(), "width": args[0].shape[-1]})
    if name in MOVES:
        return Description(Kind.COPY, {"elements": elements})
    if name in SORTS:
        # As one comparison an element: a radix sort compares nothing, and its passes are bound by their bytes.
        return Description(Kind.REDUCTION, {"elements": given}, 0, float(given))
    if name == "linalg_solve_triangular":  # row i of n takes i multiply-adds and a division: n² for each column
        return Description(Kind.OTHER, {"elements": elements}, 0, float(elements * args[0].shape[-1]))
    if name in ACCUMULATES:
        source = [t for t in args if isinstance(t, Tensor)][-1]
        return Description(Kind.POINTWISE, {"elements": source.numel()}, 0, float(source.numel()))
    base = name.rstrip("_")
    if base == "gelu" and kwargs.get("approximate") == "tanh":
        base = "gelu_tanh"
    if base == "max" and len(args) == 2 and isinstance(args[1], Tensor):
        base = "maximum"
    if base in REDUCTION_FLOPS:
        return Description(Kind.REDUCTION, {"elements": given}, 0, REDUCTION_FLOPS[base] * given)
    if base in VECTOR_FLOPS or name in VECTOR_FLOPS:
        kind = Kind.NORM if name in NORMS else Kind.SOFTMAX if name in SOFTMAXES else Kind.POINTWISE
        return Description(
            kind, {"elements": elements}, 0, VECTOR_FLOPS.get(name, VECTOR_FLOPS.get(base, 0)) * elements
        )
    if is_pointwise(func):
        return Description(Kind.POINTWISE, {"elements": elements}, 0, 0, counted=False)
    return Description(Kind.OTHER, {"elements": elements}, 0, 0, counted=False)
