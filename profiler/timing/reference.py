"""Reference probes: three fixed pieces of work whose time tells at which level a machine runs just now.

A shared host's bandwidth changes with its neighbours, a GPU's clock with its heat. So the same three probes run in
every visit of a calibration and in every round of a measured pass: a stream through main memory (on a CPU a
matrix-vector product, as decoding is), a matrix product (on a CPU on weights out of main memory, as a layer's are), and
the host issuing small operations. Their ratio says how much slower the machine is than when its laws were fitted.

Example: ``probes = ReferenceProbes(torch.device("cpu")); probes.time()`` → {"memory": 2.1e-3, …}, seconds of one call
"""

import itertools
from collections.abc import Callable

import torch
from torch import nn

from profiler.devices.backend import PerDevice, backend_of, free_bytes
from profiler.timing.clocks import Clock, HostClock, clock_for

STRETCH_S = 0.012
"""Seconds of calls of one probe: several time slices of the operating system, so that other work on the cores takes its
share, as it does of a pass."""
STREAM_BYTES = PerDevice(host=256 << 20, accelerator=1 << 30)
"""Read by the stream: several times what caches hold for one process. On a CPU which pages it lies on moves a stream of
64 MiB by a factor of two from one allocation to the next; a matrix of 256 MiB, by a twentieth."""
STREAM_PART = 1 / 32
"""Largest share of the free memory for the stream."""
DEPTH = 1024
"""Columns of the matrix on a CPU: a hidden size."""
PRODUCT_SIZE = 4096
"""Rows, columns and depth of the bfloat16 product of a GPU: long enough to run at the device's clock."""
ROWS = 128
"""Rows of the float32 product of a CPU, with `DEPTH` rows of the streamed matrix, other ones each time."""
HOST_OPERATIONS = 64
"""Small operations, each issued by a module of its own, of one call of the host's probe."""


class ReferenceProbes:
    """The three probes of one device, with their operands."""

    def __init__(self, device: torch.device, clock: Clock | None = None) -> None:
        """`clock`: of the device's work; tests inject one."""
        device_clock = clock or clock_for(device)
        backend = backend_of(device)
        elements = int(min(STREAM_BYTES.of(device), STREAM_PART * free_bytes(device))) // 4
        fill = torch.ones if backend.is_host else torch.randn  # a GPU's power follows its data, a CPU's little
        stream = fill(max(1, elements // DEPTH), DEPTH, device=device)
        calls = _on_cores(stream) if backend.is_host else _on_a_gpu(stream)
        small = torch.zeros(1, device=device)
        steps = nn.Sequential(*(_Add() for _ in range(HOST_OPERATIONS)))

        def host() -> None:
            steps(small)
            backend.synchronize(device)

        self._calls: dict[str, tuple[Callable[[], object], Clock]] = {
            "memory": (calls[0], device_clock),
            "product": (calls[1], device_clock),
            "host": (host, clock or HostClock()),
        }
        self._repeats: dict[str, int] = {}

    def time(self) -> dict[str, float]:
        """Seconds of one call of each of `roofline.laws.fitted.PROBES`, now."""
        seconds = {}
        with torch.no_grad():
            for name, (call, clock) in self._calls.items():
                if name not in self._repeats:
                    clock.time(call, 1)  # the first call allocates and chooses a kernel
                    self._repeats[name] = max(1, round(STRETCH_S / max(clock.time(call, 1), 1e-9)))
                repeats = self._repeats[name]
                seconds[name] = clock.time(call, repeats) / repeats
        return seconds


def _on_a_gpu(stream: torch.Tensor) -> tuple[Callable[[], object], Callable[[], object]]:
    """A sum over all of it, and a product in the caches."""
    size = (PRODUCT_SIZE, PRODUCT_SIZE)
    rows, weights = (torch.randn(size, device=stream.device, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(rows)
    return stream.sum, lambda: torch.mm(rows, weights.T, out=out)


def _on_cores(stream: torch.Tensor) -> tuple[Callable[[], object], Callable[[], object]]:
    """A matrix-vector product with all of it, and products with a part of it after the other."""
    vector, rows = torch.ones(DEPTH), torch.randn(ROWS, DEPTH)
    parts = itertools.cycle(stream.split(min(DEPTH, len(stream)))[: max(1, len(stream) // DEPTH)])
    return lambda: torch.mv(stream, vector), lambda: torch.nn.functional.linear(rows, next(parts))


class _Add(nn.Module):
    """One small operation behind the interpreter's call of a module."""

    def forward(self, small: torch.Tensor) -> torch.Tensor:
        return small.add_(1.0)
