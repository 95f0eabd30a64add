"""Which tensors hold queries, keys or values of how many heads: it says what share of them one rank keeps.

Labels are found backwards from attention, fused or in pieces, through everything up to the products that made its
operands: query heads as negative, key-value heads as positive numbers. A copy that repeats key heads for each query
head divides the label, so that the cache behind it is labelled with the heads that it holds.

Example: ``head_labels(graph, 16, whole=()).share(keys)`` → 1/8, if these are keys of 8 heads
"""

from collections.abc import Collection
from dataclasses import dataclass

from roofline.dtypes import BITS
from roofline.graph.op import Access, Kind, Op, OpGraph


@dataclass(frozen=True)
class Labels:
    """Heads by tensor, for one number of ranks."""

    graph: OpGraph
    degree: int
    heads: dict[int, frozenset[int]]
    """Negative: query heads; positive: key-value heads."""
    pieces: dict[int, int]
    """Products of activations that are attention in pieces, with the heads in their batch."""

    def of(self, tensor: int) -> frozenset[int]:
        return self.heads.get(tensor, frozenset())

    def kv_share(self, kv_heads: int) -> float:
        """A rank keeps at least one head."""
        return max(1 / self.degree, 1 / kv_heads)

    def is_mixed(self, tensor: int) -> bool:
        """Queries with keys and values in one tensor, of different shares."""
        labels = self.of(tensor)
        return min(labels, default=0) < 0 < max(labels, default=0) and self.kv_share(max(labels)) > 1 / self.degree

    def share(self, tensor: int) -> float:
        """Of a tensor that one rank has, if it is divided: by its features where it holds no heads."""
        labels = self.of(tensor)
        query, kv = max((-h for h in labels if h < 0), default=0), max((h for h in labels if h > 0), default=0)
        if not kv:
            return 1 / self.degree
        if not query:
            return self.kv_share(kv)
        return (query / self.degree + 2 * kv * self.kv_share(kv)) / (query + 2 * kv)  # keys and values as wide


def kv_heads(graph: OpGraph, op: Op) -> int:
    """Key-value heads that attention finds in memory: expanded ones, which it is given for each query head, once."""
    said = op.dims.get("kv_heads", op.dims["heads"])
    held = graph.heads[1] if graph.heads else said
    if len(op.reads) < 2 or held >= said or op.dtype not in BITS:
        return said
    one = op.dims["batch"] * op.dims["kv"] * op.dims["head_dim"] * BITS[op.dtype] / 8
    return held if op.reads[1].bytes <= held * one else said


def head_labels(graph: OpGraph, degree: int, whole: Collection[int]) -> Labels:
    """The labels of all tensors; attention in `whole` is not divided and labels nothing."""
    found: dict[int, set[int]] = {}
    static = {tensor.id for tensor in graph.tensors if tensor.role == "weight"}
    pieces = _attention_in_pieces(graph, static)
    for i in range(len(graph.ops) - 1, -1, -1):
        op = graph.ops[i]
        if op.kind is Kind.ATTENTION:
            if i not in whole and "heads" in op.dims and len(op.reads) > 1:
                _label(found, op.reads[:1], {-op.dims["heads"]})
                _label(found, op.reads[1:3], {kv_heads(graph, op)})
        elif i in pieces:
            _label(found, op.reads[:1], {-pieces[i]})
            _label(found, op.reads[1:2], {pieces[i]})
        elif op.kind in (Kind.POINTWISE, Kind.COPY, Kind.NORM, Kind.REDUCTION, Kind.SOFTMAX):
            labels: set[int] = set().union(*(found.get(a.tensor, set()) for a in op.writes))
            if labels:
                _label(found, [a for a in op.reads if a.tensor not in static], _divided(labels, _repeats(op)))
    return Labels(graph, degree, {tensor: frozenset(labels) for tensor, labels in found.items()}, pieces)


def _attention_in_pieces(graph: OpGraph, static: Collection[int]) -> dict[int, int]:
    """Products of activations beside a softmax in one module, a batch of the model's query or key-value heads."""
    found: dict[int, int] = {}
    modules = {op.path for op in graph.ops if op.kind is Kind.SOFTMAX}
    for i, op in enumerate(graph.ops):
        if op.kind is Kind.MATMUL and op.path in modules and not any(a.tensor in static for a in op.reads):
            heads, rest = divmod(op.dims.get("b", 0), graph.workload.batch)
            if heads and not rest and heads in (graph.heads or ()):
                found[i] = heads
    return found


def _label(found: dict[int, set[int]], accesses: Collection[Access], labels: set[int]) -> None:
    for a in accesses:
        found.setdefault(a.tensor, set()).update(labels)


def _repeats(op: Op) -> int:
    """How often a copy repeats each element of its only operand."""
    if op.kind is not Kind.COPY or len(op.reads) != 1 or not op.dims.get("elements") or op.dtype not in BITS:
        return 1  # other types, integers, hold no heads
    elements = op.dims["elements"] * BITS[op.dtype] / 8 / op.reads[0].bytes  # too many if these are quantised
    return round(min(elements, op.writes[0].bytes / op.reads[0].bytes)) or 1  # too many if it widens them


def _divided(labels: set[int], repeats: int) -> set[int]:
    return {h // repeats if h > 0 and h % repeats == 0 else h for h in labels}
