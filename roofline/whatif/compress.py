"""A cache that keeps only some of the tokens of its context: eviction and merging, as H2O (arXiv 2306.14048),
StreamingLLM (arXiv 2309.17453) or SnapKV (arXiv 2404.14469) do.

Every layer keeps ⌈tokens ÷ ratio⌉ of the context tokens that it had cached; the tokens of the pass itself are all
there. Attention then sees query × kept pairs and the causal part among the new tokens; with it shrink its FLOPs, its
reads, the storage of the cache, and all that is made of the cache on the way (repeated heads, expanded latents,
scores). The choice of the tokens to keep is not counted. A prefill has no context: nothing changes in it.
"""

from collections.abc import Sequence
from math import ceil, isfinite

from roofline.graph.dataflow import Dataflow
from roofline.graph.edit import Edit, access, changed
from roofline.graph.op import Access, Kind, Op, OpGraph, attention_pairs, holds_tokens
from roofline.whatif.checks import executed

OPTION = "compress_kv"


def compress_kv(graph: OpGraph, ratio: float) -> OpGraph:
    """A KV cache that keeps only some of the tokens of its context.

    Args:
        ratio: cached tokens for one that is kept; 1 changes nothing.
    Raises: ValueError for a ratio below 1, a fused graph, or a pass whose cache holds no tokens.
    """
    if not isfinite(ratio) or ratio < 1:
        raise ValueError(f"the compression ratio of the cache is {ratio}; use 1 (all of it) or more")
    if ratio == 1:
        return graph
    if OPTION in executed(graph, OPTION).options:
        raise ValueError(f"the cache is compressed already ({graph.options[OPTION]}); give one ratio")
    if not any(holds_tokens(tensor) for tensor in graph.tensors):
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


_Work = tuple[float, Sequence[float], float, dict[str, int]]
"""An operation's FLOPs, its reads and its writes, as shares of the whole, and the dimensions that change."""


class _Shrink:
    """Follows the tensors that are made of the cache through the operations, in order."""

    def __init__(self, graph: OpGraph, ratio: float) -> None:
        self.graph, self.ratio = graph, ratio
        self.flow = Dataflow(graph)
        self.tokens = {tensor.id for tensor in graph.tensors if holds_tokens(tensor)}
        self.factors: dict[int, float] = {}
        """Kept share of each tensor along its cached tokens."""
        for tensor in sorted(self.tokens):
            writes = [a for i in self.flow.writers[tensor] for a in graph.ops[i].writes]
            if not any(a.bytes >= graph.tensors[tensor].storage_bytes for a in writes):  # else the pass makes all of it
                self.factors[tensor] = self._kept_share(tensor)

    def op(self, i: int, op: Op) -> Op:
        """The operation over the smaller cache; the same object where nothing changes."""
        appended = next((a for a in op.writes if a.tensor in self.tokens), None)
        if appended is not None:
            return self._append(op, appended)
        factors = [self.factors.get(a.tensor, 1.0) for a in op.reads]
        if all(factor == 1 for factor in factors):
            return op
        if op.kind is Kind.ATTENTION:
            flops, reads, write, dims = self._attention(i, op, factors)
        elif op.kind is Kind.MATMUL:
            flops, reads, write, dims = self._product(op, factors)
        else:
            sums = op.kind is Kind.REDUCTION  # over the cached tokens
            flops = min(factors)
            reads, write, dims = self._with_masks(i, op, factors), 1.0 if sums else flops, _elements(op, flops)
        if write != 1:
            self.factors |= dict.fromkeys((a.tensor for a in op.writes), write)
        return changed(
            op, dims=op.dims | dims, matrix_flops=op.matrix_flops * flops, vector_flops=op.vector_flops * flops,
            reads=_scaled(op.reads, reads), writes=_scaled(op.writes, [write] * len(op.writes)),
        )  # fmt: skip

    def _kept(self, tokens: float) -> int:
        return ceil(round(tokens, 6) / self.ratio)

    def _kept_share(self, tensor: int) -> float:
        """Kept share of a cache from before the pass, which is appended to by a copy, or in its place."""
        query, size = self.graph.workload.query_tokens, self.graph.tensors[tensor].storage_bytes
        for op in (self.graph.ops[i] for i in self.flow.readers[tensor]):
            written = [a for a in op.writes if a.tensor in self.tokens]
            if op.kind is Kind.COPY and written and written[0].bytes > size:
                tokens = size / (written[0].bytes - size) * query
                return self._kept(tokens) / tokens
        tokens = cached = float(self.graph.workload.context_tokens)
        if self.flow.writers[tensor]:
            op = self.graph.ops[self.flow.writers[tensor][0]]
            tokens = size / sum(a.bytes for a in op.writes if a.tensor == tensor) * query
            cached = min(tokens, cached)
        return (tokens - cached + self._kept(cached)) / tokens

    def _append(self, op: Op, appended: Access) -> Op:
        """A copy of the old cache with the new tokens behind it; in its place nothing changes."""
        old = [a for a in op.reads if a.tensor in self.tokens and a.tensor != appended.tensor]
        if not old:
            return op
        gone = sum(a.bytes * (1 - self.factors.get(a.tensor, 1.0)) for a in old)
        factor = (appended.bytes - gone) / appended.bytes
        self.factors[appended.tensor] = factor
        reads = [self.factors.get(a.tensor, 1.0) if a in old else 1.0 for a in op.reads]
        writes = [factor if a is appended else 1.0 for a in op.writes]
        dims = op.dims | _elements(op, factor)
        return changed(op, dims=dims, reads=_scaled(op.reads, reads), writes=_scaled(op.writes, writes))

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
        return share, self._with_masks(i, op, factors), 1.0, dims

    def _product(self, op: Op, factors: list[float]) -> _Work:
        """Cached tokens are rows beside a weight, columns of the scores, and what the values are summed over."""
        factor = min(factors)
        smaller = [f for f in factors if f < 1]
        has_weight = self.graph.has_weight(op)
        side = "m" if has_weight else "k" if len(smaller) > 1 else "n"
        dims = {side: round(op.dims[side] * factor)} if side in op.dims else {}
        return factor, factors, 1.0 if side == "k" else factor, dims

    def _with_masks(self, i: int, op: Op, factors: list[float]) -> list[float]:
        """Shares of the reads; a mask, which another module made, is read for the kept tokens only."""
        out = list(factors)
        for j, a in enumerate(op.reads):
            producer = self.flow.producer(i, a.tensor)
            elsewhere = producer is not None and not f"{self.graph.ops[producer].path}.".startswith(f"{op.path}.")
            if factors[j] == 1 and elsewhere and j > 0 and self.graph.tensors[a.tensor].role == "activation":
                out[j] = min(factors)
        return out


def _elements(op: Op, factor: float) -> dict[str, int]:
    dims = {name: round(op.dims[name] * factor) for name in ("elements", "of") if name in op.dims}
    return dims | ({"chosen": min(op.dims["chosen"], dims["of"])} if "of" in dims else {})


def _scaled(accesses: Sequence[Access], factors: Sequence[float]) -> tuple[Access, ...]:
    return tuple(a if f == 1 else access(a.tensor, a.bytes * f) for a, f in zip(accesses, factors, strict=True))
