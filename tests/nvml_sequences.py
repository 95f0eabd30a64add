"""Plays the sequences in tests/data/nvml through a watch, on a clock that the sequence moves."""

import json
from collections.abc import Callable
from pathlib import Path

from pydantic import Field

from profiler.devices.watch import GpuReading, GpuState, GpuWatch, HostWatch
from profiler.record.measurement import Window
from roofline.record import Record

FOLDER = Path(__file__).parent / "data" / "nvml"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))


class Sequence(Record):
    """One file; its README says what the fields are."""

    about: str
    interval_s: float = Field(gt=0)
    before: GpuReading
    after: GpuReading | None
    states: tuple[GpuState, ...]


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.s = 100.0

    def __call__(self) -> float:
        return self.s


def sequence(name: str) -> Sequence:
    return Sequence.model_validate(json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")))


def quiet_host(folder: Path, clock: Callable[[], float]) -> HostWatch:
    """A host of one CPU on which nothing happens."""
    (folder / "proc").mkdir(exist_ok=True)
    return HostWatch(folder / "proc", folder / "sys", now=clock, own=lambda: 0.0, cpus=(0,))


def play(played: Sequence, folder: Path, samples: int = 10) -> tuple[tuple[Window, ...], GpuWatch]:
    """A window from each state to the next."""
    clock, at = Clock(), 0
    watch = GpuWatch(lambda: played.states[at], quiet_host(folder, clock))
    windows = []
    for following in range(1, len(played.states)):
        watch.begin()
        clock.s += played.interval_s
        at = following
        windows.append(watch.end(samples))
    return tuple(windows), watch
