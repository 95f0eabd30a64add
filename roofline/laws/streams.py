"""The laws of kernels that only move bytes: streaming ones, matrix-vector products, and collectives.

Pointwise operators, norms, embeddings and copies (`Streaming`) take
``time = kernels·launch + fetch·evicted_code + reductions·reduce + max_soft(bytes / B(kernel bytes), flops / vector)``
where B falls from the cache's bandwidth to the memory's as one kernel's bytes outgrow the part of the last level that
keeps them between kernels. Reduced and gathered bytes are slower by a factor each. Where no vector load takes several
elements (strided, broadcast or converted operands), each costs instructions of the vector units. One eager operation
can be many kernels (an RMSNorm is eight). A product with one row (`Matvec`) streams its matrix and reuses nothing.
"""

from dataclasses import dataclass

import numpy as np

from roofline.laws.law import FETCH, Constant, Dims, Facts, Floats, Values, blend, evicted_code, optional
from roofline.laws.work import RINGS, by_operation, sent_bytes

KNEE = 4.0
"""Power of (size ÷ capacity) with which a cache is outgrown."""
SHARPNESS = 3.0
"""Power of the blend of bytes and vector FLOPs."""


@dataclass(frozen=True, slots=True)
class Streaming:
    """Pointwise operators, norms, embeddings and copies. Optional dims, 0 where absent: "reductions" (number of
    reducing kernels), "strided" and "gathered" (1 or 0), "cold" (share of the bytes that no cache holds beforehand),
    "reach" (as in `evicted_code`)."""

    name: str = "pointwise"
    dims: tuple[str, ...] = ("bytes_read", "bytes_written", "kernels", "elements", "flops")

    def constants(self, facts: Facts, dtype: str) -> tuple[Constant, ...]:
        memory = facts.bandwidth_bytes_per_s
        vector = facts.vector_flops_per_s
        return (
            Constant("launch", "s", 1e-8, 1e-3, 2e-6, 0.7, "cost of one kernel without work"),
            Constant("reduce", "s", 1e-8, 1e-3, 3e-6, 1.0, "additional cost of a kernel that reduces: tree and tail"),
            Constant("memory", "B/s", 0.02 * memory, 1.2 * memory, 0.85 * memory, 0.2, "bandwidth of main memory"),
            Constant("cache", "B/s", 0.1 * memory, 20 * memory, 1.5 * memory, 0.5, "bandwidth of the last-level cache"),
            Constant("resident", "1", 0.05, 2.0, 0.8, 0.4, "part of that cache that holds operands between kernels"),
            Constant("address", "1", 1.0, 400.0, 60.0, 0.5, "instructions for an element that is addressed on its own"),
            Constant("reduced", "1", 0.5, 16.0, 2.0, 0.5, "slowdown of bytes that are reduced, row by row"),
            Constant("gathered", "1", 1.0, 32.0, 3.0, 0.7, "slowdown of rows looked up by index"),
            Constant("vector", "FLOP/s", 1e-3 * vector, vector, 0.3 * vector, 1.0, "arithmetic of the vector units"),
            FETCH,
        )

    def time_s(self, dims: Dims, facts: Facts, dtype: str, values: Values) -> Floats:
        kernels = dims["kernels"]
        moved = dims["bytes_read"] + dims["bytes_written"]
        reductions = optional(dims, "reductions", moved)
        held = values["resident"] * facts.cache_bytes
        size = (moved / kernels / held) ** KNEE
        missed = 1 - (1 - size / (size + 1)) * (1 - optional(dims, "cold", moved))
        slower = 1 + (values["gathered"] - 1) * optional(dims, "gathered", moved)
        slower = slower * (1 + (values["reduced"] - 1) * np.minimum(reductions / kernels, 1.0))
        streamed = moved * slower * (missed / values["memory"] + (1 - missed) / values["cache"])
        fixed = kernels * values["launch"] + values["fetch"] * evicted_code(dims, facts)
        fixed = fixed + reductions * values["reduce"]
        # A lane starts one instruction a cycle, and the peak counts two FLOPs of each.
        addressed = (
            values["address"] * optional(dims, "strided", moved) * dims["elements"] * 2 / facts.vector_flops_per_s
        )
        return np.asarray(fixed + blend(streamed, dims["flops"] / values["vector"] + addressed, SHARPNESS))


