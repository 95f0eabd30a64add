"""The graph clock on a device that is only pretended: what is captured, what is replayed, and what is kept."""

import gc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch

from profiler.timing.graph_clock import WARM_UPS, GraphClock, NotCapturable

CUDA = torch.device("cuda")


class Device:
    """Writes down what is enqueued, and holds captured calls until they are replayed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.queue: list[str] = []
        self.stream = "main"
        self.capturing: Any = None
        self.graphs = 0
        device = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                device.queue.append("event")

            def synchronize(self) -> None:
                device.queue.append("wait")

            def elapsed_time(self, end: "Event") -> float:
                return 3.0  # ms

        class Stream:
            def __init__(self, name: str = "side") -> None:
                self.name = name

            def wait_stream(self, other: "Stream") -> None:
                device.queue.append(f"{self.name} waits for {other.name}")

        class Graph:
            def __init__(self) -> None:
                self.calls: list[str] = []
                device.graphs += 1

            def __del__(self) -> None:
                device.graphs -= 1

            def replay(self) -> None:
                device.queue.append(f"replay {len(self.calls)}")

        @contextmanager
        def use(stream: Stream) -> Iterator[None]:
            device.stream, before = stream.name, device.stream
            try:
                yield
            finally:
                device.stream = before

        @contextmanager
        def graph(one: Graph) -> Iterator[None]:
            device.capturing, device.stream, before = one, "capture", device.stream
            try:
                yield
                device.stream = before  # as torch does: not where the capture fails
            except RuntimeError:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture") from None
            finally:
                device.capturing = None
            if not one.calls:
                warnings.warn("The CUDA Graph is empty. This usually means …", UserWarning, stacklevel=1)

        for name, value in {
            "Event": Event,
            "Stream": Stream,
            "CUDAGraph": Graph,
            "graph": graph,
            "stream": use,
            "current_stream": lambda _=None: Stream("main"),
            "device": lambda _: nullcontext(),
            "synchronize": lambda device=None: self.queue.append("idle"),
            "_sleep": lambda cycles: self.queue.append("hold"),
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)

    def call(self) -> None:
        if self.capturing is not None:
            self.capturing.calls.append("call")
        else:
            self.queue.append(f"call on {self.stream}")

    def synchronize(self) -> None:
        """What a call does that looks at its result."""
        if self.capturing is not None:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nCompile with …")


MEASURED = ["idle", "hold", "event", "replay 4", "event", "wait"]


def test_calls_warm_up_on_a_side_stream_and_are_replayed_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)

    def call() -> None:
        device.call()

    clock = GraphClock(CUDA)
    assert clock.time(call, 4) == pytest.approx(3e-3)
    before, after = ["side waits for main", *["call on side"] * WARM_UPS, "main waits for side"], MEASURED
    untimed = [step for step in MEASURED if step != "hold"]  # how long a launch takes is not known yet
    assert device.queue == [*before, *untimed, *after]
    device.queue.clear()
    clock.time(call, 4)
    assert device.queue == MEASURED, "later samples only replay"


def test_other_repeats_are_another_graph_and_none_outlives_its_call(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    clock = GraphClock(CUDA)

    def call() -> None:
        device.call()

    def other() -> None:
        device.call()

    clock.time(call, 1)
    clock.time(call, 4)
    assert device.queue[-3:] == ["replay 4", "event", "wait"] and device.graphs == 1
    clock.time(other, 2)
    clock.time(call, 4)
    assert device.queue[-6:] == MEASURED and device.graphs == 2, "calls in turn are not captured again"
    del call
    gc.collect()
    assert device.graphs == 1


def test_a_call_that_waits_for_the_device_says_so_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    with pytest.raises(
        NotCapturable, match=r"RuntimeError: CUDA error: operation not permitted.*time it with CUDA events"
    ):
        try:
            raise KeyError("another clock had failed before")
        except KeyError:
            GraphClock(CUDA).time(device.synchronize, 1)
    with pytest.raises(NotCapturable) as raised:
        GraphClock(CUDA).time(device.synchronize, 1)
    assert "\n" not in str(raised.value)
    assert device.stream == "main", "what comes next runs where it would have"


def test_memory_that_runs_out_is_not_the_fault_of_the_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)

    def call() -> None:
        if device.capturing is not None:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        GraphClock(CUDA).time(call, 1)


def test_a_call_that_does_nothing_has_a_time_without_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    Device(monkeypatch)
    assert GraphClock(CUDA).time(lambda: None, 1) > 0
