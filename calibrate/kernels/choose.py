"""The choice of kernels: those that a calibration measures on a device, and those of a table that a fit is given.

`kernel_shapes` draws sizes from the range of shapes of public models (`Demand`), each moved by a random factor, so that
no model's own shape is chosen on purpose. `design` chooses among candidates from shapes alone, never from times: by the
logarithms of their sizes and the responses of the law's time at its priors to each constant (∂ log time / ∂ log
constant). The chosen are nearest to the centres of k-means clusters, which represent the candidates' spread evenly. An
exchange then makes sure that each regime marked by sizes (two are equal, one is 0 or 1) is measured on both its sides.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roofline.dtypes import ELEMENT_BYTES
from roofline.laws.kinds import BATCHED, GROUPED, MATVEC, ROW_MAJOR, KernelShape, kind_of, law_for
from roofline.laws.law import Dims, Facts, Floats, Law
from roofline.laws.residuals import coordinates, responses

Rows = NDArray[np.int_]

ROUNDS = 12
"""Rounds of k-means; later ones move centres by less than the candidates' spacing."""
RESPONSE = 1.0
"""Doublings of a size that equal the response of a kernel to the one constant that decides its time."""
DRAWN_FROM = 6000
"""Most candidates that are clustered."""
DEGENERATE = (0.0, 1.0)
"""Sizes that mean another kernel: no window, a single rank, no cache."""


def design(
    law: Law, dims: Dims, facts: Facts, dtype: str, points: int, seed: int = 0, group: NDArray[np.str_] | None = None
) -> Rows:
    """Indices of `points` rows to measure (or of all there are), ascending; deterministic for a seed. A group gives
    more than half of its rows (rounded up) only where the others have none left to give. Raises ValueError where there
    are no candidates or no budget."""
    rows = len(next(iter(dims.values()), ()))
    if points < 1 or rows == 0:
        raise ValueError(f"need candidates and a budget of at least one point, got {rows} and {points}")
    if points >= rows:
        return np.arange(rows)
    priors = {c.name: c.prior for c in law.constants(facts, dtype)}
    _, response = responses(law, dims, facts, dtype, priors)
    placed = np.concatenate([coordinates(dims, law.dims), RESPONSE * response], axis=1)
    generator = np.random.default_rng(seed)
    sample = placed
    if rows > DRAWN_FROM:
        sample = placed[generator.choice(rows, DRAWN_FROM, replace=False)]
    centres = _centres(sample, min(points, len(sample)), generator)
    chosen = _nearest(placed, centres, _Room(np.arange(rows) if group is None else group), points)
    return np.sort(_exchanged(chosen, placed, _regimes(dims, law.dims), points))


def _regimes(dims: Dims, names: tuple[str, ...]) -> NDArray[np.bool_]:
    """Regimes that some candidates have, (candidates, regimes): two sizes are equal, or one is of `DEGENERATE`."""
    columns = {name: np.asarray(dims[name], dtype=float) for name in names if name in dims}
    marks = [column == value for column in columns.values() for value in DEGENERATE]
    marks += [columns[a] == columns[b] for a, b in combinations(columns, 2)]
    mixed = [mark for mark in marks if mark.any() and not mark.all()]
    return np.stack(mixed, axis=1) if mixed else np.zeros((len(next(iter(columns.values()))), 0), dtype=bool)


def _nearest(placed: Floats, centres: Floats, room: "_Room", points: int) -> list[int]:
    """The row nearest to each centre; where centres are fewer than points, also the rows farthest from all chosen."""
    chosen = [room.take(_squares(placed, centre)) for centre in centres]
    gap = np.full(len(placed), np.inf)
    for place in range(points - 1):
        if len(chosen) == points:
            break
        gap = np.minimum(gap, _squares(placed, placed[chosen[place]]))
        if place + 1 >= len(centres):
            chosen.append(room.take(-gap))
    return chosen


def _squares(placed: Floats, place: Floats) -> Floats:
    return np.asarray(((placed - place) ** 2).sum(axis=1))


class _Room:
    """Rows that are left to take: first up to half of each group, then the rest."""

    def __init__(self, group: NDArray[Any]) -> None:
        _, self._group, counts = np.unique(group, return_inverse=True, return_counts=True)
        self._left = np.ceil(counts / 2)
        self._untaken = np.ones(len(group), dtype=bool)

    def take(self, distance: Floats) -> int:
        """Take the nearest of the rows that are left."""
        preferred = self._untaken & (self._left[self._group] > 0)
        row = int(np.argmin(np.where(preferred if preferred.any() else self._untaken, distance, np.inf)))
        self._untaken[row] = False
        self._left[self._group[row]] -= 1
        return row


