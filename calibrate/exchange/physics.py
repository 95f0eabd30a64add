"""What a kernel's time cannot be: faster than the device's arithmetic, or a thousand times off because of a unit.

A time is held against the least that its work takes, ``max(flops / peak, bytes / bandwidth, 2 µs)``. Warm caches, tails
and poor kernels put the ratio between 0.5 and some hundreds, its median over a table between 1 and 10 (H200, A100: 1.9
to 8.5 over GEMM, attention, experts); a unit that is wrong moves all of them by a thousand.

Example: ``least_s(frame, work_of(frame), limits_of(spec))``
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from calibrate.exchange.columns import Flags, Floats
from roofline.dtypes import BITS, BOUNDED_BY
from roofline.hardware.spec import HardwareSpec

ANY_RATE = 1e17
"""FLOP/s of no single device: the fastest announced reaches 2e16, in 4 bits."""
ANY_BANDWIDTH = 1e15
"""Bytes/s of no memory or cache of one."""
SLACK = 1.2
"""Over a datasheet's peak: clocks above those it is quoted at."""
LAUNCH_S = 2e-6
"""A kernel with no work to speak of."""
LINK = 5e10
"""Bytes/s of a link between devices, of any: from a network's 1e10 to NVLink's 4.5e11."""
SHORTEST_S = 1e-7
"""No kernel is: a hundred or two cycles."""
LONGEST_S = 1e3
"""Nobody measures a kernel for a quarter of an hour."""
TYPICAL_RATE, TYPICAL_BANDWIDTH = 5e14, 2e12
"""Of a device that is not known."""
UNIT_STEP = 1000.0
SLOW, FAST = 150.0, 0.1
"""Median ratios that mean a wrong unit: far from both 1 to 10 and a thousand times that."""
HOPELESS = 2e4
"""Ratio of a single row that no kernel has (the worst of the tables above: 2,400)."""


@dataclass(frozen=True)
class Limits:
    """A device's datasheet, as far as it is known."""

    rates: dict[str, float]
    """FLOP/s of the matrix units by dtype; empty where they are not known."""
    bandwidth_bytes_per_s: float | None

    def rate(self, dtype: str, cached_bytes: float) -> float:
        """FLOP/s that kernels of a dtype reach at most; weights in few bits may run at any of the device's rates."""
        if not self.rates:
            return ANY_RATE
        own = self.rates.get(BOUNDED_BY.get(dtype, dtype))
        if own is None:
            return max(self.rates.values())
        cached = self.rates.get("float8_e4m3fn", 0.0) if cached_bytes == 1 else 0.0
        return max(own, cached)


@dataclass(frozen=True, eq=False)
class Work:
    """By row."""

    flops: Floats
    bytes: Floats
    """Compulsory; of a module 0."""
    link_bytes: Floats
    """Between devices."""


def limits_of(spec: HardwareSpec | None) -> Limits:
    """Of a device's datasheet; None where no file describes it."""
    sheet = spec.datasheet if spec is not None else None
    if sheet is None:
        return Limits({}, None)
    rates = {dtype: figure.value for dtype, figure in sheet.matrix.items()}
    return Limits(rates, sheet.levels[-1].bandwidth.value if sheet.levels else None)


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


def rates_of(frame: pd.DataFrame, limits: Limits) -> Floats:
    """The most FLOP/s that each row's dtype can reach."""
    pairs = list(zip(frame["dtype"], frame["kv_bytes"], strict=True))
    known = {pair: limits.rate(*pair) for pair in dict.fromkeys(pairs)}
    return np.array([known[pair] for pair in pairs], dtype=float)


def least_s(frame: pd.DataFrame, work: Work, limits: Limits) -> Floats:
    """Seconds that each row's work takes at least, give or take warm caches."""
    rates = rates_of(frame, limits) if limits.rates else np.full(len(frame), TYPICAL_RATE)
    bandwidth = limits.bandwidth_bytes_per_s or TYPICAL_BANDWIDTH
    roofs = np.maximum(work.flops / rates, work.bytes / bandwidth)
    return np.asarray(np.maximum(np.maximum(roofs, work.link_bytes / LINK), LAUNCH_S))


def impossible(frame: pd.DataFrame, work: Work, limits: Limits) -> tuple[Flags, Flags]:
    """Rows (boolean) that are too fast, and rows that are too slow, for any kernel on this device."""
    time_s = frame["time_s"].to_numpy()
    fast = (time_s < SHORTEST_S) | (work.flops / time_s > np.minimum(SLACK * rates_of(frame, limits), ANY_RATE))
    fast |= (work.bytes + work.link_bytes) / time_s > ANY_BANDWIDTH
    slow = (time_s > LONGEST_S) | (time_s > HOPELESS * least_s(frame, work, limits))
    return fast, slow


def unit_steps(ratios: Floats) -> int:
    """By how many thousands a table's times are off: 1 where they are a thousand times too long; 0 where they are not.

    `ratios`: time over the least that the work takes.
    """
    middle = float(np.median(ratios))
    if FAST < middle < SLOW:
        return 0
    usual = np.sqrt(SLOW * FAST)
    steps = round(float(np.log(middle / usual) / np.log(UNIT_STEP)))
    return steps or (1 if middle >= SLOW else -1)


def _pairs(query: Floats, context: Floats, window: Floats) -> Floats:
    """Unmasked pairs of a causal sequence: query i sees context + i + 1 keys, at most `window` where that is not 0."""
    full = query * context + query * (query + 1) / 2
    free = np.clip(window - context, 0, query)  # queries that the window does not reach
    bounded = free * context + free * (free + 1) / 2 + (query - free) * window
    return np.where(window > 0, bounded, full)


_NEEDED = ("m", "n", "k", "batch", "heads", "kv_heads", "query", "kv", "context", "head_dim", "window", "kv_bytes",
           "tokens", "hidden", "inner", "topk", "experts", "tp", "ep", "skew", "weight_bits", "bytes",
           "bytes_read", "bytes_written")  # fmt: skip
