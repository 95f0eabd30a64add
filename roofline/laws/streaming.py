"""Kernels that stream: pointwise, norms, embeddings, copies; a launch each, and their bytes from cache or memory.

``time = kernels·launch + fetch·driven_out + reductions·reduce + max_soft(bytes / B(kernel bytes), flops / vector)``
where B goes from the cache's bandwidth to the memory's as what one kernel touches outgrows the part of the last level
that is held between kernels (in tables taken warm, and between the kernels of one eager operation). Strided,
reduced and gathered bytes are slower by a factor each. What is one operation on paper can be many kernels: an eager
RMSNorm is eight.

Example: ``Streaming("norm").time_s({"bytes_read": r, "bytes_written": w, "kernels": one, "elements": e, "flops": f},
facts, "bfloat16", values)``
"""

from dataclasses import dataclass

import numpy as np

from roofline.laws.driven_out import FETCH, driven_out
from roofline.laws.four_constant import blend
from roofline.laws.law import Constant, Dims, Facts, Floats, Values

KNEE = 4.0
"""How sharply a cache is outgrown: the power of size over capacity."""
SHARPNESS = 3.0
"""Of the blend of bytes and vector FLOPs."""


@dataclass(frozen=True, slots=True)
class Streaming:
    """The law; optional dims, 0 where absent: "reductions" (kernels that reduce), "strided" and "gathered" (1 or 0),
    "cold" (share of the bytes that no cache holds beforehand), "reach" (as `driven_out` has it)."""

    kind: str = "pointwise"
    dims: tuple[str, ...] = ("bytes_read", "bytes_written", "kernels", "elements", "flops")

    def constants(self, facts: Facts, dtype: str) -> tuple[Constant, ...]:
        memory = facts.bandwidth_bytes_per_s
        vector = facts.vector_flops_per_s
        return (
            Constant("launch", "s", 1e-8, 1e-3, 2e-6, 0.7, "cost of one kernel without work"),
            Constant("reduce", "s", 1e-8, 1e-3, 3e-6, 1.0, "more for a kernel that reduces: its tree, its tail"),
            Constant("memory", "B/s", 0.02 * memory, 1.2 * memory, 0.85 * memory, 0.2, "bandwidth of main memory"),
            Constant("cache", "B/s", 0.1 * memory, 20 * memory, 1.5 * memory, 0.5, "bandwidth of the last-level cache"),
            Constant("resident", "1", 0.05, 2.0, 0.8, 0.4, "part of that cache that holds operands between kernels"),
            Constant("strided", "1", 1.0, 16.0, 2.0, 0.4, "slowdown of bytes that are not contiguous"),
            Constant("reduced", "1", 0.5, 16.0, 2.0, 0.5, "slowdown of bytes that are reduced, row by row"),
            Constant("gathered", "1", 1.0, 32.0, 3.0, 0.7, "slowdown of rows looked up by index"),
            Constant("vector", "FLOP/s", 1e-3 * vector, vector, 0.3 * vector, 1.0, "arithmetic of the vector units"),
            FETCH,
        )

    def time_s(self, dims: Dims, facts: Facts, dtype: str, values: Values) -> Floats:
        kernels = dims["kernels"]
        moved = dims["bytes_read"] + dims["bytes_written"]
        none = np.zeros_like(kernels)
        held = values["resident"] * facts.cache_bytes
        size = (moved / kernels / held) ** KNEE
        missed = 1 - (1 - size / (size + 1)) * (1 - dims.get("cold", none))
        slower = 1 + (values["strided"] - 1) * dims.get("strided", none)
        slower = slower * (1 + (values["gathered"] - 1) * dims.get("gathered", none))
        slower = slower * (1 + (values["reduced"] - 1) * np.minimum(dims.get("reductions", none) / kernels, 1.0))
        streamed = moved * slower * (missed / values["memory"] + (1 - missed) / values["cache"])
        fixed = kernels * values["launch"] + values["fetch"] * driven_out(dims, facts)
        fixed = fixed + dims.get("reductions", none) * values["reduce"]
        return np.asarray(fixed + blend(streamed, dims["flops"] / values["vector"], SHARPNESS))


POINTWISE = Streaming("pointwise")
NORM = Streaming("norm")
EMBEDDING = Streaming("embedding")
