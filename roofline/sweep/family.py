"""All the graphs of one model: few traces serve every workload, and whatever they do not describe is traced itself.

Workloads are sorted into regimes. Each regime is sampled at a few small workloads, fitted, and checked against a trace
of the largest workload that was asked for; where the check fails, samples are taken nearer, then the range is halved,
and at last each workload is traced alone. Samples may come from a model with fewer layers, if its folded graph is that
of the whole model but for the counts. No trace is made twice.

A file holds either one graph (a run's `graphs/*.json`) or the fitted graphs of every regime that was saved, as
`predict --save-graph` writes them, executed and fused; with it `source` needs neither torch nor the model.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from roofline.fusion.fuse import fused
from roofline.graph.fold import fold, work_of
from roofline.graph.op import GRAPH_SCHEMA, Op, OpGraph, layer_of
from roofline.reading import MOST_GRAPH_BYTES, Unreadable, one_line, parse_json, read_bytes, read_record
from roofline.record import Record
from roofline.sweep.polynomial import Mismatch, ParametricGraph, Sweep, fit
from roofline.sweep.regimes import Regime, monomials, regime_of, samples
from roofline.workload import Workload

Trace = Callable[[Workload], OpGraph]
"""The folded graph of one workload."""

Form = Literal["fused", "executed"]
Change = Callable[[OpGraph], OpGraph]

FEW = 3
"""Workloads of a regime that are traced one by one: a fit needs as many traces."""

MOST_ALONE = 64
"""Workloads that may be traced alone before they are refused: a trace takes up to seconds."""


@dataclass(frozen=True, eq=False)
class Piece:
    """A graph and the workloads that it serves."""

    graph: ParametricGraph
    index: NDArray[np.int64]
    """Positions in the list of workloads that was asked for."""


class _Sides(Exception):
    """Workloads lie on both sides of a choice of the ideal form; `parts` are those of each."""

    def __init__(self, parts: list[list[int]]) -> None:
        super().__init__("the ideal form is another in some workloads")
        self.parts = parts


@dataclass(eq=False)
class Family:
    """The graphs of one model under one set of options."""

    trace: Trace
    smaller: Callable[[OpGraph], Iterable[Trace]] = lambda whole: ()
    """Traces of models with fewer layers that may stand for the whole one, by its folded graph."""
    windows: tuple[int, ...] = ()
    """Sliding windows of the model's layers, tokens."""
    chunks: tuple[int, ...] = ()
    """Chunks that the model may work in, tokens."""
    few: int = FEW
    """Workloads of a regime that are traced one by one instead of fitted."""
    longest_check: int | None = None
    """Query tokens of the longest trace to check a fit with; None: those of the largest workload that is asked for."""
    notes: list[str] = field(default_factory=list)
    """Which workloads had to be split or traced alone, and why."""
    _traced: dict[tuple[Trace, Workload], OpGraph] = field(default_factory=dict)
    _alone_in_cover: set[Workload] = field(default_factory=set)

    def cover(self, workloads: Sequence[Workload]) -> list[Piece]:
        """Graphs for all of `workloads`, each served by exactly one piece.

        Raises: ValueError where more than MOST_ALONE workloads are in no regime that a few traces describe.
        """
        groups: dict[tuple[Regime | None, str], list[int]] = defaultdict(list)
        for i, workload in enumerate(workloads):
            groups[regime_of(workload, self.windows), workload.dtype].append(i)
        self._alone_in_cover = set()
        pieces: list[Piece] = []
        for (regime, _), index in groups.items():
            pieces += self._pieces(regime, workloads, index)
        return pieces

    def _pieces(self, regime: Regime | None, workloads: Sequence[Workload], index: list[int]) -> list[Piece]:
        if regime is None or len({workloads[i] for i in index}) <= self.few:
            return self._alone(workloads, index)
        nearest = min(workloads[i].query_tokens for i in index), min(workloads[i].context_tokens for i in index)
        least = min((workloads[i] for i in index), key=lambda w: (_tokens(w), w.batch))
        starts = dict.fromkeys((nearest, (least.query_tokens, least.context_tokens)))
        chunks = self.chunks if regime.phase != "decode" else ()
        why = ""
        for chunk, start in [(1, (0, 0)), *((chunk, (0, 0)) for chunk in chunks), *((1, start) for start in starts)]:
            parts: dict[bool, list[int]] = defaultdict(list)  # whether the last chunk is full: it needs no padding
            for i in index:
                parts[chunk > 1 and workloads[i].query_tokens % chunk == 0].append(i)
            try:
                return [
                    Piece(self._fitted(regime, workloads, part, chunk, filled, start), np.array(part))
                    for filled, part in parts.items()
                ]
            except _Sides as sides:
                return [piece for part in sides.parts for piece in self._pieces(regime, workloads, part)]
            except Mismatch as mismatch:
                why = why or str(mismatch)
        ordered = sorted(index, key=lambda i: (_tokens(workloads[i]), i))
        half = len(ordered) // 2
        if len(ordered) <= 2 * FEW or len({workloads[i] for i in index}) == 1:
            self.notes.append(f"{len(ordered)} workloads traced one by one: {why}")
            return self._alone(workloads, ordered)
        self.notes.append(f"{len(ordered)} workloads of {regime.phase} split at {workloads[ordered[half]].key}: {why}")
        return self._pieces(regime, workloads, ordered[:half]) + self._pieces(regime, workloads, ordered[half:])

    def _fitted(
        self,
        regime: Regime,
        workloads: Sequence[Workload],
        index: list[int],
        chunk: int,
        filled: bool,
        start: tuple[int, int],
    ) -> ParametricGraph:
        """A graph fitted to small samples that is right for the longest, the shortest and the widest of `workloads` at
        `index`.

        Raises: _Sides where the ideal form is another in some of them.
        """
        some = [workloads[i] for i in index]
        points = samples(regime, self.windows, some[0].dtype, chunk=chunk, filled=filled, start=start)
        if points is None:
            raise Mismatch(f"no room between the windows {self.windows} for samples")
        largest = self._check(max(some, key=lambda w: (_tokens(w), w.batch)), regime, chunk)
        others = [min(some, key=lambda w: (_tokens(w), w.batch))]
        if (widest := max(some, key=lambda w: (w.batch, -_tokens(w)))).batch > largest.batch:
            others.append(widest)
        short = [w for w in others if self.longest_check is None or w.query_tokens <= self.longest_check]
        trace = self._sampler(largest)
        counted = chunk > 1 and not filled
        graph = fit([trace(point) for point in points], monomials(regime, counted), chunk=chunk if counted else 1)
        here = graph.describes(Sweep.of(some))
        if here.any() and not here.all():
            raise _Sides([[index[int(i)] for i in np.flatnonzero(side)] for side in (here, ~here)])
        for check in (self._whole(largest), *map(trace, short)):
            if unlike := graph.differs(check):
                raise Mismatch(unlike)
        return graph.model_copy(update={"checked": tuple(dict.fromkeys((largest, *short)))})

    def _check(self, largest: Workload, regime: Regime, chunk: int) -> Workload:
        """The workload whose trace a fit must agree with: `largest`, unless its trace takes too long."""
        if self.longest_check is None or largest.query_tokens <= self.longest_check:
            return largest
        begun = largest.query_tokens % chunk  # tokens of the last chunk, where it is not full
        shorter = largest.model_copy(update={"query_tokens": self.longest_check - (chunk - begun if begun else 0)})
        return shorter if regime_of(shorter, self.windows) == regime else largest

    def _sampler(self, workload: Workload) -> Trace:
        """A trace of the smallest model that, at a workload, can stand for the whole one."""
        whole = self._whole(workload)
        for small in self.smaller(whole):
            trace = partial(self._once, small)
            try:
                return _scaled(trace, trace(workload), whole)
            except Mismatch:
                continue
        return self._whole

    def _alone(self, workloads: Sequence[Workload], index: Sequence[int]) -> list[Piece]:
        alike: dict[Workload, list[int]] = defaultdict(list)
        for i in index:
            alike[workloads[i]].append(i)
        self._alone_in_cover |= alike.keys()
        if len(self._alone_in_cover) > MOST_ALONE:
            raise ValueError(
                f"{len(self._alone_in_cover)} workloads or more would each need a trace of their own "
                f"({next(iter(alike)).key}, …); ask for at most {MOST_ALONE}"
            )
        return [Piece(fit([self._whole(w)], [(0, 0, 0, 0)]), np.array(same)) for w, same in alike.items()]

    def _whole(self, workload: Workload) -> OpGraph:
        return self._once(self.trace, workload)

    def _once(self, trace: Trace, workload: Workload) -> OpGraph:
        if (trace, workload) not in self._traced:
            self._traced[trace, workload] = trace(workload)
        return self._traced[trace, workload]


