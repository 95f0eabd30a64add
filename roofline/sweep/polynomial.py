"""One folded graph for every workload of a regime: each size is a polynomial in batch, query and context.

The coefficients are exact: they are solved in rational numbers from traces at a few sizes. `ceil(query ÷ chunk)` is a
further variable where a model works in chunks; the expected number of experts hit, which is no polynomial, is
divided out first and multiplied back. `differs` says whether a trace elsewhere is what the polynomials say.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, model_validator

from roofline.graph.op import Access, Bytes, Op, OpGraph, Routing, Traffic, experts_hit, routed_reads
from roofline.record import Record
from roofline.workload import Workload

Floats = NDArray[np.float64]
Exponents = tuple[int, int, int, int]
"""Powers of batch, query tokens, context tokens, and chunks of the query."""

MOST_POWER = 4
"""Highest power in a monomial; attention's pairs of tokens have the second."""
TOLERANCE = 1e-9
"""Relative: sizes are whole numbers or binary fractions up to rounding in sums of products."""

CLASSES = tuple(Traffic.model_fields)
WORK = ("count", "matrix_flops", "vector_flops", "link_bytes", "messages")
"""Sizes of an operation besides its dimensions and accesses, in the order of `sizes_of`."""


class Mismatch(Exception):
    """Graphs are not of one regime; the message says what differs."""


@dataclass(frozen=True, eq=False)
class Sweep:
    """Workloads as arrays of shape (workloads,)."""

    batch: Floats
    query: Floats
    context: Floats

    @classmethod
    def of(cls, workloads: Sequence[Workload]) -> "Sweep":
        rows = np.array([(w.batch, w.query_tokens, w.context_tokens) for w in workloads], dtype=float).reshape(-1, 3)
        return cls(rows[:, 0], rows[:, 1], rows[:, 2])

    def __len__(self) -> int:
        return len(self.batch)

    def take(self, index: NDArray[np.int64]) -> "Sweep":
        return Sweep(self.batch[index], self.query[index], self.context[index])


Amounts = dict[str, Floats]
"""Work of each operation in each workload, by names of `WORK` and `CLASSES`: shape (workloads, operations)."""


