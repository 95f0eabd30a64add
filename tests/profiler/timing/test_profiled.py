"""The kernel clock on recorded and made-up timelines: what it adds up, and what it refuses."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from intervals import union_s

from profiler.attribution.timeline import read_timeline
from profiler.devices.backend import CUDA
from profiler.record.run import InvalidMeasurement
from profiler.timing import clocks as kernel_clock
from profiler.timing.clocks import KernelClock, busy_s, recorded

RECORDED = Path(__file__).parents[2] / "data" / "timelines" / "llama_decode_cuda.json"
LAUNCH_US, KERNEL_US = 5, 30


class Device:
    """A profiler session of a device that runs a kernel of 30 µs for each launch, one after another."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, change: Callable[[list[Any]], list[Any]] = lambda e: e) -> None:
        self.change = change
        self.queue: list[str] = []
        monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: self.queue.append("idle"))
        monkeypatch.setattr(kernel_clock, "recorded", self.recorded)

    def call(self) -> None:
        self.queue.append("call")

    @contextmanager
    def recorded(self, path: Path, device: torch.device) -> Iterator[None]:
        self.queue.append("settle")
        yield
        path.write_text(json.dumps({"traceEvents": self.change(self.events())}))

    def events(self) -> list[dict[str, Any]]:
        calls = self.queue.count("call")
        found = [event("kernel", "spin_kernel", 0, 1, correlation=1)]
        found.append(event("user_annotation", "roofcal-pass", 100, 100 + (LAUNCH_US + KERNEL_US) * calls))
        for i in range(calls):
            found.append(event("cuda_runtime", "cudaLaunchKernel", 101 + LAUNCH_US * i, 4, correlation=10 + i))
            found.append(event("kernel", "add", 106 + KERNEL_US * i, KERNEL_US, correlation=10 + i))
        return found


def event(category: str, name: str, start_us: float, duration_us: float, correlation: int = 0) -> dict[str, Any]:
    args = {"correlation": correlation, "device": 0, "stream": 7}
    return {"ph": "X", "cat": category, "name": name, "ts": start_us, "dur": duration_us, "tid": 1, "args": args}


def test_only_the_kernels_of_the_calls_count(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    assert KernelClock(torch.device("cuda")).time(device.call, 3) == pytest.approx(3 * KERNEL_US * 1e-6)
    assert device.queue == ["settle", "idle", "call", "call", "call", "idle"]


def test_calls_that_launch_nothing_take_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    Device(monkeypatch)
    assert KernelClock(torch.device("cuda")).time(lambda: None, 3) == 0.0


def test_kernels_that_overlap_are_counted_once() -> None:
    timeline = read_timeline(RECORDED)
    starts, ends = (np.array([getattr(e, end) for e in timeline.device]) for end in ("start_s", "end_s"))
    assert busy_s(timeline) == pytest.approx(union_s(starts, ends), rel=1e-9)
    assert busy_s(timeline) < (ends - starts).sum() - 1e-6, "the recording must hold kernels that overlap"


def without(index: int) -> Callable[[list[Any]], list[Any]]:
    """One of the calls' kernels is lost."""
    return lambda events: [e for e in events if e["cat"] != "kernel" or e["args"]["correlation"] != 10 + index]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without(0), "1 of 3 kernel launches have no event"),
        (without(2), "1 of 3 kernel launches have no event"),
        (lambda events: [e for e in events if e["cat"] != "cuda_runtime"], "have no launch record"),
        (lambda events: [e for e in events if e["cat"] != "kernel"], "saw no kernel on the GPU"),
        (lambda events: [e for e in events if e["cat"] != "user_annotation"], "lost the range"),
        (lambda events: [*events, event("cuda_runtime", "cudaGraphLaunch", 120, 4, 99)], "1 CUDA graph launches"),
    ],
)
def test_events_that_are_lost_are_noticed(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[list[Any]], list[Any]], says: str
) -> None:
    device = Device(monkeypatch, change)
    with pytest.raises(InvalidMeasurement, match=says):
        KernelClock(torch.device("cuda")).time(device.call, 3)


def test_a_session_settles_on_cuda_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    slept: list[int] = []
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "_sleep", slept.append)
    with recorded(tmp_path / "cpu.json", torch.device("cpu")):
        torch.ones(2).add_(1)
    assert not slept and any(e.name == "aten::add_" for e in read_timeline(tmp_path / "cpu.json").host)
    CUDA.settle(torch.device("cuda"), 5)
    assert slept == [1] * 5


def test_a_session_ends_with_the_error_of_its_block(tmp_path: Path) -> None:
    with pytest.raises(ArithmeticError), recorded(tmp_path / "cpu.json", torch.device("cpu")):
        raise ArithmeticError("the call failed")
    with recorded(tmp_path / "next.json", torch.device("cpu")):  # the profiler is free again
        torch.ones(2)
    assert (tmp_path / "next.json").exists() and not (tmp_path / "cpu.json").exists()
