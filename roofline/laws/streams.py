"""The laws of kernels that stream: pointwise, norms, embeddings, copies (`Streaming`), and matrix-vector products.

``time = kernels·launch + fetch·evicted_code + reductions·reduce + max_soft(bytes / B(kernel bytes), flops / vector)``
where B falls from the cache's bandwidth to the memory's as one kernel's bytes outgrow the part of the last level that
keeps them between kernels. Reduced and gathered bytes are slower by a factor each. Where no vector load takes several
elements (strided, broadcast or converted operands), each costs instructions of the vector units. One eager operation
can be many kernels (an RMSNorm is eight). A product with one row (`Matvec`) streams its matrix and reuses nothing.
"""

from dataclasses import dataclass

import numpy as np

from roofline.laws.law import FETCH, Constant, Dims, Facts, Floats, Values, blend, evicted_code, optional

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