class ParametricGraph(Record):
    """A folded graph whose sizes are polynomials of the workload."""

    template: OpGraph
    """The folded graph of the first sample: structure, names, and kinds."""
    chunk: int = Field(default=1, ge=1)
    monomials: tuple[Exponents, ...] = Field(min_length=1)
    polynomials: tuple[tuple[float, ...], ...]
    """Distinct ones: a coefficient for each monomial."""
    index: tuple[int, ...]
    """Polynomial of each size, in the order of `sizes_of`."""
    lead: tuple[float, ...] | None = None
    """Coefficients of `OpGraph.lead`, which has one sign in all workloads that the graph describes."""
    checked: tuple[Workload, ...] = ()
    """Workloads whose own traces agree with the polynomials."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if any(not 0 <= power <= MOST_POWER for exponents in self.monomials for power in exponents):
            raise ValueError(f"a power of a monomial is from 0 to {MOST_POWER}")
        if any(len(polynomial) != len(self.monomials) for polynomial in self.polynomials):
            raise ValueError(f"a polynomial needs {len(self.monomials)} coefficients, one for each monomial")
        if any(not 0 <= number < len(self.polynomials) for number in self.index):
            raise ValueError(f"a size names a polynomial from 0 to {len(self.polynomials) - 1}")
        if self.lead is not None and len(self.lead) != len(self.monomials):
            raise ValueError(f"the lead needs {len(self.monomials)} coefficients, one for each monomial")
        if len(self.index) != (sizes := len(sizes_of(self.template))):
            raise ValueError(f"{len(self.index)} polynomials for {sizes} sizes")
        return self

    @cached_property
    def _coefficients(self) -> Floats:
        return np.array(self.polynomials, dtype=float).T

    def basis(self, sweep: Sweep) -> Floats:
        """Value of each monomial at each workload: shape (workloads, monomials)."""
        variables = (sweep.batch, sweep.query, sweep.context, np.ceil(sweep.query / self.chunk))
        columns = []
        for exponents in self.monomials:
            column = np.ones(len(sweep))
            for factor in (v for v, power in zip(variables, exponents, strict=True) for _ in range(power)):
                column = column * factor
            columns.append(column)
        return np.stack(columns, axis=1)

    def describes(self, sweep: Sweep) -> NDArray[np.bool_]:
        """Return whether each workload is on this graph's side of the ideal form's choice: shape (workloads,)."""
        if self.lead is None:
            return np.ones(len(sweep), dtype=bool)
        return (self.basis(sweep) @ np.array(self.lead) > 0) == ((self.template.lead or 0) > 0)

    @cached_property
    def storage(self) -> Floats:
        """Coefficients of each tensor's storage in the device's memory: shape (tensors, monomials)."""
        here = np.array([1 - tensor.on_host for tensor in self.template.tensors])
        return self._coefficients[:, list(self.index[: len(here)])].T * here[:, None]

    def sizes(self, sweep: Sweep) -> Floats:
        """Every size of every workload, in the order of `sizes_of`, with reads of hit experts only.

        Shape (workloads, sizes).
        """
        raw = self.basis(sweep) @ self._coefficients
        whole = np.round(raw)
        values = np.where(_rounded_off(raw - whole, raw), whole, raw)[:, list(self.index)]
        for op, place in zip(self.template.ops, places(self.template), strict=True):
            for i, access in enumerate(op.reads):
                if self.template.tensors[access.tensor].role == "weight":  # a gather reads no more than there is
                    values[:, place.reads + i] = np.minimum(values[:, place.reads + i], values[:, access.tensor])
            if op.routing is not None and place.tokens is not None:
                chosen = op.routing
                hit = experts_hit(chosen.experts, chosen.per_token, values[:, place.tokens], chosen.skew)
                for i in routed_reads(op, self.template):
                    values[:, place.reads + i] *= hit / chosen.experts
        return values

    def at(self, workload: Workload) -> OpGraph:
        """The folded graph of one workload."""
        values = iter(self.sizes(Sweep.of([workload]))[0].tolist())

        def size() -> Bytes:
            value = next(values)
            return int(value) if value.is_integer() else value

        def sized(accesses: Sequence[Access]) -> tuple[Access, ...]:
            return tuple(a.model_copy(update={"bytes": size()}) for a in accesses)

        tensors = tuple(tensor.model_copy(update={"storage_bytes": size()}) for tensor in self.template.tensors)
        ops = []
        for op in self.template.ops:  # in the order of `sizes_of`
            update: dict[str, object] = {name: size() for name in WORK}
            update["dims"] = {name: round(size()) for name in op.dims}
            update |= {"reads": sized(op.reads), "writes": sized(op.writes)}
            if op.routing:
                update["routing"] = op.routing.model_copy(update={"tokens": size()})
            ops.append(op.model_copy(update=update))
        return self.template.model_copy(update={"workload": workload, "ops": tuple(ops), "tensors": tensors})

    @cached_property
    def columns(self) -> "Columns":
        return Columns(self)

    def amounts(self, sweep: Sweep) -> Amounts:
        """Work of each operation, for all workloads at once."""
        return self.columns.amounts(self.basis(sweep), np.arange(len(self.template.ops)))

    def differs(self, graph: OpGraph) -> str | None:
        """Return how a folded graph, traced at its own workload, is not what this one says; None if it is the same."""
        if unlike := _unlike(self.template, graph):
            return unlike
        if not self.describes(Sweep.of([graph.workload])).all():
            return f"{graph.workload.key}: the other of two ideal forms is less work"
        fitted, traced = np.array(sizes_of(self.at(graph.workload))), np.array(sizes_of(graph))
        wrong = np.flatnonzero(~np.isclose(fitted, traced, rtol=TOLERANCE, atol=TOLERANCE))
        return f"{graph.workload.key}: {len(wrong)} sizes are not polynomials of those sampled" if len(wrong) else None


class Columns:
    """The polynomials that pricing needs, by operation, so that a sweep is a few matrix products."""

    table: dict[str, Floats]
    """Coefficients by name in `Amounts`, shape (monomials, operations); no entry where all are 0."""
    no_polynomial: frozenset[int]
    """Operations with reads that `table` leaves out: in proportion to experts hit, or up to a whole table."""

    def __init__(self, graph: ParametricGraph) -> None:
        template = graph.template
        sizes = np.array(graph.polynomials, dtype=float).T[:, list(graph.index)]
        self._shape = len(graph.monomials), len(template.ops)
        self.table = {}
        self._special: list[tuple[int, Floats, float, Routing | None, Floats | None]] = []
        for i, (op, place) in enumerate(zip(template.ops, places(template), strict=True)):
            for offset, name in enumerate(WORK):
                self._add(name, i, sizes[:, place.first + offset])
            routed = routed_reads(op, template)
            for k, access in enumerate(op.reads):
                column, tensor = sizes[:, place.reads + k], template.tensors[access.tensor]
                if k in routed:
                    self._special.append((i, column, np.inf, op.routing, sizes[:, place.tokens]))
                elif tensor.role == "weight" and column[1:].any():
                    self._special.append((i, column, tensor.storage_bytes, None, None))
                else:
                    self._add(f"{tensor.role}_read", i, column)
            for k, access in enumerate(op.writes):
                role = "kv" if template.tensors[access.tensor].role == "kv" else "activation"
                self._add(f"{role}_write", i, sizes[:, place.writes + k])
        self.no_polynomial = frozenset(special[0] for special in self._special)

    def _add(self, name: str, op: int, column: Floats) -> None:
        if column.any():
            self.table.setdefault(name, np.zeros(self._shape))[:, op] += column

    def amounts(self, basis: Floats, ops: NDArray[np.int64]) -> Amounts:
        """Work of the operations at the places `ops`; `basis` has shape (workloads, monomials)."""
        shape = len(basis), len(ops)
        at = {int(op): i for i, op in enumerate(ops)}
        sums = {name: basis @ table[:, ops] for name, table in self.table.items()}
        if self._special:
            weights = sums.setdefault("weight_read", np.zeros(shape))
            for op, column, most, routing, tokens in self._special:
                if op not in at:
                    continue
                amount = np.minimum(basis @ column, most)
                if routing is not None and tokens is not None:
                    hit = experts_hit(routing.experts, routing.per_token, basis @ tokens, routing.skew)
                    amount = amount * hit / routing.experts
                weights[:, at[op]] += amount
        nothing = np.broadcast_to(np.zeros((1, 1)), shape)
        return {name: sums.get(name, nothing) for name in (*WORK, *CLASSES)}


def fit(samples: Sequence[OpGraph], monomials: Sequence[Exponents], *, chunk: int = 1) -> ParametricGraph:
    """The graph whose sizes are combinations of `monomials` that agree with every sample.

    Args: folded graphs, as many as monomials, at workloads that tell the monomials apart; tokens of a chunk.
    Raises: Mismatch if the samples have different operations, or do not determine the polynomials.
    """
    template = samples[0]
    for other in samples[1:]:
        if unlike := _unlike(template, other):
            raise Mismatch(unlike)
    values = np.array([sizes_of(sample) for sample in samples])
    solve = _inverse([powers(sample.workload, monomials, chunk) for sample in samples])
    numbers: dict[tuple[float, ...], int] = {}
    polynomials: list[tuple[float, ...]] = []

    def number(column: tuple[float, ...]) -> int:
        if column not in numbers:
            numbers[column] = len(numbers)
            exact = [Fraction(value) for value in column]
            polynomials.append(tuple(float(sum(map(Fraction.__mul__, row, exact))) for row in solve))
        return numbers[column]

    index = tuple(number(column) for column in map(tuple, values.T.tolist()))
    lead = None
    if template.lead is not None:
        lead = polynomials[number(tuple(sample.lead or 0.0 for sample in samples))]
    return ParametricGraph(
        template=template,
        chunk=chunk,
        monomials=tuple(monomials),
        polynomials=tuple(polynomials),
        index=index,
        lead=lead,
    )


def sizes_of(graph: OpGraph) -> list[float]:
    """Every size of a graph in one order; expected weight reads as if every expert were hit."""
    out: list[float] = [tensor.storage_bytes for tensor in graph.tensors]
    for op in graph.ops:
        out += (*(getattr(op, name) for name in WORK), *op.dims.values())
        routed = routed_reads(op, graph)
        share = op.routing.hit / op.routing.experts if op.routing else 1.0
        out += (_near(a.bytes / share) if i in routed else a.bytes for i, a in enumerate(op.reads))
        out += (access.bytes for access in op.writes)
        if op.routing:
            out.append(op.routing.tokens)
    return out


def _near(value: float) -> float:
    """The whole number that rounding errors have moved a little; other numbers as they are."""
    return float(round(value)) if _rounded_off(value - round(value), value) else value


def _rounded_off(error: ArrayLike, value: ArrayLike) -> NDArray[np.bool_]:
    return np.less_equal(np.abs(error), 1e-6 + 1e-12 * np.abs(value))


@dataclass(frozen=True, slots=True)
class Places:
    """Places of the sizes of an operation in the order of `sizes_of`."""

    first: int
    """Place of the first of `WORK`; the dimensions follow."""
    reads: int
    writes: int
    tokens: int | None


def places(graph: OpGraph) -> Iterator[Places]:
    """The places of each operation's sizes."""
    at = len(graph.tensors)
    for op in graph.ops:
        reads = at + len(WORK) + len(op.dims)
        writes = reads + len(op.reads)
        end = writes + len(op.writes)
        yield Places(at, reads, writes, end if op.routing is not None else None)
        at = end + (op.routing is not None)


