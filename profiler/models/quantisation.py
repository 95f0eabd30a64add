"""Reads the quantisation settings of a checkpoint: those of every method that public checkpoints use.

The settings stand in a field of `config.json`, or in a file of their own beside it (`SIDE_FILES`). Each method has one
reader in `METHODS`, which says what is stored for a group of weights: bits, scales, zero points, and the bits of the
inputs where the product runs in fewer too.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from profiler.models.checkpoint import ALL, DECODER, Checkpoint, Rule
from profiler.models.config import Settings, method_of
from profiler.models.quantised_fields import (
    bits_of,
    block_of,
    digits_of,
    group_of,
    kept_of,
    mean_bits_of,
    scheme_of,
    whole_of,
)
from profiler.record.run import RequestError
from roofline.whatif.quantise import Format
from roofline.whatif.scheme import Scheme


def read_bits(name: str, settings: Settings) -> Checkpoint | None:
    """Return how a checkpoint is stored; None where its method is not known, or the settings leave all as it was.

    Raises: RequestError, one line, for settings that cannot be read.
    """
    method = method_of(settings)
    if isinstance(inner := settings.get("quantization"), dict):  # ModelOpt's own file
        settings = inner
    reader = METHODS.get(method.replace("_", "-"), _plain)
    try:
        if reader is _plain and mean_bits_of(settings) is None:
            return None
        return reader(method, settings)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else str(error)
        raise RequestError(
            f"{name}: the quantisation settings ({method}) cannot be read ({why}); repair them, "
            "or add --bits-of-checkpoint no"
        ) from error


def _plain(method: str, settings: Settings) -> Checkpoint:
    """Weights in groups with one scale each: HQQ, HIGGS, EXL2, and methods that are only known by their bits."""
    group = group_of(settings, 128)
    bits = mean_bits_of(settings) or 16
    mixed = bits % 1 * group  # EXL2 mixes bits, of which it gives the mean
    return Checkpoint(method, scheme_of(int(bits), group, scale=mixed or 16), rules=kept_of(settings))


def _awq(method: str, settings: Settings) -> Checkpoint:
    """AWQ: integers with a 16-bit scale, and a zero point of the weights' own bits, for each group."""
    bits = bits_of(settings) or 4
    group = group_of(settings, 128, "q_group_size" if "q_group_size" in settings else "group_size")
    zero = bits if settings.get("zero_point", True) else 0
    return Checkpoint(method, scheme_of(bits, group, zero=zero), rules=kept_of(settings))


def _gptq(method: str, settings: Settings) -> Checkpoint:
    """GPTQ and AutoRound: as AWQ, zero points stored even where all are the same; `dynamic` has rules by layer."""
    bits, group = bits_of(settings) or 4, group_of(settings, 128)
    rules: list[Rule] = []
    for pattern, own in (settings.get("dynamic") or settings.get("extra_config") or {}).items():
        of_layer = bits_of(own) if isinstance(own, dict) else None
        size = group_of(own, group) if isinstance(own, dict) else group
        skipped = pattern.startswith("-:") or (not of_layer and not own)
        scheme = None if skipped else scheme_of(of_layer or bits, size, zero=of_layer or bits)
        stem = pattern[2:] if pattern.startswith(("-:", "+:")) else pattern
        rules.append(Rule(f"re:{stem}" if "dynamic" in settings else stem, scheme))
    roles = DECODER | {"head", "tied"} if settings.get("lm_head") is True else DECODER
    return Checkpoint(method, scheme_of(bits, group, zero=bits), roles, (*rules, *kept_of(settings)))


