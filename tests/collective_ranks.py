"""A worker like `profiler.microbench.collectives.worker`, with operations that go wrong; run by test_collective.py.

"checked" is written as a case of its own: what every rank found of every operation.
"""

import math
import os
import sys
import time
from dataclasses import replace
from datetime import timedelta

import torch
import torch.distributed as dist

from profiler.microbench.collectives import worker as collective_worker
from profiler.microbench.collectives.cases import CASES, Operands, Ranks, repeats_limit, whole
from roofline.laws.work import RINGS


def lacking(size: int, ranks: Ranks) -> Operands:
    """Fails on all ranks as soon as it is called, as a backend does that has no such operation."""
    return faulty(size, ranks, lambda: raised(NotImplementedError("no such operation here")))


def alone(size: int, ranks: Ranks) -> Operands:
    """Rank 1 cannot have its operands; the others can."""
    if ranks.rank == 1:
        raise MemoryError("full")
    return CASES["all_reduce"](size, ranks)


def left_waiting(size: int, ranks: Ranks) -> Operands:
    """Rank 1 fails before it takes part; the others wait for it until the operation times out.

    Only this operation times out soon: anything that all ranks take part in has the time that a busy machine needs.
    """
    one = CASES["all_reduce"](size, ranks)

    def waits() -> None:
        dist.distributed_c10d._set_pg_timeout(timedelta(seconds=1), ranks.group)
        one.run()

    return replace(one, run=waits if ranks.rank != 1 else lambda: raised(RuntimeError("rank 1 stays away")))


def wrong(size: int, ranks: Ranks) -> Operands:
    """Rank 1 holds the wrong result in the end."""
    one = CASES["all_gather"](size, ranks)

    def run() -> None:
        one.run()
        if ranks.rank == 1:
            one.work[-1] += 1

    return replace(one, run=run)


def dying(size: int, ranks: Ranks) -> Operands:
    """Rank 1 is killed."""
    return faulty(size, ranks, lambda: os.kill(os.getpid(), 9) if ranks.rank == 1 else dist.barrier(ranks.group))


def endless(size: int, ranks: Ranks) -> Operands:
    """Never comes back."""
    return faulty(size, ranks, lambda: time.sleep(3600))


FAULTS = {
    "lacking": lacking,
    "alone": alone,
    "left_waiting": left_waiting,
    "wrong": wrong,
    "dying": dying,
    "endless": endless,
}


def faulty(size: int, ranks: Ranks, run) -> Operands:  # type: ignore[no-untyped-def]
    return replace(CASES["all_gather"](size, ranks), run=run)


def raised(error: Exception) -> None:
    raise error


def verdicts() -> None:
    """`--verdicts OUT`: on each rank, each operation twice after a reset is right, and tampered with is not."""
    dist.init_process_group("gloo")
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), torch.device("cpu"))
    for operation, case in CASES.items():
        for size in (1024, 10_000, 5 << 20):  # the last is longer than the block
            one = case(whole(size, ranks.count), ranks)
            for calls in (1, 2, min(60, repeats_limit(operation, ranks.count) or 60) if size < 1 << 20 else 3):
                one.reset()
                for _ in range(calls):
                    one.run()
                one.check(calls)
                assert bool(torch.isfinite(one.work).all()) and math.isfinite(float(one.work.abs().max()))
            for spoil in (lambda work: work[1:].copy_(work[:-1].clone()), lambda work: work[-1:].fill_(math.nan)):
                one.reset()
                one.run()
                spoil(one.work)
                try:
                    one.check(1)
                except ArithmeticError:
                    continue
                raise AssertionError(f"{operation} of {size} bytes, tampered with, passed on rank {ranks.rank}")
    right = [None] * ranks.count
    dist.all_gather_object(right, ranks.rank)
    if ranks.rank == 0:
        with open(sys.argv[sys.argv.index("--out") + 1], "a") as out:  # noqa: PTH123 - a named pipe
            out.write(f"{right}\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    if "--verdicts" in sys.argv:
        verdicts()
    else:
        CASES.update(FAULTS)
        RINGS.update(dict.fromkeys(FAULTS, RINGS["all_gather"]))
        collective_worker.main(sys.argv[1:])
