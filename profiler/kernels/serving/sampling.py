"""The choice of the next token, and the products of many adapters (LoRA) in one batch.

Noise is an operand: a token is the largest of probability ÷ noise, for noise from the exponential distribution, as vLLM
samples without a wait for the host; so the result is certain and can be compared. In each row the winner is put 1 %
ahead, for rounding must not decide.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from profiler.kernels.serving.contract import (
    Dims,
    Draw,
    Family,
    ModelStep,
    Tensors,
    Tolerance,
    amount,
    in_own_dtype,
    points,
    widened,
)
from profiler.kernels.serving.products import FLOATS, tolerance
from profiler.kernels.serving.providers import eager, torch_and_inductor
from roofline.dtypes import ELEMENT_BYTES
from roofline.laws.work import Work

CHECKS = points(("rows", "vocabulary"), (1, 100), (5, 1013), (17, 333))
AHEAD = 1.01
"""By which factor the winner of a row leads."""
SURE = 1e-3
"""Share of the last token that is kept from which no rounding of the sums before it, in float32, leaves it out."""
FAR = 100.0
"""Added to all logits of a row, which leaves shares as they are: e¹⁰⁰ is beyond float32."""
CHOICE = {"token": Tolerance(0.0, 0.0, "operands are drawn so that the winner is certain")}
Kept = Callable[[Tensors, Tensor], Tensor]
"""The logits (in some precision) of the tokens that may be chosen, −inf for all others."""


def _scores(t: Tensors, kept: Kept, dtype: torch.dtype) -> Tensor:
    logits = kept(t, t["logits"].to(dtype) / t["temperature"].to(dtype)[:, None])
    return logits.softmax(-1) / t["noise"].to(dtype)


def _all(t: Tensors, logits: Tensor) -> Tensor:
    return logits


def _top_k(t: Tensors, logits: Tensor) -> Tensor:
    ranked = logits.sort(-1, descending=True).values
    return logits.masked_fill(logits < ranked.gather(-1, t["k"][:, None] - 1), float("-inf"))


def _top_p(t: Tensors, logits: Tensor) -> Tensor:
    """Keep, of the tokens by falling probability, those before which less than p has been reached."""
    ranked, order = logits.sort(-1, descending=True)
    shares = ranked.softmax(-1)
    before = shares.cumsum(-1) - shares
    cut = before >= t["p"][:, None].to(before.dtype)
    return torch.empty_like(logits).scatter(-1, order, ranked.masked_fill(cut, float("-inf")))


def _sampling_operands(kept: Kept) -> Callable[[Dims, str, Draw], Tensors]:
    def operands(d: Dims, dtype: str, draw: Draw) -> Tensors:
        rows, vocabulary = d["rows"], d["vocabulary"]
        spread = draw.normal(rows, vocabulary, dtype=torch.float32, scale=3.0)
        uniform = draw.uniform(1e-6, 1.0, rows, vocabulary, dtype=torch.float32)
        t = {
            "logits": spread,
            "temperature": draw.uniform(0.5, 1.5, rows, dtype=torch.float32),
            "noise": draw.placed(-uniform.log() + 1e-9),
        }
        if kept is _all:
            t["logits"][::2] += FAR
            t["noise"][0, -1] *= 1e-6  # so that the last token wins
        if kept is _top_k:
            t["k"] = draw.integers(1, min(64, vocabulary) + 1, rows)
        if kept is _top_p:
            t["p"] = draw.uniform(0.3, 0.95, rows, dtype=torch.float32)
        if kept is not _all:
            _put_edge_ahead(t, kept)
        winner = _scores(t, kept, torch.float64).argmax(-1, keepdim=True)
        t["noise"].scatter_(-1, winner, t["noise"].gather(-1, winner) / AHEAD)
        return t

    return operands


def _put_edge_ahead(t: Tensors, kept: Kept) -> None:
    """Make the last token that is kept the winner in even rows, and what would win in odd ones the first that is not:
    a limit that is off by one chooses another token. `p` is moved to the middle of the last token's share."""
    logits = t["logits"].double() / t["temperature"].double()[:, None]
    shares, order = logits.softmax(-1).sort(-1, descending=True)
    last = kept(t, logits).isfinite().sum(-1, keepdim=True) - 1
    share = shares.gather(-1, last)
    if "p" in t:
        t["p"].copy_((shares.cumsum(-1).gather(-1, last) - share / 2)[:, 0])
    odd = torch.arange(len(logits), device=logits.device)[:, None] % 2
    edge = order.gather(-1, (last + odd).clamp_max(logits.shape[-1] - 1))
    near = t["noise"].gather(-1, edge)
    t["noise"].scatter_(-1, edge, torch.where(share > SURE, near * 1e-6, near))


def _sampler(name: str, kept: Kept, extra_bytes: int) -> Family:
    return Family(
        name=name,
        sizes=("rows", "vocabulary"),
        dtypes=("float32",),
        operands=_sampling_operands(kept),
        outputs=("token",),
        reference=lambda d, t: {"token": _scores(t, kept, torch.float64).argmax(-1)},
        returned=lambda dtype: {"token": torch.int64},
        tolerance=lambda d, dtype: CHOICE,
        work=lambda d, dtype: amount(0, 8 * d["rows"] * d["vocabulary"] + (12 + extra_bytes) * d["rows"]),
        shapes=_sampled,
        checks=CHECKS,
        providers=torch_and_inductor(lambda d, t: _scores(t, kept, torch.float32).argmax(-1)),
        note="FlashInfer's samplers draw their own noise, so that their tokens cannot be compared",
    )


