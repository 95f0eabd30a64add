"""A clock that captures calls into a CUDA graph and times its replay: kernels without the host that launches them.

The graph's kernels follow each other closer than launches can, as in engines that serve from graphs. What is timed is
what was captured: the same kernels on the same operands each time.

Contract: a call that cannot be captured raises `NotCapturable` in one line. The graph of a call is kept as long as the
call itself lives, for the number of repeats that was asked for last.

Example: ``GraphClock(torch.device("cuda")).time(lambda: torch.mm(a, b, out=c), 10)``
"""

import sys
import time
import warnings
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch

from profiler.devices.backend import Backend, Graph, backend_of
from profiler.timing.clock import Call, EventClock

WARM_UPS = 3
"""Calls on a side stream before a capture: the number in torch's own examples (docs, "CUDA Graphs")."""


class NotCapturable(RuntimeError):
    """A call that does what no CUDA graph can hold."""


@dataclass(frozen=True, slots=True)
class _Captured:
    repeats: int
    replay: Call
    """Of the graph that it keeps alive."""


class GraphClock:
    """Calls that enqueue kernels; the device is idle before, and held while the host launches the graph."""

    name = "graph replay"
    replays = True

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._events = EventClock(device)
        self._graphs: WeakKeyDictionary[Call, _Captured] = WeakKeyDictionary()

    def now(self) -> float:
        return time.perf_counter()

    def time(self, call: Call, repeats: int) -> float:
        captured = self._graphs.get(call)
        if captured is None or captured.repeats != repeats:
            captured = _Captured(repeats, capture(call, repeats, self._device).replay)
            # The first replay uploads the graph, and tells how long the next one needs the device held.
            self._events.time(captured.replay, 1)
            self._graphs[call] = captured
        return self._events.time(captured.replay, 1)


def capture(call: Call, repeats: int, device: torch.device, instead: str = "time it with CUDA events") -> Graph:
    """A graph of `repeats` calls in a row; tensors that they make live as long as the graph.

    `instead`: what to do with a call that cannot be captured, for people.
    Raises NotCapturable, what the call itself raises in warm-up, and torch.OutOfMemoryError.
    """
    handled = sys.exception()
    backend = backend_of(device)
    with backend.on(device):
        _warm_up(call, backend, device)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="The CUDA Graph is empty")  # a clock's floor is such a call
                with backend.capture(device) as graph:
                    for _ in range(repeats):
                        call()
        except Exception as error:
            first = _first(error, handled)
            if isinstance(first, torch.OutOfMemoryError):
                raise first from None
            raise NotCapturable(
                f"not captured in a CUDA graph ({_first_line(first)}): the call waits for the device, or makes the "
                f"host look at data; {instead}"
            ) from error
    return graph


def _warm_up(call: Call, backend: Backend, device: torch.device) -> None:
    """Whatever a library allocates or chooses in its first calls happens outside of the capture."""
    with backend.beside(device) as side, side:
        for _ in range(WARM_UPS):
            call()


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"


def _first(error: BaseException, handled: BaseException | None) -> BaseException:
    """What went wrong first: ending a broken capture raises another error, which only says that it is broken.

    `handled` is what was being handled before, and is no part of it.
    """
    while error.__context__ is not None and error.__context__ is not handled:
        error = error.__context__
    return error
