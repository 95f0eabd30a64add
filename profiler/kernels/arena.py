"""Memory for the operands of kernels that a calibration measures.

Example: ``Arena(torch.device("cpu"), torch.bfloat16, Storage(1 << 28, torch.bfloat16)).take((8, 4096))``
"""

import math

import numpy as np
import torch
from torch import Tensor

DRAWN = 65_521
"""Random numbers that a buffer repeats: drawing all of them takes longer than measuring. A prime, so that rows differ.
"""
ALIGNED = 64
"""Bytes: torch's allocator aligns so on a CPU."""


class Storage:
    """Memory of a CPU that arenas of several dtypes share, filled with random numbers.

    Two bfloat16 numbers side by side are a float32 of the size of the second, so both dtypes read the same bytes as
    values between −0.5 and 0.5; float16 reads them otherwise and has a storage of its own.
    """

    def __init__(self, size_bytes: int, dtype: torch.dtype) -> None:
        filled = torch.bfloat16 if dtype == torch.float32 else dtype
        count = size_bytes // 8 * 8 // filled.itemsize
        self.buffer: np.ndarray = _filled(count, filled, torch.device("cpu")).view(torch.uint8).numpy()


class Arena:
    """Random operands of one dtype out of one piece of memory: making each anew takes longer than timing it.

    On a CPU operands are windows of a filled storage, one behind the other, round and round, each a tensor storage of
    its own, so that the tracer takes them for different tensors. That two operands share bytes is seen by no cache as
    long as the whole buffer lies between them. On a GPU, where memory is filled quickly, each operand is allocated.

    Contract: operands are read, or overwritten with finite values; nobody reads what another operand held.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, storage: Storage | None = None) -> None:
        """Each operand is allocated where there is no storage, or where the storage cannot hold it."""
        self._device, self.dtype = device, dtype
        self._buffer = storage.buffer if storage is not None else np.empty(0, np.uint8)
        self._next = 0

    def take(self, size: tuple[int, ...]) -> Tensor:
        """Return an operand of values between −0.5 and 0.5."""
        count = math.prod(size)
        needed = count * self.dtype.itemsize
        if not 0 < needed <= len(self._buffer):
            return _filled(count, self.dtype, self._device).view(size)
        start = self._next if self._next + needed <= len(self._buffer) else 0
        self._next = -(-(start + needed) // ALIGNED) * ALIGNED
        return torch.from_numpy(self._buffer[start : start + needed]).view(self.dtype).view(size)


def _filled(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    filled = torch.empty(count, dtype=dtype, device=device)
    drawn = torch.rand(min(DRAWN, count), device=device).sub_(0.5).to(dtype)
    for start in range(0, count, DRAWN):
        part = filled[start : start + DRAWN]
        part.copy_(drawn[: len(part)])
    return filled
