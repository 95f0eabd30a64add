"""How often the rule for fleets names the bad units and no others, over simulated fleets whose faults are known.

The noise is that of `tests/fleets.py`; seeds are not those on which the rates were chosen. Prints and judges nothing.
Run: ``python -m pytest -s tests/benchmarks/test_fleet_rules.py``
"""

import numpy as np
import pytest
from fleets import SLOW_CLOCK, SLOW_MEMORY, Fault, fleet, named

from calibrate.fleet.outliers import outliers

DRAWS, SEED = 200, 1000
CASES: tuple[tuple[int, dict[int, Fault]], ...] = (
    (40, {3: SLOW_MEMORY, 17: SLOW_CLOCK}),
    (40, {}),
    (16, {2: (SLOW_MEMORY[0], 0.85)}),
    (8, {2: (SLOW_MEMORY[0], 0.8)}),
    (6, {2: (SLOW_MEMORY[0], 0.7)}),
)


@pytest.mark.parametrize("tails", [None, 5.0])
def test_named_units(tails: float | None) -> None:
    print(f"\nnoise: {'normal' if tails is None else 'Student t, 5 degrees of freedom'}")
    for count, faults in CASES:
        bad = {f"GPU-{i}" for i in faults}
        found = [named(outliers(fleet(np.random.default_rng(SEED + i), count, faults, tails))) for i in range(DRAWS)]
        exact, others = sum(names == bad for names in found), sum(bool(names - bad) for names in found)
        print(f"{count} units, {len(bad)} bad: just those in {exact} of {DRAWS}, others named in {others}")
