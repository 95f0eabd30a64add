"""The CUDA clock on a device that is only pretended: what it enqueues, and in which order."""

from contextlib import nullcontext

import pytest
import torch

from profiler.devices.backend import CYCLES_PER_S
from profiler.timing.clock import HOLD_LIMIT_S, HOLD_MARGIN, EventClock


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
