"""Where the graphs of a prediction come from when there is a model: sources for predictions, and files of them.

Example: ``model_source("llama-3.1-8b", Tracing("bfloat16"), changes, "fused").whole(workload)``
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import get_args

import profiler.models.lean  # noqa: F401 - before anything else that loads transformers
from profiler.models.example import trace_module
from profiler.models.graphs import Change, ModelGraphs, Tracing
from profiler.models.request import context_limit
from profiler.models.resolve import resolve
from profiler.record.run import RequestError
from roofline.fusion.fuse import fused
from roofline.graph.op import OpGraph
from roofline.sweep.family import Form, Source, StoredGraphs, StoredRegime
from roofline.sweep.regimes import Regime, regime_of
from roofline.workload import Logits, Workload

VERIFIED = 32
"""Most tokens of a pass over drafted ones for which a stored file is checked."""

LENGTHS, BATCHES = (64, 96, 160, 256, 384, 512, 768, 1024, 1536, 2048, 4096, 8192, 16384), (1, 4)
"""Workloads that a stored file is made for: with them each regime is fitted, and checked at the longest."""


def model_graphs(name: str, tracing: Tracing, *, trust_remote_code: bool = False) -> tuple[ModelGraphs, list[str]]:
    """The graphs of a model, and what a reader should know of its config.

    Raises: RequestError where there is no model of that name, or it refuses an implementation.
    """
    found = resolve(name, trust_remote_code=trust_remote_code)
    return ModelGraphs(found.config, name, tracing), list(found.notes)


def model_source(graphs: ModelGraphs, changes: Sequence[Change], form: Form) -> Source:
    """A model as a source: what-ifs in order, fusion as the last."""
    made = graphs.changed((*changes, *((fused,) if form == "fused" else ())))

    def whole(workload: Workload) -> OpGraph:
        with _traceable(graphs.name, workload):
            if workload.query_tokens > 1 and made.runs_by_token:  # an exact trace would have operations for each token
                return made.family.cover([workload])[0].graph.at(workload)
            return made.whole(workload)

    def folded(workload: Workload) -> OpGraph:
        with _traceable(graphs.name, workload):
            return made.folded(workload)

    parameters = sum(parameter.numel() for parameter in made.model.parameters())
    return Source(graphs.name, parameters, whole, family=lambda: replace(made.family, trace=folded))


@contextmanager
def _traceable(name: str, workload: Workload) -> Iterator[None]:
    """What torch cannot do with a model's forward on `meta`, sizes that it cannot count included, is one line."""
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise RequestError(
            f"{name} cannot be traced at {workload.key} ({lines[0] if lines else type(error).__name__}); ask for fewer "
            "tokens, or another --attn or --experts"
        ) from error


def length_notes(graphs: ModelGraphs, longest: int) -> list[str]:
    """What a reader should know where the longest sequence has so many tokens."""
    limit = context_limit(graphs.config)
    if limit is None or longest <= limit:
        return []
    return [f"{longest} tokens are beyond the {limit} that the model was made for"]


@cache
def module_graph(spec: str) -> OpGraph:
    """The graph of any module on its example inputs."""
    return trace_module(spec)


def stored_graphs(graphs: ModelGraphs) -> StoredGraphs:
    """Fitted graphs of every regime of a model, as executed and fused."""
    limit = context_limit(graphs.config) or max(LENGTHS)
    dtype = graphs.tracing.dtype
    lengths = [length for length in LENGTHS if length <= limit]
    shapes = [(length, 0) for length in lengths] + [(1, length - 1) for length in lengths]
    shapes += [(query, length - query) for length in lengths for query in (8, 32, length // 4) if query < length]
    sizes = [(query, context, batch) for query, context in dict.fromkeys(shapes) for batch in BATCHES]
    workloads = [
        Workload(batch=batch, query_tokens=query, context_tokens=context, dtype=dtype, logits=logits)
        for logits in get_args(Logits)
        for query, context, batch in sizes
        if logits == "last" or (1 < query <= VERIFIED and context)
    ]
    found: list[StoredRegime] = []
    for form in ("executed", "fused"):
        family = model_source(graphs, (), form).family()
        by_regime: dict[Regime, StoredRegime] = {}
        for piece in family.cover(workloads):
            regime = regime_of(workloads[int(piece.index[0])], family.windows)
            if regime is not None and len(piece.graph.monomials) > 1:
                by_regime.setdefault(regime, StoredRegime(form=form, regime=regime, graph=piece.graph))
        found += by_regime.values()
    parameters = sum(parameter.numel() for parameter in graphs.model.parameters())
    return StoredGraphs(model=graphs.name, parameters=parameters, windows=family.windows, regimes=tuple(found))
