"""Small operation graphs by hand: name the tensors, list the operations, and get an `OpGraph`."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from roofline.fusion.fuse import Group, fuse
from roofline.graph.op import Access, AttentionModule, Kind, Op, OpGraph, Tensor
from roofline.hardware.spec import Figure, Level, Peaks
from roofline.workload import Workload

WORKLOAD = Workload(batch=1, query_tokens=4, context_tokens=0, dtype="float32")


class GraphBuilder:
    """``b = GraphBuilder(); b.weight("w", 100); b.op("matmul", reads=["x", "w"], writes={"y": 10}); b.graph()``.

    A tensor that is not declared is an activation, as large as its largest access; a read without bytes reads it all.
    """

    def __init__(self, workload: Workload = WORKLOAD) -> None:
        self.workload = workload
        self._role: dict[str, str] = {}
        self._size: dict[str, int] = {}
        self._ops: list[dict[str, Any]] = []

    def weight(self, name: str, size: int) -> None:
        self._role[name], self._size[name] = "weight", size

    def kv(self, name: str, size: int) -> None:
        self._role[name], self._size[name] = "kv", size

    def activation(self, name: str, size: int) -> None:
        self._role[name], self._size[name] = "activation", size

    def op(
        self,
        kind: str,
        reads: Sequence[str] | dict[str, int] = (),
        writes: dict[str, int] | None = None,
        path: str = "",
        matrix: float = 0.0,
        vector: float = 0.0,
        count: float = 1,
        dtype: str = "float32",
        **dims: int,
    ) -> int:
        """Append an operation; returns its index."""
        for name, size in (writes or {}).items():
            self._role.setdefault(name, "activation")
            self._size[name] = max(self._size.get(name, 0), size)
        sized = dict(reads) if isinstance(reads, dict) else {name: self._size[name] for name in reads}
        for name, size in sized.items():
            self._role.setdefault(name, "activation")
            self._size[name] = max(self._size.get(name, 0), size)
        self._ops.append(
            {
                "kind": Kind(kind),
                "reads": sized,
                "writes": writes or {},
                "path": path,
                "matrix_flops": matrix,
                "vector_flops": vector,
                "count": count,
                "dtype": dtype,
                "dims": dims,
            }
        )
        return len(self._ops) - 1

    def id(self, name: str) -> int:
        """Number of a tensor in the graph."""
        return list(self._size).index(name)

    def graph(self, attention: Sequence[AttentionModule] = (), **fields: Any) -> OpGraph:
        ids = {name: i for i, name in enumerate(self._size)}
        ops = tuple(
            Op(
                **{
                    **op,
                    "reads": tuple(Access(tensor=ids[n], bytes=b) for n, b in op["reads"].items()),
                    "writes": tuple(Access(tensor=ids[n], bytes=b) for n, b in op["writes"].items()),
                },
                name=f"test::{op['kind']}",
            )
            for op in self._ops
        )
        tensors = tuple(
            Tensor(id=i, storage_bytes=self._size[name], role=self._role[name], name=name) for name, i in ids.items()
        )
        return OpGraph(
            model="test", workload=self.workload, ops=ops, tensors=tensors, attention_modules=tuple(attention), **fields
        )


def figure(value: float) -> Figure:
    return Figure(value=value, source="by hand")


def peaks(
    matrix: float | None = 100.0,
    vector: float | None = 10.0,
    levels: Sequence[tuple[str, float, float]] = (("DRAM", 1e9, 10.0),),
    host_s: float | None = None,
    dtype: str = "float32",
) -> Peaks:
    """`levels` are (name, capacity in bytes, bandwidth in bytes/s)."""
    return Peaks(
        matrix={} if matrix is None else {dtype: figure(matrix)},
        vector={} if vector is None else {"float32": figure(vector)},
        levels=tuple(Level(name=n, capacity_bytes=c, bandwidth=figure(b)) for n, c, b in levels),
        host_s_per_op=None if host_s is None else figure(host_s),
    )


def sizes(graph: OpGraph, accesses: Sequence[Access]) -> dict[str, int]:
    """Bytes by tensor name."""
    return {str(graph.tensors[a.tensor].name): a.bytes for a in accesses}


def named(graph: OpGraph, names: dict[int, str]) -> OpGraph:
    """The graph with other names of some operations."""
    ops = tuple(op.model_copy(update={"name": names.get(i, op.name)}) for i, op in enumerate(graph.ops))
    return graph.model_copy(update={"ops": ops})


def groups_of(graph: OpGraph) -> list[tuple[int, ...]]:
    return [group.ops for group in fuse(graph)]


def group_with(graph: OpGraph, op: int) -> Group:
    return next(group for group in fuse(graph) if op in group.ops)


def check_invariants(graph: OpGraph) -> None:
    """The ideal graph has each operation once, no more work, and an order that can run."""
    groups = fuse(graph)
    assert Counter(i for g in groups for i in g.ops) == Counter(range(len(graph.ops)))
    fused = sum(a.bytes * g.count for g in groups for a in (*g.reads, *g.writes))
    assert fused <= sum(t.total * op.count for t, op in zip(graph.traffic, graph.ops, strict=True))
    for figure in ("matrix_flops", "vector_flops"):
        ours, executed = (sum(getattr(x, figure) * x.count for x in xs) for xs in (groups, graph.ops))
        assert ours <= executed * (1 + 1e-12)
    assert all(graph.ops[i].count == g.count for g in groups for i in g.ops)
    number = {op: n for n, g in enumerate(groups) for op in g.ops}
    written: dict[int, list[int]] = {}
    read: dict[int, list[int]] = {}
    for i, op in enumerate(graph.ops):  # the groups, in order, overtake no read after write, or write after either
        for access in op.reads:
            assert all(number[earlier] <= number[i] for earlier in written.get(access.tensor, []))
        for access in op.writes:
            touched = written.get(access.tensor, []) + read.get(access.tensor, [])
            assert all(number[earlier] <= number[i] for earlier in touched)
        for access in op.reads:
            read.setdefault(access.tensor, []).append(i)
        for access in op.writes:
            written.setdefault(access.tensor, []).append(i)
