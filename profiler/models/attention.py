"""Work and memory of a call of `scaled_dot_product_attention`, and the attention modules of a model.

FLOPs count unmasked pairs of query and key. These follow from the causal flag, from the mask where it has data, or else
from the attributes of the module around the call.
"""

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch
import torch.nn.attention.flex_attention as flex
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.attention.bias import CausalBias, CausalVariant
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from profiler.models.aten import FLOPS_PER_ELEMENT, Work, name_of, tensors
from profiler.models.meta import LARGEST, known
from roofline.graph.op import AttentionModule, Kind, attention_pairs
from roofline.workload import Workload

NAME = "aten::scaled_dot_product_attention"
"""The profiler's name of the operation."""


CALLS = frozenset({
    "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
})  # fmt: skip
"""Operators that `scaled_dot_product_attention` chooses from, and that a module may call itself."""

PACKED_CALLS = frozenset({"_flash_attention_forward", "_efficient_attention_forward", "_cudnn_attention_forward"})
"""Operators whose tensors are (batch, tokens, heads, head dim), or packed (tokens, heads, head dim)."""


LOWER_RIGHT = int(CausalVariant.LOWER_RIGHT)
LOWER_RIGHT_CALLS = frozenset({"_scaled_dot_product_flash_attention", "_flash_attention_forward"})
"""Operators whose causal flag puts the last query at the last key (`torch/nn/attention/bias.py`), not the first at the
first."""


def without_bias(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call of `scaled_dot_product_attention`, a causal bias among them as a flag."""
    query, key, value, mask, _ = operands(args, kwargs)
    if not isinstance(mask, CausalBias):
        return args, dict(kwargs)
    rest = {name: value for name, value in kwargs.items() if name not in OPERANDS}
    given = {"query": query, "key": key, "value": value, "attn_mask": None, "is_causal": True}
    return (), rest | given | {"lower_right": mask.variant == CausalVariant.LOWER_RIGHT}


@contextmanager
def seen_by_modes() -> Iterator[None]:
    """Let the modes that record see every attention of torch.

    Causal biases, which are tensors without elements, are made outside of the modes; `flex_attention` takes tensors on
    `meta`, and calls its operator as it is instead of compiling it.
    """

    def make(cls: type[CausalBias], *args: Any) -> CausalBias:
        with _disable_current_modes():
            return Tensor.__new__(cls)

    before = flex._validate_device, flex._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG
    CausalBias.__new__ = make  # type: ignore[method-assign, assignment]
    flex._validate_device, flex._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG = (lambda *tensors: None), True
    try:
        with warnings.catch_warnings(action="ignore"):  # that it is not compiled
            yield
    finally:
        del CausalBias.__new__
        flex._validate_device, flex._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG = before


def flex_attention(
    query: Tensor, key: Tensor, value: Tensor, block_mask: tuple[Any, ...], workload: Workload
) -> tuple[Work, tuple[Tensor, Tensor, Tensor]]:
    """Work and results of the operator behind `flex_attention`: (out, log-sum-exp, largest scores).

    Pairs are those that the mask function of its last argument lets the first head of the first sequence see; a
    function that cannot be asked for all pairs at once lets it see all.
    """
    length, kv = query.shape[-2], key.shape[-2]
    pairs = length * kv
    if pairs <= LARGEST:
        with _disable_current_modes(), suppress(Exception):  # a user's function may raise anything
            first = torch.zeros((), dtype=torch.int64)
            seen = block_mask[-1](first, first, torch.arange(length)[:, None], torch.arange(kv)[None, :])
            pairs = int(seen.expand(length, kv).sum())
    whole = work_of_attention((query, key, value), {}, workload, None)
    share = pairs / whole.dims["pairs"]
    work = replace(
        whole,
        dims=whole.dims | {"pairs": pairs},
        matrix_flops=whole.matrix_flops * share,
        vector_flops=whole.vector_flops * share,
    )
    shape = query.shape[:-1]
    sums = (query.new_empty(shape, dtype=torch.float32) for _ in range(2))
    return work, (query.new_empty((*shape, value.shape[-1])), *sums)  # type: ignore[return-value]


def named_operands(func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of an operator of `CALLS` or `PACKED_CALLS` as those of `scaled_dot_product_attention`.

    Packed sequences count as equally long: each query of one sees the keys of the longest.
    """
    given = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)} | dict(kwargs)
    named = {name: given[name] for name in ("query", "key", "value")}
    named["attn_mask"] = given.get("attn_mask", given.get("attn_bias", given.get("bias")))
    named["is_causal"] = bool(given.get("is_causal", given.get("custom_mask_type")))
    if named["is_causal"] and (given.get("custom_mask_type") == LOWER_RIGHT or name_of(func) in LOWER_RIGHT_CALLS):
        named["lower_right"] = True
    if name_of(func) in CALLS:
        return named
    for name in ("query", "key", "value"):
        tensor, longest = named[name], given.get("max_q" if name == "query" else "max_k", given.get("max_seqlen_q"))
        if tensor.dim() == 3 and longest and tensor.shape[0] % longest == 0:
            tensor = tensor.unflatten(0, (-1, longest))
        named[name] = tensor.transpose(-2, -3)
    return named


