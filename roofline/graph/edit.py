"""Rewrites a graph without running it again: operations replaced in their places, tensors added, resized, dropped.

What every what-if keeps is kept here: operations stay in order, `tensors[i].id == i`, a tensor that only removed
operations touched is gone, `Tensor.held` goes on meaning operations of the new graph and covers all that touch the
tensor, and `OpGraph.options` says what was done.

Example: ``edit = Edit(graph); t = edit.tensor(64, "activation"); edit.put(3, before, op); new = edit.done({"x": "y"})``
"""

from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import Any

from roofline.graph.op import Access, Bytes, Kind, Op, OpGraph, Role, Tensor

Accesses = tuple[Access, ...]


class Edit:
    """Changes to one graph, collected and then made at once."""

    def __init__(self, graph: OpGraph) -> None:
        self.graph = graph
        self._tensors = list(graph.tensors)
        self._pieces: dict[int, tuple[Op, ...]] = {}
        self._dropped: set[int] = set()

    def tensor(self, storage_bytes: Bytes, role: Role, name: str | None = None) -> int:
        """A new tensor; returns its number, which is that of the new graph if nothing is dropped."""
        number = len(self._tensors)
        self._tensors.append(
            Tensor.model_construct(id=number, storage_bytes=whole(storage_bytes), role=role, name=name, held=None)
        )
        return number

    def activation(self, size: Bytes) -> Access:
        """An access to all of a new activation."""
        return access(self.tensor(size, "activation"), size)

    def resize(self, tensor: int, storage_bytes: Bytes) -> None:
        self._tensors[tensor] = self._tensors[tensor].model_copy(update={"storage_bytes": whole(storage_bytes)})

    def storage_bytes(self, tensor: int) -> Bytes:
        """Present size of a tensor in bytes, also of a new or a resized one."""
        return self._tensors[tensor].storage_bytes

    def put(self, index: int, *ops: Op) -> None:
        """Run `ops`, in order, in the place of operation `index` of the graph; none removes it."""
        self._pieces[index] = ops

    def drop(self, tensors: Iterable[int]) -> None:
        """Take out tensors that nothing touches in the new graph."""
        self._dropped.update(tensors)

    def done(self, options: Mapping[str, str], **fields: Any) -> OpGraph:
        """The new graph with these options behind those of the same names, and with other `fields` of it set."""
        pieces = [self._pieces.get(i, (op,)) for i, op in enumerate(self.graph.ops)]
        ops = tuple(op for piece in pieces for op in piece)
        ops, tensors = _renumbered(ops, self._held_by(ops, pieces), self._gone(ops))
        merged = dict(self.graph.options)
        for key, value in options.items():
            merged[key] = f"{merged[key]}; {value}" if key in merged else value
        return rebuilt(self.graph, ops=ops, tensors=tensors, options=merged, **fields)

    def _gone(self, ops: Iterable[Op]) -> set[int]:
        """Tensors that only removed operations touched, and memory that only they held and nothing touches."""
        before, after = _touched(self.graph.ops), _touched(ops)
        removed = {i for i, piece in self._pieces.items() if not piece}
        unused = {
            tensor.id
            for tensor in self.graph.tensors
            if tensor.role == "activation" and tensor.id not in before and removed.intersection(tensor.held or ())
        }
        return (before.keys() - after.keys()) | unused | self._dropped

    def _held_by(self, ops: tuple[Op, ...], pieces: list[tuple[Op, ...]]) -> list[Tensor]:
        if all(tensor.held is None for tensor in self.graph.tensors):
            return self._tensors
        touched = _touched(ops)
        starts = [0, *accumulate(len(piece) for piece in pieces)]  # by old operation: new ones that come before it
        end = len(pieces)

        def moved(tensor: Tensor) -> tuple[int, int] | None:
            if tensor.role == "weight":
                return tensor.held
            used = touched.get(tensor.id)
            if tensor.held is None:
                return used if tensor.id >= len(self.graph.tensors) else None
            first, last = tensor.held
            start = first if first < 0 else starts[min(first, end)]
            stop = last if last < 0 else len(ops) if last >= end else starts[last + 1] - 1
            if used is None:
                return start, stop
            if 0 <= first < end and len(pieces[first]) > 1:  # made by a later one of several
                start = max(start, min(used[0], starts[first + 1] - 1))
            return min(start, used[0]), max(stop, used[1])

        return [
            tensor if (held := moved(tensor)) == tensor.held else tensor.model_copy(update={"held": held})
            for tensor in self._tensors
        ]


def rebuilt(graph: OpGraph, **fields: Any) -> OpGraph:
    """`graph` with other fields, which are valid already; nothing that was computed from the old ones is kept."""
    return OpGraph.model_construct(**{name: getattr(graph, name) for name in OpGraph.model_fields} | fields)


def access(tensor: int, size: Bytes) -> Access:
    """An access of `size` bytes, an integer where that is whole."""
    return Access.model_construct(tensor=tensor, bytes=whole(size))


def changed(op: Op, **fields: Any) -> Op:
    """`op` with other fields, which are not validated again."""
    return op.model_copy(update=fields)


def redirected(op: Op, numbers: Mapping[int, int]) -> Op:
    """`op` on other tensors: the new number of each that changes."""
    if not any(numbers.get(a.tensor, a.tensor) != a.tensor for a in (*op.reads, *op.writes)):
        return op
    reads, writes = (
        tuple(access(numbers.get(a.tensor, a.tensor), a.bytes) for a in accesses) for accesses in (op.reads, op.writes)
    )
    return changed(op, reads=reads, writes=writes)


def inserted(
    like: Op, name: str, kind: Kind, dims: dict[str, int], reads: Accesses, writes: Accesses, **fields: Any
) -> Op:
    """A new operation with path, type and count of another one unless `fields` say otherwise; it is not validated."""
    own: dict[str, Any] = {"path": like.path, "dtype": like.dtype, "count": like.count}
    own |= {"matrix_flops": 0.0, "vector_flops": 0.0} | fields
    return Op.model_construct(**own, name=name, kind=kind, dims=dims, reads=reads, writes=writes)


def whole(size: Bytes) -> Bytes:
    """The number, as an integer where it is whole."""
    return int(size) if size == int(size) else size


def _touched(ops: Iterable[Op]) -> dict[int, tuple[int, int]]:
    """The first and the last operation that touch each tensor."""
    spans: dict[int, tuple[int, int]] = {}
    for i, op in enumerate(ops):
        for touch in (*op.reads, *op.writes):
            first, _ = spans.get(touch.tensor, (i, i))
            spans[touch.tensor] = first, i
    return spans


def _renumbered(
    ops: tuple[Op, ...], tensors: list[Tensor], gone: set[int]
) -> tuple[tuple[Op, ...], tuple[Tensor, ...]]:
    """Number the tensors that are left from 0."""
    kept = [tensor for tensor in tensors if tensor.id not in gone]
    numbers = {tensor.id: i for i, tensor in enumerate(kept)}
    return tuple(redirected(op, numbers) for op in ops), tuple(
        tensor if tensor.id == i else tensor.model_copy(update={"id": i}) for i, tensor in enumerate(kept)
    )
