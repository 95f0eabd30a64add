"""Kernels that work on rows: norms, gated activations, their quantisation, and the embedding.

They have no products: their FLOPs are 0 and their roofline is their traffic. What a fused kernel saves over its parts
is the traffic between them.
"""

from collections.abc import Callable, Iterable
from typing import TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor

from profiler.kernels.serving import row_libraries as libraries
from profiler.kernels.serving.contract import (
    Dims,
    Draw,
    Family,
    Kernel,
    ModelStep,
    Provider,
    Result,
    Tensors,
    Tolerance,
    amount,
    in_own_dtype,
    points,
    widened,
)
from profiler.kernels.serving.products import EPSILON, FLOATS, tolerance
from profiler.kernels.serving.providers import Function, onnx_kernel, torch_and_inductor
from profiler.kernels.serving.row_libraries import EPS
from roofline.dtypes import ELEMENT_BYTES
from roofline.laws.work import Work

INT8_MOST, FP8_MOST = 127.0, 448.0
"""Largest number of int8 without −128, and of e4m3 (OCP 8-bit floating point, 2023)."""
SIZES = ("rows", "width")
ROW_CHECKS = points(SIZES, (1, 64), (7, 33), (3, 1000), (65, 96))
EXACT = Tolerance(0.0, 0.0, "a copy is exact")


class Streamed(TypedDict):
    """The fields of a family that its traffic says."""

    work: Callable[[Dims, str], Work]
    kind: Callable[[Dims, str], tuple[str, dict[str, float]]]


def streamed(moved: Callable[[Dims, float], tuple[float, float]], name: str = "norm") -> Streamed:
    """Return work and law input of a kernel that streams; `moved` is (bytes read, bytes written) of sizes and an
    element's bytes, and `name` the row of `roofline.laws.kinds`."""

    def work(d: Dims, dtype: str) -> Work:
        return amount(0, sum(moved(d, ELEMENT_BYTES[dtype])))

    def kind(d: Dims, dtype: str) -> tuple[str, dict[str, float]]:
        read, written = moved(d, ELEMENT_BYTES[dtype])
        sizes = {"bytes_read": float(read), "bytes_written": float(written), "kernels": 1.0, "flops": 0.0}
        return name, sizes | {"elements": float(written) / ELEMENT_BYTES[dtype]}

    return {"work": work, "kind": kind}


def _area(d: Dims) -> int:
    return d["rows"] * d["width"]


def _norms(name: str) -> Callable[[ModelStep], Iterable[dict[str, int]]]:
    return lambda step: ({"rows": rows, "width": width} for family, rows, width in step.norms if family == name)


def _gates(name: str) -> Callable[[ModelStep], Iterable[dict[str, int]]]:
    return lambda step: ({"rows": rows, "width": width} for family, rows, width in step.gates if family == name)


def _norm_operands(d: Dims, dtype: str, draw: Draw) -> Tensors:
    kind = getattr(torch, dtype)
    x, weight = draw.normal(d["rows"], d["width"], dtype=kind), draw.uniform(0.5, 1.5, d["width"], dtype=kind)
    x[::4] *= EPS**0.5  # rows to which eps matters
    return {"x": x, "weight": weight}


def _rms_norm(d: Dims, t: Tensors) -> Tensor:
    return F.rms_norm(t["x"], (d["width"],), t["weight"], EPS)


