"""Makes the records of a prediction: exact passes with all their operations, and sweeps with their totals.

Example: ``forecast(graph, peaks).time_s`` → seconds of one pass of `graph` at `peaks`
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from roofline.family import Piece
from roofline.footprint import Footprint, footprint
from roofline.hardware import HardwareSpec, Peaks
from roofline.host import wall_s
from roofline.host_gaps import host_gap_s
from roofline.law_prices import law_prices
from roofline.laws.law import Floats
from roofline.laws.roofline import missing_peaks
from roofline.op import Op, OpGraph, Traffic
from roofline.predict import Prepared, price
from roofline.prediction import OpPrediction, PassPrediction
from roofline.sweep import memory_pieces, price_pieces
from roofline.workload import Workload


def known(value: float) -> float | None:
    """The value; None where it is not known."""
    return None if math.isnan(value) else float(value)


def capacity_bytes(peaks: Peaks) -> float:
    """Main memory."""
    return peaks.levels[-1].capacity_bytes


def forecast(
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


def pass_wall_s(
    time_s: Floats, count: Floats, spec: HardwareSpec, peaks: Peaks, gap_s: Floats | None, *, with_laws: bool
) -> float | None:
    """Wall time of operations with their device times; None where the host's share is not known.

    Laws are fitted to whole operations: on a CPU only `gap_s`, the gap before each, is left to the host.
    """
    if with_laws and not spec.has_queue:
        return None if gap_s is None else known(float((time_s + gap_s) @ count))
    return known(wall_s(time_s, count, peaks.host_s_per_op.value, spec.has_queue)) if peaks.host_s_per_op else None


def forecast_sweep(pieces: Sequence[Piece], workloads: Sequence[Workload], peaks: Peaks) -> list[PassPrediction]:
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
            memory=Footprint(
                weights=memory.weights[i],
                kv_cache=memory.kv_cache[i],
                activations=memory.activations[i],
                peak=memory.peak[i],
            ),
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
