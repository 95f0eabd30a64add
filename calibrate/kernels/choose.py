"""Which kernels a device is asked to run for its calibration.

Sizes are drawn from the range of shapes that public models have (`Demand`: weights and head layouts of a catalogue, the
rows and contexts of the passes to come), each moved by a random factor, so that the range is covered and no model's own
shape is asked for on purpose. A size is left out where the device cannot hold it or would take too long. Among the
candidates of a product or attention the law's own sensitivities choose, within a budget of points and seconds
(`calibrate.budget`); small operators are few and taken whole.

Example: ``kernel_shapes(facts, ("float32",), 1e9, streaming, Demand(((4864, 896),), ((14, 2, 64),)))``
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibrate.budget import design_within
from calibrate.design import Rows
from profiler.record.kernel_shape import KernelShape
from roofline.dtypes import ELEMENT_BYTES
from roofline.laws.law import Dims, Facts, Floats
from roofline.laws.registry import ROW_MAJOR, subject
from roofline.subjects import BATCHED, GROUPED, MATVEC

LONGEST_S = 0.03
"""Of one call at half of the device's peak, for products of many rows and for attention; a longer one repeats what a
shorter one tells."""
CANDIDATES = 3000
PASS_S = 0.4
"""For all kernels of a kind and dtype, each once, as their law expects before anything is measured."""
POINTS = {"matmul": 36, MATVEC: 24, "prefill_attention": 14, "decode_attention": 14, BATCHED: 12, GROUPED: 10}
"""Of each dtype."""
JITTER = 0.4
"""Standard deviation of the logarithm by which a catalogue's size is moved: half of them by more than 1.3."""
NEAR = 0.5
"""Share of the products and attention whose rows or context are near those of the passes to come."""
FEWEST_ROWS, MOST_ROWS = 2, 4096
"""Of the other products."""
NARROW = 0.1
"""Share of products with 1 to 64 columns: gates, routers, the projections of state-space models."""
ODD = 0.15
"""Share of sizes that are not a multiple of anything: vocabularies are."""
UNIT = 32
"""Other sizes are multiples of it."""
SHORTEST_CONTEXT, LONGEST_CONTEXT = 16, 16384
STREAM_SIZES = 9
"""Of one operator: one element, and the rest evenly on a logarithm up to the largest activation."""
WIDEST = 16384
"""Of an activation's row; a longer row is a vocabulary's."""
STATES = 8
"""Times the largest activation, the largest stream: a state-space model holds 16 states a channel, attention scores are
as many as heads. Such outputs come from the system page by page."""
FEWEST_ELEMENTS = 64
"""Of the smallest stream of more than one element."""


@dataclass(frozen=True)
class Demand:
    """What models ask of a device."""

    weights: tuple[tuple[int, int], ...]
    """(n, k), columns and depth, of the products with weights."""
    heads: tuple[tuple[int, int, int], ...]
    """(heads, key and value heads, head dim)."""
    rows: tuple[int, ...] = (1, 128)
    """Tokens that the passes to come take at once."""
    contexts: tuple[int, ...] = (128,)
    """Keys that their last token sees."""


def kernel_shapes(
    facts: Facts,
    dtypes: Sequence[str],
    largest_bytes: float,
    streaming: Sequence[str],
    demand: Demand,
    *,
    quick: bool = False,
    seed: int = 0,
) -> list[KernelShape]:
    """All kernels of a calibration.

    Args: `largest_bytes` of the operands of one kernel in the widest of the dtypes, and in the others as many elements;
    `streaming`, operators that stream; `quick`, half of them.
    """
    found: list[KernelShape] = []
    widest = max((ELEMENT_BYTES[dtype] for dtype in dtypes), default=1.0)
    for dtype in dtypes:
        most = largest_bytes * ELEMENT_BYTES[dtype] / widest
        drawn = _Drawn(facts, dtype, most, demand, np.random.default_rng(seed), seed)
        found += [*drawn.products(), *drawn.batched(), *drawn.attention()]
        found += [shape for op in streaming for shape in _streams(dtype, op, demand)]
    return found[:: 2 if quick else 1]