def _tokens(workload: Workload) -> int:
    return workload.context_tokens + workload.query_tokens


def _scaled(trace: Trace, small: OpGraph, whole: OpGraph) -> Trace:
    """Traces of a small model with the counts of the whole one, in proportion where a loop changes them.

    Args: graphs of both at one workload.
    Raises: Mismatch unless both have the same operations on the same tensors, but for counts and numbers of layers.
    """
    if len(small.ops) != len(whole.ops):
        raise Mismatch(f"{len(small.ops)} operations in the small model, {len(whole.ops)} in the whole")
    for a, b in zip(small.ops, whole.ops, strict=True):
        alike = work_of(a.model_copy(update={"count": b.count}), small) == work_of(b, whole)
        if not alike or _place(a) != _place(b):
            raise Mismatch(f"{a.path} {a.name} is {b.path} {b.name} in the whole model")

    def scaled(workload: Workload) -> OpGraph:
        graph = trace(workload)
        if len(graph.ops) != len(small.ops):
            raise Mismatch(f"{len(graph.ops)} operations at {graph.workload.key}, {len(small.ops)} elsewhere")
        ops = tuple(
            op.model_copy(update={"path": b.path, "also": b.also, "count": op.count * b.count / a.count})
            for op, a, b in zip(graph.ops, small.ops, whole.ops, strict=True)
        )
        made = {"workload": workload, "ops": ops, "tensors": graph.tensors, "lead": graph.lead}
        return whole.model_copy(update=made)

    return scaled


