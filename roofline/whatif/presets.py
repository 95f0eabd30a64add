"""Named ways to store all weights of a model: formats of servers, and the mixes of llama.cpp's GGUF files.

A preset chooses the scheme of each weight (`quantise.as_stored`). A GGUF mix gives some tensors more bits: `_TYPES` are
the block layouts (`ggml/src/ggml-common.h`: bytes of a block), and `_gguf_type` says which tensor has which type
(`llama_tensor_get_type_impl` in `src/llama-quant.cpp`), for files made without an importance matrix.
"""

from collections.abc import Callable, Mapping
from functools import partial

from roofline.graph.op import OpGraph, layer_of
from roofline.whatif.scheme import Choose, Scheme, Weight

_TYPES: dict[str, Scheme] = {
    "Q2_K": Scheme(2, 16, scale_bits=5, zero_point_bits=5),  # 84 bytes for 256
    "Q3_K": Scheme(3, 16, scale_bits=7),  # 110 bytes for 256
    "Q4_K": Scheme(4, 32, scale_bits=8, zero_point_bits=8),  # 144 bytes for 256
    "Q5_K": Scheme(5, 32, scale_bits=8, zero_point_bits=8),  # 176 bytes for 256
    "Q6_K": Scheme(6, 16, scale_bits=9),  # 210 bytes for 256
    "Q8_0": Scheme(8, 32, scale_bits=16),  # 34 bytes for 32
    "Q4_0": Scheme(4, 32, scale_bits=16),  # 18 bytes for 32
    "Q5_0": Scheme(5, 32, scale_bits=16),  # 22 bytes for 32
    "Q5_1": Scheme(5, 32, scale_bits=16, zero_point_bits=16),  # 24 bytes for 32
    "IQ4_XS": Scheme(4, 32, scale_bits=8),  # 136 bytes for 256
    "IQ4_NL": Scheme(4, 32, scale_bits=16),  # 18 bytes for 32
}
"""Layout of a block: bits of a weight, and of the scale and the minimum of a group, with their share of the block's."""

SUPER_BLOCK = 256
"""Weights along k in a block of the types that end in K or XS; columns that it does not divide get another type."""

FALLBACK = {"Q2_K": "IQ4_NL", "Q3_K": "IQ4_NL", "IQ4_XS": "IQ4_NL", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}

BASE = {
    "Q2_K": "Q2_K", "Q3_K_S": "Q3_K", "Q3_K_M": "Q3_K", "Q3_K_L": "Q3_K", "Q4_0": "Q4_0", "Q4_K_S": "Q4_K",
    "Q4_K_M": "Q4_K", "Q5_K_S": "Q5_K", "Q5_K_M": "Q5_K", "Q6_K": "Q6_K", "Q8_0": "Q8_0", "IQ4_XS": "IQ4_XS",
}  # fmt: skip
"""Mix -> type of the tensors that no rule names."""

GROUPED = 4
"""Query heads for a key-value head from which the values' projection, then small, gets more bits."""

FUSED = frozenset({"qkv_proj", "c_attn", "query_key_value", "Wqkv", "qkv", "in_proj_qkv"})
VALUES = frozenset({"v_proj", "value", "v_lin", "wv"})
KEYS = frozenset({"k_proj", "key", "k_lin", "wk"})
OUT = frozenset({"o_proj", "out_proj", "dense", "c_proj", "wo"})
DOWN = frozenset({"down_proj", "fc2", "c_proj", "dense_4h_to_h", "w2"})
"""Last names of modules of a layer, by what llama.cpp calls attn_qkv, attn_v, attn_k, attn_output and ffn_down."""


