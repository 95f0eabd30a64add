"""Rungs to the terms between them: what each piece of reality adds, signed, never clipped.

A term needs the rungs on both its sides. Where one is not known, its two terms are given as one, under both names:
the sum is the same, and an unknown is never shown as 0. So a pass without reference probes has one term
"level+residual".

Example: ``waterfall([None, 2.0, 3.0, 3.2, None], measured_s=4.5, idle_s=0.5)`` has extra_work 1.0, shape_loss 0.2,
idle 0.5 and merged {"ideal+peak_derate": 2.0, "level+residual": 1.3}
"""

from collections.abc import Sequence

from roofline.record import Record

TERMS = ("ideal", "peak_derate", "extra_work", "shape_loss", "level", "residual")
"""Each ends at the rung of its position: T0, T1, T2, T3, T3 at the level of the pass, T4."""


class Waterfall(Record):
    """Signed seconds that add up to the wall time. A term with an unknown rung is None and shown merged."""

    ideal: float | None
    peak_derate: float | None
    extra_work: float | None
    shape_loss: float | None
    level: float | None = None
    """The machine is slower than when the laws were fitted."""
    residual: float | None
    idle: float
    merged: dict[str, float] = {}
    """Terms that an unknown rung joins: {"level+residual": seconds}."""


def waterfall(rungs: Sequence[float | None], measured_s: float, idle_s: float) -> Waterfall:
    """The terms between rungs in the order of `TERMS`, the last one being measured: all add up to it and the idle."""
    alone: dict[str, float | None] = dict.fromkeys(TERMS)
    merged: dict[str, float] = {}
    below, waiting = 0.0, []
    for name, rung in zip(TERMS, (*rungs, measured_s), strict=True):
        waiting.append(name)
        if rung is None:
            continue
        if len(waiting) == 1:
            alone[name] = rung - below
        else:
            merged["+".join(waiting)] = rung - below
        below, waiting = rung, []
    return Waterfall(**alone, idle=idle_s, merged=merged)


def term_ending_at(rungs: Waterfall, last: str) -> str | None:
    """Name of the known term that ends with the term `last`, be it merged ("level+residual"); None where none does."""
    if getattr(rungs, last) is not None:
        return last
    return next((names for names in rungs.merged if names.split("+")[-1] == last), None)
