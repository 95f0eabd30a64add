"""Times the same kernels with each clock of the device: events, kernel spans and graph replay must agree.

Where they differ, one of them times more than the kernel: a launch, a gap, a cache that a replay left warm. Events and
replays include the gap to the next kernel (some 2 µs), spans do not.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from profiler.microbench.bench import Bench
from profiler.microbench.matmul import product_case
from profiler.microbench.memory import case
from profiler.record.measurement import Measurement
from profiler.timing.clocks import GraphClock
from profiler.timing.engine import Case
from profiler.timing.profiled import KernelClock

TRIADS = (16 << 20, 64 << 20, 256 << 20)
"""Sizes of a triad's operand in bytes; the triad takes 10 to 200 µs at 4 TB/s."""
SQUARES = (2048, 4096)
"""Sides of square bf16 products, which take 20 to 200 µs at 800 TFLOP/s."""
SPANS_BUDGETS = 4
"""Kernel spans get so many budgets of a case: each sample is a profiler session of some tenths of a second."""


def clocks(bench: Bench) -> Iterator[Measurement]:
    """Time each kernel with each clock, in seconds; a CPU has only one clock."""
    if not bench.backend.captures_graphs:
        yield bench.missing("clock", "all", unit="s", reason="a CPU has one clock: its calls return when they are done")
        return
    builds: dict[str, Callable[[], Case[Any]]] = {
        f"triad {size}": partial(case, "triad", size, bench.device) for size in TRIADS
    }
    builds |= {f"product {n}": partial(product_case, "bfloat16", (n, n, n), bench.device) for n in SQUARES}
    for name, build in builds.items():
        for clock in (bench.clock, GraphClock(bench.device), KernelClock(bench.device)):
            budget_s = bench.budget_s * (SPANS_BUDGETS if isinstance(clock, KernelClock) else 1)
            label = f"{name}, {clock.name}"
            yield bench.time("clock", label, build, unit="s", work=1, cache="in place", clock=clock, budget_s=budget_s)
