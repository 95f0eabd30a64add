"""The peak rate of matrix products: the best shape of a grid, in a burst, and what is left of it under lasting load.

`shape_search` looks for the shape once; `burst` times that shape in every process; `sustained` runs it without a pause
for seconds, so that clocks and power settle, and is the median of the second half.

Example: ``shape, layout = shape_search(bench, "bfloat16")`` then ``burst(bench, {"bfloat16": shape})``
"""

import time
from collections.abc import Callable, Iterator, Mapping

from profiler.devices.backend import PerDevice
from profiler.microbench.bench import Bench
from profiler.microbench.matmul import Shape, flops, layout_of, product_case, sizes, time_product
from profiler.microbench.product_ladder import FAR_SLOWER, climb
from profiler.microbench.search import LADDER, VISITS, Grid, search
from profiler.record.measurement import Layout, Measurement
from profiler.timing.stopping import Rules

LARGEST_CALL_S = PerDevice(host=0.05, accelerator=0.01)
"""A grid's largest cube takes no longer than this at the best rate of the probes. On a GPU the probes do not fill the
device, so that real calls are some times shorter."""
PROBES_S = 0.5
"""For the probes of a type, which on all but the slowest devices take a tenth of it."""
VISIT_S = PerDevice(host=0.06, accelerator=0.05)
"""Of one shape in a search: a few calls."""
REST_S = 0.2
"""Pause before a burst, in which a GPU's power falls below its cap."""
LAST_PART = 0.5
"""Of a sustained load, the part that its figure is made of."""


def grid_for(bench: Bench, flops_per_s: float) -> Grid:
    """The grid that suits the device's speed, given by what the probes reached, and its memory."""
    limit = LARGEST_CALL_S.of(bench.device)
    fits = [s for s in LADDER if flops((s, s, s)) / flops_per_s <= limit and 24 * s * s <= (bench.limit_bytes or 0)]
    return Grid.up_to(max(fits, default=LADDER[0]))  # 24 bytes: three operands of the widest type


def rate_of(bench: Bench, dtype: str, layout: Layout | None = None) -> Callable[[Shape], float | None]:
    """How the search times a shape."""

    def rate(shape: Shape) -> float | None:
        budget_s = VISIT_S.of(bench.device)
        found = time_product(bench, "search", dtype, shape, layout=layout, budget_s=budget_s)
        return found.value() if found.has_value else None

    return rate


def shape_search(bench: Bench, dtype: str) -> tuple[Shape, Layout]:
    """The fastest shape of the grid, in the faster layout of it.

    The search runs in the layout that is faster on small shapes; at its end the other one is tried on the best shape,
    unless it was far slower. Raises ArithmeticError with the reason where the device has no such product.
    """
    probed = climb(bench, "search", dtype, (), budget_s=PROBES_S)
    if probed.reason:
        raise ArithmeticError(probed.reason)
    by_rate = sorted(probed.probed, key=lambda layout: -probed.probed[layout])
    highest = probed.probed[by_rate[0]]
    found = search(grid_for(bench, highest), rate_of(bench, dtype, by_rate[0]))
    best, best_rate = by_rate[0], found.rate
    for other in by_rate[1:]:
        if probed.probed[other] >= FAR_SLOWER * highest:
            rates = [rate for _ in range(VISITS) if (rate := rate_of(bench, dtype, other)(found.best))]
            if max(rates, default=0.0) > best_rate:
                best, best_rate = other, max(rates)
    return found.best, best


def burst(bench: Bench, shapes: Mapping[str, Shape]) -> Iterator[Measurement]:
    """The given shape of each dtype, after a rest, in the layout that the bench names."""
    for dtype, shape in shapes.items():
        if not bench.backend.is_host:
            time.sleep(REST_S)
        yield time_product(bench, "matmul", dtype, shape, label="burst")


def sustained(bench: Bench, shapes: Mapping[str, Shape], seconds: float) -> Iterator[Measurement]:
    """The given shape of each dtype without a pause for so many seconds; the value is that of the second half."""
    for dtype, shape in shapes.items():
        layout = layout_of(bench, dtype)
        rules = Rules(min_samples=3, max_samples=100_000, max_time_s=seconds, relative_width=0.0, noise_tolerance=0.0)
        whole = bench.time(
            "matmul",
            "sustained",
            lambda dtype=dtype, shape=shape, layout=layout: product_case(dtype, shape, bench.device, layout),  # type: ignore[misc]
            unit="FLOP/s",
            work=flops(shape),
            dtype=dtype,
            parameters={**sizes(shape, layout), "seconds": seconds},
            budget_s=seconds,
            quantile=0.5,
            rules=rules,
        )
        last = whole.samples[int(len(whole.samples) * (1 - LAST_PART)) :]
        yield whole.model_copy(update={"samples": last}) if last else whole
