"""What a kernel has to do whatever runs it: FLOPs and compulsory bytes from its sizes, for the rooflines beside a law.

Products read both inputs and write the output once; attention reads queries, the keys and values that any query sees,
and writes its outputs; experts read the weights of the experts that are hit; a collective sends what its busiest rank
must. Causal pairs are counted exactly (DESIGN.md, "Words and units").

Example: ``work("matmul", {"m": m, "n": n, "k": k}, "bfloat16").flops`` → 2·m·n·k
"""

from dataclasses import dataclass, replace

import numpy as np

from roofline.laws.collective import sent_bytes
from roofline.laws.eager_modules import MODULES, SIZES, operations
from roofline.laws.experts import experts_work
from roofline.laws.law import Dims, Facts, Floats
from roofline.laws.registry import ROW_MAJOR

BITS: dict[str, float] = {
    "float32": 32,
    "bfloat16": 16,
    "float16": 16,
    "float8_e4m3fn": 8,
    "int8": 8,
    "fp8_block": 8,
    "fp8_static": 8,
    "fp8_ootb": 8,
    "int8_wo": 8,
    **dict.fromkeys(("int4_wo", "nvfp4", "mxfp4", "w4afp8", "w4a16_mxfp4", "w4a8_mxfp4_mxfp8"), 4),
}
"""Of a weight, or of a cached element; scales beside blocks are not counted."""

MANY = ("batched_matmul", "grouped_matmul")
"""Kinds of as many products in one call as the dim "batch" says."""
PIECE = 128.0
"""Rows, and columns, of output that one unit makes at a time: of the usual tiles of products and attention."""
OUTPUT_BYTES = 2.0
"""Of an element that a kernel writes, unless its inputs are wider."""


@dataclass(frozen=True, eq=False)
class Work:
    """By kernel."""

    flops: Floats
    bytes: Floats
    """Read and written, main memory."""
    link_bytes: Floats
    """Sent to other devices."""
    kernels: Floats | float = 1.0
    """Launches that the bytes are spread over; what one of them has written, the next may find in a cache."""
    pieces: Floats | float = np.inf
    """Parts that can be worked on at the same time without cutting a sum into partial ones: the most units at work in a
    library that does not do that."""


def work(kind: str, dims: Dims, dtype: str) -> Work:
    """FLOPs and bytes of each kernel, by the kind of a table or the name of a law ("core_matmul").

    Raises ValueError: a kind whose work is not known.
    """
    width = BITS.get(dtype, 16) / 8
    plain = kind.removesuffix(ROW_MAJOR)
    if plain.endswith("matmul"):
        m, n, k = dims["m"], dims["n"], dims["k"]
        times = dims["batch"] if plain in MANY else np.ones_like(m)
        moved = width * (m * k + k * n) + max(width, OUTPUT_BYTES) * m * n
        return replace(
            _local(2 * times * m * n * k, times * moved), pieces=times * np.ceil(m / PIECE) * np.ceil(n / PIECE)
        )
    if plain.endswith(("prefill_attention", "decode_attention")):
        return _attention(plain.endswith("decode_attention"), dims)
    if plain == "experts":
        routed = experts_work(dims)
        return _local(routed["flops"], routed["bytes"])
    if plain == "collective":
        sent = sent_bytes(dims)
        return Work(np.zeros_like(sent), np.zeros_like(sent), sent)
    if {"bytes_read", "bytes_written"} <= set(dims):
        moved = dims["bytes_read"] + dims["bytes_written"]
        return replace(_local(dims.get("flops", np.zeros_like(moved)), moved), kernels=dims.get("kernels", 1.0))
    if plain == "module":
        return _modules(dims, dtype)
    raise ValueError(f"the work of {kind!r} is not known")


def datasheet_s(found: Work, facts: Facts, arithmetic: str) -> Floats:
    """Seconds by the datasheet alone: the longest of arithmetic, memory and link."""
    peak = facts.matrix_flops_per_s.get(arithmetic, facts.vector_flops_per_s)
    link = facts.link_bytes_per_s or np.inf
    roofs = (found.flops / peak, found.bytes / facts.bandwidth_bytes_per_s, found.link_bytes / link)
    return np.asarray(np.maximum.reduce(roofs))


def _local(flops: Floats, moved: Floats) -> Work:
    return Work(flops, moved, np.zeros_like(flops))


def _attention(decode: bool, dims: Dims) -> Work:
    query = np.ones_like(dims["kv"]) if decode else dims["query"]
    context = dims["kv"] - 1 if decode else dims["context"]
    pairs, keys = _pairs(query, context, dims["window"])
    batch, heads, head_dim = dims["batch"], dims["heads"], dims["head_dim"]
    cached = 2 * dims["kv_bytes"] * dims["kv_heads"] * keys
    found = _local(4 * batch * heads * head_dim * pairs, batch * head_dim * (cached + 2 * OUTPUT_BYTES * heads * query))
    return replace(found, pieces=batch * dims["kv_heads"] * np.ceil(query / PIECE))


def _pairs(query: Floats, context: Floats, window: Floats) -> tuple[Floats, Floats]:
    """Unmasked pairs of a causal sequence, and keys that any of its queries sees."""
    whole = context + query
    limit = np.where(window > 0, window, whole)
    growing = np.clip(limit - context, 0, query)  # queries that see fewer keys than the limit, or just it
    pairs = growing * context + growing * (growing + 1) / 2 + (query - growing) * np.minimum(limit, whole)
    return pairs, np.minimum(whole, limit + query - 1)


def _modules(dims: Dims, dtype: str) -> Work:
    flops, moved, kernels = (np.zeros(len(dims["module"])) for _ in range(3))
    for index, module in enumerate(MODULES):
        rows = np.flatnonzero(dims["module"] == index)
        if len(rows):
            for kind, sizes in operations(module, {name: dims[name][rows] for name in SIZES}):
                one = work(kind, sizes, dtype)
                flops[rows] += one.flops
                moved[rows] += one.bytes
                kernels[rows] += one.kernels
    return replace(_local(flops, moved), kernels=kernels)
