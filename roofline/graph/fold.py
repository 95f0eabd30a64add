"""Folds what repeats: the steps of a loop over tokens or chunks, and layers that do the same work on the same sizes.

The folded graph has the totals of the graph it came from: every operation stands for `count` of them. The connections
of folded operations are lost, so fuse before. Tensors are held as long as before, in the order of the operations that
are left. ``fold(graph_of_llama_2_7b)`` has about 40 operations instead of 1,300, one layer of them with count 32.
"""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from roofline.graph.edit import rebuilt, redirected
from roofline.graph.memory import footprint
from roofline.graph.op import Access, Bytes, Op, OpGraph, layer_of

LEAST_REPEATS = 4
"""Fewer repetitions of a step are left as they are: they need not be a loop."""

LONGEST_STEP = 64
"""Operations in one step of a loop; a search for longer ones takes longer."""

Key = tuple[object, ...]


def fold(graph: OpGraph) -> OpGraph:
    """The same totals in fewer operations: loops first, then layers that are alike."""
    if graph.weight_bytes is None:
        graph = graph.model_copy(update={"weight_bytes": footprint(graph).weights})
    graph = _with_lifetimes(_without_unused(graph))
    return _fold_layers(_fold_loops(graph))


def _without_unused(graph: OpGraph) -> OpGraph:
    """The graph without activations that nothing touches or holds, of which fusion leaves many and each time others."""
    used = {a.tensor for op in graph.ops for a in (*op.reads, *op.writes)}
    kept = [t for t in graph.tensors if t.role != "activation" or t.held is not None or t.id in used]
    if len(kept) == len(graph.tensors):
        return graph
    numbers = {tensor.id: i for i, tensor in enumerate(kept)}
    return rebuilt(
        graph,
        ops=tuple(redirected(op, numbers) for op in graph.ops),
        tensors=tuple(tensor.model_copy(update={"id": i}) for i, tensor in enumerate(kept)),
    )


