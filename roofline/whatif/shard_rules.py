"""Which operations one rank can do with what it has: rules of `shard_plan` for all but products and attention.

`static` are weights and what is made of weights alone, `rows` those of them that hold a row for each token.

Example: ``is_linear(op, states, static, blank)`` → whether partial sums may pass through it
"""

from collections.abc import Collection, Sequence

from roofline.graph.dataflow import GATHERS
from roofline.graph.linear import LORA_ADD, QUANTISE
from roofline.graph.op import Access, Kind, Op
from roofline.whatif.shard_heads import Labels
from roofline.whatif.shard_state import PRODUCTS, State

LINEAR = frozenset({"aten::mul", "aten::mul_", "aten::neg", "aten::sum"})
"""Operators of which a sum over ranks can be taken before or after, with one partial operand."""

SUMS = frozenset({"aten::add", "aten::add_", "aten::sub", "aten::sub_", LORA_ADD})
"""The same with all operands partial, or made of weights."""

ACCUMULATES = frozenset({"aten::index_add_", "aten::index_add", "aten::scatter_add_", "aten::scatter_add"})

ORDERED = frozenset({
    "aten::sort", "aten::topk", "aten::argsort", "aten::argmax", "aten::argmin", "aten::kthvalue", "aten::cumsum",
    "aten::cumprod", "aten::histc", "aten::bincount", "aten::unique", "aten::_unique2", "aten::unique_consecutive",
})  # fmt: skip
"""Reductions that depend on the order of features, or choose among all of them."""


def is_linear(op: Op, states: Sequence[State], static: Collection[int], blank: Collection[int]) -> bool:
    """Whether the sum over ranks of its partial operands can be taken behind it."""
    partial = [bool(state.sums) for state in states]
    if any(state.share < 1 for state in states):
        return False
    if op.name in ACCUMULATES:
        return partial[-1] and (partial[0] or op.reads[0].tensor in blank)
    if op.kind in (Kind.COPY, Kind.COLLECTIVE):
        return all(partial) or (partial[0] and sum(partial) == 1 and (len(partial) == 1 or op.name in GATHERS))
    if op.kind in PRODUCTS:
        weights = [a.bytes for a in op.reads if a.tensor in static]
        others = [p for p, a in zip(partial, op.reads, strict=True) if a.tensor not in static]
        return len(weights) == 1 and others == [True]  # without a bias
    if op.name in SUMS:  # a bias is added by one rank
        return all(p or a.tensor in static for p, a in zip(partial, op.reads, strict=True))
    return (op.name in LINEAR and sum(partial) == 1) or (op.name in ("aten::div", "aten::div_") and partial[0])


def is_featurewise(op: Op, states: Sequence[State], static: Collection[int], labels: Labels) -> bool:
    """Whether divided operands can be worked on without the features that other ranks have."""
    divided = [(a, s) for a, s in zip(op.reads, states, strict=True) if s.share < 1]
    if not divided:
        return True
    loose = [a.tensor for a in (*op.reads, *op.writes) if labels.graph.tensors[a.tensor].role == "kv"]
    if any(not labels.of(tensor) for tensor in loose):
        return False
    if op.name == QUANTISE:  # keys and values have a scale for each head, other activations one for all features
        return any(labels.of(a.tensor) for a in op.writes)
    if op.kind in (Kind.POINTWISE, Kind.COPY):
        return True
    if op.kind is Kind.SOFTMAX:
        return all(state.is_scores for _, state in divided)
    if op.kind not in (Kind.REDUCTION, Kind.NORM) or op.name in ORDERED:
        return False
    source, state = max(divided, key=lambda pair: pair[0].bytes)
    return _groups(op, source, static) * state.share >= max(1, state.tokens)


def _groups(op: Op, source: Access, static: Collection[int]) -> float:
    """Results of a reduction, or rows of a norm; at least one a token and head if heads are apart."""
    weights = [a.bytes for a in op.reads if a.tensor in static]
    if op.kind is Kind.NORM:
        return source.bytes / max(weights) if weights else 0
    elements = op.dims.get("elements", 0)
    return op.writes[0].bytes * elements / source.bytes if elements else op.writes[0].bytes / source.bytes


def read_shares(
    op: Op, states: Sequence[State], share: float, static: Collection[int], rows: Collection[int]
) -> list[float]:
    """A divided operand is read as far as the rank has it; a whole one as large as the others, its part."""
    divided = [(a.bytes, s) for a, s in zip(op.reads, states, strict=True) if s.share < 1]
    largest = max((size for size, _ in divided), default=op.writes[0].bytes if op.writes else 0)
    tokens = max((s.tokens for _, s in divided), default=0)
    out = []
    for a, state in zip(op.reads, states, strict=True):
        if a.tensor in static:  # one number for each feature; those of a head are the same on all ranks
            copies = 1 if a.tensor in rows else tokens
            out.append(share if 2 * a.bytes * copies >= largest else 1.0)
        elif state.share < 1:
            out.append(share if state.is_mixed else state.share)
        else:
            out.append(share if 2 * a.bytes > largest else 1.0)
    return out
