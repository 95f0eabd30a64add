"""Passes with fewer layers: leaving after some of them (early exit, CALM, arXiv 2207.07061), or without some of them
(layer skipping and pruning, ShortGPT, arXiv 2403.03853).

Operations of a removed layer are gone with its weights and its cache; readers of its output read its input instead.
The embedding, the final norm and the head stay: the layer that is last now feeds them. The decision to leave is not
counted. Repeated layers are found by their paths (`roofline.graph.op.layer_of`).
"""

from collections import Counter
from collections.abc import Sequence

from roofline.dtypes import element_bits
from roofline.graph.dataflow import Dataflow
from roofline.graph.edit import Edit, rebuilt, redirected
from roofline.graph.linear import is_side, linear_of
from roofline.graph.op import OpGraph, layer_of

OPTION = "removed_layers"
"""Key in `OpGraph.options`; its value lists all that are removed, in order."""


def early_exit(graph: OpGraph, after_layers: int) -> OpGraph:
    """The pass leaves after the first repeated layers (early exit).

    Args:
        after_layers: layers that run; of those left where others are removed.
    Raises: ValueError unless 1 <= `after_layers` <= their number; and as `remove_layers`.
    """
    layers = repeated_layers(graph)
    if not 1 <= after_layers <= len(layers):
        raise ValueError(f"leaving after {after_layers} layers: the graph has {len(layers)}; use 1 to {len(layers)}")
    return remove_layers(graph, layers[after_layers:])


def repeated_layers(graph: OpGraph) -> list[int]:
    """Indices of the repeated layers of the graph, in the order they run."""
    prefix = _stack(graph)
    return list(
        dict.fromkeys(place.layer for op in graph.ops if (place := layer_of(op.path)) and place.prefix == prefix)
    )


def remove_layers(graph: OpGraph, layers: Sequence[int]) -> OpGraph:
    """The pass without some of the repeated layers.

    Args:
        layers: indices of the removed layers, from 0 on.
    Raises: ValueError for an index that does not exist, all layers, a graph that was folded (its layers stand for
        others), or a layer that others need more of than what it passes on.
    """
    prefix, known = _stack(graph), repeated_layers(graph)
    if graph.layers is not None:
        raise ValueError(f"the graph holds {graph.layers[0]} of {graph.layers[1]} layers; use one that holds all")
    unknown = sorted(set(layers) - set(known))
    if unknown:
        raise ValueError(f"{prefix} has no layer {unknown[0]}; its layers are {_ranges(known)}")
    if set(layers) >= set(known):
        raise ValueError(f"all {len(known)} layers of {prefix} would be removed; leave one or more")
    if not layers:
        return graph
    for op in graph.ops:
        paths = (op.path, *(member.rpartition(" ")[0] for member in op.also))
        places = {place.layer if (place := layer_of(path)) and place.prefix == prefix else None for path in paths}
        if len(places) > 1:
            raise ValueError(f"{op.path} is fused with operations of another layer; remove layers before fusing")
    removed = set(layers)
    inside = {i: p.layer for i, op in enumerate(graph.ops) if (p := layer_of(op.path)) and p.prefix == prefix}
    stand_ins = _stand_ins(graph, prefix, inside, [layer for layer in known if layer in removed])
    edit = Edit(graph)
    for i, op in enumerate(graph.ops):
        if inside.get(i) in removed:
            edit.put(i)
        elif (other := redirected(op, stand_ins)) is not op:
            edit.put(i, other)
    weights = {t.id for t in graph.tensors if t.role == "weight" and _is_in(t.name, prefix, removed)}
    edit.drop(weights)
    new = edit.done(
        {},
        attention_modules=tuple(m for m in graph.attention_modules if not _is_in(m.path, prefix, removed)),
        inactive=tuple(name for name in graph.inactive if not _is_in(name, prefix, removed)),
        parameters=max(0, graph.parameters - _elements(graph, weights)),
    )
    before = [part.partition("-") for part in graph.options.get(OPTION, "").split(", ") if part]
    gone = removed.union(layer for a, _, b in before for layer in range(int(a), int(b or a) + 1))
    return rebuilt(new, options=dict(graph.options) | {OPTION: _ranges(sorted(gone))})


def _stack(graph: OpGraph) -> str:
    """Prefix of the repeated layers; of several stacks, that of the stack with the most layers."""
    layers = {(place.prefix, place.layer) for op in graph.ops if (place := layer_of(op.path))}
    stacks = Counter(prefix for prefix, _ in layers).most_common()
    if not stacks:
        raise ValueError("the graph has no repeated layers")
    if len(stacks) > 1 and stacks[0][1] == stacks[1][1]:
        raise ValueError(
            f"{stacks[0][0]} and {stacks[1][0]} have {stacks[0][1]} layers each; which is meant is unclear"
        )
    return stacks[0][0]


def _is_in(path: str | None, prefix: str, layers: set[int]) -> bool:
    place = layer_of(path or "")
    return place is not None and place.prefix == prefix and place.layer in layers


def _elements(graph: OpGraph, tensors: set[int]) -> int:
    """Elements of weights, whatever they are stored as; those of buffers inside layers are taken for parameters'."""
    own = element_bits(graph.workload.dtype)
    counted = {tensor: graph.tensors[tensor].storage_bytes * 8 / own for tensor in tensors}
    for i, op in enumerate(graph.ops):
        linear = linear_of(graph, i)
        if linear is not None and linear.matrix.tensor in counted:
            counted[linear.matrix.tensor] = linear.elements
        for read in op.reads:
            if is_side(graph, read):
                counted.pop(read.tensor, None)
    return round(sum(counted.values()))


def _ranges(layers: Sequence[int]) -> str:
    """ "0-3, 7" for 0, 1, 2, 3, 7."""
    ends: list[list[int]] = []
    for layer in layers:
        if ends and ends[-1][1] == layer - 1:
            ends[-1][1] = layer
        else:
            ends.append([layer, layer])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in ends)


def _stand_ins(graph: OpGraph, prefix: str, inside: dict[int, int], removed: Sequence[int]) -> dict[int, int]:
    """Stand-ins of the tensors that removed layers pass on: inputs of that size, for one layer alone if possible."""
    flow = Dataflow(graph)
    maker = [inside.get(writers[0]) if writers else None for writers in flow.writers]
    stands_in: dict[int, int] = {}
    for layer in removed:
        own = [i for i, at in inside.items() if at == layer]
        others = [[r for r in readers if inside.get(r) != layer] for readers in flow.readers]
        read = dict.fromkeys(a.tensor for i in own for a in graph.ops[i].reads)
        inputs = [t for t in read if graph.tensors[t].role == "activation" and maker[t] != layer]
        # positions, masks and rotary tables are read by other layers too
        left = [t for t in inputs if all(inside.get(r) is None for r in others[t])] or inputs
        for tensor in dict.fromkeys(a.tensor for i in own for a in graph.ops[i].writes):
            if maker[tensor] != layer or not any(r > max(own) for r in others[tensor]):
                continue  # changed in place, or for the layer itself
            size = graph.tensors[tensor].storage_bytes
            fitting = [t for t in left if graph.tensors[t].storage_bytes == size]
            if graph.tensors[tensor].role != "activation" or not fitting:
                user = graph.ops[others[tensor][-1]].path
                raise ValueError(f"{user} needs more of {prefix}.{layer} than what it was given, so that must stay")
            left.remove(fitting[0])
            stands_in[tensor] = stands_in.get(fitting[0], fitting[0])
    return stands_in
