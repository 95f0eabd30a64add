"""FLOPs and compulsory bytes of kernels from their sizes, and the bounds that these set to a kernel's time.

A multiply-add is 2 FLOPs; each distinct element is read once and written once at its own width, as
`profiler.models.trace` counts them in a traced model, and causal pairs are counted exactly. `roofline.laws.kinds` names
the function of each kind. `Bounds` keeps terms of laws from growing without reason, and `RINGS` has the bytes and
messages of collectives by nccl-tests' definitions (doc/PERFORMANCE.md, src/sendrecv.cu, src/alltoall.cu).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from pydantic import Field

from roofline.dtypes import ARITHMETIC, BITS
from roofline.laws.experts import expert_loads
from roofline.laws.law import Dims, Facts, Floats
from roofline.record import Record


@dataclass(frozen=True, slots=True)
class Ring:
    """The cost of an operation among n ranks in a ring.

    The algorithm bandwidth is size ÷ time; times `factor` it is the bus bandwidth, which cannot exceed what a device's
    links carry, so a measured busbw is the bandwidth of a link. The size is the buffer of a rank, for all_gather its
    output (all parts) and for reduce_scatter its input (all parts). ``33554432 / 195.40e-6 * factor("all_reduce", 8)``
    is 300.51e9.
    """

    factor: Callable[[int], float]
    """Bytes that cross the busiest rank's link ÷ size."""
    messages: Callable[[int], int]
    """Messages one after another; those of a chain for a broadcast."""


RINGS: dict[str, Ring] = {
    "all_reduce": Ring(lambda n: 2 * (n - 1) / n, lambda n: 2 * (n - 1)),
    "all_gather": Ring(lambda n: (n - 1) / n, lambda n: n - 1),
    "reduce_scatter": Ring(lambda n: (n - 1) / n, lambda n: n - 1),
    "all_to_all": Ring(lambda n: (n - 1) / n, lambda n: n - 1),
    "broadcast": Ring(lambda n: 1.0, lambda n: n - 1),
    "send_recv": Ring(lambda n: 1.0, lambda n: 1),
}


def factor(operation: str, ranks: int) -> float:
    """busbw ÷ algbw. Raises ValueError for an operation that is not in `RINGS`, or fewer than 2 ranks."""
    return _ring(operation, ranks).factor(ranks)


def messages(operation: str, ranks: int) -> int:
    """Steps of the ring. Raises ValueError as `factor` does."""
    return _ring(operation, ranks).messages(ranks)


def _ring(operation: str, ranks: int) -> Ring:
    if operation not in RINGS:
        raise ValueError(f"no collective {operation!r}; use {', '.join(RINGS)}")
    if ranks < 2:
        raise ValueError(f"{operation} among {ranks} ranks moves nothing; use two or more")
    return RINGS[operation]


OUTPUT_BYTES = 2.0
"""Least bytes of an element that a kernel writes: products of 8 and 4 bits write 16 bits."""
PIECE = 128.0
"""Rows and columns of the usual tile of output that a unit of the device makes at a time."""


@dataclass(frozen=True, eq=False)
class Work:
    flops: Floats
    bytes: Floats
    """Compulsory reads and writes of memory."""
    link_bytes: Floats
    """Bytes that the busiest rank sends to other devices."""
    kernels: Floats | float = 1.0
    """Launches that share the bytes; the output of one may be in a cache for the next."""
    pieces: Floats | float = np.inf
    """Parallel parts that need no split sum: the most units that work at once in a library that does not split sums."""


def datasheet_s(work: Work, facts: Facts, arithmetic: str) -> Floats:
    """Seconds by the datasheet: the longest of arithmetic, memory and link."""
    peak = facts.matrix_flops_per_s.get(arithmetic, facts.vector_flops_per_s)
    link = facts.link_bytes_per_s or np.inf
    roofs = (work.flops / peak, work.bytes / facts.bandwidth_bytes_per_s, work.link_bytes / link)
    return np.asarray(np.maximum.reduce(roofs))


def arithmetic(dtype: str, known: Iterable[str]) -> str:
    """The first dtype of `ARITHMETIC` that the device knows, else the last; a dtype without an entry is its own."""
    choices, has = ARITHMETIC.get(dtype, (dtype,)), set(known)
    return next((name for name in choices if name in has), choices[-1])


def weight_bytes(dtype: str) -> float:
    """Bytes of a stored weight; 2 for an unknown dtype."""
    return BITS.get(dtype, 16) / 8


def activation_bytes(dtype: str) -> float:
    """Bytes of an activation: those of the arithmetic, so 2 beside weights in 4 bits ("int4_wo")."""
    return weight_bytes(ARITHMETIC.get(dtype, (dtype,))[0])


def product_work(dims: Dims, dtype: str) -> Work:
    """Products of m × k activations with k × n weights, "batch" of them; outputs have 16 bits or more."""
    m, n, k = dims["m"], dims["n"], dims["k"]
    batch = dims.get("batch", np.ones_like(m))
    inputs = activation_bytes(dtype) * m * k + weight_bytes(dtype) * k * n
    moved = inputs + max(activation_bytes(dtype), OUTPUT_BYTES) * m * n
    pieces = batch * np.ceil(m / PIECE) * np.ceil(n / PIECE)
    return Work(2 * batch * m * n * k, batch * moved, np.zeros_like(moved), pieces=pieces)


def prefill_work(dims: Dims, dtype: str) -> Work:
    """Causal attention of `query` tokens after `context` cached ones: two products a pair, each key and value that any
    query sees is read once for its KV head, queries are read and outputs written."""
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
    """Unmasked (query, key) pairs of one head of one sequence, and the keys that any of its queries sees. Query i sees
    ``context + i + 1`` keys, at most `window` where that is not 0."""
    whole = context + query
    limit = np.where(window > 0, window, whole)
    growing = np.clip(limit - context, 0, query)  # queries that see fewer keys than the limit, or just it
    pairs = growing * context + growing * (growing + 1) / 2 + (query - growing) * np.minimum(limit, whole)
    return pairs, np.minimum(whole, limit + query - 1)


