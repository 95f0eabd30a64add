"""The work of each operation of a layer in the accounting of arXiv 2402.16363: operations, and bytes by class.

The rules are those of LLM-Viewer (`model_analyzer.py`), the paper's tool, kept as they are where they are wrong:
docs/accounting.md says where and why. With T tokens in all sequences of the pass, a context of S, and sizes of the
model, a projection does 2·T·in·out operations, the products of attention 2·T·S·hidden each over T·S·heads scores, and
an operation on elements a fixed number for each.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pydantic import Field

from roofline.graph.op import Kind, Op, OpGraph, layer_of
from roofline.record import Record

PROJECTIONS = ("q_proj", "k_proj", "v_proj")
_NO_RULE = {
    Kind.GROUPED_MATMUL: "mixtures of experts",
    Kind.CONV: "state-space models and other convolutions",
    Kind.SCAN: "state-space models",
    Kind.COLLECTIVE: "a model in shards",
    Kind.TRANSFER: "weights or caches that are moved",
}


class PaperShape(Record):
    """A model as the paper sees it; its head size is always hidden ÷ heads."""

    hidden: int = Field(gt=0)
    """Width of the residual stream."""
    intermediate: int = Field(gt=0)
    """Width inside the MLP."""
    layers: int = Field(gt=0)
    heads: int = Field(gt=0)
    kv_heads: int = Field(gt=0)
    vocabulary: int = Field(gt=0)
    """Rows of the head."""
    gated: bool = True
    """Whether the MLP has a gate beside its up projection."""
    paths: dict[str, str] = {}
    """The paper's name of a projection → path of the module, with * for the layer; fused ones share theirs."""


@dataclass
class _Layer:
    attention: list[Op] = field(default_factory=list)
    mlp: list[Op] = field(default_factory=list)


def paper_shape(graph: OpGraph) -> PaperShape:
    """The sizes of the model in `graph`, traced from any workload.

    Raises: ValueError, with what to do, where the paper's accounting has no rule for the model.
    """
    for op in graph.ops:
        if op.routing is not None or "expert" in op.path:
            raise _unknown(_NO_RULE[Kind.GROUPED_MATMUL])
        if op.kind in _NO_RULE:
            raise _unknown(_NO_RULE[op.kind])
    if graph.heads is None:
        raise _unknown("a model whose config names no attention heads")
    layers, outside = _layers(graph)
    shapes = [_layer_shape(layer, graph.heads[0]) for layer in layers]
    if any(shape != shapes[0] for shape in shapes):
        raise _unknown("layers that differ from each other")
    if len(outside) != 1 or outside[0].dims["k"] != shapes[0]["hidden"]:
        raise _unknown("a model that does not end in its layers and one head as wide as they")
    head = outside[0]
    return PaperShape.model_validate({
        **shapes[0],
        "layers": round(sum(layer.attention[-1].count for layer in layers)),
        "heads": graph.heads[0],
        "vocabulary": head.dims["n"],
        "paths": {**_paths(layers[0]), "lm_head": head.path},
    })  # fmt: skip


def _layers(graph: OpGraph) -> tuple[list[_Layer], list[Op]]:
    """Products with weights: those of each repeated layer, and those after the last of them, in the graph's order."""
    attention = {op.path for op in graph.ops if op.kind == Kind.ATTENTION} | {m.path for m in graph.attention_modules}
    layers: dict[tuple[str, int], _Layer] = defaultdict(_Layer)
    outside: list[Op] = []
    for op in graph.ops:
        if op.kind != Kind.MATMUL or not graph.has_weight(op):
            continue
        place = layer_of(op.path)
        if place is None:
            outside.append(op)
            continue
        outside.clear()
        layer = layers[place.prefix, place.layer]
        inside = any(op.path.startswith(f"{path}.") for path in attention)
        (layer.attention if inside else layer.mlp).append(op)
    if not layers or not attention:
        raise _unknown("a model without attention (a state-space model)")
    return list(layers.values()), outside


