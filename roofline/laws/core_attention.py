"""The law of fused attention on cores with vector units: a CPU.

``fixed + pieces · piece / units + flops · (1 + half_query / query) / rate + pairs / exponentials + bytes / B``

A core takes a block of query rows of one head at a time and walks over the keys: two products, an exponential a pair,
keys and values read, from main memory as far as no cache holds them ("cold"). Little of that goes on beside the rest,
so the parts are added. A head with few query rows leaves most of a vector's or block's lanes empty (`half_query`, as
Hockney's n½). Causal pairs are counted exactly; keys and values of a group of heads count once.

Example: ``CoreAttention("core_decode_attention").time_s(dims, facts, "float32", values)``
"""

from dataclasses import dataclass

import numpy as np

from roofline.laws.driven_out import FETCH, driven_out
from roofline.laws.law import Constant, Dims, Facts, Floats, Values

BLOCK = 32.0
"""Query rows that a core takes at a time, at most (torch's flash attention on CPUs takes 32 to 256)."""
DECODE = "core_decode_attention"


@dataclass(frozen=True, slots=True)
class CoreAttention:
    """Of prefill or decode; dims as those of the law of the same kind on other devices."""

    kind: str = "core_prefill_attention"

    @property
    def dims(self) -> tuple[str, ...]:
        lengths = ("kv",) if self.kind == DECODE else ("query", "context")
        return ("batch", "heads", "kv_heads", *lengths, "head_dim", "window", "kv_bytes")

    def constants(self, facts: Facts, dtype: str) -> tuple[Constant, ...]:
        """Eight, scaled to the device. Raises KeyError where its peak for the dtype is not known."""
        peak, memory, vector = facts.matrix_flops_per_s[dtype], facts.bandwidth_bytes_per_s, facts.vector_flops_per_s
        return (
            Constant("fixed", "s", 2e-7, 1e-3, 1e-5, 1.0, "cost of a call"),
            Constant("piece", "s", 1e-8, 1e-3, 2e-6, 1.0, "of a block of query rows of one head, on its core"),
            Constant("rate", "FLOP/s", 0.02 * peak, 1.2 * peak, 0.6 * peak, 0.5, "the two products, many query rows"),
            Constant("half_query", "1", 0.05, 300.0, 4.0, 1.0, "query rows at which half of the rate is reached"),
            Constant("exponentials", "1/s", 1e-3 * vector, vector, 0.05 * vector, 1.0, "of all cores"),
            Constant("memory", "B/s", 0.05 * memory, 2 * memory, 0.7 * memory, 0.5, "bytes out of main memory"),
            Constant("cache", "B/s", 0.1 * memory, 40 * memory, 2 * memory, 0.7, "queries, keys, values in a cache"),
            FETCH,
        )

    def time_s(self, dims: Dims, facts: Facts, dtype: str, values: Values) -> Floats:
        """Seconds of each call."""
        del dtype
        batch, heads, kv_heads, head_dim, window, width = (
            np.asarray(dims[name], dtype=float)
            for name in ("batch", "heads", "kv_heads", "head_dim", "window", "kv_bytes")
        )
        decode = self.kind == DECODE
        query = np.ones_like(batch) if decode else np.asarray(dims["query"], dtype=float)
        context = np.asarray(dims["kv"], dtype=float) - 1 if decode else np.asarray(dims["context"], dtype=float)
        limit = np.where(window > 0, window, context + query)
        growing = np.clip(limit - context, 0, query)
        seen = np.minimum(limit, context + query)
        pairs = batch * heads * (growing * context + growing * (growing + 1) / 2 + (query - growing) * seen)
        pieces = np.ceil(batch * heads * np.ceil(query / BLOCK) / facts.units)
        moved = (
            width * batch * head_dim * (2 * heads * query + 2 * kv_heads * np.minimum(context + query, limit + query))
        )
        products = 4 * pairs * head_dim / values["rate"] * (1 + values["half_query"] / query)
        cold = np.asarray(dims.get("cold", np.zeros_like(batch)), dtype=float)
        streamed = moved * (cold / values["memory"] + (1 - cold) / values["cache"])
        once = values["fixed"] + values["fetch"] * driven_out(dims, facts) + pieces * values["piece"]
        return np.asarray(once + products + pairs / values["exponentials"] + streamed)
