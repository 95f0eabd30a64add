"""The host's part of a pass: the gap before each operation, by its law, and the wall time where operations wait for it.

On a CPU host and device are the same cores: what the host does for an operation and its work follow each other, so
`host_s_per_op` is the host's whole cost where a roofline prices the work; where laws do, the gap before it is. On CUDA
the host runs ahead through a queue: it has issued the i-th of the operations (counted from 1) at ``i * host_s``; the
device starts it then, or when it has finished the one before; the pass ends with the last of them.
"""

import math
import re
from collections.abc import Sequence
from itertools import takewhile

import numpy as np
from numpy.typing import ArrayLike

from roofline.caches import bytes_since_last_run
from roofline.graph.op import Kind, Op, OpGraph
from roofline.hardware.spec import HardwareSpec, Peaks, facts_of
from roofline.laws.fitted import FittedLaw
from roofline.laws.kinds import HOST_GAP, law_named
from roofline.laws.law import Floats


def wall_s(device_s: ArrayLike, count: ArrayLike, host_s_per_op: float, has_queue: bool) -> float:
    """Seconds of a pass. `device_s` and `count` have shape (operations,), in the order they run.

    A run of neighbours with the same count above 1 is a block of layers that runs so often, one after another.
    A device time that is not known (NaN) makes the result NaN.

    Where a queue never waits after operation j, the pass ends at issue(j) + device time from j on; the wall time is the
    largest such sum. Within a block it changes by the same amount at each repetition, so the largest is in the first or
    the last one.
    """
    device, times = np.asarray(device_s, dtype=float), np.asarray(count, dtype=float)
    if device.shape != times.shape:
        raise ValueError(f"{device.shape} device times but {times.shape} counts")
    if not has_queue or not len(device):
        return float((times * (device + host_s_per_op)).sum())
    is_first = np.r_[True, times[1:] != times[:-1]]
    starts, block = np.flatnonzero(is_first), np.cumsum(is_first) - 1
    block_device, block_ops = np.add.reduceat(device, starts), np.diff(np.r_[starts, len(device)])
    repeats = times[starts]
    device_before = np.cumsum(block_device * repeats) - block_device * repeats
    issued_before = np.cumsum(block_ops * repeats) - block_ops * repeats
    within_device = np.cumsum(device) - device - (np.cumsum(block_device) - block_device)[block]
    within_issued = np.arange(1, len(device) + 1) - starts[block]
    total = float((device * times).sum())
    walls = []
    for repetition in (np.zeros_like(repeats), np.maximum(repeats - 1, 0)):
        issued = (issued_before + repetition * block_ops)[block] + within_issued
        finished = (device_before + repetition * block_device)[block] + within_device
        walls.append((issued * host_s_per_op + total - finished).max())
    return float(max(walls))


def pass_wall_s(
    time_s: Floats, count: Floats, spec: HardwareSpec, peaks: Peaks, gap_s: Floats | None, *, with_laws: bool
) -> float | None:
    """Wall time of operations with their device times; None where the host's share is not known.

    Laws are fitted to whole operations: on a CPU only `gap_s`, the gap before each, is left to the host.
    """
    if with_laws and not spec.has_queue:
        return None if gap_s is None else known(float((time_s + gap_s) @ count))
    return known(wall_s(time_s, count, peaks.host_s_per_op.value, spec.has_queue)) if peaks.host_s_per_op else None


def gap_dims(ops: Sequence[Op]) -> dict[str, Floats]:
    """Sizes of the gap before each operation as `HostGap` has them, shape (operations,). "modules" counts modules that
    have operations of their own or below them."""
    modules = np.zeros(len(ops))
    before: list[str] = []
    for i, op in enumerate(ops):
        path = op.path.split(".") if op.path else []
        shared = list(takewhile(lambda names: names[0] == names[1], zip(path, before, strict=False)))
        modules[i] = len(path) + len(before) - 2 * len(shared)
        before = path
    # Lines of the model's code are alike in all layers.
    lines = [(re.sub(r"\d+", "#", op.path), op.name) for op in ops]
    return {
        "modules": modules,
        "reach": bytes_since_last_run(ops, lines, lambda op: not _is_streamed(op)),
        "streamed": bytes_since_last_run(ops, lines, _is_streamed),
    }


def _is_streamed(op: Op) -> bool:
    """True for a product with one row, which reads its matrix once."""
    return op.kind == Kind.MATMUL and op.dims["m"] == 1


def host_gap_s(graph: OpGraph, spec: HardwareSpec) -> Floats | None:
    """Seconds of the host before each operation, by the law for the pass's dtype or another; None without a law."""
    law = _gap_law(graph, spec)
    return None if law is None else law.time_s(gap_dims(graph.ops), facts_of(spec))


def host_gap_interval(graph: OpGraph, spec: HardwareSpec) -> tuple[Floats, Floats] | None:
    """Ends of the 90 % interval of each gap in seconds; None without a law."""
    law = _gap_law(graph, spec)
    return None if law is None else law.interval(gap_dims(graph.ops), facts_of(spec))


def _gap_law(graph: OpGraph, spec: HardwareSpec) -> FittedLaw | None:
    laws = {law.dtype: law for law in _gap_laws(spec)} if spec.calibrated else {}
    if not laws or not graph.ops:
        return None
    return laws.get(graph.workload.dtype, next(iter(laws.values())))


def _gap_laws(spec: HardwareSpec) -> list[FittedLaw]:
    """The spec's laws of gaps; older specs have other constants, and then the host's cost of an operation is used."""
    names = {constant.name for constant in law_named(HOST_GAP).constants(facts_of(spec), "")}
    return [law for law in spec.calibrated if law.kind == HOST_GAP and set(law.values) == names]


def least_gap_s(spec: HardwareSpec, kernels: int) -> Floats | None:
    """Seconds before each kernel of a compiled pass, shape (kernels,): no module is entered, and the loop that calls
    the kernels stays in the caches. None without a law or kernels."""
    law = next(iter(_gap_laws(spec)), None) if spec.calibrated else None
    nothing = dict.fromkeys(law_named(HOST_GAP).dims, np.zeros(kernels))
    return None if law is None or not kernels else law.time_s(nothing, facts_of(spec))


def known(value: float) -> float | None:
    """The value; None for NaN."""
    return None if math.isnan(value) else float(value)
