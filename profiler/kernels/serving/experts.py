"""The experts of a mixture: the choice among them, their grouped products, and the whole layer after the router.

Which expert gets which rows is drawn from the sizes alone, so that FLOPs and bytes are known before a run: uniform, or
by Zipf's law with exponent `skew` ÷ 100 (`roofline.graph.op.chosen_by_a_token`). Weights of experts that no row goes to
are NaN: a kernel has no reason to read them.
"""

from collections.abc import Iterable
from functools import lru_cache

import numpy as np
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
    Unsupported,
    amount,
    in_own_dtype,
    points,
    widened,
)
from profiler.kernels.serving.products import FLOATS, tolerance
from profiler.kernels.serving.providers import eager, in_library, torch_and_inductor
from roofline.dtypes import ELEMENT_BYTES
from roofline.graph.op import chosen_by_a_token
from roofline.laws.work import Work


@lru_cache(maxsize=64)
def _drawn(tokens: int, topk: int, experts: int, skew: int) -> Tensor:
    popular = chosen_by_a_token(experts, topk, skew / 100)
    shares = torch.from_numpy(np.asarray(popular)).clamp_min(1e-12).expand(tokens, -1)
    return torch.multinomial(shares, topk, generator=torch.Generator().manual_seed(0))


def routing(d: Dims) -> Tensor:
    """Return the experts of each token, tokens × topk: different ones, the same for the same sizes."""
    return _drawn(d["tokens"], d["topk"], d["experts"], d["skew"])


def _hit(d: Dims) -> Tensor:
    return routing(d).unique()


def _weights_of(d: Dims, draw: Draw, n: int, k: int, dtype: torch.dtype) -> Tensor:
    """Return weights of experts × n × k of which only those that some row goes to are numbers."""
    weights, hit = draw.empty(d["experts"], n, k, dtype=dtype), _hit(d)
    weights[hit.to(draw.device)] = draw.normal(len(hit), n, k, dtype=dtype, scale=k**-0.5)
    return weights


GROUPED_SIZES = ("experts", "topk", "tokens", "n", "k", "skew")


def _counts(d: Dims) -> Tensor:
    return routing(d).flatten().bincount(minlength=d["experts"])


def _grouped_operands(d: Dims, dtype: str, draw: Draw) -> Tensors:
    """Return rows sorted by expert, and the end of each expert's rows."""
    kind, rows = getattr(torch, dtype), d["tokens"] * d["topk"]
    return {
        "x": draw.normal(rows, d["k"], dtype=kind),
        "weight": _weights_of(d, draw, d["n"], d["k"], kind),
        "ends": draw.placed(_counts(d).cumsum(0).int()),
    }


def _each_expert(x: Tensor, weight: Tensor, ends: list[int]) -> Tensor:
    result, start = x.new_empty(len(x), weight.shape[1]), 0
    for expert, end in enumerate(ends):
        if end > start:
            result[start:end] = x[start:end] @ weight[expert].T.to(x.dtype)
        start = end
    return result


def _grouped(d: Dims, t: Tensors) -> Tensor:
    return _each_expert(t["x"], t["weight"], t["ends"].tolist())


def _grouped_reference(d: Dims, t: Tensors) -> Tensors:
    return {"y": _each_expert(t["x"].double(), t["weight"], t["ends"].tolist())}


def _check_strides(d: Dims, t: Tensors, *widths: int) -> None:
    size = t["x"].dtype.itemsize
    for width in widths:
        if width * size % 16:
            raise Unsupported(f"torch.grouped_mm needs rows of a multiple of 16 bytes, not of {width * size}")
    if any(operand.data_ptr() % 16 for operand in t.values() if operand.is_floating_point()):
        raise Unsupported("torch.grouped_mm needs operands that begin at multiples of 16 bytes")


def _grouped_mm(d: Dims, dtype: str, t: Tensors) -> Kernel:
    _check_strides(d, t, d["n"], d["k"])
    return lambda t: F.grouped_mm(t["x"], t["weight"].transpose(-2, -1), offs=t["ends"])


def _grouped_work(d: Dims, dtype: str) -> Work:
    rows, size = d["tokens"] * d["topk"], ELEMENT_BYTES[dtype]
    moved = size * (rows * (d["n"] + d["k"]) + len(_hit(d)) * d["n"] * d["k"]) + 4 * d["experts"]
    return amount(2 * rows * d["n"] * d["k"], moved)


def _grouped_kind(d: Dims, dtype: str) -> tuple[str, dict[str, float]]:
    del dtype
    hit = len(_hit(d))
    return "grouped_matmul", {
        "batch": float(hit),
        "m": max(1.0, d["tokens"] * d["topk"] / hit),
        "n": float(d["n"]),
        "k": float(d["k"]),
    }


