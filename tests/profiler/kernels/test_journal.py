"""A calibration that is ended in the middle: what it measured is on the disk, and the next one goes on from there."""

from pathlib import Path

import pytest
import torch
from watches import Plays

from profiler.kernels import measure
from profiler.kernels.journal import VisitJournal
from profiler.kernels.table import Probing, probe_kernels
from profiler.record.run import RequestError
from profiler.timing.turns import Watched
from roofline.laws.kinds import KernelShape

CPU, CACHE = torch.device("cpu"), 1 << 15
PRODUCT = KernelShape("matmul", "float32", "aten::mm", {"m": 8, "n": 32, "k": 16})
DECODE = KernelShape(
    "decode_attention", "float32", "aten::scaled_dot_product_attention",
    {"batch": 2, "heads": 4, "kv_heads": 2, "head_dim": 8, "query": 1, "kv": 6},
)  # fmt: skip
STREAM = KernelShape("aten::silu", "float32", "aten::silu", {"rows": 4, "width": 64})


@pytest.fixture(autouse=True)
def any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loaded machine does not cut the sets of operands, on which the rows of the table depend."""
    monkeypatch.setattr(measure, "LONGEST_S", 1e3)
    monkeypatch.setattr(measure, "LONGEST_STREAM_S", 1e3)


class Killed(BaseException):
    """As a signal is, no error that a calibration handles."""


def probed(path: Path, ended_at: int | None = None, eager: bool = False) -> tuple[Probing, list[str]]:
    """A calibration that is ended before its visit `ended_at`; the visits that it began."""
    begun: list[str] = []

    def progress(part: float, what: str) -> None:
        if what.startswith("visit"):
            begun.append(what)
            if len(begun) == ended_at:
                raise Killed

    shapes = (PRODUCT, DECODE, STREAM)
    found = probe_kernels(
        shapes, CPU, CACHE, limit_bytes=1 << 24, versions={}, watch=Plays(), progress=progress,
        visits=1 if eager else 3,
        eager={"float32": 1e9} if eager else {}, journal=VisitJournal(path),
    )  # fmt: skip
    return found, begun


def keys(found: Probing) -> list[tuple[object, ...]]:
    assert found.table is not None
    return [(row["op"], row["group"], row["m"], row["reach"]) for row in found.table.table.to_pylist()]


def same(found: Probing, whole: Probing) -> None:
    """Both have the same kernels; how much a pass touches between two of them follows from its number of repeats."""
    assert [key[:3] for key in keys(found)] == [key[:3] for key in keys(whole)]
    assert [key[3] for key in keys(found)] == pytest.approx([key[3] for key in keys(whole)], rel=0.1)


@pytest.mark.parametrize("eager", [False, True])
def test_a_killed_calibration_keeps_its_visits_and_makes_only_those_that_lack(eager: bool, tmp_path: Path) -> None:
    whole, begun = probed(tmp_path / "whole", eager=eager)
    path = tmp_path / "killed"
    with pytest.raises(Killed):
        probed(path, ended_at=len(begun), eager=eager)
    assert len(VisitJournal(path).lines) == len(begun) - 1
    with path.open("ab") as file:
        file.write(b'{"key":"half a li')  # as kill -9 leaves it
    again, rest = probed(path, eager=eager)
    assert len(rest) == 1 and again.failed == whole.failed == {}
    same(again, whole)
    third, none = probed(path, eager=eager)
    assert none == []
    same(third, whole)
    assert again.table is not None and third.table is not None
    assert third.table.table["time_s"] == again.table.table["time_s"]


def test_times_of_earlier_visits_are_in_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal"
    with pytest.raises(Killed):
        probed(path, ended_at=3)
    visit = measure.ProbedKernels.visit

    def slow(self: measure.ProbedKernels, watched: Watched) -> list[list[float]]:
        return [[1000 + time_s for time_s in passes] for passes in visit(self, watched)]

    monkeypatch.setattr(measure.ProbedKernels, "visit", slow)
    mixed, _ = probed(path)
    assert mixed.table is not None
    times = mixed.table.table["time_s"].to_pylist()
    assert all(0 < time_s < 1000 for time_s in times)  # of three visits the middle one counts, which was made earlier


def test_kernels_are_made_again_on_as_many_sets_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal"
    monkeypatch.setattr(measure.Kernel, "bounded", lambda self, turns: self.cut(2, 1))  # as on a slow machine
    with pytest.raises(Killed):
        probed(path, ended_at=2)
    monkeypatch.undo()
    found, _ = probed(path)
    assert (
        all(sets == 2 for line in VisitJournal(path).lines for _, sets, _ in line.made.kernels) and found.failed == {}
    )


def test_visits_of_other_kernels_or_of_another_device_are_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    probed(path)
    other = probe_kernels(
        (PRODUCT,), CPU, CACHE, limit_bytes=1 << 24, versions={}, watch=Plays(), journal=VisitJournal(path)
    )
    assert other.table is not None and len(VisitJournal(path).lines) == 3 + 2


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_text('{"key": "x", "result": [[["nan"]]], "windows": [], "status": "done"}\n')
    with pytest.raises(RequestError, match="line 1 is damaged"):
        VisitJournal(path)
