"""Operators that `meta` tensors refuse although their shapes are known.

`_grouped_mm` on meta takes bfloat16 alone (torch 2.13, `torch/_meta_registrations.py`); on a device it takes more.

Example: ``out = run_or_shape(torch.ops.aten._grouped_mm.default, (rows, matrices), {"offs": offsets})``
"""

from collections.abc import Mapping
from typing import Any

import torch


def run_or_shape(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The call's result; for a grouped product of `meta` tensors an empty one of the right shape."""
    if func is torch.ops.aten._grouped_mm.default and args[0].device.type == "meta" and args[1].dim() == 3:
        rows, matrices = args[0], args[1]
        dtype = kwargs.get("out_dtype") or rows.dtype
        return rows.new_empty((*rows.shape[:-1], matrices.shape[-1]), dtype=dtype)
    return func(*args, **kwargs)
