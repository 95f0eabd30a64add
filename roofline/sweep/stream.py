"""Prices millions of workloads on many devices, block by block, with graphs that are fitted once.

A first look at all workloads finds the extremes of each regime, to which graphs are fitted and checked as those of a
small sweep; then every block is arithmetic. No more than a block is in memory, and a part of the workloads has the
same graphs, and so the same prices, as the whole. Example::

    extremes = Extremes(family.windows, family.chunks)
    for block in blocks: extremes.look(block)
    prices = Stream(family, extremes, "bfloat16")
    for block in blocks: prices.price(block, [device.peaks for device in devices])
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from roofline.hardware.spec import Peaks
from roofline.sweep.family import FEW, MOST_ALONE, Family
from roofline.sweep.polynomial import Amounts, Floats, ParametricGraph, Sweep
from roofline.sweep.price import Summed, memory_sweep, price_sweep, time_sweep
from roofline.sweep.regimes import EDGE
from roofline.workload import Workload

Row = tuple[int, int, int]
"""Batch, query and context tokens."""
ALONE = -1
"""Code of workloads on the edge of a window, each of which needs a trace of its own."""
KEPT = 4 * FEW
"""Workloads of a regime that are kept beside its extremes: a fit needs more than are traced one by one."""
TOTALS = ("matrix_flops", "vector_flops", "weight_read", "activation_read", "activation_write", "kv_read", "kv_write",
          "link_bytes")  # fmt: skip
"""Totals of a pass that do not depend on the device, by name in `Swept`."""


def codes(sweep: Sweep, windows: Sequence[int], chunks: Sequence[int] = ()) -> NDArray[np.int64]:
    """A number for the regime of each workload, and whether its last chunks are full: shape (workloads,).

    Equal numbers are equal `regime_of`; `ALONE` stands for None.
    """
    query, context = sweep.query, sweep.context
    phase = np.where(context == 0, 0, np.where(query == 1, 1, 2))
    code = (phase + 3 * (sweep.batch > 1)).astype(np.int64)
    total, factor = query + context, 6
    alone = total == 1
    for window in windows:
        alone |= (np.abs(context - window) <= EDGE) | (np.abs(total - window) <= EDGE)
        code += factor * np.where(total <= window, 0, np.where(context >= window, 2, 1))
        factor *= 3
    for chunk in chunks:
        code += factor * ((query % chunk == 0) & (phase != 1))
        factor *= 2
    return np.where(alone, ALONE, code)


@dataclass
class Extremes:
    """The workloads of each regime that graphs are fitted for: extremes, and a few others."""

    windows: Sequence[int]
    chunks: Sequence[int] = ()
    _of: dict[int, dict[str, tuple[tuple[int, ...], Row]]] = field(default_factory=dict)
    """Code -> what is extreme -> (by how much, the workload)."""
    _others: dict[int, dict[Row, None]] = field(default_factory=dict)

    def look(self, sweep: Sweep) -> None:
        """Keep what a block has. Raises ValueError where too many workloads would need a trace of their own."""
        code = codes(sweep, self.windows, self.chunks)
        rows = np.stack([sweep.batch, sweep.query, sweep.context], axis=1).astype(np.int64)
        tokens = rows[:, 1] + rows[:, 2]
        for number in np.unique(code).tolist():
            here = np.flatnonzero(code == number)
            others = self._others.setdefault(number, {})
            if number == ALONE:
                for row in np.unique(rows[here], axis=0).tolist()[: MOST_ALONE + 1]:
                    others[tuple(row)] = None
                if len(others) > MOST_ALONE:
                    raise ValueError(
                        f"more than {MOST_ALONE} workloads lie on the edge of a sliding window ({self.windows} tokens) "
                        "and would each need a trace of their own; leave them out"
                    )
                continue
            batch, long = rows[here, 0], tokens[here]
            ranks = {"longest": (long, batch), "shortest": (-long, -batch), "widest": (batch, -long)}
            for what, keys in ranks.items():
                at = here[np.lexsort(keys[::-1])[-1]]
                rank = tuple(int(key[np.lexsort(keys[::-1])[-1]]) for key in keys)
                best = self._of.setdefault(number, {})
                best[what] = max(best.get(what, (rank, ())), (rank, tuple(rows[at].tolist())))
            for row in rows[here[:: max(1, len(here) // KEPT)]].tolist():
                if len(others) < KEPT:
                    others[tuple(row)] = None

    def chosen(self, dtype: str) -> list[Workload]:
        """The workloads to fit graphs for, each once."""
        rows = {row: None for others in self._others.values() for row in others}
        rows |= {row: None for best in self._of.values() for _, row in best.values()}
        return [Workload(batch=b, query_tokens=q, context_tokens=c, dtype=dtype) for b, q, c in rows]


@dataclass(eq=False)
class _Fitted:
    """A graph, and which workloads it serves."""

    graph: ParametricGraph
    rows: frozenset[Row] | None
    """The only workloads that it serves, where it was traced for them alone."""
    summed: dict[int, Summed] = field(default_factory=dict)
    """By the identity of the device's peaks."""


