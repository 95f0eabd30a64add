"""An operation graph on a device's peaks: the time of every operation, as executed and as the fused ideal.

`price` is the rung T2 (or the executed graph at any peaks); `price_fused` is T0 and T1, for the datasheet's and the
measured peaks: a group's time is shared among its members in proportion to their own rooflines at the same peaks.
Both give seconds of one execution of each operation, in the graph's order, NaN where a needed peak is not known.

Example: ``(price(graph, spec.measured).time_s * [op.count for op in graph.ops]).sum()`` → predicted busy seconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from roofline.fusion import Group, fuse
from roofline.hardware import Peaks
from roofline.laws.roofline import Priced, roofline
from roofline.op import OpGraph
from roofline.residency import CacheState, Touches, level_bytes


@dataclass(frozen=True, eq=False)
class Prepared:
    """A graph with what pricing needs of it, so that several peaks share the work."""

    graph: OpGraph

    @cached_property
    def touches(self) -> Touches:
        return Touches.of(self.graph.ops, self.graph.tensors)

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        return fuse(self.graph)

    @cached_property
    def group_touches(self) -> Touches:
        return Touches.of(self.groups, self.graph.tensors)


def price(graph: OpGraph | Prepared, peaks: Peaks, state: CacheState = "in situ") -> Priced:
    """The executed graph at `peaks`: shape (operations,), seconds of one execution."""
    prepared = _prepared(graph)
    return roofline(prepared.graph.ops, level_bytes(prepared.touches, peaks, state), peaks)


def price_groups(graph: OpGraph | Prepared, peaks: Peaks, state: CacheState = "in situ") -> Priced:
    """The fused graph at `peaks`: shape (groups,), in the order of `fuse`."""
    prepared = _prepared(graph)
    return roofline(prepared.groups, level_bytes(prepared.group_touches, peaks, state), peaks)


def price_fused(graph: OpGraph | Prepared, peaks: Peaks, state: CacheState = "in situ") -> Priced:
    """The fused graph at `peaks`, shared among the executed operations: shape (operations,).

    The bound of an operation is that of its group.
    """
    prepared = _prepared(graph)
    groups = price_groups(prepared, peaks, state)
    weights = price(prepared, peaks, state).time_s
    time_s = np.zeros(len(weights))
    bound = [""] * len(weights)
    for group, total, waits_for in zip(prepared.groups, groups.time_s.tolist(), groups.bound, strict=True):
        members = list(group.ops)
        time_s[members] = shares(weights[members].tolist(), total)
        for i in members:
            bound[i] = waits_for
    return Priced(time_s=time_s, bound=tuple(bound))


def shares(weights: Sequence[float], total: float) -> list[float]:
    """`total` in proportion to the weights, equally if all are 0; NaN for all if any weight is not known."""
    whole = sum(weights)
    return [total * weight / whole if whole != 0 else total / len(weights) for weight in weights]


def _prepared(graph: OpGraph | Prepared) -> Prepared:
    return graph if isinstance(graph, Prepared) else Prepared(graph)
