"""Graphs of a model: exact traces for a few workloads, fitted families for many, and few layers that represent all
layers (`scale`).

Everything is traced on `meta`. A model that runs one operation a token (a state-space prefill) is never traced at its
full length: its loops are folded, and their counts fitted to short traces.

Example: ``ModelGraphs(resolve("llama-3.1-8b").config, "llama-3.1-8b", Tracing(dtype="bfloat16")).whole(workload)``
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import get_args

from transformers import PretrainedConfig, PreTrainedModel

from profiler.devices.backend import CUDA
from profiler.models.attention import attention_modules, budgets
from profiler.models.build import DEFAULT, context_limit, implementations
from profiler.models.catalogue import first_line
from profiler.models.checkpoint import Checkpoint
from profiler.models.config import method_of
from profiler.models.encoder_decoder import build_decoder, has_encoder, source_tokens
from profiler.models.faults import fault
from profiler.models.inputs import PassInputs, prepare
from profiler.models.mended import IDEAL, mended
from profiler.models.quantisation import read_bits
from profiler.models.resolve import layer_count, resolve, truncate
from profiler.models.trace import trace
from profiler.record.run import RequestError
from roofline.fusion.fuse import fused
from roofline.graph.fold import fold
from roofline.graph.op import Op, OpGraph, layer_of
from roofline.sweep.family import FEW, Family, Form, Source, StoredGraphs, StoredRegime, Trace
from roofline.sweep.regimes import Regime, regime_of
from roofline.whatif.registry import WhatIf
from roofline.workload import Logits, Workload

MORE_LAYERS = range(2, 7)
"""Layers beyond the last new kind of layer, in truncated models that may represent the whole one: with one layer alone
there would be none between the first and the last."""

DELTA_RULE_CHUNK = 64
"""Default chunk of the gated delta rule in `transformers` (`torch_chunk_gated_delta_rule`), which no config names."""

PROBES = (32, 48)
"""Query tokens of two short traces that show whether a model runs operations token by token."""

LONGEST_CHECK = 192
"""Most query tokens of a trace that checks the fit of a model that runs token by token: 4 times the longer probe."""

CHUNK_PROBES = (2 * DELTA_RULE_CHUNK, 3 * DELTA_RULE_CHUNK)
"""The same for a model that runs operations chunk by chunk."""

LONGEST_CHUNKED = 12 * DELTA_RULE_CHUNK
"""Most query tokens of a trace of such a model: above the samples of a fit, which have up to 8 chunks and one begun."""

VERIFIED = 32
"""Most drafted tokens of a verification pass for which a stored file is checked."""

LENGTHS, BATCHES = (64, 96, 160, 256, 384, 512, 768, 1024, 1536, 2048, 4096, 8192, 16384), (1, 4)
"""Workloads of a stored file: each regime is fitted to them, and checked at the longest."""

EMPTY = (None, None)

AFTER_BITS = frozenset({"quantise", "unfuse_attention", "pipeline_stage", "offload", "send_kv"})
"""What-ifs that come after the bits of a checkpoint: all others change or divide the model that is stored in them."""

OVERFLOWS = ("overflow", "too large", "negative dimension", "storage size", "numel")
"""Parts of torch's errors on sizes beyond its 64-bit integers."""

Change = Callable[[OpGraph], OpGraph]
Signature = tuple[tuple[object, ...], ...]
"""The operations of a layer: path inside it, operator, dtype, dimensions and bytes of each."""


@dataclass(frozen=True)
class Tracing:
    """The settings with which a model is run, and the changes that are made to its graph."""

    dtype: str
    attn: str = DEFAULT
    experts: str = DEFAULT
    cache: str = "dynamic"
    target: str = CUDA.type
    changes: Sequence[Change] = ()
    """Applied to each traced graph in order: what-ifs, and fusion as the last."""
    is_ideal: bool = False
    """Whether errors of `transformers` that multiply the work are mended (`mended`)."""
    source: int | None = None
    """Tokens that the encoder of an encoder-decoder has read; None: as many as it takes."""


