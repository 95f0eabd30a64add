"""What is known of ATen operators by name: their arithmetic, and what they read and write.

Every name stands without namespace and overload. An operator in no table is counted by its bytes alone, and said so.

Example: ``VECTOR_FLOPS["silu"] == 4``
"""

from collections.abc import Mapping
from functools import cache

import torch
from torch._ops import OpOverload

VECTOR_FLOPS: Mapping[str, float] = {
    # One arithmetic operation or comparison an element, by definition.
    **dict.fromkeys(
        ["add", "sub", "rsub", "mul", "div", "neg", "abs", "maximum", "minimum", "reciprocal", "floor_divide"], 1
    ),
    **dict.fromkeys(["relu", "exp", "log", "cos", "sin", "sqrt", "rsqrt", "tanh", "erf", "pow", "square"], 1),
    **dict.fromkeys(["eq", "ne", "lt", "le", "gt", "ge", "isin", "floor", "ceil", "round", "log1p", "expm1"], 1),
    **dict.fromkeys(["bitwise_and", "bitwise_or", "bitwise_not", "logical_and", "logical_or", "logical_not"], 1),
    **dict.fromkeys(["remainder", "fmod", "sign", "exp2", "erfinv"], 1),
    # Written out in these.
    "clamp": 2,  # max, min
    **dict.fromkeys(["clamp_min", "clamp_max"], 1),
    "addcmul": 2,  # multiply, add
    "lerp": 3,  # a + w (b - a)
    "polar": 4,  # r cos(x), r sin(x): cos, sin, two products
    "sigmoid": 4,  # 1 / (1 + exp(-x)): negate, exp, add, divide
    "silu": 4,  # x / (1 + exp(-x))
    "log_sigmoid_forward": 4,  # -log(1 + exp(-x)): negate, exp, add, log
    "softplus": 3,  # log(1 + exp(x)): exp, add, log
    "gelu": 5,  # x/2 (1 + erf(x/√2)): scale, erf, add, scale, multiply (Hendrycks and Gimpel, arXiv 1606.08415, eq. 2)
    "gelu_tanh": 8,  # x/2 (1 + tanh(√(2/π)(x + 0.044715 x³))): 3 for the cubic, add, scale, tanh, add, … (ibid.)
    # arXiv 2402.16363, section 2: its per-layer table counts 5 an element for softmax and 7 for a norm.
    "_softmax": 5,
    "_safe_softmax": 5,
    "_log_softmax": 5,
    "native_layer_norm": 7,
    "native_group_norm": 7,
    "native_batch_norm": 7,
    "_fused_rms_norm": 4,  # square, sum, scale by 1/rms, scale by the gain
}
"""Arithmetic operations an output element."""

REDUCTION_FLOPS: Mapping[str, float] = {
    # One operation an input element: the addition or the comparison.
    **dict.fromkeys(["sum", "mean", "amax", "amin", "max", "min", "argmax", "argmin", "prod", "any", "all"], 1),
    **dict.fromkeys(["_is_all_true", "_is_any_true"], 1),
    **dict.fromkeys(["cumsum", "cumprod", "histc", "bincount"], 1),
    "aminmax": 2,  # two comparisons
    "linalg_vector_norm": 2,  # square, add
    **dict.fromkeys(["std", "std_mean"], 4),  # as the variance; the root is one an output
    "var": 4,  # mean, subtract, square, sum
    "var_mean": 4,
    "logsumexp": 4,  # max, subtract, exp, add
}
"""Arithmetic operations an input element."""

SOFTMAX_FLOPS = VECTOR_FLOPS["_softmax"]

MOVES = frozenset([
    "clone", "copy_", "cat", "stack", "_to_copy", "where", "masked_fill", "masked_fill_", "gather", "index",
    "index_select", "index_put_", "index_put", "index_copy_", "scatter_", "scatter", "slice_scatter",
    "select_scatter", "roll", "flip", "repeat", "repeat_interleave", "tril", "triu", "tril_", "triu_",
    "tril_indices", "triu_indices", "constant_pad_nd", "zeros", "ones", "full", "zeros_like", "ones_like",
    "full_like", "zero_", "fill_", "new_zeros", "new_ones", "new_full", "arange", "one_hot", "eye",
    "bernoulli_", "pad", "_local_scalar_dense", "nonzero", "linspace", "unfold_copy", "masked_scatter",
    "expand_copy", "permute_copy", "_copy_from", "contiguous", "im2col", "constant", "resolve_conj",
    "index_fill_", "put_", "take", "randn", "rand", "normal_", "uniform_",
])  # fmt: skip
"""Operators that only move or set data."""

EMPTY = frozenset([
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "detach",
    "alias", "lift_fresh", "lift", "_reshape_alias", "resize_", "set_", "is_same_size", "sym_size",
    "sym_stride", "sym_numel", "sym_storage_offset", "scalar_tensor",
])  # fmt: skip
"""Operators without device work that a schema does not mark as views, and `scalar_tensor`, which `where` calls for
its scalars: what it does there is part of `where`."""

ACCUMULATES = frozenset(["index_add_", "index_add", "scatter_add_", "scatter_add", "scatter_reduce", "scatter_reduce_"])
"""Operators that add rows of a source to some of a tensor's: one addition for each element of the source."""

SORTS = frozenset(["sort", "topk", "argsort", "kthvalue", "unique", "_unique2", "unique_consecutive"])
NORMS = frozenset(["native_layer_norm", "native_group_norm", "native_batch_norm", "_fused_rms_norm"])
SOFTMAXES = frozenset(["_softmax", "_safe_softmax", "_log_softmax"])

WRITE_ONLY = frozenset([
    "copy_", "fill_", "zero_", "normal_", "uniform_", "bernoulli_", "index_copy_", "scatter_", "index_put_",
    "index_fill_", "set_",
])  # fmt: skip
"""In-place operators that do not read what they overwrite."""

PARTIAL = frozenset(["index_put_", "index_copy_", "scatter_"]) | ACCUMULATES
"""In-place operators that touch as much of their tensor as they are given."""

TEMPLATES = frozenset([
    "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "new_zeros", "new_ones", "new_full",
])  # fmt: skip
"""Operators that take only shape and type from their tensor."""

GATHERS = frozenset(["embedding", "index", "index_select", "gather", "take"])
"""Operators that read as much of their source as they return."""


@cache
def name_of(func: OpOverload) -> str:
    """Operator without namespace and overload: "mm"."""
    return str(func._schema.name).split("::")[1]


@cache
def is_metadata(func: OpOverload) -> bool:
    """Whether a call makes no device work: a view, or an allocation."""
    return func.is_view or name_of(func) in EMPTY


def is_pointwise(func: OpOverload) -> bool:
    """Whether torch tags the operator so: one result for each element."""
    return torch.Tag.pointwise in func.tags


@cache
def written_arguments(func: OpOverload) -> tuple[int, ...]:
    """Positions of the arguments that a call writes to."""
    arguments = func._schema.arguments
    return tuple(i for i, one in enumerate(arguments) if one.alias_info is not None and one.alias_info.is_write)
