"""The laws of cores with vector units: products, attention, what streams, and the host's time between operations.

They replace the laws of matrix units on large tiles where the device is a CPU (`KernelKind.law_on_cpu`). Loops need
length to reach their rate, as in Hockney's n½ (Hockney, Jesshope, "Parallel Computers 2", 1988): half of the rate is
reached at `half_m` rows, `half_query` query rows, and so on.
"""

from dataclasses import dataclass

import numpy as np

from roofline.dtypes import ELEMENT_BYTES
from roofline.laws.law import FETCH, Constant, Dims, Facts, Floats, Values, blend, evicted_code, optional
from roofline.laws.matmul import peak_of, product_of
from roofline.laws.work import decode_work, prefill_work

GRAIN = 32768.0
"""Elements of a kernel up to which one core does all of it: torch shares more among its threads (GRAIN_SIZE of
aten/src/ATen/TensorIterator.h). Waking them costs about what they save until each has as many."""
ALONE = 0.5
"""Power of the number of cores by which fewer of them draw less from main memory: one of two cores draws 0.7 of what
both do. On two cores of an EPYC 1 fits about as well, and 0 worse."""
CORE_KNEE = 4.0
"""Power of (size ÷ capacity) with which a cache is outgrown, as in `roofline.laws.streams`."""


@dataclass(frozen=True, slots=True)
class CoreStreaming:
    """Pointwise operators, norms, embeddings and copies on cores: sizes as `roofline.laws.streams.Streaming` has them.

    ``time = kernels · (launch + number) + fetch · evicted_code + longest share · (bytes / B + elements · element)``

    A small kernel (up to `GRAIN` elements, read and written once) is all one core's, which has its part of the cache's
    bandwidth and of the vector units; B falls to main memory's as in `Streaming`. A kernel that reads no more than it
    writes has one operand of full size. In `add` and `mul` the other one then is a number, which torch makes a tensor
    first (`number`).
    """

    name: str = "core_pointwise"
    dims: tuple[str, ...] = ("bytes_read", "bytes_written", "kernels", "elements")

    def constants(self, facts: Facts, dtype: str) -> tuple[Constant, ...]:
        memory = facts.bandwidth_bytes_per_s
        return (
            Constant("launch", "s", 1e-8, 1e-3, 2e-6, 0.7, "cost of one kernel without work"),
            Constant("number", "s", 1e-8, 1e-4, 1e-6, 1.0, "additional cost where an operand is a number"),
            Constant("memory", "B/s", 0.02 * memory, 1.2 * memory, 0.7 * memory, 0.3, "bandwidth of main memory"),
            Constant("cache", "B/s", 0.02 * memory, 20 * memory, 2 * memory, 0.7, "bandwidth of the last-level cache"),
            Constant("resident", "1", 0.05, 2.0, 0.5, 0.4, "part of that cache that holds operands between kernels"),
            Constant("element", "s", 1e-13, 1e-6, 3e-10 / facts.units, 1.5, "arithmetic of an element on all cores"),
            FETCH,
        )

    def time_s(self, dims: Dims, facts: Facts, dtype: str, values: Values) -> Floats:
        kernels, moved = dims["kernels"], dims["bytes_read"] + dims["bytes_written"]
        size = (moved / kernels / (values["resident"] * facts.cache_bytes)) ** CORE_KNEE
        missed = 1 - (1 - size / (size + 1)) * (1 - optional(dims, "cold", moved))
        longest = facts.units * _longest(dims["elements"] / kernels, GRAIN, facts.units)
        piece = moved / kernels
        width = ELEMENT_BYTES.get(dtype, ELEMENT_BYTES["float32"])
        slower = facts.units * _longest(piece, 2 * width * GRAIN, facts.units) / piece
        streamed = moved * (missed * slower**ALONE / values["memory"] + (1 - missed) * slower / values["cache"])
        one_operand = dims["bytes_read"] <= dims["bytes_written"]
        once = kernels * (values["launch"] + values["number"] * one_operand)
        once = once + values["fetch"] * evicted_code(dims, facts)
        return np.asarray(once + streamed + kernels * longest * values["element"])


def _longest(work: Floats, grain: float, units: int) -> Floats:
    """The part of some work that the busiest core does, where up to `grain` is all one core's."""
    return np.maximum(np.minimum(work, grain), work / units)


