"""Memory that `scaled_dot_product_attention` takes and gives back within itself: it is part of a pass's peak.

A boolean mask is copied to the type of the query (`convert_boolean_attn_mask`). Where the fused kernel of the CPU is
not to be had, because keys and values differ in width (`check_head_dim_size_cpp` in `sdp_utils_cpp.cpp`), the unfused
`_scaled_dot_product_attention_math` runs: it is run on `meta`, and what it allocates is added up. Both are in
`aten/src/ATen/native/transformers/attention.cpp`. Buffers of a fused kernel's threads are left out.

Example: ``out, taken = attend_unfused(F.scaled_dot_product_attention, (query, key, value), {})``
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from profiler.models.accesses import tensors


def mask_copy_bytes(mask: Tensor | None, query: Tensor) -> int:
    """Size of the copy of a boolean mask in the type of the query: all that the mask's shape spans."""
    if mask is None or mask.dtype != torch.bool:
        return 0
    return math.prod(mask.shape) * query.element_size()


def attend_unfused(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, int]:
    """Attention of `meta` tensors operator by operator: its result, and the most bytes it held beside that."""
    with _Held() as held:
        out = func(*args, **kwargs)
    return out, held.most - out.untyped_storage().nbytes()


class _Held(TorchDispatchMode):
    """The most bytes that storages made inside it hold at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        known = {tensor.untyped_storage()._cdata for tensor in tensors((*args, *kwargs.values()))}
        out = func(*args, **kwargs)
        self.alive = {key: found for key, found in self.alive.items() if not found[0].expired()}
        for tensor in tensors((out,)):
            storage = tensor.untyped_storage()
            if storage._cdata not in known:
                self.alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        inside = out.numel() if func is torch.ops.aten._safe_softmax.default else 0  # a bool for each score
        self.most = max(self.most, inside + sum(size for _, size in self.alive.values()))
        return out
