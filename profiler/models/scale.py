"""Lets a few repeated layers stand for all of them: each traced operation gets the number that it stands for.

Layers are alike if they run the same operations on the same shapes; every kind of layer of the whole model must
be among the traced ones, else nothing would be known of it.

Example: ``scale(graph_of_2_layers, graph_of_2_layers, graph_of_32_layers).ops[10].count == 16``
"""

from collections import Counter, defaultdict

from profiler.record.run import RequestError
from roofline.graph.op import Op, OpGraph, layer_of

Signature = tuple[tuple[object, ...], ...]


def scale(ran: OpGraph, part: OpGraph, whole: OpGraph) -> OpGraph:
    """`ran` with counts that make it stand for `whole`.

    Args: what ran; the trace of the same layers on `meta`; the trace of the whole model on `meta`.
    Raises: RequestError if a kind of layer of `whole` is not in `part`.
    """
    here, there = _layers(part), _layers(whole)
    kinds, wanted = Counter(here.values()), Counter(there.values())
    missing = [layer for layer, kind in there.items() if kind not in kinds]
    if missing:
        prefix, index = missing[0]
        raise RequestError(
            f"--layers: none of the first {len(here)} layers is like {prefix}.{index}; use --layers {index + 1} or more"
        )
    ops = []
    for op in ran.ops:
        layer = _layer(op)
        count = wanted[here[layer]] / kinds[here[layer]] if layer in here else 1.0
        ops.append(op.model_copy(update={"count": count}))
    return ran.model_copy(
        update={
            "ops": tuple(ops),
            "layers": (len(here), len(there)),
            "parameters": whole.parameters,
            "inactive": whole.inactive,
        }
    )


def _layer(op: Op) -> tuple[str, int] | None:
    place = layer_of(op.path)
    return (place.prefix, place.layer) if place else None


def _layers(graph: OpGraph) -> dict[tuple[str, int], Signature]:
    """What each repeated layer runs."""
    found: dict[tuple[str, int], list[tuple[object, ...]]] = defaultdict(list)
    for op, traffic in zip(graph.ops, graph.traffic, strict=True):
        place = layer_of(op.path)
        if place:
            dims = tuple(sorted(op.dims.items()))
            found[place.prefix, place.layer].append((place.inner, op.name, op.dtype, dims, traffic.total))
    return {layer: tuple(ops) for layer, ops in found.items()}
