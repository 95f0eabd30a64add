"""Matrix FLOPs and compulsory bytes of imported kernels: what their times are held against.

Example: ``work_of(frame).flops``
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from calibrate.exchange.tables import Floats
from roofline.dtypes import BITS


@dataclass(frozen=True, eq=False)
class Work:
    """By row."""

    flops: Floats
    bytes: Floats
    """Compulsory; of a module 0."""
    link_bytes: Floats
    """Between devices."""


def work_of(frame: pd.DataFrame) -> Work:
    """Matrix FLOPs and compulsory bytes of every row, lower bounds where routing or placement is not known."""
    d = {name: frame[name].to_numpy(dtype=float) for name in _NEEDED}
    width = frame["dtype"].map(BITS).fillna(16).to_numpy(dtype=float) / 8
    pairs = _pairs(d["query"], d["context"], d["window"])
    seen = np.where(d["window"] > 0, np.minimum(d["kv"], d["query"] + d["window"] - 1), d["kv"])
    attention = (
        4 * d["batch"] * d["heads"] * d["head_dim"] * pairs,
        d["batch"] * d["head_dim"] * (2 * d["kv_heads"] * seen * d["kv_bytes"] + 2 * d["heads"] * d["query"] * width),
    )
    inner, share = d["inner"] / d["tp"], d["experts"] / d["ep"]
    hit = share * (1 - (1 - d["topk"] / d["experts"]) ** d["tokens"])
    experts = (
        6 * d["tokens"] * d["topk"] / d["ep"] * d["hidden"] * inner,
        np.where(d["skew"] > 0, 0.0, hit) * 3 * d["hidden"] * inner * d["weight_bits"] / 8,
    )
    product = (
        2 * d["m"] * d["n"] * d["k"],
        (d["m"] * d["k"] + d["n"] * d["k"]) * width + d["m"] * d["n"] * np.minimum(width, 2),
    )
    by_kind = {
        "matmul": product,
        "prefill_attention": attention,
        "decode_attention": attention,
        "experts": experts,
    }
    flops, moved = np.zeros(len(frame)), np.nan_to_num(d["bytes_read"] + d["bytes_written"])
    for kind, (arithmetic, traffic) in by_kind.items():
        rows = (frame["kind"] == kind).to_numpy()
        flops[rows], moved[rows] = arithmetic[rows], traffic[rows]
    return Work(flops, moved, np.where(frame["kind"] == "collective", d["bytes"], 0.0))


def _pairs(query: Floats, context: Floats, window: Floats) -> Floats:
    """Unmasked pairs of a causal sequence: query i sees context + i + 1 keys, at most `window` where that is not 0."""
    full = query * context + query * (query + 1) / 2
    free = np.clip(window - context, 0, query)  # queries that the window does not reach
    bounded = free * context + free * (free + 1) / 2 + (query - free) * window
    return np.where(window > 0, bounded, full)


_NEEDED = ("m", "n", "k", "batch", "heads", "kv_heads", "query", "kv", "context", "head_dim", "window", "kv_bytes",
           "tokens", "hidden", "inner", "topk", "experts", "tp", "ep", "skew", "weight_bits", "bytes",
           "bytes_read", "bytes_written")  # fmt: skip