def _with_lifetimes(graph: OpGraph) -> OpGraph:
    """Activations of unknown lifetime held from first to last use: after folding, their users may have gone."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for i, op in enumerate(graph.ops):
        for place, accesses in ((-1, op.reads), (i, op.writes)):
            for a in accesses:
                first.setdefault(a.tensor, place)
                last[a.tensor] = i
    tensors = tuple(
        t.model_copy(update={"held": (first[t.id], last[t.id])})
        if t.role == "activation" and t.held is None and t.id in last
        else t
        for t in graph.tensors
    )
    return graph.model_copy(update={"tensors": tensors})


def work_of(op: Op, graph: OpGraph) -> Key:
    """Everything that an operation costs, without its place and its tensors."""
    return (
        op.name, op.kind, op.dtype, op.count, op.matrix_flops, op.vector_flops, tuple(sorted(op.dims.items())),
        tuple((graph.tensors[a.tensor].role, a.bytes) for a in op.reads),
        tuple((graph.tensors[a.tensor].role, a.bytes) for a in op.writes),
        op.link, op.link_bytes, op.messages, op.beside, op.routing,
    )  # fmt: skip


def _fold_loops(graph: OpGraph) -> OpGraph:
    numbers: dict[Key, int] = {}
    ids = np.array([numbers.setdefault((op.path, work_of(op, graph)), len(numbers)) for op in graph.ops])
    runs = _runs(ids)
    ops: list[Op] = []
    kept: list[int] = []
    alias = _results_of_steps(graph)
    graph = _held_together(graph, alias)
    at = 0
    while at < len(graph.ops):
        repeats, period = _longest(runs[:, at])
        if repeats < LEAST_REPEATS:
            ops.append(graph.ops[at])
            kept.append(at)
            at += 1
            continue
        step = graph.ops[at : at + period]
        for later in range(at + period, at + repeats * period):
            _alias(alias, graph.ops[later], graph.ops[at + (later - at) % period])
        ops += [op.model_copy(update={"count": op.count * repeats}) for op in step]
        kept += range(at, at + period)
        at += repeats * period
    return _with(graph, ops, kept, alias) if len(ops) < len(graph.ops) or alias else graph


def _results_of_steps(graph: OpGraph) -> dict[int, int]:
    """Many equal results of one operation (a fused kernel that runs a loop's steps) are one result, as large as all."""
    alias: dict[int, int] = {}
    for op in graph.ops:
        alike: dict[Bytes, list[int]] = defaultdict(list)
        for a in op.writes:
            if graph.tensors[a.tensor].role == "activation":
                alike[a.bytes].append(a.tensor)
        for first, *others in alike.values():
            for other in others if len(others) + 1 >= LEAST_REPEATS else ():
                _join(alias, other, first)
    return alias


def _held_together(graph: OpGraph, alias: Mapping[int, int]) -> OpGraph:
    """Joined results are held from the first that is made to the last that is let go."""
    held = {t: graph.tensors[t].held for t in alias.values()}
    for old, new in alias.items():
        mine, theirs = held[new], graph.tensors[old].held
        held[new] = (min(mine[0], theirs[0]), max(mine[1], theirs[1])) if mine and theirs else None
    tensors = tuple(t.model_copy(update={"held": held[t.id]}) if t.id in held else t for t in graph.tensors)
    return graph.model_copy(update={"tensors": tensors}) if held else graph


def _runs(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Shape (periods, operations): how many operations from here on equal the one a period later."""
    longest = min(LONGEST_STEP, max(1, len(ids) // LEAST_REPEATS))
    out = np.zeros((longest, len(ids)), dtype=np.int64)
    for period in range(1, longest + 1):
        differs = np.flatnonzero(ids[:-period] != ids[period:])
        places = np.arange(len(ids) - period)
        out[period - 1, : len(places)] = np.append(differs, len(places))[np.searchsorted(differs, places)] - places
    return out


def _longest(run_by_period: NDArray[np.int64]) -> tuple[int, int]:
    """(repetitions, period) that cover the most operations, with the shortest period among equals."""
    periods = np.arange(1, len(run_by_period) + 1)
    repeats = run_by_period // periods + 1
    best = int(np.where(repeats >= LEAST_REPEATS, repeats * periods, 0).argmax())
    return int(repeats[best]), int(periods[best])


def _fold_layers(graph: OpGraph) -> OpGraph:
    layers: dict[tuple[str, int], list[int]] = defaultdict(list)
    inner: dict[int, str | None] = {}
    for i, op in enumerate(graph.ops):
        if place := layer_of(op.path):
            layers[place.prefix, place.layer].append(i)
            inner[i] = place.inner
    kinds: dict[Key, list[list[int]]] = defaultdict(list)
    for (prefix, _), members in layers.items():
        work = tuple((inner[i], work_of(graph.ops[i], graph)) for i in members)
        kinds[prefix, work].append(members)
    times: dict[int, int] = {}
    gone: set[int] = set()
    alias: dict[int, int] = {}
    for first, *others in kinds.values():
        times |= dict.fromkeys(first, 1 + len(others))
        for members in others:
            gone.update(members)
            for i, later in zip(first, members, strict=True):
                _alias(alias, graph.ops[later], graph.ops[i])
    if not gone:
        return graph
    kept = [i for i in range(len(graph.ops)) if i not in gone]
    ops = [graph.ops[i].model_copy(update={"count": graph.ops[i].count * times.get(i, 1)}) for i in kept]
    whole = graph.layers[1] if graph.layers else len(layers)
    return _with(graph, ops, kept, alias).model_copy(update={"layers": (len(kinds), whole)})


def _alias(alias: dict[int, int], gone: Op, kept: Op) -> None:
    """Make the results of a folded operation those of the one that stands for it."""
    for old, new in zip(gone.writes, kept.writes, strict=True):
        _join(alias, old.tensor, new.tensor)


def _join(alias: dict[int, int], old: int, new: int) -> None:
    """Make the tensor `old`, and all that it stands for, the tensor `new`."""
    last, other = _stands_for(alias, old), _stands_for(alias, new)
    if last != other:
        alias[last] = other


def _stands_for(alias: Mapping[int, int], tensor: int) -> int:
    while tensor in alias:
        tensor = alias[tensor]
    return tensor


def _with(graph: OpGraph, ops: Sequence[Op], places: Sequence[int], alias: Mapping[int, int]) -> OpGraph:
    """The graph with these operations, from these places, and the tensors they touch, numbered by first use.

    An operation that reads the results of many folded ones (a stack of a loop's) reads one tensor of their total size.
    """
    numbers: dict[int, int] = {}
    grown: dict[int, tuple[Bytes, int]] = {}

    def renumbered(accesses: Sequence[Access], place: int) -> tuple[Access, ...]:
        named = [(_stands_for(alias, a.tensor), a) for a in accesses]
        joined = {tensor for tensor, a in named if a.tensor in alias}
        sizes: dict[tuple[int, int], Bytes] = {}
        for i, (tensor, a) in enumerate(named):
            key = tensor, -1 if tensor in joined else i
            sizes[key] = sizes.get(key, 0) + a.bytes
        for (tensor, i), size in sizes.items():
            if i < 0 and size > max(graph.tensors[tensor].storage_bytes, grown.get(tensor, (0, 0))[0]):
                grown[tensor] = size, place
        return tuple(
            Access.model_construct(tensor=numbers.setdefault(tensor, len(numbers)), bytes=size)
            for (tensor, _), size in sizes.items()
        )

    def moved(held: tuple[int, int] | None, until: int) -> tuple[int, int] | None:
        if held is None:
            return None
        first = -1 if held[0] < 0 else bisect_left(places, held[0])
        last = len(ops) if held[1] >= len(graph.ops) else max(first, bisect_right(places, held[1]) - 1)
        return first, max(last, until)

    kept = tuple(
        op.model_copy(update={"reads": renumbered(op.reads, i), "writes": renumbered(op.writes, i)})
        for i, op in enumerate(ops)
    )
    touched = {graph.tensors[a.tensor].name for op in graph.ops for a in (*op.reads, *op.writes)}
    for tensor in graph.tensors:  # memory of the cache that no operation names, such as the buffers of an offloaded one
        if tensor.role == "kv" and tensor.name not in touched:
            numbers.setdefault(tensor.id, len(numbers))
    tensors = []
    for old, new in numbers.items():
        tensor = graph.tensors[old]
        size, until = grown.get(old, (tensor.storage_bytes, -1))
        fields = {"id": new, "storage_bytes": size, "held": moved(tensor.held, until)}
        tensors.append(tensor.model_copy(update=fields))
    return graph.model_copy(update={"ops": kept, "tensors": tuple(tensors)})
