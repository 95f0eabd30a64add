"""The kinds of kernels: one row each says which sizes a kernel has, what work it is, and which law prices it.

A kernel that is measured, imported, fitted, priced or exported is looked up here, so a law for a new kind costs the law
and one row. The name of a table's kind may say more than the row's: "matmul_row_major" has weights that lie k × n, and
constants of its own; "aten::mul" is one streaming operator. A table's dtype may say more than arithmetic, too:
"fp8_block" is float8 with a scale for each block of weights, another kernel than a plain product.

Example: ``law_for("matmul", "fp8_block", facts)`` → (law "block_scaled_matmul", "float8_e4m3fn")
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from roofline.graph.op import Kind as OpKind
from roofline.laws.attention import DecodeAttention, PrefillAttention
from roofline.laws.collective import Collective
from roofline.laws.cpu import DECODE, CoreAttention, CoreMatmul, HostGap
from roofline.laws.eager_modules import MODULES, EagerModules, modules_work
from roofline.laws.experts import Experts
from roofline.laws.law import Dims, Facts, Law
from roofline.laws.matmul import BatchedMatmul, Matmul
from roofline.laws.scaled_matmul import BlockScaledMatmul, ScaledMatmul
from roofline.laws.streams import Matvec, Streaming
from roofline.laws.work import (
    OPERATIONS,
    Work,
    arithmetic,
    collective_work,
    decode_work,
    experts_work,
    prefill_work,
    product_work,
    stream_work,
)

MATVEC, BATCHED, GROUPED, POINTWISE, HOST_GAP = "matvec", "batched_matmul", "grouped_matmul", "pointwise", "host_gap"
"""Names of kinds: of a product with one row; of many products in one call, of activations with each other and of the
experts of a mixture; of streaming operators without a row; of the host's time between two operations."""

ROW_MAJOR = "_row_major"
"""Ends the kind of products whose weights lie k × n: the same law, constants of their own."""

OPERATOR = "aten::"
"""How the kinds begin that are one streaming operator each: "aten::mul"."""


@dataclass(frozen=True, slots=True)
class KernelKind:
    """One kind of kernel."""

    name: str
    law: Law
    """Prices it on any device and in any dtype, unless the next two say otherwise."""
    law_on_cpu: Law | None = None
    """Prices it on general-purpose cores (`Facts.cores`), in all dtypes."""
    law_of_dtype: Mapping[str, Law] = field(default_factory=dict)
    """Dtype of a table -> the law of that kernel, where it is another one."""
    work: Callable[[Dims, str], Work] | None = None
    """FLOPs and compulsory bytes by its sizes and dtype; None: not known, so rooflines say nothing of it."""
    sizes: tuple[str, ...] = ()
    """Sizes that an imported kernel must state, whole and positive. A law may need more of them (`Law.dims`)."""
    group: str = ""
    """What is held out together when a fit is judged, as a format of its sizes; empty: each kernel by itself."""
    category: tuple[str, tuple[str, ...]] | None = None
    """The size that is a kernel's operator as a place in a list, and that list."""
    op_kinds: tuple[OpKind, ...] = ()
    """Operations of a graph that stream and have this law."""
    operators: tuple[str, ...] = ()
    """Streaming operators whose kernels, pooled, this kind is fitted to; those of no row are pooled as `POINTWISE`."""
    points: int = 0
    """Kernels of each dtype that a calibration measures; 0: as many as there are."""
    state_on_gpu: str | None = None
    """The state of the caches in which a calibration times its kernels on a GPU, that in models, where its law knows
    one alone: "cold", operands that take turns, or "warm". None: both."""

    @property
    def laws(self) -> tuple[Law, ...]:
        """All its laws."""
        return (self.law, *((self.law_on_cpu,) if self.law_on_cpu else ()), *self.law_of_dtype.values())


_MATMUL, _PREFILL, _POINTWISE, _SCALED = Matmul(), PrefillAttention(), Streaming(POINTWISE), ScaledMatmul()
_ATTENTION_SIZES = ("batch", "heads", "kv_heads", "query", "kv", "head_dim", "kv_bytes")
_PRODUCT_GROUP, _HEADS_GROUP, _STREAM_GROUP = "n{n} k{k}", "h{heads} kv{kv_heads} d{head_dim}", "{rows}x{width}"