@dataclass(eq=False)
class ModelGraphs:
    """The graphs of one model."""

    config: PretrainedConfig
    name: str
    tracing: Tracing
    checkpoint: Checkpoint | None = None
    """The bits of the stored weights; None leaves them in the dtype of the trace."""
    _prefill: tuple[Workload | None, PassInputs | None] = EMPTY
    """The last pass, if it was a prefill: a decode after it can use its filled cache."""
    _small: dict[int, "ModelGraphs"] = field(default_factory=dict)
    _unchanged: "ModelGraphs | None" = None
    """The same model with other changes, which shares all that does not depend on them."""

    def changed(self, changes: Sequence[Change], is_ideal: bool = False) -> "ModelGraphs":
        """The same model with these changes instead of its own."""
        tracing = replace(self.tracing, changes=changes, is_ideal=is_ideal)
        return ModelGraphs(self.config, self.name, tracing, self.checkpoint, _unchanged=self._unchanged or self)

    @cached_property
    def model(self) -> PreTrainedModel:
        if self._unchanged is not None:
            return self._unchanged.model
        asked = self.tracing
        return build_decoder(self.config, asked.dtype, asked.attn, asked.experts, asked.source)

    def of_each_kind(self) -> "ModelGraphs":
        """The first layers of the model, up to one beyond the last of a new kind: their passes have all of its shapes.

        Layers are of one kind if their modules have the same classes, parameters' shapes and settings.
        """
        kinds: dict[tuple[str, int], list[object]] = defaultdict(list)
        for path, module in self.model.named_modules():
            if place := layer_of(path):
                settings = [(name, x) for name, x in sorted(vars(module).items()) if _is_setting(name, x)]
                shapes = [(name, each.shape) for name, each in module.named_parameters(recurse=False)]
                kinds[place.prefix, place.layer].append((place.inner, type(module), settings, shapes))
        first: dict[str, int] = {}
        for (prefix, layer), modules in kinds.items():
            first.setdefault(f"{prefix} {modules}", layer)
        return self._shorter(min(max(first.values(), default=0) + MORE_LAYERS.start, layer_count(self.config)))

    def whole(self, workload: Workload) -> OpGraph:
        """The changed graph of a workload, not folded. Raises RequestError where a change cannot be made."""
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
        """Return whether a prefill of more tokens runs more operations."""
        if self._unchanged is not None and not self._is_mended:
            return self._unchanged.runs_by_token
        return self._loops(PROBES)

    @cached_property
    def runs_by_chunk(self) -> bool:
        """Return whether a prefill of more chunks runs more operations."""
        return (
            self._loops(CHUNK_PROBES) if self._unchanged is None or self._is_mended else self._unchanged.runs_by_chunk
        )

    @property
    def _is_mended(self) -> bool:
        """Return whether modules run by a mend, which may have no loop where their own code has one."""
        return self.tracing.is_ideal and any(type(module).__name__ in IDEAL for module in self.model.modules())

    def _loops(self, probes: Sequence[int]) -> bool:
        layers = max(MORE_LAYERS.start, _layers_with_each_kind(self.config))
        small = self._shorter(min(layers, layer_count(self.config)))
        one = Workload(batch=1, query_tokens=1, context_tokens=0, dtype=self.tracing.dtype)
        sizes = {len(small._traced(one.model_copy(update={"query_tokens": tokens})).ops) for tokens in probes}
        return len(sizes) > 1

    @cached_property
    def family(self) -> Family:
        """Graphs for many workloads."""
        decoder = self.config.get_text_config(decoder=True)
        chunks = {value for key, value in vars(decoder).items() if "chunk" in key and isinstance(value, int)}
        windows = {module.window for module in attention_modules(self.model) if module.window} | budgets(self.model)
        by_token = self.runs_by_token
        by_chunk = not by_token and self.runs_by_chunk
        return Family(
            trace=self.folded,
            smaller=self._smaller,
            windows=tuple(sorted(windows)),
            chunks=tuple(sorted(chunk for chunk in {*chunks, DELTA_RULE_CHUNK} if chunk > 1)),
            few=0 if by_token or by_chunk else FEW,
            longest_check=LONGEST_CHECK if by_token else LONGEST_CHUNKED if by_chunk else None,
        )

    def _traced(self, workload: Workload) -> OpGraph:
        ran, before = self._prefill
        first = {"query_tokens": workload.context_tokens, "context_tokens": 0, "logits": "last"}
        continues = workload.context_tokens > 0 and ran == workload.model_copy(update=first)
        options = {**implementations(self.model), "cache": self.tracing.cache}
        with _traceable(self, workload), mended(self.model) if self.tracing.is_ideal else nullcontext():
            inputs = prepare(self.model, workload, cache=self.tracing.cache, after=before if continues else None)
            graph = trace(self.model, inputs, workload, name=self.name, target=self.tracing.target, options=options)
        reusable = workload.context_tokens == 0 and self.tracing.cache == "dynamic"
        self._prefill = (workload, inputs) if reusable else EMPTY
        return graph

    def _smaller(self, whole: OpGraph) -> Iterator[Trace]:
        """Traces of models of the first layers, up to some beyond the last new kind of layer in `whole`."""
        total = layer_count(self.config)
        kinds = [place.layer for op in whole.ops if (place := layer_of(op.path)) and place.layer < total - 1]
        last = max([*kinds, _layers_with_each_kind(self.config) - 1])
        for more in MORE_LAYERS:
            layers = last + more
            if layers < total:
                yield self._shorter(layers).folded

    def _shorter(self, layers: int) -> "ModelGraphs":
        if layers not in self._small:
            if self._unchanged is not None:
                self._small[layers] = self._unchanged._shorter(layers).changed(
                    self.tracing.changes, self.tracing.is_ideal
                )
            else:
                self._small[layers] = ModelGraphs(truncate(self.config, layers), self.name, self.tracing)
        return self._small[layers]


