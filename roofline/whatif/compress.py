"""A cache that keeps only some of the tokens of its context: eviction and merging, as H2O (arXiv 2306.14048),
StreamingLLM (arXiv 2309.17453) or SnapKV (arXiv 2404.14469) do.

Every layer keeps ⌈tokens ÷ ratio⌉ of the context tokens that it had cached; the tokens of the pass itself are all
there. Attention then sees query × kept pairs and the causal part among the new tokens; with it follow its FLOPs, what
it reads, the storage of the cache, and all that is made of the cache on the way (repeated heads, expanded latents,
scores). What chooses the tokens to keep is not counted. A prefill has no context: nothing changes in it.

Example: ``compress_kv(graph, 4)`` of a decode after 4,096 tokens → attention over 1,025 keys
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, isfinite

from roofline.graph.dataflow import Dataflow
from roofline.graph.edit import Edit, access, changed
from roofline.graph.op import Access, Kind, Op, OpGraph, attention_pairs
from roofline.whatif.checks import executed
from roofline.whatif.kv_cache import KEYS, VALUES

OPTION = "compress_kv"


def compress_kv(graph: OpGraph, ratio: float) -> OpGraph:
    """The pass over a cache with 1 ÷ `ratio` of its context; 1 is the identity.

    Raises: ValueError for a ratio below 1, a fused graph, or a pass whose cache holds no tokens.
    """
    if not isfinite(ratio) or ratio < 1:
        raise ValueError(f"the compression ratio of the cache is {ratio}; use 1 (all of it) or more")
    if ratio == 1:
        return graph
    if OPTION in executed(graph, OPTION).options:
        raise ValueError(f"the cache is compressed already ({graph.options[OPTION]}); give one ratio")
    if not any(_holds_tokens(graph, tensor.id) for tensor in graph.tensors):
        raise ValueError("the pass keeps no keys and values of tokens, so there is nothing to compress")
    edit = Edit(graph)
    if graph.workload.context_tokens:
        shrink = _Shrink(graph, ratio)
        for i, op in enumerate(graph.ops):
            smaller = shrink.op(i, op)
            if smaller is not op:
                edit.put(i, smaller)
        for tensor, factor in shrink.factors.items():
            edit.resize(tensor, graph.tensors[tensor].storage_bytes * factor)
    return edit.done({OPTION: f"{ratio:g}"})


def _holds_tokens(graph: OpGraph, tensor: int) -> bool:
    held = graph.tensors[tensor]
    return held.role == "kv" and (held.name or "").endswith((f".{KEYS}", f".{VALUES}"))


@dataclass(frozen=True)
class _Work:
    """An operation's work and accesses, as shares of the whole."""

    flops: float
    reads: Sequence[float]
    write: float
    dims: dict[str, int]


