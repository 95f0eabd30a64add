"""The peak rate of matrix products that torch reaches for one dtype: the best of a coarse grid of shapes.

`torch.mm(a, b, out=c)` on random normal data, operands warm, 2·m·n·k FLOPs. float32 runs in the precision mode that
torch is set to ("ieee" unless it was changed), which `precision` tells. A short measurement: a burst, not a
sustained rate under a power cap.

Example: ``best(visit("bfloat16", torch.device("cpu"), budget_s=3.0)).flops_per_s``
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from profiler.microbench.undisturbed import CALLS_BEFORE, PER_VISIT, collect, fastest_s, merged
from profiler.timing.clock import clock_for
from profiler.timing.sampler import Samples

Shape = tuple[int, int, int]

SHAPES: dict[str, tuple[Shape, ...]] = {
    "cpu": tuple((s, s, s) for s in (512, 1024, 2048, 4096)),
    # Winners on Hopper lie at m 1024–2048, n and k 4096–14336 (mamf-finder, ml-engineering).
    "cuda": (
        *((s, s, s) for s in (1024, 2048, 4096, 8192)),
        (1024, 4096, 8192),
        (2048, 4096, 8192),
        (2048, 8192, 4096),
        (2048, 2048, 13312),
        (4096, 8192, 14336),
    ),
}
"""m, n, k by device type, the small ones first."""
SAMPLE_S = {"cpu": 2e-4, "cuda": 1e-3}
"""Shortest sample: on a CPU below a scheduler's slice (milliseconds), so that some samples fall between those of
other work; on a GPU so long that events (10–30 µs of wander) and launches do not matter."""


@dataclass(frozen=True, slots=True)
class Product:
    """One shape, timed."""

    dtype: str
    shape: Shape
    samples: Samples

    @property
    def flops(self) -> float:
        m, n, k = self.shape
        return 2.0 * m * n * k

    @property
    def flops_per_s(self) -> float:
        return self.flops / fastest_s(self.samples)


def visit(dtype: str, device: torch.device, *, budget_s: float) -> list[Product]:
    """Time the shapes, each for a part of the budget. One that has no time left for its samples is not tried.

    Raises what torch raises for a dtype that the device cannot multiply, ArithmeticError for a non-finite product.
    """
    clock = clock_for(device)
    shapes = SHAPES[device.type]
    deadline = clock.now() + budget_s
    found: list[Product] = []
    for tried, shape in enumerate(shapes):
        left_s = deadline - clock.now()
        rate = max((product.flops_per_s for product in found), default=None)
        needed = (CALLS_BEFORE + PER_VISIT) * 2.0 * shape[0] * shape[1] * shape[2]
        if rate is not None and needed / rate > max(left_s, 0):
            continue
        found.append(time_product(dtype, shape, device, budget_s=left_s / (len(shapes) - tried)))
    return found


def best(found: Iterable[Product]) -> Product:
    """The fastest shape over all visits; one with fewer than three samples only if all have."""
    return max(merged(found), key=lambda product: (not product.samples.is_thin, product.flops_per_s))


def time_product(dtype: str, shape: Shape, device: torch.device, *, budget_s: float) -> Product:
    """Time one shape."""
    m, n, k = shape
    kind = getattr(torch, dtype)
    a = torch.randn(m, k, device=device).to(kind)
    b = torch.randn(k, n, device=device).to(kind)
    out = torch.empty(m, n, device=device, dtype=kind)
    samples = collect(
        lambda: torch.mm(a, b, out=out), clock_for(device), budget_s=budget_s, min_sample_s=SAMPLE_S[device.type]
    )
    if not bool(torch.isfinite(out).all()):
        raise ArithmeticError(f"the {dtype} product of shape {shape} is not finite")
    return Product(dtype, shape, samples)


def precision(dtype: str, device: torch.device) -> str:
    """How torch multiplies this dtype: for float32 its precision mode, else the dtype's own name."""
    if dtype != "float32":
        return dtype
    if device.type == "cuda":
        mode = str(torch.backends.cuda.matmul.fp32_precision)
    else:
        mode = str(torch.backends.mkldnn.matmul.fp32_precision)  # type: ignore[attr-defined]
    return "ieee" if mode == "none" else mode  # "none": not set, and torch's default is ieee