def _bitsandbytes(method: str, settings: Settings) -> Checkpoint:
    """NF4 or FP4 in blocks of 64 with fp32 scales, or 8-bit scales of blocks of 256 scales (QLoRA, arXiv 2305.14314);
    LLM.int8() (arXiv 2208.07339) multiplies 8-bit inputs."""
    rules = kept_of(settings, "llm_int8_skip_modules", "modules_to_not_convert")
    if settings.get("load_in_8bit") or settings.get("_load_in_8bit"):
        return Checkpoint("bitsandbytes int8", scheme_of(8, -1, scale=32, inputs=8), rules=rules)
    if not (settings.get("load_in_4bit") or settings.get("_load_in_4bit")):
        raise ValueError("neither load_in_8bit nor load_in_4bit is true")
    scale = 8 + 32 / 256 if settings.get("bnb_4bit_use_double_quant") else 32
    kind = settings.get("bnb_4bit_quant_type") or "fp4"
    return Checkpoint(f"bitsandbytes {kind}", scheme_of(4, 64, scale=scale, form="float"), rules=rules)


def _fp8(method: str, settings: Settings) -> Checkpoint:
    """Float8 with a scale a matrix, or a block with inputs in groups as long (DeepSeek-V3, arXiv 2412.19437, 3.3.2)."""
    static = settings.get("activation_scheme") == "static"
    if block := block_of(settings, "weight_block_size"):
        columns, group = block
        scheme = scheme_of(8, group, scale=32, form="float", inputs=8, columns=columns, input_group=group)
    else:
        scheme = scheme_of(8, 0, scale=32, form="float", inputs=8, input_group=0 if static else -1)
    return Checkpoint(method, scheme, rules=kept_of(settings))


def _fbgemm_fp8(method: str, settings: Settings) -> Checkpoint:
    """Float8 with a scale a column and inputs with a scale a token."""
    return Checkpoint(method, scheme_of(8, -1, scale=32, form="float", inputs=8), rules=kept_of(settings))


MXFP4 = scheme_of(4, 32, scale=8, form="float")
"""4-bit floats with an 8-bit exponent for each 32 (OCP Microscaling Formats v1.0)."""


def _mxfp4(method: str, settings: Settings) -> Checkpoint:
    """MXFP4 of gpt-oss: experts alone."""
    return Checkpoint(method, MXFP4, frozenset({"experts"}), kept_of(settings))


def _compressed(method: str, settings: Settings) -> Checkpoint:
    """compressed-tensors, and ModelOpt's and Quark's settings in its form: groups of layers with a scheme each."""
    groups = settings.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise ValueError("config_groups is no object of groups")
    default, roles, rules = None, frozenset[str](), []
    for group in groups.values():
        scheme = _tensors(group.get("weights") or {}, group.get("input_activations"), settings.get("format", ""))
        for target in group.get("targets") or ("Linear",):
            if target in CLASSES:
                default, roles = scheme, roles | CLASSES[target]
            else:
                rules.append(Rule(target, scheme))
    kv, sparsity = settings.get("kv_cache_scheme") or {}, settings.get("sparsity_config") or {}
    if (form := sparsity.get("format", "dense")) != "dense":
        method += f"; its sparsity, {form}, is not priced: --what-if sparsify_2_4 halves what is read and computed"
    return Checkpoint(method, default, roles, (*kept_of(settings), *rules), bits_of(kv))


CLASSES = {"Linear": DECODER, "Embedding": frozenset({"embedding"})}
"""Classes of modules that a target may name, as roles of weights."""


def _tensors(weights: Settings, inputs: Settings | None, stored: str) -> Scheme | None:
    """A scheme from the arguments of compressed-tensors for weights and inputs."""
    bits = bits_of(weights)
    if bits is None:
        return None
    form: Format = "float" if weights.get("type") == "float" else "int"
    strategy = weights.get("strategy") or ("group" if weights.get("group_size") else "channel")
    narrow = bits_of(inputs) if inputs else None
    static = inputs is not None and inputs.get("dynamic") is False
    if (bits == 4 and form == "float") or "mxfp8" in stored:
        group = group_of(weights, 16)
        return scheme_of(bits, group, scale=8, form=form, inputs=narrow, input_group=group)
    zero = bits if weights.get("symmetric") is False else 0
    if strategy == "block" and (block := block_of(weights, "block_structure")):
        columns, group = block
        return scheme_of(bits, group, form=form, inputs=narrow, columns=columns, input_group=group)
    group = {"tensor": 0, "channel": -1}.get(strategy, group_of(weights, 128))
    return scheme_of(bits, group, zero=zero, form=form, inputs=narrow, input_group=0 if static else -1)


