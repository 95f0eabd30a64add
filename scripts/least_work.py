"""Oracles of the ideal form that use neither a trace nor `roofline`: the model's parameters, its cache, its config.

A decode step of one token at least

- multiplies its vector by each weight that the token passes, of experts by those that it chooses: 2 FLOPs a parameter;
- reads each recurrent state once, and writes it once;
- leaves in the cache what the config says of a token, for as many tokens as each layer can still see.

`least_work` gives what the ideal graph does ÷ that: 1 where the ideal form is right. `EXPLAINED` has the types where it
is not, and why.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from roofline.graph.memory import footprint
from roofline.graph.op import COMPRESSED, KEYS, VALUES, Kind, OpGraph

WITHIN = 0.003
"""Largest distance from 1 of the products that is no fault: an absorbed latent scores in its own width (0.2 %)."""
PER_STATE = 6.0
"""FLOPs for each element of a state that the recurrence adds to the products with weights, at most: a product that
brings the token in, one that reads it out, and the delta rule's prediction."""
WINDOW = 8
"""Tokens of the windows of a checked config, fewer than the decode step has."""

TOKENS = (KEYS, VALUES)
"""Ends of the names of what a cache keeps of every token."""
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts")
CHOSEN = (
    "num_experts_per_tok", "moe_topk", "moe_top_k", "moe_k", "top_k", "num_experts_per_token", "top_k_experts",
)  # fmt: skip
"""Fields with the number of experts of a layer, and of those that a token chooses."""
LAYERS = ("decoder_layers", "num_hidden_layers", "n_layer", "num_layers")
KINDS = ("layer_types", "layers_block_type")
HEADS = ("num_attention_heads", "decoder_attention_heads", "attention_heads", "n_head")
KV_HEADS = ("num_key_value_heads", "num_kv_heads", "kv_n_heads")
HEAD_DIM = ("head_dim", "attention_head_dim", "kv_channels")
HIDDEN = ("hidden_size", "d_model", "n_embd")
WINDOWS = ("sliding_window", "attention_window_size", "sliding_window_size", "attention_chunk_size")

_STATES = "it caches hidden states, and makes keys and values of all of them again in each step"

EXPLAINED: Mapping[str, Mapping[str, str]] = {
    "cpmant": {"keys": "the cache also holds the 32 tokens of the prompt that comes before each text"},
    "doge": {"products": "experts are chosen by products with two sets of keys, which is more than a router"},
    "dots3_note": {"keys": "the keys of its index are float32"},
    "dots3_note_text": {"keys": "the keys of its index are float32"},
    "prophetnet": {"products": "three streams run in each step: one of the text, two that predict further tokens"},
    "recurrent_gemma": {
        "state_written": "a step writes a column of its convolution's window",
        "keys": "the window of its convolution is held with the column that has left it",
    },
    "reformer": {"products": _STATES, "state_written": "it appends a row to what it caches", "keys": _STATES},
    "xlnet": {"products": _STATES, "state_written": "its memory is that of the step before", "keys": _STATES},
}
"""Type -> ratio -> the reason why it is not 1."""

BUFFERS = ("buffer_", "overlap_")
"""Beginnings of the names of what a cache keeps of tokens until they make an entry: a step adds to it, and reads it
when it is full."""


def short_windows(config: PretrainedConfig) -> None:
    """Make windows shorter than the decode step's context; the size of no parameter depends on them."""
    for part in _parts(config):
        for name in WINDOWS:
            if isinstance(value := getattr(part, name, None), int) and value > WINDOW:
                setattr(part, name, WINDOW)


