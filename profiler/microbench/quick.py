"""Achieved peaks from one short measurement in this process: the prices of T1 and T2 in `run`.

What of the characterisation makes peaks, on a short list of product shapes instead of a search, on three visits some
seconds apart, whose samples are put together: other work on the machine makes samples slower, and only that, so that
the fastest tenth of all is what an undisturbed machine reaches. low–high is the spread of these samples, no interval;
`python -m profiler hardware` measures the same in fresh processes and has one.

Example: ``peaks, missing = measure_peaks(torch.device("cpu"), ["float32", "bfloat16"])``
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from profiler.devices.backend import PerDevice, backend_of
from profiler.devices.caches import cache_capacities, main_capacity
from profiler.microbench import memory, pointwise
from profiler.microbench.bench import Bench
from profiler.microbench.figures import grouped
from profiler.microbench.host import host_cost
from profiler.microbench.matmul import PRODUCTS, Shape, time_product
from profiler.microbench.missing import missing
from profiler.microbench.peaks import peaks_of
from profiler.microbench.product_ladder import Product, climb
from profiler.record.measurement import Measurement
from roofline.hardware import Peaks

BUDGET_S = 12.0
"""Time for all figures; allocation and data generation come on top."""
VISITS = 3
SHAPES: PerDevice[tuple[Shape, ...]] = PerDevice(
    host=tuple((s, s, s) for s in (512, 1024, 2048)),
    # Winners on Hopper lie at m 1024–2048, n and k 4096–14336 (mamf-finder, ml-engineering).
    accelerator=((4096, 4096, 4096), (8192, 8192, 8192), (2048, 8192, 4096), (2048, 2048, 13312), (4096, 8192, 14336)),
)
NEAR = 0.75
"""Rate ÷ the best of the first visit from which a product is visited again: other work slows a short measurement by
tens of percent, so that the fastest may have come second."""
PARTS = {"memory": 0.2, "cache": 0.2, "matmul": 0.35, "vector": 0.2, "host": 0.05}
"""Parts of a visit's budget."""

Progress = Callable[[float, str], None]
"""Called with the part done (0 to 1) and what is being done."""


def measure_peaks(
    device: torch.device | str,
    dtypes: Sequence[str],
    *,
    progress: Progress = lambda part, what: None,
    budget_s: float = BUDGET_S,
    limit_bytes: int | None = None,
) -> tuple[Peaks, dict[str, str]]:
    """Measure the device's peaks.

    Args: a CPU or CUDA device; dtypes by torch's names, "float32" is added for vector work; `progress` is called
    with the part done and what is being done; `limit_bytes` bounds the working set of main memory.
    Returns the peaks and, by figure ("matrix.float16", "vector.bfloat16", "level.L3", "host_s_per_op"), why one is
    missing or merged. Raises RuntimeError where main memory cannot be measured, ValueError for an unknown dtype.
    """
    device = torch.device(device)
    for dtype in dtypes:
        if dtype not in PRODUCTS:
            raise ValueError(f"{dtype!r} is no dtype of a product; use {', '.join(PRODUCTS)}")
    found: list[Measurement] = []
    products = Products({})
    for visit in range(VISITS):
        bench = Bench(device, process=visit, dtypes=tuple(dtypes), limit_bytes=limit_bytes)
        for name, measurements in _visit(bench, budget_s / VISITS, products):
            progress((visit + _before(name)) / VISITS, _WORDS[name])
            found.extend(measurements)
    progress(1.0, "peaks")
    return peaks_of(
        _with_bursts(_together(found), products.left_out),
        main=main_capacity(device),
        caches=cache_capacities(device),
        threads=torch.get_num_threads() if backend_of(device).is_host else None,
        where=where(device),
        ieee_products_are_vector_work=backend_of(device).fp32_matmul_on_vector_units,
        samples_spread=True,
    )


def where(device: torch.device) -> str:
    """What all figures of a device share."""
    backend = backend_of(device)
    name = f"{torch.get_num_threads()} threads" if backend.is_host else backend.device_name(device)
    return f"torch {torch.__version__}, {name}"


