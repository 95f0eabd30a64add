"""What a real forward pass allocates on the CPU, by torch's own account: the allocation events of its profiler.

Example: ``allocated("llama", workload, "sdpa", "dynamic").peak_bytes``
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from tiny import TINY
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from profiler.models.build import build, build_meta
from profiler.models.inputs import prepare
from profiler.models.trace import trace
from roofline.graph.op import OpGraph
from roofline.workload import Workload

PASS = "the pass"

_WIDE: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 688,
    "vocab_size": 2000,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
_ENLARGED: dict[str, dict[str, Any]] = {
    "llama": _WIDE,
    "gpt2": {"n_embd": 256, "n_head": 8, "vocab_size": 2000},
    "mixtral": _WIDE,
    "gemma3": _WIDE | {"head_dim": 32, "sliding_window": 32},
    "deepseek_v3": _WIDE
    | {
        "num_key_value_heads": 8,
        "q_lora_rank": 64,
        "kv_lora_rank": 64,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 16,
        "v_head_dim": 32,
        "moe_intermediate_size": 128,
    },
    "mamba": {"hidden_size": 256, "intermediate_size": 512, "vocab_size": 2000, "state_size": 16},
}
FAMILIES = tuple(_ENLARGED)
PRODUCTS = {"aten::mm": 0, "aten::addmm": 1, "aten::bmm": 0}
"""Products, and the position of the first factor among their operands."""
ALIGNMENT = 128
"""Most bytes that oneDNN adds to a buffer."""


@dataclass(frozen=True)
class Allocated:
    """In bytes, weights apart."""

    peak_bytes: int
    """Most that was allocated at one time during the pass: inputs, cache and activations."""
    cache_bytes: int
    """Storages of the cache after the pass."""


def enlarged(name: str) -> PretrainedConfig:
    """The tiny config of a family, wide enough that its activations count."""
    fields = {**TINY[name], **_ENLARGED[name]}
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


def storages(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the distinct storages of tensors."""
    found = {s._cdata: s.nbytes() for s in (tensor.untyped_storage() for tensor in tensors)}
    return sum(found.values())


@cache
def model_of(name: str, attn: str, dtype: str, device: str) -> PreTrainedModel:
    """The enlarged model of a family, on "cpu" or on "meta"."""
    return build(enlarged(name), "cpu", dtype, attn) if device == "cpu" else build_meta(enlarged(name), dtype, attn)


def predicted(name: str, workload: Workload, attn: str, cache_name: str) -> OpGraph:
    """The graph of the same pass, which has run on `meta` alone."""
    meta = model_of(name, attn, workload.dtype, "meta")
    return trace(meta, prepare(meta, workload, cache=cache_name), workload, name=name, target="cpu", options={})


def allocated(name: str, workload: Workload, attn: str, cache_name: str) -> Allocated:
    """Run one pass of a model on one thread of the CPU and read torch's allocation events.

    On several threads 16-bit products pack their weights into memory of their own (oneDNN). With AVX-512, oneDNN
    accumulates them in a float32 copy of the result, with AVX2 it does not, and no trace tells: that copy is left out.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _allocated(name, workload, attn, cache_name)
    finally:
        torch.set_num_threads(threads)


def _allocated(name: str, workload: Workload, attn: str, cache_name: str) -> Allocated:
    model = model_of(name, attn, workload.dtype, "cpu")
    meta = model_of(name, attn, workload.dtype, "meta")
    with (
        profile(activities=[ProfilerActivity.CPU], profile_memory=True, record_shapes=True) as profiled,
        torch.no_grad(),
    ):
        inputs = prepare(meta, workload, device="cpu", cache=cache_name)
        arguments = inputs.kwargs()
        kept = inputs._cache
        del inputs  # it keeps the cache of before the pass, to put it back
        with record_function(PASS):
            out = model(**arguments)
        del out
    after = [tensor for layer in kept.layers for tensor in _tensors(vars(layer))]
    events = list(_walk(profiled.profiler.kineto_results.experimental_event_tree()))
    (during,) = [event for event in events if event.name == PASS]
    total = peak = 0
    copies = {id(event) for product in events if product.name in PRODUCTS for event in _float32_copy(product)}
    allocations = [e for e in events if e.typed[0] == _EventType.Allocation and id(e) not in copies]
    for event in sorted(allocations, key=lambda e: e.start_time_ns):
        total += event.extra_fields.alloc_size
        if during.start_time_ns <= event.start_time_ns <= during.end_time_ns:
            peak = max(peak, total)
    return Allocated(peak_bytes=peak, cache_bytes=storages(after))


def _float32_copy(product: Any) -> list[Any]:
    """The one allocation, and its end, of a float32 copy of a 16-bit product's result; empty where there is none."""
    first = PRODUCTS[product.name]
    a, b = product.extra_fields.inputs[first : first + 2]
    if a.dtype.itemsize != 2:
        return []
    copy_bytes = 4 * math.prod(a.sizes[:-1]) * b.sizes[-1]
    inside = [event for event in _walk(product.children) if event.typed[0] == _EventType.Allocation]
    sizes = [event.extra_fields.alloc_size for event in inside]
    for event, size in zip(inside, sizes, strict=True):
        if copy_bytes <= size <= copy_bytes + ALIGNMENT and -size in sizes:
            return [event, inside[sizes.index(-size)]]
    return []


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict | list | tuple):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _tensors(one)


def _walk(events: Iterable[Any]) -> Iterator[Any]:
    for event in events:
        yield event
        yield from _walk(event.children)
