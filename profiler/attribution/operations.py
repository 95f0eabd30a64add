"""Finds the operations that a pass executed, in order, among the profiler's host events.

The profiler sees a tree: our ranges, composite operators, operators, and what those call. An operation is the
outermost event whose name the traced graph knows; on a CPU its span is its time. A leaf that the graph does not
know, and that is neither a view nor an allocation, is work that belongs to no operation and is kept as such.

Example: ``executed(timeline.host, names=frozenset(op.name for op in graph.ops), window=(t0, t1), tid=tid).ops``
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from functools import cache

import torch

from profiler.attribution.timeline import HostEvent
from profiler.models.aten import NO_WORK
from roofline.graph.op import OpGraph

PREFIX = "roofcal:"
"""Prefix of the names of the ranges around modules, which no operator or module of a user has."""
PASS = "roofcal-pass"
"""Name of the range around each profiled pass."""
COMPILED = "roofcal-compiled"
"""Name of the range around each call of a compiled graph."""
BACKENDS = (
    "aten::_scaled_dot_product",
    "aten::_flash_attention",
    "aten::_efficient_attention",
    "aten::_cudnn_attention",
)
"""Prefixes of operators that `scaled_dot_product_attention` chooses among; with none of them, it ran as plain math."""


@dataclass(frozen=True, slots=True)
class ExecutedOp:
    """One executed operation of the graph."""

    name: str
    path: str | None
    """Innermost module range around it; None where modules were not annotated."""
    start_s: float
    end_s: float
    tid: int
    backend: str | None = None
    """Operator inside it that names the implementation chosen, as `aten::_scaled_dot_product_flash_attention`."""


@dataclass(frozen=True, slots=True)
class Executed:
    """The operators that one pass ran on one thread."""

    ops: tuple[ExecutedOp, ...]
    strangers: tuple[HostEvent, ...]
    """Leaf operators that touch data and lie in no operation of the graph."""


def executed(
    host: Sequence[HostEvent],
    *,
    names: frozenset[str],
    window: tuple[float, float],
    tid: int,
    within: str | None = None,
) -> Executed:
    """Operations of the thread `tid` that start within `window` (seconds, host clock), in order.

    `names` are those of the graph's operators; an operator and its in-place form are taken for the same. With `within`,
    only what lies in a range of that name is an operation.
    """
    bases = frozenset(in_place_or_not(name) for name in names)
    events = [e for e in host if e.tid == tid and window[0] <= e.start_s <= window[1] and e.name != PASS]
    events.sort(key=lambda e: (e.start_s, -e.end_s))
    ops: list[ExecutedOp] = []
    strangers: list[HostEvent] = []
    modules: list[tuple[float, str]] = []
    covered = float("-inf")  # end of the operation that later events lie inside of
    open_until = float("inf") if within is None else float("-inf")
    for event, following in zip(events, [*events[1:], None], strict=True):
        if event.name.startswith(PREFIX):
            while modules and modules[-1][0] <= event.start_s:
                modules.pop()
            modules.append((event.end_s, event.name.removeprefix(PREFIX)))
            continue
        if event.name == within:
            open_until = event.end_s
            continue
        if event.start_s < covered:
            if ops[-1].backend is None and event.name.startswith(BACKENDS):
                ops[-1] = replace(ops[-1], backend=event.name)
            continue
        inside = following if following is not None and following.start_s < event.end_s else None
        if event.start_s < open_until and in_place_or_not(event.name) in bases:
            while modules and modules[-1][0] <= event.start_s:
                modules.pop()
            path = modules[-1][1] if modules else None
            ops.append(ExecutedOp(event.name, path, event.start_s, event.end_s, event.tid))
            covered = event.end_s
        elif inside is None and touches_data(event.name):
            strangers.append(event)
    return Executed(tuple(ops), tuple(strangers))


def passes(host: Iterable[HostEvent]) -> list[HostEvent]:
    """The ranges around whole passes, in order."""
    return sorted((e for e in host if e.name == PASS), key=lambda e: e.start_s)


@cache
def touches_data(name: str) -> bool:
    """Whether an operator, seen without anything inside it, did work on data.

    A view or an allocation does not; nor does a composite operator that called nothing, as dropout in evaluation.
    """
    namespace, _, base = name.partition("::")
    if namespace != "aten":
        return bool(base)
    schemas = torch._C._jit_get_schemas_for_operator(name)
    if base in NO_WORK or not schemas:
        return False
    for schema in schemas:
        overload = f"{schema.name}.{schema.overload_name}" if schema.overload_name else schema.name
        if not torch._C._dispatch_has_kernel(overload):  # known to TorchScript alone
            continue
        if "name" in schema.overload_name.lower():  # dimensions by name (torch < 2.13): a composite beside any operator
            continue
        if torch._C._dispatch_has_kernel_for_dispatch_key(overload, "CompositeImplicitAutograd"):
            return False
        if any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns):
            return False
        if torch.Tag.inplace_view in getattr(getattr(torch.ops.aten, base), schema.overload_name or "default").tags:
            return False
    return True


SHOWN = 200
"""Differences that are listed one by one; the rest is counted."""


class SequenceMismatch(RuntimeError):
    """The device ran another sequence than the graph holds; `differences` says which operations."""

    def __init__(self, differences: tuple[str, ...]) -> None:
        count = len(differences)
        super().__init__(f"the device ran other operations than were traced: {differences[0]} ({count} differences)")
        self.differences = differences


def in_place_or_not(name: str) -> str:
    """An operator without the mark of its in-place form: `linear` adds its bias in place unless a mode watches it."""
    return name.rstrip("_")


def sequence(graph: OpGraph) -> list[tuple[str, str]]:
    """(module path, operator) of each operation, in order."""
    return [(op.path, in_place_or_not(op.name)) for op in graph.ops]


def differences(traced: Sequence[tuple[str, str]], ran: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """One line an operation that only one side has; empty if both ran the same."""
    if list(traced) == list(ran):
        return ()
    lines: list[str] = []
    for tag, a, b, c, d in SequenceMatcher(None, traced, ran, autojunk=False).get_opcodes():
        if tag == "equal":
            continue
        lines += [f"traced only: {name} in {path or 'the model'}" for path, name in traced[a:b]]
        lines += [f"device only: {name} in {path or 'the model'}" for path, name in ran[c:d]]
    if len(lines) > SHOWN:
        lines = [*lines[:SHOWN], f"and {len(lines) - SHOWN} more"]
    return tuple(lines)


def only_ran(traced: Sequence[tuple[str, str]], ran: Sequence[tuple[str, str]]) -> set[int] | None:
    """Positions in `ran` of what was not traced; None where something traced did not run."""
    changes = [c for c in SequenceMatcher(None, traced, ran, autojunk=False).get_opcodes() if c[0] != "equal"]
    if any(tag != "insert" for tag, *_ in changes):
        return None
    return {i for *_, c, d in changes for i in range(c, d)}