def gguf(mix: str, graph: OpGraph) -> Choose:
    """The scheme of each weight of a graph in a GGUF mix."""
    places = [place.layer for op in graph.ops if (place := layer_of(op.path))]
    layers = max(places, default=0) + 1
    query, shared = graph.heads or (1, 1)
    experts = max((op.routing.experts for op in graph.ops if op.routing), default=0)

    def choose(weight: Weight) -> Scheme | None:
        if weight.role == "router":
            return None
        kind = _gguf_type(mix, weight, layers, query // shared, experts)
        if weight.k % SUPER_BLOCK and kind in FALLBACK:
            kind = FALLBACK[kind]
        return _TYPES[kind]

    return choose


def _gguf_type(mix: str, weight: Weight, layers: int, grouped: int, experts: int) -> str:
    base = BASE[mix]
    if weight.role in ("head", "tied"):
        return base if base == "Q8_0" else "Q6_K"
    place = layer_of(weight.name)
    if weight.role == "embedding" or place is None:
        return base
    path = weight.name.removesuffix(".weight")
    last, layer = path.rpartition(".")[2], place.layer
    is_attention = "attn" in path or "attention" in path
    more = layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
    eight = experts == 8
    if is_attention and last in VALUES:
        if eight:
            return "Q8_0"
        kind = {
            "Q2_K": "Q4_K" if grouped >= GROUPED else "Q3_K",
            "Q3_K_M": "Q5_K" if layer < 2 else "Q4_K",
            "Q3_K_L": "Q5_K",
            "IQ4_XS": "Q5_K" if grouped >= GROUPED else base,
            "Q4_K_M": "Q6_K" if more else base,
            "Q5_K_M": "Q6_K" if more else base,
            "Q4_K_S": "Q5_K" if layer < 4 else base,
        }.get(mix, base)
        return "Q5_K" if layers == LAYERS_OF_70B and grouped == 8 and kind in ("Q3_K", "Q4_K") else kind
    if is_attention and last in KEYS and eight:
        return "Q8_0"
    if is_attention and last in FUSED:
        return {"Q3_K_M": "Q4_K", "Q3_K_L": "Q4_K", "Q4_K_M": "Q5_K", "Q5_K_M": "Q6_K"}.get(mix, base)
    if is_attention and last in OUT:
        if eight and mix in ("Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M", "IQ4_XS"):
            return "Q5_K"
        return {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}.get(mix, base)
    if not is_attention and last in DOWN:
        first = layer < layers // 8
        return {
            "Q2_K": "Q3_K",
            "Q3_K_M": "Q5_K" if layer < layers // 16 else "Q4_K",
            "Q3_K_L": "Q5_K",
            "Q4_K_M": "Q6_K" if more else base,
            "Q5_K_M": "Q6_K" if more else base,
            "Q4_K_S": "Q5_K" if first else base,
            "IQ4_XS": "Q5_K" if first else base,
        }.get(mix, base)
    return base


LAYERS_OF_70B = 80
"""Layers of the Llama that llama.cpp calls 70B, whose values' projections it gives more bits."""


def _all_layers(scheme: Scheme, graph: OpGraph) -> Choose:
    """Return one scheme for the linear layers and experts inside repeated layers."""
    return lambda weight: scheme if weight.role in ("linear", "experts") else None


_FP8 = "float8_e4m3fn"
_FP4 = "float4_e2m1fn_x2"

PRESETS: Mapping[str, Callable[[OpGraph], Choose]] = {
    "awq": partial(_all_layers, Scheme(4, 128, zero_point_bits=4)),
    "gptq": partial(_all_layers, Scheme(4, 128, zero_point_bits=4)),
    "nf4": partial(_all_layers, Scheme(4, 64, scale_bits=32)),
    "fp8": partial(_all_layers, Scheme(8, -1, 32, activations=8, dtype=_FP8, activation_scale_bits=32)),
    "fp8_block": partial(
        _all_layers,
        Scheme(8, 128, 32, columns=128, activations=8, dtype=_FP8, activation_group=128, activation_scale_bits=32),
    ),
    "mxfp4": partial(_all_layers, Scheme(4, 32, scale_bits=8)),
    "nvfp4": partial(
        _all_layers,
        Scheme(4, 16, 8, activations=4, dtype=_FP4, activation_group=16, activation_scale_bits=8),
    ),
    **{mix: partial(gguf, mix) for mix in BASE},
}
"""Ways to store all weights, by the name that `quantise:preset=` takes."""
