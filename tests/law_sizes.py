"""Random kernels of every law, and which of their sizes are work: more of them is never less to do."""

import numpy as np
from numpy.typing import NDArray

from roofline.laws.eager_modules import MODULES
from roofline.laws.kinds import BATCHED, GROUPED
from roofline.laws.law import Law
from roofline.laws.streams import Collective
from roofline.laws.work import OPERATIONS

Floats = NDArray[np.float64]

WORK: dict[str, tuple[str, ...]] = {
    "matmul": ("m", "n", "k"),
    "many": ("batch", "m", "n", "k"),
    "attention": ("batch", "heads", "kv_heads", "kv", "query", "context"),
    "experts": ("tokens", "hidden", "inner"),
    "collective": ("bytes",),
    "streaming": ("bytes_read", "bytes_written", "elements", "flops"),
    "host_gap": ("modules", "reach", "streamed"),
    "module": ("tokens",),
}
"""Sizes of a kernel, by family of laws. Head dim is not among them: a library cuts heads of other widths in other ways.
`context` grows the keys that are seen, `heads` alone only the group."""


def family(law: Law) -> str:
    """Which laws take the same sizes."""
    if law.name in (BATCHED, GROUPED):
        return "many"
    if law.name.endswith(("matmul", "attention")):
        return "matmul" if law.name.endswith("matmul") else "attention"
    if isinstance(law, Collective):
        return "collective"
    return "streaming" if "bytes_read" in law.dims else law.name


def kernels(law: Law, rows: int, seed: int = 0) -> dict[str, Floats]:
    """Sizes of `rows` kernels, whole, drawn evenly on a logarithm; all the law's dims, each of shape (rows,)."""
    generator = np.random.default_rng(seed)

    def drawn(low: float, high: float) -> Floats:
        return np.rint(2 ** generator.uniform(np.log2(low), np.log2(high), rows))

    def chosen(*values: float) -> Floats:
        return generator.choice(values, rows)

    kv_heads = chosen(1.0, 2, 4, 8)
    streamed = drawn(2**9, 2**24)
    found = {
        "matmul": lambda: {"m": drawn(1, 4096), "n": 64 * drawn(4, 128), "k": 64 * drawn(4, 128)},
        "many": lambda: {"batch": drawn(1, 64), "m": drawn(1, 512), "n": 8 * drawn(1, 256), "k": 8 * drawn(1, 256)},
        "attention": lambda: {
            "batch": drawn(1, 64),
            "heads": kv_heads * chosen(1.0, 2, 4, 8),
            "kv_heads": kv_heads,
            "kv": drawn(16, 2**14),
            "query": drawn(2, 2**12),
            "context": chosen(0.0, 100, 4000),
            "head_dim": chosen(64.0, 96, 128),
            "window": chosen(0.0, 0, 1024),
            "kv_bytes": chosen(1.0, 2, 2),
        },
        "experts": lambda: {
            "tokens": drawn(1, 4096),
            "hidden": chosen(2048.0, 4096, 7168),
            "inner": chosen(1024.0, 2048, 14336),
            "topk": chosen(2.0, 4, 8),
            "experts": chosen(8.0, 64, 128),
            "tp": chosen(1.0, 2, 4),
            "ep": chosen(1.0, 2, 4),
            "skew": chosen(0.0, 1.0),
            "weight_bits": chosen(8.0, 16),
        },
        "collective": lambda: {
            "bytes": drawn(2**10, 2**28),
            "ranks": chosen(2.0, 4, 8),
            "operation": generator.integers(len(OPERATIONS), size=rows).astype(float),
        },
        "streaming": lambda: {
            "bytes_read": 2 * streamed,
            "bytes_written": 2 * streamed,
            "kernels": chosen(1.0, 1, 3),
            "elements": streamed,
            "flops": streamed,
        },
        "host_gap": lambda: {"modules": chosen(0.0, 1, 2, 4), "reach": drawn(1e5, 1e9), "streamed": drawn(1e5, 1e9)},
        "module": lambda: {
            "module": generator.integers(len(MODULES), size=rows).astype(float),
            "tokens": drawn(1, 4096),
            "context": chosen(0.0, 100, 4000),
            "hidden": chosen(2048.0, 4096),
            "inner": chosen(5632.0, 14336),
            "heads": chosen(16.0, 32),
            "kv_heads": chosen(4.0, 8),
            "head_dim": chosen(64.0, 128),
            "vocab": chosen(32000.0, 128256),
            "tp": chosen(1.0, 2),
        },
    }[family(law)]()
    return {name: found[name] for name in law.dims}


def grown(law: Law, dims: dict[str, Floats], size: str, factor: float) -> dict[str, Floats]:
    """With one size `factor` times as large; as many query heads for each key head as before."""
    more = dims | {size: np.maximum(np.rint(dims[size] * factor), 1.0)}
    if size == "kv_heads":
        more["heads"] = more[size] * np.maximum(dims["heads"] / dims["kv_heads"], 1.0)
    if size == "heads":
        more[size] = more["kv_heads"] * np.maximum(np.rint(more[size] / more["kv_heads"]), 1.0)
    return more
