"""Bandwidth between the host's memory and the device's: pinned and pageable, each way and both ways at once.

Convention: bytes that cross, each once; both ways count both copies. Pinned copies are asynchronous and timed by the
device, one after another, so that their launch is hidden. Pageable ones go through the driver's own pinned buffer and
keep the host's thread busy: they are timed by the host until the device is done, and "both ways" is what one thread
gets of two streams. The same buffers each time, so that what fits the host's last-level cache may come from it.

Example: ``{m.case: m.value() for m in transfer(Bench(torch.device("cuda")))}["pinned to device 1048576"]``
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from profiler.devices.backend import Backend, backend_of
from profiler.microbench.bench import Bench
from profiler.microbench.memory import normal
from profiler.record.measurement import Measurement
from profiler.timing.clocks import HostClock
from profiler.timing.engine import Case

FIRST_BYTES, LAST_BYTES = 1 << 10, 1 << 30
STEP, QUICK_STEP = 4, 32
"""From one size to the next; both end at the last one."""
MEMORIES = ("pinned", "pageable")
TO, FROM, BOTH = "to device", "from device", "both ways"
DIRECTIONS = (TO, FROM, BOTH)
CHECKED = 4096
"""Elements of a copy that are compared with their source: evenly spread ones and the last."""


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy in one direction, float32."""

    source: Tensor
    target: Tensor

    def enqueue(self) -> None:
        self.target.copy_(self.source, non_blocking=True)


Copies = tuple[Copy, ...]
"""The copy to the device comes first."""


def transfer(bench: Bench) -> Iterator[Measurement]:
    """Bandwidth of every memory, direction and size that the limit on a case's memory allows."""
    if bench.backend.is_host:
        yield bench.missing("transfer", "all", unit="B/s", reason="no device memory apart from the host's")
        return
    for memory in MEMORIES:
        for direction in DIRECTIONS:
            for size in sizes(QUICK_STEP if bench.quick else STEP):
                if crossing(direction, size) <= (bench.limit_bytes or 0):
                    yield time_transfer(bench, memory, direction, size)


def time_transfer(bench: Bench, memory: str, direction: str, size: int) -> Measurement:
    """Time copies of `size` bytes each way."""
    return bench.time(
        "transfer",
        f"{memory} {direction} {size}",
        lambda: transfer_case(memory, direction, size, bench.device),
        unit="B/s",
        work=crossing(direction, size),
        cache="in place",
        parameters={"bytes": size, "direction": direction, "memory": memory},
        clock=HostClock() if memory == "pageable" else None,
    )


def sizes(step: int) -> list[int]:
    """Bytes each way, the smallest first."""
    count = round(math.log(LAST_BYTES / FIRST_BYTES, step)) + 1
    return [FIRST_BYTES * step**i for i in range(count)]


def crossing(direction: str, size: int) -> int:
    """Bytes that cross in one call."""
    return size * (2 if direction == BOTH else 1)


def transfer_case(memory: str, direction: str, size: int, device: torch.device) -> Case[Copies]:
    """Copies between the host and the device. Raises ValueError for a memory or direction that is none of the lists."""
    if memory not in MEMORIES or direction not in DIRECTIONS:
        raise ValueError(f"no transfer {memory!r} {direction!r}; use {MEMORIES} and {DIRECTIONS}")
    elements = size // 4

    def on_host(tensor: Tensor) -> Tensor:
        return tensor.pin_memory() if memory == "pinned" else tensor

    def make() -> Copies:
        host = torch.device("cpu")
        to = Copy(on_host(normal(elements, host)), torch.full((elements,), math.nan, device=device))
        back = Copy(normal(elements, device), on_host(torch.full((elements,), math.nan)))
        return {TO: (to,), FROM: (back,), BOTH: (to, back)}[direction]

    backend = backend_of(device)
    enqueue = partial(_both, backend, device) if direction == BOTH else _one_way

    def run(copies: Copies) -> None:
        enqueue(copies)
        if memory == "pageable":
            backend.synchronize(device)

    def check(copies: Copies, result: object) -> None:
        backend.synchronize(device)
        for copy in copies:
            if not (_same(copy, slice(None, None, max(1, elements // CHECKED))) and _same(copy, slice(-1, None))):
                raise ArithmeticError(f"a {memory} copy of {size} bytes, {direction}, differs from its source")

    return Case(make, run, crossing(direction, size), check)


def _one_way(copies: Copies) -> None:
    copies[0].enqueue()


def _both(backend: Backend, device: torch.device, copies: Copies) -> None:
    """Two copies at once: the second one on a stream that starts with the current one, which waits for it."""
    with backend.beside(device) as side:
        copies[0].enqueue()
        with side:
            copies[1].enqueue()


def _same(copy: Copy, part: slice) -> bool:
    return torch.equal(copy.source[part].cpu(), copy.target[part].cpu())
