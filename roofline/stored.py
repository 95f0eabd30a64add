"""Graphs of a model in a file, so that any workload can be priced without torch and without the model.

A file holds either one graph (a run's `graphs/*.json`) or the fitted graphs of every regime that was saved, as
`predict --save-graph` writes them, both as executed and fused.

Example: ``source(stored, changes=(), form="fused").whole(workload)``
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from roofline.family import FEW, Family
from roofline.fold import fold
from roofline.fusion import fused
from roofline.op import GRAPH_SCHEMA, OpGraph
from roofline.parametric import ParametricGraph
from roofline.record import Record
from roofline.regimes import Regime, regime_of
from roofline.workload import Workload

Form = Literal["fused", "executed"]
Change = Callable[[OpGraph], OpGraph]


class StoredRegime(Record):
    """The fitted graph of one regime in one form."""

    form: Form
    regime: Regime
    graph: ParametricGraph


class StoredGraphs(Record):
    """What `predict --save-graph` writes."""

    schema_version: int = GRAPH_SCHEMA
    model: str
    parameters: int
    windows: tuple[int, ...]
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
        found = [s.graph for s in self.regimes if s.form == form and s.regime == regime]
        if not found:
            raise ValueError(f"the graph file does not describe {workload.key}; save it again from the model")
        saved = found[0].template.workload.dtype
        if saved != workload.dtype:
            raise ValueError(f"the graph file was saved in {saved}, not in {workload.dtype}; use --dtype {saved}")
        return found[0].at(workload)


@dataclass(frozen=True)
class Source:
    """Where the graphs of a prediction come from."""

    name: str
    parameters: int
    whole: Callable[[Workload], OpGraph]
    """The graph of one workload, with all changes."""
    family: Callable[[], Family]
    """Graphs for many workloads."""


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
