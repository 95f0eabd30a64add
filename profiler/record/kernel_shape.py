"""A kernel to measure, before it is: what kind, in which dtype, of which sizes.

Example: ``KernelShape("matmul", "bfloat16", "aten::mm", {"m": 16, "n": 4096, "k": 4096})``
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KernelShape:
    """What calibration asks a device to run."""

    kind: str
    """Of the law that it is for."""
    dtype: str
    op: str
    """Operator, as the profiler names it."""
    dims: Mapping[str, int]
    """Matmul: m, n, k. Attention: batch, heads, kv_heads, query, kv, head_dim. Streaming: rows, width."""

    @property
    def group(self) -> str:
        """What is held out together when a fit is judged: the weight's shape, the head layout, the size."""
        if {"n", "k"} <= set(self.dims):
            return f"n{self.dims['n']} k{self.dims['k']}"
        if "heads" in self.dims:
            return f"h{self.dims['heads']} kv{self.dims['kv_heads']} d{self.dims['head_dim']}"
        return f"{self.dims['rows']}x{self.dims['width']}"
