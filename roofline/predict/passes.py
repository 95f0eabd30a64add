"""Records of a prediction, and how each pass gets its: exact passes with all their operations, sweeps with totals."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from roofline.graph.memory import Footprint, footprint
from roofline.graph.op import Kind, Op, OpGraph, Role, Traffic, uncounted_share
from roofline.hardware.spec import HardwareSpec, Peaks, at_ends
from roofline.host import host_gap_s, known, pass_wall_s
from roofline.laws.law import Floats
from roofline.price import Prepared, missing_peaks, price
from roofline.price_by_law import LawPrices, law_notes, law_prices, total_interval
from roofline.record import Record
from roofline.workload import Workload

if TYPE_CHECKING:
    from roofline.sweep.family import Piece

_SUMMED = ("matrix_flops", "vector_flops", "link_bytes")
_ABOUT = ("path", "name", "kind", "count", "dtype", "dims", "also", "counted")
ROOFLINE = "roofline"
"""Source of a time that no law gives."""


class OpPrediction(Record):
    """One operation, or one fused kernel; every amount is the total of its `count` executions."""

    path: str
    name: str
    kind: Kind
    count: float
    dtype: str
    matrix_flops: float
    vector_flops: float
    bytes: Traffic
    link_bytes: float = 0
    time_s: float | None
    """None where a peak that it needs is not known."""
    bound: str
    """ "matrix", "vector", a memory level, a link; "" where the time is not known."""
    source: str = ROOFLINE
    """The origin of its time: "roofline", "law of matmul bfloat16", or "law of ... beyond its sizes"."""
    low_s: float | None = None
    """Lower end of the 90 % interval of its time; None without a law, or an interval of the peaks that price it."""
    high_s: float | None = None
    dims: dict[str, int] = {}
    also: tuple[str, ...] = ()
    """Other work of a fused kernel."""
    counted: bool = True
    """False where arithmetic of it is in no table, so that its bytes alone price it."""
    reads: tuple[int, ...] = ()
    """Tensors, by number: operations that write and read the same one are connected."""
    writes: tuple[int, ...] = ()

    @property
    def flops(self) -> float:
        return self.matrix_flops + self.vector_flops

    @property
    def intensity(self) -> float | None:
        """FLOPs per byte of memory traffic; None without traffic."""
        return self.flops / self.bytes.total if self.bytes.total else None


class PassPrediction(Record):
    """One forward pass, or one step of a mixed batch."""

    workloads: tuple[Workload, ...] = Field(min_length=1)
    """More than one where a step mixes sequences of several kinds."""
    ops: tuple[OpPrediction, ...] = ()
    """Operations in the order they run; empty in a sweep."""
    tensor_roles: tuple[Role, ...] = ()
    """Role of each tensor that the operations number; empty where not known: views then guess which are weights."""
    count: float
    matrix_flops: float
    vector_flops: float
    bytes: Traffic
    link_bytes: float = 0
    time_s: float | None
    """Sum over the operations; None where a peak that one needs is not known."""
    low_s: float | None = None
    """Lower end of the 90 % interval of that sum, in which operations without a law count as the roofline prices them.
    Without laws: the sum with all peaks at the fast ends of their intervals; None where they have none."""
    high_s: float | None = None
    without_law: float | None = None
    """Share of the time that no law prices; None where no laws were asked for."""
    beyond_law: float | None = None
    """Share of the time that laws price beyond the sizes that they were fitted on."""
    refused_laws: tuple[str, ...] = ()
    """A sentence for each law that would price some of its operations, but is not used because of its error."""
    missing: tuple[str, ...] = ()
    """Needed peaks that are not known."""
    uncounted: tuple[str, ...] = ()
    """Operators of the pass whose FLOPs are in no table: they have the price of their bytes."""
    uncounted_share: float = 0.0
    """Share of the bytes moved that operations with such arithmetic move."""
    wall_s: float | None = None
    """Time with the host's share, where its cost for an operation is known."""
    memory: Footprint
    fits: bool | None
    """Whether the peak of memory is within the device's capacity; None where that is not known."""

    @property
    def tokens_per_s(self) -> float | None:
        """New tokens of all sequences, a second."""
        tokens = sum(w.batch * w.query_tokens for w in self.workloads)
        return tokens / self.time_s if self.time_s else None


class RequestPrediction(Record):
    """A batch of requests from prompt to last token."""

    batch: int
    prompt_tokens: int
    output_tokens: int
    ttft_s: float | None
    """Time to the first token: the prefill, with a transfer of its cache if it waits for one."""
    tpot_s: float | None
    """Mean time of each further token; None for a single one."""
    end_to_end_s: float | None
    tokens_per_s: float | None
    """Output tokens of the batch ÷ end to end."""
    peak_bytes: float
    """Most memory of any pass, a draft model's included; of the device that decodes, where that is another."""
    fits: bool | None
    intervals: dict[str, tuple[float, float]] = {}
    """Ends of the 90 % interval of each time above, by the field's name; empty without laws and measured peaks."""