def _normed(x: Tensor, weight: Tensor) -> Tensor:
    """Return the RMSNorm in x's dtype, float64 in a reference."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS) * weight.to(x.dtype)


def _norm_tolerance(d: Dims, dtype: str) -> Tolerance:
    return tolerance(dtype, 4, d["width"])


RMS_NORM = Family(
    name="rms_norm",
    sizes=SIZES,
    dtypes=FLOATS,
    operands=_norm_operands,
    outputs=("y",),
    reference=lambda d, t: {"y": _normed(t["x"].double(), t["weight"])},
    returned=in_own_dtype("y"),
    tolerance=lambda d, dtype: {"y": _norm_tolerance(d, dtype)},
    **streamed(lambda d, b: (b * (_area(d) + d["width"]), b * _area(d))),
    shapes=_norms("rms_norm"),
    checks=ROW_CHECKS,
    constants={"eps": EPS},
    weights=("weight",),
    providers=(
        *torch_and_inductor(_rms_norm),
        Provider(
            "torch._fused_rms_norm",
            "torch",
            lambda d, dtype, t: lambda t: torch.ops.aten._fused_rms_norm(t["x"], [d["width"]], t["weight"], EPS)[0],
        ),
        *libraries.NORMS,
    ),
)


def _residual_operands(d: Dims, dtype: str, draw: Draw) -> Tensors:
    residual = draw.normal(d["rows"], d["width"], dtype=getattr(torch, dtype))
    residual[::4] *= EPS**0.5
    return _norm_operands(d, dtype, draw) | {"residual": residual}


def _rms_norm_residual(d: Dims, t: Tensors) -> Result:
    total = t["x"] + t["residual"]
    return F.rms_norm(total, (d["width"],), t["weight"], EPS), total


def _residual_reference(d: Dims, t: Tensors) -> Tensors:
    total = t["x"].double() + t["residual"].double()
    return {"y": _normed(total, t["weight"]), "total": total}


def _skip_norm(d: Dims, dtype: str, t: Tensors) -> Kernel:
    rows = torch.empty(1, d["rows"], d["width"])
    run = onnx_kernel(
        "SkipSimplifiedLayerNormalization",
        {"epsilon": EPS},
        {"input": rows, "skip": rows, "gamma": t["weight"]},
        {},
        {"y": rows, "": rows[0], " ": rows[0], "total": rows},
    )

    def kernel(t: Tensors) -> Result:
        y, total = run({"input": t["x"][None], "skip": t["residual"][None], "gamma": t["weight"]})
        return y[0], total[0]

    return kernel


RMS_NORM_RESIDUAL = Family(
    name="rms_norm_residual",
    sizes=SIZES,
    dtypes=FLOATS,
    operands=_residual_operands,
    outputs=("y", "total"),
    reference=_residual_reference,
    returned=in_own_dtype("y", "total"),
    tolerance=lambda d, dtype: {"y": _norm_tolerance(d, dtype), "total": tolerance(dtype, 2, 1)},
    **streamed(lambda d, b: (b * (2 * _area(d) + d["width"]), 2 * b * _area(d))),
    shapes=lambda step: (s for s in _norms("rms_norm")(step) if s["width"] == step.hidden),
    checks=ROW_CHECKS,
    constants={"eps": EPS},
    weights=("weight",),
    providers=(
        *torch_and_inductor(_rms_norm_residual),
        Provider("onnxruntime", "onnxruntime", _skip_norm, ("onnx", "onnxruntime"), ("cpu",), ("float32",)),
        *libraries.NORMS_RESIDUAL,
    ),
)


def _layer_norm_operands(d: Dims, dtype: str, draw: Draw) -> Tensors:
    return _norm_operands(d, dtype, draw) | {"bias": draw.normal(d["width"], dtype=getattr(torch, dtype))}


LAYER_NORM = Family(
    name="layer_norm",
    sizes=SIZES,
    dtypes=FLOATS,
    operands=_layer_norm_operands,
    outputs=("y",),
    reference=lambda d, t: {
        "y": F.layer_norm(t["x"].double(), (d["width"],), t["weight"].double(), t["bias"].double(), EPS)
    },
    returned=in_own_dtype("y"),
    tolerance=lambda d, dtype: {"y": tolerance(dtype, 5, d["width"])},
    **streamed(lambda d, b: (b * (_area(d) + 2 * d["width"]), b * _area(d))),
    shapes=_norms("layer_norm"),
    checks=ROW_CHECKS,
    constants={"eps": EPS},
    weights=("weight", "bias"),
    providers=torch_and_inductor(lambda d, t: F.layer_norm(t["x"], (d["width"],), t["weight"], t["bias"], EPS)),
)

STEP = "one step of the number format where a value lies between two, and in most elements none"


def _quantised(rows: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return rows in 8 bits and the scale of each, rows × 1: its largest magnitude ÷ the largest number."""
    most = INT8_MOST if kind == torch.int8 else FP8_MOST
    scale = rows.abs().amax(-1, keepdim=True).clamp_min(1e-10) / most
    shares = rows / scale
    return (shares.round() if kind == torch.int8 else shares.clamp(-most, most)).to(kind), scale


def _quantised_reference(rows: Tensor, kind: torch.dtype) -> Tensors:
    q, scale = _quantised(rows, torch.int8) if kind == torch.int8 else _quantised(rows, torch.float64)
    if kind == torch.int8:
        return {"q": q.double(), "scale": scale}
    return {"q": rows / (rows.abs().amax(-1, keepdim=True).clamp_min(1e-10) / FP8_MOST), "scale": scale}


def _quantise_tolerance(d: Dims, roundings: float, kind: torch.dtype, dtype: str) -> dict[str, Tolerance]:
    q = Tolerance(1.0, 0.0, STEP, exact=0.8) if kind == torch.int8 else Tolerance(2.0**-9, 2.0**-3, STEP, exact=0.8)
    own = roundings / 2 * EPSILON[dtype] + 8 * EPSILON["float32"]
    return {"q": q, "scale": Tolerance(1e-9, own, f"{roundings:g} roundings to {dtype} of the largest element")}


