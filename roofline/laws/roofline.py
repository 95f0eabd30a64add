"""The bare roofline: an operation waits for the slowest of its matrix unit, its vector unit and its memory.

``time = max(matrix_flops / P_matrix, vector_flops / P_vector, Σ_level bytes_level / bandwidth_level)``
(Williams, Waterman, Patterson, CACM 52(4), 2009, with one compute roof for each kind of unit and the memory
levels in series). A time that needs a peak which is not known is NaN, never a guess; `missing_peaks` says which.

Example: 4e12 matrix FLOPs in float32, 1e12 bytes, on 2e12 FLOP/s and 1e12 bytes/s: 2 s, bound by "matrix".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from roofline.hardware import Peaks

UNKNOWN = ""
"""The bound of an operation whose time is not known."""


class Work(Protocol):
    """What the compute roofs need of an operation or a fused group."""

    @property
    def matrix_flops(self) -> float: ...
    @property
    def vector_flops(self) -> float: ...
    @property
    def dtype(self) -> str: ...


@dataclass(frozen=True, eq=False)
class Priced:
    """Times of a list of operations, in its order."""

    time_s: NDArray[np.float64]
    """Shape (operations,): seconds of one execution; NaN where a needed peak is not known."""
    bound: tuple[str, ...]
    """What each waits for: "matrix", "vector", the memory level that takes most of its time, or `UNKNOWN`."""


def roofline(work: Sequence[Work], level_bytes: NDArray[np.float64], peaks: Peaks) -> Priced:
    """Price every item of `work`; `level_bytes` has shape (items, levels), in bytes, levels as in `peaks`."""
    if level_bytes.shape != (len(work), len(peaks.levels)):
        raise ValueError(f"level_bytes is {level_bytes.shape}, needed {(len(work), len(peaks.levels))}")
    matrix_s = _roof([w.matrix_flops for w in work], [matrix_peak(peaks, w.dtype) for w in work])
    vector_s = _roof([w.vector_flops for w in work], [vector_peak(peaks, w.dtype) for w in work])
    level_s = level_bytes / np.array([level.bandwidth.value for level in peaks.levels])
    roofs = np.stack([matrix_s, vector_s, level_s.sum(axis=1)], axis=1)
    time_s = roofs.max(axis=1)  # NaN wins
    names = [level.name for level in peaks.levels]
    slowest = np.where(np.isnan(time_s), -1, np.where(np.isnan(roofs), -np.inf, roofs).argmax(axis=1))
    # an operation with no work at all is said to wait for main memory
    level = np.where(level_s.sum(axis=1) > 0, level_s.argmax(axis=1), len(names) - 1)
    slowest = np.where(time_s == 0, 2, slowest)
    bound = tuple(
        UNKNOWN if roof == -1 else "matrix" if roof == 0 else "vector" if roof == 1 else names[lv]
        for roof, lv in zip(slowest.tolist(), level.tolist(), strict=True)
    )
    return Priced(time_s=time_s, bound=bound)


def matrix_peak(peaks: Peaks, dtype: str) -> float | None:
    """FLOP/s of matrix work with inputs of `dtype`; None if not known."""
    figure = peaks.matrix.get(dtype)
    return figure.value if figure else None


def vector_peak(peaks: Peaks, dtype: str) -> float | None:
    """FLOP/s of vector work in `dtype`, or in float32 where `dtype` has no figure of its own; None if not known."""
    figure = peaks.vector.get(dtype) or peaks.vector.get("float32")
    return figure.value if figure else None


def missing_peaks(work: Sequence[Work], peaks: Peaks) -> tuple[str, ...]:
    """The peaks that `work` needs and `peaks` lacks: ("matrix bfloat16", …), sorted."""
    missing = {f"matrix {w.dtype}" for w in work if w.matrix_flops > 0 and matrix_peak(peaks, w.dtype) is None}
    missing |= {f"vector {w.dtype}" for w in work if w.vector_flops > 0 and vector_peak(peaks, w.dtype) is None}
    return tuple(sorted(missing))


def _roof(flops: Sequence[float], peaks: Sequence[float | None]) -> NDArray[np.float64]:
    """flops ÷ peak; 0 without work whatever the peak, NaN for work without a peak."""
    amount = np.array(flops, dtype=float)
    rate = np.array([np.nan if peak is None else peak for peak in peaks], dtype=float)
    return np.where(amount > 0, amount / rate, 0.0)
