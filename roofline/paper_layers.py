"""What each operation of a layer does in the accounting of arXiv 2402.16363: operations, and bytes by class.

The rules are those of LLM-Viewer (`model_analyzer.py`), the paper's tool, kept as they are where they are wrong:
docs/accounting.md says where and why. With T tokens in all sequences of the pass, a context of S, and sizes of the
model, a projection does 2·T·in·out operations, the products of attention 2·T·S·hidden each over T·S·heads scores, and
an operation on elements a fixed number for each.

Example: ``[work.name for work in layer_work(paper_pass)][:3] == ["q_proj", "k_proj", "v_proj"]``
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from roofline.paper_shape import PaperShape

SOFTMAX_OPS = 5
"""An element: max, subtract, exp, sum, divide."""
NORM_OPS = 7
"""An element: sum, subtract, square, sum, divide, multiply, add."""
ADD_OPS = 1
"""An element."""
ACT_OPS = 2
"""An element: the activation, and the product with the gate."""


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
        """It knows no other."""
        return self.shape.hidden // self.shape.heads


@dataclass(frozen=True)
class Work:
    """What one operation does; sizes in bytes."""

    name: str
    ops: float
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
    return Work(
        "lm_head",
        of.batch * hidden * vocabulary,
        load_weight=hidden * vocabulary * of.w_byte,
        load_act=hidden * of.a_byte,
        store_act=vocabulary * of.a_byte,
    )


def _projections(of: PaperPass) -> Iterator[Work]:
    """Query and output are hidden × hidden whatever the model's own head size."""
    shape = of.shape
    hidden, intermediate = shape.hidden, shape.intermediate
    kv_width = hidden * shape.kv_heads / shape.heads
    yield _projection(of, "q_proj", hidden, hidden)
    yield _projection(of, "k_proj", hidden, kv_width, cached=True)
    yield _projection(of, "v_proj", hidden, kv_width, cached=True)
    yield _projection(of, "out_proj", hidden, hidden)
    if shape.gated:
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
    """Unfused: scores are written and read; every query meets every key of the context."""
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
    """Keys, or values, of the context."""
    return of.batch * of.seqlen * of.head_size * of.shape.kv_heads * of.kv_byte


def _elementwise(of: PaperPass, name: str, ops: int, operands: int = 1) -> Work:
    elements = of.tokens * of.shape.hidden
    return Work(name, ops * elements, load_act=operands * elements * of.a_byte, store_act=elements * of.a_byte)