class Prediction(Record):
    """All that a question about one model on one device asked for."""

    model: str
    hardware: str
    peaks: str
    """Origin of the times: "datasheet" or "measured" peaks, or "calibrated" laws."""
    form: str
    """ "fused": the ideal graph; "executed": as `transformers` runs it."""
    parameters: int
    options: dict[str, str] = {}
    """Attention, experts and cache implementations, and what-ifs."""
    draft: str | None = None
    """Draft model of speculative decoding."""
    speculate: int | None = None
    """Tokens that it drafts before each pass of the model."""
    acceptance: float | None = None
    """Probability that a drafted token is accepted."""
    decode_hardware: str | None = None
    """Device that decodes requests, where that is another."""
    pipeline_stages: int | None = None
    """Devices in a row that serve requests, where these are a pipeline."""
    micro_batches: int | None = None
    """Parts of the batch that follow each other through them."""
    passes: tuple[PassPrediction, ...]
    requests: tuple[RequestPrediction, ...] = ()
    capacity_bytes: float
    largest_batch: int | None = None
    """Largest batch that fits at the first workload's lengths; 0 if not even one sequence does."""
    largest_context: int | None = None
    """Cached tokens that fit at the batch of the first workload that has any; 0 if not even one does."""
    cache_tokens: int | None = None
    """Tokens of KV cache of all sequences that fit beside the weights and activations of a workload; None where a
    token adds no bytes, or it was not asked."""
    budget_bytes: float | None = None
    """Bytes of the device that the largest batch, context and cache were searched in."""
    notes: tuple[str, ...] = ()


def capacity_bytes(peaks: Peaks) -> float:
    """Size of the main memory."""
    return peaks.levels[-1].capacity_bytes


def predict_pass(
    graph: OpGraph,
    spec: HardwareSpec,
    peaks: Peaks,
    workloads: Sequence[Workload] = (),
    memory: Footprint | None = None,
    *,
    with_laws: bool = False,
) -> PassPrediction:
    """Return one pass of `graph` at `peaks`, which are of `spec`.

    Args:
        workloads: those of a mixed step, where they are not the graph's own.
        memory: where it is known better than the graph tells it.
        with_laws: whether calibrated laws of `spec` price the operations that they describe; `graph` is as executed.
    """
    prepared = Prepared(graph)
    priced = price(prepared, peaks)
    gap_s = host_gap_s(graph, spec) if with_laws else None
    laws = law_prices(prepared, spec, priced.time_s, with_intervals=True) if with_laws else None
    time_s = priced.time_s if laws is None else laws.time_s
    ends_s = [price(prepared, end).time_s for end in at_ends(peaks) or ()] if laws is None else []
    sources = _between(len(graph.ops), ends_s) if laws is None else _sources(laws, spec)
    ops = tuple(
        _op_prediction(op, traffic, seconds, bound, source)
        for op, traffic, seconds, bound, source in zip(
            graph.ops, graph.traffic, time_s.tolist(), priced.bound, sources, strict=True
        )
    )
    count = np.array([op.count for op in graph.ops], dtype=float)
    needed = memory or footprint(graph)
    return PassPrediction(
        workloads=tuple(workloads) or (graph.workload,),
        ops=ops,
        tensor_roles=tuple(tensor.role for tensor in graph.tensors),
        count=float(count.sum()),
        **{name: sum(getattr(op, name) for op in ops) for name in _SUMMED},
        bytes=Traffic(**{name: sum((getattr(op.bytes, name) for op in ops), 0.0) for name in Traffic.model_fields}),
        time_s=known(float(time_s @ count)),
        **(_ends([float(end @ count) for end in ends_s]) if laws is None else _by_law(laws, count)),
        refused_laws=() if laws is None else tuple(law_notes(spec.calibrated[i] for i in laws.refused)),
        missing=missing_peaks(graph.ops, peaks),
        **({"uncounted": graph.uncounted, "uncounted_share": uncounted_share(graph)} if graph.uncounted else {}),
        wall_s=pass_wall_s(time_s, count, spec, peaks, gap_s, with_laws=with_laws),
        memory=needed,
        fits=needed.peak <= capacity_bytes(peaks),
    )


