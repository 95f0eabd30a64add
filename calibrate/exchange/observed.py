"""A run's measured kernels as columns by kind and dtype: what laws are fitted to and scored on.

A size that some rows of a kind and dtype lack is left out of their dims. What a law has to know of a kernel besides its
sizes becomes a dim too: "operation" is a place in `OPERATIONS`, "module" one in `MODULES`.

A library runs several kernels under one kind and dtype. In the public tables which one it is follows from the sizes
(fp8 blocks by rows and divisibility, experts by ranks), and so it must for whoever prices a shape later: they stay
together. Where a table has times of several for one shape, that of the fastest is kept.

Example: ``observations(read(folder.path))[("matmul", "bfloat16")].dims["m"]``
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from calibrate.observations import Observations
from profiler.record.kernel_table import DIMS, Kernels
from roofline.laws.collective import OPERATIONS
from roofline.laws.eager_modules import MODULES

ALTERNATIVES = ("kind", "dtype", "op", "distribution", "framework", "version", *DIMS)
"""Columns in which kernels that could run the same shape are equal."""

CODES: dict[str, tuple[str, tuple[str, ...]]] = {
    "collective": ("operation", OPERATIONS),
    "module": ("module", tuple(MODULES)),
}
"""Kind -> the dim that holds its `op`, and what the dim is a place in."""


def observations(kernels: Kernels) -> dict[tuple[str, str], Observations]:
    """All rows, by (kind, dtype). Raises ValueError for an `op` that is none of `CODES`."""
    columns = {name: kernels.table[name].to_numpy() for name in ("time_s", "group", "kernel", *ALTERNATIVES)}
    found = {}
    for kind, dtype in kernels.counts():
        rows = np.flatnonzero((columns["kind"] == kind) & (columns["dtype"] == dtype))
        rows = rows[_fastest({name: column[rows] for name, column in columns.items()})]
        sizes = {name: columns[name][rows] for name in DIMS}
        dims = {name: column for name, column in sizes.items() if np.isfinite(column).all()}
        if kind in CODES:
            name, places = CODES[kind]
            dims[name] = _coded(columns["op"][rows], kind, places)
        found[kind, dtype] = Observations(
            kind, dtype, dims, columns["time_s"][rows], columns["group"][rows].astype(np.str_)
        )
    return found


def _fastest(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """True of rows for whose shape no other kernel is faster; measured again by the same kernel, all stay."""
    if len(set(columns["kernel"])) == 1:
        return np.ones(len(columns["kernel"]), dtype=bool)
    frame = pd.DataFrame(columns)
    centre = frame.groupby([*ALTERNATIVES, "kernel"], dropna=False)["time_s"].transform("median")
    best = frame.assign(centre=centre).groupby(list(ALTERNATIVES), dropna=False)["centre"].transform("min")
    return np.asarray(centre == best)


def _coded(ops: np.ndarray, kind: str, places: tuple[str, ...]) -> np.ndarray:
    if unknown := sorted(set(ops) - set(places)):
        raise ValueError(f"{kind} {unknown[0]!r} is none of {', '.join(places)}")
    return np.array([places.index(op) for op in ops], dtype=float)
