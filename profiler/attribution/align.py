"""Whether the device ran what was traced, operation by operation.

Example: ``differences(sequence(graph), [(op.path, op.name) for op in executed.ops]) == ()``
"""

from collections.abc import Sequence
from difflib import SequenceMatcher

from roofline.graph.op import OpGraph

SHOWN = 200
"""Differences that are listed one by one; the rest is counted."""


class SequenceMismatch(RuntimeError):
    """The device ran another sequence than the graph holds; `differences` says which operations."""

    def __init__(self, found: tuple[str, ...]) -> None:
        super().__init__(f"the device ran other operations than were traced: {found[0]} ({len(found)} differences)")
        self.differences = found


def in_place_or_not(name: str) -> str:
    """An operator without the mark of its in-place form: `linear` adds its bias in place unless a mode watches it."""
    return name.rstrip("_")


def sequence(graph: OpGraph) -> list[tuple[str, str]]:
    """(module path, operator) of each operation, in order."""
    return [(op.path, in_place_or_not(op.name)) for op in graph.ops]


def differences(traced: Sequence[tuple[str, str]], found: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """One line an operation that only one side has; empty if both ran the same."""
    if list(traced) == list(found):
        return ()
    lines: list[str] = []
    for tag, a, b, c, d in SequenceMatcher(None, traced, found, autojunk=False).get_opcodes():
        if tag == "equal":
            continue
        lines += [f"traced only: {name} in {path or 'the model'}" for path, name in traced[a:b]]
        lines += [f"device only: {name} in {path or 'the model'}" for path, name in found[c:d]]
    if len(lines) > SHOWN:
        lines = [*lines[:SHOWN], f"and {len(lines) - SHOWN} more"]
    return tuple(lines)


def only_found(traced: Sequence[tuple[str, str]], found: Sequence[tuple[str, str]]) -> set[int] | None:
    """Positions in `found` of what was not traced; None where something traced was not found."""
    extra: set[int] = set()
    for tag, _, _, c, d in SequenceMatcher(None, traced, found, autojunk=False).get_opcodes():
        if tag == "insert":
            extra.update(range(c, d))
        elif tag != "equal":
            return None
    return extra
