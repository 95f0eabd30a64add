"""The CUDA clocks on devices that are only pretended: what they enqueue, in which order; and the floor of a clock."""

import gc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch

from profiler.devices.backend import CYCLES_PER_S
from profiler.timing.clocks import (
    HOLD_LIMIT_S,
    HOLD_MARGIN,
    LIMIT_S,
    READINGS,
    WARM_UPS,
    Call,
    EventClock,
    GraphClock,
    NotCapturable,
    floor_s,
    too_short,
)


class Device:
    """Writes down what is enqueued; a host call takes `issue_s`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, issue_s: float) -> None:
        self.queue: list[str] = []
        self.holds: list[float] = []
        self.issue_s, self.now = issue_s, 0.0
        device = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                device.queue.append("event")

            def synchronize(self) -> None:
                device.queue.append("wait")

            def elapsed_time(self, end: "Event") -> float:
                return 2.0  # ms

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: self.queue.append("idle"))
        monkeypatch.setattr(torch.cuda, "_sleep", self.sleep)
        self.clock = EventClock(torch.device("cuda"))
        monkeypatch.setattr(self.clock, "now", lambda: self.now)

    def sleep(self, cycles: int) -> None:
        self.queue.append("hold")
        self.holds.append(cycles / CYCLES_PER_S)

    def call(self) -> None:
        self.queue.append("call")
        self.now += self.issue_s


def test_the_device_is_held_while_the_host_enqueues(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch, issue_s=5e-6)
    call = device.call
    assert device.clock.time(call, 1) == pytest.approx(2e-3)
    assert device.queue == ["idle", "event", "call", "event", "wait"]  # nothing is known of the call yet
    device.queue.clear()
    device.clock.time(call, 3)
    assert device.queue == ["idle", "hold", "event", "call", "call", "call", "event", "wait"]
    assert device.holds == [pytest.approx(HOLD_MARGIN * 3 * 5e-6, rel=1e-3)]


def test_a_hold_follows_the_fastest_issue_and_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch, issue_s=1.0)  # lazy initialisation
    call = device.call
    device.clock.time(call, 1)
    device.issue_s = 1e-5
    device.clock.time(call, 100)
    device.issue_s = 1e-3  # the queue is full
    device.clock.time(call, 100)
    device.clock.time(call, 100)
    assert device.holds == pytest.approx([HOLD_LIMIT_S, HOLD_MARGIN * 1e-3, HOLD_MARGIN * 1e-3], rel=1e-3)


def test_a_hold_is_that_of_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch, issue_s=1e-5)
    call = device.call
    device.clock.time(call, 1)

    def nothing() -> None:
        pass

    device.clock.time(nothing, 1)  # a clock's floor is taken between two cases
    device.clock.time(nothing, 1)
    device.clock.time(call, 10)
    assert device.holds == pytest.approx([0.0, HOLD_MARGIN * 1e-4], rel=1e-3)


CUDA = torch.device("cuda")


class GraphDevice:
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
    device = GraphDevice(monkeypatch)

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
    device = GraphDevice(monkeypatch)
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
    device = GraphDevice(monkeypatch)
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
    device = GraphDevice(monkeypatch)

    def call() -> None:
        if device.capturing is not None:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        GraphClock(CUDA).time(call, 1)


def test_a_call_that_does_nothing_has_a_time_without_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    GraphDevice(monkeypatch)
    assert GraphClock(CUDA).time(lambda: None, 1) > 0


class Clock:
    """Readings that cost what they are told to."""

    name = "simulated"
    replays = False

    def __init__(self, reading_s: float) -> None:
        self.reading_s, self.at, self.taken = reading_s, 0.0, 0

    def now(self) -> float:
        return self.at

    def time(self, call: Call, repeats: int) -> float:
        call()
        self.at += self.reading_s
        self.taken += 1
        return 1e-7 * self.taken


def test_a_quick_clock_is_read_often() -> None:
    clock = Clock(1e-6)
    assert floor_s(clock) == 1e-7 * (READINGS + 1) / 2 and clock.taken == READINGS
    floor_s(clock)
    assert clock.taken == READINGS, "once for each clock"


def test_a_slow_clock_is_read_once_at_least_and_not_for_long() -> None:
    slow, slowest = Clock(LIMIT_S / 4), Clock(10 * LIMIT_S)
    floor_s(slow)
    floor_s(slowest)
    assert (slow.taken, slowest.taken) == (4, 1)


def test_ten_floors_are_enough() -> None:
    assert too_short(9e-7, 1e-7) and not too_short(11e-7, 1e-7)
