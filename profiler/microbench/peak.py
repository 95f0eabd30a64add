"""The peak rate of matrix products: the best shape of a grid, in a burst, and what is left of it under lasting load.

`shape_search` looks for the shape once; `burst` times that shape in every process; `sustained` runs it without a pause
for seconds, so that clocks and power settle, and is the median of the second half.

Example: ``best = shape_search(bench, "bfloat16")`` then ``burst(bench, {"bfloat16": best.best})``
"""

import time
from collections.abc import Callable, Iterator, Mapping

from profiler.microbench.bench import Bench
from profiler.microbench.matmul import Shape, flops, product_case, time_product
from profiler.microbench.search import LADDER, Found, Grid, search
from profiler.record.measurement import Measurement
from profiler.timing.stopping import Rules

PROBE: Shape = (512, 512, 512)
"""Tells how large a shape the device can be asked for."""
LARGEST_CALL_S = {"cpu": 0.05, "cuda": 0.01}
"""A grid's largest cube takes no longer than this at the rate of the probe. On a GPU the probe does not fill the
device, so that real calls are some times shorter."""
VISIT_S = {"cpu": 0.06, "cuda": 0.05}
"""Of one shape in a search: a few calls."""
REST_S = 0.2
"""Pause before a burst, in which a GPU's power falls below its cap."""
LAST_PART = 0.5
"""Of a sustained load, the part that its figure is made of."""


def grid_for(bench: Bench, dtype: str) -> Grid:
    """The grid that suits the device's speed and memory. Raises ArithmeticError with the reason: the probe fails."""
    probe = time_product(bench, "search", dtype, PROBE, budget_s=VISIT_S[bench.device.type])
    if not probe.has_value:
        raise ArithmeticError(probe.reason)
    limit = LARGEST_CALL_S[bench.device.type]
    fits = [s for s in LADDER if flops((s, s, s)) / probe.value() <= limit and 24 * s * s <= (bench.limit_bytes or 0)]
    return Grid.up_to(max(fits, default=LADDER[0]))  # 24 bytes: three operands of the widest type


def rate_of(bench: Bench, dtype: str) -> Callable[[Shape], float | None]:
    """How the search times a shape."""

    def rate(shape: Shape) -> float | None:
        found = time_product(bench, "search", dtype, shape, budget_s=VISIT_S[bench.device.type])
        return found.value() if found.has_value else None

    return rate


def shape_search(bench: Bench, dtype: str) -> Found:
    """The fastest shape of the grid. Raises ArithmeticError with the reason where the device has no such product."""
    return search(grid_for(bench, dtype), rate_of(bench, dtype))


def burst(bench: Bench, shapes: Mapping[str, Shape]) -> Iterator[Measurement]:
    """The given shape of each dtype, after a rest."""
    for dtype, shape in shapes.items():
        if bench.is_cuda:
            time.sleep(REST_S)
        yield time_product(bench, "matmul", dtype, shape, label="burst")


def sustained(bench: Bench, shapes: Mapping[str, Shape], seconds: float) -> Iterator[Measurement]:
    """The given shape of each dtype without a pause for so many seconds; the value is that of the second half."""
    for dtype, shape in shapes.items():
        rules = Rules(min_samples=3, max_samples=100_000, max_time_s=seconds, relative_width=0.0, noise_tolerance=0.0)
        whole = bench.time(
            "matmul",
            "sustained",
            lambda dtype=dtype, shape=shape: product_case(dtype, shape, bench.device),  # type: ignore[misc]
            unit="FLOP/s",
            work=flops(shape),
            dtype=dtype,
            parameters={"m": shape[0], "n": shape[1], "k": shape[2], "seconds": seconds},
            budget_s=seconds,
            quantile=0.5,
            rules=rules,
        )
        last = whole.samples[int(len(whole.samples) * (1 - LAST_PART)) :]
        yield whole.model_copy(update={"samples": last}) if last else whole