NVFP4 = scheme_of(4, 16, scale=8, form="float")
"""4-bit floats with an fp8 scale for each 16."""

ALGORITHMS: dict[str, Scheme | None] = {
    "fp8": scheme_of(8, 0, scale=32, form="float", inputs=8, input_group=0),
    "fp8-per-channel-per-token": scheme_of(8, -1, scale=32, form="float", inputs=8),
    "fp8-pb-wo": scheme_of(8, 128, scale=32, form="float", columns=128),
    "fp8-pb-real": scheme_of(8, 128, scale=32, form="float", inputs=8, columns=128, input_group=128),
    "mxfp8": scheme_of(8, 32, scale=8, form="float", inputs=8, input_group=32),
    "nvfp4": scheme_of(4, 16, scale=8, form="float", inputs=4, input_group=16),
    "nvfp4-awq": scheme_of(4, 16, scale=8, form="float", inputs=4, input_group=16),
    "w4a16-nvfp4": NVFP4,
    "w4a8-nvfp4-fp8": scheme_of(4, 16, scale=8, form="float", inputs=8, input_group=0),
    "w4a8-mxfp4-fp8": scheme_of(4, 32, scale=8, form="float", inputs=8, input_group=0),
    "mxfp4": scheme_of(4, 32, scale=8, form="float", inputs=4, input_group=32),
    "w4a16-awq": scheme_of(4, 128),
    "int4-awq": scheme_of(4, 128),
    "w4a8-awq": Scheme(4, 128, activations=8, dtype="float8_e4m3fn", activation_group=0),
    "w8a16": scheme_of(8, -1),
    "int8-wo": scheme_of(8, -1),
    "int8-sq": scheme_of(8, -1, inputs=8, input_group=0),
    "w8a8-sq-per-channel": scheme_of(8, -1, inputs=8, input_group=0),
    "w8a8-sq-per-channel-per-token-plugin": scheme_of(8, -1, inputs=8),
}
"""Schemes by ModelOpt's names (modelopt/torch/export, `QUANTIZATION_*`), with - for _."""

KV_ALGORITHMS = {"fp8": 8, "int8": 8, "nvfp4": 4, "fp8-affine": 8, "nvfp4-affine": 4}


def _modelopt(method: str, settings: Settings) -> Checkpoint:
    """ModelOpt: an algorithm for all layers, or one for each layer."""
    algorithm = settings.get("quant_algo")
    kv_name = settings.get("kv_cache_quant_algo")
    scheme_of_kv = settings.get("kv_cache_scheme")
    kv = KV_ALGORITHMS.get(_key(kv_name)) if kv_name else bits_of(scheme_of_kv) if scheme_of_kv else None
    if algorithm is None and settings.get("config_groups"):
        return replace(_compressed(method, settings), kv_bits=kv)
    if algorithm is None:
        return Checkpoint(method, kv_bits=kv)
    layers = settings.get("quantized_layers") or {}
    rules = [Rule(layer, _algorithm(own)) for layer, own in layers.items()]
    mixed = _key(algorithm) == "mixed-precision"
    default = None if mixed else _algorithm(settings)
    return Checkpoint(f"{method} {algorithm}", default, rules=(*kept_of(settings), *rules), kv_bits=kv)


def _key(name: Any) -> str:
    return str(name).lower().replace("_", "-")


def _algorithm(settings: Settings) -> Scheme | None:
    name = settings.get("quant_algo")
    if name is None:
        return None
    if _key(name) not in ALGORITHMS:
        raise ValueError(f"quant_algo {name!r} is unknown")
    scheme = ALGORITHMS[_key(name)]
    if scheme is None or scheme.group < 1 or not settings.get("group_size"):
        return scheme
    return replace(scheme, group=group_of(settings, scheme.group))


