"""What one call of `scaled_dot_product_attention` is: its dimensions, and the FLOPs of its unmasked pairs.

Example: ``describe_attention((q, k, v), {"is_causal": True}, workload, spec=None).dims["pairs"]``
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from profiler.models.operators import SOFTMAX_FLOPS
from profiler.models.opkinds import Description
from roofline.graph.op import AttentionModule, Kind, attention_pairs
from roofline.workload import Workload

NAME = "aten::scaled_dot_product_attention"
"""As the profiler names it."""


def operands(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor | None, bool]:
    """Query, key, value, mask and whether the causal flag is set, however the call passes them."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    named = {**dict(zip(names, args, strict=False)), **kwargs}
    return named["query"], named["key"], named["value"], named.get("attn_mask"), bool(named.get("is_causal"))


def describe_attention(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], workload: Workload, spec: AttentionModule | None
) -> Description:
    """Kind, dimensions and FLOPs: 2 for each unmasked pair, head and element of the head dimensions.

    Args: the call, of tensors (…, heads, tokens, head dim); `spec` is what the module around it says of itself.
    """
    query, key, value, mask, is_causal = operands(args, kwargs)
    batch, heads = math.prod(query.shape[:-3]), query.shape[-3] if query.dim() > 2 else 1
    pairs, causal, window = unmasked_pairs(query, key, mask, is_causal, workload, spec)
    head_dim, value_dim = query.shape[-1], value.shape[-1]
    dims = {
        "batch": batch,
        "heads": heads,
        "kv_heads": key.shape[-3] if key.dim() > 2 else 1,
        "query": query.shape[-2],
        "kv": key.shape[-2],
        "head_dim": head_dim,
        "value_dim": value_dim,
        "causal": int(causal),
        "window": window or 0,
        "pairs": pairs,
    }
    each = pairs * batch * heads
    return Description(Kind.ATTENTION, dims, 2.0 * each * (head_dim + value_dim), SOFTMAX_FLOPS * each)


def unmasked_pairs(
    query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool, workload: Workload, spec: AttentionModule | None
) -> tuple[int, bool, int | None]:
    """Pairs a head, whether they are causal, and their window.

    From the flag, from the mask itself where it has data, else from the module's word.
    """
    length, kv = query.shape[-2], key.shape[-2]
    if is_causal:
        return attention_pairs(length, 0, True, None), True, None
    if mask is None:
        return length * kv, False, None
    if mask.device.type != "meta" and mask.dtype == torch.bool:
        allowed = mask.expand(*query.shape[:-3], mask.shape[-3] if mask.dim() > 2 else 1, length, kv)
        seen = round(allowed.float().sum().item() / math.prod(allowed.shape[:-2]))
        return seen, spec.causal if spec else False, spec.window if spec else None
    if spec is not None and spec.causal:
        # `transformers` may fold the heads of a group into the queries, as in decode: all see the same keys.
        tokens = workload.query_tokens
        folded = length // tokens if length % tokens == 0 else 1
        pairs = attention_pairs(length // folded, workload.context_tokens, True, spec.window)
        return folded * pairs, True, spec.window
    return length * kv, False, None
