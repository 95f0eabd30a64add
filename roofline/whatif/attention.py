"""Attention as one kernel or in pieces: what FlashAttention (arXiv 2205.14135) saves, on the same graph.

`unfuse_attention` runs each attention as eager attention does: q·kᵀ over all query × key pairs, masked ones too, a
softmax over them, p·v over them, with scores and probabilities in memory; where query heads share key heads, keys and
values are first copied to every head (`repeat_kv` of `transformers`). Scaling, casts and transposes are left out.
`fuse_attention` runs attention in pieces (`find_attention`) as one operation over the unmasked pairs, which reads no
mask that its module implies, and keys, values and queries in place: copies made only for the pieces are gone. Latents
(MLA) stay expanded. It undoes `unfuse_attention`, but for options, masks, and workspaces.
"""

import math
from collections.abc import Sequence

from roofline.dtypes import element_bits
from roofline.fusion.absorb_mla import Attention
from roofline.fusion.attention import find_attention, is_activation_product
from roofline.graph.dataflow import Dataflow, ideal_accesses
from roofline.graph.edit import Edit, changed
from roofline.graph.op import Access, AttentionModule, Kind, Op, OpGraph, attention_pairs
from roofline.whatif.checks import workspaces
from roofline.whatif.kv_cache import DONE

ATTENTION = "aten::scaled_dot_product_attention"
QK, SOFTMAX, PV, REPEAT = "roofcal::qk", "roofcal::softmax", "roofcal::pv", "roofcal::repeat_kv"
"""Names of the operations that `unfuse_attention` inserts."""
SOFTMAX_FLOPS = 5
"""FLOPs for a (query, key) pair and head: arXiv 2402.16363, section 2, as in a trace."""
NEEDED = ("batch", "heads", "kv_heads", "query", "kv", "head_dim", "value_dim", "pairs")


def unfuse_attention(graph: OpGraph) -> OpGraph:
    """Every attention as two products and a softmax, with the scores in memory.

    Raises: ValueError if there is none, or one whose sizes are not known.
    """
    edit = Edit(graph)
    whole = [i for i, op in enumerate(graph.ops) if op.kind is Kind.ATTENTION]
    if not whole:
        raise ValueError("the graph has no attention in one piece; there is nothing to unfuse")
    for i in whole:
        edit.put(i, *_pieces(edit, graph.ops[i]))
    edit.drop(tensor for tensor, during in workspaces(graph).items() if during in whole)
    return edit.done({"attention": "unfused"})


def _pieces(edit: Edit, op: Op) -> tuple[Op, ...]:
    missing = [name for name in NEEDED if name not in op.dims]
    if missing or len(op.reads) < 3:
        what = ", ".join(missing) or "operands"
        raise ValueError(f"the attention of {op.path} does not say its {what}; unfuse it before operators are fused")
    if op.also:
        raise ValueError(f"the attention of {op.path} does other work too; unfuse it before operators are fused")
    d, element = op.dims, element_bits(op.dtype) / 8
    every = d["batch"] * d["heads"]
    query, keys, values, *masks = op.reads
    pairs = every * d["query"] * d["kv"]
    extra = op.vector_flops - SOFTMAX_FLOPS * every * d["pairs"]  # turning narrow keys and values back
    if extra < 0:
        raise ValueError(f"the softmax of {op.path} has fewer than {SOFTMAX_FLOPS} FLOPs a pair; use a traced graph")
    extras = [extra * a.bytes / (keys.bytes + values.bytes) for a in (keys, values)]
    copies: list[Op] = []
    if d["kv_heads"] != d["heads"]:
        for read, width, flops in zip((keys, values), ("head_dim", "value_dim"), extras, strict=True):
            elements = every * d["kv"] * d[width]
            copies.append(
                changed(
                    op, name=REPEAT, kind=Kind.COPY, dims={"elements": elements}, matrix_flops=0.0, vector_flops=flops,
                    reads=(read,), writes=(edit.activation(elements * element),),
                )
            )  # fmt: skip
        (keys, values), extras = (copy.writes[0] for copy in copies), [0.0, 0.0]
    scores, probabilities = (edit.activation(pairs * element) for _ in "sp")
    shape = {"b": every, "m": d["query"]}
    qk = shape | {"n": d["kv"], "k": d["head_dim"]}
    pv = shape | {"n": d["value_dim"], "k": d["kv"]}
    return (
        *copies,
        changed(
            op, name=QK, kind=Kind.MATMUL, dims=qk, matrix_flops=2.0 * pairs * d["head_dim"], vector_flops=extras[0],
            reads=(query, keys), writes=(scores,),
        ),
        changed(
            op, name=SOFTMAX, kind=Kind.SOFTMAX, dims=d | {"elements": pairs}, matrix_flops=0.0,
            vector_flops=float(SOFTMAX_FLOPS * pairs), reads=(scores, *masks), writes=(probabilities,),
        ),
        changed(
            op, name=PV, kind=Kind.MATMUL, dims=pv, matrix_flops=2.0 * pairs * d["value_dim"], vector_flops=extras[1],
            reads=(probabilities, values),
        ),
    )  # fmt: skip


