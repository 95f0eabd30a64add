"""Records of a prediction, and how each pass gets its: exact passes with all their operations, sweeps with totals."""

from collections.abc import Sequence

import numpy as np
from pydantic import Field

from roofline.graph.memory import Footprint, footprint
from roofline.graph.op import Kind, Op, OpGraph, Role, Traffic
from roofline.hardware.spec import HardwareSpec, Peaks
from roofline.host import known, pass_wall_s
from roofline.price import Prepared, missing_peaks, price
from roofline.price_by_law import host_gap_s, law_prices
from roofline.record import Record
from roofline.sweep.family import Piece
from roofline.sweep.price import memory_pieces, price_pieces
from roofline.workload import Workload

_SUMMED = ("matrix_flops", "vector_flops", "link_bytes")


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
    dims: dict[str, int] = {}
    also: tuple[str, ...] = ()
    """Other work of a fused kernel."""
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
    missing: tuple[str, ...] = ()
    """Needed peaks that are not known."""
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


class Prediction(Record):
    """All that a question about one model on one device asked for."""

    model: str
    hardware: str
    peaks: str
    """Origin of the peaks: "datasheet" or "measured"."""
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
    """One pass of `graph` at `peaks`, which are of `spec`.

    Args: the workloads of a mixed step, where that is not the graph's own; its memory, where that is known better;
        `with_laws`, whether calibrated laws of `spec` price the operations that they describe: `graph` is as executed.
    """
    prepared = Prepared(graph)
    priced = price(prepared, peaks)
    gap_s = host_gap_s(graph, spec) if with_laws else None
    time_s = law_prices(prepared, spec, priced.time_s).time_s if with_laws else priced.time_s
    ops = tuple(
        _op_prediction(op, traffic, seconds, bound)
        for op, traffic, seconds, bound in zip(graph.ops, graph.traffic, time_s.tolist(), priced.bound, strict=True)
    )
    count = np.array([op.count for op in graph.ops])
    needed = memory or footprint(graph)
    return PassPrediction(
        workloads=tuple(workloads) or (graph.workload,),
        ops=ops,
        tensor_roles=tuple(tensor.role for tensor in graph.tensors),
        count=float(count.sum()),
        **{name: sum(getattr(op, name) for op in ops) for name in _SUMMED},
        bytes=Traffic(**{name: sum((getattr(op.bytes, name) for op in ops), 0.0) for name in Traffic.model_fields}),
        time_s=known(float(time_s @ count)),
        missing=missing_peaks(graph.ops, peaks),
        wall_s=pass_wall_s(time_s, count, spec, peaks, gap_s, with_laws=with_laws),
        memory=needed,
        fits=needed.peak <= capacity_bytes(peaks),
    )


def predict_sweep(pieces: Sequence[Piece], workloads: Sequence[Workload], peaks: Peaks) -> list[PassPrediction]:
    """Totals of one pass of each workload, in their order."""
    swept, memory = price_pieces(pieces, workloads, peaks), memory_pieces(pieces, workloads)
    missing = tuple(sorted({peak for piece in pieces for peak in missing_peaks(piece.graph.template.ops, peaks)}))
    return [
        PassPrediction(
            workloads=(workload,),
            **{name: float(getattr(swept, name)[i]) for name in ("count", *_SUMMED)},
            bytes=swept.traffic(i),
            time_s=known(swept.time_s[i]),
            missing=missing,
            memory=memory.footprint(i),
            fits=bool(memory.peak[i] <= capacity_bytes(peaks)),
        )
        for i, workload in enumerate(workloads)
    ]


def _op_prediction(op: Op, traffic: Traffic, seconds: float, bound: str) -> OpPrediction:
    totals = {name: getattr(op, name) * op.count for name in _SUMMED}
    return OpPrediction.model_construct(  # of a validated operation
        **{name: getattr(op, name) for name in ("path", "name", "kind", "count", "dtype", "dims", "also")} | totals,
        bytes=Traffic.model_construct(**{name: getattr(traffic, name) * op.count for name in Traffic.model_fields}),
        time_s=known(seconds * op.count),
        bound=bound,
        reads=tuple(dict.fromkeys(a.tensor for a in op.reads)),
        writes=tuple(dict.fromkeys(a.tensor for a in op.writes)),
    )
