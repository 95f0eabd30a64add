"""The level of the machine beside one pass, from the times of the reference probes in it and in the calibration.

The ratio of a probe's median times is noisy where rounds are few, and a ratio that is noise would add that noise to
every prediction. So it is shrunk towards 1, as the non-negative garrote does (Breiman, Technometrics 37(4), 1995; the
positive-part James–Stein estimator of one mean has the same form): the logarithm of the ratio is multiplied by
max(0, 1 − (h ÷ log ratio)²), h being half its 90 % interval. A ratio that cannot be told from 1 is 1; a clear one is
left nearly as it is. (Drawn by the standard error alone, probes of a noisy host added up to 30 % to a prediction.)

Example: ``levels({"memory": (0.013, 0.014, 0.013)}, spec.reference)["memory"].ratio`` → 1.2
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from calibrate.replicates import difference, median_of
from roofline.level import LevelRatio, ReferenceLevel


def levels(
    beside_pass: Mapping[str, Sequence[float]], calibration: Mapping[str, ReferenceLevel]
) -> dict[str, LevelRatio]:
    """The ratio of each probe that ran in both; seconds in, one for each round and each visit.

    A probe with a single time on either side has no interval and is left out.
    """
    found = {
        probe: level_ratio(times, calibration[probe].seconds)
        for probe, times in beside_pass.items()
        if probe in calibration and times
    }
    return {probe: ratio for probe, ratio in found.items() if ratio is not None}


def level_ratio(pass_s: Sequence[float], calibration_s: Sequence[float]) -> LevelRatio | None:
    """Median of `pass_s` ÷ median of `calibration_s`, shrunk towards 1; None without an interval."""
    log_ratio = difference(median_of(np.log(pass_s)), median_of(np.log(calibration_s)))
    ends = log_ratio.interval()
    if ends is None:
        return None
    told = 1 - (log_ratio.half() / log_ratio.value) ** 2 if log_ratio.value != 0 else 0.0
    return LevelRatio(ratio=math.exp(log_ratio.value * max(told, 0.0)), low=math.exp(ends[0]), high=math.exp(ends[1]))
