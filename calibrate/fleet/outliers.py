"""Which units of a fleet are not like their sisters, in which figures, and why they may be.

Each figure of a unit is compared with the fleet's median; the spread between units is Rousseeuw and Croux's Qn (JASA
88, 1993), of which half the units may be outliers, with the corrections for small fleets of Croux and Rousseeuw (1992).
A distance in spreads has about Student's t distribution, with Qn's efficiency times the degrees of freedom. The
p-values of a unit's figures become one by Simes's rule, which holds for figures that move together; over the units the
false discovery rate is controlled (Benjamini, Hochberg 1995; `scipy.stats.false_discovery_control`). A unit is certain
where at least two figures are off (partial conjunction; Benjamini, Heller, Biometrics 64, 2008): what is wrong with a
device shows in several, and a single far one may be a bad measurement.

Example: ``[found.unit.name for found in outliers(units) if found.is_certain]``
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.stats import false_discovery_control
from scipy.stats import t as student

from roofline.reading import parse_json, record_from
from roofline.record import Record

Array = NDArray[np.float64]

LEAST = 5
"""Units from which on the spread between them is known well enough to call one unlike."""
CERTAIN, DOUBTFUL = 5e-3, 0.05
"""False discovery rates: a unit that differs is taken out of service, so that wrong names are to be rare;
one that may differ is only looked at."""
FIGURES = 0.01
"""False discovery rate over the figures of such a unit."""
QN, EFFICIENCY = 2.2219, 0.82
"""Factor that makes Qn the standard deviation of normal figures, and its efficiency there."""
QN_SMALL = {2: 0.399, 3: 0.994, 4: 0.512, 5: 0.844, 6: 0.611, 7: 0.857, 8: 0.669, 9: 0.872}
"""Corrections of Qn for so many figures; for more, n ÷ (n + 1.4) where n is odd, n ÷ (n + 3.8) where it is even."""
RESOLUTION = 0.002
"""Least spread, a fraction: figures are printed with three digits, and sizes that are stated have no spread at all."""
Z90 = 1.645
"""Standard errors in half of a 90 % interval."""
LOW_IS_GOOD = ("s", "J/FLOP", "J/B", "W")
"""Units of figures that are better where they are lower."""


@dataclass(frozen=True)
class Measured:
    """One figure of one unit."""

    value: float
    unit: str
    error: float = 0.0
    """Standard error of its measurement, a fraction."""


@dataclass(frozen=True)
class Unit:
    """One device of a fleet."""

    name: str
    """UUID of a GPU, or a host's name."""
    hostname: str = ""
    figures: Mapping[str, Measured] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    """Conditions of its measurements: "power cap in 83 % of the time"."""


@dataclass(frozen=True)
class Off:
    """A figure that is not the fleet's."""

    name: str
    value: float
    median: float
    """Middle of the fleet."""
    unit: str
    distance: float
    """Spreads between the figure and the median, with a sign."""
    p: float

    @property
    def ratio(self) -> float:
        """Figure ÷ the fleet's median."""
        return self.value / self.median

    @property
    def is_worse(self) -> bool:
        return (self.ratio > 1) == (self.unit in LOW_IS_GOOD)


@dataclass(frozen=True)
class Outlier:
    """A unit that is not like its sisters."""

    unit: Unit
    figures: tuple[Off, ...]
    """Those that are off, the furthest first."""
    rate: float
    """False discovery rate at which any figure is off."""
    rate_of_two: float
    """False discovery rate at which at least two figures are off."""
    cause: str

    @property
    def is_certain(self) -> bool:
        """Whether it differs, and not only may."""
        return self.rate_of_two <= CERTAIN


class Cause(Record):
    """A row of causes.json; the first that fits names the likely cause."""

    cause: str
    slow: tuple[str, ...]
    """Beginnings of names of figures, one of which has to be worse; empty where remarks alone tell."""
    remarks: tuple[str, ...] = ()
    """Words, one of which a remark of the unit has to have; empty where none is needed."""
    others: tuple[str, ...] | None = Field(default=None)
    """Beginnings of other figures that may be off too; None for all."""