def _is_setting(name: str, value: object) -> bool:
    """Return whether an attribute of a module may change its shapes: not its place among the layers."""
    return isinstance(value, int | str | None) and not (name.startswith("_") or "idx" in name or "index" in name)


def _layers_with_each_kind(config: PretrainedConfig) -> int:
    """Number of first layers that hold each kind of the config: without attention some models cannot run."""
    kinds = getattr(config.get_text_config(decoder=True), "layer_types", None) or ("",)
    return max(kinds.index(kind) + 1 for kind in set(kinds))


def model_graphs(
    name: str, tracing: Tracing, *, trust_remote_code: bool = False, stored_bits: bool = True
) -> tuple[ModelGraphs, list[str]]:
    """The graphs of a model, and the notes on its config.

    Args: `stored_bits` says whether weights have the bits of the checkpoint, where it is quantised.
    Raises: RequestError where there is no such model.
    """
    model = resolve(name, trust_remote_code=trust_remote_code, with_encoder=True)
    if has_encoder(model.config):
        model = replace(model, notes=(*model.notes, _of_encoder(model.config, tracing.source)))
    elif tracing.source is not None:
        raise RequestError(f"--source: {name} has no encoder; leave it out")
    if not stored_bits or model.quantisation is None:
        return ModelGraphs(model.config, name, tracing), list(model.notes_in_full)
    checkpoint = read_bits(name, model.quantisation)
    if checkpoint is None:
        method = method_of(model.quantisation)
        unknown = f"stored as {method}, whose bits are not known here; taken in the dtype that is asked for"
        return ModelGraphs(model.config, name, tracing), [*model.notes, unknown]
    return ModelGraphs(model.config, name, tracing, checkpoint), list(model.notes)


def _of_encoder(config: PretrainedConfig, source: int | None) -> str:
    tokens = source or source_tokens(config)
    changes = "" if source else "; --source changes their number"
    return f"the decoder alone, with cross-attention over {tokens} tokens that its encoder has made{changes}"