def _place(op: Op) -> tuple[object, ...]:
    """Path of an operation but for the number of its layer, and its tensors."""
    place = layer_of(op.path)
    path = (place.prefix, place.inner) if place else (op.path, None)
    return (*path, [access.tensor for access in op.reads], [access.tensor for access in op.writes])


class StoredRegime(Record):
    """The fitted graph of one regime in one form."""

    form: Form
    regime: Regime
    graph: ParametricGraph


class StoredGraphs(Record):
    """The file that `predict --save-graph` writes."""

    schema_version: int = GRAPH_SCHEMA
    model: str
    parameters: int = Field(ge=0)
    windows: tuple[Annotated[int, Field(gt=0)], ...]
    regimes: tuple[StoredRegime, ...]

    def at(self, workload: Workload, form: Form) -> OpGraph:
        """The folded graph of one workload. Raises ValueError where its regime or its dtype was not saved."""
        regime = regime_of(workload, self.windows)
        if regime is None and self.windows:
            windows = ", ".join(map(str, self.windows))
            raise ValueError(
                f"the graph file does not describe {workload.key}, on the edge of a sliding window ({windows} tokens); "
                "ask for a few tokens more, or name the model"
            )
        sweep = Sweep.of([workload])
        stored = [s.graph for s in self.regimes if s.form == form and s.regime == regime]
        graph = next((graph for graph in stored if graph.describes(sweep).all()), None)
        if graph is None:
            raise ValueError(f"the graph file does not describe {workload.key}; save it again from the model")
        saved = graph.template.workload.dtype
        if saved != workload.dtype:
            raise ValueError(f"the graph file was saved in {saved}, not in {workload.dtype}; use --dtype {saved}")
        sizes = graph.sizes(sweep)
        if not np.isfinite(sizes).all() or (sizes < 0).any():
            raise ValueError(f"the graph file has sizes below 0 or beyond any number at {workload.key}; save it again")
        return graph.at(workload)


def read_graphs(path: Path) -> OpGraph | StoredGraphs:
    """The content of a file: one graph, or the graphs of a model. Raises Unreadable where it holds neither."""
    mend = "save it again with --save-graph"
    try:
        content = parse_json(read_bytes(path, MOST_GRAPH_BYTES, mend), finite=False)
    except Unreadable:
        raise
    except ValueError as error:
        raise Unreadable(f"{path} is half-written or damaged ({one_line(error)}); {mend}") from error
    holds_many = isinstance(content, dict) and "regimes" in content
    if holds_many:
        return read_record(path, StoredGraphs, GRAPH_SCHEMA, mend, MOST_GRAPH_BYTES)
    return read_record(path, OpGraph, GRAPH_SCHEMA, mend, MOST_GRAPH_BYTES)


@dataclass(frozen=True)
class Source:
    """The origin of the graphs of a prediction."""

    name: str
    parameters: int
    whole: Callable[[Workload], OpGraph]
    """The graph of one workload, with all changes."""
    family: Callable[[], Family]


def source(stored: OpGraph | StoredGraphs, changes: Sequence[Change], form: Form) -> Source:
    """The graphs of a file with changes made to them.

    Graphs of a fitted file are folded: with changes, what they fuse stays within a layer.
    """

    def whole(workload: Workload) -> OpGraph:
        if isinstance(stored, StoredGraphs):
            if not changes:
                return stored.at(workload, form)
            graph = stored.at(workload, "executed")
        elif workload != stored.workload:
            raise ValueError(
                f"the graph holds {stored.workload.key} alone, not {workload.key}; leave the workload's options out"
            )
        else:
            graph = stored
        for change in changes:
            graph = change(graph)
        return fused(graph) if form == "fused" else graph

    windows = stored.windows if isinstance(stored, StoredGraphs) else ()
    return Source(
        name=stored.model,
        parameters=stored.parameters,
        whole=whole,
        family=lambda: Family(trace=lambda w: fold(whole(w)), windows=windows, few=FEW),
    )
