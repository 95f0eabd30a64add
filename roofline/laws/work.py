"""FLOPs and compulsory bytes of kernels from their sizes: what a kernel has to do whatever runs it.

A multiply-add is 2 FLOPs. Compulsory bytes: each distinct element is read once and written once, at its own width, as
`profiler.models.trace` counts them in a traced model. Causal pairs are counted exactly. The bounds of a law
(`roofline.laws.bounds`), the rooflines beside it, exported tables and the cleaning of imported ones all start here;
`roofline.laws.kinds` says which function is that of a kind.

Example: ``product_work({"m": m, "n": n, "k": k}, "bfloat16").flops`` → 2·m·n·k
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from roofline.dtypes import ARITHMETIC, BITS
from roofline.laws.bus_bandwidth import RINGS
from roofline.laws.expert_loads import expert_loads
from roofline.laws.law import Dims, Facts, Floats

OUTPUT_BYTES = 2.0
"""Bytes of an element that a kernel writes, unless its inputs are wider: products of 8 and 4 bits write 16."""
PIECE = 128.0
"""Rows, and columns, of output that one unit makes at a time: of the usual tiles of products and attention."""


@dataclass(frozen=True, eq=False)
class Work:
    """Work of each kernel; arrays of one shape."""

    flops: Floats
    bytes: Floats
    """Compulsory reads and writes of memory."""
    link_bytes: Floats
    """Bytes that the busiest rank sends to other devices."""
    kernels: Floats | float = 1.0
    """Launches that the bytes are spread over; what one of them has written, the next may find in a cache."""
    pieces: Floats | float = np.inf
    """Parts that can be worked on at the same time without cutting a sum into partial ones: the most units at work in a
    library that does not do that."""


def datasheet_s(work: Work, facts: Facts, arithmetic: str) -> Floats:
    """Seconds by the datasheet alone: the longest of arithmetic, memory and link."""
    peak = facts.matrix_flops_per_s.get(arithmetic, facts.vector_flops_per_s)
    link = facts.link_bytes_per_s or np.inf
    roofs = (work.flops / peak, work.bytes / facts.bandwidth_bytes_per_s, work.link_bytes / link)
    return np.asarray(np.maximum.reduce(roofs))


def arithmetic(dtype: str, known: Iterable[str]) -> str:
    """The first of `ARITHMETIC` that is `known` to the device, else the last of them; `dtype` itself if it is there."""
    choices, has = ARITHMETIC.get(dtype, (dtype,)), set(known)
    return next((name for name in choices if name in has), choices[-1])


def weight_bytes(dtype: str) -> float:
    """Bytes of a stored weight; 2 for a dtype that is not known."""
    return BITS.get(dtype, 16) / 8


def activation_bytes(dtype: str) -> float:
    """Bytes of an input that is no weight: those of the arithmetic, so 2 beside weights in 4 bits ("int4_wo")."""
    return weight_bytes(ARITHMETIC.get(dtype, (dtype,))[0])


def product_work(dims: Dims, dtype: str) -> Work:
    """m × k activations by k × n weights, as many products as "batch" says; output of 16 bits or more."""
    m, n, k = dims["m"], dims["n"], dims["k"]
    batch = dims.get("batch", np.ones_like(m))
    inputs = activation_bytes(dtype) * m * k + weight_bytes(dtype) * k * n
    moved = inputs + max(activation_bytes(dtype), OUTPUT_BYTES) * m * n
    pieces = batch * np.ceil(m / PIECE) * np.ceil(n / PIECE)
    return Work(2 * batch * m * n * k, batch * moved, np.zeros_like(moved), pieces=pieces)


def prefill_work(dims: Dims, dtype: str) -> Work:
    """Causal attention of `query` tokens after `context` cached ones: two products a pair, each key and value that any
    query sees read once for its KV head, queries read and outputs written."""
    batch, heads, head_dim, query = dims["batch"], dims["heads"], dims["head_dim"], dims["query"]
    pairs, keys = causal_pairs(query, dims["context"], dims["window"])
    width = activation_bytes(dtype)
    cached = 2 * dims["kv_bytes"] * dims["kv_heads"] * keys
    moved = batch * head_dim * (cached + (width + max(width, OUTPUT_BYTES)) * heads * query)
    flops = 4 * batch * heads * head_dim * pairs
    pieces = batch * dims["kv_heads"] * np.ceil(query / PIECE)
    return Work(flops, moved, np.zeros_like(flops), pieces=pieces)


def decode_work(dims: Dims, dtype: str) -> Work:
    """Attention of one new token to `kv` keys, its own among them, in each of `batch` sequences."""
    return prefill_work({**dims, "query": np.ones_like(dims["kv"]), "context": dims["kv"] - 1}, dtype)


def causal_pairs(query: Floats, context: Floats, window: Floats) -> tuple[Floats, Floats]:
    """Unmasked (query, key) pairs of one head of one sequence, and keys that any of its queries sees.

    Query i of `query` sees ``context + i + 1`` keys, at most `window` where that is not 0.
    """
    whole = context + query
    limit = np.where(window > 0, window, whole)
    growing = np.clip(limit - context, 0, query)  # queries that see fewer keys than the limit, or just it
    pairs = growing * context + growing * (growing + 1) / 2 + (query - growing) * np.minimum(limit, whole)
    return pairs, np.minimum(whole, limit + query - 1)


def experts_work(dims: Dims, dtype: str) -> Work:
    """Three matrices of each expert that is hit on the busiest rank, read once; rows in and out in 16 bits or more."""
    inner = dims["inner"] / dims["tp"]
    loads = expert_loads(dims["tokens"], dims["topk"], dims["experts"], dims["ep"], dims["skew"])
    weights = loads.hit * 3 * dims["hidden"] * inner * dims["weight_bits"] / 8
    rows = 2 * max(activation_bytes(dtype), OUTPUT_BYTES) * dims["tokens"] * dims["hidden"]
    flops = 6 * loads.local * dims["hidden"] * inner
    return Work(flops, weights + rows, np.zeros_like(flops))


def stream_work(dims: Dims, dtype: str) -> Work:
    """Kernels that say themselves what they move: "bytes_read", "bytes_written", "flops" and launches ("kernels")."""
    del dtype
    moved = dims["bytes_read"] + dims["bytes_written"]
    flops = dims.get("flops", np.zeros_like(moved))
    return Work(flops, moved, np.zeros_like(moved), kernels=dims.get("kernels", 1.0))


OPERATIONS = tuple(RINGS)
"""Collectives; the dim "operation" is a place in this list, in stored corrections as well."""


def collective_work(dims: Dims, dtype: str) -> Work:
    """Bytes that the busiest rank sends; those that it copies within its memory are not counted."""
    del dtype
    sent = sent_bytes(dims)
    return Work(np.zeros_like(sent), np.zeros_like(sent), sent)


def sent_bytes(dims: Dims) -> Floats:
    """Bytes that the busiest rank sends."""
    return np.asarray(dims["bytes"] * by_operation(dims, [ring.factor for ring in RINGS.values()]))


def by_operation(dims: Dims, of_ranks: Sequence[Callable[[Any], Any]]) -> Floats:
    """A function of the number of ranks for each operation, evaluated for each kernel."""
    ranks = np.asarray(dims["ranks"], dtype=float)
    return np.asarray(np.choose(np.asarray(dims["operation"]).astype(int), [each(ranks) for each in of_ranks]))
