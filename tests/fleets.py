"""Simulated fleets with known faults."""

from collections.abc import Mapping, Sequence

import numpy as np

from calibrate.fleet.outliers import Measured, Unit

FIGURES = {
    "memory.copy float32": "B/s", "memory.triad float32": "B/s", "level.HBM": "B/s", "matmul.burst bfloat16": "FLOP/s",
    "matmul.burst float8_e4m3fn": "FLOP/s", "matmul.sustained bfloat16": "FLOP/s", "vector.add float32": "FLOP/s",
    "transfer.pinned h2d": "B/s", "transfer.pinned d2h": "B/s", "collective.all_reduce": "B/s",
    "launch.back to back": "s", "host.operation": "s",
}  # fmt: skip
Fault = tuple[tuple[str, ...], float]
"""Beginnings of the figures that are off, and the factor."""
SLOW_MEMORY: Fault = (("memory.", "level."), 0.9)
SLOW_CLOCK: Fault = (("matmul.", "vector."), 0.9)
BAD_LINK: Fault = (("transfer.", "collective."), 0.5)


def fleet(
    rng: np.random.Generator,
    count: int,
    faults: Mapping[int, Fault],
    tails: float | None = None,
    remarks: Mapping[int, Sequence[str]] | None = None,
) -> list[Unit]:
    """Units whose figures vary by 1 % (host and launch by 3 %) and share 0.5 %; with `tails`, by Student's t of so
    many degrees of freedom, of the same standard deviation."""
    units = []
    for i in range(count):
        shared, figures = rng.normal(0, 0.005), {}
        for name, unit in FIGURES.items():
            deviation = 0.01 if unit != "s" else 0.03
            drawn = rng.normal() if tails is None else rng.standard_t(tails) * np.sqrt((tails - 2) / tails)
            log = shared + deviation * drawn + rng.normal(0, 0.003)
            begins, factor = faults.get(i, ((), 1.0))
            if begins and name.startswith(begins):
                log += np.log(factor)
            figures[name] = Measured(float(np.exp(log)), unit, 0.003)
        units.append(Unit(f"GPU-{i}", f"node{i}", figures, tuple((remarks or {}).get(i, ()))))
    return units


def named(found: Sequence[object]) -> set[str]:
    return {outlier.unit.name for outlier in found if outlier.is_certain}  # type: ignore[attr-defined]