KINDS: dict[str, KernelKind] = {
    row.name: row
    for row in (
        KernelKind(
            "matmul",
            law=_MATMUL,
            law_on_cpu=CoreMatmul(),
            law_of_dtype={
                **dict.fromkeys(("float8_e4m3fn", "fp8_static", "fp8_ootb", "int8"), _SCALED),
                "fp8_block": BlockScaledMatmul(),
            },
            work=product_work,
            sizes=("m", "n", "k"),
            group=_PRODUCT_GROUP,
            points=36,
        ),
        KernelKind(MATVEC, law=Matvec(), work=stream_work, group=_PRODUCT_GROUP, points=24),
        KernelKind(BATCHED, law=BatchedMatmul(BATCHED), work=product_work, group=_PRODUCT_GROUP, points=12),
        KernelKind(GROUPED, law=BatchedMatmul(GROUPED), work=product_work, group=_PRODUCT_GROUP, points=10),
        KernelKind(
            "prefill_attention",
            law=_PREFILL,
            law_on_cpu=CoreAttention(),
            work=prefill_work,
            sizes=_ATTENTION_SIZES,
            group=_HEADS_GROUP,
            points=14,
            state_on_gpu="warm",
        ),
        KernelKind(
            "decode_attention",
            law=DecodeAttention(),
            law_on_cpu=CoreAttention(DECODE),
            work=decode_work,
            sizes=_ATTENTION_SIZES,
            group=_HEADS_GROUP,
            points=14,
            state_on_gpu="cold",
        ),
        KernelKind(
            "experts",
            law=Experts(),
            work=experts_work,
            sizes=("tokens", "hidden", "inner", "topk", "experts", "tp", "ep", "weight_bits"),
        ),
        KernelKind(
            POINTWISE,
            law=_POINTWISE,
            work=stream_work,
            sizes=("elements", "bytes_read"),
            group=_STREAM_GROUP,
            op_kinds=(OpKind.POINTWISE, OpKind.COPY),
        ),
        KernelKind(
            "norm",
            law=Streaming("norm"),
            work=stream_work,
            sizes=("elements", "bytes_read"),
            group=_STREAM_GROUP,
            op_kinds=(OpKind.REDUCTION, OpKind.NORM, OpKind.SOFTMAX),
            operators=("aten::mean", "aten::_softmax", "aten::native_layer_norm"),
        ),
        KernelKind(
            "embedding",
            law=Streaming("embedding"),
            work=stream_work,
            sizes=("elements", "bytes_read"),
            group=_STREAM_GROUP,
            op_kinds=(OpKind.EMBEDDING,),
            operators=("aten::embedding",),
        ),
        KernelKind(
            "collective",
            law=Collective(),
            work=collective_work,
            sizes=("ranks", "per_node", "bytes"),
            category=("operation", OPERATIONS),
        ),
        KernelKind(
            "module",
            law=EagerModules({law.name: law for law in (_MATMUL, _POINTWISE, _PREFILL)}),
            work=modules_work,
            sizes=("tokens", "tp"),
            category=("module", tuple(MODULES)),
        ),
        KernelKind(HOST_GAP, law=HostGap()),
    )
}
"""By name."""


def kind_of(name: str) -> KernelKind:
    """The row of a table's kind, or of the law of that name. Raises ValueError: there is none.

    An operator's row is the one that its kernels are pooled in.
    """
    plain = name.removesuffix(ROW_MAJOR)
    if plain in KINDS:
        return KINDS[plain]
    if plain.startswith(OPERATOR):
        return next((row for row in KINDS.values() if plain in row.operators), KINDS[POINTWISE])
    rows = [row for row in KINDS.values() if any(law.name == plain for law in row.laws)]
    if not rows:
        raise ValueError(f"no law is known for {name!r}; known: {', '.join(KINDS)}")
    return rows[0]


def laws() -> dict[str, Law]:
    """All laws by name."""
    return {law.name: law for row in KINDS.values() for law in row.laws}


def law_named(name: str) -> Law:
    """Raises ValueError: no law of that name."""
    if name not in laws():
        raise ValueError(f"no law is known for {name!r}; known: {', '.join(laws())}")
    return laws()[name]


def law_for(kind: str, dtype: str, facts: Facts) -> tuple[Law, str]:
    """The law of a kind and dtype, and the dtype of its arithmetic. Raises ValueError: no law for that kind."""
    row = kind_of(kind)
    law = row.law_on_cpu if facts.cores and row.law_on_cpu else row.law_of_dtype.get(dtype, row.law)
    return law, arithmetic(dtype, facts.matrix_flops_per_s)


def work_of(kind: str, dims: Dims, dtype: str) -> Work:
    """FLOPs and bytes of each kernel of a kind. Raises ValueError: a kind whose work is not known."""
    row = kind_of(kind)
    if row.work is None:
        raise ValueError(f"the work of {kind!r} is not known")
    return row.work(dims, dtype)


def categories() -> dict[str, tuple[str, ...]]:
    """Sizes that are places in a list, and those lists."""
    return dict(row.category for row in KINDS.values() if row.category is not None)


@dataclass(frozen=True, slots=True)
class KernelShape:
    """A kernel to measure, before it is: what calibration asks a device to run.

    Example: ``KernelShape("matmul", "bfloat16", "aten::mm", {"m": 16, "n": 4096, "k": 4096}).group == "n4096 k4096"``
    """

    kind: str
    dtype: str
    op: str
    """Operator, as the profiler names it."""
    dims: Mapping[str, int]
    """Matmul: m, n, k. Attention: batch, heads, kv_heads, query, kv, head_dim. Streaming: rows, width."""

    @property
    def group(self) -> str:
        """What is held out together when a fit is judged: the weight's shape, the head layout, the size."""
        return kind_of(self.kind).group.format_map(self.dims)