OPERANDS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
"""Positional arguments of `scaled_dot_product_attention`."""


def operands(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor | None, bool]:
    """Query, key, value, mask and whether the causal flag is set, however the call passes them."""
    named = {**dict(zip(OPERANDS, args, strict=False)), **kwargs}
    return named["query"], named["key"], named["value"], named.get("attn_mask"), bool(named.get("is_causal"))


def work_of_attention(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], workload: Workload, spec: AttentionModule | None
) -> Work:
    """Kind, dimensions and FLOPs: 2 for each unmasked pair, head and element of the head dimensions.

    The tensors are (…, heads, tokens, head dim); `spec` describes the attention module around the call.
    """
    query, key, value, mask, is_causal = operands(args, kwargs)
    batch, heads = math.prod(query.shape[:-3]), query.shape[-3] if query.dim() > 2 else 1
    pairs, causal, window = unmasked_pairs(query, key, mask, is_causal, workload, spec, bool(kwargs.get("lower_right")))
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
    scores = pairs * batch * heads
    return Work(Kind.ATTENTION, dims, 2.0 * scores * (head_dim + value_dim), FLOPS_PER_ELEMENT["_softmax"] * scores)


def unmasked_pairs(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    workload: Workload,
    spec: AttentionModule | None,
    lower_right: bool = False,
) -> tuple[int, bool, int | None]:
    """Unmasked pairs of a head, whether the attention is causal, and its window in tokens.

    Args: `lower_right` says that the causal flag lets the last query see the last key, not the first the first.
    """
    length, kv = query.shape[-2], key.shape[-2]
    if is_causal:  # torch's mask starts at the upper left: the first query sees one key, and the last ones see all
        first = max(0, length - kv) if lower_right else 0  # queries that see no key
        before = max(0, kv - length) if lower_right else 0
        return attention_pairs(length - first, before, True, kv), True, None
    if mask is None:
        return length * kv, False, None
    values = known(mask) if spec is None or mask.device.type != "meta" else None
    if values is not None and (values.dtype == torch.bool or spec is None):
        seen_by_all = values if values.dtype == torch.bool else values > torch.finfo(values.dtype).min
        allowed = seen_by_all.expand(*query.shape[:-3], mask.shape[-3] if mask.dim() > 2 else 1, length, kv)
        seen = round(allowed.float().sum().item() / math.prod(allowed.shape[:-2]))
        return seen, spec.causal if spec else False, spec.window if spec else None
    if spec is not None and spec.causal:
        # `transformers` may fold the heads of a group into the queries, as in decode: all attend to the same keys.
        tokens = workload.query_tokens
        folded = length // tokens if length % tokens == 0 else 1
        pairs = attention_pairs(length // folded, workload.context_tokens, True, spec.window)
        return folded * pairs, True, spec.window
    return length * kv, False, None


def attend(func: Any, args: Any, kwargs: Any, target: str) -> tuple[Tensor, int]:
    """The result of attention, and the bytes of its temporary memory, which count for the peak of a pass.

    A boolean mask is copied to the type of the query (`convert_boolean_attn_mask`). Where keys and values differ in
    width, the CPU has no fused kernel (`check_head_dim_size_cpp` in `sdp_utils_cpp.cpp`): the unfused
    `_scaled_dot_product_attention_math` is then run on `meta`, and its allocations are added up. Both are in
    `aten/src/ATen/native/transformers/attention.cpp`. Buffers of a fused kernel's threads are left out.
    """
    query, _, value, mask, _ = operands(args, kwargs)
    mask_copy = math.prod(mask.shape) * query.element_size() if mask is not None and mask.dtype == torch.bool else 0
    if query.device.type != "meta" or query.dim() != 4:
        return func(*args, **kwargs), mask_copy
    if target == "cpu" and query.shape[-1] != value.shape[-1]:
        with _PeakBytes() as allocated:
            out = func(*args, **kwargs)
        return out, allocated.peak - out.untyped_storage().nbytes()
    # The fused backends return a (batch, heads, query, dim) view of (batch, query, heads, dim) memory.
    batch, heads, length, _ = query.shape
    return query.new_empty((batch, length, heads, value.shape[-1])).transpose(1, 2), mask_copy


class _PeakBytes(TorchDispatchMode):
    """Records the most bytes that storages allocated inside it hold at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        known = {tensor.untyped_storage()._cdata for tensor in tensors((*args, *kwargs.values()))}
        out = func(*args, **kwargs)
        self.alive = {key: held for key, held in self.alive.items() if not held[0].expired()}
        for tensor in tensors((out,)):
            storage = tensor.untyped_storage()
            if storage._cdata not in known:
                self.alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        inside = out.numel() if func is torch.ops.aten._safe_softmax.default else 0  # a bool for each score
        self.peak = max(self.peak, inside + sum(size for _, size in self.alive.values()))
        return out


def attention_modules(model: nn.Module) -> Iterator[AttentionModule]:
    """Modules with an `is_causal` attribute, as the attention modules of `transformers` have, and their window."""
    for path, module in model.named_modules():
        if not isinstance(getattr(module, "is_causal", None), bool):
            continue
        config, window = getattr(module, "config", None), None
        if hasattr(module, "sliding_window"):  # EXAONE 4 has it in layers that see all keys too
            window = module.sliding_window if getattr(module, "is_sliding", True) else None
        elif getattr(config, "layer_types", None) is None and getattr(config, "use_sliding_window", True):
            window = getattr(config, "sliding_window", None)
        window = window if isinstance(window, int) else None
        yield AttentionModule(path=path, causal=bool(module.is_causal), window=window)


BUDGETS = ("index_topk", "token_budget", "keep_window_size")
"""Attributes of modules that choose keys: the most tokens that a query attends to."""


def budgets(model: nn.Module) -> set[int]:
    """Tokens that an index chooses for a query, of each module with one: where a context has fewer, all are chosen."""
    found = (getattr(module, name, None) for module in model.modules() for name in BUDGETS)
    return {tokens for tokens in found if isinstance(tokens, int) and tokens > 1}


def heads(model: nn.Module) -> tuple[int, int] | None:
    """(query, key-value) heads of the decoder's config; None where it names none."""
    config: Any = getattr(model, "config", None)
    if config is None or not hasattr(config, "get_text_config"):
        return None
    decoder = config.get_text_config(decoder=True)
    try:
        query = getattr(decoder, "num_attention_heads", None)
        shared = getattr(decoder, "num_key_value_heads", None)
    except RuntimeError:  # AmbiguousGlobalPerLayerAttributeError of transformers: it differs between layers
        return None
    if not isinstance(query, int):
        return None
    return query, shared if isinstance(shared, int) else query
