"""Answers a question about one model on one device: passes, mixed steps, sweeps, requests, and what fits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from roofline.graph.memory import Footprint, largest
from roofline.graph.mixed_batch import mix
from roofline.hardware.spec import HardwareSpec, Peaks, at_ends
from roofline.laws.kinds import KINDS
from roofline.predict.passes import (
    PassPrediction,
    Prediction,
    RequestPrediction,
    capacity_bytes,
    predict_pass,
    predict_sweep,
    predict_sweep_by_laws,
)
from roofline.predict.requests import Draft, Passes, Pipeline, request
from roofline.sweep.family import FEW, Family, Form, Piece, Source
from roofline.sweep.polynomial import Sweep
from roofline.sweep.price import memory_pieces, price_pieces, price_sweep
from roofline.sweep.regimes import EDGE
from roofline.whatif.draft import shared_bytes
from roofline.workload import Workload

EXACT = 6
"""Up to as many passes are traced one by one and shown with their operations; more are a sweep of totals."""

MOST_TOKENS = 2**27
"""Tokens of all sequences where the search for the largest batch and context ends: beyond what the devices in `devices`
hold of most models; a note says where it was reached."""

PROBES = 2 * FEW + 2
"""Contexts of one stretch that its graph is fitted for: more than are traced one by one, and so are their halves."""

CALIBRATED = "calibrated"
"""Origin of prices that are laws'."""

BLOCK = 2**14
"""Contexts that are priced at once: arrays of some 100 MB for a model of a hundred operations."""


@dataclass(frozen=True)
class Device:
    """A device and the peaks of it that are used."""

    spec: HardwareSpec
    peaks: Peaks
    origin: str
    """ "datasheet" or "measured"; "calibrated": the spec's laws, and measured peaks for what they do not describe."""

    notes: tuple[str, ...] = ()
    """Limits of the worth of its figures, a sentence each."""

    @property
    def with_laws(self) -> bool:
        """Return whether laws price operations."""
        return self.origin == CALIBRATED

    @property
    def form(self) -> Form:
        """The graph that its prices are for: laws of single operators are those of the model as it is executed."""
        operators = any(law.kind in KINDS and KINDS[law.kind].op_kinds for law in self.spec.calibrated)
        return "executed" if self.with_laws and operators else "fused"


@dataclass(frozen=True)
class Speculation:
    """A draft model, how many tokens it drafts, and how often one is accepted."""

    draft: Source
    tokens: int
    acceptance: float
    is_own: bool = False
    """Whether it is a head on the model itself, with the model's embedding and head (`whatif.draft`)."""


@dataclass(frozen=True)
class Question:
    """A question about one model on one device: what to predict."""

    workloads: tuple[Workload, ...] = ()
    mixes: tuple[tuple[Workload, ...], ...] = ()
    """Steps that run several workloads at once."""
    requests: tuple[tuple[int, int, int], ...] = ()
    """(batch, prompt tokens, output tokens)."""
    dtype: str = "bfloat16"
    largest: bool = False
    """Whether to search the largest batch and context that fit, and how many tokens of KV cache."""
    memory_utilisation: float = 1.0
    """Share of the device's memory that the server takes, of which `largest` uses what is left."""
    overhead_bytes: float = 0.0
    """Bytes of that share that are neither weights, cache nor activations: contexts, graphs, buffers of libraries."""
    decode: tuple[Source, Device] | None = None
    """Graphs and device of the decode steps of requests, where those run elsewhere."""
    pipeline: tuple[Source, ...] = ()
    """All stages of a pipeline that serves the requests; empty where one device does."""
    decode_pipeline: tuple[Source, ...] = ()
    """The same for the decode steps that run elsewhere."""
    micro_batches: int = 1
    """Parts of the batch that follow each other through the pipeline."""
    speculation: Speculation | None = None
    exact: bool | None = None
    """Whether each workload is traced; None: they are traced if they are few."""