def model_source(
    graphs: ModelGraphs, changes: Sequence[Change], form: Form, runs: Callable[[str], bool] | None = None
) -> Source:
    """A model as a source of graphs, with its checkpoint's bits, what-ifs in order and fusion as the last change.

    Args: `runs` says whether the device multiplies in a type; None: in every type.
    """
    before = _before_bits(changes)
    checkpoint = graphs.checkpoint
    if checkpoint is not None and runs is not None:
        checkpoint = replace(checkpoint, runs=runs)
    stored = () if checkpoint is None else (checkpoint,)
    every = (*changes[:before], *stored, *changes[before:])
    made = graphs.changed((*every, fused), is_ideal=True) if form == "fused" else graphs.changed(every)

    def whole(workload: Workload) -> OpGraph:
        query = workload.query_tokens  # an exact trace would have operations for each token, or chunk
        if (query > 1 and made.runs_by_token) or (query > LONGEST_CHUNKED and made.runs_by_chunk):
            return made.family.cover([workload])[0].graph.at(workload)
        return made.whole(workload)

    parameters = sum(parameter.numel() for parameter in made.model.parameters())
    return Source(graphs.name, parameters, whole, family=lambda: made.family)


def _before_bits(changes: Sequence[Change]) -> int:
    """Number of changes before the first that comes after the bits of a checkpoint."""
    after = (i for i, change in enumerate(changes) if not isinstance(change, WhatIf) or change.name in AFTER_BITS)
    return next(after, len(changes))


@contextmanager
def _traceable(graphs: ModelGraphs, workload: Workload) -> Iterator[None]:
    """Turn any error of a model's forward on `meta`, such as of sizes that overflow, into a RequestError."""
    try:
        yield
    except RequestError:
        raise
    except Exception as error:  # a forward may raise anything on a config that it cannot take
        why = f"{graphs.name} cannot be traced at {workload.key} ({first_line(error)})"
        if any(sign in str(error) for sign in OVERFLOWS):
            raise RequestError(f"{why}; ask for fewer tokens") from error
        if (cause := fault(graphs.config, error)) is not None:
            raise RequestError(f"{graphs.name}: {cause}") from error
        raise RequestError(f"{why}; try another --attn, --experts or --cache") from error


def stored_notes(graphs: ModelGraphs, runs: Callable[[str], bool]) -> list[str]:
    """A note on the bits of a quantised checkpoint, on a device that multiplies in the types for which `runs` holds."""
    return [] if graphs.checkpoint is None else [replace(graphs.checkpoint, runs=runs).note]


def length_notes(graphs: ModelGraphs, longest: int) -> list[str]:
    """A note where the longest sequence of a request exceeds the limit of the model."""
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
        by_side: dict[tuple[Regime, bool], StoredRegime] = {}
        for piece in family.cover(workloads):
            regime = regime_of(workloads[int(piece.index[0])], family.windows)
            if regime is not None and len(piece.graph.monomials) > 1:
                side = (piece.graph.template.lead or 0) > 0
                by_side.setdefault((regime, side), StoredRegime(form=form, regime=regime, graph=piece.graph))
        stored += by_side.values()
    parameters = sum(parameter.numel() for parameter in graphs.model.parameters())
    return StoredGraphs(model=graphs.name, parameters=parameters, windows=family.windows, regimes=tuple(stored))


def scale(ran: OpGraph, part: OpGraph, whole: OpGraph) -> OpGraph:
    """The graph `ran`, of a few repeated layers, with counts that make it represent the graph `whole`.

    Layers are of one kind if they run the same operations on the same shapes. `part` is the trace of these few layers
    on `meta`. Raises RequestError if a kind of layer of `whole` is not in `part`.
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
    of_whole = {"parameters": whole.parameters, "inactive": whole.inactive}
    return ran.model_copy(update={"ops": tuple(ops), "layers": (len(here), len(there)), **of_whole})


def _layer(op: Op) -> tuple[str, int] | None:
    place = layer_of(op.path)
    return (place.prefix, place.layer) if place else None


def _layers(graph: OpGraph) -> dict[tuple[str, int], Signature]:
    """The signature of each repeated layer."""
    layers: dict[tuple[str, int], list[tuple[object, ...]]] = defaultdict(list)
    for op, traffic in zip(graph.ops, graph.traffic, strict=True):
        place = layer_of(op.path)
        if place:
            dims = tuple(sorted(op.dims.items()))
            layers[place.prefix, place.layer].append((place.inner, op.name, op.dtype, dims, traffic.total))
    return {layer: tuple(ops) for layer, ops in layers.items()}
