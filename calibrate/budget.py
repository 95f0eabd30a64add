"""A design within a budget of seconds: as many of the points as the law, at its priors, says can be measured in it.

Example: ``design_within(law, dims, facts, "bfloat16", points=40, seconds=1.0)``
"""

import numpy as np

from calibrate.design import Rows, design
from roofline.laws.law import Dims, Facts, Law


def design_within(law: Law, dims: Dims, facts: Facts, dtype: str, points: int, seconds: float, seed: int = 0) -> Rows:
    """Rows to measure once each in about `seconds`: `points`, or as many of them as fit, at least one.

    Raises ValueError as `design` does.
    """
    priors = {constant.name: constant.prior for constant in law.constants(facts, dtype)}
    time_s = law.time_s(dims, facts, dtype, priors)
    fewest, most = 1, points
    rows = design(law, dims, facts, dtype, points, seed)
    if time_s[rows].sum() <= seconds:
        return rows
    while most - fewest > 1:
        middle = (fewest + most) // 2
        if time_s[design(law, dims, facts, dtype, middle, seed)].sum() <= seconds:
            fewest = middle
        else:
            most = middle
    return np.asarray(design(law, dims, facts, dtype, fewest, seed))
