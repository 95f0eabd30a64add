"""Bandwidths of a collective as nccl-tests defines them, and the number of messages of its ring.

The algorithm bandwidth is size ÷ time. Times a factor of the operation and of the number of ranks it is the bus
bandwidth, which cannot exceed what a device's links carry, however many ranks there are (nccl-tests,
doc/PERFORMANCE.md, src/sendrecv.cu, src/alltoall.cu). Size × factor are the bytes that `roofline.whatif.collectives`
sends over a rank's link, and the messages are its steps, so a measured busbw is the bandwidth of a link. The size is
the buffer of a rank, for all_gather its output (all parts) and for reduce_scatter its input (all parts).

Example: ``33554432 / 195.40e-6 * factor("all_reduce", ranks=8)`` → 300.51e9 bytes/s
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ring:
    """The cost of an operation among n ranks in a ring."""

    factor: Callable[[int], float]
    """Bytes that cross the busiest rank's link ÷ size."""
    messages: Callable[[int], int]
    """Messages one after another; those of a chain for a broadcast."""


RINGS: dict[str, Ring] = {
    "all_reduce": Ring(lambda n: 2 * (n - 1) / n, lambda n: 2 * (n - 1)),
    "all_gather": Ring(lambda n: (n - 1) / n, lambda n: n - 1),
    "reduce_scatter": Ring(lambda n: (n - 1) / n, lambda n: n - 1),
    "all_to_all": Ring(lambda n: (n - 1) / n, lambda n: n - 1),
    "broadcast": Ring(lambda n: 1.0, lambda n: n - 1),
    "send_recv": Ring(lambda n: 1.0, lambda n: 1),
}


def factor(operation: str, ranks: int) -> float:
    """busbw ÷ algbw. Raises ValueError for an operation that is not in `RINGS`, or fewer than 2 ranks."""
    return _ring(operation, ranks).factor(ranks)


def messages(operation: str, ranks: int) -> int:
    """Steps of the ring. Raises ValueError as `factor` does."""
    return _ring(operation, ranks).messages(ranks)


def _ring(operation: str, ranks: int) -> Ring:
    if operation not in RINGS:
        raise ValueError(f"no collective {operation!r}; use {', '.join(RINGS)}")
    if ranks < 2:
        raise ValueError(f"{operation} among {ranks} ranks moves nothing; use two or more")
    return RINGS[operation]
