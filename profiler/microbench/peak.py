"""The peak rate of matrix products: finds the fastest shape, times it in a burst and under sustained load.

The rates of processors differ by four orders of magnitude, and the slow end is not rare: torch's fallback for bfloat16
on a CPU without such instructions reaches 1 GFLOP/s on row-major operands, where a product of 2048³ takes 18 s.
`climb` therefore times products from small to large and tries a shape only where a call, at the best rate of smaller
ones, fits the rest of the budget. `shape_search` finds the fastest shape of a grid, once; `burst` times that shape in
every process; `sustained` runs it for seconds without a pause, so that clocks and power settle.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from profiler.devices.backend import PerDevice
from profiler.microbench.bench import LOADED, Bench
from profiler.microbench.matmul import Shape, flops, layout_of, layouts, named, product_case, sizes, time_product
from profiler.record.measurement import Layout, Measurement

PROBES: tuple[Shape, ...] = ((128, 128, 128), (256, 256, 256), (512, 512, 512))
"""Small products that give the rate of a dtype: 4 MFLOP take 4 ms at the slowest rate seen (1 GFLOP/s)."""
PROBE_S = 0.01
"""Budget of a probe, which needs only the least number of calls."""
CALLS = 4
"""Least number of calls of a measurement: one that is checked, two of warm-up, one sample."""
FAR_SLOWER = 0.5
"""Rate ÷ that of the other layout below which a layout is not tried on larger shapes."""
LADDER = (256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384)
"""Sizes of a dimension, steps of 4/3 and 3/2: multiples of every tile that libraries use (128 × 256 on Hopper)."""
COARSE = 4
"""Rungs between the shapes that a search tries first: a factor of 4 in size."""
STEPS = (2, 1)
"""Distances, in rungs, of the neighbours that are tried after them."""
KEPT = 3
"""Number of shapes whose neighbours are tried in each round."""
ROUNDS = 3
"""Most rounds with the same step."""
FINALISTS, VISITS = 3, 2
"""Number of shapes that are measured again at the end, and how often: the best of many noisy rates was a lucky one."""
PART, LEAST = 7, 16
"""Before the finalists, a search visits at most one in `PART` shapes of the grid, or `LEAST` where that is more."""
LARGEST_CALL_S = PerDevice(host=0.05, accelerator=0.01)
"""Longest call of a grid's largest cube at the best rate of the probes. On a GPU the probes do not fill the device, so
that real calls are several times shorter."""
PROBES_S = 0.5
"""Budget for probing a dtype; on all but the slowest devices the probes take a tenth of it."""
VISIT_S = PerDevice(host=0.06, accelerator=0.05)
"""Budget of one shape in a search: a few calls."""
REST_S = 0.2
"""Pause before a burst, in which a GPU's power falls below its cap."""
Product = tuple[Shape, Layout]
Rate = Callable[[Shape], float | None]
"""Times a shape once more and returns its FLOP/s; None where the shape fails."""


@dataclass(frozen=True, slots=True)
class Climb:
    """The products that were tried, in this order, and those that were not."""

    tried: Mapping[Product, Measurement]
    skipped: Mapping[Product, float]
    """Seconds of a call, for the products that did not fit the budget."""
    probed: Mapping[Layout, float]
    """Highest FLOP/s of each layout, over probes and shapes; empty where the device has no such product."""
    reason: str | None
    """The reason why the device has no such product; None where it has one."""

    @property
    def rates(self) -> dict[Product, float]:
        """FLOP/s of the products that have a value."""
        return {product: timed.value() for product, timed in self.tried.items() if timed.has_value}

    def left_out(self) -> str:
        """The shapes that were tried in no layout, with the time of a call, in one line; empty where there is none."""
        tried = {shape for shape, _ in self.tried}
        times: dict[Shape, float] = {}
        for (shape, _), call_s in self.skipped.items():
            if shape not in tried:
                times[shape] = min(call_s, times.get(shape, call_s))
        return ", ".join(f"{named(shape)} ({call_s:.2g} s a call)" for shape, call_s in times.items())


