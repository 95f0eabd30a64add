"""Five rungs to the terms between them: what each piece of reality adds, signed, never clipped.

A term needs the rungs on both its sides. Where one is not known, its two terms are given as one, under both names:
the sum is the same, and an unknown is never shown as 0.

Example: ``terms(None, 2.0, 3.0, None, 4.5)`` →
``({"ideal": None, "peak_derate": None, "extra_work": 1.0, "shape_loss": None, "residual": None},
{"ideal+peak_derate": 2.0, "shape_loss+residual": 1.5})``
"""

TERMS = ("ideal", "peak_derate", "extra_work", "shape_loss", "residual")
"""Each ends at the rung of its position: T0, T1, T2, T3, T4."""


def terms(
    ideal: float | None, achieved: float | None, executed: float | None, calibrated: float | None, measured: float
) -> tuple[dict[str, float | None], dict[str, float]]:
    """(terms by name, None where merged; merged terms by joined name), in seconds; they add up to `measured`."""
    alone: dict[str, float | None] = dict.fromkeys(TERMS)
    merged: dict[str, float] = {}
    below, waiting = 0.0, []
    for name, rung in zip(TERMS, (ideal, achieved, executed, calibrated, measured), strict=True):
        waiting.append(name)
        if rung is None:
            continue
        if len(waiting) == 1:
            alone[name] = rung - below
        else:
            merged["+".join(waiting)] = rung - below
        below, waiting = rung, []
    return alone, merged
