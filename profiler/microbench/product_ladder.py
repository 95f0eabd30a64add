"""Products of one type from small to large, so that none takes far more time than it was given.

Processors differ by four orders of magnitude in how fast they multiply a type, and the slow end is not rare: torch's
fallback for bfloat16 on a CPU without such instructions reaches 1 GFLOP/s on row-major operands, where a product of
2048³ takes 18 s. No size suits them all. So a shape is tried only where the time of a call, at the best rate that
smaller ones had, fits into what is left of the budget; the others are named with the time that they would take. Both
layouts of the second operand are tried, and one that is far slower on small shapes is left out on larger ones.

Example: ``climb(bench, "matmul", "bfloat16", ((512, 512, 512), (2048, 2048, 2048)), budget_s=1.0).best``
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from profiler.microbench.bench import Bench
from profiler.microbench.matmul import Shape, flops, layouts, named, time_product
from profiler.record.measurement import Layout, Measurement

PROBES: tuple[Shape, ...] = ((128, 128, 128), (256, 256, 256), (512, 512, 512))
"""Tell the rate of a type before anything larger is tried: 4 MFLOP, 4 ms at the slowest rate seen (1 GFLOP/s)."""
PROBE_S = 0.01
"""Budget of a probe, which needs no more than its fewest calls."""
CALLS = 4
"""Calls of a product that any measurement makes: one that is checked, two of warm-up, a sample."""
FAR_SLOWER = 0.5
"""Rate ÷ that of the other layout from which downwards a layout is not tried on larger shapes."""

Product = tuple[Shape, Layout]


@dataclass(frozen=True, slots=True)
class Climb:
    """What was tried, in this order, and what was not."""

    tried: Mapping[Product, Measurement]
    skipped: Mapping[Product, float]
    """Seconds that a call would take, of those that did not fit."""
    probed: Mapping[Layout, float]
    """The highest rate of each layout, FLOP/s, over probes and shapes; empty where the device has no such product."""
    reason: str | None
    """Why the device has no such product; None where it has."""

    @property
    def best(self) -> Product | None:
        """The fastest product that was tried; None where none has a value."""
        done = {product: one.value() for product, one in self.tried.items() if one.has_value}
        return max(done, key=lambda product: done[product], default=None)

    def left_out(self) -> str:
        """The shapes that no layout could be tried on, with the time of a call, in one line; empty where none."""
        tried = {shape for shape, _ in self.tried}
        times: dict[Shape, float] = {}
        for (shape, _), call_s in self.skipped.items():
            if shape not in tried:
                times[shape] = min(call_s, times.get(shape, call_s))
        return ", ".join(f"{named(shape)} ({call_s:.2g} s a call)" for shape, call_s in times.items())


def climb(bench: Bench, benchmark: str, dtype: str, shapes: Sequence[Shape], budget_s: float) -> Climb:
    """Time the shapes in each layout, the least work first, within about `budget_s` seconds of the bench's clock.

    The smallest shape is tried in any case, in the faster layout of the probes. Never raises but to stop.
    """
    began = bench.clock.now()
    rates: dict[Layout, float] = {}
    ordered = sorted(shapes, key=flops)
    reason = None
    for probe in (probe for probe in PROBES if not ordered or flops(probe) < flops(ordered[0])):
        for layout in layouts(dtype):
            if rates and (_is_far_slower(layout, rates) or CALLS * _call_s(probe, layout, rates) > budget_s / 4):
                continue
            one = time_product(bench, benchmark, dtype, probe, layout=layout, budget_s=PROBE_S)
            if one.has_value:
                rates[layout] = max(one.value(), rates.get(layout, 0.0))
            else:
                reason = one.reason
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
        one = time_product(
            bench, benchmark, dtype, shape, layout=layout, budget_s=max(PROBE_S, left_s / (len(products) - i))
        )
        tried[shape, layout] = one
        if one.has_value:
            rates[layout] = max(one.value(), rates.get(layout, 0.0))
        elif not rates:
            reason = one.reason
    return Climb(tried, skipped, rates, None if rates else reason or "no shape was tried")


def _call_s(shape: Shape, layout: Layout, rates: Mapping[Layout, float]) -> float:
    """Seconds of a call at the best rate that smaller shapes had; of a layout without one, at the slowest of others."""
    return flops(shape) / rates.get(layout, min(rates.values()))


def _is_far_slower(layout: Layout, rates: Mapping[Layout, float]) -> bool:
    return layout in rates and rates[layout] < FAR_SLOWER * max(rates.values())
