"""Graphs of one model for `predict`: one exact trace for a few workloads, a fitted family for many.

Everything is traced on `meta`. A model that runs one operation a token (a state-space prefill) is never traced at its
full length: its loops are folded and counted by what short traces say.

Example: ``ModelGraphs(resolve("llama-3.1-8b").config, "llama-3.1-8b", Tracing(dtype="bfloat16")).whole(workload)``
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from transformers import PretrainedConfig, PreTrainedModel

from profiler.devices.backend import CUDA
from profiler.models.inputs import PassInputs, prepare
from profiler.models.modules import attention_modules
from profiler.models.trace import trace
from profiler.models.truncate import layer_count, truncate
from profiler.models.weights import DEFAULT, build_meta, implementations
from profiler.record.errors import RequestError
from roofline.family import FEW, Family, Trace
from roofline.fold import fold
from roofline.layers import layer_of
from roofline.op import OpGraph
from roofline.workload import Workload

MORE_LAYERS = range(2, 7)
"""Layers beyond the last kind that is new, in models that may stand for the whole one: with one alone there is no
layer between the first and the last."""

DELTA_RULE_CHUNK = 64
"""Default chunk of the gated delta rule in `transformers` (`torch_chunk_gated_delta_rule`), which no config names."""

PROBES = (32, 48)
"""Query tokens of two short traces that tell whether a model runs operations token by token."""

LONGEST_CHECK = 192
"""Query tokens up to which a model that runs token by token is traced to check its fit: 4 times the longest probe."""

EMPTY = (None, None)

Change = Callable[[OpGraph], OpGraph]


@dataclass(frozen=True)
class Tracing:
    """How a model is run and what is made of its graph."""

    dtype: str
    attn: str = DEFAULT
    experts: str = DEFAULT
    cache: str = "dynamic"
    target: str = CUDA.type
    changes: Sequence[Change] = ()
    """Applied to each traced graph in order: what-ifs, and fusion as the last."""


@dataclass(eq=False)
class ModelGraphs:
    """The graphs of one model."""

    config: PretrainedConfig
    name: str
    tracing: Tracing
    _prefill: tuple[Workload | None, PassInputs | None] = EMPTY
    """The last pass, if it was a prefill: a decode after it finds its cache filled."""
    _small: dict[int, "ModelGraphs"] = field(default_factory=dict)
    _unchanged: "ModelGraphs | None" = None
    """The same model with other changes: what does not depend on them is made once."""

    def changed(self, changes: Sequence[Change]) -> "ModelGraphs":
        """The same model, whose traced graphs get these changes instead."""
        tracing = replace(self.tracing, changes=changes)
        return ModelGraphs(self.config, self.name, tracing, _unchanged=self._unchanged or self)

    @cached_property
    def model(self) -> PreTrainedModel:
        if self._unchanged is not None:
            return self._unchanged.model
        return build_meta(self.config, self.tracing.dtype, self.tracing.attn, self.tracing.experts)

    def whole(self, workload: Workload) -> OpGraph:
        """The changed graph of one workload, not folded. Raises: RequestError where a change cannot be made."""
        graph = self._traced(workload)
        try:
            for change in self.tracing.changes:
                graph = change(graph)
        except ValueError as error:
            raise RequestError(str(error)) from error
        return graph

    def folded(self, workload: Workload) -> OpGraph:
        return fold(self.whole(workload))

    @cached_property
    def runs_by_token(self) -> bool:
        """Whether a prefill of more tokens runs more operations."""
        if self._unchanged is not None:
            return self._unchanged.runs_by_token
        small = self._shorter(min(max(MORE_LAYERS.start, _of_each_kind(self.config)), layer_count(self.config)))
        short, longer = (
            Workload(batch=1, query_tokens=tokens, context_tokens=0, dtype=self.tracing.dtype) for tokens in PROBES
        )
        return len(small._traced(short).ops) != len(small._traced(longer).ops)

    @cached_property
    def family(self) -> Family:
        """Graphs for many workloads."""
        decoder = self.config.get_text_config(decoder=True)
        chunks = {value for key, value in vars(decoder).items() if "chunk" in key and isinstance(value, int)}
        windows = {module.window for module in attention_modules(self.model) if module.window}
        by_token = self.runs_by_token
        return Family(
            trace=self.folded,
            smaller=self._smaller,
            windows=tuple(sorted(windows)),
            chunks=tuple(sorted(chunk for chunk in {*chunks, DELTA_RULE_CHUNK} if chunk > 1)),
            few=0 if by_token else FEW,
            longest_check=LONGEST_CHECK if by_token else None,
        )

    def _traced(self, workload: Workload) -> OpGraph:
        ran, before = self._prefill
        first = {"query_tokens": workload.context_tokens, "context_tokens": 0, "logits": "last"}
        continues = workload.context_tokens > 0 and ran == workload.model_copy(update=first)
        inputs = prepare(self.model, workload, cache=self.tracing.cache, after=before if continues else None)
        options = {**implementations(self.model), "cache": self.tracing.cache}
        graph = trace(self.model, inputs, workload, name=self.name, target=self.tracing.target, options=options)
        self._prefill = (
            (workload, inputs) if workload.context_tokens == 0 and self.tracing.cache == "dynamic" else EMPTY
        )
        return graph

    def _smaller(self, whole: OpGraph) -> Iterator[Trace]:
        """Models of the first layers, up to some beyond the last kind of layer that is new in `whole`."""
        total = layer_count(self.config)
        kinds = [place.layer for op in whole.ops if (place := layer_of(op.path)) and place.layer < total - 1]
        last = max([*kinds, _of_each_kind(self.config) - 1])
        for more in MORE_LAYERS:
            layers = last + more
            if layers < total:
                yield self._shorter(layers).folded

    def _shorter(self, layers: int) -> "ModelGraphs":
        if layers not in self._small:
            same = self._unchanged._shorter(layers) if self._unchanged is not None else None
            self._small[layers] = (
                same.changed(self.tracing.changes)
                if same is not None
                else ModelGraphs(truncate(self.config, layers), self.name, self.tracing)
            )
        return self._small[layers]


def _of_each_kind(config: PretrainedConfig) -> int:
    """First layers that hold one of each kind that the config names: without attention some models cannot run."""
    kinds = getattr(config.get_text_config(decoder=True), "layer_types", None) or ("",)
    return max(kinds.index(kind) + 1 for kind in set(kinds))