def predict_sweep(pieces: "Sequence[Piece]", workloads: Sequence[Workload], peaks: Peaks) -> list[PassPrediction]:
    """Totals of one pass of each workload, in their order."""
    from roofline.sweep.price import memory_pieces, price_pieces

    swept, memory = price_pieces(pieces, workloads, peaks), memory_pieces(pieces, workloads)
    missing = tuple(sorted({peak for piece in pieces for peak in missing_peaks(piece.graph.template.ops, peaks)}))
    uncounted = _uncounted(pieces, workloads)
    ends = [price_pieces(pieces, workloads, end).time_s for end in at_ends(peaks) or ()]
    return [
        PassPrediction(
            workloads=(workload,),
            **{name: float(getattr(swept, name)[i]) for name in ("count", *_SUMMED)},
            bytes=swept.traffic(i),
            time_s=known(swept.time_s[i]),
            **_ends([float(end[i]) for end in ends]),
            missing=missing,
            **uncounted.get(i, {}),
            memory=memory.footprint(i),
            fits=bool(memory.peak[i] <= capacity_bytes(peaks)),
        )
        for i, workload in enumerate(workloads)
    ]


def _uncounted(pieces: "Sequence[Piece]", workloads: Sequence[Workload]) -> dict[int, dict[str, Any]]:
    """Operators without a FLOP count and their share of the bytes, by workload; none for those without such."""
    from roofline.sweep.polynomial import Sweep

    found: dict[int, dict[str, Any]] = {}
    for piece in pieces:
        template = piece.graph.template
        if template.uncounted:
            amounts = piece.graph.amounts(Sweep.of([workloads[i] for i in piece.index.tolist()]))
            moved = sum(amounts[name] for name in Traffic.model_fields) * amounts["count"]
            which = np.array([not op.counted for op in template.ops])
            for i, row in zip(piece.index.tolist(), moved, strict=True):
                share = float(row[which].sum() / row.sum()) if row.sum() else 0.0
                found[i] = {"uncounted": template.uncounted, "uncounted_share": share}
    return found


def predict_sweep_by_laws(
    pieces: "Sequence[Piece]", workloads: Sequence[Workload], spec: HardwareSpec, peaks: Peaks
) -> list[PassPrediction]:
    """Totals of one pass of each workload by the laws of `spec`, in their order."""
    from roofline.sweep.price import memory_pieces

    memory, passes = memory_pieces(pieces, workloads), {}
    for piece in pieces:
        for i in piece.index.tolist():
            graph = piece.graph.at(workloads[i])
            step = predict_pass(graph, spec, peaks, [workloads[i]], memory.footprint(i), with_laws=True)
            passes[i] = step.model_copy(update={"ops": (), "tensor_roles": ()})
    return [passes[i] for i in range(len(workloads))]


def _by_law(laws: LawPrices, count: Floats) -> dict[str, float | None]:
    """The interval of a pass, and the shares of its time without a law and beyond the laws' sizes."""
    whole, (low, high) = laws.time_s * count, total_interval(laws, count)
    total = float(whole.sum())
    shares = (float(whole[rows].sum()) / total if total > 0 else None for rows in (~laws.by_law, laws.outside))
    without, beyond = (None if share is None else known(share) for share in shares)
    return {"low_s": known(low), "high_s": known(high), "without_law": without, "beyond_law": beyond}


def _ends(times_s: Sequence[float]) -> dict[str, float | None]:
    """Return the fields of an interval from its two ends; none without ends."""
    return dict(zip(("low_s", "high_s"), map(known, times_s), strict=False))


def _between(ops: int, ends_s: Sequence[Floats]) -> list[dict[str, Any]]:
    """Return the same for each of `ops` operations, of one execution; none where its time is not known."""
    if not ends_s:
        return [{}] * ops
    rows = zip(*(end.tolist() for end in ends_s), strict=True)
    return [{"low_s": low, "high_s": high} if np.isfinite(low) else {} for low, high in rows]


def _sources(laws: LawPrices, spec: HardwareSpec) -> list[dict[str, Any]]:
    """The source of each operation's time, and the ends of the interval of one execution."""
    names = [f"law of {law.kind} {law.dtype}" for law in spec.calibrated]
    rows = zip(laws.law.tolist(), laws.outside.tolist(), laws.low_s.tolist(), laws.high_s.tolist(), strict=True)
    return [
        {"source": names[law] + (" beyond its sizes" if outside else ""), "low_s": low, "high_s": high}
        if law >= 0
        else {}
        for law, outside, low, high in rows
    ]


def _op_prediction(op: Op, traffic: Traffic, seconds: float, bound: str, source: Mapping[str, Any]) -> OpPrediction:
    totals = {name: getattr(op, name) * op.count for name in _SUMMED}
    return OpPrediction.model_construct(  # of a validated operation
        **{name: getattr(op, name) for name in _ABOUT} | totals,
        bytes=Traffic.model_construct(**{name: getattr(traffic, name) * op.count for name in Traffic.model_fields}),
        time_s=known(seconds * op.count),
        bound=bound,
        **{name: value * op.count if name != "source" else value for name, value in source.items()},
        reads=tuple(dict.fromkeys(a.tensor for a in op.reads)),
        writes=tuple(dict.fromkeys(a.tensor for a in op.writes)),
    )