def answer(source: Source, question: Question, device: Device, form: Form, notes: Sequence[str] = ()) -> Prediction:
    """The whole answer. Raises: ValueError where a graph cannot be had or changed as the question says."""
    first, cached = (next((w for w in question.workloads if w.context_tokens >= least), None) for least in (0, 1))
    if question.largest and first is None:
        raise ValueError("the largest that fits is searched from a workload's lengths; ask without --mix")
    work = _Work(source, device)
    exact = question.exact if question.exact is not None else len(question.workloads) <= EXACT
    passes: list[PassPrediction] = []
    options: dict[str, str] = {}
    if question.workloads and not exact:
        pieces = work.pieces(question.workloads)
        if device.with_laws:
            passes += predict_sweep_by_laws(pieces, question.workloads, device.spec, device.peaks)
        else:
            passes += predict_sweep(pieces, question.workloads, device.peaks)
        options |= work.options
    for parts in (*([workload] for workload in question.workloads if exact), *question.mixes):
        graph = mix([source.whole(part) for part in parts])
        passes.append(predict_pass(graph, device.spec, device.peaks, parts, with_laws=device.with_laws))
        options |= graph.options
    requests = tuple(_request(work, question, *sizes) for sizes in question.requests)
    refused = [sentence for step in passes for sentence in step.refused_laws]
    budget = question.memory_utilisation * work.capacity_bytes - question.overhead_bytes
    largest_batch = work.largest_batch(first, budget) if question.largest and first else None
    largest_context = work.largest_context(cached, budget) if question.largest and cached else None
    cache_tokens = work.cache_tokens(cached or first, budget) if question.largest and first else None
    return Prediction(
        model=source.name,
        hardware=device.spec.name,
        peaks=device.origin,
        form=form,
        parameters=source.parameters,
        options=options or work.options,
        draft=question.speculation.draft.name if question.speculation else None,
        speculate=question.speculation.tokens if question.speculation else None,
        acceptance=question.speculation.acceptance if question.speculation else None,
        decode_hardware=question.decode[1].spec.name if question.decode else None,
        pipeline_stages=len(question.pipeline) or None,
        micro_batches=question.micro_batches if question.pipeline else None,
        passes=tuple(passes),
        requests=requests,
        capacity_bytes=capacity_bytes(device.peaks),
        largest_batch=largest_batch,
        largest_context=largest_context,
        cache_tokens=cache_tokens,
        budget_bytes=budget if question.largest else None,
        notes=(*notes, *device.notes, *dict.fromkeys((*refused, *work.refused_laws)), *work.notes),
    )


