"""A model as a serving engine runs it, from a trace of its first layers.

Layers of one kind have weights of the same shapes and the same mask, so a few layers stand for all: the model is cut
behind the last new kind of layer, which makes tracing DeepSeek-V3 a matter of a second.

Example: ``served_model("llama-3.1-70b", 8)`` → `roofline.serving.shape.Served`, one of eight ranks
"""

import re
from collections import Counter
from functools import cache

from torch import nn

from profiler.models.attention import attention_modules
from profiler.models.build import DEFAULT, build_meta
from profiler.models.catalogue import catalogue, find
from profiler.models.graphs import ModelGraphs, Tracing
from profiler.models.resolve import layer_count, resolve, truncate
from profiler.record.run import RequestError
from roofline.fusion.fuse import fused
from roofline.graph.op import OpGraph, layer_of
from roofline.serving.shape import Served, served
from roofline.whatif.tensor_parallel import tensor_parallel
from roofline.workload import Workload

TRACED = Workload(batch=4, query_tokens=1, context_tokens=1024, dtype="bfloat16")
"""The pass that is traced; the kernels' sizes do not depend on it."""


@cache
def _traced(name: str) -> tuple[OpGraph, dict[int, float]]:
    """A decode pass of the first layers, and the number of layers for which each stands."""
    config = resolve(name).config
    whole = build_meta(config, TRACED.dtype, DEFAULT, DEFAULT)
    kinds = _kinds(whole)
    firsts = {kind: index for index, kind in reversed(kinds.items())}
    cut = min(max(firsts.values(), default=0) + 1, layer_count(config))
    counts = Counter(kinds.values())
    graphs = ModelGraphs(truncate(config, cut), name, Tracing(dtype=TRACED.dtype))
    return graphs.whole(TRACED), {index: float(counts[kind]) for kind, index in firsts.items()}


def _kinds(model: nn.Module) -> dict[int, tuple[object, ...]]:
    """Return what tells layers apart, by layer: shapes of weights, and the mask."""
    shapes: dict[int, list[object]] = {}
    for path, weight in model.named_parameters():
        if place := layer_of(path):
            shapes.setdefault(place.layer, []).append((place.inner, tuple(weight.shape)))
    for module in attention_modules(model):
        if place := layer_of(module.path):
            shapes.setdefault(place.layer, []).append((place.inner, module.causal, module.window))
    return {layer: tuple(shapes[layer]) for layer in sorted(shapes)}


@cache
def served_model(name: str, ranks: int = 1) -> Served:
    """Return one of `ranks` ranks of a model. Raises RequestError: no such model, or heads that do not divide."""
    graph, layers = _traced(name)
    try:
        rank = tensor_parallel(graph, ranks)
        return served(fused(rank), rank, layers, ranks)
    except ValueError as error:
        raise RequestError(f"{name} on {ranks} ranks: {error}") from error


NATIVE = {
    "gpt_oss": ("bfloat16", "w4a16_mxfp4"),
    "deepseek_v3": ("fp8_block", "fp8_block"),
    "minimax_m2": ("fp8_block", "fp8_block"),
}
"""dtypes of layers and experts in the published checkpoints of a model type, by their `quantization_config`: MXFP4 for
the experts alone, and float8 with a scale for each block of 128 × 128."""
OTHER_NAMES = {
    **dict.fromkeys(("deepseek-r1", "deepseek-v3.1", "deepseek-v3.1-terminus"), "deepseek-v3"),
    **dict.fromkeys(("llama-3.3-70b", "llama-3-70b"), "llama-3.1-70b"),
    "llama-3-8b": "llama-3.1-8b",
    "kimi-k2.5": "kimi-k2",
    **dict.fromkeys(("minimax-m2", "minimax-m2.1", "minimax-m2.7"), "minimax-m2.5"),
    **dict.fromkeys(("glm-5.1",), "glm-5"),
}
"""Models with the shapes of another one, of their text layers."""
SUFFIXES = re.compile(
    r"-(instruct|it|chat|hf|base|fp8|fp4|int4|nvfp4|mxfp4|bf16|awq|gptq|dynamic|block|static|pertensor|kv|\d{4}|"
    r"v\d+(\.\d+)*|thinking|\d+b-\d+e)$"
)
"""Ends of a hub name that do not change the shapes."""


def served_name(name: str) -> str:
    """The catalogue's name of a hub id or a folder; other names as they are, for `resolve` to judge."""
    if (known := find(name)) is not None:
        return known
    plain = name.rpartition("/")[2].lower().removeprefix("meta-")
    while plain not in catalogue():
        if plain in OTHER_NAMES:
            return OTHER_NAMES[plain]
        shorter = SUFFIXES.sub("", plain)
        if shorter == plain:
            return name
        plain = shorter
    return plain


def native_dtypes(name: str) -> tuple[str, str] | None:
    """dtypes of the layers and the experts in a model's published checkpoint, where it is quantised."""
    return NATIVE.get(str(getattr(resolve(name).config, "model_type", "")))
