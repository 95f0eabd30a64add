"""Attention as servers run it: prefill after a cached prefix, and decode of one or several tokens from a cache.

Lengths differ from sequence to sequence by `spread` percent: work is counted at the lengths there are, not at the
longest. Beyond its length a sequence's cache is NaN, since a kernel must not read it. Layouts are those of
FlashAttention: tokens × heads × head_dim. `paged` has the kernels whose cache lies in pages.
"""

from collections.abc import Iterable, Iterator
from itertools import pairwise

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
    Tensors,
    Tolerance,
    Unsupported,
    amount,
    in_own_dtype,
    points,
)
from profiler.kernels.serving.products import EPSILON, FLOATS
from profiler.kernels.serving.providers import eager, in_library, onnx_kernel, torch_and_inductor
from roofline.dtypes import ELEMENT_BYTES
from roofline.graph.op import attention_pairs
from roofline.laws.work import Work

BLOCK = 128
"""Queries that a reference takes at once where there are more than that; fewer it takes one by one, so that it
multiplies just the pairs that are not masked."""
SIZES = ("batch", "query", "kv", "heads", "kv_heads", "head_dim", "window", "softcap", "spread")


def lengths(d: Dims) -> list[int]:
    """Return keys of each sequence, its new tokens' among them: from `kv` down to `spread` percent less, in equal
    steps."""
    batch, least = d["batch"], d["query"]
    fall = d["kv"] * d.get("spread", 0) / 100
    return [max(least, round(d["kv"] - fall * i / max(1, batch - 1))) for i in range(batch)]


def pairs(d: Dims) -> int:
    """Return unmasked (query, key) pairs of one head, of all sequences."""
    query, window = d["query"], d.get("window") or None
    return sum(attention_pairs(query, length - query, True, window) for length in lengths(d))


def keys_read(d: Dims) -> int:
    """Return keys that any query sees, of all sequences."""
    limit = (d.get("window") or d["kv"]) + d["query"] - 1
    return sum(min(length, limit) for length in lengths(d))


def first_key(d: Dims, length: int) -> int:
    """Return the first key that any query of a sequence sees."""
    return max(0, length - d["query"] - d["window"] + 1) if d.get("window") else 0


def attention_tolerance(d: Dims, dtype: str, extra: float = 0.0) -> dict[str, Tolerance]:
    """Return limits for roundings of probabilities and results; a mean of values of deviation 1 is at most a few."""
    eps = EPSILON[dtype] if dtype in EPSILON else EPSILON["bfloat16"]
    limit = 4 * eps + extra + 1e-5
    return {"y": Tolerance(limit, 2 * eps + 1e-5, f"scores, probabilities and result rounded to {dtype}; sums in it")}


def scores_of(d: Dims, q: Tensor, k: Tensor, scale: float) -> Tensor:
    """Return scores of heads × queries × keys, bent where there is a softcap."""
    scores = (q @ k.transpose(-1, -2)) * scale
    return scores if not d.get("softcap") else d["softcap"] * torch.tanh(scores / d["softcap"])


