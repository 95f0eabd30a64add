"""A GPU on paper: real passes on a CPU, told as the session that CUDA would have given.

The host events are real. Each operator that works on data launches as it does on CUDA: a kernel through the runtime
API, products through the driver API after a memset, copies as memcpy; the device runs them one after another.

Example: ``rounds(PaperGpu(model, inputs), graph, budget_s=0.01).closure.kernels``
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from profiler.attribution.operations import PASS, touches_data
from profiler.attribution.timeline import DeviceEvent, HostEvent, Launch, LaunchKind, Timeline
from profiler.models.inputs import PassInputs
from profiler.passes.eager import Runner

STREAM = 7
KERNEL_S = 2e-7
"""Short, so that the device keeps up with any host."""
APIS: dict[str, tuple[str, LaunchKind]] = {
    "kernel": ("cudaLaunchKernel", "kernel"),
    "product": ("cuLaunchKernelEx", "kernel"),
    "Memset (Device)": ("cudaMemsetAsync", "memory"),
    "Memcpy DtoD (Device -> Device)": ("cudaMemcpyAsync", "memory"),
    "Memcpy HtoD (Pageable -> Device)": ("cudaMemcpyAsync", "memory"),
}
"""Call and kind of each sort of device work."""

Change = Callable[[Timeline, int], Timeline]
"""What a test does to the k-th session's timeline."""


class PaperGpu(Runner):
    """Runs on the CPU, is measured as CUDA."""

    def __init__(self, model: nn.Module, inputs: PassInputs, change: Change = lambda timeline, k: timeline) -> None:
        super().__init__(model, inputs, torch.device("cpu"))
        self.change, self.sessions = change, 0
        self.by_kernels = True

    def synchronize(self) -> None:
        pass

    def settle(self) -> None:
        pass

    def session(self, count: int, *, modules: bool = False) -> tuple[Timeline, list[float]]:
        self.by_kernels = False
        timeline, walls = super().session(count, modules=modules)
        self.by_kernels = True
        self.sessions += 1
        return self.change(with_device_work(timeline), self.sessions), walls


def with_device_work(timeline: Timeline) -> Timeline:
    """The session with launches and device events of every operator that works."""
    for event in working(timeline.host):
        base = event.name.removeprefix("aten::")
        if base in ("mm", "addmm", "bmm"):
            timeline = launch(timeline, event, "Memset (Device)", at=0.2)
            timeline = launch(timeline, event, "product", at=0.5)
        else:
            timeline = launch(timeline, event, "Memcpy DtoD (Device -> Device)" if base == "copy_" else "kernel")
    return timeline


def working(host: tuple[HostEvent, ...]) -> list[HostEvent]:
    """Innermost operators that work on data."""
    found: list[HostEvent] = []
    stack: list[tuple[HostEvent, list[bool]]] = []

    def close(until_s: float) -> None:
        while stack and stack[-1][0].end_s <= until_s:
            event, inside = stack.pop()
            works = any(inside)
            if not works and "::" in event.name and touches_data(event.name):
                found.append(event)
                works = True
            if stack:
                stack[-1][1].append(works)

    for event in sorted(host, key=lambda e: (e.start_s, -e.end_s)):
        close(event.start_s)
        stack.append((event, []))
    close(float("inf"))
    return sorted(found, key=lambda e: e.start_s)


def launch(timeline: Timeline, event: HostEvent, work: str, at: float = 0.3, tid: int | None = None) -> Timeline:
    """One launch within a host event, at a part of its span, and what the device then did."""
    name, kind = APIS[work]
    start_s = event.start_s + at * (event.end_s - event.start_s)
    correlation = 1000 + len(timeline.launches)
    call = Launch(name, start_s, start_s + 1e-8, event.tid if tid is None else tid, correlation, kind)
    begin_s = start_s + 2e-8
    done = DeviceEvent(
        work,
        begin_s,
        begin_s + KERNEL_S,
        STREAM,
        0,
        correlation,
        "kernel" if kind == "kernel" else "memset" if "Memset" in work else "memcpy",
        event.external_id if tid is None else None,
    )
    return replace(timeline, launches=(*timeline.launches, call), device=(*timeline.device, done))


def with_host_events(timeline: Timeline, *names: str) -> tuple[Timeline, list[HostEvent]]:
    """The session with operators of these names at the very start of each pass, one after another."""
    added: list[HostEvent] = []
    for k, whole in enumerate(e for e in timeline.host if e.name == PASS):
        inside = [e.start_s for e in timeline.host if e.tid == whole.tid and whole.start_s < e.start_s < whole.end_s]
        room_s = (min(inside) - whole.start_s) / (len(names) + 1)
        for i, name in enumerate(names):
            start_s = whole.start_s + (i + 0.5) * room_s
            added.append(HostEvent(name, start_s, start_s + 0.8 * room_s, whole.tid, 10**6 + 100 * k + i))
    host = tuple(sorted((*timeline.host, *added), key=lambda e: (e.start_s, -e.end_s)))
    return replace(timeline, host=host), added
