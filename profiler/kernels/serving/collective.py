"""Sums over the ranks of tensor parallelism, alone and with the norm that follows.

They run in the process group that torchrun, or a caller, has started: each rank draws from the same seed and takes its
own part, so that every rank knows the sum. One process alone has nobody to sum with, which is said instead of timed.
"""

from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
import torch.nn.functional as F

from profiler.kernels.serving.contract import (
    Dims,
    Draw,
    Family,
    Kernel,
    ModelStep,
    Provider,
    Result,
    Tensors,
    Unsupported,
    amount,
    in_own_dtype,
    points,
)
from profiler.kernels.serving.products import FLOATS, tolerance
from profiler.kernels.serving.row_libraries import EPS
from roofline.dtypes import ELEMENT_BYTES
from roofline.laws.work import OPERATIONS, Work, factor

SIZES = ("rows", "width", "ranks")
CHECKS = points(SIZES, (1, 64, 2), (7, 33, 2), (17, 96, 2))


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def _operands(d: Dims, dtype: str, draw: Draw) -> Tensors:
    """Return this rank's part. `parts` has those of all ranks, for the reference alone; a kernel has no use for it."""
    kind = getattr(torch, dtype)
    parts = draw.normal(d["ranks"], d["rows"], d["width"], dtype=kind)
    return {"x": draw.placed(parts[_rank() % d["ranks"]]), "parts": parts}


def _norm_operands(d: Dims, dtype: str, draw: Draw) -> Tensors:
    kind = getattr(torch, dtype)
    own = {
        "residual": draw.normal(d["rows"], d["width"], dtype=kind),
        "weight": draw.uniform(0.5, 1.5, d["width"], dtype=kind),
    }
    return _operands(d, dtype, draw) | own


def _summed(t: Tensors) -> torch.Tensor:
    total = t["x"].clone()
    dist.all_reduce(total)
    return total


def _normed(d: Dims, t: Tensors) -> Result:
    total = _summed(t) + t["residual"]
    return F.rms_norm(total, (d["width"],), t["weight"], EPS), total


def _bound(function: Callable[[Dims, Tensors], Result]) -> Callable[[Dims, str, Tensors], Kernel]:
    def bind(d: Dims, dtype: str, t: Tensors) -> Kernel:
        if not (dist.is_available() and dist.is_initialized()):
            raise Unsupported(f"a sum over {d['ranks']} ranks needs {d['ranks']} processes; start them with torchrun")
        if dist.get_world_size() != d["ranks"]:
            raise Unsupported(f"a sum over {d['ranks']} ranks does not run on {dist.get_world_size()}")
        return lambda t: function(d, t)

    return bind


def _norm_reference(d: Dims, t: Tensors) -> Tensors:
    total = t["parts"].double().sum(0) + t["residual"].double()
    return {"y": F.rms_norm(total, (d["width"],), t["weight"].double(), EPS), "total": total}


def _sent(d: Dims, dtype: str) -> float:
    """Return bytes that the busiest rank of a ring sends (`roofline.laws.work.RINGS`)."""
    return ELEMENT_BYTES[dtype] * d["rows"] * d["width"] * factor("all_reduce", d["ranks"])


def _kind(d: Dims, dtype: str) -> tuple[str, dict[str, float]]:
    size = ELEMENT_BYTES[dtype] * d["rows"] * d["width"]
    return "collective", {
        "bytes": size,
        "ranks": float(d["ranks"]),
        "per_node": float(d["ranks"]),
        "operation": float(OPERATIONS.index("all_reduce")),
    }


def _norm_work(d: Dims, dtype: str) -> Work:
    area = d["rows"] * d["width"]
    return amount(0, ELEMENT_BYTES[dtype] * (4 * area + d["width"]), _sent(d, dtype))


def _shapes(step: ModelStep) -> Iterable[dict[str, int]]:
    return points(SIZES, *((*rows, step.tp) for rows in step.reduced))


ALL_REDUCE = Family(
    name="all_reduce",
    sizes=SIZES,
    dtypes=FLOATS,
    operands=_operands,
    outputs=("y",),
    reference=lambda d, t: {"y": t["parts"].double().sum(0)},
    returned=in_own_dtype("y"),
    tolerance=lambda d, dtype: {"y": tolerance(dtype, 2 * d["ranks"], d["ranks"])},
    work=lambda d, dtype: amount(0, 2 * ELEMENT_BYTES[dtype] * d["rows"] * d["width"], _sent(d, dtype)),
    kind=_kind,
    shapes=_shapes,
    checks=CHECKS,
    providers=(Provider("torch.distributed", "torch", _bound(lambda d, t: _summed(t))),),
    ranks=2,
    note="needs a process for each rank, started with torchrun: gloo on a CPU, nccl on GPUs",
)
ALL_REDUCE_NORM = Family(
    name="all_reduce_rms_norm",
    sizes=SIZES,
    dtypes=FLOATS,
    operands=_norm_operands,
    outputs=("y", "total"),
    reference=_norm_reference,
    returned=in_own_dtype("y", "total"),
    tolerance=lambda d, dtype: dict.fromkeys(("y", "total"), tolerance(dtype, 8, d["width"])),
    work=_norm_work,
    shapes=lambda step: (shape for shape in _shapes(step) if shape["width"] == step.hidden),
    checks=CHECKS,
    constants={"eps": EPS},
    weights=("weight",),
    providers=(Provider("torch.distributed", "torch", _bound(_normed)),),
    ranks=2,
    note=ALL_REDUCE.note,
)

FAMILIES = (ALL_REDUCE, ALL_REDUCE_NORM)