def sequence(d: Dims, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Return causal attention of one sequence in its own precision: query × heads × width, keys × kv_heads × width."""
    query, length, window = len(q), len(k), d.get("window") or len(k)
    groups = q.shape[1] // k.shape[1]
    step = 1 if query <= BLOCK else BLOCK
    made = []
    for start in range(0, query, step):
        rows = q[start : start + step]
        last = length - query + start + len(rows)  # keys that the last of these queries sees
        first = max(0, length - query + start + 1 - window)
        keys, values = (x[first:last].transpose(0, 1) for x in (k, v))
        grouped = rows.transpose(0, 1).reshape(k.shape[1], groups * len(rows), -1)
        scores = scores_of(d, grouped, keys, scale).view(k.shape[1], groups, len(rows), -1)
        if step > 1:
            places = torch.arange(first, last, device=q.device)
            own = torch.arange(length - query + start, last, device=q.device)[:, None]
            scores = scores.masked_fill((places > own) | (places <= own - window), float("-inf"))
        probabilities = scores.softmax(-1).view(k.shape[1], groups * len(rows), -1)
        made.append((probabilities @ values).view(k.shape[1] * groups, len(rows), -1).transpose(0, 1))
    return torch.cat(made)


def wide(x: Tensor, d: Dims) -> Tensor:
    """Return the tensor in float64, or in float32 where there are so many pairs that float64 would take minutes."""
    return x.double() if pairs(d) * d["heads"] < 1e8 else x.float()


def exact(d: Dims, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Return `sequence` in the precision of a reference."""
    return sequence(d, wide(q, d), wide(k, d), wide(v, d), scale)


def attention_kind(d: Dims, dtype: str) -> tuple[str, dict[str, float]] | None:
    """Return the law's row where all sequences are as long, and nothing bends the scores."""
    if d.get("spread") or d.get("softcap") or dtype not in ELEMENT_BYTES:
        return None
    sizes = {name: float(d[name]) for name in ("batch", "heads", "kv_heads", "head_dim", "window", "kv")}
    sizes["kv_bytes"] = ELEMENT_BYTES[dtype]
    if d["query"] == 1:
        return "decode_attention", sizes
    return "prefill_attention", sizes | {"query": float(d["query"]), "context": float(d["kv"] - d["query"])}


def attention_work(d: Dims, dtype: str, tables: float = 0.0) -> Work:
    """Return FLOPs of the unmasked pairs, and bytes of queries, results, visible keys, lengths and `tables`."""
    width, cached = (2, 1) if dtype == "float8_e4m3fn" else (ELEMENT_BYTES[dtype],) * 2
    own = 2 * width * d["batch"] * d["query"] * d["heads"] * d["head_dim"]
    cache = 2 * cached * keys_read(d) * d["kv_heads"] * d["head_dim"]
    return amount(4 * d["heads"] * d["head_dim"] * pairs(d), own + cache + 8 * d["batch"] + tables)


def _heads(step: ModelStep) -> Iterator[dict[str, int]]:
    for a in step.attention:
        sizes = {"batch": step.workload.batch, "query": step.workload.query_tokens, "kv": step.kv}
        heads = {"heads": a.heads, "kv_heads": a.kv_heads, "head_dim": a.head_dim}
        yield {**sizes, **heads, "window": a.window if a.window < step.kv else 0, "softcap": a.softcap, "spread": 0}


MOST_VERIFIED = 32
"""Most new tokens of a sequence for which a kernel of decode is taken: more drafted tokens than any engine verifies."""


def decodes(step: ModelStep) -> Iterable[dict[str, int]]:
    """Return the attention of a model's step where it has few new tokens after a context."""
    short = step.workload.context_tokens and step.workload.query_tokens <= MOST_VERIFIED
    return _heads(step) if short else ()


def _prefills(step: ModelStep) -> Iterable[dict[str, int]]:
    return () if step.workload.context_tokens and step.workload.query_tokens <= MOST_VERIFIED else _heads(step)


DECODE_CHECKS = points(
    SIZES,
    (1, 1, 1, 4, 1, 64, 0, 0, 0),
    (3, 1, 67, 6, 2, 32, 0, 0, 60),
    (4, 1, 70, 3, 3, 48, 9, 0, 50),
    (2, 5, 41, 4, 2, 64, 0, 0, 40),
    (3, 3, 50, 8, 2, 32, 20, 2, 30),  # scores have a deviation of 1: 2 bends them
)
PREFILL_CHECKS = points(
    SIZES,
    (1, 1, 1, 4, 1, 64, 0, 0, 0),
    (2, 33, 33, 6, 2, 32, 0, 0, 0),
    (3, 17, 70, 4, 2, 48, 0, 0, 50),
    (2, 40, 40, 3, 3, 32, 9, 0, 0),
    (2, 21, 50, 8, 2, 64, 12, 2, 30),
)


def _contiguous(d: Dims, dtype: str, draw: Draw) -> Tensors:
    """Return queries and caches: batch × query × heads × head_dim, batch × kv × kv_heads × head_dim, and lengths."""
    kind, width = getattr(torch, dtype), d["head_dim"]
    operands = {"q": draw.normal(d["batch"], d["query"], d["heads"], width, dtype=kind)}
    for name in ("keys", "values"):
        cache = draw.normal(d["batch"], d["kv"], d["kv_heads"], width, dtype=kind)
        for i, length in enumerate(lengths(d)):
            cache[i, length:] = cache[i, : first_key(d, length)] = float("nan")
        operands[name] = cache
    return operands | {"lengths": draw.placed(torch.tensor(lengths(d)))}


def _contiguous_reference(d: Dims, t: Tensors) -> Tensors:
    scale = d["head_dim"] ** -0.5
    return {
        "y": torch.stack(
            [
                exact(d, t["q"][i], t["keys"][i, :length], t["values"][i, :length], scale)
                for i, length in enumerate(lengths(d))
            ]
        )
    }


def visible(d: Dims, t: Tensors) -> Tensor:
    """Return whether a query sees a key: batch × 1 × query × kv."""
    device = t["lengths"].device
    own = t["lengths"][:, None] - d["query"] + torch.arange(d["query"], device=device)
    places = torch.arange(d["kv"], device=device)
    seen = places <= own[..., None]
    return (seen & (places > own[..., None] - d["window"]) if d["window"] else seen)[:, None]


def attend(d: Dims, q: Tensor, keys: Tensor, values: Tensor, seen: Tensor) -> Tensor:
    """Return attention of a padded batch: keys that no query sees are set to 0, for 0 · NaN is NaN."""
    used = seen.any(-2).transpose(1, 2)[..., None]
    q, k, v = (x.transpose(1, 2) for x in (q, keys.where(used, 0.0), values.where(used, 0.0)))
    if not d["softcap"]:
        grouped = d["heads"] != d["kv_heads"]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=grouped).transpose(1, 2)
    k, v = (x.repeat_interleave(d["heads"] // d["kv_heads"], 1) for x in (k, v))
    scores = scores_of(d, q.float(), k.float(), d["head_dim"] ** -0.5).masked_fill(~seen, float("-inf"))
    return (scores.softmax(-1).to(v.dtype) @ v).transpose(1, 2)


def _decode(d: Dims, t: Tensors) -> Tensor:
    return attend(d, t["q"], t["keys"], t["values"], visible(d, t))


def _by_sequence(d: Dims, t: Tensors) -> Tensor:
    """Attend in each sequence by itself, at its own length, so that nothing masked is read."""
    scale = d["head_dim"] ** -0.5
    ends = t["lengths"].tolist()
    return torch.stack(
        [sequence(d, t["q"][i], t["keys"][i, :end], t["values"][i, :end], scale) for i, end in enumerate(ends)]
    )


def _flash(d: Dims, dtype: str, t: Tensors) -> Kernel:
    """Bind torch's flash kernel for equal lengths without a mask: the whole cache, or a whole prompt."""
    if d["spread"] or d["softcap"] or d["window"] or d["query"] not in (1, d["kv"]):
        raise Unsupported("the flash kernel of torch has no lengths, softcap, window or prefix without a mask")
    causal, grouped = d["query"] > 1, d["heads"] != d["kv_heads"]

    def run(t: Tensors) -> Tensor:
        q, k, v = (t[name].transpose(1, 2) for name in ("q", "keys", "values"))
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=grouped).transpose(1, 2)

    return run


def _flash_attn(lib: object, d: Dims, dtype: str, t: Tensors) -> Kernel:
    attend = lib.flash_attn_with_kvcache  # type: ignore[attr-defined]
    window = (d["window"] - 1 if d["window"] else -1, 0 if d["window"] else -1)
    used = t["lengths"].int()
    return lambda t: attend(
        t["q"], t["keys"], t["values"], cache_seqlens=used, causal=True, window_size=window, softcap=d["softcap"]
    )


def _group_query(d: Dims, dtype: str, t: Tensors) -> Kernel:
    """Bind onnxruntime's GroupQueryAttention of one new token, whose key it appends itself.

    It keeps caches as batch × kv_heads × kv × head_dim: its time includes the copy of ours into that order.
    """
    if d["query"] > 1 or d["spread"]:
        raise Unsupported("onnxruntime appends new keys itself: here one token of sequences of equal lengths")
    if d["head_dim"] % 8 or d["kv"] < 2:
        raise Unsupported("GroupQueryAttention needs a head_dim that 8 divides and a cached key")
    fixed = {
        "seqlens_k": torch.full((d["batch"],), d["kv"] - 1, dtype=torch.int32),
        "total": torch.tensor([d["kv"]], dtype=torch.int32),
    }

    def feeds(t: Tensors) -> Tensors:
        given = {"query": t["q"].flatten(2)}
        for name in ("keys", "values"):
            given[name[:-1]] = t[name][:, -1:].flatten(2)
            past = t[name][:, :-1].transpose(1, 2).contiguous()
            given[f"past_{name}"] = past.nan_to_num_(0.0) if d["window"] else past  # before the window
        order = ("query", "key", "value", "past_keys", "past_values")
        return {name: given[name] for name in order} | fixed

    whole = torch.empty(d["batch"], d["kv_heads"], d["kv"], d["head_dim"])
    run = onnx_kernel(
        "GroupQueryAttention",
        {
            "num_heads": d["heads"],
            "kv_num_heads": d["kv_heads"],
            "softcap": float(d["softcap"]),
            "local_window_size": d["window"] or -1,
        },
        feeds(t),
        {},
        {"y": t["q"].flatten(2), "present_k": whole, "present_v": whole},
    )
    return lambda t: run(feeds(t))[0].view(t["q"].shape)


TORCH, INDUCTOR = torch_and_inductor(_decode)
BY_SEQUENCE = eager("torch by sequence", _by_sequence)
FLASH = Provider("torch flash", "torch", _flash)
FLASH_ATTN = in_library("flash-attn", "flash_attn", _flash_attn, dtypes=FLOATS[1:])


def _attention(name: str, shapes: object, checks: tuple[dict[str, int], ...], *own: Provider) -> Family:
    return Family(
        name=name,
        sizes=SIZES,
        dtypes=FLOATS,
        operands=_contiguous,
        outputs=("y",),
        reference=_contiguous_reference,
        returned=in_own_dtype("y"),
        tolerance=attention_tolerance,
        work=attention_work,
        kind=attention_kind,
        shapes=shapes,  # type: ignore[arg-type]
        checks=checks,
        providers=(TORCH, INDUCTOR, BY_SEQUENCE, FLASH, *own, FLASH_ATTN),
    )


PREFILL = _attention("prefill_attention", _prefills, PREFILL_CHECKS)
DECODE = _attention(
    "decode_attention",
    decodes,
    (*DECODE_CHECKS, *points(SIZES, (2, 1, 37, 4, 2, 64, 0, 0, 0))),
    Provider("onnxruntime", "onnxruntime", _group_query, ("onnx", "onnxruntime"), ("cpu",), ("float32",)),
)


def _varlen(d: Dims, dtype: str, draw: Draw) -> Tensors:
    """Return prompts one after another without padding: tokens × heads × head_dim, and where each begins."""
    kind, counts = getattr(torch, dtype), lengths(d)
    tokens = sum(counts)
    return {
        "q": draw.normal(tokens, d["heads"], d["head_dim"], dtype=kind),
        "k": draw.normal(tokens, d["kv_heads"], d["head_dim"], dtype=kind),
        "v": draw.normal(tokens, d["kv_heads"], d["head_dim"], dtype=kind),
        "starts": draw.placed(torch.tensor([0, *counts]).cumsum(0).int()),
    }


def _varlen_reference(d: Dims, t: Tensors) -> Tensors:
    scale, ends = d["head_dim"] ** -0.5, t["starts"].tolist()
    parts = [slice(a, b) for a, b in pairwise(ends)]
    rows = [exact(d, t["q"][part], t["k"][part], t["v"][part], scale) for part in parts]
    return {"y": torch.cat(rows)}


def _varlen_each(d: Dims, t: Tensors) -> Tensor:
    """Call torch's attention for each prompt."""
    made, ends = [], t["starts"].tolist()
    for start, end in pairwise(ends):
        q, k, v = (t[name][start:end].transpose(0, 1)[None] for name in ("q", "k", "v"))
        grouped = d["heads"] != d["kv_heads"]
        made.append(F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)[0].transpose(0, 1))
    return torch.cat(made)


