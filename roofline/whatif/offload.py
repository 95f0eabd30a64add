"""Weights or cache in the memory of the host: each crosses the link when it is used.

FlexGen (Sheng et al., arXiv 2303.06865) and ZeRO-Inference keep shares of both on the host. The offloaded share of a
weight comes over the link before the operation that reads it; that of the cache comes once a layer, and the additions
of the pass go back. With overlap the transfers of a layer go on beside its operations, both directions at once
(`price.Overlaps`); without, they come before and after the operation that needs them. Arriving data is not counted as
another write to device memory, which is faster than any link to it. Two buffers on the device, each for the layer with
the most, take the data in use and the next. Sizes and accesses stay those of the pass (`Tensor.on_host` says which
share is not on the device), so that other what-ifs and fusing go on working.
"""

from collections import defaultdict
from collections.abc import Hashable
from typing import Literal

from roofline.graph.edit import Edit, changed, whole
from roofline.graph.op import Op, OpGraph, Role, layer_key
from roofline.whatif.checks import cache_writes, checked_share, kept_of
from roofline.whatif.pipeline import transfer

OPTION = "offload"
WEIGHT_BUFFERS, KV_BUFFERS = "offload.weights", "offload.kv"
"""Names of the tensors that stand for both buffers."""


def offload(graph: OpGraph, weights: float = 0.0, kv: float = 0.0, link: str = "pcie", overlap: bool = True) -> OpGraph:
    """Shares of the weights and of the KV cache in the memory of the host, fetched over a link when they are used.

    Args:
        weights: share of each weight on the host, from 0 to 1.
        kv: share of the cache on the host, from 0 to 1.
        link: of the device to its host.
        overlap: whether transfers go on beside the operations of their layer.
    Raises: ValueError for shares outside 0 to 1, for what is offloaded already, or for a cache that there is not.
    """
    shares = {"weights": checked_share("weights", weights), "kv": checked_share("kv", kv)}
    if not any(shares.values()):
        return graph
    if OPTION in graph.options:
        raise ValueError(f"{graph.options[OPTION]} is offloaded already; give both shares at once")
    if kv and not any(tensor.role == "kv" for tensor in graph.tensors):
        raise ValueError("the pass has no cache to offload; leave kv at 0")
    edit = Edit(graph)
    fetched, stored = _crossing(graph, weights, kv)
    for i, op in enumerate(graph.ops):
        if fetched[i] or stored[i]:
            edit.put(i, *_with_link(op, fetched[i], stored[i], link, overlap))
    _add_buffers(edit, graph, weights, kv)
    what = " and ".join(f"{share:g} of {name}" for name, share in shares.items() if share)
    new = edit.done({OPTION: f"{what} over {link}{'' if overlap else ', without overlap'}"})
    host = {"weight": weights, "kv": kv, "activation": 0.0}
    tensors = tuple(
        t if t.name in (WEIGHT_BUFFERS, KV_BUFFERS) else t.model_copy(update={"on_host": host[t.role]})
        for t in new.tensors
    )
    return new.model_copy(update={"tensors": tensors})


def _crossing(graph: OpGraph, weights: float, kv: float) -> tuple[list[float], list[float]]:
    """Bytes that come from the host for each operation, and that go back."""
    fetched, stored = [0.0] * len(graph.ops), [0.0] * len(graph.ops)
    on_device: dict[int, float] = defaultdict(float)  # of a cache tensor, what this pass wrote
    seen: set[tuple[int, Hashable]] = set()
    for i, op in enumerate(graph.ops):
        for a in op.reads:
            role, layer = graph.tensors[a.tensor].role, layer_key(op.path)
            if role == "weight":
                fetched[i] += weights * a.bytes
            elif role == "kv" and (a.tensor, layer) not in seen:
                fetched[i] += kv * max(0.0, a.bytes - on_device[a.tensor])
                seen.add((a.tensor, layer))
        for a in op.writes:
            on_device[a.tensor] += a.bytes
    for write in cache_writes(graph):
        stored[write.op] += kv * kept_of(graph, write)
    return fetched, stored


def _with_link(op: Op, fetched: float, stored: float, link: str, overlap: bool) -> tuple[Op, ...]:
    comes: Literal["in"] | None = "in" if overlap else None
    goes: Literal["out"] | None = "out" if overlap else None
    before = [transfer("load", fetched, link=link, like=op, beside=comes)] if fetched else []
    after = [transfer("store", stored, link=link, like=op, beside=goes)] if stored else []
    if overlap and op.link is None:
        own = changed(op, link=link, link_bytes=whole(fetched or stored), messages=1, beside=comes if fetched else goes)
        return (own, *after) if fetched else (own,)
    return (*before, op, *after)


def _add_buffers(edit: Edit, graph: OpGraph, weights: float, kv: float) -> None:
    """Buffers for twice the layer with the most, but no more than there is.

    They have room for all experts of a layer: which ones come is known only once they are chosen.
    """
    buffers: tuple[tuple[Role, float, str], ...] = (("weight", weights, WEIGHT_BUFFERS), ("kv", kv, KV_BUFFERS))
    for role, share, name in buffers:
        layers: dict[Hashable, dict[int, float]] = defaultdict(dict)
        for op in graph.ops:
            layer = layers[layer_key(op.path)]
            for a in (*op.reads, *op.writes):
                tensor = graph.tensors[a.tensor]
                if tensor.role == role:
                    held = tensor.storage_bytes if op.routing is not None else a.bytes
                    layer[a.tensor] = max(held, layer.get(a.tensor, 0.0))
        if share:
            in_all = sum(graph.tensors[t].storage_bytes for t in {t for layer in layers.values() for t in layer})
            largest = max((sum(layer.values()) for layer in layers.values()), default=0.0)
            edit.tensor(share * min(in_all, 2 * largest), role, name)
