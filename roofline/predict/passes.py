"""Records of a prediction, and how each pass gets its: exact passes with all their operations, sweeps with totals.

Example: ``predict_pass(graph, spec, peaks).time_s`` → seconds of one pass of `graph` at `peaks`
"""

from collections.abc import Iterable, Sequence

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
    """What else a fused kernel does."""
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
    """In the order they run; empty in a sweep."""
    tensor_roles: tuple[Role, ...] = ()
    """Role of each tensor that the operations number; empty where not known: views then guess what is a weight."""
    count: float
    """Operations."""
    matrix_flops: float
    vector_flops: float
    bytes: Traffic
    link_bytes: float = 0
    time_s: float | None
    """Sum over the operations; None where a peak that one needs is not known."""
    missing: tuple[str, ...] = ()
    """Peaks that would be needed."""
    wall_s: float | None = None
    """With the host, where its cost for an operation is known."""
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
    """Time to the first token: the prefill, and what it waits for (a transfer of its cache)."""
    tpot_s: float | None
    """Mean time of each further token; None for a single one."""
    end_to_end_s: float | None
    tokens_per_s: float | None
    """Output tokens of the batch ÷ end to end."""
    peak_bytes: float
    """Most memory of any pass, a draft model's included; of the device that decodes, where that is another."""
    fits: bool | None


class Prediction(Record):
    """Everything that was asked of one model on one device."""

    model: str
    hardware: str
    peaks: str
    """Origin of the peaks: "datasheet" or "measured"."""
    form: str
    """ "fused": the ideal graph; "executed": as `transformers` runs it."""
    parameters: int
    options: dict[str, str] = {}
    """Implementations and what-ifs."""
    passes: tuple[PassPrediction, ...]
    requests: tuple[RequestPrediction, ...] = ()
    capacity_bytes: float
    """Size of the device's memory."""
    largest_batch: int | None = None
    """That fits at the first workload's lengths; 0 if not even one does."""
    largest_context: int | None = None
    """Cached tokens that fit at the batch of the first workload that has any; 0 if not even one does."""
    notes: tuple[str, ...] = ()


def capacity_bytes(peaks: Peaks) -> float:
    """Main memory."""
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

    Args: the workloads of a mixed step, where that is not the graph's own; memory, where it is known better;
    `with_laws`, whether the calibrated laws of `spec` price the operations that they describe: `graph` is as executed.
    """
    prepared = Prepared(graph)
    priced = price(prepared, peaks)
    gap_s = host_gap_s(graph, spec) if with_laws else None
    time_s = law_prices(prepared, spec, priced.time_s).time_s if with_laws else priced.time_s
    ops = tuple(
        _line(op, traffic, seconds, bound)
        for op, traffic, seconds, bound in zip(graph.ops, graph.traffic, time_s.tolist(), priced.bound, strict=True)
    )
    count = np.array([op.count for op in graph.ops])
    needed = memory or footprint(graph)
    return PassPrediction(
        workloads=tuple(workloads) or (graph.workload,),
        ops=ops,
        tensor_roles=tuple(tensor.role for tensor in graph.tensors),
        count=float(count.sum()),
        matrix_flops=sum(op.matrix_flops for op in ops),
        vector_flops=sum(op.vector_flops for op in ops),
        bytes=_sum(op.bytes for op in ops),
        link_bytes=sum(op.link_bytes for op in ops),
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
            count=float(swept.count[i]),
            matrix_flops=float(swept.matrix_flops[i]),
            vector_flops=float(swept.vector_flops[i]),
            bytes=swept.traffic(i),
            link_bytes=float(swept.link_bytes[i]),
            time_s=known(swept.time_s[i]),
            missing=missing,
            memory=memory.footprint(i),
            fits=bool(memory.peak[i] <= capacity_bytes(peaks)),
        )
        for i, workload in enumerate(workloads)
    ]


def _line(op: Op, traffic: Traffic, seconds: float, bound: str) -> OpPrediction:
    return OpPrediction.model_construct(  # of a validated operation
        path=op.path,
        name=op.name,
        kind=op.kind,
        count=op.count,
        dtype=op.dtype,
        matrix_flops=op.matrix_flops * op.count,
        vector_flops=op.vector_flops * op.count,
        bytes=Traffic.model_construct(**{name: getattr(traffic, name) * op.count for name in Traffic.model_fields}),
        link_bytes=op.link_bytes * op.count,
        time_s=known(seconds * op.count),
        bound=bound,
        dims=op.dims,
        also=op.also,
        reads=tuple(dict.fromkeys(a.tensor for a in op.reads)),
        writes=tuple(dict.fromkeys(a.tensor for a in op.writes)),
    )


def _sum(parts: Iterable[Traffic]) -> Traffic:
    totals = dict.fromkeys(Traffic.model_fields, 0.0)
    for part in parts:
        for name in totals:
            totals[name] += getattr(part, name)
    return Traffic(**totals)
