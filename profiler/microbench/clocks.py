"""The same kernels by each clock that the device has: events, kernel spans and graph replay must agree.

Where they do not, one of them sees something else than the kernel: a launch, a gap, a cache that a replay left warm.
Events and replays have the gap to the next kernel (some 2 µs) in them, spans do not.

Example: ``{m.case: m.value() for m in clocks(Bench(torch.device("cuda")))}``
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
"""Bytes of an operand of a triad, which takes 10 to 200 µs at 4 TB/s."""
SQUARES = (2048, 4096)
"""Sides of a bf16 product, which takes 20 to 200 µs at 800 TFLOP/s."""
SPANS_BUDGETS = 4
"""Budgets of a case for kernel spans: each sample is a profiler session of some tenths of a second."""


def clocks(bench: Bench) -> Iterator[Measurement]:
    """Seconds of each kernel by each clock; on a CPU there is one clock only."""
    if not bench.backend.captures_graphs:
        yield bench.missing("clock", "all", unit="s", reason="a CPU has one clock: its calls return when they are done")
        return
    builds: dict[str, Callable[[], Case[Any]]] = {
        f"triad {size}": partial(case, "triad", size, bench.device) for size in TRIADS
    }
    builds |= {f"product {n}": partial(product_case, "bfloat16", (n, n, n), bench.device) for n in SQUARES}
    for name, build in builds.items():
        for clock in (bench.clock, GraphClock(bench.device), KernelClock(bench.device)):
            spans = isinstance(clock, KernelClock)
            yield bench.time(
                "clock",
                f"{name}, {clock.name}",
                build,
                unit="s",
                work=1,
                cache="in place",
                clock=clock,
                budget_s=bench.budget_s * (SPANS_BUDGETS if spans else 1),
            )
