"""Measured figures with their predictions, and figures that follow from several of them.

A formula is written once: `derived` evaluates it for the measured values, for the predicted ones, and for the interval
of the result, to which each measured value contributes on its own (the root of the sum of the squares, to first order).

Example: ``derived(lambda some, one: some / one, verify, decode)``
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from roofline.units import known_sum


@dataclass(frozen=True, slots=True)
class Quantity:
    """One figure in SI units; what is not known is None."""

    measured: float | None = None
    half: float | None = None
    """Half of the 90 % interval of `measured`."""
    predicted: float | None = None

    @property
    def error(self) -> float | None:
        """Predicted ÷ measured − 1."""
        if self.measured is None or self.predicted is None or not self.measured:
            return None
        return self.predicted / self.measured - 1


UNKNOWN = Quantity()


def derived(formula: Callable[..., float], *of: Quantity) -> Quantity:
    """Return what follows from some figures; a side of which one is not known, or has no finite value, is None."""
    measured = _value(formula, [each.measured for each in of])
    half = None
    if measured is not None and known_sum(each.half for each in of) is not None:
        values = [each.measured or 0.0 for each in of]
        moved = [
            _value(formula, [*values[:i], values[i] + (each.half or 0.0), *values[i + 1 :]])
            for i, each in enumerate(of)
        ]
        half = None if None in moved else math.hypot(*(value - measured for value in moved if value is not None))
    return Quantity(measured, half, _value(formula, [each.predicted for each in of]))


def _value(formula: Callable[..., float], values: list[float | None]) -> float | None:
    if None in values:
        return None
    try:
        value = formula(*values)
    except ZeroDivisionError:
        return None
    return value if math.isfinite(value) else None


def interpolated(at: float, places: list[float], values: list[float]) -> float:
    """Return the value at a place, linear between known places and constant slope beyond them; one place is enough."""
    if len(places) == 1:
        return values[0]
    i = max(1, min(sum(place < at for place in places), len(places) - 1))
    low, high = places[i - 1], places[i]
    return values[i - 1] + (values[i] - values[i - 1]) * (at - low) / (high - low)
