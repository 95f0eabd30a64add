"""Achieved peaks from one short measurement: what this device gives to torch, as the prices of T1 and T2.

About 15 s. A figure that cannot be had (no such dtype, out of memory, a non-finite result) is left out and its
reason told; only main memory is indispensable. A figure is the rate of the fastest tenth of its samples, which are
taken on several visits: other work on the machine makes samples slower, and only that (`undisturbed`). Its interval
is the 5–95 % range of the samples within this process: a wide one tells of other work, not of the device.

Example: ``peaks, reasons = measure_peaks(torch.device("cpu"), ["float32", "bfloat16"])``
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import torch

from profiler.microbench import host, matmul, memory, pointwise, undisturbed
from profiler.microbench.memory import Progress
from profiler.microbench.undisturbed import FASTEST, VISITS, fastest_s
from profiler.timing.sampler import Samples
from roofline.hardware import Figure, Level, Peaks

BUDGET_S = 12.0
"""Time for all figures; allocation and data generation come on top."""
MEMORY_PART, HOST_PART = 0.3, 0.1
"""Parts of the budget; the rest is shared by the dtypes, two thirds of it for products."""

T = TypeVar("T")


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
        if not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise ValueError(f"{dtype!r} is no dtype of torch; use float32, bfloat16 or float16")
    found = _Found()
    everywhere = _conditions(device)
    with torch.no_grad():
        for visit in range(VISITS):
            _visit(
                device,
                dtypes,
                found,
                budget_s=budget_s / VISITS,
                limit_bytes=limit_bytes,
                progress=lambda part, what, visit=visit: progress((visit + part) / VISITS, what),  # type: ignore[misc]
            )
    progress(1.0, "peaks")
    levels, merged = memory.levels(device, found.levels)
    matrix = {name: _product(matmul.best(products), device, everywhere) for name, products in found.matrix.items()}
    vector = {name: _arithmetic(pointwise.best(some), everywhere) for name, some in found.vector.items()}
    return Peaks(
        matrix=matrix,
        vector=_with_products(vector, matrix, device),
        levels=tuple(_level(level, everywhere) for level in levels),
        host_s_per_op=_host_figure(undisturbed.merged(found.decodes)[0], everywhere) if found.decodes else None,
    ), {**{f"level.{name}": reason for name, reason in merged.items()}, **found.reasons}


@dataclass(slots=True)
class _Found:
    """What the visits so far have timed; a figure is in `reasons` once one of them could not have it."""

    levels: list[dict[str, list[memory.Bandwidth]]] = field(default_factory=list)
    matrix: dict[str, list[matmul.Product]] = field(default_factory=dict)
    vector: dict[str, list[pointwise.Arithmetic]] = field(default_factory=dict)
    decodes: list[host.HostCost] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)


def _visit(
    device: torch.device,
    dtypes: Sequence[str],
    found: _Found,
    *,
    budget_s: float,
    limit_bytes: int | None,
    progress: Progress,
) -> None:
    """Time everything once, and add it to what was found."""
    found.levels.append(
        memory.visit(
            device,
            budget_s=MEMORY_PART * budget_s,
            limit_bytes=limit_bytes,
            progress=lambda part, what: progress(MEMORY_PART * part, what),
        )
    )
    vector_dtypes = list(dict.fromkeys(["float32", *dtypes]))
    share_s = (1 - MEMORY_PART - HOST_PART) * budget_s / max(1, len(dtypes) * 2 + len(vector_dtypes))
    for i, dtype in enumerate(dtypes):
        progress(MEMORY_PART + 0.4 * i / len(dtypes), f"{dtype} products")
        products = _try(found.reasons, f"matrix.{dtype}", partial(matmul.visit, dtype, device, budget_s=2 * share_s))
        if products:
            found.matrix.setdefault(dtype, []).extend(products)
    for i, dtype in enumerate(vector_dtypes):
        progress(MEMORY_PART + 0.4 + 0.2 * i / len(vector_dtypes), f"{dtype} vector work")
        some = _try(found.reasons, f"vector.{dtype}", partial(pointwise.visit, dtype, device, budget_s=share_s))
        if some:
            found.vector.setdefault(dtype, []).extend(some)
    progress(1 - HOST_PART, "host cost of an operation")
    name = next(iter(found.matrix), "float32")  # a dtype that the device can do
    cost = _try(found.reasons, "host_s_per_op", partial(host.measure, device, name, budget_s=HOST_PART * budget_s))
    if cost:
        found.decodes.append(cost)


def _try(reasons: dict[str, str], figure: str, measure: Callable[[], T]) -> T | None:
    """The result, or None with its reason kept: out of memory, no kernel for the dtype, a non-finite result.

    What one visit could not have is not tried again.
    """
    if figure in reasons:
        return None
    try:
        return measure()
    except (RuntimeError, MemoryError, ArithmeticError) as error:
        reasons[figure] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
        return None


def _conditions(device: torch.device) -> str:
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    return f"torch {torch.__version__}, {where}"


def _sampled(samples: Samples) -> str:
    return (
        f"fastest tenth ({100 * FASTEST:g}th percentile of time) of {len(samples.times_s)} samples of at least "
        f"{samples.repeats} calls ({samples.clock}, {VISITS} visits); low–high: 5–95 % of the samples in this process"
    )


def _rate(work: float, samples: Samples, what: str, everywhere: str) -> Figure:
    return Figure(
        value=work / fastest_s(samples),
        low=work / samples.quantile_s(0.95),
        high=work / samples.quantile_s(0.05),
        source=f"measured: {what}; {_sampled(samples)}; {everywhere}",
    )


def _product(best: matmul.Product, device: torch.device, everywhere: str) -> Figure:
    shape = "×".join(str(s) for s in best.shape)
    what = f"torch.mm m×n×k {shape}, {matmul.precision(best.dtype, device)}, warm, random normal, burst"
    return _rate(best.flops, best.samples, what, everywhere)


def _arithmetic(best: pointwise.Arithmetic, everywhere: str) -> Figure:
    what = f"{best.operation} of {best.elements} elements at {best.flops_per_element:g} FLOPs, in cache"
    return _rate(best.flops_per_element * best.elements, best.samples, what, everywhere)


def _level(level: memory.MeasuredLevel, everywhere: str) -> Level:
    best = level.best
    state = "cold, operands in turn" if best.cold else "warm"
    what = f"{best.kernel} float32, working set {best.working_set_bytes} bytes, {state}, read + written bytes"
    if level.capacity_bytes != level.stated_bytes:
        what += f", {level.stated_bytes} bytes stated by the system"
    figure = _rate(best.bytes_per_call, best.samples, what, everywhere)
    return Level(name=level.name, capacity_bytes=level.capacity_bytes, bandwidth=figure)


def _host_figure(cost: host.HostCost, everywhere: str) -> Figure:
    n = cost.operations
    return Figure(
        value=cost.seconds_per_op,
        low=cost.samples.quantile_s(0.05) / n,
        high=cost.samples.quantile_s(0.95) / n,
        source=f"measured: decode pass of a tiny Llama ÷ its {n} operations; {_sampled(cost.samples)}; {everywhere}",
    )


def _with_products(vector: dict[str, Figure], matrix: dict[str, Figure], device: torch.device) -> dict[str, Figure]:
    """On a GPU an ieee float32 product runs on the vector units: it is a vector rate too, and counts if higher."""
    product, arithmetic = matrix.get("float32"), vector.get("float32")
    if device.type != "cuda" or product is None or matmul.precision("float32", device) != "ieee":
        return vector
    if arithmetic is not None and arithmetic.value >= product.value:
        return vector
    return {**vector, "float32": product}