SKEWS = (0, 100)
"""Hundredths of the exponents that a suite takes: uniform, and Zipf's law."""


def _grouped_shapes(step: ModelStep) -> Iterable[dict[str, int]]:
    return points(GROUPED_SIZES, *((*group, skew) for group in step.grouped for skew in SKEWS))


GROUPED = Family(
    name="grouped_product",
    sizes=GROUPED_SIZES,
    dtypes=FLOATS,
    operands=_grouped_operands,
    outputs=("y",),
    reference=_grouped_reference,
    returned=in_own_dtype("y"),
    tolerance=lambda d, dtype: {"y": tolerance(dtype, 2, d["k"])},
    work=_grouped_work,
    kind=_grouped_kind,
    shapes=_grouped_shapes,
    checks=points(
        GROUPED_SIZES, (4, 1, 1, 48, 64, 0), (8, 2, 7, 40, 72, 100), (5, 3, 33, 33, 57, 0), (16, 4, 9, 24, 136, 100)
    ),
    weights=("weight",),
    providers=(
        eager("torch by expert", _grouped),
        Provider("torch.grouped_mm", "torch", _grouped_mm, alignment_bytes=16),
    ),
    note="Inductor takes no loop whose bounds are data; torch.compile of grouped_mm calls the same kernel",
)

EXPERT_SIZES = ("tokens", "experts", "topk", "hidden", "inner", "skew")


def _expert_operands(d: Dims, dtype: str, draw: Draw) -> Tensors:
    """Return rows, experts' weights (gate above up in `up`), and the experts of each token with their shares."""
    kind = getattr(torch, dtype)
    shares = draw.uniform(0.1, 1.0, d["tokens"], d["topk"], dtype=torch.float32)
    return {
        "x": draw.normal(d["tokens"], d["hidden"], dtype=kind),
        "up": _weights_of(d, draw, 2 * d["inner"], d["hidden"], kind),
        "down": _weights_of(d, draw, d["hidden"], d["inner"], kind),
        "ids": draw.placed(routing(d).int()),
        "shares": shares.div_(shares.sum(-1, keepdim=True)),
    }


def _layer(d: Dims, t: Tensors, shares: Tensor) -> Tensor:
    """Run each expert's rows through its three matrices; results are added up in the shares' dtype."""
    result = torch.zeros(d["tokens"], d["hidden"], dtype=shares.dtype, device=shares.device)
    for expert in range(d["experts"]):
        tokens, places = (t["ids"] == expert).nonzero(as_tuple=True)
        if len(tokens):
            x = t["x"][tokens]
            gate, up = (x @ t["up"][expert].T.to(x.dtype)).chunk(2, -1)
            rows = (F.silu(gate) * up) @ t["down"][expert].T.to(x.dtype)
            result.index_add_(0, tokens, rows.to(shares.dtype) * shares[tokens, places, None])
    return result


def _by_expert(d: Dims, t: Tensors) -> Tensor:
    return _layer(d, t, t["shares"]).to(t["x"].dtype)


def _layer_reference(d: Dims, t: Tensors) -> Tensors:
    return {"y": _layer(d, t | widened({name: t[name] for name in ("x", "shares")}), t["shares"].double())}


def _sorted_layer(d: Dims, dtype: str, t: Tensors) -> Kernel:
    """Bind rows sorted by expert, two grouped products, and the sum of each token's rows."""
    _check_strides(d, t, d["hidden"], d["inner"])

    def run(t: Tensors) -> Tensor:
        ids = t["ids"].flatten()
        order = ids.argsort(stable=True)
        ends = ids.bincount(minlength=d["experts"]).cumsum(0).int()
        tokens = order // d["topk"]
        gate, up = F.grouped_mm(t["x"][tokens], t["up"].transpose(-2, -1), offs=ends).chunk(2, -1)
        rows = F.grouped_mm(F.silu(gate) * up, t["down"].transpose(-2, -1), offs=ends)
        weighted = rows.float() * t["shares"].flatten()[order, None]
        result = torch.zeros(d["tokens"], d["hidden"], dtype=torch.float32, device=rows.device)
        return result.index_add_(0, tokens, weighted).to(rows.dtype)

    return run


def _vllm_experts(lib: object, d: Dims, dtype: str, t: Tensors) -> Kernel:
    fused = lib.fused_experts  # type: ignore[attr-defined]
    return lambda t: fused(t["x"], t["up"], t["down"], t["shares"], t["ids"])


def _layer_work(d: Dims, dtype: str) -> Work:
    rows, size = d["tokens"] * d["topk"], ELEMENT_BYTES[dtype]
    weights = 3 * len(_hit(d)) * d["hidden"] * d["inner"]
    moved = size * (weights + 2 * d["tokens"] * d["hidden"]) + 8 * rows
    return amount(6 * rows * d["hidden"] * d["inner"], moved)


