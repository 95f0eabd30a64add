"""Measured kernels of one kind and dtype as columns, which laws are fitted to and scored on.

A size that some rows lack is left out. Operators and modules become dims: indices into a list (`KernelKind.category`).
A library runs several kernels under one kind and dtype. In the public tables the sizes decide which one it is, as they
must for whoever prices a shape later, so they stay together; of several for one shape the fastest is kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from profiler.record.kernel_table import DIMS, Kernels
from roofline.laws.kinds import KINDS
from roofline.laws.law import Floats

ALTERNATIVES = ("kind", "dtype", "op", "distribution", "framework", "version", *DIMS)
"""Columns that are equal for kernels that could run the same shape."""


@dataclass(frozen=True, eq=False)
class Observations:
    """Measured kernels, one a row; all arrays have the same length."""

    kind: str
    """Kind of the table of kernels: "matmul", "aten::mul"."""
    dtype: str
    """dtype of the arithmetic's inputs, torch's name; other differences, such as an fp8 cache, are dims."""
    dims: Mapping[str, Floats]
    time_s: Floats
    """Seconds, positive and finite."""
    group: NDArray[np.str_]
    """Rows that are held out together: a weight shape ("n4096 k4096"), a head layout, a model."""

    def __post_init__(self) -> None:
        lengths = {len(self.time_s), len(self.group), *(len(column) for column in self.dims.values())}
        if len(lengths) != 1:
            raise ValueError(f"columns of {self.kind} have different lengths: {sorted(lengths)}")
        if not bool((np.isfinite(self.time_s) & (self.time_s > 0)).all()):
            raise ValueError(f"{self.kind}: a time is positive and finite; clean the table first")

    def __len__(self) -> int:
        return len(self.time_s)

    def take(self, rows: NDArray[np.int_] | NDArray[np.bool_]) -> "Observations":
        dims = {name: column[rows] for name, column in self.dims.items()}
        return Observations(self.kind, self.dtype, dims, self.time_s[rows], self.group[rows])


def joined(kind: str, parts: Sequence[Observations]) -> Observations:
    """Rows of several tables of one dtype, with the sizes that they all have."""
    names = [name for name in parts[0].dims if all(name in part.dims for part in parts)]
    return Observations(
        kind=kind,
        dtype=parts[0].dtype,
        dims={name: np.concatenate([part.dims[name] for part in parts]) for name in names},
        time_s=np.concatenate([part.time_s for part in parts]),
        group=np.concatenate([part.group for part in parts]),
    )


def observations(kernels: Kernels) -> dict[tuple[str, str], Observations]:
    """All rows by (kind, dtype). Raises ValueError for an `op` that is not in its kind's list."""
    columns = {name: kernels.table[name].to_numpy() for name in ("time_s", "group", "kernel", *ALTERNATIVES)}
    tables = {}
    for kind, dtype in kernels.counts():
        rows = np.flatnonzero((columns["kind"] == kind) & (columns["dtype"] == dtype))
        rows = rows[_fastest({name: column[rows] for name, column in columns.items()})]
        sizes = {name: columns[name][rows] for name in DIMS}
        dims = {name: column for name, column in sizes.items() if np.isfinite(column).all()}
        row = KINDS.get(kind)  # None: a kind without a law is kept, and reported as not calibrated
        if row is not None and row.category is not None:
            name, places = row.category
            if unknown := sorted(set(columns["op"][rows]) - set(places)):
                raise ValueError(f"{kind} {unknown[0]!r} is none of {', '.join(places)}")
            dims[name] = np.array([places.index(op) for op in columns["op"][rows]], dtype=float)
        tables[kind, dtype] = Observations(
            kind, dtype, dims, columns["time_s"][rows], columns["group"][rows].astype(np.str_)
        )
    return tables


def _fastest(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """True for rows of the fastest kernel for their shape, all its repeated measurements included."""
    if len(set(columns["kernel"])) == 1:
        return np.ones(len(columns["kernel"]), dtype=bool)
    frame = pd.DataFrame(columns)
    centre = frame.groupby([*ALTERNATIVES, "kernel"], dropna=False)["time_s"].transform("median")
    best = frame.assign(centre=centre).groupby(list(ALTERNATIVES), dropna=False)["centre"].transform("min")
    return np.asarray(centre == best)


def halves(observations: Observations, seed: int) -> tuple[Observations, Observations]:
    """Rows of a random half of the groups (rounded up), for a fit, and of the others, to score it. Whole groups are
    held out, since rows of one weight shape or head layout resemble each other. Raises ValueError where there is only
    one group."""
    names = np.unique(observations.group)
    if len(names) < 2:
        raise ValueError(
            f"all {len(observations)} rows of {observations.kind} {observations.dtype} are of one group "
            f"({names[0] if len(names) else 'none'}), and none can be held out; score on another run with --score"
        )
    drawn = np.random.default_rng(seed).permutation(len(names))[: (len(names) + 1) // 2]
    seen = np.isin(observations.group, names[drawn])
    return observations.take(seen), observations.take(~seen)
