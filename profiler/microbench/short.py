"""A device's peaks in a few seconds (`run`), by a short selection of the microbenchmarks.

`measure_peaks` runs in this process, with a short list of product shapes instead of a search, on three visits some
seconds apart whose samples are pooled. Other work on the machine can only make samples slower, so that the fastest
tenth of all is what an undisturbed machine reaches.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from profiler.devices.backend import PerDevice
from profiler.devices.caches import cache_capacities
from profiler.microbench import memory, pointwise
from profiler.microbench.bench import Bench
from profiler.microbench.host_cost import host_cost
from profiler.microbench.matmul import PRODUCTS, Shape, time_product
from profiler.microbench.peak import Product, climb
from profiler.record.measurement import Measurement, grouped

PEAKS_S = 12.0
"""Seconds of `measure_peaks`, without allocation and data generation."""


VISITS = 3


SHAPES: PerDevice[tuple[Shape, ...]] = PerDevice(
    host=tuple((s, s, s) for s in (512, 1024, 2048)),
    # Winners on Hopper lie at m 1024–2048, n and k 4096–14336 (mamf-finder, ml-engineering).
    accelerator=((4096, 4096, 4096), (8192, 8192, 8192), (2048, 8192, 4096), (2048, 2048, 13312), (4096, 8192, 14336)),
)


NEAR = 0.75
"""Least rate ÷ the best of the first visit of a product that is visited again: other work slows a short measurement by
tens of percent, so that the fastest may have come second."""


SHARES = {
    "memory": (0.2, "bandwidth of main memory"),
    "cache": (0.2, "bandwidth of the caches"),
    "matmul": (0.35, "matrix products"),
    "vector": (0.2, "vector arithmetic"),
    "host": (0.05, "host time of an operation"),
}
"""Share of a visit's seconds that each family gets, and its name in the progress display."""


Progress = Callable[[float, str], None]
"""Is called with the fraction that is done (0 to 1) and the name of what is being measured."""


def measure_peaks(
    device: torch.device | str,
    dtypes: Sequence[str],
    *,
    progress: Progress = lambda part, what: None,
    budget_s: float = PEAKS_S,
    limit_bytes: int | None = None,
) -> list[Measurement]:
    """Measure in this process what `calibrate.device.spec` derives a device's peaks from.

    Args: dtypes by torch's names, to which "float32" is added for vector work; `limit_bytes` bounds the working set of
    main memory. The fastest product of each dtype is named "burst". Raises ValueError for an unknown dtype.
    """
    device = torch.device(device)
    for dtype in dtypes:
        if dtype not in PRODUCTS:
            raise ValueError(f"{dtype!r} is no dtype of a product; use {', '.join(PRODUCTS)}")
    measurements: list[Measurement] = []
    products = Products({})
    for visit in range(VISITS):
        bench = Bench(device, process=visit, dtypes=tuple(dtypes), limit_bytes=limit_bytes)
        done = 0.0
        for family, visited in _visit(bench, budget_s / VISITS, products).items():
            share, what = SHARES[family]
            progress((visit + done) / VISITS, what)
            measurements.extend(visited)
            done += share
    progress(1.0, "peaks")
    return with_bursts(together(measurements), products.left_out)


@dataclass(slots=True)
class Products:
    """The products worth another visit, by dtype, and the shapes that the first visit left out."""

    worth: dict[str, list[Product]]
    left_out: dict[str, str] = field(default_factory=dict)
    """Shapes of which a call takes too long, in one line, by dtype."""

    def visit(self, bench: Bench, budget_s: float) -> Iterator[Measurement]:
        """Time every product that fits the budget on the first visit, and those near the fastest on the others."""
        share_s = budget_s / len(bench.dtypes)
        for dtype in bench.dtypes:
            if dtype in self.worth:
                product_s = share_s / max(1, len(self.worth[dtype]))
                for shape, layout in self.worth[dtype]:
                    yield time_product(bench, "matmul", dtype, shape, layout=layout, budget_s=product_s)
                continue
            climbed = climb(bench, "matmul", dtype, SHAPES.of(bench.device), share_s)
            if climbed.reason:
                yield bench.missing("matmul", "burst", unit="FLOP/s", reason=climbed.reason, dtype=dtype)
                continue
            near = NEAR * max(climbed.rates.values(), default=0.0)
            self.worth[dtype] = [product for product, rate in climbed.rates.items() if rate >= near]
            self.left_out[dtype] = climbed.left_out()
            yield from climbed.tried.values()


def _visit(bench: Bench, budget_s: float, products: Products) -> dict[str, Iterator[Measurement]]:
    """The measurements of one visit by family, each within its share of the budget."""

    def within(family: str, cases: float) -> Bench:
        return replace(bench, budget_s=SHARES[family][0] * budget_s / cases)

    capacities = cache_capacities(bench.device)
    sets = sum(len(memory.working_sets(cache, capacities)) for cache in capacities) * 3
    dtypes = dict.fromkeys(("float32", *bench.dtypes))
    return {
        "memory": memory.main_memory(within("memory", len(memory.KERNELS)), placements=1),  # each visit has its own
        "cache": memory.caches(within("cache", max(1, sets))),
        "matmul": products.visit(bench, SHARES["matmul"][0] * budget_s),
        # `vector` gives each operation a third of a case's time
        "vector": pointwise.vector(within("vector", len(dtypes) * len(pointwise.OPERATIONS) / 3)),
        "host": host_cost(within("host", 1)),
    }


def together(measurements: Sequence[Measurement]) -> list[Measurement]:
    """Pool the samples of all visits of the same case; a case without a result keeps its last failure."""
    merged = []
    for alike in grouped(measurements).values():
        good = [visited for visited in alike if visited.has_value]
        samples = tuple(sample for visited in good for sample in visited.samples)
        # Each visit has another set of operands, so that placements cannot be told apart any more.
        merged.append(good[0].model_copy(update={"samples": samples, "placements": 1}) if good else alike[-1])
    return merged


def with_bursts(measurements: Sequence[Measurement], left_out: Mapping[str, str]) -> list[Measurement]:
    """Keep only the fastest product of each dtype, named "burst", with the shapes that were left out."""
    best: dict[str, tuple[float, str]] = {}
    for timed in measurements:
        if timed.benchmark == "matmul" and timed.dtype is not None and timed.has_value:
            best[timed.dtype] = max(best.get(timed.dtype, (0.0, "")), (timed.value(), timed.case))
    kept = []
    for timed in measurements:
        if timed.benchmark != "matmul":
            kept.append(timed)
        elif timed.dtype not in best or timed.case == best[timed.dtype][1]:
            why = {"not tried": left_out[timed.dtype]} if timed.dtype and left_out.get(timed.dtype) else {}
            kept.append(timed.model_copy(update={"case": "burst", "parameters": {**timed.parameters, **why}}))
    return kept
