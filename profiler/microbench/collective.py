"""Bus bandwidth of collectives among the GPUs of this machine (NCCL), or among processes of its CPU (gloo).

Ranks are processes of their own under torchrun, so that NCCL runs as it does in serving; on a CPU they have one thread
each and talk over the loopback. Sizes and bus bandwidth are nccl-tests' (`busbw`). A measurement is the time of the
slowest rank; `collective_fit` makes latency, bandwidth and a `Link` of them.

Across machines, run the worker by hand (`collective_worker` shows the command) and read its lines with
``Measurement.model_validate_json``.

Example: ``costs([m for m in collectives(Bench(torch.device("cuda"))) if m.status == "done"])``
"""

import os
from collections.abc import Iterator, Sequence

from profiler.microbench.bench import Bench
from profiler.microbench.collective_case import CASES
from profiler.microbench.collective_worker import SMALLEST, failed, sizes
from profiler.microbench.torchrun import LaunchFailed, lines
from profiler.record.measurement import Measurement

WORKER = "profiler.microbench.collective_worker"
CPU_RANKS = (2, 4)
"""Fewest and most on a CPU; within that, one for each core."""
START_S = 120.0
"""For importing torch on all ranks and for the first connections, on a busy machine."""
CASE_S, BUDGETS = 3.0, 5.0
"""Of a case, at most: operands and checks, and its budget so many times."""


def collectives(
    bench: Bench,
    *,
    operations: Sequence[str] = tuple(CASES),
    smallest: int = SMALLEST,
    largest: int | None = None,
    timeout_s: float | None = None,
) -> Iterator[Measurement]:
    """Every operation at every size, as ranks finish them; what keeps the rest from being had is one that failed.

    Sizes in bytes, `largest` by the device if it is None. Leaving the generator ends all ranks.
    """
    count = ranks(bench)
    if count < 2:
        yield failed("all", "one GPU: collectives need two or more", process=bench.process)
        return
    device = bench.device.type
    todo = len(operations) * len(sizes(device, quick=bench.quick, smallest=smallest, largest=largest))
    arguments = [
        *("--device", device, "--budget", str(bench.budget_s), "--process", str(bench.process)),
        *("--smallest", str(smallest), *(("--largest", str(largest)) if largest is not None else ())),
        *("--operations", *operations, *(("--quick",) if bench.quick else ())),
    ]
    limit_s = START_S + todo * (CASE_S + BUDGETS * bench.budget_s) if timeout_s is None else timeout_s
    had = 0
    try:
        for line in lines(WORKER, arguments, ranks=count, timeout_s=limit_s, environment=environment(bench)):
            had += 1
            yield Measurement.model_validate_json(line)
    except LaunchFailed as error:
        yield failed("remaining", f"after {had} of {todo} cases: {error}", process=bench.process)


def ranks(bench: Bench) -> int:
    """Processes to start: one for each GPU, or 2 to 4 on a CPU."""
    if not bench.backend.is_host:
        return bench.backend.count()
    fewest, most = CPU_RANKS
    return max(fewest, min(most, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else fewest))


def environment(bench: Bench) -> dict[str, str]:
    """Of the ranks: gloo stays within this machine, and on a CPU ranks leave each other's cores alone."""
    loopback = {"GLOO_SOCKET_IFNAME": "lo"}
    return {**loopback, "OMP_NUM_THREADS": "1"} if bench.backend.is_host else loopback