MATRIX_KNEE = 2.0
"""Power of (size ÷ capacity) for a matrix that is read once."""


class Matvec:
    """A matrix-vector product; "elements" are outputs.

    ``time = launch + outputs · output + missed · rows · row · r / √(r² + ramp²) + bytes / B``

    B falls from the cache's bandwidth to the memory's with the share "missed" of bytes that no cache holds: evicted by
    other work (dim "cold"), or beyond the part `resident` of the last-level cache. Each output ends with a sum over the
    lanes of a vector or a group of threads (`output`, for all units together). Each stored row of r bytes starts a new
    stream from main memory (`row`), which a row shorter than `ramp` does not pay in full. The first bytes from main
    memory are waited for (`latency`), and evicted code is fetched. "cold" defaults to 0, "rows" to the outputs.
    """

    name = "matvec"
    dims: tuple[str, ...] = ("bytes_read", "bytes_written", "elements")

    def constants(self, facts: Facts, dtype: str) -> tuple[Constant, ...]:
        memory = facts.bandwidth_bytes_per_s
        return (
            Constant("launch", "s", 1e-8, 1e-3, 2e-6, 0.7, "cost of a call without work"),
            Constant("output", "s", 1e-13, 1e-6, 2e-8 / facts.units, 1.5, "cost of one output on all units together"),
            Constant("row", "s", 1e-13, 1e-6, 4e-8 / facts.units, 1.5, "start of a row from main memory, likewise"),
            Constant("ramp", "B", 1.0, 1e5, 500.0, 1.0, "length of a row below which that is not paid in full"),
            Constant("memory", "B/s", 0.05 * memory, 1.2 * memory, 0.7 * memory, 0.5, "matrix out of main memory"),
            Constant("cache", "B/s", 0.1 * memory, 20 * memory, 2 * memory, 0.7, "matrix in a cache"),
            Constant("resident", "1", 0.02, 2.0, 0.5, 0.7, "part of the last-level cache that holds a matrix"),
            Constant("latency", "s", 1e-8, 2e-4, 2e-6, 1.0, "first bytes out of main memory"),
            FETCH,
        )

    def time_s(self, dims: Dims, facts: Facts, dtype: str, values: Values) -> Floats:
        moved = dims["bytes_read"] + dims["bytes_written"]
        size = (moved / (values["resident"] * facts.cache_bytes)) ** MATRIX_KNEE
        missed = 1 - (1 - size / (size + 1)) * (1 - optional(dims, "cold", moved))
        streamed = moved * (missed / values["memory"] + (1 - missed) / values["cache"])
        once = values["launch"] + values["fetch"] * evicted_code(dims, facts) + missed * values["latency"]
        rows = dims.get("rows", dims["elements"])
        started = rows * values["row"] / np.hypot(1.0, values["ramp"] * rows / moved)
        return np.asarray(once + dims["elements"] * values["output"] + missed * started + streamed)


STEPS = [ring.messages if name != "all_to_all" else lambda n: 1 for name, ring in RINGS.items()]
"""Messages one after another, by operation: those of a ring, and 1 where every pair communicates at once."""
OF_PROTOCOLS = 6.0
"""Power of the soft minimum of the two protocols; held, since no table tried could determine it."""
POINT_TO_POINT = (3, 5)
"""Operations made of messages between pairs, as indices: all_to_all and send_recv."""