@dataclass(frozen=True)
class _Drawn:
    """Kernels in one dtype."""

    facts: Facts
    dtype: str
    largest_bytes: float
    demand: Demand
    generator: np.random.Generator
    seed: int

    @property
    def width(self) -> float:
        return ELEMENT_BYTES[self.dtype]

    def products(self) -> list[KernelShape]:
        n, k = self._weights()
        m = self._near([rows for rows in self.demand.rows if rows > 1] or [MOST_ROWS], FEWEST_ROWS, MOST_ROWS)
        many = self._short(2 * m * n * k) & (m > 1)
        sizes = {"m": m[many], "n": n[many], "k": k[many]}
        chosen = _taken(sizes, self._designed("matmul", sizes))
        streamed = {"bytes_read": self.width * (n + 1) * k, "bytes_written": self.width * n, "elements": n}
        single = _taken({"m": np.ones_like(n), "n": n, "k": k}, self._designed(MATVEC, streamed))
        found = {"matmul": chosen, MATVEC: [*single, self._largest()]}
        shapes = [
            KernelShape(kind, self.dtype, "aten::addmm" if i % 4 == 0 else "aten::mm", sizes)
            for kind, each in found.items()
            for i, sizes in enumerate(each)
        ]
        others = [
            KernelShape(f"{kind}{ROW_MAJOR}", self.dtype, "aten::addmm", one)
            for kind in found
            for one in found[kind][::2]
        ]
        return shapes + others

    def batched(self) -> list[KernelShape]:
        """Products of activations with each other (attention in pieces, scans), and the experts of mixtures."""
        heads, _, head_dim = self._heads()
        keys = self._near(self.demand.contexts, 1, 2048)
        rows = self._near(self.demand.rows, 1, 2048)
        turned = self.generator.uniform(size=CANDIDATES) < 0.5  # queries × keys, or weights × values
        scan = self.generator.uniform(size=CANDIDATES) < 0.3  # a state × a vector
        batch = np.where(scan, np.maximum(1, heads // 8), heads)
        n = np.where(scan, 1, np.where(turned, keys, head_dim))
        k = np.where(scan, head_dim / 4, np.where(turned, head_dim, keys))
        m = np.where(scan, heads * head_dim, rows)
        small = self._short(2 * batch * m * n * k) & (batch * n * k * self.width <= self.largest_bytes)
        many = {"batch": batch[small], "m": m[small], "n": n[small], "k": k[small]}
        wide, deep = self._weights()
        experts = np.round(_log_uniform(self.generator, 1, 16))
        each = np.maximum(1, np.round(self._near(self.demand.rows, 1, 512) / experts))
        wide, deep = (UNIT * np.maximum(1, np.round(size / part / UNIT)) for size, part in ((wide, 4), (deep, 2)))
        fits = self._short(2 * experts * each * wide * deep) & (
            experts * wide * deep * self.width <= self.largest_bytes
        )
        routed = {"batch": experts[fits], "m": each[fits], "n": wide[fits], "k": deep[fits]}
        return [
            KernelShape(kind, self.dtype, op, one)
            for kind, op, sizes in ((BATCHED, "aten::bmm", many), (GROUPED, "aten::_grouped_mm", routed))
            for one in _taken(sizes, self._designed(kind, sizes))
        ]

    def attention(self) -> list[KernelShape]:
        heads, kv_heads, head_dim = self._heads()
        batch = np.where(self.generator.uniform(size=CANDIDATES) < NEAR, 1, _log_uniform(self.generator, 1, 32))
        length = self._near(self.demand.contexts, SHORTEST_CONTEXT, LONGEST_CONTEXT)
        named = {"batch": batch, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
        shared = {name: np.asarray(column, dtype=float) for name, column in named.items()}
        shared |= {"window": np.zeros(CANDIDATES), "kv_bytes": np.full(CANDIDATES, self.width)}
        moved = 2 * batch * kv_heads * length * head_dim * self.width
        shapes = []
        for kind, query in (("prefill_attention", length), ("decode_attention", np.ones(CANDIDATES, dtype=float))):
            fits = (moved <= self.largest_bytes) & self._short(4 * batch * heads * query * length * head_dim)
            dims = shared | {"query": query, "kv": length, "context": length - query}
            allowed = {name: column[fits] for name, column in dims.items()}
            names = ("batch", "heads", "kv_heads", "head_dim", "query", "kv")
            shapes += [
                KernelShape(kind, self.dtype, "aten::scaled_dot_product_attention", {name: one[name] for name in names})
                for one in _taken(allowed, self._designed(kind, allowed))
            ]
        return shapes

    def _weights(self) -> tuple[Floats, Floats]:
        """Columns and depth of candidates, those that memory holds."""
        known = np.array([one for one in self.demand.weights if one[0] * one[1] * self.width <= self.largest_bytes])
        if len(known) == 0:  # a device that holds none of them
            known = np.array([[256, 256]])
        drawn = known[self.generator.integers(len(known), size=CANDIDATES)].astype(float)
        n, k = (self._moved(column) for column in drawn.T)
        narrow = self.generator.uniform(size=CANDIDATES) < NARROW
        n = np.where(narrow, _log_uniform(self.generator, 1, 2 * UNIT), n)
        most = np.maximum(1.0, np.floor(self.largest_bytes / (k * self.width)))
        return np.minimum(n, most), k

    def _largest(self) -> dict[str, int]:
        """The largest matrix of the catalogue that memory holds, and a quarter more: the far end of the range."""
        n, k = max(
            (one for one in self.demand.weights if 1.25 * one[0] * one[1] * self.width <= self.largest_bytes),
            key=lambda one: one[0] * one[1],
            default=(256, 256),
        )
        return {"m": 1, "n": round(1.25 * n) | 1, "k": k}  # odd: a vocabulary is no multiple of anything

    def _heads(self) -> tuple[Floats, Floats, Floats]:
        drawn = np.array(self.demand.heads)[self.generator.integers(len(self.demand.heads), size=CANDIDATES)]
        heads, kv_heads, head_dim = (np.asarray(column, dtype=float) for column in drawn.T)
        return heads, kv_heads, head_dim

    def _moved(self, sizes: Floats) -> Floats:
        moved = sizes * np.exp(JITTER * self.generator.normal(size=len(sizes)))
        odd = self.generator.uniform(size=len(sizes)) < ODD
        return np.where(odd, np.maximum(1.0, np.round(moved)), UNIT * np.maximum(1.0, np.round(moved / UNIT)))

    def _near(self, wanted: Sequence[int], least: float, most: float) -> Floats:
        """Near one of `wanted`, or anything between; whole numbers."""
        near = np.array(wanted, dtype=float)[self.generator.integers(len(wanted), size=CANDIDATES)]
        near = near * np.exp(JITTER / 2 * self.generator.normal(size=CANDIDATES))
        anywhere = _log_uniform(self.generator, least, max(most, max(wanted)))
        chosen = np.where(self.generator.uniform(size=CANDIDATES) < NEAR, near, anywhere)
        return np.maximum(least, np.round(chosen))

    def _short(self, flops: Floats) -> NDArray[np.bool_]:
        return np.asarray(2 * flops / self.facts.matrix_flops_per_s[self.dtype] <= LONGEST_S)

    def _designed(self, kind: str, dims: Dims) -> Rows:
        law, arithmetic = subject(kind, self.dtype, self.facts)
        return design_within(law, dims, self.facts, arithmetic, POINTS[kind], PASS_S, self.seed)


def _streams(dtype: str, op: str, demand: Demand) -> list[KernelShape]:
    """Activations of the passes to come, as wide as a residual stream or a feed-forward network, and larger ones."""
    widths = sorted({size for weight in demand.weights for size in weight if UNIT <= size <= WIDEST})
    widest = widths[3 * len(widths) // 4] if widths else UNIT
    most = STATES * max(demand.rows) * widest
    sizes = [1.0, *np.geomspace(FEWEST_ELEMENTS, max(most, 2 * FEWEST_ELEMENTS), STREAM_SIZES - 1)]
    shapes = []
    for i, elements in enumerate(sizes):
        fewest = int(np.ceil(elements / widest))
        rows = max(fewest, min(max(demand.rows), max(1, int(elements) // UNIT))) if i % 2 else fewest
        width = max(1, round(elements / rows))
        shapes.append(KernelShape(op, dtype, op, {"rows": rows, "width": width}))
    return shapes


def _log_uniform(generator: np.random.Generator, least: float, most: float) -> Floats:
    drawn: Floats = np.exp(generator.uniform(np.log(least), np.log(max(most, least)), CANDIDATES))
    return np.round(drawn)


def _taken(sizes: Dims, rows: Rows) -> list[dict[str, int]]:
    return [{name: int(column[row]) for name, column in sizes.items()} for row in rows]