def _layer_shape(layer: _Layer, heads: int) -> dict[str, int | bool]:
    """hidden, intermediate, kv_heads and gated, from the shapes of one layer's products."""
    if len(layer.attention) < 2 or len(layer.mlp) < 2:
        raise _unknown("layers that are not attention and a dense MLP (a state-space model, or a hybrid of one)")
    *projections, out = layer.attention
    *entries, down = layer.mlp
    hidden, intermediate = out.dims["n"], down.dims["k"]
    if any(op.dims["k"] != hidden for op in projections):
        raise _unknown("latent attention")
    kv_heads = _kv_heads([op.dims["n"] for op in projections], out.dims["k"], heads)
    widths = [op.dims["n"] for op in entries]
    if down.dims["n"] != hidden or any(op.dims["k"] != hidden for op in entries):
        raise _unknown("an MLP that is not one hidden layer")
    if widths not in ([intermediate], [intermediate, intermediate], [2 * intermediate]):
        raise _unknown("an MLP that is not up and down projections with at most one gate")
    return {"hidden": hidden, "intermediate": intermediate, "kv_heads": kv_heads, "gated": widths != [intermediate]}


def _kv_heads(widths: list[int], inner: int, heads: int) -> int:
    """KV heads by the widths of the products before attention, fused or not, and the width of its result."""
    head_dim = inner // heads
    kv_heads = (sum(widths) - inner) // (2 * head_dim) if head_dim else 0
    kv_width = kv_heads * head_dim
    expected = {1: [inner + 2 * kv_width], 2: [inner, 2 * kv_width], 3: [inner, kv_width, kv_width]}
    whole = inner % heads == 0 and kv_heads > 0 and heads % kv_heads == 0
    if not whole or sorted(widths) != sorted(expected.get(len(widths), [])):
        raise _unknown("attention that is not query, key, value and output projections")
    return kv_heads


def _paths(layer: _Layer) -> dict[str, str]:
    """The paper's name of each projection → path of the product that holds it."""
    *projections, out = layer.attention
    *entries, down = layer.mlp
    gated = sum(op.dims["n"] for op in entries) == 2 * down.dims["k"]
    named = [*_spread(PROJECTIONS, projections), ("out_proj", out)]
    named += [*_spread(("gate_proj", "up_proj") if gated else ("up_proj",), entries), ("down_proj", down)]
    return {name: re.sub(r"\.\d+(?=\.|$)", ".*", op.path, count=1) for name, op in named}


def _spread(names: Sequence[str], ops: Sequence[Op]) -> list[tuple[str, Op]]:
    """The product of each projection; the last product holds all that are left."""
    return [(name, ops[min(i, len(ops) - 1)]) for i, name in enumerate(names)]


def _unknown(what: str) -> ValueError:
    return ValueError(f"the paper's accounting has no rule for {what}; use the default accounting")


SOFTMAX_OPS = 5
"""Operations on an element: max, subtract, exp, sum, divide."""
NORM_OPS = 7
"""Operations on an element: sum, subtract, square, sum, divide, multiply, add."""
ADD_OPS = 1
"""Operations on an element."""
ACT_OPS = 2
"""Operations on an element: the activation, and the product with the gate."""


@dataclass(frozen=True)
class PaperPass:
    """One phase of one model: what the rules are functions of."""

    shape: PaperShape
    prefill: bool
    """All tokens of the context are new; else one token of each sequence is."""
    batch: int
    seqlen: int
    """Tokens that attention spans."""
    w_byte: float
    """Bytes of one weight, activation, cache element."""
    a_byte: float
    kv_byte: float

    @property
    def tokens(self) -> int:
        """New tokens of all sequences."""
        return self.batch * (self.seqlen if self.prefill else 1)

    @property
    def head_size(self) -> int:
        """Hidden ÷ heads: the paper knows no other head size."""
        return self.shape.hidden // self.shape.heads


@dataclass(frozen=True)
class Work:
    """Work of one operation; sizes in bytes, fields as in `PaperRow`."""

    name: str
    OPs: float
    load_weight: float = 0
    load_act: float = 0
    store_act: float = 0
    load_kv_cache: float = 0
    store_kv_cache: float = 0


def layer_work(of: PaperPass, use_flash: bool = False) -> Iterator[Work]:
    """The operations of one layer, in LLM-Viewer's order."""
    yield from _projections(of)
    yield from (_fused_attention(of),) if use_flash else _attention(of)
    for name in ("attn_norm", "mlp_norm"):
        yield _elementwise(of, name, NORM_OPS)
    for name in ("attn_add", "mlp_add"):
        yield _elementwise(of, name, ADD_OPS)  # reads one of its two operands
    yield _elementwise(of, "mlp_act", ACT_OPS, operands=2)  # of the hidden width, not the intermediate one


