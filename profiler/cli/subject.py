"""The subject of a prediction: a model, a vision tower, a module, or a file of graphs, as a source of graphs to price.

Example: ``Subject("llama-3.1-8b", None, None, False, tracing, stored_bits=True).source((), "fused", device)``
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from profiler.models.apart import MODULE_S, trace_apart
from profiler.record.files import requested, write_text
from profiler.record.run import RequestError
from roofline.graph.op import OpGraph
from roofline.predict.question import Device, Speculation
from roofline.sweep.family import Form, Source, StoredGraphs, read_graphs, source
from roofline.whatif.draft import DRAFTS
from roofline.whatif.registry import WhatIf, ordered
from roofline.workload import Workload


class Subject:
    """The subject of a prediction: a model, a module, or a file of graphs."""

    def __init__(
        self,
        model: str | None,
        module: str | None,
        graph: Path | None,
        trust: bool,
        tracing: dict[str, Any],
        stored_bits: bool,
        module_s: float = MODULE_S,
        images: int | None = None,
    ) -> None:
        named = [name for name, value in (("MODEL", model), ("--module", module), ("--graph", graph)) if value]
        if len(named) != 1:
            raise RequestError(f"name one of MODEL, --module, --graph; got {' and '.join(named) or 'none'}")
        self.model, self.module, self.file = model, module, graph
        self.trust, self.tracing, self.stored_bits, self.module_s = trust, tracing, stored_bits, module_s
        self.images = images
        """Images that the vision tower of `model` sees; None: the subject is its language part."""
        with requested():
            self.stored = read_graphs(graph) if graph is not None else None

    @property
    def name(self) -> str:
        """Return its name for people."""
        return str(self.model or self.module or self.file)

    @property
    def only(self) -> tuple[Workload, ...]:
        """The workload of a single graph, which has but one; empty for a family of graphs."""
        if isinstance(self.stored, OpGraph):
            return (self.stored.workload,)
        return () if self._traced is None else (self._traced.workload,)

    @property
    def dtype(self) -> str | None:
        """The dtype of a file's graphs or of a module's weights; None where the options choose it."""
        if isinstance(self.stored, StoredGraphs):
            return self.stored.regimes[0].graph.template.workload.dtype if self.stored.regimes else None
        return self.only[0].dtype if self.only else None

    def source(self, changes: Sequence[WhatIf], form: Form, on: Device) -> Source:
        if self.stored is not None:
            return source(self.stored, changes, form)
        if self._traced is not None:
            return source(self._traced, changes, form)
        from profiler.models.graphs import model_source

        return model_source(self._model[0], changes, form, on.peaks.matrix.__contains__)

    def notes(self, longest: int, on: Device) -> list[str]:
        """Notes on the model and its stored bits, where the longest sequence has so many tokens."""
        if self.images is not None:
            return self._vision[1]
        if self.model is None:
            return []
        from profiler.models.graphs import length_notes, stored_notes

        graphs, notes = self._model
        return [*notes, *stored_notes(graphs, on.peaks.matrix.__contains__), *length_notes(graphs, longest)]

    def save(self, path: Path) -> None:
        if self.model is None or self.images is not None:
            raise RequestError("--save-graph saves the graphs of a language model; name one")
        from profiler.models.graphs import stored_graphs

        write_text(path, stored_graphs(self._model[0]).model_dump_json())

    @cached_property
    def _model(self) -> tuple[Any, list[str]]:
        """The model's graphs, and notes on its config."""
        from profiler.models.catalogue import silence
        from profiler.models.graphs import Tracing, model_graphs

        silence()
        tracing = Tracing(**self.tracing)
        return model_graphs(str(self.model), tracing, trust_remote_code=self.trust, stored_bits=self.stored_bits)

    @cached_property
    def _vision(self) -> tuple[OpGraph, list[str]]:
        """Return one pass of the model's vision tower, and notes on it."""
        from profiler.models.catalogue import silence
        from profiler.models.vision import vision_graph

        silence()
        dtype, attn = self.tracing["dtype"], self.tracing["attn"]
        return vision_graph(str(self.model), self.images or 1, dtype, attn, trust_remote_code=self.trust)

    @cached_property
    def _traced(self) -> OpGraph | None:
        """The graph of a module or a vision tower, of which there is but one; None for other subjects."""
        if self.images is not None:
            return self._vision[0]
        return None if self.module is None else trace_apart(self.module, self.module_s)


def speculation(
    subject: Subject,
    draft: str,
    tokens: int,
    acceptance: float,
    form: Form,
    on: Device,
    changes: Sequence[WhatIf],
) -> Speculation:
    """A draft model as it is, or the model's own draft with the changes that are not those of its layers."""
    if draft in DRAFTS:
        kept = [change for change in changes if change.name not in OF_LAYERS]
        own = subject.source(ordered([WhatIf("draft_head", {}), *kept]), form, on)
        return Speculation(replace(own, name=f"the model's own {draft} layer"), tokens, acceptance, is_own=True)
    model = Subject(draft, None, None, subject.trust, subject.tracing | {"source": None}, subject.stored_bits)
    return Speculation(model.source((), form, on), tokens, acceptance)


OF_LAYERS = frozenset({"remove_layers", "early_exit", "draft_head", "pipeline_stage", "send_kv"})
"""What-ifs on all layers of a model, which its draft of one layer has not."""
