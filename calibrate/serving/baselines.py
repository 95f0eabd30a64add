"""Simpler ways to price the kernels of a served model, beside which the laws are judged on the same rows."""

from collections.abc import Mapping

import numpy as np

from calibrate.kernels.fit import Observations, fit
from roofline.dtypes import BITS
from roofline.laws.kinds import law_for, work_of
from roofline.laws.law import Dims, Facts, Floats, FourConstant
from roofline.laws.work import datasheet_s

Key = tuple[str, str]
FITTED_ON = 200
"""Kernels to which the four constants are fitted."""
NEIGHBOURS = 4
"""Measured kernels between which is interpolated, weighted by 1 ÷ distance² on the logarithms of the sizes."""
SAME = 1e-9


class DatasheetPricer:
    """The longest of arithmetic, memory and link at the datasheet's peaks."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts

    def prices(self, kind: str) -> bool:
        """Whether kernels of that kind are known."""
        del kind
        return False

    def time_s(self, kind: str, dtype: str, dims: Dims) -> tuple[Floats, bool]:
        """Seconds of each kernel, and that they are its own."""
        return self._datasheet_s(kind, dtype, dims), True

    def _datasheet_s(self, kind: str, dtype: str, dims: Dims) -> Floats:
        _, arithmetic = law_for(kind, dtype, self.facts)
        return datasheet_s(work_of(kind, dims, dtype), self.facts, arithmetic)


class FourConstantPricer(DatasheetPricer):
    """``t0 + ((F/P)^p + (B/W)^p)^(1/p)``, fitted to each table; the datasheet where there is none."""

    def __init__(self, tables: Mapping[Key, Observations], facts: Facts) -> None:
        super().__init__(facts)
        self._tables, self._values = tables, dict[Key, Mapping[str, float]]()

    def prices(self, kind: str) -> bool:
        """Whether there is a table of that kind."""
        return any(name == kind for name, _ in self._tables)

    def time_s(self, kind: str, dtype: str, dims: Dims) -> tuple[Floats, bool]:
        key = nearest(self._tables, kind, dtype)
        if key is None:
            return super().time_s(kind, dtype, dims)
        _, arithmetic = law_for(kind, key[1], self.facts)
        law = FourConstant(kind)
        if key not in self._values:
            table = self._tables[key]
            some = table.take(np.random.default_rng(0).permutation(len(table))[:FITTED_ON])
            seen = Observations(kind, arithmetic, self._roofs(kind, key[1], some.dims), some.time_s, some.group)
            self._values[key] = fit(law, seen, self.facts).values
        return law.time_s(self._roofs(kind, dtype, dims), self.facts, arithmetic, self._values[key]), True

    def _roofs(self, kind: str, dtype: str, dims: Dims) -> dict[str, Floats]:
        work = work_of(kind, dims, dtype)
        return {"flops": np.asarray(work.flops), "bytes": np.asarray(work.bytes + work.link_bytes)}


class InterpolatingPricer(DatasheetPricer):
    """Interpolation between the nearest measured kernels of the whole table, of their time ÷ the datasheet's."""

    def __init__(self, tables: Mapping[Key, Observations], facts: Facts) -> None:
        super().__init__(facts)
        self._tables = tables

    def prices(self, kind: str) -> bool:
        """Whether there is a table of that kind."""
        return any(name == kind for name, _ in self._tables)

    def time_s(self, kind: str, dtype: str, dims: Dims) -> tuple[Floats, bool]:
        from scipy.spatial import cKDTree

        key = nearest(self._tables, kind, dtype)
        if key is None:
            return super().time_s(kind, dtype, dims)
        table = self._tables[key]
        names = [name for name in table.dims if name in dims]
        there, asked = (np.stack([_coordinate(name, sizes[name]) for name in names], 1) for sizes in (table.dims, dims))
        distance, near = cKDTree(there).query(asked, k=min(NEIGHBOURS, len(table)))
        distance, near = distance.reshape(len(asked), -1), near.reshape(len(asked), -1)
        weight = 1 / (distance + SAME) ** 2
        floor = self._datasheet_s(kind, key[1], table.dims) + 2e-6
        logs = (np.log(table.time_s / floor)[near] * weight).sum(axis=1) / weight.sum(axis=1)
        return np.exp(logs) * (self._datasheet_s(kind, dtype, dims) + 2e-6), True


def nearest(tables: Mapping[Key, Observations], kind: str, dtype: str) -> Key | None:
    """The table of that kind and dtype, else of the dtype with the nearest number of bits."""
    there = [key for key in tables if key[0] == kind]
    return min(there, key=lambda key: (key[1] != dtype, abs(BITS.get(key[1], 16) - BITS.get(dtype, 16))), default=None)


def _coordinate(name: str, size: Floats) -> Floats:
    """Doublings; an operation or an exponent as it is, tenfold, so that neighbours have the same."""
    value = np.asarray(size, dtype=float)
    return value * 10 if name in ("operation", "skew") else np.log2(np.maximum(value, 0.5))
