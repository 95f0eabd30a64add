"""Prefill and decode on different devices: the prefill's part of the cache is sent to the device that decodes.

DistServe (Zhong et al., arXiv 2401.09670) sends it when the prefill is done, Splitwise (Patel et al., arXiv
2311.18677, section 4.2) layer by layer. Of a layer with a sliding window only the tokens go that a later one can see:
the window less the new token itself. States of recurrent layers go whole.
"""

from collections import defaultdict
from collections.abc import Hashable
from typing import Literal

from roofline.graph.edit import Edit, access
from roofline.graph.op import OpGraph, layer_key
from roofline.whatif.checks import CacheWrite, cache_writes, kept_of
from roofline.whatif.pipeline import transfer

OPTION = "send_kv"


def send_kv(graph: OpGraph, link: str = "nvlink", by_layer: bool = True, overlap: bool = True) -> OpGraph:
    """A prefill whose new keys and values are sent to another device, which decodes.

    Args:
        link: of the device to the one that decodes.
        by_layer: one message as soon as a layer has written its own; else one of all layers at the end.
        overlap: whether a layer's message goes on beside operations of it and of the next one; one at the end has none.
    Raises: ValueError for a decode, or a pass that keeps nothing.
    """
    if graph.workload.phase == "decode":
        raise ValueError("send_kv sends what a prefill wrote, and this pass is a decode; use it on a prefill or chunk")
    if OPTION in graph.options:
        raise ValueError(f"keys and values are sent already ({graph.options[OPTION]}); send them once")
    added = cache_writes(graph)
    if not added:
        raise ValueError("the pass keeps no keys and values, so there is nothing to send")
    layers: dict[Hashable, list[CacheWrite]] = defaultdict(list)
    for write in added:
        layers[layer_key(graph.ops[write.op].path) if by_layer else ""].append(write)
    edit = Edit(graph)
    for layer in layers.values():
        last = max(write.op for write in layer) if by_layer else len(graph.ops) - 1
        parts: dict[int, float] = {}
        size = 0.0
        for write in layer:
            part = kept_of(graph, write, spare=1)
            parts[write.tensor] = part  # of a tensor that is written again, the last
            size += part * (1 if by_layer else graph.ops[write.op].count)
        reads = tuple(access(tensor, part) for tensor, part in parts.items())
        like = graph.ops[last] if by_layer else graph.ops[last].model_copy(update={"count": 1, "path": ""})
        beside: Literal["out"] | None = "out" if by_layer and overlap else None
        edit.put(last, graph.ops[last], transfer("send_kv", size, link=link, like=like, reads=reads, beside=beside))
    return edit.done({OPTION: f"{'by layer' if by_layer else 'at once'} over {link}"})