def fuse_attention(graph: OpGraph) -> OpGraph:
    """Every attention that runs in pieces as one kernel.

    Raises: ValueError if none is found in pieces.
    """
    flow = Dataflow(graph)
    modules = {module.path: module for module in graph.attention_modules}
    edit = Edit(graph)
    fused = 0
    for attention in find_attention(graph, flow, ideal_accesses(graph, flow)):
        if any(graph.ops[i].kind is Kind.ATTENTION for i in attention.members):
            continue
        whole = _Pieces(flow, attention)
        for i in {*whole.members, *whole.copies}:
            edit.put(i)
        edit.put(whole.last, whole.fused(modules.get(graph.ops[whole.last].path)))
        fused += 1
    if not fused:
        raise ValueError("the graph has no attention in pieces; there is nothing to fuse")
    return edit.done({"attention": "fused"})


class _Pieces:
    """One attention in pieces: the two products, what lies between, and the copies that only serve them."""

    def __init__(self, flow: Dataflow, attention: Attention) -> None:
        ops = flow.graph.ops
        products = [i for i in attention.members if is_activation_product(flow.graph, ops[i])]
        self.flow, self.ops = flow, ops
        self.first, self.last = products[0], products[-1]
        self.qk = ops[self.first]
        self.members: list[int] = []
        """Operations that derive from the scores, up to the last product."""
        made: set[int] = set()
        for i in range(self.first, self.last + 1):
            if i == self.first or any(a.tensor in made for a in ops[i].reads):
                self.members.append(i)
                made.update(a.tensor for a in ops[i].writes)
        self.between = [i for i in self.members if i not in (self.first, self.last)]
        self.is_ours = any(ops[i].name == SOFTMAX for i in self.members)
        """Whether `unfuse_attention` made it, which is undone; then the earlier masks and copies are kept."""
        self.masks = frozenset() if self.is_ours else attention.masks
        self.copies: set[int] = set()
        """Copies in front of the attention, and the one behind it."""
        inside = {a.tensor for i in self.members if i != self.last for a in ops[i].writes} | self.masks
        outside = [a for i in (self.first, self.last, *self.between) for a in ops[i].reads if a.tensor not in inside]
        self.reads = [self._source(a) for a in outside]
        self.write, behind = self._target()
        self.copies |= set(behind)

    def _source(self, read: Access) -> Access:
        """The access before copies that only the members use; they are noted in `copies`."""
        while True:
            writers, readers = self.flow.writers[read.tensor], self.flow.readers[read.tensor]
            alone = len(writers) == 1 and {*self.members, *self.copies}.issuperset(readers)
            if not alone or self.flow.graph.tensors[read.tensor].role != "activation":
                return read
            (copy,) = writers
            op = self.ops[copy]
            if op.kind is not Kind.COPY or len(op.reads) != 1 or len(op.writes) != 1:
                return read
            if self.is_ours and op.name != REPEAT:
                return read
            source = op.reads[0]
            if source.bytes > op.writes[0].bytes or self.flow.written_between(source.tensor, copy, self.last):
                return read
            self.copies.add(copy)
            read = source

    def _target(self) -> tuple[tuple[Access, ...], Sequence[int]]:
        """Writes of the result, and a copy that it skips: one that only brings it into the order of a fused kernel."""
        last = self.ops[self.last]
        readers = self.flow.readers[last.writes[0].tensor]
        unique = len(last.writes) == len(readers) == len(self.flow.writers[last.writes[0].tensor]) == 1
        if self.is_ours or not unique:
            return last.writes, ()
        op = self.ops[readers[0]]
        is_copy = op.kind is Kind.COPY and len(op.reads) == len(op.writes) == 1 and not op.vector_flops
        same = is_copy and op.path == last.path and op.writes[0].bytes == last.writes[0].bytes
        return (op.writes, readers) if same else (last.writes, ())

    def fused(self, module: AttentionModule | None) -> Op:
        dims, qk = self._dims(module), self.qk.dims
        pairs = dims["batch"] * dims["heads"] * dims["pairs"]
        share = pairs / (qk["b"] * qk["m"] * qk["n"])
        scored = sum(op.vector_flops for i in self.between if not self._is_left_out(op := self.ops[i]))
        kept = sum(self.ops[i].vector_flops for i in (self.first, self.last, *self.copies))
        return changed(
            self.ops[self.last], name=ATTENTION, kind=Kind.ATTENTION, dims=dims, dtype=self.qk.dtype,
            matrix_flops=2.0 * pairs * (dims["head_dim"] + dims["value_dim"]),
            vector_flops=float(scored * share + kept), reads=tuple(self.reads), writes=self.write,
        )  # fmt: skip

    def _is_left_out(self, op: Op) -> bool:
        """Return whether an operation adds a mask that the fused kernel does not need, or only multiplies the scores by
        a constant, which a fused softmax has in its exponent."""
        masks = op.kind is not Kind.SOFTMAX and any(a.tensor in self.masks for a in op.reads)
        only_scores = [a.tensor for a in op.reads] == [a.tensor for a in self.qk.writes]
        return masks or (only_scores and op.kind is Kind.POINTWISE and op.vector_flops == op.dims.get("elements"))

    def _dims(self, module: AttentionModule | None) -> dict[str, int]:
        if self.is_ours:
            softmax = next(op for i in self.members if (op := self.ops[i]).kind is Kind.SOFTMAX)
            return {name: size for name, size in softmax.dims.items() if name != "elements"}
        work, qk = self.flow.graph.workload, self.qk.dims
        batch = math.gcd(qk["b"], work.batch)
        heads = qk["b"] // batch
        pairs, causal, window = qk["m"] * qk["n"], False, None
        if module is not None and qk["m"] == work.query_tokens:
            causal, window = module.causal, module.window
            pairs = min(pairs, attention_pairs(qk["m"], work.context_tokens, causal, window))
        return {
            "batch": batch,
            "heads": heads,
            "kv_heads": self._kv_heads(batch, heads),
            "query": qk["m"],
            "kv": qk["n"],
            "head_dim": qk["k"],
            "value_dim": self.ops[self.last].dims["n"],
            "causal": int(causal),
            "window": window or 0,
            "pairs": pairs,
        }

    def _kv_heads(self, batch: int, heads: int) -> int:
        """Heads of the keys that are read in place."""
        graph, keys = self.flow.graph, self._source(self.qk.reads[-1])
        if DONE in graph.options and graph.tensors[keys.tensor].role == "kv":  # the size of narrow keys says nothing
            return graph.heads[1] if graph.heads is not None and graph.heads[0] == heads else heads
        kv_heads = keys.bytes * 8 / element_bits(self.qk.dtype) / (batch * self.qk.dims["n"] * self.qk.dims["k"])
        return int(kv_heads) if kv_heads >= 1 and heads % kv_heads == 0 else heads
