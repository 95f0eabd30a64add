"""How much each constant of a law decides of a kernel's time: kernels that the same constants decide are alike.

Example: ``log_time, response = responses(law, dims, facts, "bfloat16", values, ("peak", "bandwidth"))``; response of a
kernel that computes all the time is −1 and 0
"""

from collections.abc import Sequence

import numpy as np

from roofline.laws.law import Constant, Dims, Facts, Floats, Law, Values

STEP = 0.05
"""Change of a constant, on its logarithm (or in units of its prior's spread)."""


def responses(
    law: Law, dims: Dims, facts: Facts, dtype: str, values: Values, names: Sequence[str] | None = None
) -> tuple[Floats, Floats]:
    """log time, shape (rows,), and ∂ log time / ∂ log constant, shape (rows, names), of all constants if not named.

    Of a constant that is not on a logarithm, by spreads of its prior.
    """
    log_time = np.log(law.time_s(dims, facts, dtype, values))
    found = [np.zeros((len(log_time), 0))]
    for constant in law.constants(facts, dtype):
        if names is None or constant.name in names:
            moved, by = _moved(constant, values[constant.name])
            other = np.log(law.time_s(dims, facts, dtype, {**values, constant.name: moved}))
            found.append(((other - log_time) / by)[:, None])
    return log_time, np.concatenate(found, axis=1)


def _moved(constant: Constant, value: float) -> tuple[float, float]:
    """A step down, or up where that would be below its bound; and the step."""
    for by in (-STEP, STEP):
        moved = value * np.exp(by) if constant.logarithmic else value + by * constant.spread
        if moved >= constant.low:
            break
    return float(moved), by
