"""What laws know of the operations of a graph: which laws may price each, in which dtype, from which sizes.

An operator may have a law of its own ("aten::mul"), else that of its kind of streaming ("pointwise"). A product with
one row is a matrix-vector product, another kernel in every library, and streams its matrix. `cold`, of every operation,
is the share of its bytes that no cache holds when it runs: by reuse distance in the graph (`roofline.residency`);
`reach`, the bytes that others have touched since the same operator last ran.

Example: ``subjects(Prepared(graph), cache_bytes=50e6)[3].dims["n"]``; None for what no law describes
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from roofline.caches import Touches
from roofline.code_reach import reach_bytes
from roofline.dtypes import ELEMENT_BYTES
from roofline.graph.op import Kind, Op
from roofline.laws.law import Floats
from roofline.laws.registry import ROW_MAJOR
from roofline.price import Prepared

MATVEC = "matvec"
"""Kind of a product with one row."""
BATCHED, GROUPED = "batched_matmul", "grouped_matmul"
"""Kinds of many products in one call: of activations with each other, and of the experts of a mixture."""
BATCHED_OPERATORS = ("aten::bmm", "aten::baddbmm")
"""Run other kernels than a single product does, even for a batch of one."""
STREAMS: Mapping[Kind, str] = {
    Kind.POINTWISE: "pointwise",
    Kind.COPY: "pointwise",
    Kind.REDUCTION: "norm",
    Kind.NORM: "norm",
    Kind.SOFTMAX: "norm",
    Kind.EMBEDDING: "embedding",
}
"""Kinds of operations that stream, and the law of all operators of that kind."""


@dataclass(frozen=True, slots=True)
class Subject:
    """One operation as laws see it."""

    kinds: tuple[str, ...]
    """Of the laws that price it, the most special first."""
    dtype: str
    dims: Mapping[str, float]


def subjects(prepared: Prepared, cache_bytes: float) -> list[Subject | None]:
    """Of each operation of a graph, in its order. `cache_bytes`: of the device's last-level cache."""
    ops = prepared.graph.ops
    cold = cold_shares(prepared.touches, cache_bytes)
    reach = reach_bytes(ops, [operator(op.name) for op in ops])
    return [subject_of(op, *states) for op, *states in zip(ops, cold.tolist(), reach.tolist(), strict=True)]


def cold_shares(touches: Touches, cache_bytes: float) -> Floats:
    """Share of each operation's bytes that main memory serves; shape (operations,).

    Bytes that nobody reads again do not count: an allocator puts them where others have just been.
    """
    moved, missed = np.zeros(len(touches.traffic_bytes)), np.zeros(len(touches.traffic_bytes))
    again = np.isfinite(touches.reach_bytes)
    np.add.at(moved, touches.step, np.where(again, touches.bytes, 0.0))
    np.add.at(missed, touches.step, np.where(again & (touches.reach_bytes > cache_bytes), touches.bytes, 0.0))
    return np.asarray(missed / np.maximum(moved, 1.0))


def subject_of(op: Op, cold: float = 0.0, reach: float = 0.0) -> Subject | None:
    """One operation; None where no law describes it."""
    states = {"cold": cold, "reach": reach}
    if op.kind == Kind.GROUPED_MATMUL:
        return _grouped(op, states)
    if op.kind == Kind.MATMUL and (op.dims.get("b", 1) > 1 or op.name in BATCHED_OPERATORS):
        sizes = {"batch": float(op.dims.get("b", 1))} | {name: float(op.dims[name]) for name in "mnk"}
        kinds = (BATCHED, *((str(op.kind),) if sizes["batch"] == 1 else ()))
        return Subject(kinds, op.dtype, {**sizes, **states})
    if op.kind == Kind.MATMUL:
        sizes = {name: float(op.dims[name]) for name in "mnk"}
        kinds = (MATVEC, str(op.kind)) if op.dims["m"] == 1 else (str(op.kind),)
        if op.dims.get("row_major"):
            kinds = (f"{kinds[0]}{ROW_MAJOR}", *kinds)
        stored = {"rows": sizes["k" if op.dims.get("row_major") else "n"]}
        streamed = _streamed(op) | stored if op.dims["m"] == 1 else {}
        return Subject(kinds, op.dtype, {**streamed, **sizes, **states})
    if op.kind == Kind.ATTENTION:
        return _attention(op, states)
    if op.kind == Kind.CONV and op.dims.get("groups", 1) == op.dims.get("out"):
        return Subject((operator(op.name),), op.dtype, {**_streamed(op), **states})  # depthwise: little work a byte
    if op.kind in STREAMS:
        return Subject((operator(op.name), STREAMS[op.kind]), op.dtype, {**_streamed(op), **states})
    return None


def _grouped(op: Op, states: Mapping[str, float]) -> Subject:
    """Experts that are hit, by the weights that are read, and the rows that each of them has on average."""
    m, n, k = (float(op.dims[name]) for name in "mnk")
    width = ELEMENT_BYTES.get(op.dtype, 2.0)
    weights = sum(access.bytes for access in op.reads) - width * m * k
    hit = float(np.clip(weights / (width * n * k), 1.0, op.dims["groups"]))
    return Subject((GROUPED,), op.dtype, {"batch": hit, "m": max(1.0, m / hit), "n": n, "k": k, **states})


def operator(name: str) -> str:
    """An operator's name, in-place form and out-of-place form alike: "aten::mul_" → "aten::mul"."""
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def by_law(
    found: Sequence[Subject | None], known: Mapping[tuple[str, str], object]
) -> dict[tuple[str, str], list[int]]:
    """Places of the operations that each known law, by kind and dtype, prices; those that none prices are left out.

    A streaming operator in a dtype without a law is priced as the same bytes of another dtype.
    """
    places: dict[tuple[str, str], list[int]] = {}
    for place, subject in enumerate(found):
        if subject is not None and (key := _law_key(subject, known)) is not None:
            places.setdefault(key, []).append(place)
    return places


def _law_key(subject: Subject, known: Mapping[tuple[str, str], object]) -> tuple[str, str] | None:
    for kind in subject.kinds:
        if (kind, subject.dtype) in known:
            return kind, subject.dtype
    streaming = [kind for kind in subject.kinds if kind in STREAMS.values()]
    return next((key for key in known if key[0] in streaming), None)


def _attention(op: Op, states: Mapping[str, float]) -> Subject | None:
    """None where values are of another width than keys, or several rows see all keys: no law describes those."""
    dims = {name: float(value) for name, value in op.dims.items()}
    if dims["value_dim"] != dims["head_dim"] or op.dtype not in ELEMENT_BYTES:
        return None
    sizes = {name: dims[name] for name in ("batch", "heads", "kv_heads", "head_dim", "window", "kv")}
    sizes |= {"kv_bytes": ELEMENT_BYTES[op.dtype], **states}
    if dims["query"] == 1:
        return Subject(("decode_attention",), op.dtype, sizes)
    if not dims["causal"]:
        return None
    sizes |= {"query": dims["query"], "context": dims["kv"] - dims["query"]}
    return Subject(("prefill_attention",), op.dtype, sizes)


def _streamed(op: Op) -> dict[str, float]:
    written = float(sum(access.bytes for access in op.writes))
    return {
        "bytes_read": float(sum(access.bytes for access in op.reads)),
        "bytes_written": written,
        "kernels": 1.0,
        "elements": float(op.dims.get("elements") or op.dims.get("n") or written),
        "flops": op.vector_flops + op.matrix_flops,
        "gathered": float(op.kind == Kind.EMBEDDING),
    }