def climb(bench: Bench, benchmark: str, dtype: str, shapes: Sequence[Shape], budget_s: float) -> Climb:
    """Time the shapes in each layout, the least work first, within about `budget_s` seconds of the bench's clock.

    A layout that is far slower on small shapes is left out on larger ones. The smallest shape is always tried, in the
    faster layout of the probes. A product that fails is a failed measurement; only an interruption is raised.
    """
    began = bench.clock.now()
    rates: dict[Layout, float] = {}
    ordered = sorted(shapes, key=flops)
    reason = None
    for probe in (probe for probe in PROBES if not ordered or flops(probe) < flops(ordered[0])):
        for layout in layouts(dtype):
            if rates and (_is_far_slower(layout, rates) or CALLS * _call_s(probe, layout, rates) > budget_s / 4):
                continue
            timed = time_product(bench, benchmark, dtype, probe, layout=layout, budget_s=PROBE_S)
            if timed.has_value:
                rates[layout] = max(timed.value(), rates.get(layout, 0.0))
            else:
                reason = timed.reason
    tried: dict[Product, Measurement] = {}
    skipped: dict[Product, float] = {}
    products = [(shape, layout) for shape in ordered for layout in layouts(dtype)]
    for i, (shape, layout) in enumerate(products):
        if rates and (layout not in rates or _is_far_slower(layout, rates)):
            continue
        left_s = budget_s - (bench.clock.now() - began)
        call_s = _call_s(shape, layout, rates) if rates else 0.0
        if CALLS * call_s > left_s and tried:
            skipped[shape, layout] = call_s
            continue
        share_s = max(PROBE_S, left_s / (len(products) - i))
        timed = time_product(bench, benchmark, dtype, shape, layout=layout, budget_s=share_s)
        tried[shape, layout] = timed
        if timed.has_value:
            rates[layout] = max(timed.value(), rates.get(layout, 0.0))
        elif not rates:
            reason = timed.reason
    return Climb(tried, skipped, rates, None if rates else reason or "no shape was tried")


def _call_s(shape: Shape, layout: Layout, rates: Mapping[Layout, float]) -> float:
    """Seconds of a call at the best rate of smaller shapes; a layout without a rate gets the slowest of the others."""
    return flops(shape) / rates.get(layout, min(rates.values()))


def _is_far_slower(layout: Layout, rates: Mapping[Layout, float]) -> bool:
    return layout in rates and rates[layout] < FAR_SLOWER * max(rates.values())


@dataclass(frozen=True, slots=True)
class Grid:
    """Every combination of the sizes of three dimensions."""

    sizes: tuple[int, ...]

    @classmethod
    def up_to(cls, largest: int) -> "Grid":
        """The rungs of the ladder from 256 up to `largest`."""
        return cls(tuple(size for size in LADDER if size <= largest) or LADDER[:1])

    @property
    def shapes(self) -> list[Shape]:
        return list(itertools.product(self.sizes, self.sizes, self.sizes))

    def coarse(self) -> list[Shape]:
        """Shapes of every fourth size in each dimension, counted from the largest; the small shapes first."""
        some = self.sizes[::-COARSE]
        return sorted(itertools.product(some, some, some), key=math.prod)

    def neighbours(self, shape: Shape, step: int = 1) -> list[Shape]:
        """Shapes that are `step` rungs up or down in one dimension."""
        near: list[Shape] = []
        for axis in range(3):
            rung = self.sizes.index(shape[axis])
            for other in (rung - step, rung + step):
                if 0 <= other < len(self.sizes):
                    m, n, k = (self.sizes[other] if i == axis else size for i, size in enumerate(shape))
                    near.append((m, n, k))
        return near


@dataclass(frozen=True, slots=True)
class Fastest:
    """The result of a search."""

    best: Shape
    rate: float
    """The best shape's highest rate over all its visits."""
    tried: Mapping[Shape, float]
    """The highest rate of each shape that was tried."""