def _mlx(method: str, settings: Settings) -> Checkpoint:
    """MLX: every linear layer and embedding, a 16-bit scale and bias a group; modes of block floats have no biases."""

    def scheme(own: Settings) -> Scheme | None:
        mode, bits = own.get("mode", settings.get("mode", "affine")), bits_of(own) or bits_of(settings) or 4
        group = group_of(own, group_of(settings, 64))
        if mode == "affine":
            return scheme_of(bits, group, scale=16, zero=16)
        return scheme_of(bits, group, scale=8, form="float")

    plain = ("bits", "group_size", "mode", "quant_method", "linear_class", "quantize_input", "quantize_output")
    rules = []
    for path, own in settings.items():
        if path not in plain and isinstance(own, bool | dict):
            rules.append(Rule(path, scheme(own) if isinstance(own, dict) else scheme(settings) if own else None))
    return Checkpoint(method, scheme(settings), ALL, tuple(rules))


def _hqq(method: str, settings: Settings) -> Checkpoint:
    """HQQ: a 16-bit scale and zero point a group; settings for all layers, or by the last names of modules."""
    inner = settings.get("quant_config") or settings

    def scheme(own: Settings) -> Scheme | None:
        own = own.get("weight_quant_params") or own
        return scheme_of(bits_of(own) or 4, group_of(own, 64), scale=16, zero=16)

    if "weight_quant_params" in inner or bits_of(inner):
        return Checkpoint(method, scheme(inner), rules=kept_of(settings))
    rules = tuple(Rule(name, scheme(own)) for name, own in inner.items() if isinstance(own, dict))
    return Checkpoint(method, rules=(*kept_of(settings), *rules))


def _quanto(method: str, settings: Settings) -> Checkpoint:
    """Quanto: weights of a named type, 8 bits by column, fewer in groups of 128 with a shift."""
    weights, inputs = settings.get("weights") or "int8", settings.get("activations")
    bits = digits_of(weights)
    narrow = digits_of(inputs) if inputs else None
    form: Format = "float" if "float" in weights else "int"
    by_column = scheme_of(8, -1, form=form, inputs=narrow, input_group=0)
    scheme = by_column if bits == 8 else scheme_of(bits, 128, zero=16)
    return Checkpoint(method, scheme, rules=kept_of(settings))


def _torchao(method: str, settings: Settings) -> Checkpoint:
    """torchao: a config by its class, or by its old name in words, for all layers or for named ones."""
    kind = settings.get("quant_type")
    inner: Settings = kind.get("default", kind) if isinstance(kind, dict) else {"_type": str(kind), "_data": settings}
    own = settings.get("quant_type_kwargs") or {}
    roles = DECODER | {"head", "embedding", "tied"} if settings.get("include_input_output_embeddings") else DECODER
    named = inner.get("_data", {}).get("module_fqn_to_config") or inner.get("_data", {}).get("fqn_to_config")
    if named is None:
        return Checkpoint(method, _torchao_scheme(inner, own), roles, kept_of(settings))
    rules = [Rule(path, _torchao_scheme(part, {}) if part else None) for path, part in named.items()]
    default = next((rule.scheme for rule in rules if rule.pattern == "_default"), None)
    return Checkpoint(method, default, roles, (*kept_of(settings), *(r for r in rules if r.pattern != "_default")))


def _torchao_scheme(config: Settings, own: Settings) -> Scheme | None:
    name = re.sub(r"[^a-z0-9]", "", str(config.get("_type", "")).lower()).removesuffix("config")
    data = {**(config.get("_data") or {}), **own}
    group = group_of(data, 128) if data.get("group_size") else 128
    if "int4weightonly" in name or "intxweightonly" in name:
        return scheme_of(4, group, scale=16, zero=16)
    schemes = {
        "int8weightonly": scheme_of(8, -1),
        "int8dynamicactivationint8weight": scheme_of(8, -1, inputs=8),
        "int8dynamicactivationint4weight": scheme_of(4, data.get("group_size") or 32, inputs=8),
        "int8dynamicactivationintxweight": scheme_of(4, data.get("group_size") or 32, inputs=8),
        "float8weightonly": scheme_of(8, -1, form="float"),
        "float8dynamicactivationfloat8weight": scheme_of(8, -1, scale=32, form="float", inputs=8),
        "float8staticactivationfloat8weight": scheme_of(8, 0, scale=32, form="float", inputs=8, input_group=0),
        "float8dynamicactivationint4weight": Scheme(4, 128, activations=8, dtype="float8_e4m3fn"),
        "nvfp4inference": ALGORITHMS["nvfp4"],
        "nvfp4dynamicactivationnvfp4weight": ALGORITHMS["nvfp4"],
        "mxfpinference": ALGORITHMS["mxfp8"],
    }
    if name not in schemes:
        raise ValueError(f"quant_type {config.get('_type')!r} is unknown")
    return schemes[name]