_WORDS = {
    "memory": "bandwidth of main memory",
    "cache": "bandwidth of the caches",
    "matmul": "products",
    "vector": "vector work",
    "host": "host cost of an operation",
}


def _before(name: str) -> float:
    names = list(PARTS)
    return sum(PARTS[one] for one in names[: names.index(name)])


@dataclass(slots=True)
class Products:
    """Those worth another visit, by dtype, and what the first visit left out."""

    worth: dict[str, list[Product]]
    left_out: dict[str, str] = field(default_factory=dict)
    """Shapes of which a call takes too long, in one line, by dtype."""

    def visit(self, bench: Bench, budget_s: float) -> Iterator[Measurement]:
        """Every product that fits on the first visit, on the others those that came near the fastest."""
        for dtype in bench.dtypes:
            share_s = budget_s / len(bench.dtypes)
            if dtype in self.worth:
                for shape, layout in self.worth[dtype]:
                    each_s = share_s / len(self.worth[dtype])
                    yield time_product(bench, "matmul", dtype, shape, layout=layout, budget_s=each_s)
                continue
            climbed = climb(bench, "matmul", dtype, SHAPES.of(bench.device), share_s)
            if climbed.reason:
                yield missing(bench, "matmul", "burst", unit="FLOP/s", reason=climbed.reason, dtype=dtype)
                continue
            rates = {product: one.value() for product, one in climbed.tried.items() if one.has_value}
            near = NEAR * max(rates.values(), default=0.0)
            self.worth[dtype] = [product for product, rate in rates.items() if rate >= near]
            self.left_out[dtype] = climbed.left_out()
            yield from climbed.tried.values()


def _visit(bench: Bench, budget_s: float, products: Products) -> Iterator[tuple[str, Iterator[Measurement]]]:
    """The parts of one visit, each within its share of the budget."""
    caches = cache_capacities(bench.device)
    sets = sum(len(memory.working_sets(cache, caches)) for cache in caches) * 3
    dtypes = dict.fromkeys(("float32", *bench.dtypes))
    cases = {
        "memory": len(memory.KERNELS),
        "cache": max(1, sets),
        "matmul": 1,
        "vector": len(dtypes) * len(pointwise.OPERATIONS) / 3,  # it gives each a third of a case's time
        "host": 1,
    }
    benches = {name: replace_budget(bench, PARTS[name] * budget_s / cases[name]) for name in PARTS}
    yield "memory", memory.main_memory(benches["memory"], placements=1)  # each visit has operands of its own
    yield "cache", memory.caches(benches["cache"])
    yield "matmul", products.visit(bench, PARTS["matmul"] * budget_s)
    yield "vector", pointwise.vector(benches["vector"])
    yield "host", host_cost(benches["host"])


def replace_budget(bench: Bench, budget_s: float) -> Bench:
    """The same bench with another budget for a case."""
    return replace(bench, budget_s=budget_s)


def _together(found: Sequence[Measurement]) -> list[Measurement]:
    """One measurement of each thing with the samples of all visits; as a visit found it where none has a result."""
    merged = []
    for alike in grouped(found).values():
        good = [one for one in alike if one.has_value]
        samples = tuple(sample for one in good for sample in one.samples)
        # a set of operands is another one on each visit, so that placements cannot be told apart any more
        merged.append(good[0].model_copy(update={"samples": samples, "placements": 1}) if good else alike[-1])
    return merged


def _with_bursts(found: Sequence[Measurement], left_out: Mapping[str, str]) -> list[Measurement]:
    """Of the products of each dtype, the fastest, named as the burst that it is, with the shapes that were left out."""
    best: dict[str, tuple[float, str]] = {}
    for one in found:
        if one.benchmark == "matmul" and one.dtype is not None and one.has_value:
            best[one.dtype] = max(best.get(one.dtype, (0.0, "")), (one.value(), one.case))
    kept = []
    for one in found:
        if one.benchmark != "matmul":
            kept.append(one)
        elif (one.dtype in best and one.case == best[one.dtype][1]) or one.dtype not in best:
            why = {"not tried": left_out[one.dtype]} if one.dtype and left_out.get(one.dtype) else {}
            kept.append(one.model_copy(update={"case": "burst", "parameters": {**one.parameters, **why}}))
    return kept
