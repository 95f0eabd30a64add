"""What the host does between operations, as the law of its gaps sees it.

Example: ``host_gap_s(Prepared(graph), spec)`` → seconds before each operation; None where the spec has no such law
"""

import re
from collections.abc import Sequence

import numpy as np

from roofline.calibrated import CalibratedLaw
from roofline.code_reach import reach_bytes
from roofline.facts import facts_of
from roofline.graph.op import Kind, Op, OpGraph
from roofline.hardware.spec import HardwareSpec
from roofline.laws.host_gap import HostGap
from roofline.laws.law import Floats

KIND = HostGap.kind
NUMBER = re.compile(r"\d+")


def lines_of(ops: Sequence[Op]) -> list[tuple[str, str]]:
    """Of each operation, the line of the model's code: alike in all layers."""
    return [(NUMBER.sub("#", op.path), op.name) for op in ops]


def gap_dims(ops: Sequence[Op]) -> dict[str, Floats]:
    """Sizes of the gap before each operation, shape (operations,).

    Modules are those with operations of their own or below them; "reach" and "streamed" are as `HostGap` has them.
    """
    modules = np.zeros(len(ops))
    before: list[str] = []
    for i, op in enumerate(ops):
        path = op.path.split(".") if op.path else []
        modules[i] = len(path) + len(before) - 2 * _alike(path, before)
        before = path
    lines = lines_of(ops)
    return {
        "modules": modules,
        "reach": reach_bytes(ops, lines, lambda op: not _is_streamed(op)),
        "streamed": reach_bytes(ops, lines, _is_streamed),
    }


def _is_streamed(op: Op) -> bool:
    """Whether an operation reads a matrix once: a product with one row."""
    return op.kind == Kind.MATMUL and op.dims["m"] == 1


def _alike(one: Sequence[str], other: Sequence[str]) -> int:
    """How many names from the first on are equal."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def host_gap_s(graph: OpGraph, spec: HardwareSpec) -> Floats | None:
    """Seconds of the host before each operation: by the law for the pass's dtype, else for another."""
    law = _law_for(graph, spec)
    return None if law is None else law.time_s(gap_dims(graph.ops), facts_of(spec))


def host_gap_interval(graph: OpGraph, spec: HardwareSpec) -> tuple[Floats, Floats] | None:
    """Between which seconds 90 % of gaps like each lie."""
    law = _law_for(graph, spec)
    return None if law is None else law.interval(gap_dims(graph.ops), facts_of(spec))


def _law_for(graph: OpGraph, spec: HardwareSpec) -> CalibratedLaw | None:
    laws = {law.dtype: law for law in _laws(spec)} if spec.calibrated else {}
    if not laws or not graph.ops:
        return None
    return laws.get(graph.workload.dtype, next(iter(laws.values())))


def _laws(spec: HardwareSpec) -> list[CalibratedLaw]:
    """Those of this version; an older spec's law had other constants, and the host's cost of an operation is used."""
    names = {constant.name for constant in HostGap().constants(facts_of(spec), "")}
    return [law for law in spec.calibrated if law.kind == KIND and set(law.values) == names]


def least_gap_s(spec: HardwareSpec, kernels: int) -> Floats | None:
    """Before each of the kernels of a compiled pass: no module is entered, the loop that calls them is never long out
    of the caches. Shape (kernels,)."""
    law = next(iter(_laws(spec)), None) if spec.calibrated else None
    nothing = dict.fromkeys(HostGap.dims, np.zeros(kernels))
    return None if law is None or not kernels else law.time_s(nothing, facts_of(spec))
