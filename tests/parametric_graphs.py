"""Graphs that depend on a workload: those of a small model made by hand, and traces of tiny real ones."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from graphs import GraphBuilder
from tiny import tiny

from profiler.models.graphs import ModelGraphs, Tracing
from roofline.graph.fold import fold
from roofline.graph.op import OpGraph, Routing, Traffic
from roofline.workload import Workload

ROW = 16
"""Bytes of a token's hidden state."""


def workload(batch: int, query: int, context: int, dtype: str = "bfloat16") -> Workload:
    return Workload(batch=batch, query_tokens=query, context_tokens=context, dtype=dtype)


def decoder(w: Workload, *, layers: int = 6, vocabulary: int = 10**6, experts: int = 0, steps: int = 1) -> OpGraph:
    """Embedding, layers of projection and attention over a cache that grows by copying, `steps` equal steps, and head.

    With experts each layer has a grouped product of which each token chooses 2.
    """
    tokens, keys = w.batch * w.query_tokens, w.batch * (w.context_tokens + w.query_tokens)
    pairs = w.query_tokens * w.context_tokens + w.query_tokens * (w.query_tokens + 1) // 2
    b = GraphBuilder(w)
    b.weight("table", vocabulary * ROW)
    b.weight("unused", 7)
    b.activation("ids", 8 * tokens)
    b.op("embedding", {"table": min(tokens, vocabulary) * ROW, "ids": 8 * tokens}, {"x": tokens * ROW}, path="embed")
    last = "x"
    for i in range(layers):
        path, old, new, h, y = f"layers.{i}", f"{i}.old", f"{i}.new", f"h{i}", f"y{i}"
        b.weight(f"w{i}", 300)
        b.op("matmul", [last, f"w{i}"], {h: tokens * ROW}, path, matrix=600 * tokens, b=1, m=tokens, n=10, k=30)
        if w.context_tokens:
            b.kv(old, keys * 4 - tokens * 4)
            b.op("copy", [old, h], {new: keys * 4}, path)
        else:
            b.op("copy", [h], {new: keys * 4}, path)
        b.kv(new, keys * 4)
        work = {"matrix": 8 * w.batch * pairs, "vector": 5 * w.batch * pairs}
        b.op("attention", [h, new], {y: tokens * ROW}, path, **work, pairs=pairs)
        last = y
    for i in range(steps if steps > 1 else 0):
        b.op("pointwise", {last: ROW}, {f"s{i}": ROW}, "scan", vector=3 * w.batch)
        b.op("matmul", {f"s{i}": ROW}, {f"z{i}": ROW}, "scan", matrix=4 * w.batch)
    if steps > 1:
        b.op("copy", [f"z{i}" for i in range(steps)], {"all": ROW * steps}, "scan")
        last = "all"
    b.weight("head", 900)
    b.op("matmul", {last: w.batch * ROW, "head": 900}, {"logits": w.batch * 50}, "head", matrix=1800 * w.batch)
    graph = b.graph()
    return _routed(graph, experts, tokens) if experts else graph


def _routed(graph: OpGraph, experts: int, tokens: int) -> OpGraph:
    """The projections of all layers as grouped products."""
    routing = Routing(experts=experts, per_token=2, tokens=tokens)
    ops = []
    for op in graph.ops:
        if op.kind == "matmul" and op.path.startswith("layers"):
            reads = [a.model_copy(update={"bytes": a.bytes * routing.hit / experts}) for a in op.reads[1:]]
            op = op.model_copy(update={"reads": (op.reads[0], *reads), "routing": routing})
        ops.append(op)
    return graph.model_copy(update={"ops": tuple(ops)})


@dataclass(eq=False)
class Traced:
    """A folding tracer that counts how often it was asked for each workload."""

    make: Callable[[Workload], OpGraph] = decoder
    made: Counter[Workload] = field(default_factory=Counter)

    def __call__(self, w: Workload) -> OpGraph:
        self.made[w] += 1
        return fold(self.make(w))


def totals(graph: OpGraph) -> dict[str, float]:
    """FLOPs and traffic of all executions."""
    out = {
        name: sum(getattr(op, name) * op.count for op in graph.ops)
        for name in ("matrix_flops", "vector_flops", "link_bytes", "messages")
    }
    for name in Traffic.model_fields:
        out[name] = sum(getattr(t, name) * op.count for op, t in zip(graph.ops, graph.traffic, strict=True))
    return out


@cache
def model_graphs(name: str, **fields: Any) -> ModelGraphs:
    """A tiny model, with some fields of its config changed."""
    config = tiny(name)
    for key, value in fields.items():
        setattr(config, key, value)
    return ModelGraphs(config, name, Tracing(dtype="bfloat16"))


@cache
def traced(name: str, w: Workload, **fields: Any) -> OpGraph:
    """The graph of a tiny model, as executed, not folded."""
    return model_graphs(name, **fields).whole(w)