class _Work:
    """One model on one device: the graphs that have been made for a prediction, and their prices."""

    def __init__(self, source: Source, device: Device) -> None:
        self.device = device
        self._source = source
        self._peaks = (device.peaks, *(at_ends(device.peaks) or ()))
        self.capacity_bytes = capacity_bytes(device.peaks)
        self.options: dict[str, str] = {}
        self.notes: list[str] = []
        self.refused_laws: dict[str, None] = {}

    @cached_property
    def _family(self) -> Family:
        family = self._source.family()
        self.notes = family.notes
        return family

    def pieces(self, workloads: Sequence[Workload]) -> list[Piece]:
        pieces = self._family.cover(workloads)
        self.options |= pieces[0].graph.template.options
        return pieces

    def seconds(self, workload: Workload) -> NDArray[np.float64]:
        if self.device.with_laws:
            return self._law_s(workload)
        pieces = self.pieces([workload])
        return self._at_peaks(lambda peaks: price_pieces(pieces, [workload], peaks).time_s)[:, 0]

    def growing_s(self, like: Workload, contexts: range) -> NDArray[np.float64]:
        parts = [self._stretch_s(like, stretch) for stretch in _stretches(like, contexts, self._family.windows)]
        return np.concatenate([np.zeros((3, 0)), *parts], axis=1)

    def _law_s(self, workload: Workload) -> NDArray[np.float64]:
        graph = self.pieces([workload])[0].graph.at(workload)
        step = predict_pass(graph, self.device.spec, self.device.peaks, with_laws=True)
        self.refused_laws |= dict.fromkeys(step.refused_laws)
        return np.array([step.time_s, step.low_s, step.high_s], dtype=float)  # None becomes NaN

    def _stretch_s(self, like: Workload, contexts: range) -> NDArray[np.float64]:
        places = _spread(len(contexts))
        probes = [_at(like, contexts[i]) for i in places]
        if self.device.with_laws:  # smooth in the context: interpolated between as many passes as fit a graph
            ends = np.stack([self._law_s(probe) for probe in probes], axis=1)
            return np.stack([np.interp(np.arange(len(contexts)), places, row) for row in ends])
        pieces = self.pieces(probes)
        if len(pieces) > 1:  # nothing describes the whole stretch
            workloads = [_at(like, context) for context in contexts]
            each = self.pieces(workloads)
            return self._at_peaks(lambda peaks: price_pieces(each, workloads, peaks).time_s)
        growing = np.arange(contexts.start, contexts.stop, dtype=float)
        sweep = Sweep(np.full_like(growing, like.batch), np.full_like(growing, like.query_tokens), growing)
        blocks = [sweep.take(np.arange(i, min(i + BLOCK, len(sweep)))) for i in range(0, len(sweep), BLOCK)]
        return self._at_peaks(
            lambda peaks: np.concatenate([price_sweep(pieces[0].graph, block, peaks).time_s for block in blocks])
        )

    def _at_peaks(self, seconds: Callable[[Peaks], NDArray[np.float64]]) -> NDArray[np.float64]:
        """Return times, and the ends of their 90 % interval by those of the peaks, NaN where these have none: shape
        (3, passes)."""
        rows = [seconds(peaks) for peaks in self._peaks]
        return np.stack([*rows, *[np.full_like(rows[0], np.nan)] * (3 - len(rows))])

    def memory(self, workload: Workload) -> Footprint:
        return self._memory(self.pieces([workload])[0], workload)

    def shared_bytes(self, dtype: str) -> float:
        """Bytes of weights that a model's own draft has in common with the model."""
        return shared_bytes(self._source.whole(Workload(batch=1, query_tokens=1, context_tokens=0, dtype=dtype)))

    def _memory(self, piece: Piece, workload: Workload) -> Footprint:
        return memory_pieces([Piece(piece.graph, np.array([0]))], [workload]).footprint(0)

    def largest_batch(self, like: Workload, budget: float) -> int:
        most = max(1, MOST_TOKENS // (like.query_tokens + like.context_tokens))
        probes = [like.model_copy(update={"batch": 2**i}) for i in range(most.bit_length())]
        return self._largest(probes, "batch", most, budget)

    def largest_context(self, like: Workload, budget: float) -> int:
        most = max(1, MOST_TOKENS // like.batch)
        probes = []
        for stretch in _stretches(like, range(1, most + 1), self._family.windows):
            # doubling distances from its start, and enough of the first that a graph can be fitted
            doubling = (2**i for i in range(3, len(stretch).bit_length()) if 2**i < len(stretch))
            places = sorted({*range(min(len(stretch), PROBES)), *doubling})
            probes += [_at(like, stretch[i]) for i in places]
        return self._largest(probes, "context_tokens", most, budget)

    def cache_tokens(self, like: Workload, budget: float) -> int | None:
        """Tokens of KV cache for which the budget has room beside the weights and activations of `like`.

        (budget − weights − activations) ÷ bytes of a token, which are those that one more token of every sequence adds.
        None where a token adds none: a model with state instead of a cache, or windows that are full.
        """
        held, more = self.memory(like), self.memory(_at(like, like.context_tokens + 1))
        token_bytes = (more.kv_cache - held.kv_cache) / like.batch
        if token_bytes <= 0:
            return None
        return max(0, int((budget - (held.peak - held.kv_cache)) // token_bytes))

    def _largest(self, probes: Sequence[Workload], field: str, limit: int, budget: float) -> int:
        """Search with the graph fitted for the nearest probe that is not larger, which is in one regime with it."""
        pieces = self.pieces(probes)
        serving = {int(i): piece for piece in pieces for i in piece.index}
        sizes = np.array([getattr(probe, field) for probe in probes])

        def needed(size: int) -> float:
            nearest = int(np.searchsorted(sizes, size, side="right")) - 1
            piece, workload = serving[nearest], probes[0].model_copy(update={field: size})
            if len(piece.graph.monomials) == 1:  # traced alone: it says nothing of other sizes
                return self.memory(workload).peak
            return self._memory(piece, workload).peak

        most = largest(needed, budget, limit)
        if most == limit:
            self.notes.append(f"the search for the largest {field} ended at {limit}: more may fit")
        return most


def _at(like: Workload, context: int) -> Workload:
    return like.model_copy(update={"context_tokens": context})


def _stretches(like: Workload, contexts: range, windows: Sequence[int]) -> list[range]:
    """Contexts, of which there is at least one, in one regime each; those on the edge of a window by themselves."""
    cuts = {contexts.start, contexts.stop}
    for edge in (edge for window in windows for edge in (window, window - like.query_tokens)):
        cuts |= {edge - EDGE, edge + EDGE + 1}
    return [range(a, b) for a, b in pairwise(sorted(c for c in cuts if contexts.start <= c <= contexts.stop))]


def _spread(length: int) -> list[int]:
    """Places in a stretch, both ends and some between; all of a short one."""
    return sorted({int(i) for i in np.linspace(0, length - 1, PROBES).round()})


def _request(work: _Work, question: Question, batch: int, prompt: int, output: int) -> RequestPrediction:
    decode, decoding_on, draft = None, work.device, None
    if question.decode is not None:
        source, decoding_on = question.decode
        decode = _passes(_Work(source, decoding_on), question.decode_pipeline, question.micro_batches)
    if question.speculation is not None:
        drafting = _Work(question.speculation.draft, decoding_on)
        shares = drafting.shared_bytes(question.dtype) if question.speculation.is_own else 0.0
        draft = Draft(drafting, question.speculation.tokens, question.speculation.acceptance, shares)
    passes = _passes(work, question.pipeline, question.micro_batches)
    return request(passes, batch=batch, prompt=prompt, output=output, dtype=question.dtype, decode=decode, draft=draft)


def _passes(work: _Work, stages: Sequence[Source], micro_batches: int) -> Passes:
    """The model of `work`, or the pipeline of all its stages on such devices."""
    return Pipeline([_Work(stage, work.device) for stage in stages], micro_batches) if stages else work
