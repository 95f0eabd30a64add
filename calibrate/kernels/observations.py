"""Measured kernels of one kind and dtype as columns: what laws are fitted to and scored on.

Example: ``Observations("matmul", "bfloat16", {"m": m, "n": n, "k": k}, time_s, group)``
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Observations:
    """One row a kernel; all arrays have the same length."""

    kind: str
    """As `roofline.laws.law.Law.kind`."""
    dtype: str
    """Of the arithmetic's inputs, torch's name; what else tells tables apart, such as an fp8 cache, is a dim."""
    dims: Mapping[str, Floats]
    time_s: Floats
    """Seconds, positive and finite."""
    group: NDArray[np.str_]
    """What is held out together: a weight shape ("n4096 k4096"), a head layout, a model."""

    def __post_init__(self) -> None:
        lengths = {len(self.time_s), len(self.group), *(len(column) for column in self.dims.values())}
        if len(lengths) != 1:
            raise ValueError(f"columns of {self.kind} have different lengths: {sorted(lengths)}")
        if not bool((np.isfinite(self.time_s) & (self.time_s > 0)).all()):
            raise ValueError(f"{self.kind}: a time is positive and finite; clean the table first")

    def __len__(self) -> int:
        return len(self.time_s)

    def take(self, rows: NDArray[np.int_] | NDArray[np.bool_]) -> "Observations":
        """Some of the rows."""
        dims = {name: column[rows] for name, column in self.dims.items()}
        return Observations(self.kind, self.dtype, dims, self.time_s[rows], self.group[rows])


def joined(kind: str, parts: Sequence[Observations]) -> Observations:
    """Rows of several tables of one dtype, with the sizes that all of them have."""
    names = [name for name in parts[0].dims if all(name in part.dims for part in parts)]
    return Observations(
        kind=kind,
        dtype=parts[0].dtype,
        dims={name: np.concatenate([part.dims[name] for part in parts]) for name in names},
        time_s=np.concatenate([part.time_s for part in parts]),
        group=np.concatenate([part.group for part in parts]),
    )