def _sampled(step: ModelStep) -> Iterable[dict[str, int]]:
    return ({"rows": step.workload.batch, "vocabulary": step.vocabulary},) if step.vocabulary else ()


def _greedy_operands(d: Dims, dtype: str, draw: Draw) -> Tensors:
    """Return logits with one largest, which is not the first of equal ones."""
    logits = draw.normal(d["rows"], d["vocabulary"], dtype=getattr(torch, dtype))
    winner = draw.integers(0, d["vocabulary"], d["rows"], 1)
    winner[0] = d["vocabulary"] - 1  # which a kernel that takes whole vectors leaves out
    return {"logits": logits.scatter_(-1, winner, logits.amax(-1, keepdim=True) + 1)}


GREEDY = Family(
    name="sample_greedy",
    sizes=("rows", "vocabulary"),
    dtypes=FLOATS,
    operands=_greedy_operands,
    outputs=("token",),
    reference=lambda d, t: {"token": t["logits"].double().argmax(-1)},
    returned=lambda dtype: {"token": torch.int64},
    tolerance=lambda d, dtype: CHOICE,
    work=lambda d, dtype: amount(0, ELEMENT_BYTES[dtype] * d["rows"] * d["vocabulary"] + 8 * d["rows"]),
    shapes=_sampled,
    checks=CHECKS,
    providers=torch_and_inductor(lambda d, t: t["logits"].argmax(-1)),
)

LORA_SIZES = ("rows", "width", "rank", "adapters")
RANK, ADAPTERS = 16, 8
"""Rank and number of a suite's adapters: PEFT's examples and S-LoRA's (arXiv 2311.03285) take ranks of 8 to 64."""


def _lora_operands(shrinks: bool) -> Callable[[Dims, str, Draw], Tensors]:
    def operands(d: Dims, dtype: str, draw: Draw) -> Tensors:
        kind = getattr(torch, dtype)
        n, k = (d["rank"], d["width"]) if shrinks else (d["width"], d["rank"])
        used = min(d["rows"], d["adapters"])
        weight = draw.empty(d["adapters"], n, k, dtype=kind)
        weight[:used] = draw.normal(used, n, k, dtype=kind, scale=k**-0.5)
        adapter = draw.placed(draw.order(d["rows"]) % d["adapters"])
        x = {"x": draw.normal(d["rows"], k, dtype=kind), "weight": weight, "adapter": adapter}
        return x if shrinks else x | {"base": draw.normal(d["rows"], n, dtype=kind)}

    return operands


def _adapted(x: Tensor, weight: Tensor, adapter: Tensor) -> Tensor:
    """Multiply each row with its adapter's matrix."""
    return torch.bmm(weight[adapter], x[:, :, None])[..., 0]


def _by_adapter(d: Dims, t: Tensors) -> Tensor:
    """Multiply the rows of each adapter in one product."""
    n = t["weight"].shape[1]
    result = t["x"].new_empty(d["rows"], n)
    for adapter in range(min(d["rows"], d["adapters"])):
        rows = t["adapter"] == adapter
        product = t["x"][rows] @ t["weight"][adapter].T
        result[rows] = product + t["base"][rows] if "base" in t else product
    return result


def _lora(d: Dims, t: Tensors) -> Tensor:
    product = _adapted(t["x"], t["weight"], t["adapter"])
    return t["base"] + product if "base" in t else product


def _lora_work(shrinks: bool) -> Callable[[Dims, str], Work]:
    def work(d: Dims, dtype: str) -> Work:
        used, matrix = min(d["rows"], d["adapters"]), d["rank"] * d["width"]
        rows = d["rows"] * (d["rank"] + d["width"] * (1 if shrinks else 2))
        return amount(2 * d["rows"] * matrix, ELEMENT_BYTES[dtype] * (used * matrix + rows) + 8 * d["rows"])

    return work


def _lora_shapes(step: ModelStep) -> Iterable[dict[str, int]]:
    yield {"rows": step.tokens, "width": step.hidden, "rank": RANK, "adapters": ADAPTERS}


def _lora_family(name: str, shrinks: bool) -> Family:
    return Family(
        name=name,
        sizes=LORA_SIZES,
        dtypes=FLOATS,
        operands=_lora_operands(shrinks),
        outputs=("y",),
        reference=lambda d, t: {"y": _lora(d, widened(t))},
        returned=in_own_dtype("y"),
        tolerance=lambda d, dtype: {"y": tolerance(dtype, 4, d["width"])},
        work=_lora_work(shrinks),
        shapes=_lora_shapes,
        checks=points(LORA_SIZES, (1, 64, 8, 3), (7, 33, 5, 3), (33, 100, 16, 40)),
        weights=("weight",),
        providers=(*torch_and_inductor(_lora), eager("torch by adapter", _by_adapter)),
    )


FAMILIES = (
    GREEDY,
    _sampler("sample_temperature", _all, 0),
    _sampler("sample_top_k", _top_k, 8),
    _sampler("sample_top_p", _top_p, 4),
    _lora_family("lora_shrink", shrinks=True),
    _lora_family("lora_expand", shrinks=False),
)