def head_work(of: PaperPass) -> Work:
    """The head: one operation for each weight and sequence, and the activations of one sequence."""
    hidden, vocabulary = of.shape.hidden, of.shape.vocabulary
    weights, acts = hidden * vocabulary, (hidden * of.a_byte, vocabulary * of.a_byte)
    return Work("lm_head", of.batch * hidden * vocabulary, weights * of.w_byte, *acts)


def _projections(of: PaperPass) -> Iterator[Work]:
    """The products with weights; query and output are hidden × hidden whatever the model's own head size."""
    hidden, intermediate = of.shape.hidden, of.shape.intermediate
    kv_width = hidden * of.shape.kv_heads / of.shape.heads
    yield _projection(of, "q_proj", hidden, hidden)
    yield _projection(of, "k_proj", hidden, kv_width, cached=True)
    yield _projection(of, "v_proj", hidden, kv_width, cached=True)
    yield _projection(of, "out_proj", hidden, hidden)
    if of.shape.gated:
        yield _projection(of, "gate_proj", hidden, intermediate)
    yield _projection(of, "up_proj", hidden, intermediate)
    yield _projection(of, "down_proj", intermediate, hidden)


def _projection(of: PaperPass, name: str, width_in: int, width_out: float, cached: bool = False) -> Work:
    outputs = width_out * of.tokens
    return Work(
        name,
        2 * width_in * outputs,
        load_weight=width_in * width_out * of.w_byte,
        load_act=width_in * of.tokens * of.a_byte,
        store_act=0 if cached else outputs * of.a_byte,
        store_kv_cache=outputs * of.kv_byte if cached else 0,
    )


def _attention(of: PaperPass) -> Iterator[Work]:
    """Unfused attention: scores are written and read; every query meets every key of the context."""
    scores = of.tokens * of.seqlen * of.shape.heads
    queries = of.tokens * of.head_size * of.shape.heads
    # prefill reads the queries of as many heads as there are KV heads
    read = of.tokens * of.head_size * (of.shape.kv_heads if of.prefill else of.shape.heads)
    product = 2 * scores * of.head_size
    cache = _cache_bytes(of)
    yield Work("qk_matmul", product, load_act=read * of.a_byte, store_act=scores * of.a_byte, load_kv_cache=cache)
    yield Work("sv_matmul", product, load_act=scores * of.a_byte, store_act=queries * of.a_byte, load_kv_cache=cache)
    yield Work("softmax", SOFTMAX_OPS * scores, load_act=scores * of.a_byte, store_act=scores * of.a_byte)


def _fused_attention(of: PaperPass) -> Work:
    """FlashAttention-2 (arXiv 2307.08691) with blocks of as many queries as a head has elements.

    LLM-Viewer takes that, or ⌈on-chip buffer ÷ (head size × cache element)⌉ if it is less: never, as that needs a
    buffer below head size² elements (32 KiB at 128 and 16 bits), and its devices have 20 MB and more.
    The result is as large as the scores, and moves twice.
    """
    scores = of.tokens * of.seqlen * of.shape.heads
    blocks = math.ceil((of.seqlen if of.prefill else 1) / of.head_size)
    return Work(
        "fused_attention",
        2 * (2 * scores * of.head_size) + SOFTMAX_OPS * scores,
        load_act=of.tokens * of.head_size * of.shape.heads * of.a_byte,
        store_act=2 * scores * of.a_byte,
        load_kv_cache=2 * blocks * _cache_bytes(of),
    )


def _cache_bytes(of: PaperPass) -> float:
    """Bytes of the keys, or the values, of the context."""
    return of.batch * of.seqlen * of.head_size * of.shape.kv_heads * of.kv_byte


def _elementwise(of: PaperPass, name: str, ops: int, operands: int = 1) -> Work:
    elements = of.tokens * of.shape.hidden
    return Work(name, ops * elements, load_act=operands * elements * of.a_byte, store_act=elements * of.a_byte)
