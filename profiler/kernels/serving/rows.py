"""Kernels that work on rows: norms, activations, their quantisation, rotary positions, appending to the KV cache.

They have no products: their FLOPs are 0 and their roofline is their traffic. What a fused kernel saves over its parts
is the traffic between them.
"""

from collections.abc import Callable, Iterable
from typing import TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor

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
)
from profiler.kernels.serving.products import EPSILON, FLOATS, tolerance
from profiler.kernels.serving.providers import Function, in_library, onnx_kernel, torch_and_inductor
from roofline.dtypes import ELEMENT_BYTES
from roofline.laws.work import Work

EPS = 1e-6
"""Added to the mean of squares in a norm."""
INT8_MOST, FP8_MOST = 127.0, 448.0
"""Largest number of int8 without −128, and of e4m3 (OCP 8-bit floating point, 2023)."""
ROPE_BASE = 10000.0
"""Base of the rotary frequencies (RoFormer, arXiv 2104.09864, section 3.2.2)."""
ROW_CHECKS = tuple({"rows": rows, "width": width} for rows, width in ((1, 64), (7, 33), (3, 1000), (65, 96)))
PAGE = 16
"""Tokens of a page of the cache, vLLM's default."""


class Streamed(TypedDict):
    """The fields of a family that its traffic says."""

    work: Callable[[Dims, str], Work]
    kind: Callable[[Dims, str], tuple[str, dict[str, float]]]


def streamed(moved: Callable[[Dims, float], tuple[float, float]], name: str = "norm") -> Streamed:
    """Work and law input of a kernel that streams; `moved` is (bytes read, bytes written) of sizes and an element's
    bytes, and `name` the row of `roofline.laws.kinds`."""

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


def _same(*names: str) -> Callable[[str], dict[str, torch.dtype]]:
    return lambda dtype: dict.fromkeys(names, getattr(torch, dtype))


def _norm_operands(d: Dims, dtype: str, draw: Draw) -> Tensors:
    kind = getattr(torch, dtype)
    rows, weight = (d["rows"], d["width"]), draw.uniform(0.5, 1.5, d["width"], dtype=kind)
    return {"x": draw.normal(*rows, dtype=kind), "weight": weight}


def _rms_norm(d: Dims, t: Tensors) -> Tensor:
    return F.rms_norm(t["x"], (d["width"],), t["weight"], EPS)


