"""Makes the records of a prediction: exact passes with all their operations, and sweeps with their totals.

Example: ``forecast(graph, peaks).time_s`` → seconds of one pass of `graph` at `peaks`
"""

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from roofline.family import Piece
from roofline.footprint import Footprint, footprint
from roofline.hardware import HardwareSpec, Peaks
from roofline.host import wall_s
from roofline.laws.roofline import missing_peaks
from roofline.op import Op, OpGraph, Traffic
from roofline.predict import price
from roofline.prediction import OpPrediction, PassPrediction
from roofline.sweep import memory_pieces, price_pieces
from roofline.workload import Workload

HOST_MODEL: dict[str, Literal["cuda", "cpu"]] = {"cpu": "cpu", "cuda": "cuda", "other": "cuda"}
"""How the host issues work, by kind of device: everything but a CPU has a queue."""


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
) -> PassPrediction:
    """One pass of `graph` at `peaks`, which are of `spec`.

    Args: the workloads of a mixed step, where that is not the graph's own; memory, where it is known better.
    """
    priced = price(graph, peaks)
    ops = tuple(
        _line(op, traffic, seconds, bound)
        for op, traffic, seconds, bound in zip(
            graph.ops, graph.traffic, priced.time_s.tolist(), priced.bound, strict=True
        )
    )
    count = np.array([op.count for op in graph.ops])
    needed = memory or footprint(graph)
    host, kind = peaks.host_s_per_op, HOST_MODEL[spec.kind]
    return PassPrediction(
        workloads=tuple(workloads) or (graph.workload,),
        ops=ops,
        tensor_roles=tuple(tensor.role for tensor in graph.tensors),
        count=float(count.sum()),
        matrix_flops=sum(op.matrix_flops for op in ops),
        vector_flops=sum(op.vector_flops for op in ops),
        bytes=_sum(op.bytes for op in ops),
        link_bytes=sum(op.link_bytes for op in ops),
        time_s=known(float(priced.time_s @ count)),
        missing=missing_peaks(graph.ops, peaks),
        wall_s=known(wall_s(priced.time_s, count, host.value, kind)) if host else None,
        memory=needed,
        fits=needed.peak <= capacity_bytes(peaks),
    )


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