def least_work(
    model: PreTrainedModel, graph: OpGraph, cache: Iterable[tuple[int, str, Tensor]]
) -> dict[str, float | None]:
    """Return what the ideal `graph` of one sequence's decode step does ÷ the least; None without such a part.

    Args: `cache` has (layer, attribute, tensor) of the cache before the step.
    """
    config, tokens = model.config, graph.workload.context_tokens + graph.workload.query_tokens
    cached = {f"{layer}.{name}": tensor for layer, name, tensor in cache}
    buffers = {name for name in cached if name.partition(".")[2].startswith(BUFFERS)}
    entries = {name for name in cached if f".{COMPRESSED}." in name}
    states = {name: t for name, t in cached.items() if name not in buffers | entries and not name.endswith(TOKENS)}
    elements = sum(state.numel() for state in states.values())
    size = sum(state.nbytes for state in states.values())
    floor = 2.0 * sum(_passed(model, config, frozenset(graph.inactive)))
    flops = sum(op.matrix_flops * op.count for op in graph.ops) - _scores(graph)
    flops -= min(max(0.0, flops - floor), PER_STATE * elements)
    moved = {
        which: sum(
            a.bytes * op.count
            for op in graph.ops
            for a in getattr(op, which)
            if graph.tensors[a.tensor].role == "kv" and graph.tensors[a.tensor].name in states
        )
        for which in ("reads", "writes")
    }
    keys = sum(_cached(config, tokens)) * (2 if graph.workload.dtype == "bfloat16" else 4)
    return {
        "products": flops / floor,
        "state_read": moved["reads"] / size if size else None,
        "state_written": moved["writes"] / size if size else None,
        "keys": (footprint(graph).kv_cache - size - _last(graph, buffers)) / keys if keys else None,
    }


def _last(graph: OpGraph, names: Iterable[str]) -> float:
    """Return the bytes of these parts of the cache after the step."""
    size = {tensor.name: tensor.storage_bytes for tensor in graph.tensors if tensor.role == "kv"}
    return sum(size[name] for name in names)


def faults(name: str, ratios: Mapping[str, float | None]) -> list[str]:
    """A sentence for each ratio of a type that is not 1 and not explained."""
    wrong = []
    for key, ratio in ratios.items():
        most = WITHIN if key == "products" else 1e-6
        if ratio is not None and abs(ratio - 1) > most and key not in EXPLAINED.get(name, {}):
            wrong.append(f"ideal {key.replace('_', ' ')} ÷ least is {ratio:.4g}")
    return wrong


def _parts(config: PretrainedConfig) -> Iterator[PretrainedConfig]:
    """The decoder's config and those inside it: DBRX keeps its experts in `ffn_config`."""
    decoder = config.get_text_config(decoder=True)
    yield decoder
    yield from (value for value in vars(decoder).values() if isinstance(value, PretrainedConfig))


def _field(config: PretrainedConfig, names: Iterable[str]) -> int | None:
    """The first of some fields that the decoder's config, or a part of it, has; of a list its largest value."""
    for part in _parts(config):
        for name in names:
            value = getattr(part, name, None)
            if isinstance(value, list) and value and all(isinstance(one, int) for one in value):
                value = max(value)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return None


def _passed(model: nn.Module, config: PretrainedConfig, unused: frozenset[str]) -> Iterator[float]:
    """Elements of each matrix that a token is multiplied by, once for each place in which it stands; of experts those
    of the chosen."""
    experts, chosen = _field(config, EXPERTS), _field(config, CHOSEN)
    zero = getattr(config.get_text_config(decoder=True), "zero_expert_num", 0) or 0  # chosen, but without weights
    share = chosen / (experts + zero) if experts and chosen else 1.0
    for path, module in model.named_modules(remove_duplicate=False):
        for name, parameter in module.named_parameters(recurse=False):
            place = f"{path}.{name}".strip(".")
            if parameter.dim() < 2 or name.endswith("bias") or isinstance(module, nn.Embedding) or place in unused:
                continue
            stacked = parameter.dim() == 3 and experts and parameter.shape[0] >= experts
            if stacked or "experts" in place.split("."):
                padding = parameter.shape[0] / experts if stacked and experts else 1.0
                yield parameter.numel() * share / padding
            else:
                yield float(parameter.numel()) * _runs(path, config)


def _runs(path: str, config: PretrainedConfig) -> int:
    """How often a step runs a module: HRM's low stack in each low cycle of a high one, its high stack in each high."""
    high, low = getattr(config, "H_cycles", 1), getattr(config, "L_cycles", 1)
    return high * low if ".L_module." in path else high if ".H_module." in path else 1


def _scores(graph: OpGraph) -> float:
    """FLOPs of attention itself, queries × keys and × values, in the heads of the model."""
    tokens = graph.workload.context_tokens + graph.workload.query_tokens
    total = 0.0
    for op in graph.ops:
        if op.kind is Kind.ATTENTION:
            d = op.dims
            whole = 2.0 * d.get("pairs", tokens) * d.get("batch", graph.workload.batch) * d["heads"]
            total += min(op.matrix_flops, whole * (d["head_dim"] + d["value_dim"])) * op.count
    return total