def _unlike(first: OpGraph, other: OpGraph) -> str | None:
    """Return how the structures of two graphs differ; None if only sizes do."""
    if len(first.ops) != len(other.ops):
        return f"{len(first.ops)} operations at {first.workload.key}, {len(other.ops)} at {other.workload.key}"
    for a, b in zip(first.ops, other.ops, strict=True):
        if _structure(a) != _structure(b):
            return f"{a.path} {a.name} at {first.workload.key} is {b.path} {b.name} at {other.workload.key}"
    if (first.lead is None) != (other.lead is None) or ((first.lead or 0) > 0) != ((other.lead or 0) > 0):
        return f"another of two ideal forms is less work at {first.workload.key} than at {other.workload.key}"
    if [t.role for t in first.tensors] != [t.role for t in other.tensors]:
        return f"other tensors at {first.workload.key} than at {other.workload.key}"
    return None


def _structure(op: Op) -> tuple[object, ...]:
    routing = (op.routing.experts, op.routing.per_token, op.routing.skew) if op.routing else None
    tensors = [a.tensor for a in op.reads], [a.tensor for a in op.writes]
    return (op.path, op.name, op.kind, op.dtype, tuple(op.dims), tensors, op.link, op.beside, op.also, routing)


def powers(workload: Workload, monomials: Iterable[Exponents], chunk: int) -> list[Fraction]:
    """The value of each monomial at a workload."""
    chunks = -(-workload.query_tokens // chunk)
    variables = (workload.batch, workload.query_tokens, workload.context_tokens, chunks)
    return [Fraction(int(np.prod([v**p for v, p in zip(variables, e, strict=True)], dtype=object))) for e in monomials]


def _inverse(matrix: list[list[Fraction]]) -> list[list[Fraction]]:
    """Gauss and Jordan's elimination. Raises Mismatch where the samples do not tell the monomials apart."""
    size = len(matrix)
    rows = [[*row, *(Fraction(int(i == j)) for j in range(size))] for i, row in enumerate(matrix)]
    for i in range(size):
        pivot = next((k for k in range(i, size) if rows[k][i]), None)
        if pivot is None or len(matrix[i]) != size:
            raise Mismatch(f"{size} samples do not determine {len(matrix[0])} monomials")
        rows[i], rows[pivot] = rows[pivot], rows[i]
        rows[i] = [value / rows[i][i] for value in rows[i]]
        for k in range(size):
            if k != i and (factor := rows[k][i]):
                rows[k] = [a - factor * b for a, b in zip(rows[k], rows[i], strict=True)]
    return [row[size:] for row in rows]
