"""What the modules of a model say of themselves, as `transformers` modules do.

Example: ``[module.window for module in attention_modules(model)]``
"""

from collections.abc import Iterator
from typing import Any

from torch import nn

from roofline.graph.op import AttentionModule


def attention_modules(model: nn.Module) -> Iterator[AttentionModule]:
    """Modules that say whether their attention is causal, as `transformers` attention modules do, with their window."""
    for path, module in model.named_modules():
        if not isinstance(getattr(module, "is_causal", None), bool):
            continue
        config = getattr(module, "config", None)
        if hasattr(module, "sliding_window"):
            window = module.sliding_window
        elif getattr(config, "layer_types", None) is None and getattr(config, "use_sliding_window", True):
            window = getattr(config, "sliding_window", None)
        else:
            window = None
        yield AttentionModule(
            path=path, causal=bool(module.is_causal), window=window if isinstance(window, int) else None
        )


def experts_per_token(model: nn.Module) -> int:
    """Experts that a token chooses, by the names that `transformers` configurations use; 1 without experts."""
    config: Any = getattr(model, "config", None)
    if config is not None and hasattr(config, "get_text_config"):
        config = config.get_text_config()
    for name in (
        "num_experts_per_tok",
        "numexperts_per_token",
        "experts_per_token",
        "moe_topk",
        "moe_top_k",
        "top_k_experts",
    ):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return 1


def heads(model: nn.Module) -> tuple[int, int] | None:
    """(query, key-value) heads of the decoder's config; None where it names none."""
    config: Any = getattr(model, "config", None)
    if config is None or not hasattr(config, "get_text_config"):
        return None
    decoder = config.get_text_config(decoder=True)
    try:
        query = getattr(decoder, "num_attention_heads", None)
        shared = getattr(decoder, "num_key_value_heads", None)
    except RuntimeError:  # AmbiguousGlobalPerLayerAttributeError of transformers: it differs between layers
        return None
    if not isinstance(query, int):
        return None
    return query, shared if isinstance(shared, int) else query
