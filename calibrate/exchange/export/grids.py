"""The shapes that op tables are filled with: dense enough for the interpolation of the tools that read them.

All of them model-agnostic, so that a table serves any model within its range; the range goes into the provenance.

Example: ``columns(m=(1, 2), n=(8,), k=(4,))["m"]`` → array([1, 2])
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Columns = dict[str, NDArray[np.int64]]

GEMM_M = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096, 8192, 16384, 32768)
GEMM_NK: tuple[int, ...] = (
    32,
    64,
    128,
    256,
    512,
    768,
    1024,
    1536,
    2048,
    2560,
    3072,
    3584,
    4096,
    5120,
    6144,
    7168,
    8192,
    10240,
)
GEMM_NK += (12288, 14336, 16384, 24576, 28672, 32768, 65536)
HEADS = (1, 2, 4, 8, 16, 24, 32, 40, 48, 64, 96, 128)
KV_HEADS = (1, 2, 4, 8)
"""Besides as many as query heads."""
HEAD_DIMS = (64, 128, 256)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
LENGTHS = tuple(2**i for i in range(4, 18))
"""16 to 131,072 tokens."""
MOST_TOKENS = 1 << 17
"""New tokens of a prefill, over the batch."""


def columns(**sizes: Iterable[int]) -> Columns:
    """Every combination of the sizes, the last one varying fastest; a column a size."""
    rows = np.array(list(itertools.product(*sizes.values())), dtype=np.int64).reshape(-1, len(sizes))
    return {name: rows[:, i] for i, name in enumerate(sizes)}


def kept(table: Mapping[str, NDArray[np.int64]], rows: NDArray[np.bool_]) -> Columns:
    """Some of the rows."""
    return {name: column[rows] for name, column in table.items()}


def attention(batches: Sequence[int], lengths: Sequence[int], capacity_bytes: float, kv_bytes: int) -> Columns:
    """batch, length, heads, kv_heads, head_dim: grouped and multi-head layouts whose KV cache fits the memory."""
    found = columns(batch=batches, length=lengths, heads=HEADS, kv_heads=(*KV_HEADS, 0), head_dim=HEAD_DIMS)
    heads, kv = found["heads"], found["kv_heads"]
    own = kv == 0
    whole = own | ((kv < heads) & (heads % np.where(own, 1, kv) == 0))
    found = kept({**found, "kv_heads": np.where(own, heads, kv)}, whole)
    cached = 2.0 * kv_bytes * found["batch"] * found["length"] * found["kv_heads"] * found["head_dim"]
    return kept(found, cached <= capacity_bytes)


def span(table: Mapping[str, NDArray[np.int64]]) -> str:
    """The range of a table: "m 1–32768, n 32–65536"."""
    return ", ".join(f"{name} {column.min()}–{column.max()}" for name, column in table.items())