def search(grid: Grid, rate: Rate) -> Fastest:
    """Find the fastest shape of a grid in a fraction of the time that trying all of them takes.

    The search goes from coarse to fine: every fourth point of each axis, the small ones first; then, in some rounds,
    the neighbours of the best ones two rungs away, and one rung away; at last the finalists again, in turn.
    Raises ArithmeticError where no shape has a rate.
    """
    tried: dict[Shape, float] = {}
    hopeless: set[Shape] = set()

    def visit(shape: Shape) -> None:
        reached = rate(shape)
        if reached is None:
            hopeless.add(shape)
        else:
            tried[shape] = max(reached, tried.get(shape, 0.0))

    for shape in grid.coarse():
        visit(shape)
    limit = max(LEAST, len(grid.sizes) ** 3 // PART)
    for step in (step for step in STEPS for _ in range(ROUNDS)):
        near = dict.fromkeys(n for shape in _first(tried, KEPT) for n in grid.neighbours(shape, step))
        for shape in near:
            if shape not in tried and shape not in hopeless and len(tried) + len(hopeless) < limit:
                visit(shape)
    if not tried:
        raise ArithmeticError("no shape of the grid has a rate")
    finalists = _first(tried, FINALISTS)
    for _ in range(VISITS):
        for shape in finalists:
            visit(shape)
    best = _first(tried, 1)[0]
    return Fastest(best, tried[best], tried)


def _first(tried: Mapping[Shape, float], count: int) -> list[Shape]:
    return sorted(tried, key=lambda shape: -tried[shape])[:count]


def grid_for(bench: Bench, flops_per_s: float) -> Grid:
    """The grid that suits the device's memory and the rate that its probes reached."""
    limit = LARGEST_CALL_S.of(bench.device)
    fits = [s for s in LADDER if flops((s, s, s)) / flops_per_s <= limit and 24 * s * s <= (bench.limit_bytes or 0)]
    return Grid.up_to(max(fits, default=LADDER[0]))  # 24 bytes: three operands of the widest type


def rate_of(bench: Bench, dtype: str, layout: Layout | None = None) -> Rate:
    """The function with which a search times the shapes of a dtype."""

    def rate(shape: Shape) -> float | None:
        timed = time_product(bench, "search", dtype, shape, layout=layout, budget_s=VISIT_S.of(bench.device))
        return timed.value() if timed.has_value else None

    return rate


def shape_search(bench: Bench, dtype: str) -> tuple[Shape, Layout]:
    """The fastest shape of the grid, and its faster layout.

    The search runs in the layout that is faster on small shapes; at its end the other one is tried on the best shape,
    unless it was far slower. Raises ArithmeticError with the reason where the device has no such product.
    """
    probed = climb(bench, "search", dtype, (), budget_s=PROBES_S)
    if probed.reason:
        raise ArithmeticError(probed.reason)
    by_rate = sorted(probed.probed, key=lambda layout: -probed.probed[layout])
    highest = probed.probed[by_rate[0]]
    fastest = search(grid_for(bench, highest), rate_of(bench, dtype, by_rate[0]))
    best, best_rate = by_rate[0], fastest.rate
    for other in by_rate[1:]:
        if probed.probed[other] >= FAR_SLOWER * highest:
            rates = [rate for _ in range(VISITS) if (rate := rate_of(bench, dtype, other)(fastest.best))]
            if max(rates, default=0.0) > best_rate:
                best, best_rate = other, max(rates)
    return fastest.best, best


def burst(bench: Bench, shapes: Mapping[str, Shape]) -> Iterator[Measurement]:
    """Time the given shape of each dtype, after a rest, in the layout that the bench names."""
    for dtype, shape in shapes.items():
        if not bench.backend.is_host:
            time.sleep(REST_S)
        yield time_product(bench, "matmul", dtype, shape, label="burst")


def sustained(bench: Bench, shapes: Mapping[str, Shape], seconds: float) -> Iterator[Measurement]:
    """Time the given shape of each dtype without a pause for so many seconds, and keep the second half of samples."""
    for dtype, shape in shapes.items():
        layout = layout_of(bench, dtype)
        whole = bench.time(
            "matmul",
            "sustained",
            partial(product_case, dtype, shape, bench.device, layout),
            unit="FLOP/s",
            work=flops(shape),
            dtype=dtype,
            parameters={**sizes(shape, layout), "seconds": seconds},
            budget_s=seconds,
            quantile=0.5,
            rules=LOADED,
        )
        last = whole.samples[len(whole.samples) // 2 :]
        yield whole.model_copy(update={"samples": last}) if last else whole