def _quantiser(
    name: str,
    kind: torch.dtype,
    before: Callable[[Dims, Tensors], Tensor],
    operands: Callable[[Dims, str, Draw], Tensors],
    read: Callable[[Dims], int],
    shapes: Callable[[ModelStep], Iterable[dict[str, int]]],
    roundings: float,
) -> Family:
    """Return a family that turns rows into 8 bits with a scale for each row, after `before`."""

    def function(d: Dims, t: Tensors) -> Result:
        return _quantised(before(d, {name: operand.float() for name, operand in t.items()}), kind)

    def reference(d: Dims, t: Tensors) -> Tensors:
        return _quantised_reference(before(d, widened(t)), kind)

    return Family(
        name=f"{name}_{'int8' if kind == torch.int8 else 'fp8'}",
        sizes=SIZES,
        dtypes=FLOATS,
        operands=operands,
        outputs=("q", "scale"),
        reference=reference,
        returned=lambda dtype: {"q": kind, "scale": torch.float32},
        tolerance=lambda d, dtype: _quantise_tolerance(d, roundings, kind, dtype),
        **streamed(lambda d, b: (b * read(d), _area(d) + 4 * d["rows"])),
        shapes=shapes,
        checks=ROW_CHECKS,
        constants={"eps": EPS},
        providers=torch_and_inductor(function),
    )


def _row_operands(d: Dims, dtype: str, draw: Draw) -> Tensors:
    return {"x": draw.normal(d["rows"], d["width"], dtype=getattr(torch, dtype))}


def _gate_operands(d: Dims, dtype: str, draw: Draw) -> Tensors:
    return {"x": draw.normal(d["rows"], 2 * d["width"], dtype=getattr(torch, dtype))}


def _swiglu(d: Dims, t: Tensors) -> Tensor:
    gate, up = t["x"].chunk(2, -1)
    return F.silu(gate) * up


def _geglu(d: Dims, t: Tensors) -> Tensor:
    gate, up = t["x"].chunk(2, -1)
    return F.gelu(gate, approximate="tanh") * up


QUANTISERS = tuple(
    family
    for kind in (torch.int8, torch.float8_e4m3fn)
    for family in (
        _quantiser("quantise", kind, lambda d, t: t["x"], _row_operands, _area, _norms("rms_norm"), 0.0),
        _quantiser(
            "rms_norm_quantise",
            kind,
            lambda d, t: _normed(t["x"], t["weight"]),
            _norm_operands,
            lambda d: _area(d) + d["width"],
            _norms("rms_norm"),
            2.0,
        ),
        _quantiser("swiglu_quantise", kind, _swiglu, _gate_operands, lambda d: 2 * _area(d), _gates("swiglu"), 2.0),
    )
)


def _gated(name: str, function: Function, *own: Provider) -> Family:
    return Family(
        name=name,
        sizes=SIZES,
        dtypes=FLOATS,
        operands=_gate_operands,
        outputs=("y",),
        reference=lambda d, t: {"y": function(d, {"x": t["x"].double()})},  # type: ignore[dict-item]
        returned=in_own_dtype("y"),
        tolerance=lambda d, dtype: {"y": tolerance(dtype, 4, 1)},
        **streamed(lambda d, b: (2 * b * _area(d), b * _area(d)), "pointwise"),
        shapes=_gates(name),
        checks=ROW_CHECKS,
        providers=(*torch_and_inductor(function), *own),
    )


SWIGLU = _gated("swiglu", _swiglu, *libraries.SWIGLU)
GEGLU = _gated("geglu", _geglu, *libraries.GEGLU)


def _embedding_operands(d: Dims, dtype: str, draw: Draw) -> Tensors:
    """Return a table of which the rows that are not looked up are NaN, and different ids while there are enough
    rows."""
    kind = getattr(torch, dtype)
    ids = draw.order(d["vocabulary"]).repeat(-(-d["rows"] // d["vocabulary"]))[: d["rows"]]
    table = draw.empty(d["vocabulary"], d["width"], dtype=kind)
    distinct = ids.unique()
    table[distinct] = draw.normal(len(distinct), d["width"], dtype=kind)
    return {"ids": draw.placed(ids), "table": table}


def _looked_up(d: Dims, b: float) -> tuple[float, float]:
    distinct = min(d["rows"], d["vocabulary"])
    return b * distinct * d["width"] + 8 * d["rows"], b * _area(d)


EMBEDDING = Family(
    name="embedding",
    sizes=("rows", "width", "vocabulary"),
    dtypes=FLOATS,
    operands=_embedding_operands,
    outputs=("y",),
    reference=lambda d, t: {"y": t["table"][t["ids"]].double()},
    returned=in_own_dtype("y"),
    tolerance=lambda d, dtype: {"y": EXACT},
    **streamed(_looked_up, "embedding"),
    shapes=lambda step: (
        {"rows": rows, "width": width, "vocabulary": step.vocabulary} for rows, width in step.embeddings
    ),
    checks=points((*SIZES, "vocabulary"), (1, 64, 7), (7, 33, 100), (65, 48, 40)),
    providers=torch_and_inductor(lambda d, t: F.embedding(t["ids"], t["table"])),
)

FAMILIES = (
    RMS_NORM,
    RMS_NORM_RESIDUAL,
    LAYER_NORM,
    *QUANTISERS,
    SWIGLU,
    GEGLU,
    EMBEDDING,
)
