"""Kind, dimensions, FLOPs and touched bytes of a call of an ATen operator.

All come from the table `OPERATORS`; an operator that it lacks is counted by its bytes alone, and `Work.counted` is
False. A multiply-add is 2 FLOPs, moving data none. Bytes are compulsory traffic: each distinct element once, an
expanded operand at its storage, and of a mixture only the experts that are hit.

Example: ``work_of(torch.ops.aten.mm.default, (a, b), out).matrix_flops == 2 * m * k * n``
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch._ops import OpOverload

from roofline.graph.op import Bytes, Kind, Routing


@dataclass(frozen=True, slots=True)
class Work:
    """Kind, dimensions and FLOPs of one call."""

    kind: Kind
    dims: dict[str, int] = field(default_factory=dict)
    matrix_flops: float = 0
    vector_flops: float = 0
    counted: bool = True
    """False where the table does not know the operator's arithmetic."""
    routing: Routing | None = None
    """Assumed routing of a grouped product whose real routing is unknown."""


Counted = Literal["output", "input", "source"]
"""The tensor on whose elements FLOPs are counted: the largest result, the first operand, or the last one."""

Touches = Literal["all", "rows of the first", "overwrites", "overwrites rows", "adds to rows", "shape"]
"""The traffic of an operator. "all": every operand and every result. "rows of the first": a gather reads as much of its
first operand as it returns. "overwrites": the written operand is not read. "… rows": as many elements are written as
the other operands have. "shape": no operand is read."""


@dataclass(frozen=True, slots=True)
class Operator:
    """A row of the table."""

    kind: Kind | None
    """None where the call makes no device work."""
    flops: float = 0
    """Vector FLOPs for each counted element."""
    counted: Counted = "output"
    touches: Touches = "all"
    work: Callable[[tuple[Any, ...], Tensor], Work] | None = None
    """Computes the work from arguments and result, where it does not follow from a number of elements."""


def _matmul(batch: int, m: int, n: int, k: int, bias: bool = False, weights: Tensor | None = None) -> Work:
    dims = {"b": batch, "m": m, "n": n, "k": k}
    if weights is not None and weights.stride(1) == 1 and min(weights.shape) > 1:
        dims["row_major"] = 1  # k × n in memory, as GPT-2 keeps its weights; `nn.Linear` keeps them n × k
    return Work(Kind.MATMUL, dims, 2.0 * batch * m * n * k, float(batch * m * n) if bias else 0.0)


def _mm(args: tuple[Any, ...], out: Tensor, bias: bool = False) -> Work:
    a, b = args[:2]
    return _matmul(1, a.shape[0], b.shape[1], a.shape[1], bias, weights=b)


def _bmm(args: tuple[Any, ...], out: Tensor, bias: bool = False) -> Work:
    a, b = args[:2]
    return _matmul(a.shape[0], a.shape[1], b.shape[2], a.shape[2], bias)