class CoreMatmul:
    """A product of two matrices by a library of blocked loops. n × k are weights, m × k activations.

    ``time = fixed + (loops^p + traffic^p)^(1/p)``. A core computes small blocks of the output from panels that it has
    copied into its caches (Goto, van de Geijn, "Anatomy of high-performance matrix multiplication", ACM TOMS 34(3),
    2008). Copying counts as traffic, so `memory` and `cache` are bytes of the operands per second, below a device's
    bandwidth; p is near 1, since little of it overlaps with the loops. Bytes that no cache holds beforehand are those
    of the dim "cold", weights first, or of the weights beyond the part `resident` of the last-level cache.
    """

    name = "core_matmul"
    dims: tuple[str, ...] = ("m", "n", "k")

    def constants(self, facts: Facts, dtype: str) -> tuple[Constant, ...]:
        peak, memory = peak_of(facts, dtype), facts.bandwidth_bytes_per_s
        return (
            Constant("fixed", "s", 2e-7, 1e-3, 5e-6, 1.0, "cost of a call that no size explains"),
            Constant("rate", "FLOP/s", 0.1 * peak, 1.2 * peak, 0.95 * peak, 0.2, "long loops on all cores"),
            Constant("half_m", "1", 0.1, 100.0, 3.0, 1.0, "rows at which half of the rate is reached"),
            Constant("half_n", "1", 0.1, 1000.0, 10.0, 1.0, "columns at which it is"),
            Constant("half_k", "1", 0.1, 1000.0, 10.0, 1.0, "depth at which it is"),
            Constant("memory", "B/s", 0.02 * memory, memory, 0.4 * memory, 0.6, "operands out of main memory, copied"),
            Constant("cache", "B/s", 0.05 * memory, 20 * memory, 1.5 * memory, 0.7, "operands in a cache, copied"),
            Constant("resident", "1", 0.02, 2.0, 0.5, 0.7, "part of the last-level cache that holds weights"),
            Constant("latency", "s", 1e-8, 2e-4, 5e-6, 1.0, "first bytes of weights out of main memory"),
            Constant("sharpness", "1", 1.0, 6.0, 1.3, 0.3, "power of the blend of loops and traffic"),
            FETCH,
        )

    def time_s(self, dims: Dims, facts: Facts, dtype: str, values: Values) -> Floats:
        product = product_of(dims, dtype)
        loops = product.flops / values["rate"]
        for size, half in ((product.m, "half_m"), (product.n, "half_n"), (product.k, "half_k")):
            loops = loops * (1 + values[half] / size)
        weights = product.element_bytes * product.k * product.n
        others = product.element_bytes * (product.m * product.k + product.m * product.n)
        outgrown = weights**2 / (weights**2 + (values["resident"] * facts.cache_bytes) ** 2)
        outside = np.maximum(product.cold * (weights + others), outgrown * weights)
        traffic = outside / values["memory"] + (weights + others - outside) / values["cache"]
        waited = np.minimum(outside / weights, 1.0) * values["latency"]
        once = values["fixed"] + values["fetch"] * evicted_code(dims, facts)
        return np.asarray(once + waited + blend(loops, traffic, values["sharpness"]))


BLOCK = 32.0
"""Largest number of query rows that a core takes at a time (torch's flash attention on CPUs takes 32 to 256)."""
DECODE = "core_decode_attention"