def _normed(x: Tensor, weight: Tensor) -> Tensor:
    """RMSNorm in x's dtype, float64 in a reference."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS) * weight.to(x.dtype)


def _norm_tolerance(d: Dims, dtype: str) -> Tolerance:
    return tolerance(dtype, 4, d["width"])


def _flashinfer_norm(lib: object, d: Dims, dtype: str, t: Tensors) -> Kernel:
    norm = lib.rmsnorm  # type: ignore[attr-defined]
    return lambda t: norm(t["x"], t["weight"], EPS)


RMS_NORM = Family(
    name="rms_norm",
    sizes=("rows", "width"),
    dtypes=FLOATS,
    operands=_norm_operands,
    outputs=("y",),
    reference=lambda d, t: {"y": _normed(t["x"].double(), t["weight"])},
    returned=_same("y"),
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
        in_library("flashinfer-python", "flashinfer", _flashinfer_norm, name="flashinfer", dtypes=FLOATS[1:]),
        in_library(
            "liger-kernel",
            "liger_kernel.ops.rms_norm",
            lambda lib, d, dtype, t: lambda t: lib.LigerRMSNormFunction.apply(t["x"], t["weight"], EPS),
            name="liger",
        ),
    ),
)


def _residual_operands(d: Dims, dtype: str, draw: Draw) -> Tensors:
    return _norm_operands(d, dtype, draw) | {
        "residual": draw.normal(d["rows"], d["width"], dtype=getattr(torch, dtype))
    }


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


def _in_place_norm(lib: object, d: Dims, dtype: str, t: Tensors) -> Kernel:
    norm = lib.fused_add_rmsnorm  # type: ignore[attr-defined]

    def kernel(t: Tensors) -> Result:
        norm(t["x"], t["residual"], t["weight"], EPS)
        return t["x"], t["residual"]

    return kernel


RMS_NORM_RESIDUAL = Family(
    name="rms_norm_residual",
    sizes=("rows", "width"),
    dtypes=FLOATS,
    operands=_residual_operands,
    outputs=("y", "total"),
    reference=_residual_reference,
    returned=_same("y", "total"),
    tolerance=lambda d, dtype: {"y": _norm_tolerance(d, dtype), "total": tolerance(dtype, 2, 1)},
    **streamed(lambda d, b: (b * (2 * _area(d) + d["width"]), 2 * b * _area(d))),
    shapes=lambda step: (s for s in _norms("rms_norm")(step) if s["width"] == step.hidden),
    checks=ROW_CHECKS,
    constants={"eps": EPS},
    weights=("weight",),
    providers=(
        *torch_and_inductor(_rms_norm_residual),
        Provider("onnxruntime", "onnxruntime", _skip_norm, ("onnx", "onnxruntime"), ("cpu",), ("float32",)),
        in_library("flashinfer-python", "flashinfer", _in_place_norm, name="flashinfer", writes=("x", "residual")),
        in_library("sglang-kernel", "sgl_kernel", _in_place_norm, writes=("x", "residual")),
    ),
)


def _layer_norm_operands(d: Dims, dtype: str, draw: Draw) -> Tensors:
    return _norm_operands(d, dtype, draw) | {"bias": draw.normal(d["width"], dtype=getattr(torch, dtype))}


LAYER_NORM = Family(
    name="layer_norm",
    sizes=("rows", "width"),
    dtypes=FLOATS,
    operands=_layer_norm_operands,
    outputs=("y",),
    reference=lambda d, t: {
        "y": F.layer_norm(t["x"].double(), (d["width"],), t["weight"].double(), t["bias"].double(), EPS)
    },
    returned=_same("y"),
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
    """Rows in 8 bits and the scale of each, rows × 1: its largest magnitude ÷ the largest number."""
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
    """A family that turns rows into 8 bits with a scale for each row, after `before`."""

    def function(d: Dims, t: Tensors) -> Result:
        return _quantised(before(d, {name: operand.float() for name, operand in t.items()}), kind)

    def reference(d: Dims, t: Tensors) -> Tensors:
        return _quantised_reference(before(d, {name: operand.double() for name, operand in t.items()}), kind)

    return Family(
        name=f"{name}_{'int8' if kind == torch.int8 else 'fp8'}",
        sizes=("rows", "width"),
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
        sizes=("rows", "width"),
        dtypes=FLOATS,
        operands=_gate_operands,
        outputs=("y",),
        reference=lambda d, t: {"y": function(d, {"x": t["x"].double()})},  # type: ignore[dict-item]
        returned=_same("y"),
        tolerance=lambda d, dtype: {"y": tolerance(dtype, 4, 1)},
        **streamed(lambda d, b: (2 * b * _area(d), b * _area(d)), "pointwise"),
        shapes=_gates(name),
        checks=ROW_CHECKS,
        providers=(*torch_and_inductor(function), *own),
    )


def _flashinfer_gate(function: str) -> Provider:
    return in_library(
        "flashinfer-python",
        "flashinfer",
        lambda lib, d, dtype, t: lambda t: getattr(lib, function)(t["x"]),
        name="flashinfer",
        dtypes=FLOATS[1:],
    )


SWIGLU = _gated("swiglu", _swiglu, _flashinfer_gate("silu_and_mul"))
GEGLU = _gated("geglu", _geglu, _flashinfer_gate("gelu_tanh_and_mul"))

ROPE_CHECKS = tuple(
    {"tokens": tokens, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
    for tokens, heads, kv_heads, head_dim in ((1, 4, 1, 64), (7, 6, 2, 32), (19, 3, 3, 80))
)


def _rope_operands(d: Dims, dtype: str, draw: Draw) -> Tensors:
    kind, width = getattr(torch, dtype), d["head_dim"]
    return {
        "q": draw.normal(d["tokens"], d["heads"], width, dtype=kind),
        "k": draw.normal(d["tokens"], d["kv_heads"], width, dtype=kind),
        "angles": _angles(d, draw),
    }


def _angles(d: Dims, draw: Draw) -> Tensor:
    """Cosines, then sines of each token's angles, float32 tokens × head_dim, as engines keep them for each position."""
    half = d["head_dim"] // 2
    frequencies = ROPE_BASE ** (-torch.arange(half, dtype=torch.float64) / half)
    positions = draw.integers(0, 4096, d["tokens"]).cpu()
    turns = positions[:, None] * frequencies
    return draw.placed(torch.cat((turns.cos(), turns.sin()), -1).float())


def _rotated(x: Tensor, angles: Tensor) -> Tensor:
    """Each half of a head turned against the other (the form of NeoX and Llama checkpoints), in the angles' dtype."""
    cos, sin = angles[:, None].chunk(2, -1)
    first, second = x.to(angles.dtype).chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


def _rope(d: Dims, t: Tensors) -> Result:
    q, k = (_rotated(t[name], t["angles"]).to(t[name].dtype) for name in ("q", "k"))
    return q, k


def _heads_of(d: Dims) -> int:
    return d["tokens"] * (d["heads"] + d["kv_heads"]) * d["head_dim"]


