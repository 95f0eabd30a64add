"""The peak rate of vector arithmetic: FLOP/s of torch's eager element-wise and row-wise operations, in cache.

Counted by the tracer's own table (`profiler.models.operators`), so that no operation of a model can be priced below
what the same count reached here. Most eager operations wait for a cache even then; the peak is the best rate of
operations with much arithmetic a byte: GELU, layer norm, softmax, and a Hermite polynomial of degree 32, which is a
chain of 93 multiplications and subtractions on one element (compute-bound on a GPU; scalar code on a CPU).
Low-precision inputs are computed in float32 inside the kernels; their rate is that of the whole operation.

Example: ``best(visit("float32", torch.device("cpu"), budget_s=1.0, working_set_bytes=1 << 20)).flops_per_s``
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from profiler.microbench.matmul import SAMPLE_S
from profiler.microbench.memory import cache_capacities
from profiler.microbench.undisturbed import collect, fastest_s, merged
from profiler.models.operators import REDUCTION_FLOPS, VECTOR_FLOPS
from profiler.timing.clock import clock_for
from profiler.timing.sampler import Samples

WIDTH = 1024
"""Length of a row for layer norm and softmax."""
DEGREE = 32
HERMITE_FLOPS = 3 * (DEGREE - 1)
"""He(k+1) = x·He(k) − k·He(k−1): two products and a difference a step (ATen Math.h, hermite_polynomial_he_forward)."""

Operation = Callable[[Tensor, Tensor], Tensor]

OPERATIONS: dict[str, tuple[float, Operation]] = {
    "gelu": (VECTOR_FLOPS["gelu"], lambda x, y: functional.gelu(x)),
    "gelu_tanh": (VECTOR_FLOPS["gelu_tanh"], lambda x, y: functional.gelu(x, approximate="tanh")),
    "silu": (VECTOR_FLOPS["silu"], lambda x, y: functional.silu(x)),
    "addcmul": (VECTOR_FLOPS["addcmul"], lambda x, y: torch.addcmul(x, x, y)),
    "lerp": (VECTOR_FLOPS["lerp"], lambda x, y: torch.lerp(x, y, 0.3)),
    "layer_norm": (VECTOR_FLOPS["native_layer_norm"], lambda x, y: functional.layer_norm(x, (WIDTH,))),
    "softmax": (VECTOR_FLOPS["_softmax"], lambda x, y: torch.softmax(x, -1)),
    "vector_norm": (REDUCTION_FLOPS["linalg_vector_norm"], lambda x, y: torch.linalg.vector_norm(x)),
    "hermite_polynomial_he": (HERMITE_FLOPS, lambda x, y: torch.special.hermite_polynomial_he(x, DEGREE)),
}
"""FLOPs an input element, and the call."""

FLOAT32_ONLY = frozenset({"hermite_polynomial_he"})
"""Operations that torch has in full precision alone."""


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """One operation, timed."""

    operation: str
    dtype: str
    flops_per_element: float
    elements: int
    samples: Samples

    @property
    def flops_per_s(self) -> float:
        return self.flops_per_element * self.elements / fastest_s(self.samples)


def in_cache_bytes(device: torch.device) -> int:
    """Half of the L2 caches of all threads; 1 MiB, half of the smallest L2 of current server cores, if unknown."""
    sizes = [cache.bytes for cache in cache_capacities(device) if cache.name == "L2"]
    return sizes[0] // 2 if sizes else 1 << 20


def visit(
    dtype: str, device: torch.device, *, budget_s: float, working_set_bytes: int | None = None
) -> list[Arithmetic]:
    """Time every operation; input and output together fill the working set.

    Raises what torch raises where the device lacks the dtype, ArithmeticError for a non-finite result.
    """
    kind = getattr(torch, dtype)
    size = working_set_bytes or in_cache_bytes(device)
    rows = max(1, size // (2 * kind.itemsize * WIDTH))
    x = torch.randn(rows, WIDTH, device=device).to(kind)
    y = torch.randn(rows, WIDTH, device=device).to(kind)
    names = [name for name in OPERATIONS if dtype == "float32" or name not in FLOAT32_ONLY]
    return [time_operation(name, x, y, budget_s=budget_s / len(names)) for name in names]


def best(found: Iterable[Arithmetic]) -> Arithmetic:
    """The operation with the highest rate over all visits."""
    return max(merged(found), key=lambda a: (not a.samples.is_thin, a.flops_per_s))


def time_operation(name: str, x: Tensor, y: Tensor, *, budget_s: float) -> Arithmetic:
    """Time one operation of the table on given operands."""
    flops, operation = OPERATIONS[name]
    samples = collect(
        lambda: operation(x, y), clock_for(x.device), budget_s=budget_s, min_sample_s=SAMPLE_S[x.device.type]
    )
    if not bool(torch.isfinite(operation(x, y)).all()):
        raise ArithmeticError(f"{name} of {x.dtype} random normal data is not finite")
    return Arithmetic(name, str(x.dtype).removeprefix("torch."), flops, x.numel(), samples)
