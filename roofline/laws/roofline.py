"""The bare roofline: an operation waits for the slowest of its matrix unit, vector unit, memory and link.

``time = max(matrix_flops / P_matrix, vector_flops / P_vector, Σ_level bytes_level / bandwidth_level,
link_bytes / bandwidth_link + messages · latency_link)``
(Williams, Waterman, Patterson, CACM 52(4), 2009, with one compute roof for each kind of unit and the memory
levels in series; a link as in Hockney, Parallel Computing 20(3), 1994, its latency 0 where it is not known). A time
that needs a peak which is not known is NaN, never a guess; `missing_peaks` says which.

A transfer that goes on beside its whole layer is waited for as far as that does not hide it (`beside`).

Example: 4e12 matrix FLOPs in float32, 1e12 bytes, on 2e12 FLOP/s and 1e12 bytes/s: 2 s, bound by "matrix".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from roofline.beside import Beside
from roofline.hardware import Peaks

UNKNOWN = ""
"""The bound of an operation whose time is not known."""


class Work(Protocol):
    """What the roofs need of an operation or a fused group, besides its bytes by level."""

    @property
    def matrix_flops(self) -> float: ...
    @property
    def vector_flops(self) -> float: ...
    @property
    def dtype(self) -> str: ...
    @property
    def link(self) -> str | None: ...
    @property
    def link_bytes(self) -> float: ...
    @property
    def messages(self) -> float: ...
    @property
    def path(self) -> str: ...
    @property
    def beside(self) -> str | None: ...
    @property
    def count(self) -> float: ...


@dataclass(frozen=True, eq=False)
class Priced:
    """Times of a list of operations, in its order."""

    time_s: NDArray[np.float64]
    """Shape (operations,): seconds of one execution; NaN where a needed peak is not known."""
    bound: tuple[str, ...]
    """What each waits for: "matrix", "vector", the memory level that takes most of its time, its link, or `UNKNOWN`."""


@dataclass(frozen=True, eq=False)
class Rates:
    """Seconds that each operation needs for a unit of its work on given peaks; NaN where the peak is not known."""

    matrix_s: NDArray[np.float64]
    """Shape (operations,): a FLOP."""
    vector_s: NDArray[np.float64]
    """Shape (operations,): a FLOP."""
    level_s: NDArray[np.float64]
    """Shape (levels,): a byte."""
    link_s: NDArray[np.float64]
    """Shape (operations,): a byte."""
    message_s: NDArray[np.float64]
    """Shape (operations,): a message."""

    @classmethod
    def of(cls, work: Sequence[Work], peaks: Peaks) -> "Rates":
        links = [peaks.links.get(w.link) if w.link else None for w in work]
        return cls(
            matrix_s=_inverse([matrix_peak(peaks, w.dtype) for w in work]),
            vector_s=_inverse([vector_peak(peaks, w.dtype) for w in work]),
            level_s=_inverse([level.bandwidth.value for level in peaks.levels]),
            link_s=_inverse([link.bandwidth.value if link else None for link in links]),
            message_s=np.array([link.latency_s.value if link and link.latency_s else 0.0 for link in links]),
        )


def roofs(
    rates: Rates,
    matrix_flops: NDArray[np.float64],
    vector_flops: NDArray[np.float64],
    level_bytes: NDArray[np.float64],
    link_bytes: NDArray[np.float64],
    messages: NDArray[np.float64],
) -> tuple[NDArray[np.float64], ...]:
    """Seconds at each of the four roofs: matrix, vector, memory, link; the time is their maximum (but: `Beside`).

    Args: shapes (…, operations), and (…, operations, levels) for `level_bytes`. Any work without a peak is NaN.
    """
    return (
        _seconds(matrix_flops, rates.matrix_s),
        _seconds(vector_flops, rates.vector_s),
        level_bytes @ rates.level_s,
        _seconds(link_bytes, rates.link_s) + messages * rates.message_s,
    )


def roofline(work: Sequence[Work], level_bytes: NDArray[np.float64], peaks: Peaks) -> Priced:
    """Price every item of `work`; `level_bytes` has shape (items, levels), in bytes, levels as in `peaks`."""
    if level_bytes.shape != (len(work), len(peaks.levels)):
        raise ValueError(f"level_bytes is {level_bytes.shape}, needed {(len(work), len(peaks.levels))}")
    rates = Rates.of(work, peaks)
    each = roofs(
        rates,
        _column([w.matrix_flops for w in work]),
        _column([w.vector_flops for w in work]),
        level_bytes,
        _column([w.link_bytes for w in work]),
        _column([w.messages for w in work]),
    )
    time_s = Beside.of(work).time_s(each, _column([w.count for w in work]))
    hidden = np.array([w.beside is not None for w in work], dtype=bool)
    waits = time_s > np.maximum.reduce(each[:-1])
    found = np.stack((*each[:-1], np.where(hidden, np.where(waits, time_s, 0.0), each[-1])), axis=-1)
    level_s = level_bytes * rates.level_s
    # an operation with no work at all is said to wait for main memory
    level = np.where(level_s.sum(axis=-1) > 0, level_s.argmax(axis=-1), len(peaks.levels) - 1)
    slowest = np.where(time_s == 0, 2, np.where(np.isnan(found), -np.inf, found).argmax(axis=-1))
    names = [lv.name for lv in peaks.levels]
    bound = tuple(
        UNKNOWN if np.isnan(time) else ("matrix", "vector", names[at], w.link or "")[roof]
        for w, time, roof, at in zip(work, time_s.tolist(), slowest.tolist(), level.tolist(), strict=True)
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
    """The peaks that `work` needs and `peaks` lacks: ("link nvlink", "matrix bfloat16", …), sorted."""
    missing = {f"matrix {w.dtype}" for w in work if w.matrix_flops > 0 and matrix_peak(peaks, w.dtype) is None}
    missing |= {f"vector {w.dtype}" for w in work if w.vector_flops > 0 and vector_peak(peaks, w.dtype) is None}
    missing |= {f"link {w.link}" for w in work if w.link_bytes > 0 and (w.link or "") not in peaks.links}
    return tuple(sorted(missing))


def _column(values: Sequence[float]) -> NDArray[np.float64]:
    return np.array(values, dtype=float)


def _inverse(rates: Sequence[float | None]) -> NDArray[np.float64]:
    return 1.0 / np.array([np.nan if rate is None else rate for rate in rates], dtype=float)


def _seconds(amount: NDArray[np.float64], per_unit: NDArray[np.float64]) -> NDArray[np.float64]:
    """amount × seconds each; 0 without work whatever the peak, NaN for work without a peak."""
    return np.where(amount > 0, amount * per_unit, 0.0)
