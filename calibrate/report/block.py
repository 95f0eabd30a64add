"""The graph of one block: the operations of one repeated layer, what feeds them, and which reads what another wrote.

Layers that do the same list of operations are one kind of block, drawn once; amounts are those of one layer. A pass
without repeated layers is one block. In a block of too many operations to read, consecutive small ones of one module
(all but the anchors of fusion) become one node.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from roofline.graph.op import ANCHORS, Traffic, layer_of
from roofline.predict.passes import OpPrediction, PassPrediction
from roofline.units import known_sum, ratio

MOST_NODES = 28
"""Nodes of a readable drawing."""
Part = Literal["operation", "feed", "before", "after"]


class RanOperation(OpPrediction):
    """An operation that was also measured."""

    measured_s: float
    """Total seconds of its executions."""


@dataclass(frozen=True)
class Node:
    """An operation of the block, a run of small ones, an operation outside that feeds it, or an end of the layer."""

    part: Part
    title: str
    """Path inside the layer."""
    kind: str
    ops: tuple[OpPrediction, ...] = ()
    """The operations in execution order; none at the ends."""
    layers: float = 1
    """Number of layers over which the operations' amounts are summed."""
    share: float | None = None
    """The share of the block's time, measured where it was measured; None outside it, and where it is not known."""

    @property
    def flops(self) -> float:
        return sum(op.flops for op in self.ops) / self.layers

    @property
    def bytes(self) -> Traffic:
        """Memory traffic of one layer."""
        return Traffic(
            **{name: sum(getattr(op.bytes, name) for op in self.ops) / self.layers for name in Traffic.model_fields}
        )

    @property
    def time_s(self) -> float | None:
        return _time(self.ops, self.layers)

    @property
    def measured_s(self) -> float | None:
        """Measured seconds of one layer; None where the operations were not measured."""
        return _measured(self.ops, self.layers)

    @property
    def bound(self) -> str:
        """The bound of the operation that takes longest."""
        return max(self.ops, key=lambda op: op.time_s or 0.0).bound if self.ops else ""


@dataclass(frozen=True)
class Block:
    """Nodes in an order in which every edge goes to a later one."""

    path: str
    """Path of the layer that is drawn; "" is the model itself."""
    layers: float
    """Number of layers that do the same list of operations."""
    nodes: tuple[Node, ...]
    edges: tuple[tuple[int, int], ...]
    """(writer, reader), by place in `nodes`."""

    @property
    def time_s(self) -> float | None:
        """Predicted seconds of one layer."""
        return known_sum(node.time_s for node in self.nodes if node.part == "operation")

    @property
    def measured_s(self) -> float | None:
        """Measured seconds of one layer; None where it was not measured."""
        return known_sum(node.measured_s for node in self.nodes if node.part == "operation")

    def shortcuts(self) -> frozenset[tuple[int, int]]:
        """Edges around other operations: what they carry also takes a longer way. Residuals are among them."""
        after: dict[int, set[int]] = defaultdict(set)
        for source, target in sorted(self.edges, reverse=True):
            after[source] |= {target} | after[target]
        direct: dict[int, list[int]] = defaultdict(list)
        for source, target in self.edges:
            direct[source].append(target)
        return frozenset((s, t) for s, t in self.edges if any(t in after[other] for other in direct[s] if other != t))


def blocks(step: PassPrediction, most: int = 3) -> tuple[Block, ...]:
    """The `most` kinds of block that take the most time, in the order they run."""
    layers: dict[tuple[str, int], list[int]] = defaultdict(list)
    for i, op in enumerate(step.ops):
        if place := layer_of(op.path):
            layers[place.prefix, place.layer].append(i)
    alike: dict[Hashable, list[list[int]]] = defaultdict(list)
    for members in list(layers.values()) or ([list(range(len(step.ops)))] if step.ops else []):
        ops = [step.ops[i] for i in members]
        place = layer_of(ops[0].path)
        alike[place and place.prefix, tuple((_inner(op.path), op.kind) for op in ops)].append(members)
    slowest = sorted(alike.values(), key=lambda same: -sum(step.ops[i].time_s or 0.0 for m in same for i in m))[:most]
    drawn = [(max(same, key=lambda members: _repeats(step.ops, members)), same) for same in slowest]
    return tuple(_block(step, members, sum(_repeats(step.ops, m) for m in same)) for members, same in sorted(drawn))


def _block(step: PassPrediction, members: Sequence[int], layers: float) -> Block:
    runs = _runs(step.ops, members) if len(members) > MOST_NODES else [[i] for i in members]
    place = layer_of(step.ops[members[0]].path)
    held = _repeats(step.ops, members)
    whole = _spent([step.ops[i] for i in members], held)
    inside = [_node("operation", [step.ops[i] for i in run], held, whole) for run in runs]
    wiring = _Wiring(step, members)
    home = {i: n for n, run in enumerate(runs) for i in run}
    feeds = {i: _node("feed", [step.ops[i]], 1, None) for i in sorted(wiring.feeds())}
    before = [Node("before", "the layer before" if wiring.follows else "inputs", "")] if wiring.enters else []
    after = [Node("after", "what follows", "")] if wiring.leaves else []
    start = len(before) + len(feeds)
    at = {i: len(before) + n for n, i in enumerate(feeds)} | {i: start + n for i, n in home.items()}
    edges = {(at[s], at[t]) for s, t in wiring.edges if at[s] != at[t]}
    edges |= {(0, at[t]) for t in wiring.enters}
    edges |= {(at[s], start + len(inside)) for s in wiring.leaves}
    return Block(
        path=f"{place.prefix}.{place.layer}" if place else "",
        layers=layers,
        nodes=(*before, *feeds.values(), *inside, *after),
        edges=tuple(sorted(edges)),
    )


