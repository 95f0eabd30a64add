"""Graphs of one model: one exact trace for a few workloads, a fitted family for many, a file of fitted ones, and few
layers that stand for all of them (`scale`).

Everything is traced on `meta`. A model that runs one operation a token (a state-space prefill) is never traced at its
full length: its loops are folded and counted by what short traces say.

Example: ``ModelGraphs(resolve("llama-3.1-8b").config, "llama-3.1-8b", Tracing(dtype="bfloat16")).whole(workload)``
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import get_args

from transformers import PretrainedConfig, PreTrainedModel

from profiler.devices.backend import CUDA
from profiler.models.attention import attention_modules
from profiler.models.build import DEFAULT, build_meta, context_limit, implementations
from profiler.models.catalogue import first_line
from profiler.models.inputs import PassInputs, prepare
from profiler.models.resolve import layer_count, resolve, truncate
from profiler.models.trace import trace
from profiler.record.run import RequestError
from roofline.fusion.fuse import fused
from roofline.graph.fold import fold
from roofline.graph.op import Op, OpGraph, layer_of
from roofline.sweep.family import FEW, Family, Form, Source, StoredGraphs, StoredRegime, Trace
from roofline.sweep.regimes import Regime, regime_of
from roofline.workload import Logits, Workload

MORE_LAYERS = range(2, 7)
"""Layers beyond the last kind that is new, in models that may stand for the whole one: with one alone there is no
layer between the first and the last."""

DELTA_RULE_CHUNK = 64
"""Default chunk of the gated delta rule in `transformers` (`torch_chunk_gated_delta_rule`), which no config names."""

PROBES = (32, 48)
"""Query tokens of two short traces that tell whether a model runs operations token by token."""

LONGEST_CHECK = 192
"""Query tokens up to which a model that runs token by token is traced to check its fit: 4 times the longest probe."""

VERIFIED = 32
"""Most tokens of a pass over drafted ones for which a stored file is checked."""

LENGTHS, BATCHES = (64, 96, 160, 256, 384, 512, 768, 1024, 1536, 2048, 4096, 8192, 16384), (1, 4)
"""Workloads that a stored file is made for: with them each regime is fitted, and checked at the longest."""

EMPTY = (None, None)

Change = Callable[[OpGraph], OpGraph]
Signature = tuple[tuple[object, ...], ...]
"""What a layer runs: the path inside it, operator, type, dimensions and bytes of each operation."""


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
        small = self._shorter(
            min(max(MORE_LAYERS.start, _layers_with_each_kind(self.config)), layer_count(self.config))
        )
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
        last = max([*kinds, _layers_with_each_kind(self.config) - 1])
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


def _layers_with_each_kind(config: PretrainedConfig) -> int:
    """First layers that hold one of each kind that the config names: without attention some models cannot run."""
    kinds = getattr(config.get_text_config(decoder=True), "layer_types", None) or ("",)
    return max(kinds.index(kind) + 1 for kind in set(kinds))


def model_graphs(name: str, tracing: Tracing, *, trust_remote_code: bool = False) -> tuple[ModelGraphs, list[str]]:
    """The graphs of a model, and what a reader should know of its config.

    Raises: RequestError where there is no model of that name, or it refuses an implementation.
    """
    model = resolve(name, trust_remote_code=trust_remote_code)
    return ModelGraphs(model.config, name, tracing), list(model.notes)


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
        raise RequestError(
            f"{name} cannot be traced at {workload.key} ({first_line(error)}); ask for fewer tokens, or another --attn "
            "or --experts"
        ) from error


def length_notes(graphs: ModelGraphs, longest: int) -> list[str]:
    """What a reader should know where the longest sequence has so many tokens."""
    limit = context_limit(graphs.config)
    if limit is None or longest <= limit:
        return []
    return [f"{longest} tokens are beyond the {limit} that the model was made for"]


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
    stored: list[StoredRegime] = []
    for form in ("executed", "fused"):
        family = model_source(graphs, (), form).family()
        by_regime: dict[Regime, StoredRegime] = {}
        for piece in family.cover(workloads):
            regime = regime_of(workloads[int(piece.index[0])], family.windows)
            if regime is not None and len(piece.graph.monomials) > 1:
                by_regime.setdefault(regime, StoredRegime(form=form, regime=regime, graph=piece.graph))
        stored += by_regime.values()
    parameters = sum(parameter.numel() for parameter in graphs.model.parameters())
    return StoredGraphs(model=graphs.name, parameters=parameters, windows=family.windows, regimes=tuple(stored))


def scale(ran: OpGraph, part: OpGraph, whole: OpGraph) -> OpGraph:
    """`ran`, of a few repeated layers, with counts that make it stand for `whole`.

    Layers are alike if they run the same operations on the same shapes; every kind of layer of the whole model must
    be among the traced ones, else nothing would be known of it.

    Args: what ran; the trace of the same layers on `meta`; the trace of the whole model on `meta`.
    Raises: RequestError if a kind of layer of `whole` is not in `part`.
    """
    here, there = _layers(part), _layers(whole)
    kinds, wanted = Counter(here.values()), Counter(there.values())
    missing = [layer for layer, kind in there.items() if kind not in kinds]
    if missing:
        prefix, index = missing[0]
        raise RequestError(
            f"--layers: none of the first {len(here)} layers is like {prefix}.{index}; use --layers {index + 1} or more"
        )
    ops = []
    for op in ran.ops:
        layer = _layer(op)
        count = wanted[here[layer]] / kinds[here[layer]] if layer in here else 1.0
        ops.append(op.model_copy(update={"count": count}))
    return ran.model_copy(
        update={
            "ops": tuple(ops),
            "layers": (len(here), len(there)),
            "parameters": whole.parameters,
            "inactive": whole.inactive,
        }
    )


def _layer(op: Op) -> tuple[str, int] | None:
    place = layer_of(op.path)
    return (place.prefix, place.layer) if place else None


def _layers(graph: OpGraph) -> dict[tuple[str, int], Signature]:
    """What each repeated layer runs."""
    layers: dict[tuple[str, int], list[tuple[object, ...]]] = defaultdict(list)
    for op, traffic in zip(graph.ops, graph.traffic, strict=True):
        place = layer_of(op.path)
        if place:
            dims = tuple(sorted(op.dims.items()))
            layers[place.prefix, place.layer].append((place.inner, op.name, op.dtype, dims, traffic.total))
    return {layer: tuple(ops) for layer, ops in layers.items()}
