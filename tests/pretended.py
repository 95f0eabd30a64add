"""An accelerator that is added from outside, whose tensors lie in the host's memory, and benches that nothing disturbs.

Example: ``accelerator = pretend_accelerator(monkeypatch)``
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch

from profiler.devices import backend
from profiler.devices.backend import Backend, Event
from profiler.devices.watch import Watch
from profiler.microbench.bench import Bench
from profiler.record.measurement import Window


class Quiet:
    """A watch of a device on which nothing else happens; `power_w` of 0: a counter that stands still."""

    def __init__(self, power_w: float | None = None, unread: tuple[str, ...] = ()) -> None:
        self.power_w, self.unread = power_w, unread

    def begin(self) -> None:
        pass

    def end(self, samples: int) -> Window:
        energy_j = None if self.power_w is None else 0.25 * self.power_w
        return Window(start_s=0.0, duration_s=0.25, samples=samples, energy_j=energy_j)

    def close(self) -> None:
        pass


class Graph:
    """Runs again what was captured."""

    def __init__(self, call: Callable[[], object], repeats: int) -> None:
        self.call, self.repeats = call, repeats

    def replay(self) -> None:
        for _ in range(self.repeats):
            self.call()


class Instant:
    """An event of a device whose work is done when its call returns."""

    def __init__(self) -> None:
        self.at_s = 0.0

    def record(self) -> None:
        self.at_s = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: "Instant") -> float:
        return 1e3 * (end.at_s - self.at_s)


class Accelerator(Backend):
    """A kind of device that roofcal does not know: torch finds its tensors where those of the CPU are."""

    type, label = "cpu", "pretended"
    runs_ahead_of_host = captures_graphs = counts_energy = True

    def __init__(self) -> None:
        self.steps: list[str] = []
        """What it was asked to do, in order."""

    def device_name(self, device: torch.device) -> str:
        return "Pretended accelerator"

    def cache_bytes(self, device: torch.device) -> dict[str, int]:
        return {"L2": 1 << 20}

    def memory_bytes(self, device: torch.device) -> int:
        return 1 << 30

    def synchronize(self, device: torch.device) -> None:
        self.steps.append("idle")

    def event(self) -> Event:
        return Instant()

    def hold(self, device: torch.device, seconds: float) -> None:
        self.steps.append("hold")

    @contextmanager
    def beside(self, device: torch.device) -> Iterator[AbstractContextManager[Any]]:
        @contextmanager
        def side() -> Iterator[None]:
            self.steps.append("side")
            yield
            self.steps.append("main")

        self.steps.append("fork")
        yield side()
        self.steps.append("join")

    def watch(self, device: torch.device) -> Watch:
        return Quiet(power_w=100.0)


def quiet_bench(*, budget_s: float = 0.01, quick: bool = False, limit_bytes: int | None = None) -> Bench:
    """A bench of the CPU whose results do not depend on what else runs on it."""
    bench = Bench(torch.device("cpu"), budget_s=budget_s, quick=quick, limit_bytes=limit_bytes)
    bench.watch = Quiet()
    return bench


def pretend_accelerator(monkeypatch: pytest.MonkeyPatch) -> Accelerator:
    """From here on torch's CPU is taken for an accelerator, which is registered before it."""
    accelerator = Accelerator()
    monkeypatch.setattr(backend, "BACKENDS", [accelerator, *backend.BACKENDS])
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    return accelerator
