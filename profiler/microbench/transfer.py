"""Bandwidth between the host's memory and the device's: pinned and pageable, each way and both ways at once.

Each byte that crosses counts once; both ways count both copies. Pinned copies are asynchronous and timed by the device,
one after another, so that their launch is hidden. Pageable copies go through the driver's pinned buffer and keep the
host's thread busy: they are timed by the host until the device is done, and "both ways" is what one thread reaches with
two streams. The buffers are reused, so that a copy that fits the host's last-level cache may come from it.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from profiler.devices.backend import backend_of
from profiler.microbench.bench import Bench
from profiler.microbench.memory import normal
from profiler.record.measurement import Measurement
from profiler.timing.clocks import HostClock
from profiler.timing.engine import Case

FIRST_BYTES, LAST_BYTES = 1 << 10, 1 << 30
STEP, QUICK_STEP = 4, 32
"""Factor from one size to the next; both end at the last size."""
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
"""The copies of one call, the one to the device first."""


def transfer(bench: Bench) -> Iterator[Measurement]:
    """Time every memory, direction and size that fits the limit on a case's memory."""
    if bench.backend.is_host:
        yield bench.missing("transfer", "all", unit="B/s", reason="no device memory apart from the host's")
        return
    lengths = sizes(QUICK_STEP if bench.quick else STEP)
    for memory, direction, size in itertools.product(MEMORIES, DIRECTIONS, lengths):
        work = crossing(direction, size)
        if work > (bench.limit_bytes or 0):
            continue
        yield bench.time(
            "transfer",
            f"{memory} {direction} {size}",
            partial(transfer_case, memory, direction, size, bench.device),
            unit="B/s",
            work=work,
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
    """The case of copies between the host and the device. Raises ValueError for an unknown memory or direction."""
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

    def run(copies: Copies) -> None:
        if direction == BOTH:  # the second stream starts with the current one, which waits for it
            with backend.beside(device) as side:
                copies[0].enqueue()
                with side:
                    copies[1].enqueue()
        else:
            copies[0].enqueue()
        if memory == "pageable":
            backend.synchronize(device)

    def check(copies: Copies, result: object) -> None:
        backend.synchronize(device)
        parts = slice(None, None, max(1, elements // CHECKED)), slice(-1, None)
        for copy, part in itertools.product(copies, parts):
            if not torch.equal(copy.source[part].cpu(), copy.target[part].cpu()):
                raise ArithmeticError(f"a {memory} copy of {size} bytes, {direction}, differs from its source")

    return Case(make, run, crossing(direction, size), check)
