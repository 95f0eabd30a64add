"""Bandwidths of a collective as nccl-tests defines them, and how many messages its ring takes.

The algorithm bandwidth is size ÷ time; times a factor of the operation and of the number of ranks it is the bus
bandwidth, which no operation can raise above what one device's links carry, however many ranks there are (nccl-tests,
doc/PERFORMANCE.md; sendrecv and alltoall: src/sendrecv.cu, src/alltoall.cu). What nccl-tests calls the size:

| operation | size | factor | messages |
|---|---|---|---|
| all_reduce | buffer of a rank | 2 (n − 1) / n | 2 (n − 1) |
| all_gather | what each rank has in the end: all parts | (n − 1) / n | n − 1 |
| reduce_scatter | what each rank has at first: all parts | (n − 1) / n | n − 1 |
| all_to_all | buffer of a rank, its own share within | (n − 1) / n | n − 1 |
| broadcast | buffer | 1 | n − 1 |
| send_recv | message | 1 | 1 |

Size × factor are the bytes that `roofline.whatif.collectives` lets a rank send over its link, and the messages are its
steps, so that a measured busbw is the bandwidth of its links. (It has no broadcast: that one's messages are a chain's.)

Example: ``33554432 / 195.40e-6 * factor("all_reduce", ranks=8)`` → 300.51e9 bytes/s
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ring:
    """What an operation among n ranks costs in a ring."""

    factor: Callable[[int], float]
    """Bytes that cross the busiest rank's link ÷ size."""
    messages: Callable[[int], int]
    """Messages that follow one another."""


RINGS: dict[str, Ring] = {
    "all_reduce": Ring(lambda n: 2 * (n - 1) / n, lambda n: 2 * (n - 1)),
    "all_gather": Ring(lambda n: (n - 1) / n, lambda n: n - 1),
    "reduce_scatter": Ring(lambda n: (n - 1) / n, lambda n: n - 1),
    "all_to_all": Ring(lambda n: (n - 1) / n, lambda n: n - 1),
    "broadcast": Ring(lambda n: 1.0, lambda n: n - 1),
    "send_recv": Ring(lambda n: 1.0, lambda n: 1),
}


def factor(operation: str, ranks: int) -> float:
    """busbw ÷ algbw. Raises ValueError for an operation that is none of `RINGS`, or fewer than 2 ranks."""
    return _ring(operation, ranks).factor(ranks)


def messages(operation: str, ranks: int) -> int:
    """Steps of the ring. Raises as `factor`."""
    return _ring(operation, ranks).messages(ranks)


def _ring(operation: str, ranks: int) -> Ring:
    if operation not in RINGS:
        raise ValueError(f"no collective {operation!r}; use {', '.join(RINGS)}")
    if ranks < 2:
        raise ValueError(f"{operation} among {ranks} ranks moves nothing; use two or more")
    return RINGS[operation]