def _layer_kind(d: Dims, dtype: str) -> tuple[str, dict[str, float]]:
    sizes = {name: float(d[name]) for name in ("tokens", "hidden", "inner", "topk", "experts")}
    return "experts", sizes | {"tp": 1.0, "ep": 1.0, "skew": d["skew"] / 100, "weight_bits": 8 * ELEMENT_BYTES[dtype]}


def _layer_shapes(step: ModelStep) -> Iterable[dict[str, int]]:
    second = [group for group in step.grouped if group[3] == step.hidden]  # of hidden × inner
    rows = [(tokens, experts, topk, n, k, skew) for experts, topk, tokens, n, k in second for skew in SKEWS]
    return points(EXPERT_SIZES, *rows)


EXPERTS = Family(
    name="experts",
    sizes=EXPERT_SIZES,
    dtypes=FLOATS,
    operands=_expert_operands,
    outputs=("y",),
    reference=_layer_reference,
    returned=in_own_dtype("y"),
    tolerance=lambda d, dtype: {"y": tolerance(dtype, 5, d["hidden"] + d["inner"])},
    work=_layer_work,
    kind=_layer_kind,
    shapes=_layer_shapes,
    checks=points(
        EXPERT_SIZES, (1, 4, 1, 64, 48, 0), (7, 8, 2, 40, 24, 100), (33, 5, 3, 57, 33, 0), (9, 16, 4, 72, 136, 100)
    ),
    weights=("up", "down"),
    providers=(
        eager("torch by expert", _by_expert),
        Provider("torch.grouped_mm", "torch", _sorted_layer, alignment_bytes=16),
        in_library(
            "vllm", "vllm.model_executor.layers.fused_moe", _vllm_experts, dtypes=FLOATS[1:], name="vllm fused_experts"
        ),
    ),
    note="the rows of a decode step and of a prefill are shapes of one family",
)


def _logits(d: Dims, dtype: str, draw: Draw) -> Tensors:
    """Return logits of which no two in a row are within 1e-3, so that the order of the largest is certain; e to the
    power of those in even rows is beyond float32."""
    rows = [draw.order(d["experts"]) for _ in range(d["rows"])]
    grid = torch.stack(rows).double() * (6.0 / d["experts"]) - 3
    jitter = draw.uniform(-0.2, 0.2, d["rows"], d["experts"], dtype=torch.float64) * (6.0 / d["experts"])
    jitter[::2] += 100
    return {"logits": draw.placed((grid + jitter).float())}


def _chosen(d: Dims, logits: Tensor) -> tuple[Tensor, Tensor]:
    values, ids = torch.topk(logits.softmax(-1), d["topk"])
    return values / values.sum(-1, keepdim=True), ids.int()


def _topk_softmax(d: Dims, t: Tensors) -> Result:
    return _chosen(d, t["logits"])


def _vllm_topk(lib: object, d: Dims, dtype: str, t: Tensors) -> Kernel:
    choose = lib.topk_softmax  # type: ignore[attr-defined]

    def run(t: Tensors) -> Result:
        size, device = (d["rows"], d["topk"]), t["logits"].device
        shares = torch.empty(size, dtype=torch.float32, device=device)
        ids, source = (torch.empty(size, dtype=torch.int32, device=device) for _ in range(2))
        choose(shares, ids, source, t["logits"], True)
        return shares, ids

    return run


def _topk_reference(d: Dims, t: Tensors) -> Tensors:
    shares, ids = _chosen(d, t["logits"].double())
    return {"shares": shares, "ids": ids}


TOPK_SOFTMAX = Family(
    name="topk_softmax",
    sizes=("rows", "experts", "topk"),
    dtypes=("float32",),
    operands=_logits,
    outputs=("shares", "ids"),
    reference=_topk_reference,
    returned=lambda dtype: {"shares": torch.float32, "ids": torch.int32},
    tolerance=lambda d, dtype: {
        "shares": tolerance("float32", 8, d["experts"]),
        "ids": Tolerance(0.0, 0.0, "logits are drawn apart, so that the choice is certain"),
    },
    work=lambda d, dtype: amount(0, 4 * d["rows"] * d["experts"] + 8 * d["rows"] * d["topk"]),
    shapes=lambda step: ({"rows": m, "experts": n, "topk": topk} for m, n, _, topk in step.routers),
    checks=points(("rows", "experts", "topk"), (1, 8, 2), (7, 60, 4), (33, 257, 8)),
    providers=(*torch_and_inductor(_topk_softmax), in_library("vllm", "vllm._custom_ops", _vllm_topk)),
)

FAMILIES = (GROUPED, EXPERTS, TOPK_SOFTMAX)
