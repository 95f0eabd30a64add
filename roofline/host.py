"""Wall time of a pass when the host issues its operations one by one: small operations wait for the host.

On a CPU host and device are the same cores: what the host does for an operation and its work follow each other, so
`host_s_per_op` is the host's whole cost where a roofline prices the work (where laws do: `price_by_law`). On CUDA
the host runs ahead through a queue: it has issued the i-th of the operations (counted from 1) at ``i * host_s``; the
device starts it then, or when it has finished the one before; the pass ends with the last of them.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from roofline.hardware.spec import HardwareSpec, Peaks

Floats = NDArray[np.float64]


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


def known(value: float) -> float | None:
    """The value; None for NaN."""
    return None if math.isnan(value) else float(value)