@dataclass(frozen=True, slots=True)
class CoreAttention:
    """Fused attention, prefill or decode (`DECODE`), with the sizes of the same kind's law on other devices.

    ``fixed + pieces · piece / units + flops · (1 + half_query / query) / rate + pairs / exponentials + bytes / B``

    A core takes a block of query rows of one head at a time and walks over the keys: two products, an exponential a
    pair, keys and values read, from main memory as far as no cache holds them ("cold"). Little of that overlaps, so the
    parts are added. A head with few query rows leaves most lanes of a vector empty (`half_query`).
    """

    name: str = "core_prefill_attention"

    @property
    def dims(self) -> tuple[str, ...]:
        lengths = ("kv",) if self.name == DECODE else ("query", "context")
        return ("batch", "heads", "kv_heads", *lengths, "head_dim", "window", "kv_bytes")

    def constants(self, facts: Facts, dtype: str) -> tuple[Constant, ...]:
        peak, memory, vector = facts.matrix_flops_per_s[dtype], facts.bandwidth_bytes_per_s, facts.vector_flops_per_s
        return (
            Constant("fixed", "s", 2e-7, 1e-3, 1e-5, 1.0, "cost of a call"),
            Constant("piece", "s", 1e-8, 1e-3, 2e-6, 1.0, "a block of query rows of one head, on its core"),
            Constant("rate", "FLOP/s", 0.02 * peak, 1.2 * peak, 0.6 * peak, 0.5, "the two products, many query rows"),
            Constant("half_query", "1", 0.05, 300.0, 4.0, 1.0, "query rows at which half of the rate is reached"),
            Constant("exponentials", "1/s", 1e-3 * vector, vector, 0.05 * vector, 1.0, "exponentials of all cores"),
            Constant("memory", "B/s", 0.05 * memory, 2 * memory, 0.7 * memory, 0.5, "bytes out of main memory"),
            Constant("cache", "B/s", 0.1 * memory, 40 * memory, 2 * memory, 0.7, "queries, keys, values in a cache"),
            FETCH,
        )

    def time_s(self, dims: Dims, facts: Facts, dtype: str, values: Values) -> Floats:
        sizes = {name: np.asarray(dims[name], dtype=float) for name in self.dims}
        batch, heads, head_dim = sizes["batch"], sizes["heads"], sizes["head_dim"]
        query = sizes.get("query", np.ones_like(batch))
        work = (decode_work if self.name == DECODE else prefill_work)(sizes, dtype)
        pieces = np.ceil(batch * heads * np.ceil(query / BLOCK) / facts.units)
        products = work.flops / values["rate"] * (1 + values["half_query"] / query)
        exponentials = work.flops / (4 * head_dim) / values["exponentials"]
        cold = optional(dims, "cold", batch)
        streamed = work.bytes * (cold / values["memory"] + (1 - cold) / values["cache"])
        once = values["fixed"] + values["fetch"] * evicted_code(dims, facts) + pieces * values["piece"]
        return np.asarray(once + products + exponentials + streamed)


class HostGap:
    """The host's time between two operations of an eager pass, where it does not run ahead.

    ``time = (operation + modules · module) · (1 + (cold − 1) · size / (1 + size))``: the interpreter goes on to the
    next operator and on its way leaves and enters "modules", slower where the layers in between have evicted it from
    the caches: ``size = (reach + share · streamed) / (held · last-level cache)``, with the bytes touched since the same
    line of the model last ran by products with one row ("streamed") and by all else ("reach"). A matrix that is
    streamed once evicts less than a product of many rows, which copies its operands through the caches (on an AMD
    Zen 3, layers of 75 MB slow the interpreter by a third when they decode, threefold when they prefill).
    """

    name = "host_gap"
    dims: tuple[str, ...] = ("modules", "reach", "streamed")

    def constants(self, facts: Facts, dtype: str) -> tuple[Constant, ...]:
        return (
            Constant("operation", "s", 1e-7, 1e-4, 5e-6, 1.0, "the interpreter's time for an operator"),
            Constant("module", "s", 1e-7, 1e-4, 6e-6, 1.0, "the interpreter's time to leave or enter a module"),
            Constant("cold", "1", 1.0, 20.0, 5.0, 0.7, "slowdown where the interpreter comes from main memory"),
            Constant("held", "1", 0.1, 50.0, 4.0, 0.7, "last-level caches of bytes that evict half of it"),
            Constant("share", "1", 0.0, 1.0, 0.15, 0.1, "part of streamed bytes that evict as others do", False),
        )

    def time_s(self, dims: Dims, facts: Facts, dtype: str, values: Values) -> Floats:
        warm = values["operation"] + np.asarray(dims["modules"], dtype=float) * values["module"]
        reach = np.asarray(dims["reach"], dtype=float) + values["share"] * np.asarray(dims["streamed"], dtype=float)
        size = reach / (values["held"] * facts.cache_bytes)
        return np.asarray(warm * (1 + (values["cold"] - 1) * size / (1 + size)))