def _exchanged(chosen: list[int], placed: Floats, marks: NDArray[np.bool_], points: int) -> Rows:
    """The chosen rows with each side of each regime that has a budget's share of candidates: a missing side's candidate
    nearest to a chosen row replaces it, unless that leaves another regime without any."""
    rows = np.array(chosen)
    sides = np.concatenate([marks, ~marks], axis=1)
    sides = sides[:, sides.sum(axis=0) * points >= len(placed)]
    for side in range(sides.shape[1]):
        if sides[rows, side].any():
            continue
        counts = sides[rows].sum(axis=0)
        spare = np.flatnonzero(~(sides[rows] & (counts == 1)).any(axis=1))
        if len(spare) == 0:
            continue
        candidates = np.flatnonzero(sides[:, side])
        distance = ((placed[candidates][:, None] - placed[rows[spare]][None]) ** 2).sum(axis=2)
        new, out = np.unravel_index(np.argmin(distance), distance.shape)
        rows[spare[out]] = candidates[new]
    return rows


def _centres(placed: Floats, count: int, generator: np.random.Generator) -> Floats:
    """Centres of k-means from spread-out starts (k-means++: Arthur, Vassilvitskii, SODA 2007)."""
    centres = placed[generator.integers(len(placed))][None]
    nearest = ((placed - centres[0]) ** 2).sum(axis=1)
    for _ in range(count - 1):
        total = nearest.sum()
        if total <= 0:
            break
        new = placed[generator.choice(len(placed), p=nearest / total)]
        centres = np.concatenate([centres, new[None]])
        nearest = np.minimum(nearest, ((placed - new) ** 2).sum(axis=1))
    squared = (placed**2).sum(axis=1)[:, None]
    for _ in range(ROUNDS):
        owner = np.argmin(squared + (centres**2).sum(axis=1)[None] - 2 * placed @ centres.T, axis=1)
        counts = np.bincount(owner, minlength=len(centres))
        sums = np.stack([np.bincount(owner, column, len(centres)) for column in placed.T], axis=1)
        filled = counts > 0
        centres[filled] = sums[filled] / counts[filled, None]
    return centres


def design_within(law: Law, dims: Dims, facts: Facts, dtype: str, points: int, seconds: float, seed: int = 0) -> Rows:
    """The kernels of `design`, with as many of `points` rows (at least one) as run once each in about `seconds`."""
    priors = {constant.name: constant.prior for constant in law.constants(facts, dtype)}
    time_s = law.time_s(dims, facts, dtype, priors)
    fits = partial(design, law, dims, facts, dtype, seed=seed)
    rows = fits(points)
    if time_s[rows].sum() <= seconds:
        return rows
    fewest, most = 1, points
    while most - fewest > 1:
        middle = (fewest + most) // 2
        if time_s[fits(middle)].sum() <= seconds:
            fewest = middle
        else:
            most = middle
    return fits(fewest)


LONGEST_S = 0.03
"""Longest call in seconds at half of the device's peak, for products of many rows and for attention."""
CANDIDATES = 3000
PASS_S = 0.4
"""Seconds for all kernels of a kind and dtype, each once, as their law's priors predict."""
JITTER = 0.4
"""Standard deviation of the logarithm of the random factor on a catalogue's size."""
NEAR = 0.5
"""Share of the products and attention whose rows or context are near those of the intended passes."""
FEWEST_ROWS, MOST_ROWS = 2, 4096
"""Rows of the other products."""
NARROW = 0.1
"""Share of products with 1 to 64 columns: gates, routers, projections of state-space models."""
ODD = 0.15
"""Share of sizes that are not a multiple of `UNIT`, as vocabularies are."""
UNIT = 32
"""Divisor of the other sizes."""
SHORTEST_CONTEXT, LONGEST_CONTEXT = 16, 16384
STREAM_SIZES = 9
"""Number of sizes of one operator: one element, and the rest evenly on a logarithm up to the largest activation."""
WIDEST = 16384
"""Longest row of an activation; longer rows are a vocabulary's."""
STATES = 8
"""Largest stream ÷ largest activation: a state-space model holds 16 states a channel, attention scores are as many as
heads. The system provides memory for such outputs page by page."""
FEWEST_ELEMENTS = 64
"""Elements of the smallest stream of more than one element."""


