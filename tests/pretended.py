"""A bench that takes itself for a GPU while its tensors lie in the host's memory, and the parts of torch.cuda it needs.

Example: ``bench = pretend_cuda(monkeypatch)``
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch

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


class Stream:
    """Work on it is done at once; who waits for whom is written down."""

    waits: list[tuple["Stream", "Stream"]] = []

    def __init__(self, device: object = None) -> None:
        self.used = 0

    def wait_stream(self, other: "Stream") -> None:
        Stream.waits.append((self, other))


def quiet_bench(*, budget_s: float = 0.01, quick: bool = False, limit_bytes: int | None = None) -> Bench:
    """A bench of the CPU whose results do not depend on what else runs on it."""
    bench = Bench(torch.device("cpu"), budget_s=budget_s, quick=quick, limit_bytes=limit_bytes)
    bench.watch = Quiet()
    return bench


def pretend_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on every bench is one of a GPU."""
    current = Stream()

    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        stream.used += 1
        yield

    for name, value in {
        "Stream": Stream,
        "stream": on,
        "current_stream": lambda: current,
        "device": lambda _: nullcontext(),
        "synchronize": lambda device=None: None,
        "empty_cache": lambda: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(Bench, "is_cuda", property(lambda self: True))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    Stream.waits.clear()