class _Shrink:
    """Follows what is made of the cache through the operations, in order."""

    def __init__(self, graph: OpGraph, ratio: float) -> None:
        self.graph, self.ratio = graph, ratio
        self.flow = Dataflow(graph)
        self.factors: dict[int, float] = {}
        """Kept share of each tensor along its cached tokens."""
        for tensor in graph.tensors:
            if _holds_tokens(graph, tensor.id) and not self._made_here(tensor.id):
                self.factors[tensor.id] = self._given(tensor.id)

    def op(self, i: int, op: Op) -> Op:
        """The operation over the smaller cache; the same object where nothing changes."""
        appended = next((a for a in op.writes if _holds_tokens(self.graph, a.tensor)), None)
        if appended is not None:
            return self._append(op, appended)
        factors = [self.factors.get(a.tensor, 1.0) for a in op.reads]
        if all(factor == 1 for factor in factors):
            return op
        if op.kind is Kind.ATTENTION:
            work = self._attention(i, op, factors)
        elif op.kind is Kind.MATMUL:
            work = self._product(op, factors)
        else:
            work = self._other(i, op, factors)
        for a in op.writes:
            if work.write != 1:
                self.factors[a.tensor] = work.write
        return changed(
            op,
            dims=op.dims | work.dims,
            matrix_flops=op.matrix_flops * work.flops,
            vector_flops=op.vector_flops * work.flops,
            reads=_scaled(op.reads, work.reads),
            writes=_scaled(op.writes, [work.write] * len(op.writes)),
        )

    def _made_here(self, tensor: int) -> bool:
        """Whether the pass writes all of it."""
        size = self.graph.tensors[tensor].storage_bytes
        return any(a.bytes >= size for i in self.flow.writers[tensor] for a in self.graph.ops[i].writes)

    def _kept(self, tokens: float) -> int:
        return ceil(round(tokens, 6) / self.ratio)

    def _given(self, tensor: int) -> float:
        """Kept share of a cache from before the pass, which is appended to by a copy, or in its place."""
        query, size = self.graph.workload.query_tokens, self.graph.tensors[tensor].storage_bytes
        for i in self.flow.readers[tensor]:
            op = self.graph.ops[i]
            written = [a for a in op.writes if _holds_tokens(self.graph, a.tensor)]
            if op.kind is Kind.COPY and written and written[0].bytes > size:
                tokens = size / (written[0].bytes - size) * query
                return self._kept(tokens) / tokens
        for i in self.flow.writers[tensor]:
            new = sum(a.bytes for a in self.graph.ops[i].writes if a.tensor == tensor)
            tokens = size / new * query
            cached = min(tokens, self.graph.workload.context_tokens)
            return (tokens - cached + self._kept(cached)) / tokens
        tokens = self.graph.workload.context_tokens
        return self._kept(tokens) / tokens

    def _append(self, op: Op, appended: Access) -> Op:
        """A copy of the old cache with the new tokens behind it; in its place nothing changes."""
        old = [a for a in op.reads if _holds_tokens(self.graph, a.tensor) and a.tensor != appended.tensor]
        if not old:
            return op
        gone = sum(a.bytes * (1 - self.factors.get(a.tensor, 1.0)) for a in old)
        factor = (appended.bytes - gone) / appended.bytes
        self.factors[appended.tensor] = factor
        dims = {"elements": round(op.dims["elements"] * factor)} if "elements" in op.dims else {}
        return changed(
            op,
            dims=op.dims | dims,
            reads=_scaled(op.reads, [self.factors.get(a.tensor, 1.0) if a in old else 1.0 for a in op.reads]),
            writes=_scaled(op.writes, [factor if a is appended else 1.0 for a in op.writes]),
        )

    def _attention(self, i: int, op: Op, factors: list[float]) -> _Work:
        factor = min(factors)
        dims, share = {}, factor
        if "kv" in op.dims:
            dims["kv"] = round(op.dims["kv"] * factor)
        if {"kv", "query", "pairs"} <= op.dims.keys():
            tokens = self.graph.workload.query_tokens
            folded = max(1, op.dims["query"] // tokens)  # heads of a group, folded into the queries
            causal, window = bool(op.dims.get("causal")), op.dims.get("window") or None
            own = min(op.dims["pairs"], folded * attention_pairs(op.dims["query"] // folded, 0, causal, window))
            before = op.dims["kv"] - tokens
            kept = max(0, dims["kv"] - tokens) / before if before > 0 else 1.0
            dims["pairs"] = round(own + (op.dims["pairs"] - own) * kept)
            share = dims["pairs"] / op.dims["pairs"]
        return _Work(share, self._with_masks(i, op, factors, factor), 1.0, dims)

    def _product(self, op: Op, factors: list[float]) -> _Work:
        """Cached tokens are rows beside a weight, columns of the scores, and what the values are summed over."""
        factor = min(factors)
        smaller = [f for f in factors if f < 1]
        has_weight = any(self.graph.tensors[a.tensor].role == "weight" for a in op.reads)
        side = "m" if has_weight else "k" if len(smaller) > 1 else "n"
        dims = {side: round(op.dims[side] * factor)} if side in op.dims else {}
        return _Work(factor, factors, 1.0 if side == "k" else factor, dims)

    def _other(self, i: int, op: Op, factors: list[float]) -> _Work:
        factor = min(factors)
        dims = {"elements": round(op.dims["elements"] * factor)} if "elements" in op.dims else {}
        sums = op.kind is Kind.REDUCTION  # over the cached tokens
        return _Work(factor, self._with_masks(i, op, factors, factor), 1.0 if sums else factor, dims)

    def _with_masks(self, i: int, op: Op, factors: list[float], factor: float) -> list[float]:
        """A mask, which another module made, is read for the kept tokens only."""
        out = list(factors)
        for j, a in enumerate(op.reads):
            producer = self.flow.producer(i, a.tensor)
            elsewhere = producer is not None and not f"{self.graph.ops[producer].path}.".startswith(f"{op.path}.")
            if factors[j] == 1 and elsewhere and j > 0 and self.graph.tensors[a.tensor].role == "activation":
                out[j] = factor
        return out


def _scaled(accesses: Sequence[Access], factors: Sequence[float]) -> tuple[Access, ...]:
    return tuple(a if f == 1 else access(a.tensor, a.bytes * f) for a, f in zip(accesses, factors, strict=True))
