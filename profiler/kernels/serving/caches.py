"""Kernels that rotate queries and keys by their positions, and that append keys and values to a cache.

They have no products: their FLOPs are 0 and their roofline is their traffic.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from profiler.kernels.serving.contract import (
    Dims,
    Draw,
    Family,
    ModelStep,
    Result,
    Tensors,
    in_own_dtype,
    points,
)
from profiler.kernels.serving.paged import PAGE
from profiler.kernels.serving.products import FLOATS, tolerance
from profiler.kernels.serving.providers import torch_and_inductor
from profiler.kernels.serving.rows import EXACT, streamed

ROPE_BASE = 10000.0
"""Base of the rotary frequencies (RoFormer, arXiv 2104.09864, section 3.2.2)."""
ROPE_SIZES = ("tokens", "heads", "kv_heads", "head_dim")
ROPE_CHECKS = points(ROPE_SIZES, (1, 4, 1, 64), (7, 6, 2, 32), (19, 3, 3, 80))
PAGED_SIZES = ("tokens", "kv_heads", "head_dim")
APPEND_SIZES = ("batch", "query", "capacity", "kv_heads", "head_dim")


def _rope_operands(d: Dims, dtype: str, draw: Draw) -> Tensors:
    kind, width = getattr(torch, dtype), d["head_dim"]
    return {
        "q": draw.normal(d["tokens"], d["heads"], width, dtype=kind),
        "k": draw.normal(d["tokens"], d["kv_heads"], width, dtype=kind),
        "angles": _angles(d, draw),
    }


def _angles(d: Dims, draw: Draw) -> Tensor:
    """Return cosines, then sines of each token's angles, float32 tokens × head_dim, as engines keep them for each
    position."""
    half = d["head_dim"] // 2
    frequencies = ROPE_BASE ** (-torch.arange(half, dtype=torch.float64) / half)
    positions = draw.integers(0, 4096, d["tokens"]).cpu()
    turns = positions[:, None] * frequencies
    return draw.placed(torch.cat((turns.cos(), turns.sin()), -1).float())


def _rotated(x: Tensor, angles: Tensor) -> Tensor:
    """Return each half of a head turned against the other (the form of NeoX and Llama checkpoints), in the angles'
    dtype."""
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
    rotated = step.attention if step.rotary else ()
    return points(ROPE_SIZES, *((step.tokens, a.heads, a.kv_heads, a.head_dim) for a in rotated))


ROPE = Family(
    name="rope",
    sizes=ROPE_SIZES,
    dtypes=FLOATS,
    operands=_rope_operands,
    outputs=("q_rotated", "k_rotated"),
    reference=lambda d, t: {f"{name}_rotated": _rotated(t[name].double(), t["angles"].double()) for name in ("q", "k")},
    returned=in_own_dtype("q_rotated", "k_rotated"),
    tolerance=lambda d, dtype: dict.fromkeys(("q_rotated", "k_rotated"), tolerance(dtype, 3, 2)),
    **streamed(lambda d, b: (b * _heads_of(d) + 4 * d["tokens"] * d["head_dim"], b * _heads_of(d)), "pointwise"),
    shapes=_rope_shapes,
    checks=ROPE_CHECKS,
    providers=torch_and_inductor(_rope),
)


def _caches(d: Dims, dtype: str, draw: Draw) -> Tensors:
    """Return a paged cache of four times as many slots as are written, and the slots of the new tokens in a random
    order."""
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


def _slot_operands(d: Dims, dtype: str, draw: Draw) -> Tensors:
    """Return caches of batch × capacity, of which each sequence has another length."""
    kind, new = getattr(torch, dtype), (d["batch"], d["query"], d["kv_heads"], d["head_dim"])
    size = (d["batch"], d["capacity"], d["kv_heads"], d["head_dim"])
    return {
        **{name: draw.normal(*new, dtype=kind) for name in ("k", "v")},
        **{name: draw.empty(*size, dtype=kind) for name in ("keys", "values")},
        "lengths": draw.integers(0, d["capacity"] - d["query"] + 1, d["batch"]),
    }


def _slots_of(d: Dims, t: Tensors) -> Tensor:
    """Return places of the new tokens: batch × query × kv_heads × head_dim."""
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


def _append_shapes(step: ModelStep) -> Iterable[dict[str, int]]:
    own = (step.workload.batch, step.workload.query_tokens, step.kv)
    return points(APPEND_SIZES, *((*own, a.kv_heads, a.head_dim) for a in step.attention))


KV_APPEND = Family(
    name="kv_append",
    sizes=APPEND_SIZES,
    dtypes=FLOATS,
    operands=_slot_operands,
    outputs=("keys", "values"),
    reference=_contiguous_reference,
    returned=in_own_dtype("keys", "values"),
    tolerance=lambda d, dtype: {"keys": EXACT, "values": EXACT},
    **streamed(lambda d, b: (b * _new_kv(d) + 8 * d["batch"], b * _new_kv(d)), "pointwise"),
    shapes=_append_shapes,
    checks=points(APPEND_SIZES, (1, 1, 9, 1, 64), (3, 2, 17, 2, 33), (5, 7, 40, 3, 16)),
    mutates=("keys", "values"),
    providers=torch_and_inductor(_append_contiguous),
)
KV_APPEND_PAGED = Family(
    name="kv_append_paged",
    sizes=PAGED_SIZES,
    dtypes=FLOATS,
    operands=_append_operands,
    outputs=("keys", "values"),
    reference=_append_reference,
    returned=in_own_dtype("keys", "values"),
    tolerance=lambda d, dtype: {"keys": EXACT, "values": EXACT},
    **streamed(lambda d, b: (2 * b * _kv_of(d) + 8 * d["tokens"], 2 * b * _kv_of(d)), "pointwise"),
    shapes=lambda step: points(PAGED_SIZES, *((step.tokens, a.kv_heads, a.head_dim) for a in step.attention)),
    checks=points(PAGED_SIZES, (1, 1, 64), (7, 2, 33), (37, 3, 16)),
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
    sizes=ROPE_SIZES,
    dtypes=FLOATS,
    operands=_rope_append_operands,
    outputs=("q_rotated", "keys", "values"),
    reference=_rope_append_reference,
    returned=in_own_dtype("q_rotated", "keys", "values"),
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

FAMILIES = (ROPE, ROPE_KV_APPEND, KV_APPEND, KV_APPEND_PAGED)
