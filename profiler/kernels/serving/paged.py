"""Decode attention from a cache in pages: grouped queries in each format of the cache, and multi-head latent attention.

Pages of tokens × kv_heads × head_dim lie as in vLLM. Those of a sequence are in a random order; what lies beyond its
length is NaN, since a kernel must not read it.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from profiler.kernels.serving.attention import (
    DECODE_CHECKS,
    SIZES,
    attend,
    attention_kind,
    attention_tolerance,
    attention_work,
    decodes,
    exact,
    first_key,
    lengths,
    pairs,
    sequence,
    visible,
    wide,
)
from profiler.kernels.serving.contract import (
    Dims,
    Draw,
    Family,
    Kernel,
    ModelStep,
    Result,
    Tensors,
    Unsupported,
    amount,
    in_own_dtype,
    points,
)
from profiler.kernels.serving.products import FLOATS
from profiler.kernels.serving.providers import eager, in_library, torch_and_inductor
from roofline.dtypes import ELEMENT_BYTES
from roofline.laws.work import Work

PAGE, MLA_PAGE = 16, 64
"""Tokens of a page of the cache: vLLM's default, and what FlashMLA needs."""


def _tables(d: Dims, draw: Draw, page: int = PAGE) -> tuple[Tensor, Tensor, int]:
    """Return pages of each sequence in a random order (batch × most pages, unused ones far outside), and their
    number."""
    counts = [-(-length // page) for length in lengths(d)]
    order = draw.order(sum(counts) + 1).int()
    table, start = torch.full((d["batch"], max(counts)), -1, dtype=torch.int32), 0
    for i, count in enumerate(counts):
        table[i, :count] = order[start : start + count].cpu()
        start += count
    return draw.placed(table), draw.placed(torch.tensor(lengths(d)).int()), sum(counts) + 1


def _paged(d: Dims, dtype: str, draw: Draw) -> Tensors:
    """Return the caches of `_contiguous` in pages of pages × PAGE × kv_heads × head_dim; all else in them is NaN."""
    stored = torch.bfloat16 if dtype == "float8_e4m3fn" else getattr(torch, dtype)
    table, used, pages = _tables(d, draw)
    operands = {"q": draw.normal(d["batch"], d["query"], d["heads"], d["head_dim"], dtype=stored)}
    for name in ("keys", "values"):
        cache = draw.empty(pages, PAGE, d["kv_heads"], d["head_dim"], dtype=getattr(torch, dtype))
        flat = cache.view(-1, d["kv_heads"], d["head_dim"])
        for i, length in enumerate(lengths(d)):
            first = first_key(d, length)
            rows = draw.normal(length - first, d["kv_heads"], d["head_dim"], dtype=getattr(torch, dtype))
            bits = torch.uint8 if dtype == "float8_e4m3fn" else rows.dtype
            flat.view(bits)[slots(table[i], first, length)] = rows.view(bits)
        operands[name] = cache
    return operands | {"table": table, "lengths": used}


def slots(pages: Tensor, first: int, last: int, page: int = PAGE) -> Tensor:
    """Return places in the flattened cache of a sequence's tokens."""
    places = torch.arange(first, last, device=pages.device)
    return pages[places // page].long() * page + places % page


def _paged_reference(d: Dims, t: Tensors) -> Tensors:
    made = []
    for i, length in enumerate(lengths(d)):
        at = slots(t["table"][i], 0, length)
        k, v = (t[name].to(t["q"].dtype).flatten(0, 1)[at] for name in ("keys", "values"))
        made.append(exact(d, t["q"][i], k, v, d["head_dim"] ** -0.5))
    return {"y": torch.stack(made)}


def _gathered(d: Dims, t: Tensors) -> Tensor:
    """Return the pages of each sequence gathered, then attention of the padded batch."""
    pages = t["table"].clamp_min(0)
    k, v = (t[name].to(t["q"].dtype)[pages].flatten(1, 2) for name in ("keys", "values"))
    seen = visible({**d, "kv": k.shape[1]}, t)
    return attend(d, t["q"], k, v, seen)


def _paged_by_sequence(d: Dims, t: Tensors) -> Tensor:
    made = []
    for i, length in enumerate(t["lengths"].tolist()):
        at = slots(t["table"][i], first_key(d, length), length)
        k, v = (t[name].flatten(0, 1)[at].to(t["q"].dtype) for name in ("keys", "values"))
        made.append(sequence(d, t["q"][i], k, v, d["head_dim"] ** -0.5))
    return torch.stack(made)


def _flashinfer_decode(lib: object, d: Dims, dtype: str, t: Tensors) -> Kernel:
    """Bind FlashInfer's wrapper, planned once for a set of lengths as an engine does once a step for all layers."""
    device, counts = t["q"].device, [-(-length // PAGE) for length in lengths(d)]
    ends = torch.tensor([0, *counts], dtype=torch.int32).cumsum(0).int().to(device)
    indices = torch.cat([t["table"][i, :count] for i, count in enumerate(counts)])
    last = ((t["lengths"] - 1) % PAGE + 1).int()
    workspace = torch.empty(128 << 20, dtype=torch.uint8, device=device)
    wrapper = lib.BatchPrefillWithPagedKVCacheWrapper(workspace, "NHD")  # type: ignore[attr-defined]
    starts = torch.arange(d["batch"] + 1, dtype=torch.int32, device=device) * d["query"]
    wrapper.plan(
        starts,
        ends,
        indices,
        last,
        d["heads"],
        d["kv_heads"],
        d["head_dim"],
        PAGE,
        causal=True,
        window_left=d["window"] - 1,
        logits_soft_cap=float(d["softcap"]) or None,
        q_data_type=t["q"].dtype,
        kv_data_type=t["keys"].dtype,
    )
    return lambda t: wrapper.run(t["q"].flatten(0, 1), (t["keys"], t["values"])).view(t["q"].shape)


def _paged_work(d: Dims, dtype: str) -> Work:
    used = sum(-(-length // PAGE) - first_key(d, length) // PAGE for length in lengths(d))
    return attention_work(d, dtype, tables=4 * used - 4 * d["batch"])  # lengths are int32 here


def _in_pages(name: str, dtypes: tuple[str, ...]) -> Family:
    return Family(
        name=name,
        sizes=SIZES,
        dtypes=dtypes,
        operands=_paged,
        outputs=("y",),
        reference=_paged_reference,
        returned=lambda dtype: {"y": torch.bfloat16 if dtype == "float8_e4m3fn" else getattr(torch, dtype)},
        tolerance=attention_tolerance,
        work=_paged_work,
        kind=attention_kind,
        shapes=decodes,
        checks=DECODE_CHECKS,
        providers=(
            *torch_and_inductor(_gathered),
            eager("torch by sequence", _paged_by_sequence),
            in_library("flashinfer-python", "flashinfer", _flashinfer_decode, name="flashinfer", dtypes=dtypes[-2:]),
        ),
        note="flash-attn has pages of multiples of 256 tokens",
    )


DECODE_PAGED = _in_pages("decode_attention_paged", FLOATS)
DECODE_FP8 = _in_pages("decode_attention_paged_fp8", ("float8_e4m3fn",))

MLA_SIZES = ("batch", "query", "kv", "heads", "latent", "rotated", "spread")
MLA_HEAD = 192
"""Width of a head before its keys are absorbed, which scales scores: 128 + 64 (DeepSeek-V3, arXiv 2412.19437, 4.2)."""


def _mla_operands(d: Dims, dtype: str, draw: Draw) -> Tensors:
    """Return absorbed queries, and pages of latents, each beside its rotated key: pages × MLA_PAGE × their width."""
    kind, width = getattr(torch, dtype), d["latent"] + d["rotated"]
    table, used, pages = _tables(d, draw, MLA_PAGE)
    cache = draw.empty(pages, MLA_PAGE, width, dtype=kind)
    for i, length in enumerate(lengths(d)):
        cache.view(-1, width)[slots(table[i], 0, length, MLA_PAGE)] = draw.normal(length, width, dtype=kind)
    scale = (MLA_HEAD / width) ** 0.5  # scores of a deviation of 1
    q = draw.normal(d["batch"], d["query"], d["heads"], width, dtype=kind, scale=scale)
    return {"q": q, "cache": cache, "table": table, "lengths": used}


def _mla_each(d: Dims, t: Tensors, in_wide: bool) -> Tensor:
    made = []
    for i, length in enumerate(lengths(d)):
        rows = t["cache"].flatten(0, 1)[slots(t["table"][i], 0, length, MLA_PAGE)][:, None]
        q, k = (wide(x, d) if in_wide else x for x in (t["q"][i], rows))
        made.append(sequence({}, q, k, k[..., : d["latent"]], MLA_HEAD**-0.5))
    return torch.stack(made)


def _mla(d: Dims, t: Tensors) -> Result:
    rows = t["cache"][t["table"].clamp_min(0)].flatten(1, 2)
    seen = visible({**d, "kv": rows.shape[1], "window": 0}, t)
    rows = rows.where(seen.any(-2).transpose(1, 2), 0.0)[:, None]
    q = t["q"].transpose(1, 2).flatten(1, 2)[:, None]  # all heads share a key: rows of one product
    mask = seen.expand(-1, d["heads"], -1, -1).flatten(1, 2)[:, None]
    scores = ((q @ rows.transpose(-1, -2)).float() * MLA_HEAD**-0.5).masked_fill(~mask, float("-inf"))
    y = scores.softmax(-1).to(rows.dtype) @ rows[..., : d["latent"]]
    return y.view(d["batch"], d["heads"], d["query"], -1).transpose(1, 2)


def _flash_mla(lib: object, d: Dims, dtype: str, t: Tensors) -> Kernel:
    """Bind FlashMLA's dense kernel; its first call plans the split for these lengths."""
    if (d["latent"], d["rotated"]) != (512, 64):
        raise Unsupported(f"flash_mla has latents of 512 + 64, not of {d['latent']} + {d['rotated']}")
    attend = lib.flash_mla_with_kvcache  # type: ignore[attr-defined]
    plan, table = lib.get_mla_metadata()[0], t["table"].clamp_min(0)  # type: ignore[attr-defined]
    options = {"softmax_scale": MLA_HEAD**-0.5, "causal": True, "use_legacy": True}
    return lambda t: attend(t["q"], t["cache"][:, :, None], table, t["lengths"], 512, plan, **options)[0]


def _mla_work(d: Dims, dtype: str) -> Work:
    width, size = d["latent"] + d["rotated"], ELEMENT_BYTES[dtype]
    own = size * d["batch"] * d["query"] * d["heads"] * (width + d["latent"])
    pages = sum(-(-length // MLA_PAGE) for length in lengths(d))
    cache = size * sum(lengths(d)) * width + 4 * pages + 4 * d["batch"]
    return amount(2 * d["heads"] * (width + d["latent"]) * pairs(d), own + cache)


def _mla_shapes(step: ModelStep) -> Iterable[dict[str, int]]:
    for heads, latent, rotated in step.latent if decodes(step) else ():
        sizes = {"batch": step.workload.batch, "query": step.workload.query_tokens, "kv": step.kv}
        yield {**sizes, "heads": heads, "latent": latent, "rotated": rotated, "spread": 0}


DECODE_MLA = Family(
    name="decode_mla_paged",
    sizes=MLA_SIZES,
    dtypes=FLOATS,
    operands=_mla_operands,
    outputs=("y",),
    reference=lambda d, t: {"y": _mla_each(d, t, in_wide=True)},
    returned=in_own_dtype("y"),
    tolerance=attention_tolerance,
    work=_mla_work,
    shapes=_mla_shapes,
    checks=points(MLA_SIZES, (1, 1, 1, 4, 64, 16, 0), (3, 1, 67, 6, 48, 16, 60), (2, 3, 41, 5, 64, 32, 40)),
    providers=(
        *torch_and_inductor(_mla),
        eager("torch by sequence", lambda d, t: _mla_each(d, t, in_wide=False)),
        in_library("sgl-flash-mla", "flash_mla", _flash_mla, dtypes=("bfloat16",)),
    ),
)

FAMILIES = (DECODE_PAGED, DECODE_FP8, DECODE_MLA)