def _eetq(method: str, settings: Settings) -> Checkpoint:
    """EETQ: 8-bit weights by column."""
    return Checkpoint(method, scheme_of(8, -1), rules=kept_of(settings))


def _bitnet(method: str, settings: Settings) -> Checkpoint:
    """BitNet (arXiv 2402.17764): ternary weights, four in a byte, a scale a matrix, and inputs of 8 bits."""
    scheme = Scheme(2, 0, activations=8, dtype="int8")
    return Checkpoint(method, scheme, rules=kept_of(settings))


def _aqlm(method: str, settings: Settings) -> Checkpoint:
    """AQLM (arXiv 2401.06118): codes of a few codebooks for each group, and a scale a column."""
    codes = whole_of(settings, "num_codebooks", 1) * whole_of(settings, "nbits_per_codebook", 16)
    bits = max(1, codes // whole_of(settings, "in_group_size", 8))
    return Checkpoint(method, scheme_of(bits, -1), rules=kept_of(settings, "linear_weights_not_to_quantize"))


def _fp_quant(method: str, settings: Settings) -> Checkpoint:
    """FP-Quant: MXFP4 or NVFP4 of weights and inputs."""
    kind = str(settings.get("forward_dtype") or "nvfp4")
    return Checkpoint(method, ALGORITHMS["mxfp4" if "mx" in kind else "nvfp4"], rules=kept_of(settings))


def _quark(method: str, settings: Settings) -> Checkpoint:
    """Quark: a scheme for all layers and others for named ones."""

    def scheme(own: Settings) -> Scheme | None:
        weight, inputs = own.get("weight"), own.get("input_tensors")
        weight = weight[0] if isinstance(weight, list) else weight
        inputs = inputs[0] if isinstance(inputs, list) else inputs
        if not weight:
            return None
        bits = digits_of(weight["dtype"])
        form: Format = "float" if "fp" in weight["dtype"] else "int"
        narrow = digits_of(inputs["dtype"]) if inputs else None
        group = {"per_tensor": 0, "per_channel": -1}.get(weight.get("qscheme"), group_of(weight, 32))
        in_groups = group if 0 < group <= 32 else -1
        scale = 8 if weight.get("scale_format") == "e8m0" else 16
        return scheme_of(bits, group, scale=scale, form=form, inputs=narrow, input_group=in_groups)

    rules = [Rule(path, scheme(own)) for path, own in (settings.get("layer_quant_config") or {}).items()]
    return Checkpoint(
        method, scheme(settings.get("global_quant_config") or {}), rules=(*kept_of(settings, "exclude"), *rules)
    )


METHODS: dict[str, Callable[[str, Settings], Checkpoint]] = {
    "awq": _awq,
    "gptq": _gptq,
    "gptqmodel": _gptq,
    "auto-round": _gptq,
    "intel/auto-round": _gptq,
    "bitsandbytes": _bitsandbytes,
    "fp8": _fp8,
    "finegrained-fp8": _fp8,
    "fbgemm-fp8": _fbgemm_fp8,
    "mxfp4": _mxfp4,
    "compressed-tensors": _compressed,
    "modelopt": _modelopt,
    "modelopt-fp4": _modelopt,
    "mlx": _mlx,
    "hqq": _hqq,
    "quanto": _quanto,
    "torchao": _torchao,
    "eetq": _eetq,
    "bitnet": _bitnet,
    "aqlm": _aqlm,
    "fp-quant": _fp_quant,
    "quark": _quark,
    "higgs": _plain,
    "exl2": _plain,
    "exl3": _plain,
}
"""How the settings of each method are read, by `quant_method` with - for _."""