@dataclass(frozen=True, eq=False)
class Priced:
    """Prices of one block."""

    totals: dict[str, Floats]
    """By names of `TOTALS`, shape (workloads,)."""
    memory_bytes: Floats
    """The most that a pass holds at one time."""
    time_s: list[Floats]
    """For each device, shape (workloads,); NaN where a peak that is needed is not known."""


class Stream:
    """The graphs of one model for a stream of workloads."""

    def __init__(self, family: Family, extremes: Extremes, dtype: str) -> None:
        """Fit the graphs. Raises ValueError where a workload cannot be traced, or too many need their own trace."""
        self._windows, self._chunks = extremes.windows, extremes.chunks
        self._by_code: dict[int, list[_Fitted]] = {}
        chosen = extremes.chosen(dtype)
        code = codes(Sweep.of(chosen), self._windows, self._chunks)
        for piece in family.cover(chosen):
            served = {(w.batch, w.query_tokens, w.context_tokens) for w in (chosen[i] for i in piece.index.tolist())}
            is_alone = len(piece.graph.monomials) == 1
            fitted = _Fitted(piece.graph, frozenset(served) if is_alone else None)
            for number in dict.fromkeys(code[piece.index].tolist()):
                self._by_code.setdefault(number, []).append(fitted)
        for number, several in self._by_code.items():
            if number != ALONE and sum(one.graph.lead is None and one.rows is None for one in several) > 1:
                raise ValueError(
                    f"sizes of this model are no polynomials over all workloads ({family.notes[-1]:.200}); give files "
                    "with a smaller range of lengths"
                )

    def price(self, sweep: Sweep, devices: Sequence[Peaks]) -> Priced:
        """The prices of a block. Raises ValueError where no graph describes a workload."""
        priced = Priced({name: np.full(len(sweep), np.nan) for name in TOTALS}, np.full(len(sweep), np.nan),
                        [np.full(len(sweep), np.nan) for _ in devices])  # fmt: skip
        code = codes(sweep, self._windows, self._chunks)
        served = np.zeros(len(sweep), dtype=bool)
        for number in np.unique(code).tolist():
            for fitted in self._by_code.get(number, ()):
                index = np.flatnonzero((code == number) & ~served)
                index = index[self._describes(fitted, sweep.take(index))]
                if len(index):
                    served[index] = True
                    self._fill(priced, fitted, sweep.take(index), index, devices)
        if not served.all():
            at = int(np.flatnonzero(~served)[0])
            sizes = f"batch {sweep.batch[at]:g}, {sweep.query[at]:g} new, {sweep.context[at]:g} cached"
            raise ValueError(f"no graph describes the workload of {sizes}; leave it out, or ask for it alone")
        return priced

    @staticmethod
    def _describes(fitted: _Fitted, sweep: Sweep) -> NDArray[np.bool_]:
        if fitted.rows is None:
            return fitted.graph.describes(sweep)
        rows = zip(sweep.batch.tolist(), sweep.query.tolist(), sweep.context.tolist(), strict=True)
        return np.fromiter((row in fitted.rows for row in rows), dtype=bool, count=len(sweep))

    @staticmethod
    def _fill(
        priced: Priced, fitted: _Fitted, sweep: Sweep, index: NDArray[np.int64], devices: Sequence[Peaks]
    ) -> None:
        graph, basis = fitted.graph, fitted.graph.basis(sweep)
        shared: tuple[NDArray[np.int64], Amounts] | None = None
        for place, peaks in enumerate(devices):
            if id(peaks) not in fitted.summed:
                fitted.summed[id(peaks)] = Summed.of(graph, peaks)
            summed = fitted.summed[id(peaks)]
            if shared is None or not np.array_equal(shared[0], summed.others):
                shared = summed.others, graph.columns.amounts(basis, summed.others)
            priced.time_s[place][index] = time_sweep(graph, sweep, peaks, summed, basis, shared[1])
            if place == 0:
                swept = price_sweep(graph, sweep, peaks)
                for name, values in priced.totals.items():
                    values[index] = getattr(swept, name)
        priced.memory_bytes[index] = memory_sweep(graph, sweep).peak
