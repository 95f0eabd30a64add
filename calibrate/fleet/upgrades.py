"""Compares a fleet before and after an upgrade of driver or torch: each unit is compared with itself, before and after.

A unit's own speed cancels, so that units that were never measured before the upgrade, or only after it, say nothing.
Example: ``upgrades(stored.nights, stored.series, ("driver", "torch"))``
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import false_discovery_control, ttest_1samp

from calibrate.regression.compare import Key
from calibrate.regression.history import Night
from calibrate.regression.sources import side_of
from calibrate.regression.statistics import Array
from profiler.record.folder import RunFolder
from profiler.record.run import SAME_VERSIONS

LEAST_UNITS = 3
"""Units that have to be measured on both sides, so that their ratios have an interval."""
UPGRADED = (*SAME_VERSIONS, "roofcal")
RATE = 0.05
"""False discovery rate over the rows of one upgrade."""


@dataclass(frozen=True)
class Upgrade:
    """One row over one upgrade."""

    what: str
    """ "torch 2.11.0 → 2.13.0"."""
    key: Key
    ratio: float
    """Mean over the units of after ÷ before; above 1 is slower."""
    low: float
    high: float
    """90 % interval."""
    units: int
    rate: float
    """False discovery rate at which it is a change."""

    @property
    def name(self) -> str:
        return " ".join(value for _, value in self.key if value)


def upgrades(
    nights: Sequence[Night], series: Mapping[Key, Array], tolerance: float, names: Sequence[str] = UPGRADED
) -> list[Upgrade]:
    """The rows that changed with an upgrade, the largest first.

    Args: `series` holds log times of shape (nights,), NaN where a night lacks the row; `tolerance`, a fraction.
    """
    units: dict[str, list[int]] = {}
    for i, night in enumerate(nights):
        units.setdefault(night.made_of.get("device unit") or night.made_of.get("hostname", ""), []).append(i)
    steps: dict[str, list[tuple[list[int], list[int]]]] = {}
    for own in units.values():
        versions = [tuple(nights[i].made_of.get(name, "none") for name in names) for i in own]
        for at in range(1, len(own)):
            if versions[at] != versions[at - 1]:
                pairs = zip(names, versions[at - 1], versions[at], strict=True)
                changed = [f"{name} {old} → {new}" for name, old, new in pairs if old != new]
                before = [i for i, version in zip(own[:at], versions, strict=False) if version == versions[at - 1]]
                after = [i for i, version in zip(own[at:], versions[at:], strict=True) if version == versions[at]]
                steps.setdefault(", ".join(changed), []).append((before, after))
    found: list[Upgrade] = []
    for what, sides in steps.items():
        rows = [row for key, logs in series.items() if (row := _paired(what, key, logs, sides)) is not None]
        rates = false_discovery_control([row.rate for row in rows]) if rows else []
        found += [
            Upgrade(what, row.key, row.ratio, row.low, row.high, row.units, float(rate))
            for row, rate in zip(rows, rates, strict=True)
            if rate <= RATE and abs(math.log(row.ratio)) > math.log1p(tolerance)
        ]
    return sorted(found, key=lambda change: -abs(math.log(change.ratio)))


def upgrades_of(runs: Sequence[RunFolder], tolerance: float) -> list[Upgrade]:
    """The rows of runs of one device model that changed with an upgrade. Raises RequestError as `side_of`."""
    sides = [side_of([run]).side for run in sorted(runs, key=lambda run: run.run.started)]
    series: dict[Key, Array] = {}
    nights = []
    for i, side in enumerate(sides):
        made_of = {name: value for name, value in side.conditions.items() if value}
        nights.append(Night(side.name, side.started, {**made_of, **side.versions, "hostname": side.hostname}))
        for row in side.rows:
            if row.seconds:
                series.setdefault(row.key, np.full(len(sides), np.nan))[i] = math.log(float(np.median(row.seconds)))
    return upgrades(nights, series, tolerance)


def _paired(what: str, key: Key, logs: Array, sides: Sequence[tuple[list[int], list[int]]]) -> Upgrade | None:
    """One row over one upgrade, with the p-value of a t test over the units as its rate."""
    ratios = []
    for before, after in sides:
        old, new = (logs[index][~np.isnan(logs[index])] for index in (before, after))
        if len(old) and len(new):
            ratios.append(float(np.median(new) - np.median(old)))
    if len(ratios) < LEAST_UNITS or not np.ptp(ratios):
        return None
    test = ttest_1samp(ratios, 0.0)
    interval = test.confidence_interval(0.9)
    return Upgrade(what, key, math.exp(float(np.mean(ratios))), math.exp(interval.low), math.exp(interval.high),
                   len(ratios), float(test.pvalue))  # fmt: skip
