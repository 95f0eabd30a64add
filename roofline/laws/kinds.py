"""The table of all kinds of kernels: the sizes, the work and the laws of each.

A law for a new kind costs the law and one row here. A measured kind may be more specific than its row:
"matmul_row_major" has weights stored as k × n and constants of its own, and "aten::mul" is one streaming operator.
A table's dtype may be more than arithmetic: "fp8_block" is float8 with a scale for each block of weights.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from roofline.graph.op import Kind as OpKind
from roofline.laws.attention import (
    DecodeAttention,
    LatentDecodeAttention,
    LatentPrefillAttention,
    PrefillAttention,
)
from roofline.laws.cpu import DECODE, CoreAttention, CoreMatmul, CoreStreaming, HostGap
from roofline.laws.eager_modules import MODULES, EagerModules, modules_work
from roofline.laws.experts import Experts
from roofline.laws.law import Dims, Facts, Law
from roofline.laws.matmul import BatchedMatmul, BlockScaledMatmul, Matmul, ScaledMatmul
from roofline.laws.streams import Collective, Matvec, OwnAllReduce, Streaming
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
"""Names of kinds: products with one row; products of activations with each other in one call; the experts of a mixture;
streaming operators that have no row of their own; the host's time between two operations."""
OWN_ALL_REDUCE = "own_all_reduce"
"""All-reduce of a serving engine's own, in a captured graph, beside those of a library of collectives."""
LATENT_PREFILL, LATENT_DECODE = "latent_prefill_attention", "latent_decode_attention"
"""Multi-head latent attention: prompts with unpacked keys and values, whose head dim is the mean of both; decoding with
one latent vector for all heads, whose head dim is half of what is cached for a token."""
ROW_MAJOR = "_row_major"
"""Suffix of the kinds of products whose weights are stored as k × n: the same law with constants of their own."""
OPERATOR = "aten::"
"""Prefix of the kinds that are a single streaming operator: "aten::mul"."""


@dataclass(frozen=True, slots=True)
class KernelKind:
    """One kind of kernel."""

    name: str
    law: Law
    """The law on any device and in any dtype, unless the next two fields say otherwise."""
    law_on_cpu: Law | None = None
    """The law on general-purpose cores (`Facts.cores`), in all dtypes."""
    law_of_dtype: Mapping[str, Law] = field(default_factory=dict)
    """Laws of the dtypes (of a table) that run another kernel."""
    work: Callable[[Dims, str], Work] | None = None
    """FLOPs and compulsory bytes from sizes and dtype; None where they are unknown, and then there is no roofline."""
    sizes: tuple[str, ...] = ()
    """Sizes that an imported kernel must state as positive whole numbers. A law may need more (`Law.dims`)."""
    group: str = ""
    """Format of the name under which kernels are held out together when a fit is judged; empty: each by itself."""
    category: tuple[str, tuple[str, ...]] | None = None
    """The dim that holds the operator as an index, and the list that it indexes."""
    op_kinds: tuple[OpKind, ...] = ()
    """Streaming operations of a graph that have this law."""
    operators: tuple[str, ...] = ()
    """Streaming operators whose pooled kernels this kind is fitted to; operators of no row belong to `POINTWISE`."""
    points: int = 0
    """Number of kernels of each dtype that a calibration measures; 0: as many as there are."""
    state_on_gpu: str | None = None
    """State of the caches in which a calibration times these kernels on a GPU, where the law knows only one: "cold",
    operands that take turns, or "warm". None: both."""

    @property
    def laws(self) -> tuple[Law, ...]:
        return (self.law, *((self.law_on_cpu,) if self.law_on_cpu else ()), *self.law_of_dtype.values())


_MATMUL, _PREFILL, _POINTWISE = Matmul(), PrefillAttention(), Streaming(POINTWISE)
_ATTENTION_SIZES = ("batch", "heads", "kv_heads", "query", "kv", "head_dim", "kv_bytes")
_PRODUCT_GROUP, _HEADS_GROUP = "n{n} k{k}", "h{heads} kv{kv_heads} d{head_dim}"


def _streaming(law: Streaming, op_kinds: tuple[OpKind, ...], *operators: str) -> KernelKind:
    return KernelKind(
        law.name,
        law=law,
        law_on_cpu=CoreStreaming(f"core_{law.name}"),
        work=stream_work,
        sizes=("elements", "bytes_read"),
        group="{rows}x{width}",
        op_kinds=op_kinds,
        operators=operators,
    )


KINDS: dict[str, KernelKind] = {
    row.name: row
    for row in (
        KernelKind(
            "matmul",
            law=_MATMUL,
            law_on_cpu=CoreMatmul(),
            law_of_dtype={
                **dict.fromkeys(("float8_e4m3fn", "fp8_static", "fp8_ootb", "int8"), ScaledMatmul()),
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
        _streaming(_POINTWISE, (OpKind.POINTWISE, OpKind.COPY)),
        _streaming(
            Streaming("norm"),
            (OpKind.REDUCTION, OpKind.NORM, OpKind.SOFTMAX),
            "aten::mean",
            "aten::_softmax",
            "aten::native_layer_norm",
        ),
        _streaming(Streaming("embedding"), (OpKind.EMBEDDING,), "aten::embedding"),
        KernelKind(
            "collective",
            law=Collective(),
            work=collective_work,
            sizes=("ranks", "per_node", "bytes"),
            category=("operation", OPERATIONS),
        ),
        KernelKind(
            OWN_ALL_REDUCE,
            law=OwnAllReduce(),
            work=collective_work,
            sizes=("ranks", "bytes"),
            category=("operation", OPERATIONS),
        ),
        KernelKind(
            LATENT_PREFILL, law=LatentPrefillAttention(), work=prefill_work, sizes=_ATTENTION_SIZES, group=_HEADS_GROUP
        ),
        KernelKind(
            LATENT_DECODE, law=LatentDecodeAttention(), work=decode_work, sizes=_ATTENTION_SIZES, group=_HEADS_GROUP
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


def kind_of(name: str) -> KernelKind:
    """The row of a kind, of an operator (the row that pools it) or of a law's name. Raises ValueError for none."""
    plain = name.removesuffix(ROW_MAJOR)
    if plain in KINDS:
        return KINDS[plain]
    if plain.startswith(OPERATOR):
        return next((row for row in KINDS.values() if plain in row.operators), KINDS[POINTWISE])
    for row in KINDS.values():
        if any(law.name == plain for law in row.laws):
            return row
    raise ValueError(f"no law is known for {name!r}; known: {', '.join(KINDS)}")


def laws() -> dict[str, Law]:
    """Return all laws by name."""
    return {law.name: law for row in KINDS.values() for law in row.laws}


def law_named(name: str) -> Law:
    """The law of that name. Raises ValueError: there is none."""
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
    """The dims that hold an index into a list, with those lists."""
    return dict(row.category for row in KINDS.values() if row.category is not None)


@dataclass(frozen=True, slots=True)
class KernelShape:
    """A kernel that calibration asks a device to run, before it is measured."""

    kind: str
    dtype: str
    op: str
    """Operator, as the profiler names it."""
    dims: Mapping[str, int]
    """Matmul: m, n, k. Attention: batch, heads, kv_heads, query, kv, head_dim. Streaming: rows, width."""

    @property
    def group(self) -> str:
        """Name under which kernels are held out together: the weight's shape, the head layout, the size."""
        return kind_of(self.kind).group.format_map(self.dims)