def _kv_of(d: Dims) -> int:
    return d["tokens"] * d["kv_heads"] * d["head_dim"]


def _rope_shapes(step: ModelStep) -> Iterable[dict[str, int]]:
    for a in step.attention if step.rotary else ():
        yield {"tokens": step.tokens, "heads": a.heads, "kv_heads": a.kv_heads, "head_dim": a.head_dim}


ROPE = Family(
    name="rope",
    sizes=("tokens", "heads", "kv_heads", "head_dim"),
    dtypes=FLOATS,
    operands=_rope_operands,
    outputs=("q_rotated", "k_rotated"),
    reference=lambda d, t: {f"{name}_rotated": _rotated(t[name].double(), t["angles"].double()) for name in ("q", "k")},
    returned=_same("q_rotated", "k_rotated"),
    tolerance=lambda d, dtype: dict.fromkeys(("q_rotated", "k_rotated"), tolerance(dtype, 3, 2)),
    **streamed(lambda d, b: (b * _heads_of(d) + 4 * d["tokens"] * d["head_dim"], b * _heads_of(d)), "pointwise"),
    shapes=_rope_shapes,
    checks=ROPE_CHECKS,
    providers=torch_and_inductor(_rope),
)


def _caches(d: Dims, dtype: str, draw: Draw) -> Tensors:
    """A paged cache of four times as many slots as are written, and the slots of the new tokens in a random order."""
    pages = -(-4 * d["tokens"] // PAGE)
    size = (pages, PAGE, d["kv_heads"], d["head_dim"])
    return {
        "keys": draw.empty(*size, dtype=getattr(torch, dtype)),
        "values": draw.empty(*size, dtype=getattr(torch, dtype)),
        "slots": draw.placed(draw.order(pages * PAGE)[: d["tokens"]]),
    }


def _append_operands(d: Dims, dtype: str, draw: Draw) -> Tensors:
    new = (d["tokens"], d["kv_heads"], d["head_dim"])
    k, v = (draw.normal(*new, dtype=getattr(torch, dtype)) for _ in range(2))
    return {"k": k, "v": v, **_caches(d, dtype, draw)}


def _store(d: Dims, keys: Tensor, slots: Tensor, new: Tensor) -> None:
    keys.view(-1, d["kv_heads"], d["head_dim"]).index_copy_(0, slots, new)


def _append(d: Dims, t: Tensors) -> None:
    for cache, new in (("keys", "k"), ("values", "v")):
        _store(d, t[cache], t["slots"], t[new])


def _append_reference(d: Dims, t: Tensors) -> Tensors:
    made = {name: t[name].double() for name in ("keys", "values")}
    for cache, new in (("keys", "k"), ("values", "v")):
        _store(d, made[cache], t["slots"], t[new].double())
    return made


EXACT = Tolerance(0.0, 0.0, "a copy is exact")


def _slot_operands(d: Dims, dtype: str, draw: Draw) -> Tensors:
    """Caches of batch × capacity, of which each sequence has another length."""
    kind, new = getattr(torch, dtype), (d["batch"], d["query"], d["kv_heads"], d["head_dim"])
    size = (d["batch"], d["capacity"], d["kv_heads"], d["head_dim"])
    return {
        **{name: draw.normal(*new, dtype=kind) for name in ("k", "v")},
        **{name: draw.empty(*size, dtype=kind) for name in ("keys", "values")},
        "lengths": draw.integers(0, d["capacity"] - d["query"] + 1, d["batch"]),
    }


def _slots_of(d: Dims, t: Tensors) -> Tensor:
    """Places of the new tokens: batch × query × kv_heads × head_dim."""
    places = t["lengths"][:, None] + torch.arange(d["query"], device=t["lengths"].device)
    return places[..., None, None].expand(t["k"].shape)


def _append_contiguous(d: Dims, t: Tensors) -> None:
    for cache, new in (("keys", "k"), ("values", "v")):
        t[cache].scatter_(1, _slots_of(d, t), t[new])


def _contiguous_reference(d: Dims, t: Tensors) -> Tensors:
    return {
        cache: t[cache].double().scatter(1, _slots_of(d, t), t[new].double())
        for cache, new in (("keys", "k"), ("values", "v"))
    }


def _new_kv(d: Dims) -> int:
    return 2 * d["batch"] * d["query"] * d["kv_heads"] * d["head_dim"]


KV_APPEND = Family(
    name="kv_append",
    sizes=("batch", "query", "capacity", "kv_heads", "head_dim"),
    dtypes=FLOATS,
    operands=_slot_operands,
    outputs=("keys", "values"),
    reference=_contiguous_reference,
    returned=_same("keys", "values"),
    tolerance=lambda d, dtype: {"keys": EXACT, "values": EXACT},
    **streamed(lambda d, b: (b * _new_kv(d) + 8 * d["batch"], b * _new_kv(d)), "pointwise"),
    shapes=lambda step: (
        {
            "batch": step.workload.batch,
            "query": step.workload.query_tokens,
            "capacity": step.kv,
            "kv_heads": a.kv_heads,
            "head_dim": a.head_dim,
        }
        for a in step.attention
    ),
    checks=tuple(
        {"batch": b, "query": q, "capacity": c, "kv_heads": h, "head_dim": w}
        for b, q, c, h, w in ((1, 1, 9, 1, 64), (3, 2, 17, 2, 33), (5, 7, 40, 3, 16))
    ),
    mutates=("keys", "values"),
    providers=torch_and_inductor(_append_contiguous),
)
KV_APPEND_PAGED = Family(
    name="kv_append_paged",
    sizes=("tokens", "kv_heads", "head_dim"),
    dtypes=FLOATS,
    operands=_append_operands,
    outputs=("keys", "values"),
    reference=_append_reference,
    returned=_same("keys", "values"),
    tolerance=lambda d, dtype: {"keys": EXACT, "values": EXACT},
    **streamed(lambda d, b: (2 * b * _kv_of(d) + 8 * d["tokens"], 2 * b * _kv_of(d)), "pointwise"),
    shapes=lambda step: (
        {"tokens": step.tokens, "kv_heads": a.kv_heads, "head_dim": a.head_dim} for a in step.attention
    ),
    checks=tuple({"tokens": n, "kv_heads": h, "head_dim": w} for n, h, w in ((1, 1, 64), (7, 2, 33), (37, 3, 16))),
    mutates=("keys", "values"),
    providers=torch_and_inductor(_append),
)


def _rope_append_operands(d: Dims, dtype: str, draw: Draw) -> Tensors:
    v = draw.normal(d["tokens"], d["kv_heads"], d["head_dim"], dtype=getattr(torch, dtype))
    return {**_rope_operands(d, dtype, draw), "v": v, **_caches(d, dtype, draw)}


def _rope_append(d: Dims, t: Tensors) -> Tensor:
    _store(d, t["keys"], t["slots"], _rotated(t["k"], t["angles"]).to(t["k"].dtype))
    _store(d, t["values"], t["slots"], t["v"])
    return _rotated(t["q"], t["angles"]).to(t["q"].dtype)


def _rope_append_reference(d: Dims, t: Tensors) -> Tensors:
    angles = t["angles"].double()
    made = _append_reference(d, t | {"k": _rotated(t["k"].double(), angles)})
    return {"q_rotated": _rotated(t["q"].double(), angles), **made}


ROPE_KV_APPEND = Family(
    name="rope_kv_append",
    sizes=("tokens", "heads", "kv_heads", "head_dim"),
    dtypes=FLOATS,
    operands=_rope_append_operands,
    outputs=("q_rotated", "keys", "values"),
    reference=_rope_append_reference,
    returned=_same("q_rotated", "keys", "values"),
    tolerance=lambda d, dtype: {
        **dict.fromkeys(("q_rotated", "keys"), tolerance(dtype, 3, 2)),
        "values": EXACT,
    },
    **streamed(
        lambda d, b: (
            b * (_heads_of(d) + _kv_of(d)) + 4 * d["tokens"] * d["head_dim"] + 8 * d["tokens"],
            b * (_heads_of(d) + _kv_of(d)),
        ),
        "pointwise",
    ),
    shapes=_rope_shapes,
    checks=ROPE_CHECKS,
    mutates=("keys", "values"),
    providers=torch_and_inductor(_rope_append),
)


def _embedding_operands(d: Dims, dtype: str, draw: Draw) -> Tensors:
    """A table of which the rows that are not looked up are NaN, and different ids while there are enough rows."""
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
    reference=lambda d, t: {"y": t["table"].double()[t["ids"]]},
    returned=_same("y"),
    tolerance=lambda d, dtype: {"y": EXACT},
    **streamed(_looked_up, "embedding"),
    shapes=lambda step: (
        {"rows": rows, "width": width, "vocabulary": step.vocabulary} for rows, width in step.embeddings
    ),
    checks=tuple({"rows": r, "width": w, "vocabulary": v} for r, w, v in ((1, 64, 7), (7, 33, 100), (65, 48, 40))),
    weights=("table",),
    providers=torch_and_inductor(lambda d, t: F.embedding(t["ids"], t["table"])),
)

FAMILIES = (
    RMS_NORM,
    RMS_NORM_RESIDUAL,
    LAYER_NORM,
    *QUANTISERS,
    SWIGLU,
    GEGLU,
    ROPE,
    ROPE_KV_APPEND,
    KV_APPEND,
    KV_APPEND_PAGED,
    EMBEDDING,
)