def _cached(config: PretrainedConfig, tokens: int) -> Iterator[float]:
    """Elements that each layer's cache holds after a step of one sequence, by the config's own fields."""
    decoder = config.get_text_config(decoder=True)
    window = _field(config, WINDOWS)
    layers = getattr(decoder, "per_layer_config", None) or ()
    for layer, kind in _kinds(decoder):
        sees_all = not (kind == "" or any(word in kind for word in ("sliding", "local", "chunk", "compressed")))
        if kind == "" and getattr(decoder, "use_sliding_window", True) is False:
            sees_all = True
        held = tokens if sees_all or window is None else min(tokens, window)
        own = layers[layer] if layer < len(layers) else decoder
        yield held * OWN.get(decoder.model_type, _width)(own, kind)
        rate = (getattr(decoder, "compress_rates", None) or {}).get(kind, 1)  # tokens for an entry beside a window
        yield tokens // rate * (_indexed(decoder, kind, layer) + (decoder.head_dim if rate > 1 else 0))


def _kinds(decoder: Any) -> list[tuple[int, str]]:
    """(layer, kind) of the layers that cache keys; the kind is "" where the config tells none apart."""
    own = (_field(decoder, LAYERS) or 0) - (getattr(decoder, "num_kv_shared_layers", 0) or 0)
    return [(layer, kind) for layer, kind in _attending(decoder) if layer < own]  # the last layers share others' keys


def _attending(decoder: Any) -> list[tuple[int, str]]:
    layers = range(_field(decoder, LAYERS) or 0)
    for name in KINDS:
        kinds = getattr(decoder, name, None)
        if isinstance(kinds, list | tuple) and len(kinds) == len(layers):
            return [
                (layer, kind)
                for layer, kind in enumerate(kinds)
                if ("attention" in kind and "linear" not in kind) or "hybrid" in kind
            ]
    if places := getattr(decoder, "attn_layer_indices", None):
        return [(layer, "full") for layer in places if layer in layers]
    if period := getattr(decoder, "attn_layer_period", None):
        return [(layer, "full") for layer in layers if layer % period == decoder.attn_layer_offset]
    if pattern := getattr(decoder, "block_types", None):
        return [(layer, "sliding") for layer in layers if pattern[layer % len(pattern)] == "attention"]
    across = getattr(decoder, "cross_attention_layers", None) or ()  # keys of an image, which a text has not
    return [(layer, "") for layer in layers if layer not in across]


def _width(decoder: Any, kind: str) -> float:
    """Elements of a token's keys and values in a layer: of a latent with its rotary part, or of all heads."""
    if getattr(decoder, "kv_lora_rank", None):
        return float(decoder.kv_lora_rank + decoder.qk_rope_head_dim)
    heads = _field(decoder, HEADS) or 0
    shared = 1 if getattr(decoder, "multi_query", False) else _field(decoder, KV_HEADS) or heads
    head_dim = _field(decoder, HEAD_DIM) or (_field(decoder, HIDDEN) or 0) // max(heads, 1)
    return float(shared * (head_dim + (getattr(decoder, "v_head_dim", None) or head_dim)))


def _indexed(decoder: Any, kind: str, layer: int) -> int:
    """Elements of a token's key of an index for sparse attention; "shared" layers use the one of a layer below."""
    has_index = "index" in kind or "sparse" in kind or not getattr(decoder, "layer_types", None)
    kinds = getattr(decoder, "indexer_types", None)
    if not has_index or (kinds and kinds[layer] == "shared"):
        return 0
    return int(getattr(decoder, "index_head_dim", None) or getattr(decoder, "indexer_head_dim", None) or 0)


def _sliding_heads(decoder: Any, kind: str) -> float:
    """Windowed layers with heads of their own (MiMo-V2, Inkling)."""
    if "sliding" not in kind:
        return _width(decoder, kind)
    head_dim = decoder.swa_head_dim
    return float(decoder.swa_num_key_value_heads * (head_dim + (getattr(decoder, "swa_v_head_dim", None) or head_dim)))


OWN: Mapping[str, Callable[[Any, str], float]] = {
    "deepseek_v4": lambda layer, kind: float(layer.head_dim),  # one head, whose keys are its values too
    "mimo_v2_flash": lambda layer, kind: _width(layer, kind) * (2 if "sliding" in kind else 1),  # twice the heads
    "inkling2_text": _sliding_heads,
    "inkling_text": _sliding_heads,
}
"""Types whose layers cache something else than heads × width, by the fields of their config."""
