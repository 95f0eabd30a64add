"""Which kernels a device is asked to run for its calibration: shapes that follow from the device alone.

Candidates are drawn over the sizes that a device can be asked for: products from one row to as many as take
`LONGEST_S`, matrices of up to `LARGEST` last-level caches, attention with as many pieces as units and many times that,
streams from one element to a good part of the cache. Among the candidates of products and attention the law itself
chooses within a budget of points and seconds (`calibrate.budget`); streams are few and taken whole. No model's shapes
are in here.

Example: ``kernel_shapes(facts, ("float32",), memory_bytes=24e9)``
"""

from collections.abc import Sequence

import numpy as np

from calibrate.budget import design_within
from calibrate.design import Rows
from profiler.record.kernel_shape import KernelShape
from roofline.laws.law import Dims, Facts, Floats
from roofline.laws.matmul import ELEMENT_BYTES
from roofline.laws.registry import ROW_MAJOR, subject
from roofline.subjects import MATVEC

LONGEST_S = 0.03
"""Of one product or attention at half of the device's peaks."""
LARGEST = 8.0
"""Last-level caches that a matrix fills at most: all beyond is main memory."""
MEMORY_PART = 1 / 16
"""Of the device's memory, the most for one kernel's operands."""
CANDIDATES = 3000
PASS_S = 0.5
"""For all kernels of a kind and dtype, each once, as their law expects before anything is measured."""
POINTS = {"matmul": 40, MATVEC: 24, "prefill_attention": 14, "decode_attention": 14}
"""Of each dtype."""
STREAM_SIZES = 8
"""From `SMALLEST` to `LARGEST_STREAM`, evenly on a logarithm."""
SMALLEST = 4
"""Bytes of the smallest stream: an element, as of a norm's mean."""
LARGEST_STREAM = 0.25
"""Last-level caches that one operand of a stream fills at most: main memory is seen by operands that take turns, and
larger results come from the system page by page."""
WIDTHS = (64, 256, 1024, 4096)
"""Elements of a row of a stream, in turn by size."""
ODD = 0.15
"""Share of products with a size that is not a multiple of anything: vocabularies are."""
UNIT = 32
"""Other sizes are multiples of it."""
WIDEST = 16384.0
"""Depth of a product; twice that and more are for its columns."""
VOCABULARY = 2**18
"""Columns of the largest one: 256 k tokens, the largest of today's vocabularies (Gemma's)."""
VOCABULARIES = 0.1
"""Share of products with up to 16 times as many columns."""
LONGEST_CONTEXT = 16384


def kernel_shapes(
    facts: Facts,
    dtypes: Sequence[str],
    memory_bytes: float,
    streaming: Sequence[str],
    *,
    quick: bool = False,
    seed: int = 0,
) -> list[KernelShape]:
    """All kernels of a calibration. Args: `memory_bytes`, of the device; `streaming`, operators that stream; `quick`,
    half of them.
    """
    found: list[KernelShape] = []
    for dtype in dtypes:
        generator = np.random.default_rng(seed)
        found += _products(facts, dtype, memory_bytes, generator, seed)
        found += _attention(facts, dtype, memory_bytes, generator, seed)
        found += [shape for op in streaming for shape in _streams(facts, dtype, op)]
    return found[:: 2 if quick else 1]


def _products(
    facts: Facts, dtype: str, memory_bytes: float, generator: np.random.Generator, seed: int
) -> list[KernelShape]:
    width = ELEMENT_BYTES[dtype]
    most = min(LARGEST * facts.cache_bytes, MEMORY_PART * memory_bytes)
    k = _sizes(generator, 2 * UNIT, WIDEST)
    n = np.where(
        generator.uniform(size=CANDIDATES) < VOCABULARIES,
        _sizes(generator, WIDEST, 16 * WIDEST),
        _sizes(generator, 2 * UNIT, 2 * WIDEST),
    )
    m = _log_uniform(generator, 2, 4096)
    seconds = 4 * m * n * k / facts.matrix_flops_per_s[dtype]
    fits = (n * k * width <= most) & (seconds <= LONGEST_S)
    sizes = {"m": m[fits], "n": n[fits], "k": k[fits]}
    chosen = _taken(sizes, _designed("matmul", sizes, facts, dtype, seed))
    fits = n * k * width <= most
    n, k = n[fits], k[fits]
    streamed = {"bytes_read": width * (n + 1) * k, "bytes_written": width * n, "elements": n}
    single = _taken({"m": np.ones_like(n), "n": n, "k": k}, _designed(MATVEC, streamed, facts, dtype, seed))
    found = {"matmul": chosen, MATVEC: [*single[1:], _largest(most, width)]}
    shapes = [
        KernelShape(kind, dtype, "aten::addmm" if i % 4 == 0 else "aten::mm", sizes)
        for kind, each in found.items()
        for i, sizes in enumerate(each)
    ]
    others = [
        KernelShape(f"{kind}{ROW_MAJOR}", dtype, "aten::addmm", one) for kind in found for one in found[kind][::2]
    ]
    return shapes + others


