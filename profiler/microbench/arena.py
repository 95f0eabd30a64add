"""Random operands of many kernels out of one piece of memory: making each anew takes longer than timing it.

On a CPU operands are windows of one filled buffer, one behind the other, round and round, each a storage of its own, so
that the tracer takes them for different tensors. That two operands share bytes is seen by no cache as long as the whole
buffer lies between them. On a GPU, where memory is filled quickly, each operand is allocated.

Contract: operands are read, or overwritten with finite values; nobody reads what another operand held.

Example: ``Arena(torch.device("cpu"), torch.float32, 1 << 30).take((4864, 896))``
"""

import math

import numpy as np
import torch
from torch import Tensor

from profiler.devices.backend import backend_of

DRAWN = 65_521
"""Random numbers that a buffer repeats: drawing all of them takes longer than measuring. A prime,
so that rows differ."""
ALIGNED = 64
"""Bytes: torch's allocator aligns so on a CPU."""


class Arena:
    """Operands of one dtype."""

    def __init__(self, device: torch.device, dtype: torch.dtype, size_bytes: int = 0) -> None:
        """`size_bytes` of the buffer; without one, and for what it cannot hold, each operand is allocated."""
        self._device, self.dtype = device, dtype
        self._buffer: np.ndarray | None = None
        self._next = 0
        if backend_of(device).is_host and size_bytes >= ALIGNED:
            self._buffer = _filled(size_bytes // dtype.itemsize, dtype, device).view(torch.uint8).numpy()

    @property
    def size_bytes(self) -> int:
        """Of the buffer."""
        return 0 if self._buffer is None else len(self._buffer)

    def take(self, size: tuple[int, ...]) -> Tensor:
        """Values between −0.5 and 0.5."""
        count = math.prod(size)
        needed = count * self.dtype.itemsize
        if self._buffer is None or not 0 < needed <= len(self._buffer):
            return _filled(count, self.dtype, self._device).view(size)
        start = self._next if self._next + needed <= len(self._buffer) else 0
        self._next = -(-(start + needed) // ALIGNED) * ALIGNED
        return torch.from_numpy(self._buffer[start : start + needed]).view(self.dtype).view(size)


def _filled(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    found = torch.empty(count, dtype=dtype, device=device)
    drawn = torch.rand(min(DRAWN, count), device=device).sub_(0.5).to(dtype)
    for start in range(0, count, DRAWN):
        part = found[start : start + DRAWN]
        part.copy_(drawn[: len(part)])
    return found
