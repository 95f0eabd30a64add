"""The journal of a calibration: each visit is on the disk before the next begins, and a killed calibration goes on.

A visit's times belong to one graph of operations, so its line also says on how many sets of operands each kernel ran:
those kernels are made again, and further visits add to the same operations.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TypeVar

from profiler.record.files import Journal
from profiler.record.measurement import Status, Window
from profiler.timing.engine import Verdict
from profiler.timing.turns import Visit
from roofline.laws.kinds import KernelShape
from roofline.reading import record_of
from roofline.record import Record

T = TypeVar("T")

FILE = "calibration.jsonl"
"""In a run's folder, while its calibration goes on or after it was interrupted."""

Times = tuple[tuple[tuple[float, ...], ...], ...]
"""Seconds of each operation, in lists of lists: what a visit returns, as JSON has it."""


class Made(Record):
    """The way a group's kernels were made."""

    kernels: tuple[tuple[int, int, int], ...] = ()
    """(place among the group's shapes, sets of operands, sets that take turns again); without those that failed."""
    failed: dict[str, str] = {}


class Line(Record):
    """One visit of one group of kernels, or of models in one dtype."""

    key: str
    """Hash of the group's shapes and of all that its operations depend on."""
    result: Times
    windows: tuple[Window, ...]
    status: Status
    made: Made = Made()
    reference: dict[str, float] = {}
    """Seconds of each reference probe beside the visit."""


def key_of(shapes: Sequence[KernelShape], **about: object) -> str:
    """Return a key that only the same group has, measured in the same way."""
    content = json.dumps([[asdict(shape) for shape in shapes], about], sort_keys=True, default=dict)
    return hashlib.sha256(content.encode()).hexdigest()


class VisitJournal:
    """The visits of an earlier process, and those of this one."""

    def __init__(self, path: Path) -> None:
        """Raise RequestError where a line is damaged."""
        self.path, self._journal = path, Journal(path)
        self._journal.drop_torn_line()
        self.lines = self._journal.read(partial(record_of, Line))

    def of(self, key: str) -> list[Line]:
        """Return the visits to one group that earlier processes made."""
        return [line for line in self.lines if line.key == key]

    def keep(self, line: Line) -> None:
        """Add a visit; it is on the disk when this returns."""
        self._journal.append(line.model_dump(mode="json"), "a visit of the calibration")

    def remove(self) -> None:
        """Forget all visits, once the table of kernels is written."""
        self.path.unlink(missing_ok=True)


def visit_of(line: Line, result: T) -> Visit[T]:
    """Return a visit with its result, as it was judged when it was made."""
    return Visit(result, line.windows, Verdict(line.status, (), (), None), line.reference)
