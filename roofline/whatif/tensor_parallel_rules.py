"""The words and rules of `tensor_parallel_plan`: the part of a tensor that a rank has, and its use.

- `State` says which part of a tensor a rank has, `Shares` and `Plan` which part of each operation it does.
- `Labels` say which tensors hold queries, keys or values of how many heads, and so which share of them one rank keeps.
  They are found backwards from attention, fused or in pieces, through everything up to the products that made its
  operands. A copy that repeats key heads for each query head divides the label, so that the cache behind it is labelled
  with the heads that it holds.
- Rules say which operations but products and attention can be done on a part. There `static` are weights and tensors
  made of weights alone, `rows` those of them that hold a row for each token.
"""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from roofline.dtypes import BITS as DTYPE_BITS
from roofline.graph.dataflow import GATHERS
from roofline.graph.linear import LORA_ADD, QUANTISE
from roofline.graph.op import PRODUCTS, Access, Kind, Op, OpGraph


@dataclass(frozen=True)
class State:
    """The part of a tensor that one rank has."""

    share: float = 1.0
    origins: frozenset[int] = frozenset()
    """Operations that divided it."""
    sums: tuple[tuple[int, int], ...] = ()
    """Partial: (operation, tensor) after which to sum which tensors."""
    tokens: int = 0
    """Rows of a divided tensor whose features, or heads, are divided."""
    is_product: bool = False
    """A product made it, and nothing has worked on it since."""
    is_scores: bool = False
    """Made by a product of activations: heads are a batch, so the last dimension is whole."""
    is_mixed: bool = False
    """Queries, keys and values in one, of which each has a share of its own."""


WHOLE = State()


@dataclass
class Shares:
    """One rank's part of one operation, as shares of the whole."""

    reads: list[float]
    writes: list[float]
    matrix: float = 1.0
    vector: float = 1.0


@dataclass
class Plan:
    """One rank's part in a graph."""

    shares: list[Shares]
    split: dict[int, str] = field(default_factory=dict)
    """"column", "row", "heads" or "rows" (of an embedding), by operation; all others follow from these."""
    padded: frozenset[int] = frozenset()
    """Operations split by column whose output nobody reads, such as logits: a width that does not divide is padded."""
    whole: list[int] = field(default_factory=list)
    """Products with weights that every rank does in full."""
    summed: dict[int, list[int]] = field(default_factory=dict)
    """Tensors to sum over the ranks after an operation."""
    gathered: dict[int, list[int]] = field(default_factory=dict)
    """Tensors to put together after an operation."""


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
        """Share of the key-value heads that a rank keeps, at least one head."""
        return max(1 / self.degree, 1 / kv_heads)

    def is_mixed(self, tensor: int) -> bool:
        """Return whether a tensor holds queries with keys and values, of which a rank has different shares."""
        labels = self.of(tensor)
        return min(labels, default=0) < 0 < max(labels, default=0) and self.kv_share(max(labels)) > 1 / self.degree

    def share(self, tensor: int) -> float:
        """Share that one rank has of a tensor, if that is divided: by its features where it holds no heads."""
        labels = self.of(tensor)
        query, kv = max((-h for h in labels if h < 0), default=0), max((h for h in labels if h > 0), default=0)
        if not kv:
            return 1 / self.degree
        if not query:
            return self.kv_share(kv)
        return (query / self.degree + 2 * kv * self.kv_share(kv)) / (query + 2 * kv)  # keys and values as wide


def kv_heads(graph: OpGraph, op: Op) -> int:
    """Key-value heads that attention reads from memory: expanded ones, which it is given for each query head, once."""
    nominal = op.dims.get("kv_heads", op.dims["heads"])
    held = graph.heads[1] if graph.heads else nominal
    if len(op.reads) < 2 or held >= nominal or op.dtype not in DTYPE_BITS:
        return nominal
    head_bytes = op.dims["batch"] * op.dims["kv"] * op.dims["head_dim"] * DTYPE_BITS[op.dtype] / 8
    return held if op.reads[1].bytes <= held * head_bytes else nominal