def _largest(most: float, width: float) -> dict[str, int]:
    """A product with one row and a matrix of twice `most` bytes, as wide as vocabularies: the far end of the range."""
    n = min(VOCABULARY, round(2 * most / width / UNIT))
    odd = 1 | max(1, round(2 * most / width / n / UNIT))  # rows of whole pages are a case of their own
    return {"m": 1, "n": n, "k": UNIT * odd}


def _attention(
    facts: Facts, dtype: str, memory_bytes: float, generator: np.random.Generator, seed: int
) -> list[KernelShape]:
    width = ELEMENT_BYTES[dtype]
    group = generator.choice((1, 2, 4, 7, 8), CANDIDATES)
    kv_heads = generator.choice((1, 2, 3, 4, 8, 12, 16, 32), CANDIDATES)
    head_dim = generator.choice((64, 128), CANDIDATES)
    heads = group * kv_heads
    length = _log_uniform(generator, 16, LONGEST_CONTEXT)
    batch = _log_uniform(generator, 1, 64)
    moved = 2 * batch * kv_heads * length * head_dim * width
    most = min(LARGEST * facts.cache_bytes, MEMORY_PART * memory_bytes)
    named = {"batch": batch, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
    shared = {name: np.asarray(column, dtype=float) for name, column in named.items()}
    shared |= {"window": np.zeros(CANDIDATES), "kv_bytes": np.full(CANDIDATES, width)}
    shapes = []
    for kind, query in (("prefill_attention", length), ("decode_attention", np.ones(CANDIDATES, dtype=float))):
        seconds = 4 * batch * heads * query * length * head_dim / facts.matrix_flops_per_s[dtype]
        fits = (moved <= most) & (heads <= 64) & (seconds <= LONGEST_S)
        lengths: dict[str, Floats] = {"query": query, "kv": length, "context": length - query}
        dims = shared | lengths
        allowed = {name: column[fits] for name, column in dims.items()}
        chosen = _taken(allowed, _designed(kind, allowed, facts, dtype, seed))
        names = ("batch", "heads", "kv_heads", "head_dim", "query", "kv")
        shapes += [
            KernelShape(kind, dtype, "aten::scaled_dot_product_attention", {name: one[name] for name in names})
            for one in chosen
        ]
    return shapes


def _streams(facts: Facts, dtype: str, op: str) -> list[KernelShape]:
    width_bytes = ELEMENT_BYTES[dtype]
    sizes = np.geomspace(SMALLEST, LARGEST_STREAM * facts.cache_bytes, STREAM_SIZES) / width_bytes
    shapes = []
    for i, elements in enumerate(sizes):
        width = max(1, min(WIDTHS[i % len(WIDTHS)], int(elements)))
        shapes.append(KernelShape(op, dtype, op, {"rows": max(1, round(elements / width)), "width": width}))
    return shapes


def _sizes(generator: np.random.Generator, least: float, most: float) -> Floats:
    """Whole, evenly on a logarithm; most of them multiples of `UNIT`."""
    sizes = _log_uniform(generator, least, most)
    odd = generator.uniform(size=CANDIDATES) < ODD
    return np.where(odd, sizes, UNIT * np.maximum(1.0, np.round(sizes / UNIT)))


def _log_uniform(generator: np.random.Generator, least: float, most: float) -> Floats:
    drawn: Floats = np.exp(generator.uniform(np.log(least), np.log(most), CANDIDATES))
    return np.round(drawn)


def _designed(kind: str, dims: Dims, facts: Facts, dtype: str, seed: int) -> Rows:
    law, arithmetic = subject(kind, dtype, facts)
    return design_within(law, dims, facts, arithmetic, POINTS[kind], PASS_S, seed)


def _taken(sizes: Dims, rows: Rows) -> list[dict[str, int]]:
    return [{name: int(column[row]) for name, column in sizes.items()} for row in rows]