class _Wiring:
    """The edges of a block: which operation reads what another one wrote."""

    def __init__(self, step: PassPrediction, members: Sequence[int]) -> None:
        self._step = step
        self._inside = set(members)
        self._writers: dict[int, list[int]] = defaultdict(list)
        self._readers: dict[int, list[int]] = defaultdict(list)
        for i, op in enumerate(step.ops):
            for tensor in op.writes:
                self._writers[tensor].append(i)
            for tensor in op.reads:
                self._readers[tensor].append(i)
        own = layer_of(step.ops[members[0]].path)
        self._prefix = own.prefix if own else None
        self.follows = any(self._of_stack(op) for op in step.ops[: members[0]])
        """Whether another layer runs before this one."""
        self.edges: set[tuple[int, int]] = set()
        self.enters: set[int] = set()
        """Operations that read what the layer before wrote, or what the model was given."""
        for reader in members:
            for tensor in set(step.ops[reader].reads):
                self._connect(tensor, reader)
        self.leaves = {i for i in members if self._leaves(i)}
        """Operations that write what is read outside the block."""

    def feeds(self) -> set[int]:
        """Operations outside the block that write what it reads."""
        return {source for source, _ in self.edges} - self._inside

    def _connect(self, tensor: int, reader: int) -> None:
        writers = list(self._last(tensor, reader))
        near = [writer for writer in writers if writer in self._inside] or writers
        for writer in near:
            if writer not in self._inside and self._of_stack(self._step.ops[writer]):
                self.enters.add(reader)
            else:
                self.edges.add((writer, reader))
        if not writers and self._is_given(tensor):
            self.enters.add(reader)

    def _last(self, tensor: int, reader: int) -> Iterator[int]:
        """Earlier writers of what the reader sees, the latest first; one that also reads it has kept earlier
        content."""
        for writer in reversed(self._writers[tensor]):
            if writer < reader:
                yield writer
                if tensor in self._step.ops[writer].reads:
                    return

    def _is_given(self, tensor: int) -> bool:
        """Whether a tensor that no operation wrote is an activation: folding loses the layer that wrote it.

        Where roles are not known, it is one if it has several readers, or one that reads no weights.
        """
        roles = self._step.tensor_roles
        if roles:
            return roles[tensor] == "activation"
        readers = {i for i in self._readers[tensor] if i in self._inside}
        return len(readers) > 1 or any(self._step.ops[i].bytes.weight_read == 0 for i in readers)

    def _leaves(self, i: int) -> bool:
        """Whether an operation writes what is read outside the block, or what nothing reads and is no cache."""
        written, roles = set(self._step.ops[i].writes), self._step.tensor_roles
        readers = {tensor: {r for r in self._readers[tensor] if r > i} for tensor in written}
        if any(self._writers[tensor][-1] == i and readers[tensor] - self._inside for tensor in written):
            return True
        is_cache = bool(roles) and all(roles[tensor] == "kv" for tensor in written)
        return bool(written) and not any(readers.values()) and not is_cache

    def _of_stack(self, op: OpPrediction) -> bool:
        place = layer_of(op.path)
        return place is not None and place.prefix == self._prefix


def _runs(ops: Sequence[OpPrediction], members: Sequence[int]) -> list[list[int]]:
    """Consecutive small operations of one module together; order is kept, so no two runs feed each other."""
    places = groupby(members, key=lambda i: i if ops[i].kind in ANCHORS else ops[i].path)
    return [list(run) for _, run in places]


def _node(part: Part, ops: Sequence[OpPrediction], layers: float, whole_s: float | None) -> Node:
    path = ops[0].path
    title = _inner(path) if part == "operation" else path
    return Node(
        part=part,
        title=title or ("(layer)" if part == "operation" and layer_of(path) else "(model)"),
        kind=ops[0].kind.value if len(ops) == 1 else f"{len(ops)} operations",
        ops=tuple(ops),
        layers=layers,
        share=ratio(_spent(ops, layers), whole_s),
    )


def _repeats(ops: Sequence[OpPrediction], members: Sequence[int]) -> float:
    """Number of layers that the operations of one stand for; a loop inside the layer counts more often."""
    return min(ops[i].count for i in members)


def _inner(path: str) -> str:
    place = layer_of(path)
    return (place.inner or "") if place else path


def _spent(ops: Sequence[OpPrediction], layers: float) -> float | None:
    """Measured seconds, or predicted ones where nothing was measured."""
    measured_s = _measured(ops, layers)
    return _time(ops, layers) if measured_s is None else measured_s


def _measured(ops: Sequence[OpPrediction], layers: float) -> float | None:
    times_s = [op.measured_s for op in ops if isinstance(op, RanOperation)]
    return sum(times_s) / layers if times_s and len(times_s) == len(ops) else None


def _time(ops: Iterable[OpPrediction], layers: float) -> float | None:
    time_s = known_sum(op.time_s for op in ops)
    return None if time_s is None else time_s / layers