class Collective:
    """Collectives of ranks on one kind of link: launch, steps of a ring, and the faster of two protocols.

    With S the size (nccl-tests' meaning, `roofline.laws.work`) and n ranks:
    ``time = launch + step · steps(operation, n) + min_soft(W / slow, sync + W / busbw)``
    - steps: n − 1 of a ring, 2(n − 1) for an all-reduce, 1 where every pair communicates at once (all-to-all, send);
    - W: the bytes that a rank sends, plus `own` × the S/n that stays with it and is copied or added in place;
    - small packets with their own flags (NCCL's LL and LL128) run at `slow`; large chunks (Simple) wait `sync` for
      their signals and run at `busbw`. The library takes the faster. Point-to-point operations have their own `slow`
      and `sync`.
    - Between nodes (dim "per_node") a ring is as fast as its slowest link, `network`, and a message takes `hop` longer.
    The dim "operation" is an index into `roofline.laws.work.OPERATIONS`.
    """

    name = "collective"
    dims = ("bytes", "ranks", "operation")

    def constants(self, facts: Facts, dtype: str) -> tuple[Constant, ...]:
        if facts.link_bytes_per_s is None:
            raise ValueError("a collective needs the bandwidth of the device's link; its facts have none")
        link = facts.link_bytes_per_s
        return (
            Constant("launch", "s", 1e-7, 1e-2, 5e-6, 1.0, "start of the kernel on all ranks"),
            Constant("step", "s", 1e-8, 1e-3, 1e-6, 0.7, "one message of the ring"),
            Constant("pairing", "s", 1e-9, 1e-3, 1e-6, 1.0, "additional start of point-to-point messages"),
            Constant("slow", "B/s", 1e-3 * link, link, 0.3 * link, 0.8, "bus bandwidth of small packets"),
            Constant("slow_pairs", "B/s", 1e-4 * link, link, 0.05 * link, 1.0, "the same, point to point"),
            Constant("sync", "s", 1e-8, 1e-2, 15e-6, 0.8, "signals of large chunks"),
            Constant("sync_pairs", "s", 1e-8, 1e-2, 10e-6, 0.8, "the same, point to point"),
            Constant("busbw", "B/s", 1e-2 * link, 1.2 * link, 0.8 * link, 0.4, "bus bandwidth of large chunks"),
            Constant("network", "B/s", 1e-4 * link, link, 0.08 * link, 1.0, "bus bandwidth between nodes"),
            Constant("hop", "s", 1e-8, 1e-3, 1e-5, 1.0, "additional time of a message between nodes"),
            Constant("own", "1", 1e-2, 2.0, 0.4, 0.7, "time of a byte that stays with its rank ÷ a sent byte's"),
        )

    def time_s(self, dims: Dims, facts: Facts, dtype: str, values: Values) -> Floats:
        pairs = np.isin(dims["operation"], POINT_TO_POINT)
        worked = sent_bytes(dims) + values["own"] * dims["bytes"] / dims["ranks"]
        nodes = np.ceil(dims["ranks"] / dims["per_node"]) if "per_node" in dims else np.ones_like(worked)
        across = nodes > 1
        latency = values["launch"] + values["step"] * by_operation(dims, STEPS) + values["pairing"] * pairs
        latency = latency + values["hop"] * np.where(across, by_operation({**dims, "ranks": nodes}, STEPS), 0.0)
        small = worked / np.where(pairs, values["slow_pairs"], values["slow"])
        large = np.where(pairs, values["sync_pairs"], values["sync"]) + worked / values["busbw"]
        network = np.where(across, worked / values["network"], 0.0)
        return np.asarray(latency + np.maximum(_faster(small, large), network))


class OwnAllReduce(Collective):
    """The same for an all-reduce of a serving engine's own, whose constants are others: one launch in a captured graph,
    and direct reads of all ranks' buffers instead of a ring."""

    name = "own_all_reduce"


def _faster(first: Floats, second: Floats) -> Floats:
    """A soft minimum: the smaller time, reduced a little where both are close."""
    least = np.maximum(np.minimum(first, second), np.finfo(float).tiny)
    ratios = (least / np.maximum(first, least)) ** OF_PROTOCOLS + (least / np.maximum(second, least)) ** OF_PROTOCOLS
    return np.asarray(least * ratios ** (-1 / OF_PROTOCOLS))
