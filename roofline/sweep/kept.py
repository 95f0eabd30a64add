"""A family whose fitted graphs are kept, so that one more workload of a regime that was seen needs no trace.

`Family` fits a graph to the workloads of one question; a viewer asks one question after the other, each near the last.
So a regime is fitted, once, for a wide range of lengths and batches around what is asked, and again only beyond it.

Example: ``kept(model_source(graphs, changes, "fused"))`` is the same source, whose second workload costs microseconds
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np

from roofline.graph.op import OpGraph
from roofline.sweep.family import Family, Piece, Source
from roofline.sweep.polynomial import ParametricGraph, Sweep
from roofline.sweep.regimes import Regime, regime_of
from roofline.workload import Workload

LENGTHS, BATCHES = (64, 512, 4096, 131072), (1, 2, 64, 1024)
"""Tokens and sequences of the workloads that a regime is fitted for beside those that are asked for: the contexts of
today's models, and the batches that a serving engine runs."""


@dataclass(frozen=True, eq=False)
class _Fit:
    """A graph that describes a regime, and how far it was checked."""

    graph: ParametricGraph
    tokens: int
    batch: int

    def reaches(self, workload: Workload) -> bool:
        return _tokens(workload) <= self.tokens and workload.batch <= self.batch


@dataclass(eq=False)
class Kept(Family):
    """A family that keeps what it has fitted."""

    _fits: dict[tuple[Regime, str], list[_Fit]] = field(default_factory=lambda: defaultdict(list))

    def cover(self, workloads: Sequence[Workload]) -> list[Piece]:
        """Graphs for all of `workloads`, as `Family.cover`, with traces only for those that no kept graph describes."""
        served: dict[_Fit, list[int]] = defaultdict(list)
        absent: dict[tuple[Regime | None, str], list[int]] = defaultdict(list)
        for i, workload in enumerate(workloads):
            regime = regime_of(workload, self.windows)
            fit = None if regime is None else self._fit(regime, workload)
            if fit is None:
                absent[regime, workload.dtype].append(i)
            else:
                served[fit].append(i)
        pieces = [Piece(fit.graph, np.array(index)) for fit, index in served.items()]
        for (regime, _), index in absent.items():
            some = [workloads[i] for i in index]
            for piece in self._fitted_around(regime, some):
                if len(mine := piece.index[piece.index < len(some)]):
                    pieces.append(Piece(piece.graph, np.array(index)[mine]))
        return pieces

    def _fitted_around(self, regime: Regime | None, some: Sequence[Workload]) -> list[Piece]:
        """Graphs for some workloads of a regime and for others around them, which come last; fits are kept."""
        every = [*some, *([] if regime is None else self._around(regime, some[0]))]
        try:
            pieces = super().cover(every)
        except ValueError:  # not all of the range can be traced
            pieces = super().cover(some)
        self.notes.clear()  # they would tell of workloads that nobody asked for
        for piece in pieces:
            if regime is not None and len(piece.graph.monomials) > 1:
                fitted = [every[i] for i in piece.index.tolist()]
                fit = _Fit(piece.graph, max(map(_tokens, fitted)), max(w.batch for w in fitted))
                self._fits[regime, some[0].dtype].append(fit)
        return pieces

    def whole(self, workload: Workload) -> OpGraph:
        """The folded graph of one workload."""
        return self.cover([workload])[0].graph.at(workload)

    def _fit(self, regime: Regime, workload: Workload) -> _Fit | None:
        one = Sweep.of([workload])
        fits = self._fits.get((regime, workload.dtype), ())
        return next((fit for fit in fits if fit.reaches(workload) and fit.graph.describes(one).all()), None)

    def _around(self, regime: Regime, like: Workload) -> list[Workload]:
        """Workloads of a regime over the whole range that a viewer's next questions lie in."""
        shapes = {
            "prefill": [(length, 0) for length in LENGTHS],
            "decode": [(1, length) for length in LENGTHS],
            "chunk": [(length, length) for length in LENGTHS],
        }[regime.phase]
        every = (
            like.model_copy(update={"batch": batch, "query_tokens": query, "context_tokens": context})
            for query, context in shapes
            for batch in BATCHES
        )
        return [workload for workload in every if regime_of(workload, self.windows) == regime]


def kept(source: Source) -> Source:
    """The same source with graphs that are kept; what it gives is folded."""
    family = source.family()
    own = Kept(**{f.name: getattr(family, f.name) for f in fields(family) if not f.name.startswith("_")})
    return replace(source, whole=own.whole, family=lambda: own)


def _tokens(workload: Workload) -> int:
    return workload.context_tokens + workload.query_tokens