def _flash_varlen(lib: object, d: Dims, dtype: str, t: Tensors) -> Kernel:
    attend = lib.flash_attn_varlen_func  # type: ignore[attr-defined]
    return lambda t: attend(t["q"], t["k"], t["v"], t["starts"], t["starts"], d["kv"], d["kv"], causal=True)


def _varlen_work(d: Dims, dtype: str) -> Work:
    tokens = sum(lengths(d))
    moved = 2 * ELEMENT_BYTES[dtype] * tokens * (d["heads"] + d["kv_heads"]) * d["head_dim"] + 4 * (d["batch"] + 1)
    flops = 4 * d["heads"] * d["head_dim"] * sum(length * (length + 1) // 2 for length in lengths(d))
    return amount(flops, moved)


VARLEN_SIZES = ("batch", "kv", "heads", "kv_heads", "head_dim", "spread")


def _varlen_shapes(step: ModelStep) -> Iterable[dict[str, int]]:
    for s in _heads(step) if step.workload.phase == "prefill" and step.workload.batch > 1 else ():
        if not s["window"] and not s["softcap"]:
            yield {name: s[name] for name in VARLEN_SIZES} | {"spread": 50}


PREFILL_VARLEN = Family(
    name="prefill_attention_varlen",
    sizes=VARLEN_SIZES,
    dtypes=FLOATS,
    operands=lambda d, dtype, draw: _varlen(d | {"query": 1}, dtype, draw),  # type: ignore[operator]
    outputs=("y",),
    reference=lambda d, t: _varlen_reference({**d, "query": 1}, t),
    returned=in_own_dtype("y"),
    tolerance=attention_tolerance,
    work=lambda d, dtype: _varlen_work({**d, "query": 1}, dtype),
    shapes=_varlen_shapes,
    checks=points(VARLEN_SIZES, (1, 1, 4, 1, 64, 0), (3, 33, 6, 2, 32, 90), (2, 50, 3, 3, 48, 50)),
    providers=(
        eager("torch by sequence", _varlen_each),
        in_library("flash-attn", "flash_attn", _flash_varlen, dtypes=FLOATS[1:]),
    ),
    note="torch.nn.attention.varlen does not run on a CPU",
)


FAMILIES = (PREFILL, PREFILL_VARLEN, DECODE)
