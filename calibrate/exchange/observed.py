"""A run's measured kernels as columns by kind and dtype: what laws are fitted to and scored on.

A size that some rows of a kind and dtype lack is left out of their dims. What a law has to know of a kernel besides its
sizes becomes a dim too: "operation" is a place in `OPERATIONS`, "module" one in `MODULES`.

Example: ``observations(read(folder.path))[("matmul", "bfloat16")].dims["m"]``
"""

import numpy as np

from calibrate.observations import Observations
from profiler.record.kernels import DIMS, Kernels
from roofline.laws.collective import OPERATIONS
from roofline.laws.eager_modules import MODULES

CODES: dict[str, tuple[str, tuple[str, ...]]] = {
    "collective": ("operation", OPERATIONS),
    "module": ("module", tuple(MODULES)),
}
"""Kind -> the dim that holds its `op`, and what the dim is a place in."""


def observations(kernels: Kernels) -> dict[tuple[str, str], Observations]:
    """All rows, by (kind, dtype). Raises ValueError for an `op` that is none of `CODES`."""
    columns = {name: kernels.table[name].to_numpy() for name in ("kind", "dtype", "op", "group", "time_s", *DIMS)}
    found = {}
    for kind, dtype in kernels.counts():
        rows = np.flatnonzero((columns["kind"] == kind) & (columns["dtype"] == dtype))
        sizes = {name: columns[name][rows] for name in DIMS}
        dims = {name: column for name, column in sizes.items() if np.isfinite(column).all()}
        if kind in CODES:
            name, places = CODES[kind]
            dims[name] = _coded(columns["op"][rows], kind, places)
        found[kind, dtype] = Observations(
            kind, dtype, dims, columns["time_s"][rows], columns["group"][rows].astype(np.str_)
        )
    return found


def _coded(ops: np.ndarray, kind: str, places: tuple[str, ...]) -> np.ndarray:
    if unknown := sorted(set(ops) - set(places)):
        raise ValueError(f"{kind} {unknown[0]!r} is none of {', '.join(places)}")
    return np.array([places.index(op) for op in ops], dtype=float)