def head_labels(graph: OpGraph, degree: int, whole: Collection[int]) -> Labels:
    """The labels of all tensors; attention in `whole` is not divided and labels nothing."""
    heads_of: dict[int, set[int]] = defaultdict(set)
    static = {tensor.id for tensor in graph.tensors if tensor.role == "weight"}
    pieces = _attention_in_pieces(graph, static)

    def label(accesses: Sequence[Access], labels: set[int]) -> None:
        for a in accesses:
            heads_of[a.tensor] |= labels

    for i in range(len(graph.ops) - 1, -1, -1):
        op = graph.ops[i]
        if op.kind is Kind.ATTENTION:
            if i not in whole and "heads" in op.dims and len(op.reads) > 1:
                label(op.reads[:1], {-op.dims["heads"]})
                label(op.reads[1:3], {kv_heads(graph, op)})
        elif i in pieces:
            label(op.reads[:1], {-pieces[i]})
            label(op.reads[1:2], {pieces[i]})
        elif op.kind in (Kind.POINTWISE, Kind.COPY, Kind.NORM, Kind.REDUCTION, Kind.SOFTMAX):
            labels: set[int] = set().union(*(heads_of.get(a.tensor, set()) for a in op.writes))
            if labels:
                repeats = _repeats(op)
                single = {h // repeats if h > 0 and h % repeats == 0 else h for h in labels}
                label([a for a in op.reads if a.tensor not in static], single)
    return Labels(graph, degree, {tensor: frozenset(labels) for tensor, labels in heads_of.items()}, pieces)


def _attention_in_pieces(graph: OpGraph, static: Collection[int]) -> dict[int, int]:
    """Products of activations beside a softmax in one module, a batch of the model's query or key-value heads."""
    pieces: dict[int, int] = {}
    modules = {op.path for op in graph.ops if op.kind is Kind.SOFTMAX}
    for i, op in enumerate(graph.ops):
        if op.kind is Kind.MATMUL and op.path in modules and not any(a.tensor in static for a in op.reads):
            heads, rest = divmod(op.dims.get("b", 0), graph.workload.batch)
            if heads and not rest and heads in (graph.heads or ()):
                pieces[i] = heads
    return pieces


def _repeats(op: Op) -> int:
    """Return how often a copy repeats each element of its only operand."""
    if op.kind is not Kind.COPY or len(op.reads) != 1 or not op.dims.get("elements") or op.dtype not in DTYPE_BITS:
        return 1  # other types, integers, hold no heads
    elements = op.dims["elements"] * DTYPE_BITS[op.dtype] / 8 / op.reads[0].bytes  # too many if these are quantised
    return round(min(elements, op.writes[0].bytes / op.reads[0].bytes)) or 1  # too many if it widens them


LINEAR = frozenset({"aten::mul", "aten::mul_", "aten::neg", "aten::sum"})
"""Operators with one partial operand whose result may be summed over the ranks instead of that operand."""
SUMS = frozenset({"aten::add", "aten::add_", "aten::sub", "aten::sub_", LORA_ADD})
"""Operators with that property whose operands must all be partial, or made of weights."""
ACCUMULATES = frozenset({"aten::index_add_", "aten::index_add", "aten::scatter_add_", "aten::scatter_add"})

ORDERED = frozenset({
    "aten::sort", "aten::topk", "aten::argsort", "aten::argmax", "aten::argmin", "aten::kthvalue", "aten::cumsum",
    "aten::cumprod", "aten::histc", "aten::bincount", "aten::unique", "aten::_unique2", "aten::unique_consecutive",
})  # fmt: skip
"""Reductions that depend on the order of features, or choose among all of them."""


def is_linear(op: Op, states: Sequence[State], static: Collection[int], blank: Collection[int]) -> bool:
    """Return whether the sum over ranks of its partial operands can be taken behind it."""
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
    """Return whether divided operands can be worked on without the features that other ranks have."""
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