@dataclass(frozen=True)
class Demand:
    """The shapes that models and passes require of a device."""

    weights: tuple[tuple[int, int], ...]
    """Columns and depth (n, k) of the products with weights."""
    heads: tuple[tuple[int, int, int], ...]
    """Query heads, key-value heads and head dimension of the attentions."""
    rows: tuple[int, ...] = (1, 128)
    """Numbers of tokens of the intended passes."""
    contexts: tuple[int, ...] = (128,)
    """Numbers of keys that the last token of these passes sees."""


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
    """All kernels of a calibration. `largest_bytes` limits the operands of a kernel in the widest of the dtypes, and
    its number of elements in the others; `streaming` are operators that stream; `quick` takes half of the kernels."""
    shapes: list[KernelShape] = []
    widest = max((ELEMENT_BYTES[dtype] for dtype in dtypes), default=1.0)
    for dtype in dtypes:
        most = largest_bytes * ELEMENT_BYTES[dtype] / widest
        drawn = _Drawn(facts, dtype, most, demand, np.random.default_rng(seed), seed)
        shapes += [*drawn.products(), *drawn.batched(), *drawn.attention()]
        shapes += [shape for op in streaming for shape in _streams(dtype, op, demand)]
    return shapes[:: 2 if quick else 1]


@dataclass(frozen=True)
class _Drawn:
    """Random kernels in one dtype."""

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
        products = {"matmul": chosen, MATVEC: [*single, self._largest()]}
        ops = ("aten::addmm", "aten::mm", "aten::mm", "aten::mm")
        shapes = [
            KernelShape(kind, self.dtype, ops[i % 4], sizes)
            for kind, drawn in products.items()
            for i, sizes in enumerate(drawn)
        ]
        return shapes + [
            KernelShape(f"{kind}{ROW_MAJOR}", self.dtype, "aten::addmm", sizes)
            for kind, drawn in products.items()
            for sizes in drawn[::2]
        ]

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
        rows = np.maximum(1, np.round(self._near(self.demand.rows, 1, 512) / experts))
        wide, deep = (UNIT * np.maximum(1, np.round(size / part / UNIT)) for size, part in ((wide, 4), (deep, 2)))
        fits = experts * wide * deep * self.width <= self.largest_bytes
        fits &= self._short(2 * experts * rows * wide * deep)
        routed = {"batch": experts[fits], "m": rows[fits], "n": wide[fits], "k": deep[fits]}
        return [
            KernelShape(kind, self.dtype, op, taken)
            for kind, op, sizes in ((BATCHED, "aten::bmm", many), (GROUPED, "aten::_grouped_mm", routed))
            for taken in _taken(sizes, self._designed(kind, sizes))
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
                KernelShape(kind, self.dtype, "aten::scaled_dot_product_attention", {name: row[name] for name in names})
                for row in _taken(allowed, self._designed(kind, allowed))
            ]
        return shapes

    def _weights(self) -> tuple[Floats, Floats]:
        """Columns and depth of candidates that memory holds."""
        known = np.array([(n, k) for n, k in self.demand.weights if n * k * self.width <= self.largest_bytes])
        if len(known) == 0:  # a device that holds none of them
            known = np.array([[256, 256]])
        drawn = known[self.generator.integers(len(known), size=CANDIDATES)].astype(float)
        n, k = (self._moved(column) for column in drawn.T)
        narrow = self.generator.uniform(size=CANDIDATES) < NARROW
        n = np.where(narrow, _log_uniform(self.generator, 1, 2 * UNIT), n)
        most = np.maximum(1.0, np.floor(self.largest_bytes / (k * self.width)))
        return np.minimum(n, most), k

    def _largest(self) -> dict[str, int]:
        """A quarter more than the largest matrix of the catalogue that memory holds: the far end of the range."""
        n, k = max(
            (shape for shape in self.demand.weights if 1.25 * math.prod(shape) * self.width <= self.largest_bytes),
            key=math.prod,
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
        """Sizes near one of `wanted`, or anything between the limits; whole numbers."""
        near = np.array(wanted, dtype=float)[self.generator.integers(len(wanted), size=CANDIDATES)]
        near = near * np.exp(JITTER / 2 * self.generator.normal(size=CANDIDATES))
        anywhere = _log_uniform(self.generator, least, max(most, max(wanted)))
        chosen = np.where(self.generator.uniform(size=CANDIDATES) < NEAR, near, anywhere)
        return np.maximum(least, np.round(chosen))

    def _short(self, flops: Floats) -> NDArray[np.bool_]:
        return np.asarray(2 * flops / self.facts.matrix_flops_per_s[self.dtype] <= LONGEST_S)

    def _designed(self, kind: str, dims: Dims) -> Rows:
        law, arithmetic = law_for(kind, self.dtype, self.facts)
        return design_within(law, dims, self.facts, arithmetic, kind_of(kind).points, PASS_S, self.seed)


def _streams(dtype: str, op: str, demand: Demand) -> list[KernelShape]:
    """Activations of the intended passes, as wide as a residual stream or a feed-forward network, and larger ones."""
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