def _packed_mm(args: tuple[Any, ...], out: Tensor, bias: bool = False) -> Work:
    """A product with a matrix whose layout in memory may hide its sizes, as that of int4 weights does."""
    width = args[0].shape[-1]
    return _matmul(1, args[0].numel() // max(1, width), out.shape[-1], width, bias)


def _vector_product(args: tuple[Any, ...], out: Tensor, bias: bool = False) -> Work:
    return _matmul(1, max(1, out.numel()), 1, args[1].shape[0], bias)


def _outer_product(args: tuple[Any, ...], out: Tensor) -> Work:
    """`addr`: a sum with the product of a column and a row."""
    return _matmul(1, args[1].shape[0], args[2].shape[0], 1, bias=True)


def _trilinear(args: tuple[Any, ...], out: Tensor) -> Work:
    """`nn.Bilinear`: x·W·y over shapes that are made alike by new dimensions, of which some are summed.

    Torch multiplies the first two operands, and the result with the third as a batched product, for each index of one
    dimension (`_trilinear` in `aten/src/ATen/native/Linear.cpp`): a multiply-add for each element of the whole shape.
    """
    shapes = []
    for operand, new in zip(args[:3], args[3:6], strict=True):
        shape = list(operand.shape)
        for dim in sorted(new):
            shape.insert(dim, 1)
        shapes.append(shape)
    whole = math.prod(max(sizes) for sizes in zip(*shapes, strict=True))
    n, results = out.shape[-1], max(1, out.numel())
    return _matmul(1, results // max(1, n), n, whole // results)


def _distances(args: tuple[Any, ...], out: Tensor) -> Work:
    """Distances between rows: ‖x‖² − 2 x·y + ‖y‖², three additions and a root; else |x − y|, power, sum."""
    width = args[0].shape[-1]
    if len(args) > 2 and args[2] != 2:
        return Work(Kind.REDUCTION, {"elements": out.numel()}, 0, 4.0 * out.numel() * width)
    product = _matmul(out.numel() // max(1, math.prod(out.shape[-2:])), out.shape[-2], out.shape[-1], width)
    return replace(product, vector_flops=float(3 * out.numel() + 2 * (args[0].numel() + args[1].numel())))


def _linear(args: tuple[Any, ...], out: Tensor) -> Work:
    return _packed_mm(args, out, bias=len(args) > 2 and args[2] is not None)


def _grouped_mm(args: tuple[Any, ...], out: Tensor) -> Work:
    """The product of each row of `a`, sorted by group, with the group's matrix; `b` is (groups, k, n)."""
    a, b = args[:2]
    groups = max(a.shape[0], 1) if a.dim() == 3 or b.dim() == 2 else b.shape[0]
    dims = {"groups": groups, "m": out.shape[-2], "n": b.shape[-1], "k": a.shape[-1]}
    return Work(Kind.GROUPED_MATMUL, dims, 2.0 * out.numel() * a.shape[-1])


def _convolution(args: tuple[Any, ...], out: Tensor) -> Work:
    """Return each output element (transposed: input element) is a dot product over (channels ÷ groups) × kernel."""
    x, weight, bias, transposed, groups = args[0], args[1], args[2], args[6], args[8]
    window = math.prod(weight.shape[1:])
    dims = {"batch": x.shape[0], "in": x.shape[1], "out": out.shape[1], "groups": groups, "window": window}
    elements = x.numel() if transposed else out.numel()
    return Work(Kind.CONV, dims, 2.0 * elements * window, float(out.numel()) if bias is not None else 0.0)


def _embedding(args: tuple[Any, ...], out: Tensor) -> Work:
    rows, width = args[1].numel(), args[0].shape[-1]
    sums = rows * width if out.numel() < rows * width else 0  # in bags: an addition for each element
    return Work(Kind.EMBEDDING, {"rows": rows, "width": width}, 0, float(sums))


def _fourier(args: tuple[Any, ...], out: Tensor) -> Work:
    """5 N log2 N for a complex transform of N points, half of that for a real one: the FFTW benchmark's convention."""
    points = max(args[0].numel(), out.numel())
    length = math.prod(max(args[0].shape[dim], out.shape[dim]) for dim in args[1])
    each = 5.0 if args[0].is_complex() and out.is_complex() else 2.5
    return Work(Kind.OTHER, {"elements": out.numel()}, 0, each * points * math.log2(max(2, length)))


def _factorised(multiply_adds: float) -> Callable[[tuple[Any, ...], Tensor], Work]:
    """A factorisation or an inverse of n × n matrices: so many n³ multiply-adds (Golub and Van Loan, "Matrix
    Computations", 4th edition, sections 3.2, 4.2)."""

    def work(args: tuple[Any, ...], out: Tensor) -> Work:
        return Work(Kind.OTHER, {"elements": out.numel()}, 0, 2 * multiply_adds * args[0].numel() * args[0].shape[-1])

    return work


def _chosen(args: tuple[Any, ...], out: Tensor) -> Work:
    """`topk` along a dimension: of how many elements it chooses how many."""
    elements, dim = args[0].numel(), args[2] if len(args) > 2 else -1
    of = args[0].shape[dim] if args[0].dim() else 1
    return Work(Kind.REDUCTION, {"elements": elements, "of": of, "chosen": int(args[1])}, 0, float(elements))


def _triangular(args: tuple[Any, ...], out: Tensor) -> Work:
    """A triangular solve: row i of n takes i multiply-adds and a division, n² FLOPs for each column."""
    return Work(Kind.OTHER, {"elements": out.numel()}, 0, float(out.numel() * args[0].shape[-1]))


def _rows(
    names: str, kind: Kind | None, flops: float = 0, counted: Counted = "output", touches: Touches = "all"
) -> dict[str, Operator]:
    """The same row for several operators."""
    return dict.fromkeys(names.split(), Operator(kind, flops, counted, touches))


GROUPED = frozenset({"_grouped_mm", "_scaled_grouped_mm", "_scaled_grouped_mm_v2"})
"""Operators that multiply each row by the matrix of its group."""

BAGS = ("_embedding_bag", "_embedding_bag_forward_only")

_POINTWISE, _REDUCTION, _COPY = Kind.POINTWISE, Kind.REDUCTION, Kind.COPY

OPERATORS: Mapping[str, Operator] = {
    # Products: by definition.
    **dict.fromkeys(("mm", "_scaled_mm", "_scaled_mm_v2", "_int_mm"), Operator(Kind.MATMUL, work=_mm)),
    "addmm": Operator(Kind.MATMUL, work=lambda args, out: _mm(args[1:], out, bias=True)),
    "_addmm_activation": Operator(Kind.MATMUL, work=lambda args, out: _mm(args[1:], out, bias=True)),
    "bmm": Operator(Kind.MATMUL, work=_bmm),
    "baddbmm": Operator(Kind.MATMUL, work=lambda args, out: _bmm(args[1:], out, bias=True)),
    "addbmm": Operator(
        Kind.MATMUL, work=lambda args, out: replace(_bmm(args[1:], out), vector_flops=float(out.numel()))
    ),
    "addmv": Operator(Kind.MATMUL, work=lambda args, out: _vector_product(args[1:], out, bias=True)),
    "addr": Operator(Kind.MATMUL, work=_outer_product),
    "_trilinear": Operator(Kind.MATMUL, work=_trilinear),
    **dict.fromkeys(("_cdist_forward", "_euclidean_dist"), Operator(Kind.MATMUL, work=_distances)),
    **dict.fromkeys(("mv", "dot", "vdot"), Operator(Kind.MATMUL, work=_vector_product)),
    **dict.fromkeys(
        ("_weight_int8pack_mm", "_weight_int4pack_mm", "_weight_int4pack_mm_for_cpu", "_dyn_quant_matmul_4bit"),
        Operator(Kind.MATMUL, work=_packed_mm),
    ),
    "linear": Operator(Kind.MATMUL, work=_linear),
    **dict.fromkeys(GROUPED, Operator(Kind.GROUPED_MATMUL, work=_grouped_mm)),
    **dict.fromkeys(("convolution", "_convolution"), Operator(Kind.CONV, work=_convolution)),
    **dict.fromkeys(("embedding", *BAGS), Operator(Kind.EMBEDDING, touches="rows of the first", work=_embedding)),
    "linalg_solve_triangular": Operator(Kind.OTHER, work=_triangular),
    **dict.fromkeys(("_fft_c2c", "_fft_r2c", "_fft_c2r"), Operator(Kind.OTHER, work=_fourier)),
    **dict.fromkeys(("linalg_cholesky_ex", "cholesky"), Operator(Kind.OTHER, work=_factorised(1 / 6))),
    "linalg_lu_factor_ex": Operator(Kind.OTHER, work=_factorised(1 / 3)),
    "linalg_inv_ex": Operator(Kind.OTHER, work=_factorised(1)),
    # One arithmetic operation or comparison an element, by definition.
    **_rows("add sub rsub mul div neg abs maximum minimum reciprocal floor_divide remainder fmod", _POINTWISE, 1),
    **_rows("relu exp exp2 expm1 log log1p cos sin sqrt rsqrt tanh erf erfinv pow square sign", _POINTWISE, 1),
    **_rows("eq ne lt le gt ge isin floor ceil round clamp_min clamp_max", _POINTWISE, 1),
    **_rows("bitwise_and bitwise_or bitwise_not logical_and logical_or logical_not", _POINTWISE, 1),
    # Several operations an element, written out.
    "clamp": Operator(_POINTWISE, 2),  # max, min
    "addcmul": Operator(_POINTWISE, 2),  # multiply, add
    "lerp": Operator(_POINTWISE, 3),  # a + w (b - a)
    "polar": Operator(_POINTWISE, 4),  # r cos(x), r sin(x): cos, sin, two products
    "sigmoid": Operator(_POINTWISE, 4),  # 1 / (1 + exp(-x)): negate, exp, add, divide
    "silu": Operator(_POINTWISE, 4),  # x / (1 + exp(-x))
    "log_sigmoid_forward": Operator(_POINTWISE, 4),  # -log(1 + exp(-x)): negate, exp, add, log
    "softplus": Operator(_POINTWISE, 3),  # log(1 + exp(x)): exp, add, log
    # Hendrycks and Gimpel, arXiv 1606.08415, eq. 2: x/2 (1 + erf(x/√2)): scale, erf, add, scale, multiply; and
    # x/2 (1 + tanh(√(2/π)(x + 0.044715 x³))): 3 for the cubic, add, scale, tanh, add, …
    "gelu": Operator(_POINTWISE, 5),
    "gelu_tanh": Operator(_POINTWISE, 8),  # gelu with approximate="tanh"
    # arXiv 2402.16363, section 2: its per-layer table counts 5 an element for softmax and 7 for a norm.
    **_rows("_softmax _safe_softmax _log_softmax", Kind.SOFTMAX, 5),
    **_rows("native_layer_norm native_group_norm native_batch_norm", Kind.NORM, 7),
    "_fused_rms_norm": Operator(Kind.NORM, 4),  # square, sum, scale by 1/rms, scale by the gain
    # One operation an input element: the addition or the comparison.
    **_rows("sum mean amax amin max min argmax argmin prod any all _is_all_true _is_any_true", _REDUCTION, 1, "input"),
    **_rows("cumsum cumprod histc bincount", _REDUCTION, 1, "input"),
    "aminmax": Operator(_REDUCTION, 2, "input"),  # two comparisons
    "linalg_vector_norm": Operator(_REDUCTION, 2, "input"),  # square, add
    **_rows("var var_mean std std_mean", _REDUCTION, 4, "input"),  # mean, subtract, square, sum; a root an output
    "logsumexp": Operator(_REDUCTION, 4, "input"),  # max, subtract, exp, add
    # Counted as one comparison an element: a radix sort compares nothing, and its passes are bound by their bytes.
    **_rows("sort argsort kthvalue _unique2 unique_consecutive", _REDUCTION, 1, "input"),
    "topk": Operator(_REDUCTION, work=_chosen),
    # Rows of a source are added to some of a tensor's: one addition for each element of the source.
    **_rows(
        "index_add_ index_add scatter_add_ scatter_add scatter_reduce scatter_reduce_",
        _POINTWISE, 1, "source", "adds to rows",
    ),
    # Data that is moved or set.
    **_rows("clone _to_copy contiguous _copy_from cat stack where masked_fill masked_fill_ masked_scatter", _COPY),
    **_rows("index_put scatter slice_scatter select_scatter put_ resolve_conj reflection_pad1d", _COPY),
    **_rows("roll flip repeat repeat_interleave expand_copy permute_copy unfold_copy im2col", _COPY),
    **_rows("tril triu tril_ triu_ tril_indices triu_indices constant_pad_nd pad one_hot nonzero", _COPY),
    **_rows("zeros ones full eye arange linspace randn rand _local_scalar_dense", _COPY),
    **_rows("index index_select gather take", _COPY, touches="rows of the first"),
    **_rows("copy_ fill_ zero_ normal_ uniform_ bernoulli_ index_fill_", _COPY, touches="overwrites"),
    **_rows("index_put_ index_copy_ scatter_", _COPY, touches="overwrites rows"),
    **_rows("zeros_like ones_like full_like rand_like randn_like new_zeros new_ones new_full", _COPY, touches="shape"),
    # No device work, though the schema does not mark these as views. `where` calls `scalar_tensor` for its scalars:
    # what that does there is part of `where`.
    **_rows("empty empty_like empty_strided new_empty new_empty_strided resize_ set_ scalar_tensor", None),
    **_rows("unsafe_split unsafe_split_with_sizes unsafe_chunk transpose_ t_ unsqueeze_ squeeze_ as_strided_", None),
    **_rows("_unsafe_view _reshape_alias detach alias lift lift_fresh _linalg_check_errors", None),
    **_rows("is_same_size sym_size sym_stride sym_numel sym_storage_offset", None),
}  # fmt: skip
"""Operators by name, without namespace and overload; an in-place one (`add_`) without a row has that of the other."""

FLOPS_PER_ELEMENT = {name: row.flops for name, row in OPERATORS.items()}
"""Vector FLOPs for each counted element, by operator."""

NO_WORK = frozenset(name for name, row in OPERATORS.items() if row.kind is None)
"""Operators without device work."""


@cache
def name_of(func: OpOverload) -> str:
    """Name of an operator without namespace and overload: "mm"."""
    return str(func._schema.name).split("::")[1]


def operator(name: str) -> Operator | None:
    """The row of an operator; None where the table has none."""
    return OPERATORS.get(name) or OPERATORS.get(name.rstrip("_"))


@cache
def is_metadata(func: OpOverload) -> bool:
    """Return whether a call makes no device work: a view, or an allocation."""
    return func.is_view or name_of(func) in NO_WORK


def work_of(func: OpOverload, args: tuple[Any, ...], out: Any, kwargs: Mapping[str, Any] | None = None) -> Work:
    """Kind, dimensions and FLOPs of one ATen call that makes device work.

    Args: the call's arguments (tensors of any device, meta included), its result and its named arguments.
    """
    name = name_of(func)
    if name in ("gelu", "gelu_") and (kwargs or {}).get("approximate") == "tanh":
        name = "gelu_tanh"
    if name == "max" and len(args) == 2 and isinstance(args[1], Tensor):
        name = "maximum"
    row = operator(name)
    results = [t for t in (out if isinstance(out, list | tuple) else [out]) if isinstance(t, Tensor)]
    elements = max((t.numel() for t in results), default=0)
    if row is None or row.kind is None:
        is_pointwise = torch.Tag.pointwise in func.tags  # one result for each element
        return Work(Kind.POINTWISE if is_pointwise else Kind.OTHER, {"elements": elements}, counted=False)
    if row.work is not None:
        work = row.work(args, results[0])
        # a complex multiply-add is four real ones
        return replace(work, matrix_flops=4 * work.matrix_flops) if results[0].is_complex() else work
    operands = [t for t in args if isinstance(t, Tensor)]
    if operands and row.counted != "output":
        elements = operands[0 if row.counted == "input" else -1].numel()
    return Work(row.kind, {"elements": elements}, 0, row.flops * elements)


Touched = list[tuple[Tensor, Bytes]]
"""Tensors with the bytes of them that are touched."""


def touched(
    func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any, routing: Routing | None = None
) -> tuple[Touched, Touched]:
    """The tensors that a call reads, and those that it writes; a call without any result element touches none.

    `routing` is that of a grouped product whose offsets are not real.
    """
    name = name_of(func)
    row = operator(name)
    touches = row.touches if row else "all"
    inputs, outputs = list(tensors((*args, *kwargs.values()))), list(tensors((out,)))
    if outputs and not any(t.numel() for t in outputs):
        return [], []
    written = [args[i] for i in _written_arguments(func) if i < len(args) and isinstance(args[i], Tensor)]
    reads: Touched = [] if touches == "shape" else [(t, distinct_bytes(t)) for t in inputs]
    if touches == "rows of the first" and reads:
        rows = args[1].numel() * args[0].shape[-1] * args[0].element_size() if name in BAGS else 0
        moved = max(rows, *(t.numel() * t.element_size() for t in outputs))
        reads[0] = (inputs[0], min(reads[0][1], moved))
    if touches in ("overwrites", "overwrites rows"):
        reads = [read for read in reads if read[0] is not args[0]]
    if name in GROUPED and args[0].dim() == 2 and args[1].dim() == 3:
        hit = routing.hit if routing else _real_hit(func, args, kwargs)
        reads[1] = (inputs[1], distinct_bytes(inputs[1]) * hit / inputs[1].shape[0])
    if written and touches in ("overwrites rows", "adds to rows"):
        changed = max((distinct_bytes(t) // t.element_size() for t in inputs[1:]), default=0)
        part = min(changed * written[0].element_size(), distinct_bytes(written[0]))
        if touches == "adds to rows":
            reads[0] = (written[0], part)
        return reads, [(written[0], part)]
    fresh = [t for t in outputs if all(t is not w for w in written)]
    return reads, [(t, distinct_bytes(t)) for t in (*written, *fresh)]


@cache
def _written_arguments(func: OpOverload) -> tuple[int, ...]:
    """Positions of the arguments that a call writes to."""
    aliases = enumerate(argument.alias_info for argument in func._schema.arguments)
    return tuple(i for i, alias in aliases if alias is not None and alias.is_write)


def has_real_routing(func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Return whether it is known which matrices a grouped product uses: all, or those whose rows' ends have data."""
    offsets = argument(func, args, kwargs, "offs")
    batched = args[0].dim() == 3 or args[1].dim() != 3
    return batched or (isinstance(offsets, Tensor) and offsets.device.type != "meta")


def _real_hit(func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Number of experts that have rows; the offsets are the ends of each expert's rows."""
    ends = argument(func, args, kwargs, "offs").flatten()
    return int((torch.diff(ends, prepend=ends.new_zeros(1)) > 0).sum())


def argument(func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any], name: str) -> Any:
    """The argument of that name, however the call passes it; None where the call leaves it out."""
    at = next((i for i, argument in enumerate(func._schema.arguments) if argument.name == name), len(args))
    return kwargs.get(name, args[at] if at < len(args) else None)


def distinct_bytes(tensor: Tensor) -> int:
    """Bytes of the distinct elements that a view addresses: an expanded dimension (stride 0) counts once."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    elements = math.prod(size for size, stride in sizes if stride != 0 or size == 0)
    return min(elements * tensor.element_size(), tensor.untyped_storage().nbytes())


def tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Yield all tensors in arguments, those in lists included."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors(value)
