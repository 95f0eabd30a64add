"""T3: the operations of an executed graph priced with the calibrated laws of a device.

Each operation is priced once, by the most special law that the spec has for it; what no law describes keeps the
roofline's price, and is counted. Laws are evaluated on arrays, one call for each law.

Example: ``law_prices(Prepared(graph), spec, otherwise=price(graph, spec.measured).time_s).time_s @ counts``
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from roofline.facts import facts_of
from roofline.hardware.spec import HardwareSpec
from roofline.laws.law import Floats
from roofline.price import Prepared
from roofline.subjects import by_law, cold_shares, subjects

HELD = "resident"
"""Constant of laws that found which part of the last-level cache holds operands from one kernel to the next."""


@dataclass(frozen=True, eq=False)
class LawPrices:
    """Of the operations of a graph, in its order."""

    time_s: Floats
    """Seconds of one execution; NaN where neither a law nor the roofline knows it."""
    by_law: NDArray[np.bool_]
    """Priced by a law."""
    outside: NDArray[np.bool_]
    """Priced by a law beyond the sizes that it was fitted on."""
    law: NDArray[np.int_]
    """Which of the spec's laws priced it, by position in `HardwareSpec.calibrated`; −1 where none did."""
    low_s: Floats
    """Lower end of the law's 90 % interval; NaN where no law priced it, or intervals were not asked for."""
    high_s: Floats


def law_prices(prepared: Prepared, spec: HardwareSpec, otherwise: Floats, *, with_intervals: bool = False) -> LawPrices:
    """Price every operation. Args: `otherwise`, its time where no law of `spec` prices it.

    Raises ValueError where the spec has laws but not the facts that they need.
    """
    time_s, priced = np.array(otherwise, dtype=float), np.zeros(len(otherwise), dtype=bool)
    outside, number = np.zeros(len(otherwise), dtype=bool), np.full(len(otherwise), -1)
    low_s, high_s = np.full((2, len(otherwise)), np.nan)
    prices = LawPrices(time_s, priced, outside, number, low_s, high_s)
    known = {(law.kind, law.dtype): i for i, law in enumerate(spec.calibrated)}
    if not known:
        return prices
    facts = facts_of(spec)
    found = subjects(prepared, facts.cache_bytes)
    for key, places in by_law(found, known).items():
        law, rows = spec.calibrated[known[key]], [one for place in places if (one := found[place]) is not None]
        names = set.intersection(*(set(row.dims) for row in rows))
        dims = {name: np.array([row.dims[name] for row in rows]) for name in names}
        if (held := law.values.get(HELD, 1.0)) < 1:
            dims["cold"] = cold_shares(prepared.touches, held * facts.cache_bytes)[places]
        time_s[places] = law.time_s(dims, facts)
        priced[places], outside[places] = True, law.outside(dims)
        number[places] = known[key]
        if with_intervals:
            low_s[places], high_s[places] = law.interval(dims, facts)
    return prices