def experts_work(dims: Dims, dtype: str) -> Work:
    """Three matrices of each expert hit on the busiest rank, read once; rows in and out have 16 bits or more."""
    inner = dims["inner"] / dims["tp"]
    loads = expert_loads(dims["tokens"], dims["topk"], dims["experts"], dims["ep"], dims["skew"])
    weights = loads.hit * 3 * dims["hidden"] * inner * dims["weight_bits"] / 8
    rows = 2 * max(activation_bytes(dtype), OUTPUT_BYTES) * dims["tokens"] * dims["hidden"]
    flops = 6 * loads.local * dims["hidden"] * inner
    return Work(flops, weights + rows, np.zeros_like(flops))


def stream_work(dims: Dims, dtype: str) -> Work:
    """Kernels that state "bytes_read", "bytes_written", "flops" and launches ("kernels") themselves."""
    del dtype
    moved = dims["bytes_read"] + dims["bytes_written"]
    flops = dims.get("flops", np.zeros_like(moved))
    return Work(flops, moved, np.zeros_like(moved), kernels=dims.get("kernels", 1.0))


OPERATIONS = tuple(RINGS)
"""Collectives; the dim "operation" is an index into this list, in stored corrections as well."""


def collective_work(dims: Dims, dtype: str) -> Work:
    """Bytes that the busiest rank sends; copies within its own memory are not counted."""
    del dtype
    sent = sent_bytes(dims)
    return Work(np.zeros_like(sent), np.zeros_like(sent), sent)


def sent_bytes(dims: Dims) -> Floats:
    """Bytes that the busiest rank sends."""
    return np.asarray(dims["bytes"] * by_operation(dims, [ring.factor for ring in RINGS.values()]))


def by_operation(dims: Dims, of_ranks: Sequence[Callable[[Any], Any]]) -> Floats:
    """Evaluate for each kernel the function of the number of ranks that belongs to its operation."""
    ranks = np.asarray(dims["ranks"], dtype=float)
    return np.asarray(np.choose(np.asarray(dims["operation"]).astype(int), [formula(ranks) for formula in of_ranks]))


FASTER = 1.2
"""Rate ÷ datasheet's peak at which a device may run for a short time (boost clocks), or because a peak was measured:
the largest bound that most laws give a rate."""
HEADROOM = 10.0
"""Largest multiple of the roofline that is believed ÷ the largest measured one. On ten splits of each of 22 public
tables, held-out groups reach up to 7.4 times the largest multiple of those seen in all but two tables (up to 28 there:
some splits see no kernel of a kind). At 3, single kernels of an H200's decode attention were clipped to a ninth."""


class Bounds(Record):
    """The bounds of all kernels of one kind and dtype on one device.

        floor   = the longest of FLOPs / peak, bytes that no cache can hold / memory, sent bytes / link, over `FASTER`
        ceiling = most · (roofline + overhead)

    The roofline runs on as many units as the kernel has pieces, `overhead` is the shortest measured time, and `most`
    the largest measured ÷ (roofline + overhead) times `HEADROOM`. Where measured kernels are faster than the floor (a
    table that skips work, a datasheet that is too low), the floor is lowered to them. A measured kernel counts only as
    far as the law agrees with it, so that single bad rows loosen nothing.
    """

    overhead_s: float = Field(gt=0, allow_inf_nan=False)
    """Least time of a call in seconds."""
    most: float = Field(ge=1, allow_inf_nan=False)
    """Largest multiple of (roofline + overhead) that a kernel takes."""
    least: float = Field(default=1.0, ge=0, le=1)
    """Part of the floor that every kernel takes; 1 unless measured kernels were faster."""

    @classmethod
    def of(cls, work: Work, facts: Facts, dtype: str, measured_s: Floats, law_s: Floats) -> Self:
        """Bounds from at least one measured kernel, its work and the law's time for it; times in seconds."""
        short_s, long_s = np.minimum(measured_s, law_s), np.maximum(measured_s, law_s)
        overhead_s = float(long_s.min())
        multiples = short_s / (roofline_s(work, facts, dtype) + overhead_s)
        with np.errstate(divide="ignore"):
            over_floor = long_s / floor_s(work, facts, dtype)
        return cls(
            overhead_s=overhead_s,
            most=HEADROOM * max(float(multiples.max()), 1.0),
            least=min(1.0, float(over_floor.min())),
        )

    def held(self, law_s: Floats, work: Work, facts: Facts, dtype: str) -> Floats:
        """The law's seconds, clipped to floor and ceiling."""
        ceiling_s = self.most * (roofline_s(work, facts, dtype) + self.overhead_s)
        return np.asarray(np.clip(law_s, self.least * floor_s(work, facts, dtype), ceiling_s))


def floor_s(work: Work, facts: Facts, dtype: str) -> Floats:
    """Least seconds of a kernel: `FASTER` than the datasheet, with operands in caches as far as they fit."""
    held = np.minimum(work.bytes, facts.cache_bytes * work.kernels)
    outside = Work(work.flops, work.bytes - held, work.link_bytes)
    return datasheet_s(outside, facts, dtype) / FASTER


def roofline_s(work: Work, facts: Facts, dtype: str) -> Floats:
    """Seconds by the datasheet on as many units as the kernel has pieces."""
    return np.asarray(datasheet_s(work, facts, dtype) * facts.units / np.minimum(facts.units, work.pieces))