def causes() -> tuple[Cause, ...]:
    """The rows of causes.json, in their order."""
    rows = parse_json(Path(__file__).with_name("causes.json").read_bytes())
    return tuple(record_from(Cause, row) for row in rows)


def spread(logs: Array) -> float:
    """Qn of the logarithms of a figure over units, shape (units,): about its relative standard deviation."""
    n = len(logs)
    half = n // 2 + 1
    apart = np.sort(np.abs(logs[:, None] - logs[None, :])[np.triu_indices(n, 1)])
    small = QN_SMALL.get(n, n / (n + (1.4 if n % 2 else 3.8)))
    return QN * small * float(apart[math.comb(half, 2) - 1])


def outliers(units: Sequence[Unit]) -> list[Outlier]:
    """The units that differ or may differ, the most certain first; none in a fleet of less than `LEAST` units."""
    if len(units) < LEAST:
        return []
    off: list[list[Off]] = [[] for _ in units]
    for name in dict.fromkeys(name for unit in units for name in unit.figures):
        here = [i for i, unit in enumerate(units) if name in unit.figures]
        if len(here) >= LEAST:
            for i, compared in zip(here, _compared(name, [units[i].figures[name] for i in here]), strict=True):
                off[i].append(compared)
    tested = [i for i, figures in enumerate(off) if figures]
    if not tested:
        return []
    each = [sorted(figure.p for figure in off[i]) for i in tested]
    rates = false_discovery_control([simes(p) for p in each])
    of_two = false_discovery_control([simes(p[1:]) for p in each])
    found: list[Outlier] = []
    for i, rate, rate_of_two in zip(tested, rates.tolist(), of_two.tolist(), strict=True):
        if rate > DOUBTFUL:
            continue
        adjusted = false_discovery_control([figure.p for figure in off[i]])
        named = [figure for figure, p in zip(off[i], adjusted.tolist(), strict=True) if p <= FIGURES]
        named.sort(key=lambda figure: -abs(figure.distance))
        found.append(Outlier(units[i], tuple(named), rate, rate_of_two, likely_cause(units[i], named)))
    return sorted(found, key=lambda outlier: (outlier.rate_of_two, outlier.rate, outlier.unit.name))


def _compared(name: str, figures: Sequence[Measured]) -> list[Off]:
    """One figure of several units against their median."""
    logs = np.log([figure.value for figure in figures])
    errors = np.array([figure.error for figure in figures])
    n, median = len(logs), float(np.median(logs))
    # A unit that was measured worse than the usual one may be further off.
    more = np.maximum(errors**2 - float(np.median(errors)) ** 2, 0.0)
    scale = np.sqrt(max(spread(logs), RESOLUTION) ** 2 * (1 + 1 / n) + more)
    distances = (logs - median) / scale
    p = 2 * student.sf(np.abs(distances), EFFICIENCY * (n - 1))
    rows = zip(figures, distances.tolist(), p.tolist(), strict=True)
    return [Off(name, figure.value, math.exp(median), figure.unit, z, chance) for figure, z, chance in rows]


def simes(p: Sequence[float]) -> float:
    """One p-value of several, 1 of none (Simes, Biometrika 73, 1986)."""
    if not len(p):
        return 1.0
    ordered = np.sort(np.asarray(p))
    return float(min(1.0, (ordered * len(ordered) / np.arange(1, len(ordered) + 1)).min()))


def likely_cause(unit: Unit, figures: Sequence[Off]) -> str:
    """The first row of causes.json that fits what is worse, and what was remarked while it was measured."""
    worse = [figure.name for figure in figures if figure.is_worse]
    if not worse:
        return "better than its sisters: another clock, power limit or version?" if figures else "not known"
    for row in causes():
        remarked = not row.remarks or any(word in remark for word in row.remarks for remark in unit.remarks)
        slow = not row.slow or any(name.startswith(row.slow) for name in worse)
        allowed = row.others is None or all(name.startswith((*row.slow, *row.others)) for name in worse)
        if remarked and slow and allowed:
            return row.cause
    return "not known"
